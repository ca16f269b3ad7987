"""A database of audformat (audeering), by the package of that name: its files or its segments.

The package unpickles a table where a .pkl lies beside it, so it is shown folders without one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from ser.corpus.segments import segment_id
from ser.corpus.table_file import TableFile, is_missing, read_table_file, text_of
from ser.disk.memory import does_not_fit, is_out_of_memory, name_what_does_not_fit
from ser.disk.read import open_named, read_named
from ser.errors import CorpusError, WrongUse

from .reading import Reading, rows_of
from .rows import add_row
from .table import COLUMNS

if TYPE_CHECKING:
    import audformat
    import pandas as pd

# The usual names of schemes and columns, where they are not the manifest's.
COLUMN_OF_SCHEME = {
    "emotion": "label",
    "transcription": "text",
    "transcript": "text",
    "sex": "gender",
    "activation": "arousal",
}

# What is said of a whole file holds for its segments, but for what was heard in it.
OF_ITS_FILE = ("session", "dialogue", "speaker", "gender")

# Bytes: more than any header has.
MAX_HEADER = 16 << 20

# The values of a header with all that its aliases stand for.
MAX_NODES = 1_000_000

# In the order of preference.
ENDINGS = (".parquet", ".csv")

# A row of a table is a file, or a part of one.
TABLE_TYPES = ("filewise", "segmented")

# By the text of a scheme's label, what it means: a text, or fields such as a speaker's gender.
Meanings = dict[str, Any]

# A file, or a part of one: where it begins and ends, in seconds.
Place = tuple[str, float | None, float | None]


def read_audformat(root: Path) -> Reading:
    """Read a database: `db.yaml`, the header, and beside it a CSV or Parquet file for each table.

    Its utterances are the segments of its segmented tables, if these say something of them, and
    else the files of its filewise ones. Segments have the speaker and the split of their file. It
    reads schemes whose labels are maps or miscellaneous tables, and splits, each as a session. If
    two tables disagree, the first counts.
    """
    database = _read_header(root / "db.yaml")
    reading = Reading(database.name, root, [], paths="inside")
    frames = _read_tables(database, root, reading)
    meanings = _meanings(database)

    files: dict[str, dict[str, Any]] = {}
    segments: dict[Place, dict[str, Any]] = {}
    for name, frame in frames.items():
        table = database[name]
        is_by_file = table.type == "filewise"
        for place, record in _records(frame, is_by_file):
            values = _values(record, table, database, meanings)
            row = files.setdefault(place[0], {}) if is_by_file else segments.setdefault(place, {})
            for key, value in values.items():
                column = COLUMN_OF_SCHEME.get(key, key)
                if column in COLUMNS and not is_missing(value):
                    row.setdefault(column, value)

    if any(row.keys() - {"session"} for row in segments.values()):
        reading = replace(reading, places="segments")
        _add_segments(reading, segments, files)
    else:
        if segments:
            reading.warnings.append(
                f"the segmented tables say nothing of their {len(segments)} segments: the files "
                "are the utterances"
            )
        _add_files(reading, files)

    if not reading.rows and reading.warnings:
        raise WrongUse(
            f"{root}: {reading.warnings[0]}; save a table by file or of segments as CSV or Parquet"
        )
    return reading


def _add_files(reading: Reading, files: dict[str, dict[str, Any]]) -> None:
    for file, row in sorted(files.items()):
        add_row(reading, {"turn": 0, "audio": file, **row}.items(), file)


def _add_segments(
    reading: Reading, segments: dict[Place, dict[str, Any]], files: dict[str, dict[str, Any]]
) -> None:
    """Add a row for each segment, a recording's in their order."""
    turns: dict[str, int] = {}
    for place in sorted(segments, key=_in_order):
        file, start, end = place
        of_file = {
            name: value for name, value in files.get(file, {}).items() if name in OF_ITS_FILE
        }
        row = {
            "id": segment_id(file, start, end),
            "dialogue": str(PurePosixPath(file).with_suffix("")),
            "turn": turns.setdefault(file, 0),
            **of_file,
            **segments[place],
            "audio": file,
            "start": start,
            "end": end,
        }
        turns[file] += 1
        added = add_row(reading, row.items(), file)
        if added is not None:
            added["id_is_span"] = True

    without = sorted(files.keys() - {file for file, _, _ in segments})
    if without:
        reading.warnings.append(
            f"{len(without)} files, such as {without[0]}, have no segment: they are left out"
        )


def _in_order(place: Place) -> tuple[str, float, float]:
    file, start, end = place
    return file, start or 0.0, float("inf") if end is None else end


def _read_header(path: Path) -> "audformat.Database":
    """The header of a database. Raises `WrongUse` for what is none."""
    try:
        with name_what_does_not_fit(path, CorpusError):
            content = _load_yaml(read_named(path, MAX_HEADER))
        if not isinstance(content, dict) or not isinstance(content.get("name"), str):
            raise ValueError("it has no name")
    except CorpusError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _no_header(path, error) from None

    # It takes a second to import.
    import audformat

    # What the package asks for, and nothing here depends on.
    content = {"source": "", "usage": "unrestricted", **content}
    try:
        database = audformat.Database.load_header_from_yaml(content)
    # It raises errors of its own, and of what it does not expect.
    except Exception as error:
        raise _no_header(path, error) from None

    # The package takes any other word for one of segments.
    for name in database.tables:
        kind = database[name].type
        if kind not in TABLE_TYPES:
            raise WrongUse(
                f"{path}: the type of the table {name} is {kind!r}; write filewise or segmented"
            )
    return database


def _no_header(path: Path, error: Exception) -> WrongUse:
    reason = " ".join(str(error).split()) or type(error).__name__
    return WrongUse(f"{path} is not the header of an audformat database ({reason})")


def _load_yaml(content: bytes) -> Any:
    """The value of a YAML document. Raises `ValueError` for aliases that make it far larger.

    An alias stands for a part of the document; aliases of aliases double it line by line.
    """
    loader = yaml.SafeLoader(content)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _count_nodes(root, {}) > MAX_NODES:
            raise ValueError(f"its aliases make it more than {MAX_NODES} values")
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node holds, those of aliases each time; `counts` are of nodes so far."""
    if id(node) in counts:
        return counts[id(node)]

    # An alias may stand for a part that it is in: that has no end.
    counts[id(node)] = MAX_NODES
    count = 1
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            count += _count_nodes(entry, counts)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            count += _count_nodes(key, counts) + _count_nodes(value, counts)
    counts[id(node)] = count
    return count


def _read_tables(
    database: "audformat.Database", root: Path, reading: Reading
) -> "dict[str, pd.DataFrame]":
    """The tables by file and of segments that are here as text, by name.

    Miscellaneous ones are loaded before, since they may be the labels of a scheme.
    """
    frames: dict[str, pd.DataFrame] = {}
    for name in [*database.misc_tables, *database.tables]:
        path = _table_file(root, name)
        if path is None:
            reading.warnings.append(
                f"the table {name} is not here as CSV or Parquet: it is not read"
            )
            continue
        _load_table(database, name, path)
        if name in database.tables:
            written = read_table_file(path)
            _take_texts(database[name], written)
            frames[name] = _without_faulty(database[name].df, written)
            _warn_of_lost(database[name], name, written, path, reading)
            # Those that are no rows become problems.
            list(rows_of(written, reading, path.name))
    return frames


def _load_table(database: "audformat.Database", name: str, path: Path) -> None:
    """Let the package load a table. Raises `CorpusError` if it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        try:
            # Refuses a pipe, which would be waited for.
            with os.fdopen(open_named(path), "rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)
            database[name].load(str(copy.with_suffix("")))
        # It raises errors of pyarrow, pandas and its own.
        except Exception as error:
            if is_out_of_memory(error):
                raise CorpusError(does_not_fit(path)) from None
            reason = " ".join(str(error).split()).replace(folder, str(path.parent))
            raise CorpusError(f"{path} cannot be read as a table of audformat: {reason}") from None


def _take_texts(table: "audformat.Table", written: TableFile) -> None:
    """Let the columns that have no scheme hold what is written: the package guesses at numbers.

    It makes speaker 1 of `01` and of `1.0`, and leaves out what is called NA.
    """
    import pandas as pd

    if len(written.rows) != len(table.df):
        return
    for column in table.columns:
        if column in table.df.columns and table.columns[column].scheme_id is None:
            values = [row.values.get(column) for row in written.rows]
            table.df[column] = pd.Series(values, table.df.index, dtype=object)


def _without_faulty(frame: "pd.DataFrame", written: TableFile) -> "pd.DataFrame":
    """The rows that are whole, where the package has read a row for each line."""
    if len(written.rows) != len(frame):
        return frame
    return frame[[not row.fault for row in written.rows]]


def _warn_of_lost(
    table: "audformat.Table", name: str, written: TableFile, path: Path, reading: Reading
) -> None:
    """Name the columns of which the package leaves values out: those that their scheme lacks."""
    unread = [column for column in table.df.columns if column not in table.columns]
    if unread:
        reading.warnings.append(
            f"{path.name}: columns that are not read, since db.yaml does not list them: "
            f"{', '.join(map(str, unread))}"
        )
    # A header may list the files themselves as a column.
    listed = [column for column in table.columns if column in table.df.columns]
    for column in listed:
        present = [row.values[column] for row in written.rows if column in row.values]
        kept = table.df[column].dropna()
        if len(kept) < len(present):
            lost = [value for value in present if value not in set(kept)]
            example = f", such as {lost[0]!r}" if lost else ""
            reading.warnings.append(
                f"{len(present) - len(kept)} values of {column} in the table {name} are none of "
                f"its scheme{example}: they are left out"
            )


def _table_file(root: Path, name: str) -> Path | None:
    for ending in ENDINGS:
        path = root / f"db.{name}{ending}"
        if path.is_file():
            return path
    return None


def _meanings(database: "audformat.Database") -> dict[str, Meanings]:
    """The meanings of the labels of each scheme whose labels are a map, or a table."""
    meanings: dict[str, Meanings] = {}
    for name, scheme in database.schemes.items():
        labels = scheme.labels
        if isinstance(labels, dict):
            meanings[name] = {str(label): meaning for label, meaning in labels.items()}
        elif isinstance(labels, str) and labels in database.misc_tables:
            frame = database.misc_tables[labels].df
            records = frame.to_dict("index")
            meanings[name] = {str(label): record for label, record in records.items()}
    return meanings


def _records(frame: "pd.DataFrame", is_by_file: bool) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The rows of a table: the file or segment of each, and its values by column."""
    columns = list(frame.columns)
    # Before 3, pandas has no tuples for rows without columns.
    tuples = frame.itertuples(index=False, name=None) if columns else [()] * len(frame)
    for index, values in zip(frame.index, tuples, strict=True):
        record = dict(zip(columns, values, strict=True))
        if is_by_file:
            yield (str(index), None, None), record
        else:
            file, start, end = index
            yield (str(file), _seconds(start), _seconds(end)), record


def _seconds(time: "pd.Timedelta") -> float | None:
    """A time in seconds; None for NaT: the end of the file."""
    # NaT alone is not equal to itself.
    return None if time != time else time.total_seconds()


def _values(
    record: dict[str, Any],
    table: "audformat.Table",
    database: "audformat.Database",
    meanings: dict[str, Meanings],
) -> dict[str, Any]:
    """The values of a record, by their schemes, with labels replaced by what they mean."""
    values: dict[str, Any] = {}
    if table.split_id is not None:
        values["session"] = database.splits[table.split_id].type

    for column, value in record.items():
        if column not in table.columns:
            continue
        scheme = str(table.columns[column].scheme_id or column)
        meaning = meanings.get(scheme, {}).get(text_of(value))
        if isinstance(meaning, dict):  # such as a speaker's gender
            for name, of_label in meaning.items():
                if not is_missing(of_label):
                    values[name] = of_label
        values[scheme] = meaning if isinstance(meaning, str) else value
    return values
