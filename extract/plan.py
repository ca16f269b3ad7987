"""What `ser features` will compute: which rows the store has, the tasks of the rest, their size."""

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
from ser.cache.store import Store, check_local, open_store
from ser.corpus.manifest import Manifest, Parent
from ser.corpus.names import RESERVED, Modality
from ser.engines.machine import choose_device
from ser.engines.scheduler import check_scheduler, local_workers
from ser.errors import DISTRIBUTION, StoreError, WeightsError, WrongUse
from ser.options import options_of
from ser.weights.find import parse_models

from .batches import batches
from .config import ExtractionConfig
from .corpora.detect import find_format
from .corpora.scan import Scan, scan_corpus
from .extractor import ResolvedFeature
from .registry import split_names
from .resolve import resolve
from .tasks import ExtractionTask, Utterance, WorkerConfig, tasks_for, utterances_of

# The rows of one part, at most, in bytes.
PART_BYTES = 256 << 20
# By level, unless a hop is known. 2: the shortest utterances.
ROWS_PER_SECOND = {"frame": 50.0, "token": 50.0, "utterance": 2.0}


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
    # Features whose weights are not here.
    unavailable: dict[str, WeightsError] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        """The corpus."""
        return self.scan.manifest

    @property
    def bytes(self) -> int:
        """Estimated size of what will be computed."""
        return sum(self.sizes.values())

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

            bytes_per_second = max(_row_bytes(spec) * _rows_per_second(spec) for spec in specs)
            limit = min(self.config.part_seconds, PART_BYTES / bytes_per_second)
            rows = _by_length(utterances, modality)
            for group in batches(rows, attrgetter("length"), limit, padded=False):
                tasks += tasks_for(config, modality, group, missing)
        return tasks


def plan(config: ExtractionConfig, scan: Scan | None = None) -> ExtractionPlan:
    """Read the corpus (unless its `scan` is given), find the weights, look up what the store has.

    Features whose weights are not here are left out of the plan and named in `unavailable`. Raises
    `WrongUse` for an impossible corpus, feature, model or setting, `WeightsError` if no feature is
    left, and `StoreError` if the disk is too small for the estimated size.
    """
    _check_config(config)

    names: list[str] = []
    if config.features or scan is None:
        names = split_names(config.features)
    if scan is None:
        # Before the weights, which may come over the network.
        find_format(config.corpus, config.format)

    features, unavailable = resolve(names, parse_models(config.models), config.dtype)
    if unavailable and not features:
        raise next(iter(unavailable.values()))

    if scan is None:
        scan = scan_corpus(
            config.corpus, config.format, config.corpus_name, config.text, config.limit
        )

    store = _existing_store(config.store)
    if store is not None:
        scan = _with_parent(scan, store)

    # Audio first: it takes longer.
    modalities = sorted({feature.spec.modality for feature in features})
    utterances = {modality: utterances_of(scan, modality) for modality in modalities}
    missing: dict[str, list[Utterance]] = {}
    sizes: dict[str, int] = {}
    for feature in features:
        spec = feature.spec
        lacked = _missing(spec, utterances[spec.modality], scan.manifest, store, config.retry)
        missing[spec.fingerprint] = lacked
        sizes[spec.fingerprint] = _estimate_bytes(spec, lacked)

    planned = ExtractionPlan(
        config, scan, utterances, features, missing, sizes, _free_bytes(config.store), unavailable
    )
    _check_space(planned)
    return planned


def _check_config(config: ExtractionConfig) -> None:
    """Raise `WrongUse` for what an option cannot be, before anything is read."""
    for name, option in options_of(config).items():
        value = getattr(config, name)
        if option.choices and value not in (None, *option.choices):
            allowed = " or ".join(option.choices)
            raise WrongUse(f"--{name.replace('_', '-')} {value}: it is {allowed}")

    check_local(config.store)
    elsewhere = config.scheduler is not None and local_workers(config.scheduler) is None
    choose_device(config.device, here=config.device != "auto" and not elsewhere)

    seconds = [config.part_seconds]
    if config.batch_seconds is not None:
        seconds.append(config.batch_seconds)
    if not all(value > 0 for value in seconds):
        raise WrongUse("--part-seconds and --batch-seconds must be above 0")

    if config.scheduler is not None:
        check_scheduler(config.scheduler, config.insecure, config.workers)


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


def _rows_per_second(spec: Spec) -> float:
    """Rows per second of `Utterance.length`, at most."""
    return 1 / spec.hop if spec.hop else ROWS_PER_SECOND[spec.level]


def _estimate_bytes(spec: Spec, utterances: list[Utterance]) -> int:
    """Bytes of a feature's rows of these utterances, about."""
    if spec.level == "utterance":
        return len(utterances) * _row_bytes(spec)
    per_second = _rows_per_second(spec)
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
