"""What `ser features` will compute: which rows are there already, how the rest is cut into tasks, and its size."""

import contextlib
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import compress
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.manifest import RESERVED, Manifest, Parent
from ser.cache.spec import Modality, Spec
from ser.cache.store import Feature, Store, check_local, open_store
from ser.engines.cluster import check_scheduler, local_workers
from ser.engines.machine import choose_device
from ser.errors import DISTRIBUTION, StoreError, WeightsError, WrongUse
from ser.weights.find import parse_models

from .corpora.scan import Scan, find_format, read_corpus
from .extractors import ResolvedFeature, batches, text_seconds
from .options import ExtractionConfig
from .registry import resolve, split_names

PART_BYTES = 256 << 20
ROWS_PER_SECOND = {"frame": 50.0, "token": 50.0, "utterance": 2.0}  # unless a hop is known; 2: the shortest utterances


@dataclass(frozen=True, slots=True)  # there are millions, and without slots each has a dict once it was pickled
class Utterance:
    """One manifest row, as the workers need it."""

    id: str
    source: str | None  # the path of its audio, or its transcript
    digest: str | None  # of what that is
    length: float  # what it costs, in seconds of audio
    problem: str | None = None  # why it cannot be used, as far as the scan knows
    file: str = ""  # where that is wrong: the audio, or the file that should hold the transcript


@dataclass(frozen=True)
class FeaturePlan:
    """One feature, and the utterances that it still lacks: the others were computed before, or are quarantined."""

    resolved: ResolvedFeature
    missing: list[Utterance]
    bytes: int  # estimated, of what will be computed


@dataclass(frozen=True)
class WorkerConfig:
    """What all tasks of a run share."""

    asked: ExtractionConfig  # with the store's absolute path: a worker on a cluster stands elsewhere
    root: Path
    corpus: str
    resolved: tuple[ResolvedFeature, ...]
    device: str  # as it was asked for, or that of this machine
    threads: int = 1
    written_by: Mapping[str, Any] = field(default_factory=dict)

    def here(self) -> "WorkerConfig":
        """With the device of this machine. Raises `WrongUse` for one that is not here."""
        needed = any(one.checkpoint for one in self.resolved)  # by a model; all else is computed by the CPU
        return replace(self, device=choose_device(self.device) if needed else "cpu")


@dataclass(frozen=True)
class ExtractionTask:
    """Utterances of one modality, and the features that all of them lack: computed and published together."""

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
        """By stage, how many usable utterances it has to do; the variants of a feature are one stage."""
        stages = ["decode"] * (self.modality == "audio") + [spec.feature for spec in self.specs]
        return Counter(dict.fromkeys(stages, sum(not one.problem for one in self.utterances)))


def lacking(
    config: WorkerConfig, modality: Modality, utterances: Iterable[Utterance], missing: Sequence[tuple[Spec, set[str]]]
) -> list[ExtractionTask]:
    """What is `missing` (ids, by feature) of these utterances: a task for those that lack the same features."""
    specs, alike = [spec for spec, _ in missing], dict[tuple[bool, ...], list[Utterance]]()
    for one in utterances:
        alike.setdefault(tuple(one.id in ids for _, ids in missing), []).append(one)
    mine = ((some, tuple(compress(specs, lacks))) for lacks, some in alike.items() if any(lacks))
    return [ExtractionTask(config, modality, tuple(some), lacked) for some, lacked in mine]


@dataclass(frozen=True)
class ExtractionPlan:
    """All that `extract` needs. Nothing is written yet."""

    config: ExtractionConfig
    scan: Scan
    utterances: Mapping[Modality, list[Utterance]]  # of each modality that is asked for, every row of the manifest
    features: list[FeaturePlan]
    free: int
    unavailable: dict[str, WeightsError] = field(default_factory=dict)  # features whose weights are not here

    @property
    def manifest(self) -> Manifest:
        """The corpus."""
        return self.scan.manifest

    @property
    def bytes(self) -> int:
        """Estimated size of what will be computed."""
        return sum(feature.bytes for feature in self.features)

    def worker_config(self) -> WorkerConfig:
        """What the tasks share; the device as it was asked for."""
        return WorkerConfig(
            asked=replace(self.config, store=self.config.store.absolute()),
            root=self.scan.root.absolute(),
            corpus=self.manifest.corpus,
            resolved=tuple(feature.resolved for feature in self.features if feature.missing),
            device=self.config.device,
            written_by={"ser": version(DISTRIBUTION)},
        )

    def tasks(self) -> list[ExtractionTask]:
        """The work, cut from the whole length-sorted manifest, so that the cut does not depend on what is there."""
        config, found = self.worker_config(), list[ExtractionTask]()
        for modality, utterances in self.utterances.items():
            mine = [feature for feature in self.features if feature.resolved.spec.modality == modality]
            missing = [(one.resolved.spec, {row.id for row in one.missing}) for one in mine if one.missing]
            if not missing:
                continue
            # Equal transcripts stand together, and are computed once.
            text = modality == "text"
            rows = sorted(utterances, key=lambda one: (-one.length, (one.source or "") if text else "", one.id))
            widest = max(math.prod(_size(one.resolved.spec)) for one in mine)
            most = min(self.config.part_seconds, PART_BYTES / widest)
            for group in batches(rows, attrgetter("length"), most, padded=False):
                found += lacking(config, modality, group, missing)
        return found


def utterances_of(scan: Scan, modality: Modality) -> list[Utterance]:
    """Every manifest row as this modality sees it."""
    manifest, problems, found = scan.manifest, scan.unusable(modality), list[Utterance]()
    acoustic = modality == "audio"
    lacks = "no audio file" if acoustic else "no transcript"
    columns = (manifest.column(name) for name in (modality, "duration", f"{modality}_sha256"))
    for id_, source, seconds, digest in zip(manifest.ids, *columns, strict=True):
        length = (seconds or 0.0) if acoustic else text_seconds(source or "")
        known = problems.get(id_)
        problem = known.reason if known else lacks if digest is None else None
        file = (known.path if known else "") or (acoustic and source) or ""
        found.append(Utterance(id_, source, digest, length, problem, file))
    return found


def plan(config: ExtractionConfig, scan: Scan | None = None) -> ExtractionPlan:
    """Read the corpus (unless this `scan` of it is given), find the weights, and look up what the store has.

    Features whose weights are not here are left out of the plan and named in `unavailable`. Raises `WrongUse` for a
    corpus, feature, model or setting that cannot be, `WeightsError` if no feature is left, and `StoreError` if the disk
    is too small for the estimated size.
    """
    for name, facts in config.TEXTS.items():
        value, known = getattr(config, name), facts.get("choices")
        if known and value not in (None, *known):
            raise WrongUse(f"--{name.replace('_', '-')} {value}: it is {' or '.join(known)}")
    check_local(config.store)
    elsewhere = config.scheduler is not None and local_workers(config.scheduler) is None
    choose_device(config.device, here=config.device != "auto" and not elsewhere)
    if not config.part_seconds > 0 or (config.batch_seconds is not None and not config.batch_seconds > 0):
        raise WrongUse("--part-seconds and --batch-seconds must be above 0")
    if config.scheduler is not None:
        check_scheduler(config.scheduler, config.insecure, config.workers)
    names = split_names(config.features) if config.features or scan is None else []
    if scan is None:
        find_format(config.corpus, config.format)  # before the weights, which may come over the network
    wanted, unavailable = resolve(names, parse_models(config.models), config.dtype)
    if unavailable and not wanted:
        raise next(iter(unavailable.values()))
    scan = scan or read_corpus(config.corpus, config.format, config.corpus_name, config.text, config.limit)
    path = config.store.absolute()
    # A folder that another command is about to make a store holds tmp/ alone, a new disk lost+found/.
    there = path.exists() and (
        not path.is_dir() or any(entry.name not in RESERVED - {"manifests"} for entry in path.iterdir())
    )
    store = open_store(config.store) if there else None
    scan = _with_parent(scan, store) if store else scan
    modalities = sorted({one.spec.modality for one in wanted})  # audio first: it takes longer
    utterances = {modality: utterances_of(scan, modality) for modality in modalities}
    features = []
    for one in wanted:
        missing = utterances[one.spec.modality]
        if store and (folder := store.path / one.spec.folder).exists():
            # The folder's name vouches for what spec.json must say, and `Store.add` writes one anew that does not.
            held = Feature(store.path, folder, one.spec)
            missing = [missing[row] for row in held.missing(scan.manifest, config.retry)]
        width, per_second = _size(one.spec)
        rows = (1 if one.spec.level == "utterance" else 1 + per_second * row.length for row in missing)
        features.append(FeaturePlan(one, missing, int(sum(rows) * width)))
    free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
    made = ExtractionPlan(config, scan, utterances, features, free, unavailable)
    if made.bytes > made.free:
        unit, name = (1e9, "GB") if made.bytes >= 1e9 else (1e6, "MB")
        raise StoreError(
            f"{config.store}: about {made.bytes / unit:.2f} {name} will be written and "
            f"{made.free / unit:.2f} {name} are free; make room, name another --store, or ask for fewer features"
        )
    return made


def _with_parent(scan: Scan, store: Store) -> Scan:
    """The scan; the parent of other transcripts is the corpus of the store that has most of their audio, if one has."""
    # Utterances that the nearest shares, and whether the manifest names it; of none shared nobody is nearer.
    manifest, most = scan.manifest, (0, True)
    if (parent := manifest.parent) is None:
        return scan
    audio = set(zip(manifest.ids, manifest.inputs("audio"), strict=True))
    for corpus in sorted(set(store.corpora()) - {manifest.corpus}):
        with contextlib.suppress(StoreError):  # one that cannot be read is nobody's parent
            other = store.manifest(corpus)
            common = len(audio.intersection(zip(other.ids, other.inputs("audio"), strict=True)))
            if other.parent is None and (near := (common, corpus == parent.corpus)) > most:
                most, manifest = near, replace(manifest, parent=Parent(other.corpus, other.digest, parent.transcripts))
    return replace(scan, manifest=manifest)


def _size(spec: Spec) -> tuple[int, float]:
    """Bytes of a row, and rows per second of `Utterance.length`, at most."""
    return spec.dim * np.dtype(spec.dtype).itemsize, 1 / spec.hop if spec.hop else ROWS_PER_SECOND[spec.level]
