"""Read a corpus whose layout follows from file names and tables, as its description says."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from ser.corpus.table_file import read_table_file, text_of
from ser.disk.text import read_text
from ser.errors import WrongUse

from ..audio import CODED, SOUND
from .files import walk_files
from .layout import Layout, TableLayout, read_layout
from .patterns import FIELD, FROM_ANY_FOLDER, Fields, fill, match_fields
from .reading import Problem, Reading, rows_of
from .rows import add_row

# What decides whether a corpus has a layout: as many recordings, of as many folders.
SAMPLE_RECORDINGS = 500
SAMPLE_FOLDERS = 100


@dataclass(frozen=True)
class Recording:
    """A sound file of the corpus, and what its name and the tables tell of it."""

    path: str
    """Under the root, with forward slashes."""
    fields: Fields


def fits(root: Path, description: Path) -> bool:
    """Whether most of the first recordings in a folder are named as described.

    Those that the description leaves out do not count.
    """
    layout = read_layout(description)
    sampled = 0
    matching = 0
    for path in walk_files(root, SAMPLE_FOLDERS):
        if _ending(path) not in SOUND | CODED or layout.leaves_out(path) is not None:
            continue
        sampled += 1
        if layout.match(path) is not None:
            matching += 1
        if sampled == SAMPLE_RECORDINGS:
            break
    return 2 * matching > sampled


def read_described(root: Path, description: Path) -> Reading:
    """Read a corpus as described. A recording without a dialogue is a dialogue by itself.

    Raises `WrongUse` if the description is wrong, or a table that lists the utterances is missing.
    """
    layout = read_layout(description)
    files = list(walk_files(root))
    reading = Reading(description.stem, root, [])
    left_out = Counter[str]()  # files, by the name of what leaves them out

    recordings = _find_recordings(layout, files, reading, left_out)
    for table in layout.tables:
        recordings = _join(table, recordings, files, layout, reading)
    _add_rows(layout, recordings, reading)

    ids = {row["id"] for row in reading.rows}
    if ids:
        _warn_of_missing_fields(layout, recordings, reading)
    for name, count in left_out.items():
        reading.warnings.append(f"{count} files are left out: {name}")
    for id, defect in layout.defects.items():
        if id in ids:
            reading.warnings.append(f"known defect: {id}: {defect}")

    if layout.partial and len(ids) < layout.counts.utterances:
        reading.warnings.append(
            f"{len(ids)} of {layout.name}'s {layout.counts.utterances} utterances are here"
        )
    else:
        reading.known.update(msgspec.to_builtins(layout.counts))
    return reading


def _find_recordings(
    layout: Layout, files: list[str], reading: Reading, left_out: Counter[str]
) -> list[Recording]:
    """The sound files that are named as described; others become problems, or are left out."""
    sounds = {_without_ending(path) for path in files if _ending(path) in SOUND}
    recordings = []
    for path in files:
        ending = _ending(path)
        if ending not in SOUND | CODED:
            continue
        # What only ffmpeg reads counts where nobody has converted it yet.
        if ending in CODED and _without_ending(path) in sounds:
            continue

        name = layout.leaves_out(path)
        if name is not None:
            left_out[name] += 1
            continue
        fields = layout.match(path)
        if fields is not None:
            recordings.append(Recording(path, fields))
            continue
        convention = layout.example or layout.pattern
        reason = f"the name does not follow the convention of {layout.name} ({convention})"
        reading.problems.append(Problem(None, path, reason))
    return recordings


def _join(
    table: TableLayout,
    recordings: list[Recording],
    files: list[str],
    layout: Layout,
    reading: Reading,
) -> list[Recording]:
    """The recordings with the fields of their rows in a table.

    If the table lists the utterances (it says which `audio` each row has), recordings without a row
    are left out, but for those that it expects `unlisted`, and rows without a recording are added.
    """
    paths_by_name: dict[str, list[str]] = {}
    for path in files:
        paths_by_name.setdefault(_name_of(path), []).append(path)

    rows_by_table: dict[str, dict[str, Fields]] = {}  # by the table's file, then by key
    unused: dict[tuple[str, str], Fields] = {}  # rows that no recording has, by file and key
    absent: set[str] = set()  # files that are not here
    joined = []
    for recording in recordings:
        file = fill(table.file, recording.fields) or ""
        key = fill(table.of, recording.fields) or ""

        if file not in rows_by_table:
            file_of_table = _find_file(file, paths_by_name)
            if file_of_table is not None:
                rows_by_table[file] = _read_rows(table, file_of_table, layout, reading)
            else:
                rows_by_table[file] = {}
                if file:
                    absent.add(file)
            if table.audio:
                shared = _shared_fields(table, recording)
                for row_key, fields in rows_by_table[file].items():
                    unused[file, row_key] = {**shared, **fields}

        row = rows_by_table[file].get(key)
        if row is None and table.audio:
            row = _unlisted_fields(table, recording)
            if row is None:
                continue
        joined.append(Recording(recording.path, {**recording.fields, **(row or {})}))
        unused.pop((file, key), None)

    if table.audio and absent:
        raise WrongUse(
            f"{reading.root} has no {min(absent)}, "
            f"which lists the utterances of {layout.name}; add it"
        )
    if absent and "{stem}" not in table.file:
        reading.warnings.append(f"{min(absent)} is not here, and nothing is taken from it")
    if len(joined) < len(recordings):
        missing = len(recordings) - len(joined)
        reading.warnings.append(f"{missing} files are left out: in no row of {table.file}")

    for fields in unused.values():
        audio = fill(table.audio, fields)
        if audio:
            joined.append(Recording(audio, {"stem": PurePosixPath(audio).stem, **fields}))
    return joined


def _find_file(name: str, paths_by_name: dict[str, list[str]]) -> str | None:
    """The first file of the corpus whose path ends in `name`, which may hold folders."""
    for path in paths_by_name.get(_name_of(name), []):
        if f"/{path}".endswith(f"/{name}"):
            return path
    return None


def _shared_fields(table: TableLayout, recording: Recording) -> Fields:
    """The fields of a recording that all rows of its table's file have in common with it."""
    names = ("folder", *FIELD.findall(table.file))
    return {name: recording.fields.get(name) for name in names}


def _unlisted_fields(table: TableLayout, recording: Recording) -> Fields | None:
    """What the path tells of a recording that the table need not list; None of any other."""
    if table.unlisted is None:
        return None
    path = str(PurePosixPath(recording.path).with_suffix(""))
    return match_fields(table.unlisted, path, FROM_ANY_FOLDER)


def _read_rows(
    table: TableLayout, path: str, layout: Layout, reading: Reading
) -> dict[str, Fields]:
    """A table's rows by their keys, the first of each; or by key the votes of all."""
    not_known = ("", None, *layout.unknown)
    words = layout.maps.get("votes", {})
    rows: dict[str, Fields] = {}

    for record in _read_table_records(table, path, reading):
        row = {name: text_of(value) for name, value in record.items() if value not in not_known}
        key = fill(table.key, row)
        if key is None or not _meets(row, table.where):
            continue
        if not table.votes:
            rows.setdefault(key, row)
            continue

        vote = fill(table.votes, row)
        if vote is not None:
            word = words.get(vote, words.get("*", vote))
            rows.setdefault(key, {"votes": []})["votes"].append([word])
    return rows


def _read_table_records(table: TableLayout, path: str, reading: Reading) -> Iterator[Fields]:
    """The records of a table: of a known kind, or what a pattern takes from the lines of a text."""
    if table.line is None:
        for row in rows_of(read_table_file(reading.root / path), reading, path):
            yield row.values
        return

    for line in read_text(reading.root / path, table.encoding).split("\n"):
        if line.strip():
            fields = match_fields(table.line, line.strip())
            if fields is not None:
                yield fields


def _meets(row: Fields, conditions: dict[str, str]) -> bool:
    return all(row.get(name) == value for name, value in conditions.items())


def _add_rows(layout: Layout, recordings: Iterable[Recording], reading: Reading) -> None:
    """Add a row for each recording, with the next turn of its dialogue if it has none."""
    next_turn = Counter[tuple[str | None, str]]()
    for recording in recordings:
        row = add_row(reading, _columns(layout, recording), recording.path)
        if row is not None:
            dialogue = (row.get("session"), row["dialogue"])
            next_turn[dialogue] = row.setdefault("turn", next_turn[dialogue]) + 1


def _columns(layout: Layout, recording: Recording) -> Iterator[tuple[str, Any]]:
    """The columns of a recording. Raises `ValueError` for a value that a map does not list."""
    yield "audio", recording.path
    yield "votes", recording.fields.get("votes")

    templates = {"id": "{stem}", **layout.columns}
    for column, template in templates.items():
        value = fill(template, recording.fields)
        mapping = layout.maps.get(column)
        if value is not None and mapping is not None:
            if value not in mapping and "*" not in mapping:
                raise ValueError(f"the {column} {value[:60]!a} is not among maps.{column}")
            value = mapping.get(value, mapping.get("*"))
        yield column, value or None


def _warn_of_missing_fields(
    layout: Layout, recordings: Iterable[Recording], reading: Reading
) -> None:
    """A warning for each field that a column names and no recording has."""
    known: set[str] = set()
    for recording in recordings:
        for name, value in recording.fields.items():
            if isinstance(value, str):
                known.add(name)

    for field in FIELD.findall(" ".join(layout.columns.values())):
        if field not in known:
            reading.warnings.append(f"nothing gives {{{field}}}, which a column names")


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _without_ending(path: str) -> str:
    return path.rpartition(".")[0]


def _name_of(path: str) -> str:
    return path.rpartition("/")[2]
