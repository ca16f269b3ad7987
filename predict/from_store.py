"""Trained runs on the utterances of a store, from the features that it holds: no audio is opened.

    predictions = predict_stored(["runs/3f2a…"], "features", corpus="msp-podcast", part="test3")

What a run was tested on it predicts again in the batches in which it was tested, so that the
numbers are bit for bit those of its predictions.parquet, on the same machine. As there, they are
before the run's temperature.

    n  utterances     K  classes     D  dimensions: valence, arousal and dominance, or none
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.store import Store, open_store
from ser.cache.tools.table_index import index_of_table
from ser.corpus.manifest import Manifest
from ser.engines.machine import choose_device, memory_budget
from ser.errors import CorpusError, SerError, WrongUse
from ser.train.data.dataset import Dataset
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import UNLABELLED
from ser.train.data.loading import InputReader, size_in_float32
from ser.train.data.memory import DataCache
from ser.train.data.select import FeatureSelection, ModalitySelection
from ser.train.data.utterances import Utterances
from ser.train.finetune import column_beside
from ser.train.model_file import load_model
from ser.train.rating_scales import predicted_ratings
from ser.train.run_folder import DEV, PREDICTIONS
from ser.train.targets import TARGETS
from ser.train.train_jobs import one_thread
from ser.weights.find import parse_models

from .ensembles import OpenedEnsemble, open_ensemble
from .several import check_same_outputs
from .trained import ExportedRun, open_trained

# Called with how many runs are done, and how many there are.
OnRuns = Callable[[int, int], None]


@dataclass(frozen=True)
class RunPredictions:
    """What one run predicts of n utterances: NaN, and no label, where it cannot use one."""

    labels: list[str | None]
    """The most probable class of each; None for a run without classes."""
    probabilities: np.ndarray
    """float32 [n, K], before the temperature."""
    ratings: np.ndarray
    """float64 [n, D], on the corpus's scale."""
    unusable: dict[str, str]
    """By id, why the run cannot use an utterance."""
    notes: list[str]
    """What is to be known of it."""


@dataclass(frozen=True)
class StoredPredictions:
    """What several runs predict of the same utterances."""

    ids: list[str]
    classes: tuple[str, ...]
    by_run: dict[str, RunPredictions]
    """By the run's name; the columns of all are in the order of `classes`."""
    index: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The columns of a table that name the utterances, see `index_of_table`: `id`, and of segments
    before it `file`, `start` and `end`."""

    def mean(self) -> RunPredictions:
        """The means over the runs that can use an utterance; of one run what it predicts."""
        runs = list(self.by_run.values())
        if len(runs) == 1:
            return runs[0]

        probabilities = _mean_of_usable([run.probabilities for run in runs])
        ratings = _mean_of_usable([run.ratings for run in runs])
        labels = _labels(probabilities, self.classes)
        unusable = {}
        for id_, reason in runs[0].unusable.items():
            if all(id_ in run.unusable for run in runs):
                unusable[id_] = reason
        return RunPredictions(labels, probabilities, ratings, unusable, [])


def predict_stored(
    runs: Sequence[str | Path],
    store: str | Path = "features",
    corpus: str | None = None,
    part: str | None = None,
    device: str = "auto",
    memory: str | None = None,
    on_progress: OnRuns | None = None,
    models: Mapping[str, str] | Iterable[str] = (),
) -> StoredPredictions:
    """What each run predicts of the utterances of a corpus, labelled or not, in corpus order.

    `part` keeps those whose session has that name, such as "test3". Features that do not fit into
    `memory` are streamed. `models` says where the checkpoints of encoders with adapters lie now
    ("hubert=PATH"); by default where extraction found them. An utterance that a feature has
    quarantined, or that lacks the audio or text of it, is `unusable`. Raises `WrongUse` for runs
    that predict different things or are named twice, and for an unknown corpus or part,
    `MissingRows` for features that the store lacks, naming the command, and `CorpusError` if no run
    can use any of the utterances.
    """
    opened = _open_runs(runs, device, parse_models(models))
    opened_store = open_store(store)
    manifest = opened_store.joined_manifest(corpus)
    wanted = _rows_of_part(manifest, part)
    utterances = apply_policy(UNLABELLED, manifest)

    cache = DataCache()
    budget = cache.free_half if memory is None else memory_budget(memory)
    classes = opened[0].classes

    # A run that is a member of several ensembles, or stands beside one, predicts once.
    predicted: dict[str, RunPredictions] = {}
    by_run = {}
    for done, run in enumerate(opened, 1):
        for single in run.singles:
            if single.run.name not in predicted:
                features = features_of(single, opened_store, manifest, cache, budget)
                with one_thread():
                    of_run = single.predict(features, utterances, wanted)
                predicted[single.run.name] = of_run

        by_run[run.run.name] = _in_order_of(classes, run.classes, run.of_singles(predicted))
        if on_progress is not None:
            on_progress(done, len(opened))

    ids = [manifest.ids[row] for row in wanted]
    index = {}
    for name, of_all in index_of_table(manifest).items():
        index[name] = [of_all[row] for row in wanted]
    answers = StoredPredictions(ids, classes, by_run, index)
    unusable = answers.mean().unusable
    if len(unusable) == len(ids):
        id_, reason = next(iter(unusable.items()))
        raise CorpusError(f"{id_}: {reason}; and so it is with all {len(ids)} utterances")
    return answers


@dataclass(frozen=True)
class StoredFeatures:
    """The features that a run takes, in a store."""

    selections: dict[str, ModalitySelection]
    """By modality."""
    manifest: Manifest
    cache: DataCache
    budget: int | None
    """Of memory, in bytes; None where it is not known, so that all is held."""

    def unusable(self, rows: np.ndarray) -> dict[int, str]:
        """By row of the manifest, why there are no features of it.

        Raises `MissingRows` for a row that has not been computed yet.
        """
        reasons: dict[int, str] = {}
        for modality, selection in self.selections.items():
            inputs = self.manifest.inputs(selection.parts[0].feature.spec.modality)
            for part in selection.parts:
                quarantined = part.feature.quarantined(self.manifest)
                computed = []
                for row in rows.tolist():
                    if inputs[row] is None:
                        reasons.setdefault(row, f"has no {modality}")
                    elif self.manifest.ids[row] in quarantined:
                        why = quarantined[self.manifest.ids[row]]
                        reasons.setdefault(row, f"{part.feature.spec.name}: quarantined ({why})")
                    else:
                        computed.append(row)
                # Raises for one that is not there.
                part.feature.places(self.manifest, computed)
        return reasons

    def reader(self, rows: np.ndarray, vectors: bool) -> InputReader:
        """Reads the inputs of these rows of the manifest."""
        features = []
        for selection in self.selections.values():
            features += [part.feature for part in selection.parts]
        return InputReader(
            selections=self.selections,
            manifest=self.manifest,
            rows=rows,
            cache=self.cache,
            budget=self.budget,
            size=size_in_float32(features),
            vectors=vectors,
        )


class StoredRun:
    """A trained run, or an exported one, that takes its features from a store."""

    def __init__(
        self, path: str | Path, device: str = "auto", models: Mapping[str, str] | None = None
    ) -> None:
        self.run = open_trained(path)
        self.fitted, config = load_model(self.run, choose_device(device), models)
        precision = self.run.config.precision
        if config.device == "mps":
            precision = "float32"
        self.config = replace(config, precision=precision)
        self.fusion = config.fusion
        self.classes: tuple[str, ...] = tuple(self.run.config.labels.classes)

    @property
    def rated(self) -> bool:
        """Whether it predicts valence, arousal and dominance."""
        return TARGETS[self.config.target].rated

    @property
    def adapted(self) -> list[str]:
        """The features of whose encoders the run holds adapters alone."""
        if not self.config.training.lora_rank:
            return []
        names = [self.run.config.features[modality].feature for modality in self.fusion.encoded]
        return [name.partition(":")[0] for name in names]

    @property
    def singles(self) -> "list[StoredRun]":
        """The runs whose models predict: itself."""
        return [self]

    def of_singles(self, predicted: Mapping[str, RunPredictions]) -> RunPredictions:
        """What it predicts, by what each single run does, by name."""
        return predicted[self.run.name]

    def predict(
        self, features: StoredFeatures, utterances: Utterances, wanted: np.ndarray
    ) -> RunPredictions:
        """What the run predicts of the `wanted` of all utterances of the manifest."""
        reasons = features.unusable(wanted)
        usable = np.array([row for row in wanted.tolist() if row not in reasons], dtype=np.int64)
        width = TARGETS[self.config.target].width(len(self.classes))
        predicted = np.full((len(utterances), width), np.nan, np.float32)
        if len(usable):
            known, notes = self.with_known_corpora(utterances.take(usable))
            is_scaled_once = self.fusion.level == "vector" and not self.fusion.encoded
            reader = features.reader(usable, is_scaled_once)
            data = Dataset(known, self.run.config.dims, reader)
            predicted[usable] = self._predict_all(data)
        else:
            notes = []
        return self._by_names(predicted, reasons, features.manifest, wanted, notes)

    def _predict_all(self, data: Dataset) -> np.ndarray:
        """Of all utterances of the data, [n, K + D]."""
        row_of_id = {id_: row for row, id_ in enumerate(data.utterances.ids)}
        width = TARGETS[self.config.target].width(len(self.classes))
        predicted = np.empty((len(row_of_id), width), np.float32)
        is_known = np.zeros(len(row_of_id), bool)

        for name in self._recorded():
            table = self.run.predictions(name)
            ids = table.column("id").to_pylist()
            if not all(id_ in row_of_id for id_ in ids):
                # Not the same batches, and so not the same bits.
                continue
            rows = np.array([row_of_id[id_] for id_ in ids], dtype=np.int64)
            dialogues = table.column("dialogue").to_numpy()
            predicted[rows] = self.predict_rows(in_dialogues(data, rows, dialogues), rows)
            is_known[rows] = True

        others = np.flatnonzero(~is_known)
        if len(others):
            rows = others
            if self.fusion.unit == "dialogue":
                # With the whole of their dialogues around them.
                numbers = data.utterances.dialogues
                rows = np.flatnonzero(np.isin(numbers, numbers[others]))
            predicted_rows = self.predict_rows(data, rows)
            is_other = np.isin(rows, others)
            predicted[rows[is_other]] = predicted_rows[is_other]

        is_finite = np.isfinite(predicted).all(1)
        if not is_finite.all():
            first = data.utterances.ids[int(is_finite.argmin())]
            raise SerError(f"{first}: the model's predictions of it became nan; train another run")
        return predicted

    def predict_rows(self, data: Dataset, rows: np.ndarray) -> np.ndarray:
        """Of these rows of the data, [n, K + D] in their order."""
        logits = frozenset({"logits"})
        return self.fitted.predict(data, rows, self.config, heads=logits)["logits"]

    def _recorded(self) -> list[str]:
        """The files of the run that hold predictions."""
        if isinstance(self.run, ExportedRun):
            return []
        return [name for name in (PREDICTIONS, DEV) if name in self.run.result.files]

    def with_known_corpora(self, utterances: Utterances) -> tuple[Utterances, list[str]]:
        """The utterances, without their corpora where the run has no statistics of each."""
        by_corpus = [scale for scale in self.fitted.scaling.values() if scale.mean.ndim > 1]
        trained_on = self.run.config.corpus.split("+")
        if not by_corpus or sorted(set(utterances.corpora)) == sorted(trained_on):
            return utterances, []
        note = (
            "z-scored by the statistics of the whole training part: in training each corpus was by "
            f"its own; --corpus {self.run.config.corpus} has them"
        )
        return replace(utterances, corpora=()), [note]

    def _by_names(
        self,
        predicted: np.ndarray,
        reasons: dict[int, str],
        manifest: Manifest,
        wanted: np.ndarray,
        notes: list[str],
    ) -> RunPredictions:
        """The predictions [m, K + D] of the whole manifest as those of the `wanted` rows."""
        values = predicted[wanted]
        probabilities = values[:, : len(self.classes)]
        ratings = np.empty((len(values), 0))
        if self.rated:
            ratings = predicted_ratings(values, self.config.training)
        unusable = {manifest.ids[row]: reason for row, reason in reasons.items()}
        labels = _labels(probabilities, self.classes)
        return RunPredictions(labels, probabilities, ratings, unusable, notes)


class StoredEnsemble:
    """An ensemble, whose members take their features from a store."""

    def __init__(
        self, ensemble: OpenedEnsemble, device: str, models: Mapping[str, str] | None = None
    ) -> None:
        self.ensemble = ensemble
        self.run = ensemble.run
        self.classes = ensemble.classes
        self.singles = [StoredRun(member.path, device, models) for member in ensemble.members]

    @property
    def rated(self) -> bool:
        """Whether it predicts valence, arousal and dominance."""
        return TARGETS[self.run.config.target].rated

    def of_singles(self, predicted: Mapping[str, RunPredictions]) -> RunPredictions:
        """What it predicts, by what each single run does, by name."""
        members = [predicted[single.run.name] for single in self.singles]
        probabilities, ratings = self.ensemble.combine(
            [single.classes for single in self.singles],
            [member.probabilities for member in members],
            [member.ratings for member in members],
        )
        unusable: dict[str, str] = {}
        notes: list[str] = []
        for member in members:
            unusable = {**member.unusable, **unusable}
            notes += [note for note in member.notes if note not in notes]
        labels = _labels(probabilities, self.classes)
        return RunPredictions(labels, probabilities, ratings, unusable, notes)


def _open_runs(
    paths: Sequence[str | Path], device: str, models: Mapping[str, str]
) -> list[StoredRun | StoredEnsemble]:
    """The runs, which predict the same, each once.

    Raises `WrongUse` for models of which none of them has adapters.
    """
    opened: list[StoredRun | StoredEnsemble] = []
    for path in paths:
        ensemble = open_ensemble(open_trained(path))
        run: StoredRun | StoredEnsemble
        if ensemble is None:
            run = StoredRun(path, device, models)
        else:
            run = StoredEnsemble(ensemble, device, models)
        if run.run.name in [other.run.name for other in opened]:
            raise WrongUse(f"{path}: is run {run.run.name} again; name each run once")
        if opened:
            check_same_outputs(opened[0], run)
        opened.append(run)

    adapted = {name for run in opened for single in run.singles for name in single.adapted}
    for name in sorted(models.keys() - adapted):
        raise WrongUse(
            f"--model {name}: no run here has adapters of {name}, and features come from the "
            "store; leave it out"
        )
    return opened


def _rows_of_part(manifest: Manifest, part: str | None) -> np.ndarray:
    """The rows of the manifest in the session of that name; all without one."""
    if part is None:
        return np.arange(len(manifest))

    sessions = manifest.column("session")
    rows = np.flatnonzero([session == part for session in sessions])
    if not len(rows):
        known = sorted({session for session in sessions if session is not None})
        names = ", ".join(known[:20]) or "none"
        raise WrongUse(f"--part {part}: corpus {manifest.corpus} has the parts {names}")
    return rows


def features_of(
    run: StoredRun, store: Store, manifest: Manifest, cache: DataCache, budget: int | None
) -> StoredFeatures:
    """The features that a run was trained on, in a store, by their fingerprints."""
    selections = {}
    for modality, record in run.run.config.features.items():
        parts = []
        for part in record.parts:
            name = f"{part.feature}@{part.fingerprint}"
            feature = store.feature(name, manifest.corpus)
            parts.append(
                FeatureSelection(
                    feature,
                    pool=part.pool,
                    vectors=run.fusion.takes_vectors(modality),
                    extra=record.extra,
                    beside=column_beside(feature.spec),
                    hop=part.hop,
                )
            )
        selections[modality] = ModalitySelection(record.feature, tuple(parts))
    return StoredFeatures(selections, manifest, cache, budget)


def in_dialogues(data: Dataset, rows: np.ndarray, dialogues: np.ndarray) -> Dataset:
    """The data, in which these rows stand in dialogues of these numbers, and with no others."""
    numbers = data.utterances.dialogues + dialogues.max() + 1
    numbers[rows] = dialogues
    utterances = replace(data.utterances, dialogues=numbers)
    return replace(data, utterances=utterances, read=lambda: data.inputs)


def _in_order_of(
    classes: tuple[str, ...], own_classes: tuple[str, ...], predictions: RunPredictions
) -> RunPredictions:
    """Predictions of the same classes with their columns in another order."""
    order = [own_classes.index(name) for name in classes]
    return replace(predictions, probabilities=predictions.probabilities[:, order])


def _labels(probabilities: np.ndarray, classes: tuple[str, ...]) -> list[str | None]:
    """The most probable class of each utterance; None where there is nothing to choose from."""
    if not classes:
        return [None] * len(probabilities)
    labels: list[str | None] = []
    for row in probabilities:
        labels.append(None if np.isnan(row[0]) else classes[int(row.argmax())])
    return labels


def _mean_of_usable(values: Sequence[np.ndarray]) -> np.ndarray:
    """The float64 mean of arrays [n, …] over those whose row is not NaN; NaN where all are."""
    total = np.zeros(values[0].shape)
    count = np.zeros((len(total), 1))
    for array in values:
        is_usable = np.isfinite(array).all(1)
        total[is_usable] += array[is_usable]
        count[is_usable] += 1
    with np.errstate(invalid="ignore"):
        return total / count
