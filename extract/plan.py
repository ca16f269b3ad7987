"""What `ser features` will compute: which rows the store has, the tasks of the rest, their size."""

import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path

import numpy as np

from ser.cache.feature import Feature
from ser.cache.spec import Spec
from ser.cache.store import Store, open_store
from ser.corpus.manifest import Manifest, Parent
from ser.corpus.names import RESERVED, Modality
from ser.errors import DISTRIBUTION, StoreError, WeightsError
from ser.weights.checkpoint import Checkpoint
from ser.weights.hub import OnDownload
from ser.weights.source import Source, fetch_config

from .batches import batches
from .config import ExtractionConfig
from .corpora.scan import Scan
from .extractor import ResolvedFeature
from .preparation import Preparation, prepare, stop_if_asked_for
from .registry import parse_name
from .resolve import open_sources, resolve_from
from .tasks import (
    ExtractionTask,
    Utterance,
    WorkerConfig,
    place_in_recording,
    tasks_for,
    utterances_of,
)

# The rows of one part, at most, in bytes.
PART_BYTES = 256 << 20
# By level, unless a hop is known. 2: the shortest utterances.
ROWS_PER_SECOND = {"frame": 50.0, "token": 50.0, "utterance": 2.0}
# Seconds of a window of Whisper, whose states pad=keep keeps.
WHISPER_WINDOW = 30.0


@dataclass(frozen=True)
class ExtractionPlan:
    """All that `extract` needs. Nothing is written yet."""

    config: ExtractionConfig
    scan: Scan
    # Of each modality that a feature needs, every row of the manifest.
    utterances: Mapping[Modality, list[Utterance]]
    features: list[ResolvedFeature]
    # By fingerprint, what each feature lacks: the others were computed before, or are quarantined.
    missing: Mapping[str, list[Utterance]]
    # By fingerprint, the estimated bytes of what will be computed.
    sizes: Mapping[str, int]
    # Bytes on the store's disk.
    free: int
    # Features whose weights are not to be had.
    unavailable: dict[str, WeightsError] = field(default_factory=dict)
    # Estimated bytes of the features whose weights are still to be fetched, by their names with
    # variants.
    pending: Mapping[str, int] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        """The corpus."""
        return self.scan.manifest

    @property
    def bytes(self) -> int:
        """Estimated size of what will be computed."""
        return sum(self.sizes.values()) + sum(self.pending.values())

    def worker_config(self) -> WorkerConfig:
        """What the tasks share; the device as requested."""
        config = self.config
        return WorkerConfig(
            store=config.store.absolute(),
            root=self.scan.root.absolute(),
            corpus=self.manifest.corpus,
            features=tuple(
                feature for feature in self.features if self.missing[feature.spec.fingerprint]
            ),
            backend=config.backend,
            on_error=config.on_error,
            batch_seconds=config.batch_seconds,
            device=config.device,
            written_by={"ser": version(DISTRIBUTION)},
        )

    def tasks(self) -> list[ExtractionTask]:
        """The work, cut from the whole length-sorted manifest.

        So the cut does not depend on what is missing.
        """
        config = self.worker_config()
        tasks: list[ExtractionTask] = []
        for modality, utterances in self.utterances.items():
            specs = [feature.spec for feature in self.features if feature.spec.modality == modality]
            missing: list[tuple[Spec, set[str]]] = []
            for spec in specs:
                ids = {utterance.id for utterance in self.missing[spec.fingerprint]}
                if ids:
                    missing.append((spec, ids))
            if not missing:
                continue

            bytes_per_second = max(_bytes_per_second(spec, utterances) for spec in specs)
            limit = min(self.config.part_seconds, PART_BYTES / bytes_per_second)
            for group in _groups(utterances, modality, limit):
                tasks += tasks_for(config, modality, group, missing)
        return tasks


def plan(
    config: ExtractionConfig, scan: Scan | None = None, on_download: OnDownload | None = None
) -> ExtractionPlan:
    """Read the corpus (unless its `scan` is given), get the weights, look up what the store has.

    Features whose weights are not to be had are left out of the plan and named in `unavailable`;
    see `prepare`, whose errors it raises.
    """
    return complete_plan(prepare(config, scan), on_download)


def complete_plan(
    preparation: Preparation, on_download: OnDownload | None = None
) -> ExtractionPlan:
    """The plan, once the weights that it needs are downloaded and converted.

    Raises `WeightsError` and `StoreError` as `prepare` does.
    """
    checkpoints, not_opened = open_sources(preparation.sources, on_download)
    stop_if_asked_for(preparation.config, not_opened)
    unavailable = {**preparation.unavailable, **not_opened}
    return _plan(preparation, checkpoints, unavailable, {})


def plan_without_fetching(preparation: Preparation) -> ExtractionPlan:
    """The plan as far as it is known while weights are still to be fetched.

    The features that wait for them are not in it, but for their `pending` bytes. Only the configs
    of their models are downloaded. Raises `StoreError` if the disk is too small.
    """
    ready = {}
    for feature, source in preparation.sources.items():
        if feature not in preparation.to_fetch:
            ready[feature] = source
    checkpoints, unavailable = open_sources(ready)

    pending: dict[str, int] = {}
    for feature, source in preparation.to_fetch.items():
        try:
            pending.update(_pending_bytes(preparation, feature, source))
        except WeightsError as fault:
            # Such as that of a model whose files are for those alone who accept its conditions.
            unavailable[feature] = fault
    stop_if_asked_for(preparation.config, unavailable)
    return _plan(preparation, checkpoints, {**preparation.unavailable, **unavailable}, pending)


def _pending_bytes(preparation: Preparation, feature: str, source: Source) -> dict[str, int]:
    """The estimated bytes of each variant of a feature, by name, as its model's config has them."""
    names = [name for name in preparation.names if parse_name(name)[0] == feature]
    unhashed = {feature: fetch_config(source)}

    sizes: dict[str, int] = {}
    for single in resolve_from(names, unhashed, preparation.config.dtype):
        utterances = utterances_of(preparation.scan, single.spec.modality)
        sizes[single.spec.name] = estimate_bytes(single.spec, utterances)
    return sizes


def _plan(
    preparation: Preparation,
    checkpoints: Mapping[str, Checkpoint | None],
    unavailable: dict[str, WeightsError],
    pending: Mapping[str, int],
) -> ExtractionPlan:
    """The plan of the features whose checkpoints are here."""
    config = preparation.config
    features = resolve_from(preparation.names, checkpoints, config.dtype)

    scan = preparation.scan
    store = _existing_store(config.store)
    if store is not None:
        scan = _with_parent(scan, store)
    features = _as_named_there(features, store)

    # Audio first: it takes longer.
    modalities = sorted({feature.spec.modality for feature in features})
    utterances = {modality: utterances_of(scan, modality) for modality in modalities}
    missing: dict[str, list[Utterance]] = {}
    sizes: dict[str, int] = {}
    for feature in features:
        spec = feature.spec
        lacked = _missing(spec, utterances[spec.modality], scan.manifest, store, config.retry)
        missing[spec.fingerprint] = lacked
        sizes[spec.fingerprint] = estimate_bytes(spec, lacked)

    free = _free_bytes(config.store)
    planned = ExtractionPlan(
        config, scan, utterances, features, missing, sizes, free, unavailable, pending
    )
    _check_space(planned)
    return planned


def _existing_store(folder: Path) -> Store | None:
    """The store, or None where it will be made.

    A folder that another command is about to make a store holds tmp/ alone, a new disk lost+found/.
    """
    path = folder.absolute()
    if not path.exists():
        return None
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if names <= RESERVED - {"manifests"}:
            return None
    return open_store(folder)


def _as_named_there(features: list[ResolvedFeature], store: Store | None) -> list[ResolvedFeature]:
    """The features, each once, by the names under which the store has them already."""
    named: list[ResolvedFeature] = []
    for feature in features:
        if store is not None:
            with suppress(StoreError):
                same = store.same_numbers(feature.spec)
                if same is not None:
                    spec = replace(feature.spec, variant=same.spec.variant)
                    feature = replace(feature, spec=spec)
        if not any(_is_computed_as(feature.spec, earlier.spec) for earlier in named):
            named.append(feature)
    return named


def _is_computed_as(spec: Spec, other: Spec) -> bool:
    """Whether a feature is another one, perhaps under another name."""
    return spec.numbers == other.numbers and other.is_called(spec.options)


def _with_parent(scan: Scan, store: Store) -> Scan:
    """The scan; other transcripts get as parent the corpus that shares most of their audio.

    If none of the store's shares any, the parent stays. Of two that share as much, it is the one
    that the manifest names already.
    """
    manifest = scan.manifest
    named = manifest.parent
    if named is None:
        return scan

    audio = set(zip(manifest.ids, manifest.inputs("audio"), strict=True))
    closest = (0, True)
    parent = named
    for corpus in sorted(set(store.corpora()) - {manifest.corpus}):
        # A manifest that cannot be read is no parent.
        with suppress(StoreError):
            other = store.manifest(corpus)
            shared = audio.intersection(zip(other.ids, other.inputs("audio"), strict=True))
            closeness = (len(shared), corpus == named.corpus)
            if other.parent is None and closeness > closest:
                closest = closeness
                parent = Parent(corpus, other.digest, named.transcripts)
    if parent is named:
        return scan
    return replace(scan, manifest=replace(manifest, parent=parent))


def _missing(
    spec: Spec,
    utterances: list[Utterance],
    manifest: Manifest,
    store: Store | None,
    retry: bool,
) -> list[Utterance]:
    """The utterances whose rows of this feature the store does not have."""
    if store is None or not (store.path / spec.folder).exists():
        return utterances
    # The folder's name vouches for what spec.json must say; `Store.add` rewrites one that says
    # otherwise.
    stored = Feature(store.path, store.path / spec.folder, spec)
    return [utterances[row] for row in stored.missing(manifest, retry)]


def _groups(utterances: list[Utterance], modality: Modality, limit: float) -> list[list[Utterance]]:
    """The utterances in groups of so many seconds; within each the longest first.

    Segments of one recording stay together, in their order there, so that it is decoded once.
    """
    if not any(utterance.span for utterance in utterances):
        rows = _by_length(utterances, modality)
        return batches(rows, attrgetter("length"), limit, padded=False)

    rows = sorted(utterances, key=place_in_recording)
    groups = batches(rows, attrgetter("length"), limit, padded=False)
    return [_by_length(group, modality) for group in groups]


def _by_length(utterances: list[Utterance], modality: Modality) -> list[Utterance]:
    """The utterances, longest first; of equal length by id.

    Equal transcripts are neighbours, so that they are computed once.
    """
    if modality == "text":
        return sorted(utterances, key=lambda row: (-row.length, row.source or "", row.id))
    return sorted(utterances, key=lambda row: (-row.length, row.id))


def _row_bytes(spec: Spec) -> int:
    """Bytes of a row."""
    return spec.dim * np.dtype(spec.dtype).itemsize


def _bytes_per_second(spec: Spec, utterances: list[Utterance]) -> float:
    """Bytes of a second's rows, at most; where whole windows are kept, on the average."""
    if _keeps_windows(spec):
        seconds = sum(utterance.length for utterance in utterances)
        return estimate_bytes(spec, utterances) / max(seconds, 1.0)
    return _row_bytes(spec) * _rows_per_second(spec)


def _keeps_windows(spec: Spec) -> bool:
    """Whether every window of Whisper has all its states, however short the audio is."""
    return spec.config.get("pad") == "keep"


def _rows_per_second(spec: Spec) -> float:
    """Rows per second of `Utterance.length`, at most."""
    return 1 / spec.hop if spec.hop else ROWS_PER_SECOND[spec.level]


def estimate_bytes(spec: Spec, utterances: list[Utterance]) -> int:
    """Bytes of a feature's rows of these utterances, about."""
    if spec.level == "utterance":
        return len(utterances) * _row_bytes(spec)
    per_second = _rows_per_second(spec)
    if _keeps_windows(spec):
        windows = sum(math.ceil(utterance.length / WHISPER_WINDOW) for utterance in utterances)
        return int(windows * WHISPER_WINDOW * per_second) * _row_bytes(spec)

    rows = sum(1 + per_second * utterance.length for utterance in utterances)
    return int(rows * _row_bytes(spec))


def _free_bytes(store: Path) -> int:
    """What is free on the disk that the store is or will be on."""
    path = store.absolute()
    folder = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(folder).free


def _check_space(planned: ExtractionPlan) -> None:
    """Raise `StoreError` if the disk is too small for what will be computed."""
    if planned.bytes <= planned.free:
        return
    unit, name = (1e9, "GB") if planned.bytes >= 1e9 else (1e6, "MB")
    raise StoreError(
        f"{planned.config.store}: about {planned.bytes / unit:.2f} {name} will be written and "
        f"{planned.free / unit:.2f} {name} are free; make room, name another --store, or ask for "
        "fewer features"
    )
