"""The file that a challenge takes, of what runs predict of the utterances of a store.

A format is a TOML file beside this, or a user's own: its columns in their order, each a text with
{id}, "predicted", or the name of a rating; the challenge's word for each class, by its code; and
the bounds that ratings are held to.
"""

import io
from pathlib import Path

import msgspec

from ser.corpus.labels import code
from ser.corpus.sheet import Sheet
from ser.disk.read import read_toml
from ser.disk.write import write_whole
from ser.errors import CorpusError, WrongUse, unknown
from ser.train.data.utterances import DIMENSIONS

from .from_store import RunPredictions, StoredPredictions

FOLDER = Path(__file__).parent / "submissions"
PREDICTED = "predicted"
EXAMPLE = 'columns = { FileName = "{id}.wav", EmoClass = "predicted" }'


class SubmissionFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a challenge takes predictions."""

    columns: dict[str, str]
    """By heading, in order: a text with {id}, "predicted", "valence", "arousal" or "dominance"."""
    words: dict[str, str] = {}
    """The challenge's word for each class, by its code, such as {"ang": "A"}."""
    lowest: float = float("-inf")
    """No rating is written lower."""
    highest: float = float("inf")
    """No rating is written higher."""
    source: str = ""
    """Where the format is from."""


def read_format(name: str) -> SubmissionFormat:
    """The format of that name, or in that TOML file. Raises `WrongUse` if there is none."""
    known = sorted(path.stem for path in FOLDER.glob("*.toml"))
    path = Path(name)
    if name in known:
        path = FOLDER / f"{name}.toml"
    elif path.suffix != ".toml":
        raise unknown("format of --submission", name, [*known, "FILE.toml"])
    try:
        return msgspec.convert(read_toml(path, EXAMPLE), SubmissionFormat)
    except msgspec.ValidationError as error:
        raise WrongUse(f"{path}: is not the format of a submission ({error})") from None


def check_format(form: SubmissionFormat, classes: tuple[str, ...], rated: bool, name: str) -> None:
    """Raise `WrongUse` where the runs do not predict what the format asks for."""
    asked = set(form.columns.values())
    if PREDICTED in asked and not classes:
        raise WrongUse(f"--submission {name}: takes classes, and these runs learnt none")
    if PREDICTED in asked and form.words:
        for label in classes:
            if code(label) not in form.words:
                raise WrongUse(
                    f"--submission {name}: has no word for class {label}; it takes runs of the "
                    f"classes {', '.join(form.words)}"
                )
    if asked.intersection(DIMENSIONS) and not rated:
        raise WrongUse(
            f"--submission {name}: takes {', '.join(DIMENSIONS)}, and these runs learnt none; use "
            "runs of --target vad"
        )


def write_submission(path: Path, name: str, predictions: StoredPredictions) -> None:
    """Write the mean of the runs as a challenge takes it, sorted by the first column.

    Raises `WrongUse` for runs that predict something else, and `CorpusError`, naming the first, if
    an utterance has no prediction: a challenge takes all of them or none.
    """
    form = read_format(name)
    mean = predictions.mean()
    check_format(form, predictions.classes, mean.ratings.shape[1] > 0, name)
    if mean.unusable:
        id_, reason = next(iter(mean.unusable.items()))
        raise CorpusError(
            f"--submission {name}: {len(mean.unusable)} of {len(predictions.ids)} utterances have "
            f"no prediction, such as {id_} ({reason}); a challenge takes all of them"
        )

    rows = []
    for row, id_ in enumerate(predictions.ids):
        rows.append([_cell(form, what, id_, mean, row) for what in form.columns.values()])
    rows.sort(key=lambda cells: str(cells[0]))
    if len({str(cells[0]) for cells in rows}) < len(rows):
        first = next(iter(form.columns))
        raise WrongUse(f"--submission {name}: two utterances have one {first}; check its {{id}}")

    sink = io.StringIO(newline="")
    table = Sheet(sink)
    table.write_row(form.columns)
    for cells in rows:
        table.write_row(cells)
    write_whole(path, sink.getvalue().encode(errors="surrogateescape"))


def _cell(
    form: SubmissionFormat, what: str, id_: str, mean: RunPredictions, row: int
) -> str | float:
    if what == PREDICTED:
        label = mean.labels[row] or ""
        return form.words.get(code(label), label)
    if what in DIMENSIONS:
        rating = float(mean.ratings[row, DIMENSIONS.index(what)])
        return min(max(rating, form.lowest), form.highest)
    return what.replace("{id}", id_)
