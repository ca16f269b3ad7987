"""`ser train --settings`: every setting of a fusion, with its default and source."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .output import answer, table

if TYPE_CHECKING:
    from ser.train.listed_settings import ListedSetting


def print_settings(name: str, as_json: bool, defaults: Mapping[str, Any], file: str) -> None:
    """All settings of a fusion, or of both that `audio` or `text` is.

    `defaults` are the user's own for options of `ser train`, which a `file` holds.
    """
    from ser.train.listed_settings import list_settings
    from ser.train.models import FUSIONS

    names = _fusions_called(name)
    if as_json:
        fusions = []
        for fusion in names:
            listed = [vars(setting) for setting in list_settings(FUSIONS[fusion])]
            source = FUSIONS[fusion].source
            fusions.append(
                {"fusion": fusion, "source": source, "settings": listed, "defaults": defaults}
            )
        answer(fusions if name in ("audio", "text") else fusions[0])
        return

    for fusion in names:
        answer(f"{fusion}: {FUSIONS[fusion].source}")
        answer(_settings_table(list_settings(FUSIONS[fusion])))
    _print_defaults(defaults, file)


def _fusions_called(name: str) -> list[str]:
    """The fusion of that name; of one modality alone, those for vectors and for sequences."""
    from ser.errors import unknown
    from ser.train.models import FUSIONS

    if name in FUSIONS:
        return [name]
    fusions = []
    if name in ("audio", "text"):
        fusions = [fusion for fusion in FUSIONS if fusion.startswith(f"{name}:")]
    if not fusions:
        raise unknown("fusion", name, [*FUSIONS, "audio", "text"])
    return fusions


def _settings_table(listed: "list[ListedSetting]") -> str:
    rows = []
    for setting in listed:
        help_text = f"{setting.help} ({setting.range})" if setting.range else setting.help
        rows.append([setting.name, setting.default, setting.source, help_text])

    headings = ["setting", "default", "source", "what"]
    return table(rows, headings, maxcolwidths=[None, None, 32, 56])


def _print_defaults(defaults: Mapping[str, Any], file: str) -> None:
    """The user's own defaults of options, as the command line takes them."""
    for name, value in defaults.items():
        option = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        for text in values:
            # A flag has no value.
            shown = option if text is True else f"{option} {text}"
            answer(f"{shown} (default of {file})")
