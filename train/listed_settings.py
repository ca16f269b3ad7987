"""What `ser train --settings` lists: every setting of a fusion, its default, source and help."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, get_type_hints

from ser.errors import WrongUse

from .models import CommonSettings, Fusion
from .settings import TrainingSettings, bounds_in_words, kind_name


@dataclass(frozen=True)
class ListedSetting:
    """One line of `ser train --settings`."""

    name: str
    default: Any
    kind: str
    """"int", "float", "bool", "str", "sum|mean"; "fixed" cannot be set."""
    source: str
    help: str
    range: str = ""
    """Its bounds, such as "at least 0 and below 1"."""


def list_settings(fusion: Fusion) -> list[ListedSetting]:
    """All settings that a fusion uses: its own, those of training, and what no setting changes.

    Raises `WrongUse` for a setting of a user's own fusion that does not say its source and help.
    """
    listed = []
    for owner in (fusion.settings, TrainingSettings):
        kinds = get_type_hints(owner, include_extras=True)
        for field in fields(owner):
            if field.name not in fusion.unused:
                listed.append(_list_setting(fusion, field, kinds[field.name]))

    for name, (value, help_) in fusion.fixed.items():
        listed.append(ListedSetting(name, value, "fixed", "ours, fixed", help_))
    return listed


def _list_setting(fusion: Fusion, field: Field[Any], kind: Any) -> ListedSetting:
    common = CommonSettings.__dataclass_fields__.get(field.name)
    texts: Mapping[str, Any] = field.metadata
    if common is not None:
        texts = {**common.metadata, **field.metadata}

    if "source" not in texts or "help" not in texts:
        raise WrongUse(
            f"fusion {fusion.name}: say what its setting {field.name} does, and where its default "
            "is from: setting(default, source, help)"
        )
    return ListedSetting(
        name=field.name,
        default=_default(fusion, field),
        kind=kind_name(kind),
        source=texts["source"],
        help=texts["help"],
        range=bounds_in_words(kind),
    )


def _default(fusion: Fusion, field: Field[Any]) -> Any:
    """The value where nothing is set; `experiment.prepare` lets what a solver fits be refitted."""
    if fusion.solved and field.name == "refit":
        return True
    return field.default
