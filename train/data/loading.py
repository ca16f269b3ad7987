"""The dataset of an experiment: its labelled utterances with the features that its fusion takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from msgspec import to_builtins

from ser.cache.feature import Feature
from ser.cache.store import open_store
from ser.corpus.manifest import Manifest
from ser.disk.paths import real_path
from ser.disk.records import canonical_json
from ser.engines.machine import memory_budget

from ..models import Fusion, get_fusion, with_layers
from ..options import Experiment
from ..records import LabelRecord
from ..scores.raters import rater_scores
from ..targets import TARGETS
from .available import with_rows
from .budget import share_budget
from .chosen import choose_utterances, classes_by_corpus
from .dataset import Dataset
from .inputs import Inputs
from .labels import UNLABELLED, Policy, get_policy
from .memory import DataCache
from .origin import DatasetOrigin, DatasetRecord
from .protocols import corpora_of_protocol
from .select import ModalitySelection, select_features
from .sources import modality_source
from .votes import RaterVotes, ballots, rater_votes


def load_dataset(experiment: Experiment, cache: DataCache | None = None) -> tuple[Dataset, Fusion]:
    """The corpus's labelled utterances with the features that the fusion takes.

    Those of several corpora for "A+B".

    The experiment's options of the training itself are ignored. A `target` without classes keeps
    utterances of any label, one of valence, arousal and dominance those with all three ratings; a
    `limit` is spread evenly over the corpus. A `cache` gives what it has made before. What does not
    fit into `memory` is read from the store when it is needed. Raises `WrongUse` for names that do
    not fit together, `MissingRows` if an utterance lacks a feature (quarantined ones may be left
    out by `allow_missing`).
    """
    cache = cache or DataCache()
    budget = _budget(experiment, cache)
    store = open_store(experiment.store)
    target = TARGETS[experiment.target]
    manifest = store.joined_manifest(corpora_of_protocol(experiment.protocol, experiment.corpus))

    selected, augmented = select_features(
        store, experiment.features, manifest.corpus, experiment.views
    )
    levels = {modality: selection.level for modality, selection in selected.items()}
    fusion = get_fusion(experiment.fusion, levels, has_dialogues(manifest))
    policy = UNLABELLED
    if target.labelled:
        policy = get_policy(experiment.labels, manifest.column("label"))

    selections = {modality: selected[modality] for modality in sorted(selected)}
    if fusion.level == "vector":
        selections = {m: selection.as_vectors() for m, selection in selections.items()}
    if any(max(selection.sums) > 1 for selection in selections.values()):
        fusion = with_layers(
            fusion, {m: selection.record.sums or [] for m, selection in selections.items()}
        )

    record = _record(experiment, manifest, policy, selections, augmented)
    sources = [selection.source_key(manifest) for selection in selections.values()]
    key = canonical_json([to_builtins(record), sources, experiment.allow_missing])
    if key in cache.datasets:
        return cache.datasets[key], fusion

    utterances, left_out = choose_utterances(
        policy, manifest, target, experiment.only, experiment.limit
    )
    features = _features(selected, augmented)
    utterances, quarantined = with_rows(features, manifest, utterances, experiment.allow_missing)
    for name, reasons in quarantined.items():
        left_out[f"{name}: quarantined"] = list(reasons)

    random_weights = []
    for selection in selected.values():
        if selection.has_random_weights:
            random_weights.append(selection.name)

    transcripts = None
    if manifest.parent:
        transcripts = {"of": manifest.parent.corpus, **manifest.parent.transcripts}

    origin = DatasetOrigin(
        synthetic=manifest.synthetic,
        random_weights=random_weights,
        specs={modality: selection.specs for modality, selection in selections.items()},
        left_out=left_out,
        store=str(real_path(store.path)),
        corpora=classes_by_corpus(manifest, utterances) or None,
        transcripts=transcripts,
    )

    read = InputReader(
        selections=selections,
        manifest=manifest,
        rows=utterances.rows,
        cache=cache,
        budget=budget,
        size=size_in_float32(features),
        vectors=fusion.level == "vector",
    )
    cache.datasets[key] = Dataset(
        utterances=utterances,
        dims={modality: selection.dim for modality, selection in selections.items()},
        read=read,
        record=record,
        origin=origin,
        raters=partial(_score_raters, policy, manifest.column("votes"), utterances.rows),
        ballots=partial(_ballots, policy, manifest.column("votes"), utterances.rows),
        views=tuple(view.modality for view in augmented),
    )
    return cache.datasets[key], fusion


@dataclass(frozen=True)
class InputReader:
    """Reads a dataset's inputs when they are first needed, as far as the budget of memory goes."""

    selections: Mapping[str, ModalitySelection]
    manifest: Manifest
    rows: np.ndarray
    """Of the manifest [n]."""
    cache: DataCache
    budget: int | None
    """Of memory, in bytes, of one worker; None where it is not known, so that all is held."""
    size: int
    """Of all features in memory, in bytes: at most."""
    vectors: bool
    """Whether the fusion takes vectors, which are standardised once and for all."""

    def __call__(
        self, **changes: Callable[[ModalitySelection], ModalitySelection]
    ) -> dict[str, Inputs]:
        """The inputs by modality, in memory as far as they fit; the others are streamed.

        `changes` say for a modality what is read in place of its selection.
        """
        selections = dict(self.selections)
        for modality, change in changes.items():
            selections[modality] = change(selections[modality])

        if self.budget is None or self.cache.fits(self.size, self.budget):
            return {m: self._in_memory(selection) for m, selection in selections.items()}
        return self._streamed(selections, self.budget, self.vectors and not changes)

    def _in_memory(self, selection: ModalitySelection) -> Inputs:
        def read_all() -> Inputs:
            copies = 1 + len(selection.views)
            source = modality_source(selection, self.manifest, self.rows)
            return source.read(np.arange(copies * len(self.rows)))

        return self.cache.load(selection.source_key(self.manifest), self.rows, read_all)

    def _streamed(
        self, selections: Mapping[str, ModalitySelection], budget: int, vectors: bool
    ) -> dict[str, Inputs]:
        streams = {}
        for modality, selection in selections.items():
            streams[modality] = modality_source(selection, self.manifest, self.rows)
        in_memory, limited = share_budget(budget, streams, self.cache.workers, vectors)

        inputs: dict[str, Inputs] = {}
        for modality, stream in limited.items():
            if modality in in_memory:
                key = selections[modality].source_key(self.manifest)
                inputs[modality] = self.cache.load(key, self.rows, stream.in_memory)
            else:
                inputs[modality] = stream
        return inputs


def has_dialogues(manifest: Manifest) -> bool:
    """Whether a dialogue joins two utterances of the corpus."""
    named = [dialogue for dialogue in manifest.column("dialogue") if dialogue is not None]
    return len(set(named)) < len(named)


def _budget(experiment: Experiment, cache: DataCache) -> int | None:
    """The bytes of memory that each worker may fill; None where it is not known."""
    budget = cache.free_half
    if experiment.memory is not None:
        budget = memory_budget(experiment.memory)
    return budget and budget // cache.workers


def _record(
    experiment: Experiment,
    manifest: Manifest,
    policy: Policy,
    selections: Mapping[str, ModalitySelection],
    augmented: Sequence[ModalitySelection],
) -> DatasetRecord:
    """What a run's config holds of the dataset."""
    labels = LabelRecord(policy=policy.name, classes=list(policy.classes), maps=dict(policy.maps))
    return DatasetRecord(
        corpus=manifest.corpus,
        manifest=manifest.digest,
        labels=labels,
        features={modality: selection.record for modality, selection in selections.items()},
        views=[view.record for view in augmented],
        limit=experiment.limit,
        only=experiment.only or None,
        target=experiment.target,
    )


def _features(
    selected: Mapping[str, ModalitySelection], augmented: Sequence[ModalitySelection]
) -> list[Feature]:
    """All features that are read."""
    features = []
    for selection in (*selected.values(), *augmented):
        features += [part.feature for part in selection.parts]
    return features


def size_in_float32(features: Sequence[Feature]) -> int:
    """The bytes of all rows in float32: no more are held."""
    stored = 0
    for feature in features:
        stored += sum(part.bytes for part in feature.parts())
    return 4 * stored


def _ballots(
    policy: Policy, votes: Sequence[RaterVotes | None], manifest_rows: np.ndarray
) -> list[np.ndarray]:
    """Each utterance's votes [raters, K]."""
    return [ballots(policy, votes[row]) for row in manifest_rows]


def _score_raters(
    policy: Policy,
    votes: Sequence[RaterVotes | None],
    manifest_rows: np.ndarray,
    rows: np.ndarray,
) -> dict[str, Any] | None:
    """The raters' own scores of the utterances of these rows; None where there are no classes."""
    if not policy.classes:
        return None
    matrix, left_out = rater_votes(policy, [votes[row] for row in manifest_rows[rows]])
    return rater_scores(matrix, left_out)
