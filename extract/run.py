"""`ser features`: carry out a plan, as in `extract(plan(ExtractionConfig(Path("/data/IEMOCAP"), features="hubert,is13")))`."""

import time
from collections import Counter
from collections.abc import Generator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

from ser import engines
from ser.cache.part import Quarantine
from ser.cache.spec import Modality
from ser.cache.store import Store, open_store
from ser.errors import ExtractionStopped, SerError

from .audio import decode, locate
from .cluster_tasks import StoreProgress, Task, extract_part, run_leases
from .extractors import GPU_SECONDS, Extractor, UtteranceError, batches, choose_device, load_extractors
from .plan import ExtractionConfig, OnProgress, Part, Plan, Utterance, plan
from .worker import Record, Setup, Worker, one_thread


class Told:
    """Counts the utterances of each stage as they are done, and passes them on."""

    def __init__(self, plan: Plan, parts: list[Part], report: OnProgress | None) -> None:
        self.report = report
        self.done: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        for part in parts:
            known = {utterance.id for utterance in part.utterances if utterance.problem}  # nothing to do for these
            if part.modality == "audio":
                self.total["decode"] += len(part.utterances) - len(known)
            stages: dict[str, set[str]] = {}
            for feature in plan.features:
                spec = feature.wanted.spec
                stages.setdefault(spec.feature, set()).update(part.missing.get(spec.fingerprint, ()))
            for stage, ids in stages.items():
                self.total[stage] += len(ids - known)

    def stage(self, stage: str, count: int) -> None:
        """One more batch of a stage is done."""
        self.done[stage] += count
        if self.report:
            self.report(stage, min(self.done[stage], self.total[stage]), self.total[stage])


T = TypeVar("T")

ENOUGH = 100  # utterances to compute: fewer are done before they are estimated
AT = (1 / 6, 1 / 2, 5 / 6)  # of the utterances by length, those that are timed


def about_seconds(plan: Plan) -> float | None:
    """The seconds that the plan will take on this machine, as far as a few utterances can tell.

    None if there is little to do, or if other machines do it. Opens the encoders and leaves them open for the run.
    """
    request = plan.request
    if request.scheduler is not None or max((len(f.missing) for f in plan.features), default=0) < ENOUGH:
        return None
    device = choose_device(request.device, [feature.wanted for feature in plan.features])
    on_gpu = device.startswith("cuda")
    most = request.batch_seconds or (GPU_SECONDS if on_gpu else None)
    if not on_gpu:
        one_thread()
    cores_busy = device_busy = 0.0
    modalities: tuple[Modality, ...] = ("audio", "text")
    for modality in modalities:
        wanted = [feature.wanted for feature in plan.features if feature.wanted.spec.modality == modality]
        left = _left(plan, modality, {one.spec.fingerprint for one in wanted})
        if not left:
            continue
        passes = load_extractors(wanted, device, most)
        if (request.workers or 1) == 1:
            plan.opened[modality] = passes
        start = time.perf_counter()
        timed = _inputs(plan, _chosen(left, most if on_gpu else None), modality)
        cores_busy += (time.perf_counter() - start) / max(sum(u.length for u, _ in timed), 1e-9) * _seconds(left)
        for one in passes:
            alone = on_gpu and one.batched
            rate = _rate(one, timed, most, 1) if alone else _rate(one, _spread(timed), most, engines.cores())
            busy = rate * _seconds(_left(plan, modality, {spec.fingerprint for spec in one.specs}))
            if alone:
                device_busy += busy
            else:
                cores_busy += busy
    return max(cores_busy / engines.cores(), device_busy)


def _left(plan: Plan, modality: Modality, fingerprints: set[str]) -> list[Utterance]:
    """The usable utterances that lack one of these features, longest first; equal transcripts once."""
    rows = set[int]().union(*(f.missing for f in plan.features if f.wanted.spec.fingerprint in fingerprints))
    utterances = plan.utterances(modality) if rows else []
    usable = [utterances[row] for row in sorted(rows) if not utterances[row].problem]
    found = {(u.text if modality == "text" else u.id): u for u in usable}
    return sorted(found.values(), key=lambda utterance: -utterance.length)


def _seconds(utterances: Sequence[Utterance]) -> float:
    return sum(utterance.length for utterance in utterances)


def _spread(some: list[T]) -> list[T]:
    return [some[int(part * len(some))] for part in AT] if some else []


def _chosen(left: list[Utterance], most: float | None) -> list[Utterance]:
    """Three of different lengths; on a GPU, which a few leave idle, a batch from the middle."""
    if most is None:
        return _spread(left)
    groups = batches([utterance.length for utterance in left], most)
    return [left[index] for index in groups[len(groups) // 2]]


def _inputs(plan: Plan, utterances: list[Utterance], modality: Modality) -> list[tuple[Utterance, Any]]:
    """What a pass takes of each utterance that can be decoded."""
    if modality == "text":
        return [(utterance, utterance.text) for utterance in utterances]
    found: list[tuple[Utterance, Any]] = []
    for utterance in utterances:
        try:
            found.append((utterance, decode(locate(plan.scan.root, utterance.audio or ""), utterance.digest)))
        except UtteranceError:
            continue
    return found


def _rate(one: Extractor, timed: list[tuple[Utterance, Any]], most: float | None, threads: int) -> float:
    """Seconds of one thread's work per second of utterances; 0 where none could be decoded."""
    groups = batches([utterance.length for utterance, _ in timed], most if one.batched else None)
    if not groups:
        return 0.0

    def once(_: int) -> float:
        one.run([timed[groups[-1][-1]][1]])  # the first call of a thread loads and allocates
        start = time.perf_counter()
        for group in groups:
            one.run([timed[row][1] for row in group])
        return time.perf_counter() - start

    # As many at once as in the run: cores share their memory, and often this machine with others.
    with ThreadPoolExecutor(threads) as pool:
        busy = list(pool.map(once, range(threads)))
    return sum(busy) / threads / max(_seconds([utterance for utterance, _ in timed]), 1e-9)


__all__ = ["ExtractionConfig", "ExtractionStopped", "Plan", "Summary", "extract", "plan"]

NAMED = 5  # faults that a message names before it counts the rest


@dataclass
class Summary:
    """What a run did. `features` has one entry per feature name, with the keys that `--json` prints."""

    store: str
    corpus: str
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    quarantined: dict[str, dict[str, str]] = field(default_factory=dict)  # feature → id → reason
    refused: list[str] = field(default_factory=list)  # what of the corpus has no row: a missing session, a bad line
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0  # wall clock
    audio_seconds: float = 0.0  # decoded
    stages: dict[str, float] = field(default_factory=dict)  # seconds of all its threads busy, slowest first
    check: dict[str, float] = field(default_factory=dict)  # feature → max relative deviation from one by one

    @property
    def any_quarantined(self) -> bool:
        """Whether any utterance is left out of any feature."""
        return any(self.quarantined.values())

    @property
    def whole(self) -> bool:
        """Whether every feature has every utterance of the corpus; if not, the run ends with exit code 3."""
        return not self.any_quarantined and not self.refused


def extract(plan: Plan, on_progress: OnProgress | None = None) -> Summary:
    """Compute and publish all that is missing. What is there already is not touched, so a killed run resumes.

    Raises `ExtractionStopped` for a corpus that is not whole, and at the first part with unusable utterances, unless the
    request says `on_error="skip"`; that part's good rows are kept. Raises `StoreError` when the disk is full, and
    `SerError` when a worker process dies.
    """
    begun = time.perf_counter()
    request = plan.request
    stop_if_unusable(plan)
    store = open_store(request.store, create=True)
    if request.limit is None or not _known_already(store, plan):
        store.put_manifest(plan.manifest)
    for feature in plan.features:
        store.add(feature.wanted.spec)
    deviations = _check(plan, store)
    parts = plan.parts()
    total = Record("all")
    # Closed at once when this fails: else its threads would go on through all parts before the message is seen.
    with closing(_records(plan, parts, on_progress)) as records:
        for record in records:
            _add(total, record)
            if record.quarantined and request.on_error == "fail":
                names = {feature.wanted.spec.fingerprint: feature.wanted.spec.name for feature in plan.features}
                raise _stopped({names[key]: found for key, found in record.quarantined.items()})
    return _summary(plan, store, total, time.perf_counter() - begun, deviations)


def stop_if_unusable(plan: Plan) -> None:
    """Raises `ExtractionStopped` for all that the scan found unusable, unless the request says `on_error="skip"`."""
    if plan.request.on_error == "fail" and ((known := _known_problems(plan)) or plan.scan.refused):
        raise _stopped(known, [str(problem) for problem in plan.scan.refused])


def _known_already(store: Store, plan: Plan) -> bool:
    """Whether the corpus's latest manifest has these utterances too: a trial with `--limit` must not shrink it."""
    corpus = plan.manifest.corpus
    return corpus in store.corpora() and set(plan.manifest.ids) <= set(store.manifest(corpus).ids)


def device_of(plan: Plan) -> str:
    """Where this process computes the plan. Raises `WrongUse` for a device that is not here."""
    return choose_device(plan.request.device, [feature.wanted for feature in plan.features])


def _records(plan: Plan, parts: list[Part], on_progress: OnProgress | None) -> Generator[Record]:
    if not parts:
        return
    request = plan.request
    workers = min(request.workers or 1, len(parts))
    setup = Setup(
        store=request.store,
        root=plan.scan.root,
        corpus=plan.manifest.corpus,
        wanted=tuple(feature.wanted for feature in plan.features),
        backend=request.backend,
        device=request.device if request.scheduler else device_of(plan),  # a cluster's workers look for themselves
        threads=max(1, engines.cores() // workers),
        batch_seconds=request.batch_seconds,
        keep_quarantine=request.on_error == "skip",
        written_by=(("ser", version("ser")),),
    )
    if request.scheduler is not None:
        seen = StoreProgress(plan, parts, on_progress)
        for record in run_leases(setup, seen.left(parts), request.scheduler, request.insecure, seen.look):
            seen.add(record)
            yield record
        seen.look(anew=True)
        return
    told = Told(plan, parts, on_progress)
    if workers == 1:
        yield from Worker(setup, told.stage, plan.opened).run(parts)
        return
    for record in engines.run(extract_part, [Task(setup, part) for part in parts], workers):
        for stage, count in record.stages.items():
            told.stage(stage, count)
        yield record


def _known_problems(plan: Plan) -> dict[str, list[Quarantine]]:
    """What the scan knows to be unusable among the rows that would be computed, by feature name."""
    found: dict[str, list[Quarantine]] = {}
    for feature in plan.features:
        spec = feature.wanted.spec
        utterances = plan.utterances(spec.modality) if feature.missing else []
        bad = [utterances[row] for row in feature.missing if utterances[row].problem]
        if bad:
            found[spec.name] = [Quarantine(u.id, u.digest, u.file, u.problem or "") for u in bad]
    return found


def _stopped(quarantined: dict[str, list[Quarantine]], refused: list[str] | None = None) -> ExtractionStopped:
    told = [f"{_count(refused, 'problem')} with the corpus: {_listed(refused)}"] if refused else []
    unique = list({(q.id, q.reason): q for found in quarantined.values() for q in found}.values())
    if unique:
        named = [f"{q.id} ({q.path}): {q.reason}" if q.path else f"{q.id}: {q.reason}" for q in unique]
        told.append(f"{_count(unique, 'utterance')} cannot be used for {', '.join(quarantined)}: {_listed(named)}")
    way_out = "mend the corpus, or go on without them by --on-error skip"
    return ExtractionStopped("; ".join([*told, way_out]), quarantined)


def _count(things: Sized, what: str) -> str:
    return f"{len(things)} {what}{'s' * (len(things) > 1)}"


def _listed(faults: list[str]) -> str:
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return "; ".join(faults[:NAMED]) + more


def _add(total: Record, record: Record) -> None:
    total.computed += record.computed
    total.batches += record.batches
    for stage, seconds in record.seconds.items():
        total.seconds[stage] += seconds
    total.audio_seconds += record.audio_seconds
    total.warnings += record.warnings
    for name, found in record.quarantined.items():
        total.quarantined.setdefault(name, []).extend(found)


def _summary(plan: Plan, store: Store, total: Record, seconds: float, deviations: dict[str, float]) -> Summary:
    summary = Summary(str(plan.request.store), plan.manifest.corpus, seconds=seconds, check=deviations)
    summary.audio_seconds = total.audio_seconds
    summary.stages = dict(sorted(total.seconds.items(), key=lambda entry: -entry[1]))
    for feature in plan.features:
        spec = feature.wanted.spec
        there = store.add(spec)
        quarantined = there.quarantined(plan.manifest)
        rows, computed = there.rows(plan.manifest), total.computed[spec.fingerprint]
        if rows + len(quarantined) != len(plan.manifest):
            raise SerError(f"{spec.name}: {len(plan.manifest) - rows - len(quarantined)} rows are unaccounted for")
        summary.features[spec.name] = {
            "rows": rows,
            "computed": computed,
            "reused": rows - computed,
            "quarantined": len(quarantined),
            "batches": total.batches[spec.fingerprint],
            "seconds": round(total.seconds[spec.feature], 3),
            "fingerprint": spec.fingerprint,
            "random_weights": spec.random_weights,
        }
        summary.quarantined[spec.name] = quarantined
    summary.refused = [str(problem) for problem in plan.scan.refused]
    summary.warnings = [*plan.warnings, *_counted(total.warnings)]
    return summary


def _counted(warnings: list[tuple[str, str]]) -> list[str]:
    """One line per kind of warning, with its count and first utterance."""
    ids: dict[str, list[str]] = {}
    for what, utterance in dict.fromkeys(warnings):
        ids.setdefault(what, []).append(utterance)
    return [
        f"{found[0]}: {what}" if len(found) == 1 else f"{len(found)} utterances ({found[0]}, …): {what}"
        for what, found in sorted(ids.items())
    ]


def _check(plan: Plan, store: Store) -> dict[str, float]:
    """`--check N`: measure, and note the figures in each spec's provenance."""
    if not plan.request.check:
        return {}
    from .check import deviations

    found = deviations(plan, plan.request.check, device_of(plan))
    for feature in plan.features:
        spec = feature.wanted.spec
        if spec.name in found:
            store.add(spec).annotate(check={"utterances": plan.request.check, "max_relative": found[spec.name]})
    return found
