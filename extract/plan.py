"""What `ser features` will compute: which rows the store has, how the missing ones are cut into
tasks, their size.
"""

import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import compress
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.feature import Feature
from ser.cache.part import Quarantine
from ser.cache.spec import Spec
from ser.cache.store import Store, check_local, open_store
from ser.corpus.manifest import Manifest, Parent
from ser.corpus.names import RESERVED, Modality
from ser.engines.cluster import check_scheduler, local_workers
from ser.engines.machine import choose_device
from ser.errors import DISTRIBUTION, StoreError, WeightsError, WrongUse
from ser.options import options_of
from ser.weights.find import parse_models

from .batches import batches, text_seconds
from .config import ExtractionConfig
from .corpora.detect import find_format
from .corpora.scan import Scan, read_corpus
from .extractor import ResolvedFeature
from .registry import split_names
from .resolve import resolve

PART_BYTES = 256 << 20
ROWS_PER_SECOND = {
    "frame": 50.0,
    "token": 50.0,
    "utterance": 2.0,
}  # unless a hop is known; 2: the shortest utterances


@dataclass(
    frozen=True, slots=True
)  # there may be millions, and without slots an unpickled one has a dict
class Utterance:
    """One manifest row, as the workers need it."""

    id: str
    source: str | None  # the path of its audio, or its transcript
    digest: str | None  # of that audio or transcript
    length: float  # what it costs, in seconds of audio
    problem: str | None = None  # why it cannot be used, as far as the scan knows
    file: str = ""  # of the problem: the audio, or the file that should hold the transcript

    def quarantine(self, reason: str) -> Quarantine:
        """What the store records of it where it cannot be used."""
        return Quarantine(self.id, self.digest, self.file, reason)


@dataclass(frozen=True)
class FeaturePlan:
    """One feature, and the utterances that it lacks: the others were computed before, or are
    quarantined.
    """

    resolved: ResolvedFeature
    missing: list[Utterance]
    bytes: int  # estimated, of what will be computed


@dataclass(frozen=True)
class WorkerConfig:
    """What all tasks of a run share."""

    asked: ExtractionConfig  # with the store's absolute path: a cluster's worker has another working folder
    root: Path
    corpus: str
    resolved: tuple[ResolvedFeature, ...]
    device: str  # as requested, or that of this machine
    threads: int = 1
    written_by: Mapping[str, Any] = field(default_factory=dict)

    def here(self) -> "WorkerConfig":
        """With the device of this machine. Raises `WrongUse` for one that it does not have."""
        has_model = any(
            feature.checkpoint for feature in self.resolved
        )  # the CPU computes everything else
        return replace(self, device=choose_device(self.device) if has_model else "cpu")


@dataclass(frozen=True)
class ExtractionTask:
    """Utterances of one modality, and the features that all of them lack: computed and published
    together.
    """

    config: WorkerConfig
    modality: Modality
    utterances: tuple[Utterance, ...]
    specs: tuple[Spec, ...]  # of the features that it computes

    @property
    def name(self) -> str:
        """For messages."""
        return f"{len(self.utterances)} utterances ({self.modality}, from {self.utterances[0].id})"

    @property
    def stages(self) -> Counter[str]:
        """By stage, how many usable utterances it has to do; the variants of a feature are one
        stage.
        """
        decoding = ["decode"] if self.modality == "audio" else []
        usable = sum(not utterance.problem for utterance in self.utterances)
        return Counter(dict.fromkeys([*decoding, *(spec.feature for spec in self.specs)], usable))


def lacking(
    config: WorkerConfig,
    modality: Modality,
    utterances: Iterable[Utterance],
    missing: Sequence[tuple[Spec, set[str]]],
) -> list[ExtractionTask]:
    """What is `missing` (ids, by feature) of these utterances: a task for those that lack the same
    features.
    """
    specs, groups = [spec for spec, _ in missing], dict[tuple[bool, ...], list[Utterance]]()
    for utterance in utterances:
        groups.setdefault(tuple(utterance.id in ids for _, ids in missing), []).append(utterance)
    rest = ((group, tuple(compress(specs, lacks))) for lacks, group in groups.items() if any(lacks))
    return [ExtractionTask(config, modality, tuple(group), lacked) for group, lacked in rest]


@dataclass(frozen=True)
class ExtractionPlan:
    """All that `extract` needs. Nothing is written yet."""

    config: ExtractionConfig
    scan: Scan
    utterances: Mapping[
        Modality, list[Utterance]
    ]  # of each modality that a feature needs, every row of the manifest
    features: list[FeaturePlan]
    free: int  # bytes on the store's disk
    unavailable: dict[str, WeightsError] = field(
        default_factory=dict
    )  # features whose weights are not here

    @property
    def manifest(self) -> Manifest:
        """The corpus."""
        return self.scan.manifest

    @property
    def bytes(self) -> int:
        """Estimated size of what will be computed."""
        return sum(feature.bytes for feature in self.features)

    def worker_config(self) -> WorkerConfig:
        """What the tasks share; the device as requested."""
        return WorkerConfig(
            asked=replace(self.config, store=self.config.store.absolute()),
            root=self.scan.root.absolute(),
            corpus=self.manifest.corpus,
            resolved=tuple(feature.resolved for feature in self.features if feature.missing),
            device=self.config.device,
            written_by={"ser": version(DISTRIBUTION)},
        )

    def tasks(self) -> list[ExtractionTask]:
        """The work, cut from the whole length-sorted manifest, so that the cut does not depend on
        what is missing.
        """
        config, tasks = self.worker_config(), list[ExtractionTask]()
        for modality, utterances in self.utterances.items():
            features = [
                feature for feature in self.features if feature.resolved.spec.modality == modality
            ]
            missing = [
                (one.resolved.spec, {row.id for row in one.missing})
                for one in features
                if one.missing
            ]
            if not missing:
                continue
            rows = sorted(utterances, key=attrgetter("id"))
            if modality == "text":
                rows.sort(
                    key=lambda row: row.source or ""
                )  # equal transcripts are neighbours, and computed once
            rows.sort(key=attrgetter("length"), reverse=True)
            widest = max(math.prod(_size(one.resolved.spec)) for one in features)
            most = min(self.config.part_seconds, PART_BYTES / widest)
            for group in batches(rows, attrgetter("length"), most, padded=False):
                tasks += lacking(config, modality, group, missing)
        return tasks


def utterances_of(scan: Scan, modality: Modality) -> list[Utterance]:
    """Every manifest row as this modality sees it."""
    manifest, problems, utterances = scan.manifest, scan.unusable(modality), list[Utterance]()
    columns = (manifest.column(name) for name in (modality, "duration", f"{modality}_sha256"))
    for id_, source, seconds, digest in zip(manifest.ids, *columns, strict=True):
        if modality == "audio":
            length, file, absent = seconds or 0.0, source or "", "no audio file"
        else:
            length, file, absent = text_seconds(source or ""), "", "no transcript"
        problem = problems.get(id_)
        reason = problem.reason if problem else absent if digest is None else None
        utterances.append(
            Utterance(
                id_, source, digest, length, reason, (problem.path if problem else "") or file
            )
        )
    return utterances


def plan(config: ExtractionConfig, scan: Scan | None = None) -> ExtractionPlan:
    """Read the corpus (unless its `scan` is given), find the weights, and look up what the store
    has.

    Features whose weights are not here are left out of the plan and named in `unavailable`. Raises
    `WrongUse` for an impossible corpus, feature, model or setting, `WeightsError` if no feature is
    left, and `StoreError` if the disk is too small for the estimated size.
    """
    for name, option in options_of(config).items():
        value = getattr(config, name)
        if option.choices and value not in (None, *option.choices):
            allowed = " or ".join(option.choices)
            raise WrongUse(f"--{name.replace('_', '-')} {value}: it is {allowed}")
    check_local(config.store)
    elsewhere = config.scheduler is not None and local_workers(config.scheduler) is None
    choose_device(config.device, here=config.device != "auto" and not elsewhere)
    if not config.part_seconds > 0 or (
        config.batch_seconds is not None and not config.batch_seconds > 0
    ):
        raise WrongUse("--part-seconds and --batch-seconds must be above 0")
    if config.scheduler is not None:
        check_scheduler(config.scheduler, config.insecure, config.workers)
    names = split_names(config.features) if config.features or scan is None else []
    if scan is None:
        find_format(
            config.corpus, config.format
        )  # before the weights, which may come over the network
    resolved, unavailable = resolve(names, parse_models(config.models), config.dtype)
    if unavailable and not resolved:
        raise next(iter(unavailable.values()))
    scan = scan or read_corpus(
        config.corpus, config.format, config.corpus_name, config.text, config.limit
    )
    path = config.store.absolute()
    # A folder that another command is about to make a store holds tmp/ alone, a new disk
    # lost+found/.
    new = not path.exists() or (
        path.is_dir() and {entry.name for entry in path.iterdir()} <= RESERVED - {"manifests"}
    )
    store = None if new else open_store(config.store)
    scan = _with_parent(scan, store) if store else scan
    modalities = sorted(
        {feature.spec.modality for feature in resolved}
    )  # audio first: it takes longer
    utterances = {modality: utterances_of(scan, modality) for modality in modalities}
    features = []
    for feature in resolved:
        spec = feature.spec
        missing = utterances[spec.modality]
        if store and (store.path / spec.folder).exists():
            # The folder's name vouches for what spec.json must say; `Store.add` rewrites one that
            # says otherwise.
            stored = Feature(store.path, store.path / spec.folder, spec)
            missing = [missing[row] for row in stored.missing(scan.manifest, config.retry)]
        row_bytes, per_second = _size(spec)
        rows = (1 if spec.level == "utterance" else 1 + per_second * row.length for row in missing)
        features.append(FeaturePlan(feature, missing, int(sum(rows) * row_bytes)))
    free = shutil.disk_usage(
        next(folder for folder in (path, *path.parents) if folder.exists())
    ).free
    planned = ExtractionPlan(config, scan, utterances, features, free, unavailable)
    if planned.bytes > free:
        unit, name = (1e9, "GB") if planned.bytes >= 1e9 else (1e6, "MB")
        raise StoreError(
            f"{config.store}: about {planned.bytes / unit:.2f} {name} will be written and {free / unit:.2f} {name} "
            "are free; make room, name another --store, or ask for fewer features"
        )
    return planned


def _with_parent(scan: Scan, store: Store) -> Scan:
    """The scan; other transcripts get the corpus of the store that shares most of their audio as
    parent, if any does.

    Of two that share as much, the one that the manifest names already.
    """
    manifest, named = scan.manifest, scan.manifest.parent
    if named is None:
        return scan
    closest, audio = (0, True), {*zip(manifest.ids, manifest.inputs("audio"), strict=True)}
    for corpus in sorted({*store.corpora()} - {manifest.corpus}):
        with suppress(StoreError):  # a manifest that cannot be read is no parent
            other = store.manifest(corpus)
            shared = len(audio.intersection(zip(other.ids, other.inputs("audio"), strict=True)))
            if other.parent is None and (shared, corpus == named.corpus) > closest:
                closest = shared, corpus == named.corpus
                manifest = replace(manifest, parent=Parent(corpus, other.digest, named.transcripts))
    return replace(scan, manifest=manifest)


def _size(spec: Spec) -> tuple[int, float]:
    """Bytes of a row, and rows per second of `Utterance.length`, at most."""
    return spec.dim * np.dtype(spec.dtype).itemsize, 1 / spec.hop if spec.hop else ROWS_PER_SECOND[
        spec.level
    ]
