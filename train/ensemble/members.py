"""The members of an ensemble: what each predicted of the same utterances, and whether it may join.

M  members     n  utterances     K  classes     D  dimensions, or none
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ser.errors import LeakageError, WrongUse

from ..data.utterances import DIMENSIONS
from ..records import RunConfig
from ..run_folder import DEV, PREDICTIONS, Run, run_name
from ..targets import TARGETS

# What tells the runs of one cell apart.
OF_THE_RUN = ("fold", "seed", "cut")


@dataclass(frozen=True)
class PartPredictions:
    """What all members predicted of one part."""

    ids: list[str]
    speakers: list[str | None]
    dialogues: np.ndarray
    truth: np.ndarray
    """Class numbers, int64 [n]; zeros without classes."""
    votes: np.ndarray | None
    """The raters' shares [n, K], where they are learnt."""
    true_ratings: np.ndarray
    """float64 [n, D]."""
    probabilities: np.ndarray
    """float64 [M, n, K]."""
    ratings: np.ndarray
    """float64 [M, n, D], on the corpus's scale."""


def member_label(config: RunConfig) -> str:
    """A member's cell and seed: the same in all folds."""
    return f"{run_name(config, OF_THE_RUN)}/{config.seed}"


def groups_of_folds(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each fold, in the order of their labels: an ensemble each.

    Raises `WrongUse` for fewer than two, an ensemble among them, and unless every fold has the same
    cells and seeds; `LeakageError` where runs of different folds cannot be one ensemble.
    """
    if len(runs) < 2:
        raise WrongUse("an ensemble needs two runs at least; name more, or a folder of runs")
    by_fold: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (member_label(run.config), run.name)):
        if run.config.members is not None:
            raise WrongUse(f"{run.path}: is an ensemble itself; name its members")
        by_fold.setdefault(run.config.fold, []).append(run)

    groups = list(by_fold.values())
    first_labels = [member_label(run.config) for run in groups[0]]
    for group in groups[1:]:
        labels = [member_label(run.config) for run in group]
        if labels != first_labels or len(group) < 2:
            first = groups[0][0]
            other = group[0]
            raise LeakageError(
                f"{other.path} tests fold {other.config.fold}, and {first.path} "
                f"{first.config.fold}, on whose test utterances the other was trained; give runs "
                "of one fold, or the same cells and seeds of every fold"
            )
    return groups


def check_members(runs: Sequence[Run]) -> None:
    """Raise `WrongUse`, naming the run, unless all members predict the same things."""
    first = runs[0]
    for run in runs[1:]:
        if set(run.result.classes) != set(first.result.classes):
            raise WrongUse(
                f"{run.path}: predicts {_outputs(run)}, and {first.path} {_outputs(first)}; give "
                "runs that predict the same"
            )
        if run.config.target != first.config.target:
            raise WrongUse(
                f"{run.path}: learnt --target {run.config.target}, and {first.path} "
                f"{first.config.target}; give runs of one target"
            )
        is_rated = TARGETS[run.config.target].rated
        if is_rated and run.config.training["vad_scale"] != first.config.training["vad_scale"]:
            raise WrongUse(f"{run.path}: rates on another scale than {first.path}; leave one out")


def read_part(runs: Sequence[Run], name: str = PREDICTIONS) -> PartPredictions:
    """What the members predicted of the test part, or of the dev part, in the first one's order.

    Raises `LeakageError`, naming the run, for one that was tested on other utterances: what one is
    tested on, another may have learnt; `WrongUse` for one with another truth.
    """
    tables = [run.predictions(name) for run in runs]
    names = [_full_names(run, table) for run, table in zip(runs, tables, strict=True)]
    classes = list(runs[0].result.classes)
    ids = tables[0].column("id").to_pylist()

    probabilities = []
    ratings = []
    for run, table, own_names in zip(runs, tables, names, strict=True):
        if set(own_names) != set(names[0]):
            raise _other_utterances(run, runs[0], own_names, names[0], name)
        place = {full_name: row for row, full_name in enumerate(own_names)}
        order = np.array([place[full_name] for full_name in names[0]])
        in_order = table.take(order)
        if classes:
            _check_truth(run, runs[0], in_order, tables[0])
            columns = [run.result.classes.index(label) for label in classes]
            probabilities.append(matrix_of(in_order, "probabilities")[:, columns])
        ratings.append(_ratings_of(in_order, "predicted"))

    first = tables[0]
    truth = np.zeros(len(ids), np.int64)
    if classes:
        number = {label: k for k, label in enumerate(classes)}
        truth = np.array([number[label] for label in first.column("truth").to_pylist()])
    return PartPredictions(
        ids=ids,
        speakers=first.column("speaker").to_pylist(),
        dialogues=first.column("dialogue").to_numpy(),
        truth=truth,
        votes=matrix_of(first, "votes") if "votes" in first.column_names else None,
        true_ratings=_ratings_of(first, "truth"),
        probabilities=np.stack(probabilities) if classes else np.empty((len(runs), len(ids), 0)),
        ratings=np.stack(ratings),
    )


def dev_of_all(runs: Sequence[Run]) -> PartPredictions | None:
    """What the members predicted of their dev part; None where one has none, or another."""
    if not all(DEV in run.result.files for run in runs):
        return None
    try:
        return read_part(runs, DEV)
    except LeakageError:
        return None


def needed_dev(runs: Sequence[Run], what: str) -> PartPredictions:
    """As `dev_of_all`, for what is fitted on it. Raises, naming the run that has no such part."""
    for run in runs:
        if DEV not in run.result.files:
            raise WrongUse(
                f"{run.path}: has no predictions on a dev part, and {what} is fitted on them; "
                "train it with --select val and without refit, or use --by mean alone"
            )
    return read_part(runs, DEV)


def matrix_of(table: pa.Table, column: str) -> np.ndarray:
    """A column of lists of equal length as float64 [n, K]."""
    lists = table.column(column).combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.float64).reshape(len(table), -1)


def _ratings_of(table: pa.Table, what: str) -> np.ndarray:
    """float64 [n, D], or [n, 0] where the run learnt none."""
    columns = []
    for name in DIMENSIONS:
        if f"{what} {name}" in table.column_names:
            columns.append(table.column(f"{what} {name}").to_numpy().astype(np.float64))
    return np.stack(columns, 1) if columns else np.empty((len(table), 0))


def _full_names(run: Run, table: pa.Table) -> list[str]:
    """The "corpus/id" of each prediction. Ids of several corpora begin with theirs."""
    corpus = "" if run.result.corpora else f"{run.result.corpus}/"
    return [f"{corpus}{id_}" for id_ in table.column("id").to_pylist()]


def _check_truth(run: Run, first: Run, table: pa.Table, first_table: pa.Table) -> None:
    if table.column("truth").to_pylist() != first_table.column("truth").to_pylist():
        raise WrongUse(
            f"{run.path}: has other labels than {first.path} for the same utterances; give runs of "
            "one label policy"
        )


def _other_utterances(
    run: Run, first: Run, names: Iterable[str], first_names: Iterable[str], file: str
) -> LeakageError:
    part = "tests" if file == PREDICTIONS else "has in its dev part"
    only_here = sorted(set(names) - set(first_names))
    only_there = sorted(set(first_names) - set(names))
    if only_here:
        difference = f"{len(only_here)} utterances that {first.path} does not, such as"
        difference = f"{part} {difference} {only_here[0]}"
    else:
        difference = f"lacks {len(only_there)} utterances that {first.path} {part}, such as"
        difference = f"{difference} {only_there[0]}"
    return LeakageError(
        f"{run.path}: {difference}: what one is judged on, the other may have been trained on; "
        "give runs that are cut alike"
    )


def _outputs(run: Run) -> str:
    return ", ".join(run.result.classes) or "ratings"
