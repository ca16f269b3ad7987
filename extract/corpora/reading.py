"""What a reader returns: the rows of a corpus as it found them, and what is wrong with it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ser.corpus.table_file import TableFile, TableRow
from ser.errors import printable


@dataclass(frozen=True)
class Problem:
    """Something wrong with a corpus, in one sentence.

    An `audio` or `text` problem belongs to a manifest row whose audio or transcript cannot be used,
    a `corpus` problem to something that is not in the manifest at all: a missing session, a refused
    row.
    """

    id: str | None
    path: str
    reason: str
    kind: Literal["audio", "text", "corpus"] = "corpus"

    def __str__(self) -> str:
        if self.id:
            return printable(f"{self.path}: {self.id}: {self.reason}")
        return printable(f"{self.path}: {self.reason}")


@dataclass(frozen=True)
class Reading:
    """A corpus as its reader found it, before audio is hashed and ids are checked."""

    corpus: str
    """Its name, from which the name in the store is made."""
    root: Path
    """The folder that audio paths are relative to."""
    rows: list[dict[str, Any]]
    """By the manifest's columns; `audio` is a path under `root` with forward slashes.

    A row may say from which `line` it comes, such as "line 7".
    """
    problems: list[Problem] = field(default_factory=list)
    synthetic: bool = False
    """Whether the speech is generated."""
    warnings: list[str] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    """Published counts, by the names in `counts.py`, if the corpus ought to be whole."""
    paths: Literal["linked", "inside", "unopened"] = "linked"
    """Where audio may lie.

    Parts of a corpus folder may be links to another disk, but the audio that a table names stays
    inside its folder, links included, if it is opened.
    """
    places: Literal["measured", "segments", "dialogue"] = "measured"
    """What `start` and `end` of a row are places in: its audio file, of which it is a segment, or
    its dialogue. "measured": what the lengths of the files say, see `segments.py`.
    """


def rows_of(table: TableFile, reading: Reading, place: str) -> Iterator[TableRow]:
    """The rows of a table that are whole; the others become problems of that `place`."""
    reading.warnings.extend(table.notes)
    for row in table.rows:
        if row.fault:
            reading.problems.append(Problem(None, place, f"{row.where}: {row.fault}"))
        else:
            yield row
