"""The layouts that `--format` names, what reads each, and what recognises it.

`ser --help` lists the formats, so a reader is imported when it is called.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ser.disk.paths import expand_user
from ser.plugins import Registry

if TYPE_CHECKING:
    from .reading import Reading

# From the path of a corpus to what its reader found there.
Reader = Callable[[Path], "Reading"]


def _read_iemocap(path: Path) -> "Reading":
    from .iemocap import read_iemocap

    return read_iemocap(path)


def _read_audformat(path: Path) -> "Reading":
    from .audformat import read_audformat

    return read_audformat(path)


def _read_folder(path: Path) -> "Reading":
    from .folder import read_folder

    return read_folder(path)


def _read_table(path: Path) -> "Reading":
    from .table import read_table

    return read_table(path)


def _read_textgrid(path: Path, tier: str | None = None) -> "Reading":
    from .annotations import read_annotated
    from .textgrid import FORMAT

    return read_annotated(path, FORMAT, tier)


def _read_elan(path: Path, tier: str | None = None) -> "Reading":
    from .annotations import read_annotated
    from .elan import FORMAT

    return read_annotated(path, FORMAT, tier)


def _read_audacity(path: Path) -> "Reading":
    from .annotations import read_annotated
    from .audacity import FORMAT

    return read_annotated(path, FORMAT, None)


def _read_rttm(path: Path) -> "Reading":
    from .annotations import read_annotated
    from .rttm import FORMAT

    return read_annotated(path, FORMAT, None)


def _description(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.toml")


# Each is a reader, or a TOML file that describes a layout (docs/add-a-corpus.md). `--help` lists
# them in this order.
_SER: dict[str, Reader | Path] = {
    "iemocap": _read_iemocap,
    "ravdess": _description("ravdess"),
    "crema-d": _description("crema-d"),
    "savee": _description("savee"),
    "tess": _description("tess"),
    "esd": _description("esd"),
    "emodb": _description("emodb"),
    "meld": _description("meld"),
    "msp-podcast": _description("msp-podcast"),
    "audformat": _read_audformat,
    "table": _read_table,
    "folder": _read_folder,
    "textgrid": _read_textgrid,
    "elan": _read_elan,
    "audacity": _read_audacity,
    "rttm": _read_rttm,
}

# Formats that take a tier's name, as in textgrid:TIER.
WITH_TIERS: dict[str, Callable[..., "Reading"]] = {
    "textgrid": _read_textgrid,
    "elan": _read_elan,
}
FORMATS: Registry[Reader | Path] = Registry("corpus format", "ser.corpora", Callable | Path, _SER)

# What a folder of a layout holds, as a pattern. Formats are detected by it, in this order; then
# described layouts, by the names of their recordings.
DETECTORS = {"iemocap": "Session[1-5]/dialog/", "audformat": "db.yaml"}


def find_reader(format: str) -> Reader:
    """The reader of a format: one of `FORMATS`, or the path of a description in TOML.

    A tier may stand behind the name of one that has tiers, as in textgrid:TIER.
    """
    name, _, tier = format.partition(":")
    if name in WITH_TIERS and tier:
        return partial(WITH_TIERS[name], tier=tier)
    reader = FORMATS.get(format, expand_user(format))
    if isinstance(reader, Path):
        from .described import read_described

        return partial(read_described, description=reader)
    return reader


def looks_described(folder: Path, description: Path) -> bool:
    """Whether most of the first recordings in a folder are named as a description says."""
    from .described import fits

    return fits(folder, description)
