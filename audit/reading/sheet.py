"""A file as columns: CSV, TSV, JSON lines, Parquet, JSON or npz, whoever wrote it."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
import pyarrow as pa

from ser.corpus.delimited import CellColumns, read_columns, read_delimited
from ser.corpus.table_file import TABLE_ENDINGS, is_missing
from ser.disk.parquet import read_parquet
from ser.disk.read import LARGE, read_named
from ser.disk.text import read_text
from ser.errors import WrongUse

ENDINGS = {*TABLE_ENDINGS, ".json", ".npz", ".txt", ".lst", ".list"}

# A list of ids without a heading.
LISTS = {".txt", ".lst", ".list"}


@dataclass(frozen=True)
class Sheet:
    """The columns of a file, of n rows."""

    source: str
    path: Path
    columns: Mapping[str, list[Any]]
    """By heading, `[n]`; None where a row has no value."""
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By heading, `[n, K]`."""
    extra: Mapping[str, list[str]] = field(default_factory=dict)
    """Arrays of another length, such as the names of the classes."""

    def __len__(self) -> int:
        for values in self.columns.values():
            return len(values)
        for matrix in self.matrices.values():
            return len(matrix)
        return 0

    def numbers(self, heading: str) -> np.ndarray | None:
        """A column as numbers `[n]`; None if one of its values is none."""
        if isinstance(self.columns, CellColumns):
            return self.columns.numbers(heading)
        values = self.columns[heading]
        try:
            return np.fromiter(map(float, values), float, len(values))
        except (ValueError, TypeError):
            return None

    @property
    def headings(self) -> list[str]:
        """Of the columns and matrices, in the file's order."""
        return [*self.columns, *self.matrices]


def read_sheet(path: Path) -> Sheet:
    """Read a file of one table.

    Raises `WrongUse` if it is none, or has no row, `CorpusError` for a broken one.
    """
    sheet = _read(path)
    if not len(sheet):
        raise WrongUse(f"{path}: has no row; give a file with a row for each utterance or epoch")
    return sheet


def _read(path: Path) -> Sheet:
    ending = path.suffix.lower()
    if ending == ".npz":
        return _read_npz(path)
    if ending in LISTS:
        return _read_list(path)
    if ending == ".json":
        return sheet_of_objects(path, _objects(path, read_json(path)))

    if ending == ".jsonl":
        return _read_json_lines(path)
    if ending == ".parquet":
        return _read_parquet(path)
    return _read_delimited(path)


def _read_delimited(path: Path) -> Sheet:
    """CSV and TSV, column by column: a hundred thousand predictions are read at once."""
    try:
        text = read_text(path)
        columns_of_text = read_columns(text, has_tabs=path.suffix.lower() == ".tsv")
        if columns_of_text is not None:
            return Sheet(path.name, path, columns_of_text)
        rows = list(read_delimited(text, has_tabs=path.suffix.lower() == ".tsv"))
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read ({error.strerror}); give a plain file") from None
    except (csv.Error, ValueError) as error:
        raise WrongUse(f"{path} cannot be read as {path.suffix[1:]}: {error}") from None
    if not rows:
        return Sheet(path.name, path, {})

    headings = [heading.strip() for heading in rows[0].cells]
    for row in rows:
        if len(row.cells) != len(headings):
            raise WrongUse(
                f"{path}: {row.where} has {len(row.cells)} columns where the header has "
                f"{len(headings)}; correct the line"
            )

    cells = zip(*(row.cells for row in rows[1:]), strict=True)
    columns: dict[str, list[Any]] = {heading: [] for heading in headings}
    for heading, values in zip(headings, cells, strict=False):
        columns[heading] = [value if value.strip() else None for value in values]
    return Sheet(path.name, path, columns)


def _read_parquet(path: Path) -> Sheet:
    try:
        table = read_parquet(read_named(path, LARGE))
        columns = {
            heading.strip(): _without_blanks(column.to_pylist())
            for heading, column in zip(table.column_names, table.columns, strict=True)
        }
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read ({error.strerror}); give a plain file") from None
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WrongUse(f"{path} cannot be read as parquet: {reason}") from None
    return _with_lists_as_matrices(Sheet(path.name, path, columns))


def _read_json_lines(path: Path) -> Sheet:
    try:
        text = read_text(path)
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read ({error.strerror}); give a plain file") from None
    except ValueError as error:
        raise WrongUse(f"{path} cannot be read as jsonl: {error}") from None

    objects: list[dict[str, Any]] = []
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            objects.append(decode(line))
        # NaN is no JSON, but Python writes it.
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            objects.append(_json_object(path, number, line))
    return sheet_of_objects(path, objects)


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    # A number of thousands of digits is a ValueError, too.
    except (ValueError, RecursionError):
        raise WrongUse(f"{path}: line {number} is not JSON; correct the line") from None
    if not isinstance(value, dict):
        raise WrongUse(
            f"{path}: line {number} is not a JSON object; write one a line, such as "
            '{"id": "a", "truth": "ang", "predicted": "sad"}'
        )
    return value


def _without_blanks(values: list[Any]) -> list[Any]:
    """The values, None for a blank text and for a number that is none."""
    kinds = set(map(type, values))
    if kinds == {str} and all(map(str.strip, set(values))):
        return values
    if kinds.isdisjoint({str, float}):
        return values
    return [None if is_missing(value) else value for value in values]


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `WrongUse` if it is none."""
    try:
        return msgspec.json.decode(read_named(path))
    except (msgspec.MsgspecError, RecursionError, OSError) as error:
        raise WrongUse(f"{path}: is not a JSON file that can be read ({error})") from None


def sheet_of_objects(path: Path, objects: Sequence[Mapping[str, Any]]) -> Sheet:
    """A sheet of JSON objects, each a row."""
    headings: dict[str, None] = {}
    for names in dict.fromkeys(map(tuple, objects)):
        headings.update(dict.fromkeys(names))

    columns: dict[str, list[Any]] = {}
    for heading in headings:
        columns[heading.strip()] = _without_blanks([row.get(heading) for row in objects])
    return _with_lists_as_matrices(Sheet(path.name, path, columns))


def _objects(path: Path, value: Any) -> list[dict[str, Any]]:
    """The rows that a JSON file lists.

    A list of objects; s3prl's `{"meta_data": [{"path": …, "label": …, "speaker": …}]}`;
    SpeechBrain's `{id: {"wav": …, "emo": …}}`; or the history in Hugging Face's
    `trainer_state.json`.
    """
    if isinstance(value, dict) and isinstance(value.get("log_history"), list):
        value = _evaluations(value)
    if isinstance(value, dict) and isinstance(value.get("meta_data"), list):
        value = value["meta_data"]
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        value = [{"id": id_, **row} for id_, row in value.items()]
    if isinstance(value, list) and all(isinstance(row, str) for row in value):
        value = [{"id": id_} for id_ in value]

    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise WrongUse(
            f"{path}: is JSON of another shape than a list of objects with an id each; "
            "write one object a row, such as "
            '[{"id": "a", "truth": "ang", "predicted": "sad"}]'
        )
    return value


def _evaluations(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evaluations of a training by Hugging Face, the one whose checkpoint is best marked."""
    best = str(state.get("best_model_checkpoint") or "").rpartition("-")[2]
    rows = []
    for row in state["log_history"]:
        if isinstance(row, dict) and any(name.startswith("eval") for name in row):
            is_best = best and str(row.get("step")) == best
            rows.append({**row, "kept": "yes" if is_best else None})
    return rows


def _read_list(path: Path) -> Sheet:
    """A text file: an id a line, or MSP-Podcast's `Train; MSP-PODCAST_0001_0008.wav`."""
    try:
        lines = read_named(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise WrongUse(f"{path}: is not a list of ids that can be read ({error})") from None

    ids: list[Any] = []
    parts: list[Any] = []
    for line in lines:
        if not line.strip():
            continue
        before, semicolon, behind = line.partition(";")
        if semicolon:
            parts.append(before.strip())
            ids.append(behind.strip())
        else:
            parts.append(None)
            ids.append(line.split()[0])

    columns = {"id": ids}
    if any(part is not None for part in parts):
        columns["part"] = parts
    return Sheet(path.name, path, columns)


def _read_npz(path: Path) -> Sheet:
    """NumPy arrays by name: those with a row each become columns, `[n, K]` ones matrices."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise WrongUse(
            f"{path}: is not an npz file that can be read ({error}); save ids and classes as "
            "arrays of str, not of objects"
        ) from None

    rows = max((len(array) for array in arrays.values() if array.ndim), default=0)
    columns: dict[str, list[Any]] = {}
    matrices: dict[str, np.ndarray] = {}
    extra: dict[str, list[str]] = {}
    for name, array in arrays.items():
        if array.ndim == 2 and len(array) == rows:
            matrices[name] = array.astype(np.float64)
        elif array.ndim == 1 and len(array) == rows:
            columns[name] = [_as_text(value) for value in array.tolist()]
        elif array.ndim == 1:
            extra[name] = [str(_as_text(value)) for value in array.tolist()]
    return Sheet(path.name, path, columns, matrices, extra)


def _as_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _with_lists_as_matrices(sheet: Sheet) -> Sheet:
    """The sheet with each column of equally long lists of numbers as a matrix."""
    columns: dict[str, list[Any]] = {}
    matrices: dict[str, np.ndarray] = {}
    for heading, values in sheet.columns.items():
        if values and isinstance(values[0], list):
            columns.update(_scores_of_classes(values))
            try:
                matrix = np.array(values, float)
            except (ValueError, TypeError):
                continue
            if matrix.ndim == 2:
                matrices[heading] = matrix
        else:
            columns[heading] = values
    return Sheet(sheet.source, sheet.path, columns, matrices, sheet.extra)


def _scores_of_classes(values: list[Any]) -> dict[str, list[Any]]:
    """A column of each class, where a row lists `{"label": "angry", "score": 0.9}` of all.

    So a pipeline of Hugging Face answers. Nothing where rows list something else.
    """
    rows = []
    for value in values:
        try:
            rows.append({f"p_{score['label']}": float(score["score"]) for score in value})
        except (TypeError, KeyError, ValueError):
            return {}
    headings = dict.fromkeys(heading for row in rows for heading in row)
    return {heading: [row.get(heading) for row in rows] for heading in headings}
