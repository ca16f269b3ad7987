"""The predictions of some runs as one table: a row for each utterance."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ser.corpus.sheet import Sheet
from ser.disk.write import write_whole
from ser.errors import WrongUse
from ser.extract.recording import Span
from ser.train.data.utterances import DIMENSIONS

from .from_store import RunPredictions, StoredPredictions
from .several import SeveralAnswers
from .turns import Prediction


def write_table(
    path: Path,
    answers: SeveralAnswers,
    files: Mapping[str, str],
    decimal: str = ".",
    spans: Mapping[str, Span] | None = None,
) -> None:
    """Write a CSV with a row for each utterance that a run can use.

    Columns: `file` as it was given, `start` and `end` in seconds if any is a segment (`spans`, by
    id; an empty `end` is that of the file); `predicted`, `p_CLASS` and ratings, means over the
    runs; then those of each run, such as `predicted@RUN`. Numbers have a `decimal` point or comma.
    """
    by_run = {}
    for name, answer in answers.by_run.items():
        by_run[name] = {prediction.id: prediction for prediction in answer.predictions}

    first = answers.mean[0]
    headings = _headings(first)
    places = ["start", "end"] if spans else []
    columns = ["file", *places, *headings]
    for name in by_run:
        columns += [f"{heading}@{name}" for heading in headings]

    sink = io.StringIO(newline="")
    table = Sheet(sink, decimal)
    table.write_row(columns)
    for mean in answers.mean:
        row: list[str | float] = [files[mean.id]]
        if spans:
            row += _place(spans.get(mean.id))
        row += _values(mean, first)
        for predictions in by_run.values():
            row += _values(predictions.get(mean.id), first)
        table.write_row(row)
    # A file name that is not UTF-8 keeps its bytes.
    write_whole(path, sink.getvalue().encode(errors="surrogateescape"))


def write_stored_table(path: Path, predictions: StoredPredictions, decimal: str = ".") -> None:
    """Write a CSV with a row for each utterance of a store, in corpus order.

    Columns: `id`, and of segments before it `file`, `start` and `end` in seconds; `predicted`,
    `p_CLASS` and ratings, means over the runs; then those of each run, such as `predicted@RUN`.
    Where no run can use an utterance they are empty.
    """
    mean = predictions.mean()
    headings = []
    if predictions.classes:
        headings.append("predicted")
    headings += [f"p_{name}" for name in predictions.classes]
    headings += DIMENSIONS[: mean.ratings.shape[1]]

    index = predictions.index or {"id": predictions.ids}
    columns = [*index, *headings]
    for name in predictions.by_run:
        columns += [f"{heading}@{name}" for heading in headings]

    sink = io.StringIO(newline="")
    table = Sheet(sink, decimal)
    table.write_row(columns)
    for row, id_ in enumerate(predictions.ids):
        cells: list[str | float] = []
        for of_all in index.values():
            cells.append("" if of_all[row] is None else of_all[row])
        for of_run in (mean, *predictions.by_run.values()):
            cells += stored_cells(of_run, row, id_)
        table.write_row(cells)
    write_whole(path, sink.getvalue().encode(errors="surrogateescape"))


def stored_cells(predictions: RunPredictions, row: int, id_: str) -> list[str | float]:
    """What was predicted of one utterance: its class, probabilities and ratings."""
    probabilities = predictions.probabilities[row].tolist()
    ratings = predictions.ratings[row].tolist()
    cells: list[str | float] = []
    if probabilities:
        cells.append(predictions.labels[row] or "")
    cells += [*probabilities, *ratings]
    if id_ in predictions.unusable:
        return [""] * len(cells)
    return cells


def check_destination(path: Path, inputs: Sequence[Path]) -> None:
    """Raise `WrongUse` where a file cannot be written, or is one of the inputs."""
    if path.exists() and any(source.exists() and source.samefile(path) for source in inputs):
        raise WrongUse(f"{path}: is what is to be read; name another file")
    if path.is_dir():
        raise WrongUse(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise WrongUse(f"{path.parent}: no such folder; make it first, or name another file")


def _place(span: Span | None) -> list[str | float]:
    """Where a segment begins and ends; nothing of a whole file."""
    if span is None:
        return ["", ""]
    return [span.start, "" if span.end is None else span.end]


def _headings(first: Prediction) -> list[str]:
    headings = []
    if first.probabilities:
        headings.append("predicted")
    headings += [f"p_{name}" for name in first.probabilities]
    return [*headings, *first.ratings]


def _values(prediction: Prediction | None, first: Prediction) -> list[str | float]:
    """The values under the headings; empty where a run cannot use the utterance.

    `predicted` is empty too where the model abstains.
    """
    if prediction is None:
        return [""] * len(_headings(first))

    values: list[str | float] = []
    if first.probabilities:
        values.append("" if prediction.abstained else prediction.label or "")
    values += [prediction.probabilities[name] for name in first.probabilities]
    values += [prediction.ratings[name] for name in first.ratings]
    return values
