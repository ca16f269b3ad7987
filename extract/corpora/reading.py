"""What a corpus reader hands over, before audio is hashed and ids are checked."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Problem:
    """Something wrong with a corpus, in one sentence.

    `kind` says what it touches: `audio` and `text` problems belong to a manifest row whose audio or transcript cannot
    be used, `label` problems to a row whose annotation is odd (its features can be computed), and `corpus` problems
    to something that is not in the manifest at all: a missing session, a refused row.
    """

    id: str | None
    path: str
    reason: str
    kind: Literal["audio", "text", "label", "corpus"] = "corpus"

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.id + ': ' if self.id else ''}{self.reason}")


@dataclass(frozen=True)
class Reading:
    """A corpus as its reader found it.

    `rows` have the manifest's columns (`audio` a path under `root` with forward slashes); `where` says where each row
    came from ("line 7"), or is empty.
    """

    corpus: str
    root: Path
    rows: list[dict[str, Any]]
    problems: list[Problem] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    synthetic: bool = False


def visible(folder: Path, suffix: str) -> Iterator[Path]:
    """The entries of `folder` with that suffix, by name, without the `._*` files that a Mac leaves beside real ones."""
    if folder.is_dir():
        yield from sorted(p for p in folder.iterdir() if p.suffix.lower() == suffix and not p.name.startswith("."))


def read_text(path: Path) -> str:
    """The text of a file that may not be UTF-8: then it is read as Windows-1252, undefined bytes as Latin-1."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def printable(text: str) -> str:
    """`text` with what could steer a terminal escaped: ids and paths are someone else's data."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
