"""Predictions from the columns of a file."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ser.errors import WrongUse, printable

from ..evidence import Predictions, Split, rows_of
from .class_names import as_truth_is_named, class_of_label
from .columns import Columns, plain
from .parts import part_of
from .sheet import Sheet
from .values import as_names

# The heading of a truth that the corpus says and not the file.
TRUTH_OF_CORPUS = "the corpus's label"

# Headings of trainings that may be the folds of one.
RUNS = {"run", "runid", "trial", "lauf"}


def has_predictions(sheet: Sheet, columns: Columns) -> bool:
    """Whether a file says what a model predicted."""
    if "predicted" in columns or columns.probabilities:
        return True
    return columns.headings.get("probabilities") in sheet.matrices


def read_predictions(sheet: Sheet, columns: Columns) -> tuple[Predictions, list[Split], str]:
    """The predictions of a file, on its test part if it names parts, and the split if it does.

    Last, what is to be said of how it was read. Without a column of ids, the rows are numbered.
    Raises `WrongUse` where rows lack what a prediction needs.
    """
    if "truth" not in columns:
        raise WrongUse(
            f"{sheet.path}: no column holds the true classes; its columns are "
            f"{_listed(sheet.headings)}: say which with --columns truth=…, or give the corpus, "
            "which has labels"
        )

    probabilities, names = _probabilities(sheet, columns)
    if "id" in columns:
        ids = _complete(sheet, columns, "id")
    else:
        ids = [f"row {row}" for row in range(1, len(sheet) + 1)]
    truth = _complete(sheet, columns, "truth")

    if names and not set(truth) <= set(names) and all(name.isdecimal() for name in set(truth)):
        truth = [_numbered(name, names, sheet) for name in truth]
    if "predicted" in columns:
        predicted = _complete(sheet, columns, "predicted")
        if names and not set(predicted) <= set(names) and set(predicted) <= _numbers(names):
            predicted = [_numbered(name, names, sheet) for name in predicted]
    else:
        assert probabilities is not None
        names = names or sorted(set(truth))
        if probabilities.shape[1] != len(names):
            raise WrongUse(
                f"{sheet.path}: {probabilities.shape[1]} probabilities a row, and {len(names)} "
                "classes are true somewhere; name the classes (columns p_CLASS, or an array "
                "`classes`)"
            )
        predicted = [names[place] for place in probabilities.argmax(1)]

    said = ""
    renamed = as_truth_is_named(truth, [*names, *dict.fromkeys(predicted)])
    named_anew = [renamed.get(name, name) for name in names]
    if renamed and len(set(named_anew)) == len(names):
        names = named_anew
        predicted = [renamed.get(name, name) for name in predicted]
        pairs = [f"{other} is {name}" for other, name in renamed.items()]
        said = f"; of its classes {_listed(pairs)}"

    everything = Predictions(
        source=sheet.source,
        ids=ids,
        truth=truth,
        predicted=predicted,
        classes=names or sorted({*truth, *predicted}),
        probabilities=probabilities,
        folds=_optional(sheet, columns, "fold"),
        seeds=_optional(sheet, columns, "seed"),
        epochs=_optional(sheet, columns, "epoch"),
    )
    everything = _with_runs_as_folds(everything, columns)
    if "part" not in columns:
        return everything, [], said
    predictions, splits = _by_part(everything, sheet, columns)
    return predictions, splits, said


def _with_runs_as_folds(predictions: Predictions, columns: Columns) -> Predictions:
    """What a column `run` numbers are the folds of one training where each tests others."""
    is_run = plain(columns.headings.get("seed", "")) in RUNS
    has_repeats = len(set(predictions.ids)) < len(predictions)
    if not is_run or has_repeats or predictions.folds is not None:
        return predictions
    return replace(predictions, folds=predictions.seeds, seeds=None)


def sheet_with_truth(sheet: Sheet, columns: Columns, labels: Sequence[str | None]) -> Sheet:
    """The rows whose corpus label is one of the classes, with that class as their truth."""
    _, names = _probabilities(sheet, columns)
    if not names and "predicted" in columns:
        names = [name for name in as_names(sheet.columns[columns.headings["predicted"]]) if name]
    class_of = {label: class_of_label(label, names) for label in set(labels) if label is not None}

    rows = [row for row, label in enumerate(labels) if label is not None and class_of[label]]
    truth = [class_of[labels[row] or ""] for row in rows]
    chosen: dict[str, list[Any]] = {TRUTH_OF_CORPUS: truth}
    for heading, values in sheet.columns.items():
        chosen[heading] = [values[row] for row in rows]
    matrices = {heading: matrix[rows] for heading, matrix in sheet.matrices.items()}
    return replace(sheet, columns=chosen, matrices=matrices)


def _by_part(
    everything: Predictions, sheet: Sheet, columns: Columns
) -> tuple[Predictions, list[Split]]:
    """The predictions of the test part, and the parts as splits, one for each fold."""
    words = _complete(sheet, columns, "part")
    parts = [part_of(word) for word in words]
    if not any(part is not None and part.startswith("test") for part in parts):
        raise WrongUse(
            f"{sheet.path}: {columns.headings['part']} names no test part "
            f"({_listed(sorted(set(words)))}); call its parts train, dev and test"
        )

    tested = [row for row, part in enumerate(parts) if part and part.startswith("test")]
    if len(tested) == len(parts):
        return everything, []

    folds = everything.folds or [""] * len(parts)
    members: dict[str, dict[str, list[str]]] = {}
    for id_, fold, part in zip(everything.ids, folds, parts, strict=True):
        if part is not None:
            members.setdefault(fold, {}).setdefault(part, []).append(id_)
    splits = [Split(sheet.source, fold, in_parts) for fold, in_parts in members.items()]
    return rows_of(everything, tested), splits


def _probabilities(sheet: Sheet, columns: Columns) -> tuple[np.ndarray | None, list[str]]:
    """Those of the classes `[n, K]`, and the classes' names where the file has them."""
    if columns.probabilities:
        values = []
        for heading in columns.probabilities.values():
            values.append(_numbers_of(sheet, heading))
        return np.stack(values, 1), list(columns.probabilities)

    matrix = sheet.matrices.get(columns.headings.get("probabilities", ""))
    if matrix is None:
        return None, []
    for array in sheet.extra.values():
        if len(array) == matrix.shape[1]:
            return matrix, array
    return matrix, []


def _numbers_of(sheet: Sheet, heading: str) -> np.ndarray:
    """A column as numbers `[n]`, NaN where one is missing. Raises `WrongUse`."""
    complete = sheet.numbers(heading)
    if complete is not None:
        return complete

    values = sheet.columns[heading]
    with_commas = _with_decimal_commas(values)
    if with_commas is not None:
        return with_commas

    numbers = []
    for row, value in enumerate(values, 1):
        try:
            numbers.append(np.nan if value is None else float(value))
        except (ValueError, TypeError):
            raise WrongUse(
                f"{sheet.path}: row {row}: {heading} is not a number: {printable(str(value))[:40]}"
            ) from None
    return np.array(numbers)


def _with_decimal_commas(values: list[Any]) -> np.ndarray | None:
    """Numbers such as 0,25, as a German spreadsheet writes them; None if they are none."""
    numbers = []
    for value in values:
        if value is None:
            numbers.append(np.nan)
            continue
        text = str(value).strip()
        if "." in text or text.count(",") > 1:
            return None
        try:
            numbers.append(float(text.replace(",", ".")))
        except ValueError:
            return None
    return np.array(numbers)


def _complete(sheet: Sheet, columns: Columns, held: str) -> list[str]:
    """A column that every row must have. Raises `WrongUse` for the first that has not."""
    heading = columns.headings[held]
    values = sheet.columns.get(heading)
    if values is None:
        raise WrongUse(f"{sheet.path}: {heading} has several numbers a row, and not one {held}")
    names = as_names(values) if held != "id" else [_id(value) for value in values]
    complete = [name for name in names if name is not None]
    if len(complete) < len(names):
        row = names.index(None) + 1
        raise WrongUse(
            f"{sheet.path}: row {row} has no {held} ({heading}); fill it in, or leave the row out"
        )
    return complete


def _id(value: Any) -> str | None:
    """An id as it is written."""
    return None if value is None else str(value).strip()


def _optional(sheet: Sheet, columns: Columns, held: str) -> list[str] | None:
    if held not in columns:
        return None
    names = as_names(sheet.columns[columns.headings[held]])
    return [name or "" for name in names]


def _numbers(names: list[str]) -> set[str]:
    return {str(number) for number in range(len(names))}


def _numbered(name: str, names: list[str], sheet: Sheet) -> str:
    """The class of that number, in the order in which the file has their probabilities."""
    number = int(name)
    if number >= len(names):
        raise WrongUse(f"{sheet.path}: class {number} is none of {len(names)} ({_listed(names)})")
    return names[number]


def _listed(names: list[str]) -> str:
    return printable(", ".join(names))
