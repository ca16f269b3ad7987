"""`ser features`: carry out a plan, as in `extract(plan(Request(Path("/data/IEMOCAP"), features="hubert,is13")))`."""

import time
from collections.abc import Generator, Sized
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from ser import engines
from ser.cache.errors import CorpusError, SerError
from ser.cache.layout import Quarantine
from ser.cache.store import Store, open_store

from .leases import Task, extract_part, run_leases
from .opening import choose_device
from .plan import Part, Plan, plan
from .progress import OnProgress, Told
from .request import Request
from .seen import Seen
from .work import Record, Setup, Worker

__all__ = ["Plan", "Request", "Stopped", "Summary", "extract", "plan"]

NAMED = 5  # faults that a message names before it counts the rest


class Stopped(CorpusError):
    """Something that cannot be used, and `--on-error fail`. `quarantined` lists utterances by feature name."""

    def __init__(self, message: str, quarantined: dict[str, list[Quarantine]]) -> None:
        super().__init__(message)
        self.quarantined = quarantined

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.quarantined)


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

    @property
    def sentence(self) -> str:
        """The closing line, such as "42 min of audio in 55 s: 46× real time; limited by is13"."""
        slowest = f"; limited by {next(iter(self.stages))}" if self.stages else ""
        if not self.audio_seconds:
            return f"done in {self.seconds:.1f} s{slowest}"
        speed = self.audio_seconds / max(self.seconds, 1e-9)
        return f"{spoken(self.audio_seconds)} of audio in {spoken(self.seconds)}: {speed:.0f}× real time{slowest}"


def extract(plan: Plan, on_progress: OnProgress | None = None) -> Summary:
    """Compute and publish all that is missing. What is there already is not touched, so a killed run resumes.

    Raises `Stopped` for a corpus that is not whole, and at the first part with unusable utterances, unless the
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
    """Raises `Stopped` for all that the scan found unusable, unless the request says `on_error="skip"`."""
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
        seen = Seen(plan, parts, on_progress)
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


def _stopped(quarantined: dict[str, list[Quarantine]], refused: list[str] | None = None) -> Stopped:
    told = [f"{_count(refused, 'problem')} with the corpus: {_listed(refused)}"] if refused else []
    unique = list({(q.id, q.reason): q for found in quarantined.values() for q in found}.values())
    if unique:
        named = [f"{q.id} ({q.path}): {q.reason}" if q.path else f"{q.id}: {q.reason}" for q in unique]
        told.append(f"{_count(unique, 'utterance')} cannot be used for {', '.join(quarantined)}: {_listed(named)}")
    way_out = "mend the corpus, or go on without them by --on-error skip"
    return Stopped("; ".join([*told, way_out]), quarantined)


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


def spoken(seconds: float) -> str:
    """A duration for people: "55 s", "42 min", "12.4 h"."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
