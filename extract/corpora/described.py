"""Layouts that follow from file names and tables, described in a TOML file: ravdess.toml beside
this, or a user's own.

docs/add-a-corpus.md explains each key. A description may come from anyone, so its patterns are
matched under a time limit, and its templates can only insert fields.
"""

import functools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
import regex

from ser.corpus.schema import SCHEMA
from ser.disk.read import read_toml
from ser.errors import WrongUse, unknown

from ..audio import CODED, SOUND
from .scan import Problem, Reading, read_text
from .table import MEASURED, add_row, records

SECONDS = 1.0  # that a pattern may take for one name: backtracking may never end
LONGEST, REPEATS = (
    1000,
    10_000,
)  # of a pattern: its characters, and the product of its counted repeats
SAMPLE, FOLDERS = 500, 100  # recordings, and folders, that decide whether a corpus has a layout
COLUMNS = [name for name in SCHEMA.names if name not in (*MEASURED, "audio", "votes")]
FIELD = regex.compile(r"\{(\w+)\}")
ANYWHERE = "(?:.*/)?(?:{})"  # around a pattern that matches from the start of any folder
Fields = dict[str, Any]  # the values of a recording, by the names that templates use


class Table(msgspec.Struct, forbid_unknown_fields=True):
    """A table of the corpus, whose row of a recording's key gives it more fields, or whose rows are
    its raters.
    """

    file: str
    of: str = ""
    key: str = ""
    line: str | None = None
    where: dict[str, str] = {}
    votes: str = ""
    audio: str = ""
    encoding: Literal["cp1252", "latin-1", "gb18030", "big5", "shift_jis", "euc_kr"] = "cp1252"


class Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
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
    tables: list[Table] = []
    left_out: dict[str, str] = {}
    unknown: list[str] = []
    counts: Counts = Counts()
    partial: bool = False
    defects: dict[str, str] = {}
    licence: str = ""
    source: str = ""

    def match(self, path: str) -> Fields | None:
        """The fields that a path gives; None if it is not named as described."""
        pure = PurePosixPath(path)
        groups = _match(self.pattern, str(pure.with_suffix("")), ANYWHERE)
        return (
            groups if groups is None else {"stem": pure.stem, "folder": str(pure.parent), **groups}
        )

    def leaves_out(self, path: str) -> str | None:
        """The name under `left_out` whose pattern matches a path, if any."""
        names = (
            name
            for name, pattern in self.left_out.items()
            if _match(pattern, path, ANYWHERE) is not None
        )
        return next(names, None)


def read_layout(description: Path) -> Layout:
    """A description from its file. Raises `WrongUse` for its first error."""
    content = read_toml(description, "pattern = '(?P<speaker>[a-z]+)-(?P<emotion>[a-z]+)-[0-9]+'")
    try:
        layout = msgspec.convert(content, Layout)
        for pattern in (
            layout.pattern,
            *layout.left_out.values(),
            *(table.line or "" for table in layout.tables),
        ):
            _compiled(pattern)
    except (msgspec.ValidationError, WrongUse) as error:
        raise WrongUse(f"{description}: {error}; docs/add-a-corpus.md lists the keys") from None
    mapped = [*layout.columns, "votes"]
    for place, names, known in (
        ("columns", layout.columns, COLUMNS),
        ("maps", layout.maps, mapped),
    ):
        for name in names:
            if name not in known:
                raise unknown(f"column under [{place}] of {description}", name, known)
    return layout


def fits(root: Path, description: Path) -> bool:
    """Whether most of the first recordings in a folder, except those left out, are named as
    described.
    """
    layout = read_layout(description)
    recordings = (path for path in _files(root, FOLDERS) if _ending(path) in SOUND | CODED)
    sample = islice((path for path in recordings if layout.leaves_out(path) is None), SAMPLE)
    matches = [layout.match(path) is not None for path in sample]
    return 2 * sum(matches) > len(matches)


def read_described(root: Path, description: Path) -> Reading:
    """Read a corpus as described. A recording without a dialogue is a dialogue by itself.

    Raises `WrongUse` if the description is wrong, or a table that lists the utterances is missing.
    """
    layout, files = read_layout(description), list(_files(root))
    reading, left_out = Reading(description.stem, root, []), Counter[str]()
    recordings: list[tuple[str, Fields]] = []
    sounds = {path.rpartition(".")[0] for path in files if _ending(path) in SOUND}
    for path in files:
        ending = _ending(path)
        if ending not in SOUND | CODED or (ending in CODED and path.rpartition(".")[0] in sounds):
            continue
        if (name := layout.leaves_out(path)) is not None:
            left_out[name] += 1
        elif (fields := layout.match(path)) is not None:
            recordings.append((path, fields))
        else:
            reason = f"the name does not follow the convention of {layout.name} ({layout.example or layout.pattern})"
            reading.problems.append(Problem(None, path, reason))
    for table in layout.tables:
        recordings = _joined(table, recordings, files, layout, reading)
    turns = Counter[tuple[str | None, str]]()
    for path, fields in recordings:
        if row := add_row(reading, _columns(layout, path, fields), path):
            dialogue = row.get("session"), row["dialogue"]
            turns[dialogue] = row.setdefault("turn", turns[dialogue]) + 1
    used = FIELD.findall(" ".join(layout.columns.values()))
    known = {
        name for _, fields in recordings for name, value in fields.items() if isinstance(value, str)
    }
    warnings, ids = reading.warnings, {row["id"] for row in reading.rows}
    warnings += [
        f"nothing gives {{{field}}}, which a column names"
        for field in used
        if ids and field not in known
    ]
    warnings += [f"{count} files are left out: {name}" for name, count in left_out.items()]
    warnings += [
        f"known defect: {id}: {defect}" for id, defect in layout.defects.items() if id in ids
    ]
    if layout.partial and len(ids) < layout.counts.utterances:
        warnings.append(
            f"{len(ids)} of {layout.name}'s {layout.counts.utterances} utterances are here"
        )
    else:
        reading.known.update(msgspec.to_builtins(layout.counts))
    return reading


def _joined(
    table: Table,
    recordings: list[tuple[str, Fields]],
    files: list[str],
    layout: Layout,
    reading: Reading,
) -> list[tuple[str, Fields]]:
    """The recordings with the fields of their rows in a table.

    If the table lists the utterances, recordings without a row are left out, and rows without a
    recording are added.
    """
    by_name: dict[str, list[str]] = {}
    for path in files:
        by_name.setdefault(path.rpartition("/")[2], []).append(path)
    loaded, unused = (
        dict[str, dict[str, Fields]](),
        dict[tuple[str, str], Fields](),
    )  # by the table's name, and key
    joined, absent = list[tuple[str, Fields]](), set[str]()
    for path, fields in recordings:
        name, key = _filled(table.file, fields) or "", _filled(table.of, fields) or ""
        if name not in loaded:
            same_name = by_name.get(name.rpartition("/")[2], [])
            place = next((file for file in same_name if f"/{file}".endswith(f"/{name}")), None)
            if place is None and name:
                absent.add(name)
            loaded[name] = {} if place is None else _rows(table, place, layout, reading)
            if table.audio:
                shared = {
                    field: fields.get(field) for field in ("folder", *FIELD.findall(table.file))
                }
                unused |= {(name, key_): shared | row for key_, row in loaded[name].items()}
        row = loaded[name].get(key)
        if row is not None or not table.audio:
            joined.append((path, fields | (row or {})))
            unused.pop((name, key), None)
    if table.audio and absent:
        raise WrongUse(
            f"{reading.root} has no {min(absent)}, which lists the utterances of {layout.name}; add it"
        )
    if absent and "{stem}" not in table.file:
        reading.warnings.append(f"{min(absent)} is not here, and nothing is taken from it")
    if len(joined) < len(recordings):
        reading.warnings.append(
            f"{len(recordings) - len(joined)} files are left out: in no row of {table.file}"
        )
    for row in unused.values():
        if lost := _filled(table.audio, row):
            joined.append((lost, {"stem": PurePosixPath(lost).stem, **row}))
    return joined


def _rows(table: Table, place: str, layout: Layout, reading: Reading) -> dict[str, Fields]:
    """A table's rows by their keys, the first of each; or by key the votes of all."""
    rows: dict[str, Fields] = {}
    votes = layout.maps.get("votes", {})
    if table.line is None:
        read = (record for _, record in records(reading.root / place, reading.problems, place))
    else:
        lines = map(str.strip, read_text(reading.root / place, table.encoding).split("\n"))
        read = (
            groups for line in lines if line and (groups := _match(table.line, line)) is not None
        )
    for record in read:
        row = {
            name: str(value)
            for name, value in record.items()
            if value not in ("", None, *layout.unknown)
        }
        key = _filled(table.key, row)
        if key is None or any(row.get(name) != value for name, value in table.where.items()):
            continue
        if not table.votes:
            rows.setdefault(key, row)
        elif (vote := _filled(table.votes, row)) is not None:
            rows.setdefault(key, {"votes": []})["votes"].append(
                [votes.get(vote, votes.get("*", vote))]
            )
    return rows


def _columns(layout: Layout, path: str, fields: Fields) -> Iterator[tuple[str, Any]]:
    """The columns of a recording with these fields. Raises `ValueError` for a value that a map does
    not list.
    """
    yield from {"audio": path, "votes": fields.get("votes")}.items()
    for column, template in {"id": "{stem}", **layout.columns}.items():
        value = _filled(template, fields)
        if value is not None and (listed := layout.maps.get(column)) is not None:
            if value not in listed and "*" not in listed:
                raise ValueError(f"the {column} {value[:60]!a} is not among maps.{column}")
            value = listed.get(value, listed.get("*"))
        yield column, value or None


def _filled(template: str, fields: Mapping[str, Any]) -> str | None:
    """The template with each {field} filled in; None if one of them is not known."""
    if any(
        not isinstance(fields.get(name), str) for name in FIELD.findall(template)
    ):  # votes are a list
        return None
    return FIELD.sub(lambda field: fields[field[1]], template)


@functools.lru_cache(64)
def _compiled(pattern: str, around: str = "{}") -> Any:
    """Raises `WrongUse` for an invalid pattern, or one that would take gigabytes: counted repeats
    are expanded.
    """
    repeats = [int(number[:9]) or 1 for number in regex.findall(r"[{,]\s*([0-9]+)", pattern)]
    if len(pattern) > LONGEST or math.prod(repeats) > REPEATS:
        raise WrongUse(
            f"the pattern {pattern[:60]!a} is too large; take fewer characters and counted repeats"
        )
    try:
        return regex.compile(around.format(pattern))
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise WrongUse(
            f"the pattern {pattern[:60]!a} is not a regular expression ({error})"
        ) from None


def _match(pattern: str, text: str, around: str = "{}") -> Fields | None:
    """The groups of a whole match. Raises `WrongUse` if it takes too long."""
    try:
        match = _compiled(pattern, around).fullmatch(text, timeout=SECONDS)
    except TimeoutError:
        slow = f"the pattern {pattern[:60]!a} takes over {SECONDS:g} s to match {text[:60]!a}"
        raise WrongUse(f"{slow}; write it without a repeat within a repeat") from None
    return match and {name: value for name, value in match.groupdict().items() if value}


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _files(root: Path, folders: int | None = None) -> Iterator[str]:
    """The files below `root`, or those of its first `folders`, in order, without hidden ones.

    Follows links, and reads each folder once. Raises `OSError` for a folder that cannot be read.
    """

    def stop(error: OSError) -> None:
        if not isinstance(error, NotADirectoryError):
            raise error

    seen = set[str]()
    for folder, inner, names in islice(os.walk(root, onerror=stop, followlinks=True), folders):
        new = (real := os.path.realpath(folder)) not in seen
        seen.add(real)
        inner[:] = sorted(name for name in inner if new and not name.startswith("."))
        under = Path(folder).relative_to(root)
        yield from (
            (under / name).as_posix() for name in sorted(names) if new and not name.startswith(".")
        )
