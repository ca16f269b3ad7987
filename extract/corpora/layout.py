"""The description of a layout: a TOML file such as ravdess.toml beside this, or a user's own.

docs/add-a-corpus.md explains each key.
"""

from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from ser.corpus.schema import SCHEMA
from ser.disk.read import read_toml
from ser.errors import WrongUse, unknown

from .patterns import FROM_ANY_FOLDER, Fields, compile_pattern, match_fields
from .rows import MEASURED

# The columns that a description may fill from a recording's fields.
COLUMNS = [name for name in SCHEMA.names if name not in (*MEASURED, "audio", "votes")]


class TableLayout(msgspec.Struct, forbid_unknown_fields=True):
    """A table of the corpus.

    The row of a recording's key gives it more fields, or the rows of that key are its raters. Where
    the table lists the utterances, a recording whose path `unlisted` matches is one without a row.
    """

    file: str
    of: str = ""
    key: str = ""
    line: str | None = None
    where: dict[str, str] = {}
    votes: str = ""
    audio: str = ""
    unlisted: str | None = None
    encoding: Literal["cp1252", "latin-1", "gb18030", "big5", "shift_jis", "euc_kr"] = "cp1252"


class PublishedCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Published counts of the whole corpus, by the names of `count_all`."""

    utterances: int = 0
    dialogues: int = 0
    speakers: int = 0
    genders: dict[str, int] = {}
    sessions: dict[str, int] = {}
    labels: dict[str, int] = {}


class Layout(msgspec.Struct, forbid_unknown_fields=True):
    """The content of a description."""

    name: str
    pattern: str
    columns: dict[str, str]
    example: str = ""
    maps: dict[str, dict[str, str]] = {}
    tables: list[TableLayout] = []
    left_out: dict[str, str] = {}
    unknown: list[str] = []
    counts: PublishedCounts = PublishedCounts()
    partial: bool = False
    defects: dict[str, str] = {}
    licence: str = ""
    source: str = ""

    def match(self, path: str) -> Fields | None:
        """The fields that a path gives; None if it is not named as described."""
        pure = PurePosixPath(path)
        groups = match_fields(self.pattern, str(pure.with_suffix("")), FROM_ANY_FOLDER)
        if groups is None:
            return None
        return {"stem": pure.stem, "folder": str(pure.parent), **groups}

    def leaves_out(self, path: str) -> str | None:
        """The first name under `left_out` whose pattern matches a path, if any."""
        for name, pattern in self.left_out.items():
            if match_fields(pattern, path, FROM_ANY_FOLDER) is not None:
                return name
        return None


def read_layout(description: Path) -> Layout:
    """A description from its file. Raises `WrongUse` for its first error."""
    content = read_toml(description, "pattern = '(?P<speaker>[a-z]+)-(?P<emotion>[a-z]+)-[0-9]+'")
    try:
        layout = msgspec.convert(content, Layout)
        compile_pattern(layout.pattern)
        for pattern in layout.left_out.values():
            compile_pattern(pattern)
        for table in layout.tables:
            compile_pattern(table.line or "")
            compile_pattern(table.unlisted or "")
    except (msgspec.ValidationError, WrongUse) as error:
        raise WrongUse(f"{description}: {error}; docs/add-a-corpus.md lists the keys") from None

    for name in layout.columns:
        if name not in COLUMNS:
            raise unknown(f"column under [columns] of {description}", name, COLUMNS)

    mapped = [*layout.columns, "votes"]
    for name in layout.maps:
        if name not in mapped:
            raise unknown(f"column under [maps] of {description}", name, mapped)
    return layout
