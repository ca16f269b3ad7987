"""How much trained runs need each group of their features: permutation importance.

The values of one group are dealt out anew among the utterances of a run's test part, those of all
other groups stay, and the model predicts again. How far its score falls is what it needs the group
for (Breiman, 2001; groups of features as of Au et al., 2022). Nothing is trained again: what
another group could have told in its place does not count.

A group is a family of named measures, such as the formants of openSMILE's sets; or a whole feature;
or, where a modality has a row for each frame or token, that modality.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ser.cache.store import Store, open_store
from ser.corpus.manifest import Manifest
from ser.errors import SerError, WrongUse
from ser.extract.feature_names import names_of_dimensions
from ser.extract.measure_groups import measure_group
from ser.train.data.dataset import Dataset
from ser.train.data.inputs import Inputs
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import UNLABELLED
from ser.train.data.memory import DataCache
from ser.train.data.select import FeatureSelection, ModalitySelection
from ser.train.data.utterances import DIMENSIONS
from ser.train.rating_scales import predicted_ratings
from ser.train.report.sections.importance import Importance
from ser.train.run_folder import Run
from ser.train.scores.classes import confusions
from ser.train.scores.measures import Measure, measure_of
from ser.train.scores.pooling import pool
from ser.train.scores.ratings import moments
from ser.train.train_jobs import one_thread

from .ensembles import open_ensemble
from .from_store import StoredRun, features_of, in_dialogues
from .trained import open_trained

# Times that each group is dealt out anew.
PERMUTATIONS = 10

# Called after each group of each run with how many are done, and how many there are in that run.
OnGroup = Callable[[int, int], None]


@dataclass(frozen=True)
class Group:
    """A group of a run's features."""

    name: str
    modality: str
    columns: np.ndarray | None = None
    """Of the modality's vectors; None: its rows, whole."""
    size: int = 0
    """How many columns."""


@dataclass(frozen=True)
class PermutedInputs(Inputs):
    """One modality, each utterance with the rows of another."""

    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Whose rows each utterance has [n]."""

    def rows(self, utterances: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows of the values are these utterances' [r], and how many each has [n], int64."""
        return super().rows(self.places[utterances % len(self.places)])


def importances(
    runs: Sequence[Run],
    cell: str = "",
    permutations: int = PERMUTATIONS,
    on_progress: OnGroup | None = None,
) -> list[Importance]:
    """What the test score of a cell loses without each group, the largest loss first.

    The runs are the folds and seeds of one cell, called `cell` in what is returned. Scores are
    pooled over them as in a report: UA, or the mean CCC of runs without classes. Features come from
    the stores that the runs were trained from, and those of a test part are held in memory. Raises
    `WrongUse` for an ensemble, and where a store is gone.
    """
    measure = _measure(runs[0])
    seeds = np.array([run.config.seed for run in runs])
    folds = np.array([run.config.fold for run in runs])

    whole: list[np.ndarray] = []
    # By the group's name, for each run: the counts of each permutation [permutations, …].
    permuted: dict[str, list[np.ndarray]] = {}
    sizes: dict[str, int] = {}
    for run in runs:
        tested = open_tested(run)
        whole.append(tested.counts(tested.data, measure))
        for done, group in enumerate(tested.groups, 1):
            sizes[group.name] = group.size
            permuted.setdefault(group.name, []).append(
                np.stack(list(tested.counts_without(group, permutations, measure)))
            )
            if on_progress is not None:
                on_progress(done, len(tested.groups))

    before = pool(np.stack(whole), seeds, folds, measure).pooled
    found = []
    for name, by_run in permuted.items():
        losses = []
        for of_runs in zip(*by_run, strict=True):
            losses.append(before - pool(np.stack(of_runs), seeds, folds, measure).pooled)
        found.append(
            Importance(
                cell=cell,
                group=name,
                columns=sizes[name],
                loss=float(np.mean(losses)),
                deviation=float(np.std(losses, ddof=1)) if len(losses) > 1 else None,
                is_of_classes=measure.counts == "confusion",
                permutations=permutations,
            )
        )
    return sorted(found, key=lambda each: -each.loss)


def _measure(run: Run) -> Measure:
    """UA, or the mean CCC of a run without classes."""
    classes = run.result.classes
    return measure_of("ua" if classes else "ccc", classes, DIMENSIONS)


@dataclass(frozen=True)
class TestedRun:
    """A run with the test part that it was tested on."""

    run: StoredRun
    data: Dataset
    """Its utterances are those of the test part alone."""
    rows: np.ndarray
    """Of the data, in the order in which they were tested."""
    truth: np.ndarray
    """Class numbers [n], or ratings [n, D], in that order."""
    groups: list[Group]

    def counts(self, data: Dataset, measure: Measure) -> np.ndarray:
        """What the measure is made of, as predicted from these inputs."""
        with one_thread():
            predicted = self.run.predict_rows(data, self.rows)

        if measure.counts == "moments":
            ratings = predicted_ratings(predicted, self.run.config.training)
            return moments(self.truth, ratings).sum(0)
        classes = len(self.run.classes)
        best_classes = predicted[:, :classes].argmax(1)
        return confusions(self.truth, best_classes[None], classes)[0]

    def counts_without(
        self, group: Group, permutations: int, measure: Measure
    ) -> Iterator[np.ndarray]:
        """The counts of each permutation of a group; the same ones in every call."""
        rng = np.random.default_rng(self.run.run.config.seed)
        for _ in range(permutations):
            places = permuted_within(self.data.utterances.corpus_numbers, rng)
            inputs = dict(self.data.inputs)
            inputs[group.modality] = permute(inputs[group.modality], group.columns, places)
            yield self.counts(_with_inputs(self.data, inputs), measure)


def permuted_within(corpora: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation [n] of utterances that leaves each in its corpus [n]: scales may differ."""
    places = np.arange(len(corpora))
    for corpus in np.unique(corpora):
        of_corpus = np.flatnonzero(corpora == corpus)
        places[of_corpus] = rng.permutation(of_corpus)
    return places


def permute(stored: Inputs, columns: np.ndarray | None, places: np.ndarray) -> Inputs:
    """One modality whose utterances have these columns, or all, of those at `places` [n]."""
    if columns is None:
        return PermutedInputs(
            stored.values, stored.offsets, stored.pinned, stored.room, places=places
        )
    values = stored.values.clone()
    of_columns = torch.from_numpy(columns)
    values[:, of_columns] = stored.values[torch.from_numpy(places)][:, of_columns]
    return replace(stored, values=values)


def _with_inputs(data: Dataset, inputs: Mapping[str, Inputs]) -> Dataset:
    return replace(data, read=lambda: inputs)


def open_tested(run: Run) -> TestedRun:
    """A run with its test part, from the store that it was trained from.

    Raises `WrongUse` for an ensemble, and where the store is gone.
    """
    trained = open_trained(run.path)
    if open_ensemble(trained) is not None:
        raise WrongUse(
            f"{run.path}: is an ensemble; --importance takes the runs that it is made of"
        )

    path = run.config.provenance.store
    try:
        store = open_store(path)
        manifest = store.joined_manifest(run.config.corpus, run.config.manifest)
    except (SerError, OSError) as fault:
        raise WrongUse(
            f"{run.path}: --importance reads the features of the store that it was trained from, "
            f"and {fault}"
        ) from fault
    return _tested(StoredRun(run.path), run, store, manifest)


def _tested(stored: StoredRun, run: Run, store: Store, manifest: Manifest) -> TestedRun:
    recorded = run.predictions()
    ids = recorded.column("id").to_pylist()
    everything = apply_policy(UNLABELLED, manifest)
    row_of_id = {id_: row for row, id_ in enumerate(everything.ids)}
    # In the order of the manifest, as they were read when they were tested.
    wanted = np.sort([row_of_id[id_] for id_ in ids])
    utterances, _notes = stored.with_known_corpora(everything.take(wanted))
    place_of_id = {id_: place for place, id_ in enumerate(utterances.ids)}
    rows = np.array([place_of_id[id_] for id_ in ids], dtype=np.int64)

    features = features_of(stored, store, manifest, DataCache(), None)
    # Of one that has been removed since.
    features.unusable(utterances.rows)
    reader = features.reader(utterances.rows, stored.fusion.level == "vector")
    data = Dataset(utterances, run.config.dims, reader)
    data = in_dialogues(data, rows, recorded.column("dialogue").to_numpy())

    if stored.classes:
        numbers = {name: number for number, name in enumerate(stored.classes)}
        truth = np.array([numbers[name] for name in recorded.column("truth").to_pylist()])
    else:
        columns = [recorded.column(f"truth {name}").to_numpy() for name in DIMENSIONS]
        truth = np.stack(columns, 1)
    return TestedRun(stored, data, rows, truth, _groups(data, features.selections))


def _groups(data: Dataset, selections: Mapping[str, ModalitySelection]) -> list[Group]:
    """The groups of a run's features, in the order of its modalities and columns."""
    groups = []
    for modality, selection in selections.items():
        is_of_vectors = (np.diff(data.inputs[modality].offsets) == 1).all()
        if not is_of_vectors:
            groups.append(Group(selection.name, modality, size=selection.dim))
            continue

        columns_of_group: dict[str, list[int]] = {}
        first = 0
        for part in selection.parts:
            for number, name in enumerate(_names_of_groups(part)):
                columns_of_group.setdefault(name, []).append(first + number)
            first += part.dim
        for name, columns in columns_of_group.items():
            groups.append(Group(name, modality, np.array(columns), len(columns)))
    return groups


def _names_of_groups(part: FeatureSelection) -> list[str]:
    """The group of each column that a feature has in a vector."""
    feature = part.feature
    names = names_of_dimensions(feature)
    if names is None:
        return [feature.spec.name] * part.dim
    of_values = [f"{feature.spec.name}: {measure_group(name)}" for name in names]
    # Of mean and deviation side by side.
    return of_values * (part.dim // len(names))
