"""What `ser features` will compute: which rows are there already, how the rest is cut into parts, and its size."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.manifest import Manifest
from ser.cache.spec import Modality
from ser.cache.store import Feature, Store, open_store
from ser.engines.cluster import check_scheduler
from ser.engines.machine import choose_device
from ser.errors import CorruptStore, StoreError, WrongUse
from ser.weights.find import parse_models

from .corpora.scan import Scan, find_format, read_corpus
from .extractors import CHARACTERS_PER_TOKEN, Extractor, ResolvedFeature, resolve, split_names, text_seconds
from .options import ExtractionConfig

OnProgress = Callable[[str, int, int], None]  # stage, utterances done, of how many
PART_BYTES = 256 << 20


@dataclass
class FeaturePlan:
    """One feature: how many rows the corpus has, and the manifest rows that are still to be computed."""

    wanted: ResolvedFeature
    rows: int
    missing: list[int]
    bytes: int
    parts: frozenset[str] = frozenset()  # names of those in the store that `missing` reckons with

    @property
    def there(self) -> int:
        """Rows that need no work: computed before, or quarantined."""
        return self.rows - len(self.missing)


@dataclass(frozen=True, slots=True)  # there are millions, and without slots each has a dict once it was pickled
class Utterance:
    """One manifest row, as the workers need it."""

    id: str
    audio: str | None
    text: str | None
    digest: str | None  # of the input of this modality
    length: float  # what it costs, in seconds of audio
    problem: str | None = None  # why it cannot be used, as far as the scan knows
    file: str = ""  # where that is wrong: the audio, or the file that should hold the transcript


@dataclass(frozen=True)
class Part:
    """The utterances of one modality that are computed and published together."""

    modality: Modality
    utterances: tuple[Utterance, ...]
    missing: Mapping[str, frozenset[str]]  # fingerprint → ids

    @property
    def name(self) -> str:
        """For messages."""
        return f"{len(self.utterances)} utterances ({self.modality}, from {self.utterances[0].id})"

    def only(self, missing: Mapping[str, frozenset[str]]) -> "Part | None":
        """The part with less to do, or None if nothing is left."""
        some = frozenset().union(*missing.values())
        if not some:
            return None
        utterances = tuple(u for u in self.utterances if u.id in some)
        return Part(self.modality, utterances, {name: ids for name, ids in missing.items() if ids})


@dataclass
class Plan:
    """All that `extract` needs. Nothing is written yet."""

    request: ExtractionConfig
    scan: Scan
    features: list[FeaturePlan]
    free: int
    warnings: list[str] = field(default_factory=list)
    opened: dict[Modality, list[Extractor]] = field(default_factory=dict, repr=False)  # by an estimate, for the run

    @property
    def manifest(self) -> Manifest:
        """The corpus."""
        return self.scan.manifest

    @property
    def bytes(self) -> int:
        """Estimated size of what will be computed."""
        return sum(feature.bytes for feature in self.features)

    @property
    def random_weights(self) -> bool:
        """Whether any feature comes from an untrained encoder."""
        return any(feature.wanted.spec.random_weights for feature in self.features)

    def parts(self) -> list[Part]:
        """The work, cut from the whole length-sorted manifest, so that the cut does not depend on what is there."""
        return [*self._parts("audio"), *self._parts("text")]

    def _parts(self, modality: Modality) -> Iterator[Part]:
        mine = [feature for feature in self.features if feature.wanted.spec.modality == modality]
        missing = {feature.wanted.spec.fingerprint: set(feature.missing) for feature in mine}
        if not any(missing.values()):
            return
        utterances = self.utterances(modality)
        if modality == "audio":
            order = sorted(range(len(utterances)), key=lambda row: (-utterances[row].length, utterances[row].id))
        else:  # equal transcripts stand together, and are computed once
            order = sorted(range(len(utterances)), key=lambda row: _text_key(utterances[row]))
        widest = max(_row_bytes(feature.wanted) * _rows_per_second(feature.wanted) for feature in mine)
        most = min(self.request.part_seconds, PART_BYTES / widest)
        for rows in _cut(order, [u.length for u in utterances], most):
            wanted = {name: frozenset(utterances[row].id for row in rows if row in of) for name, of in missing.items()}
            some = frozenset().union(*wanted.values())
            if some:
                yield Part(modality, tuple(utterances[row] for row in rows if utterances[row].id in some), wanted)

    def utterances(self, modality: Modality) -> list[Utterance]:
        """Every manifest row as this modality sees it."""
        manifest = self.manifest
        problems = self.scan.unusable(modality)
        found = []
        for id_, audio, text, digest, seconds in zip(
            manifest.ids,
            manifest.column("audio"),
            manifest.column("text"),
            manifest.inputs(modality),
            manifest.column("duration"),
            strict=True,
        ):
            known = problems.get(id_)
            problem, file = (known.reason, known.path) if known else (None, "")
            if digest is None and problem is None:
                problem = "no transcript" if modality == "text" else "no audio file"
            length = (seconds or 0.0) if modality == "audio" else text_seconds(text or "")
            file = file or ((audio or "") if modality == "audio" else "")
            found.append(Utterance(id_, audio, text, digest, length, problem, file))
        return found


def plan(request: ExtractionConfig) -> Plan:
    """Read the corpus, find the weights, and look up what the store has.

    Raises `WrongUse` for a corpus, feature, model or setting that cannot be, and `StoreError` if the disk is too
    small for the estimated size.
    """
    _check_options(request)
    names = split_names(request.features)
    find_format(request.corpus, request.format)  # before the weights, which may come over the network
    wanted = resolve(names, parse_models(request.models), request.dtype)  # type: ignore[arg-type]
    scan = read_corpus(request.corpus, request.format, request.corpus_name, request.text, request.limit)
    return plan_scan(request, scan, wanted)


def _check_options(request: ExtractionConfig) -> None:
    """Raise `WrongUse` for a value that cannot be, or two that do not go together: before anything is read."""
    for option in fields(request):
        value, known = getattr(request, option.name), option.metadata.get("choices")
        if known and option.name != "format" and value not in known:  # `find_format` knows formats registered since
            raise WrongUse(f"--{option.name.replace('_', '-')} {value}: it is {' or '.join(known)}")
    choose_device(request.device, here=False)  # whether it is here is seen when a model needs it
    if not request.part_seconds > 0 or (request.batch_seconds is not None and not request.batch_seconds > 0):
        raise WrongUse("--part-seconds and --batch-seconds must be above 0")
    if request.scheduler is not None:
        if request.workers is not None:
            raise WrongUse("--workers starts processes here, and --scheduler uses the workers of a cluster: give one")
        check_scheduler(request.scheduler, request.insecure)


def plan_scan(request: ExtractionConfig, scan: Scan, wanted: list[ResolvedFeature]) -> Plan:
    """The plan for a corpus that is read already. Raises `StoreError` if the disk is too small."""
    store = _store_there(request.store)
    features = [_feature_plan(one, scan.manifest, store, request) for one in wanted]
    made = Plan(request, scan, features, _free(request.store), list(scan.warnings))
    if made.bytes > made.free:
        unit, name = (1e9, "GB") if made.bytes >= 1e9 else (1e6, "MB")
        raise StoreError(
            f"{request.store}: about {made.bytes / unit:.2f} {name} will be written and "
            f"{made.free / unit:.2f} {name} are free; make room, name another --store, or ask for fewer features"
        )
    return made


def _store_there(path: Path) -> Store | None:
    try:
        return open_store(path)
    except WrongUse:
        if path.exists() and (not path.is_dir() or any(entry.name != "tmp" for entry in path.iterdir())):
            raise  # something that is no store stands there
        return None


def existing(store: Store, wanted: ResolvedFeature) -> Feature | None:
    """The feature in the store, if its folder is there."""
    folder = store.path / wanted.spec.feature / wanted.spec.fingerprint
    if not folder.exists():
        return None
    try:
        return Feature(store.path, folder)
    except CorruptStore:  # the folder's name vouches for what spec.json must say, and `Store.add` writes it again
        return Feature(store.path, folder, wanted.spec)


def _feature_plan(
    wanted: ResolvedFeature, manifest: Manifest, store: Store | None, request: ExtractionConfig
) -> FeaturePlan:
    feature = existing(store, wanted) if store else None
    parts = frozenset(part.name for part in feature.parts()) if feature else frozenset()
    missing = feature.missing(manifest, request.retry) if feature else list(range(len(manifest)))
    return FeaturePlan(wanted, len(manifest), missing, _bytes(wanted, manifest, missing), parts)


def _bytes(wanted: ResolvedFeature, manifest: Manifest, rows: list[int]) -> int:
    if wanted.spec.level == "utterance":
        return len(rows) * _row_bytes(wanted)
    column = manifest.column("duration" if wanted.spec.modality == "audio" else "text")
    if wanted.spec.modality == "audio":
        count = sum((column[row] or 0.0) * _rows_per_second(wanted) + 1 for row in rows)
    else:
        count = sum(2 + len(column[row] or "") / CHARACTERS_PER_TOKEN for row in rows)
    return int(count * _row_bytes(wanted))


def _row_bytes(wanted: ResolvedFeature) -> int:
    return wanted.spec.dim * np.dtype(wanted.spec.dtype).itemsize


def _rows_per_second(wanted: ResolvedFeature) -> float:
    """Rows per second of `Utterance.length`; at utterance level the shortest utterances bound it."""
    return 1 / wanted.spec.hop if wanted.spec.hop else 2.0 if wanted.spec.level == "utterance" else 50.0


def _text_key(utterance: Utterance) -> tuple[Any, ...]:
    return (-len(utterance.text or ""), utterance.text or "", utterance.id)


def _cut(order: list[int], lengths: list[float], most: float) -> Iterator[list[int]]:
    rows: list[int] = []
    filled = 0.0
    for row in order:
        if rows and filled + lengths[row] > most:
            yield rows
            rows, filled = [], 0.0
        rows.append(row)
        filled += lengths[row]
    if rows:
        yield rows


def _free(path: Path) -> int:
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
