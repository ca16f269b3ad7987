"""The layouts that `--format` names, and the reader of each."""

from collections.abc import Callable
from pathlib import Path

from .emodb import read_emodb
from .iemocap import read_iemocap
from .reading import Reading


def _read_table(path: Path) -> Reading:
    from .table import read_table  # not above: it needs pyarrow, and `ser --help` names the formats too

    return read_table(path)


FORMATS: dict[str, Callable[[Path], Reading]] = {"iemocap": read_iemocap, "emodb": read_emodb, "table": _read_table}
