"""Parts as tasks for other processes: each computes and publishes one, and sends a small record back.

On a dask cluster a part is a lease. Any worker may take it, twice if need be: what is published already is not
computed again. A part that kills whoever computes it is cut in two until one utterance (and one feature) is left, and
that one is quarantined by name.
"""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from ser import engines
from ser.cache.part import PartRows, Quarantine, part_name
from ser.cache.store import Feature, open_store
from ser.engines.cluster import POLL_SECONDS
from ser.errors import SerError

from .extractors import ResolvedFeature, choose_device
from .plan import OnProgress, Part, Plan, Utterance
from .worker import PartWatcher, Record, Setup, Worker

SHARE = 20  # a look at the store waits so many times what the last one took: a slow disk is not kept busy by looking
LACKS, THERE = 1, 2  # an utterance in the eyes of a feature; 0: nothing to do for it


class StoreProgress:
    """Counts what is in the store of all that the plan lacked, whoever has published it.

    So it goes on where a command that was killed has left workers behind, and where another works on the same store.
    An utterance of a stage is done when every feature of that stage has it. A look costs a listing per feature, and
    each part is read once.
    """

    def __init__(self, plan: Plan, parts: Iterable[Part], report: OnProgress | None) -> None:
        self.report = report or (lambda _stage, _done, _total: None)
        self.corpus = plan.manifest.corpus
        self.total: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._told: dict[str, int] = {}
        self._next = 0.0
        # By number, one byte for each utterance: a million of them in five features shall cost little.
        self._numbers: dict[str, int] = {id_: number for number, id_ in enumerate(plan.manifest.ids)}
        features = [feature for feature in plan.features if feature.missing]
        self._stages = {feature.wanted.spec.fingerprint: feature.wanted.spec.feature for feature in features}
        self._keys = {one.wanted.spec.fingerprint: plan.manifest.keys(one.wanted.spec.modality) for one in features}
        self._lacks = {name: bytearray(len(plan.manifest)) for name in self._stages}
        self._open = {stage: array("H", bytes(2 * len(plan.manifest))) for stage in self._stages.values()}
        self._arrivals = {
            one.wanted.spec.fingerprint: PartWatcher(
                plan.request.store / one.wanted.spec.feature / one.wanted.spec.fingerprint, one.parts
            )
            for one in features
        }
        for part in parts:
            known = {utterance.id for utterance in part.utterances if utterance.problem}  # nothing to do for these
            for name, ids in part.missing.items():
                for id_ in ids - known:
                    number, waiting = self._numbers[id_], self._open[self._stages[name]]
                    self._lacks[name][number] = LACKS
                    self.total[self._stages[name]] += not waiting[number]
                    waiting[number] += 1

    def look(self, anew: bool = False) -> None:
        """Look at the store and report, unless it was looked at a moment ago."""
        if not anew and time.monotonic() < self._next:
            return
        begun = time.monotonic()
        for name, arrivals in self._arrivals.items():
            for record in arrivals.new():
                if record.corpus == self.corpus:
                    for id_, digest in zip(record.ids, record.inputs, strict=True):
                        self._there(name, id_, digest)
                    for entry in record.quarantined:
                        self._there(name, entry.id, entry.input)
        self._tell()
        self._next = time.monotonic() + max(POLL_SECONDS, SHARE * (time.monotonic() - begun))

    def add(self, record: Record) -> None:
        """A lease that came back: what is quarantined again stands in a part that was there before."""
        for name, found in record.quarantined.items():
            for entry in found:
                self._there(name, entry.id, entry.input)

    def left(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts as they are taken, each without what had come into the store at the last look."""
        for part in parts:
            missing = {name: self._still(name, ids) for name, ids in part.missing.items()}
            if (some := part.only(missing)) is not None:
                yield some

    def _still(self, name: str, ids: frozenset[str]) -> frozenset[str]:
        return frozenset(id_ for id_ in ids if self._lacks[name][self._numbers[id_]] != THERE)

    def _there(self, name: str, id_: str, digest: str | None) -> None:
        number = self._numbers.get(id_)
        if number is None or self._lacks[name][number] != LACKS or self._keys[name][number][2] != digest:
            return
        stage = self._stages[name]
        self._lacks[name][number] = THERE
        self._open[stage][number] -= 1
        self._done[stage] += not self._open[stage][number]

    def _tell(self) -> None:
        for stage, total in self.total.items():
            if self._told.get(stage) != self._done[stage]:
                self._told[stage] = self._done[stage]
                self.report(stage, self._done[stage], total)


GPU_NODE_THREADS = 8  # that decode for one GPU worker and run its CPU extractors, unless it declares CPU=…


@dataclass(frozen=True)
class Task:
    """One part, for a worker process."""

    setup: Setup
    part: Part

    @property
    def name(self) -> str:
        """For messages."""
        return self.part.name


def extract_part(task: Task) -> Record:
    """Compute and publish one part: idempotent, and small to send back."""
    return _extract(task.setup, task.part)


def _extract(setup: Setup, part: Part, real: Setup | None = None) -> Record:
    """With the passes that this process holds for a setup; `real` has in it what only this machine can tell."""
    with engines.cached(setup, lambda: Worker(real or setup)) as worker:
        [record] = worker.run([part])
    return record


def run_leases(
    setup: Setup, parts: Iterable[Part], scheduler: str, insecure: bool, meanwhile: Callable[[], None]
) -> Iterator[Record]:
    """The records of all parts, computed on a dask cluster, with a look at `meanwhile` every now and then.

    Raises what `engines.Cluster.run` raises.
    """
    with engines.Cluster(scheduler, insecure) as cluster:
        asked = setup.device.startswith("cuda") or (setup.device == "auto" and "GPU" in cluster.offers)
        on_gpu = asked and not cluster.own and any(one.checkpoint for one in setup.wanted)

        def needs(lease: Task) -> Mapping[str, float]:
            if on_gpu and any(one.checkpoint for one in lease.setup.wanted):
                return {"GPU": 1.0}
            return some_cpu(cluster.kinds)

        known: dict[Path, Feature] = {}
        cut = partial(split, known=known)
        yield from cluster.run(compute, leases(setup, parts, on_gpu), needs, cut, lost, meanwhile)


def some_cpu(kinds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What a lease without a model asks for, given what each kind of worker declares.

    A `CPU` where whoever has no GPU says that he has one: else a plain worker would stand idle for not having said so.
    """
    said = [("CPU" in kind, "GPU" in kind) for kind in kinds]
    return {"CPU": 1.0} if any(cpu for cpu, _ in said) and all(cpu or gpu for cpu, gpu in said) else {}


def leases(setup: Setup, parts: Iterable[Part], on_gpu: bool) -> Iterator[Task]:
    """The parts as leases; with `on_gpu` the features that need a model apart from those that a CPU computes."""
    here = replace(
        setup,
        store=setup.store.absolute(),
        root=setup.root.absolute(),
        wanted=tuple(map(_with_absolute_path, setup.wanted)),
    )
    kinds = [here]
    if on_gpu:
        modelled = [one for one in here.wanted if one.checkpoint]
        rest = [one for one in here.wanted if not one.checkpoint]
        kinds = [replace(here, wanted=tuple(some)) for some in (modelled, rest) if some]
    for part in parts:
        for kind in kinds:
            mine = {one.spec.fingerprint for one in kind.wanted}
            if (some := part.only({name: ids for name, ids in part.missing.items() if name in mine})) is not None:
                yield Task(kind, some)


def _with_absolute_path(wanted: ResolvedFeature) -> ResolvedFeature:
    if wanted.checkpoint is None:
        return wanted
    return replace(wanted, checkpoint=replace(wanted.checkpoint, path=wanted.checkpoint.path.absolute()))


def compute(lease: Task) -> Record:
    """Compute and publish, on a dask worker, what no worker has published before."""
    setup = lease.setup
    if not setup.store.is_dir():
        raise SerError(f"a dask worker sees no {setup.store}; workers need the same files under the same paths")
    if dict(setup.written_by).get("ser") != version("ser"):
        raise SerError(f"a dask worker has ser {version('ser')}; install the version that this command has")
    left = {name: ids for name, ids in lease.part.missing.items() if not _published(setup, lease.part, name)}
    part = lease.part.only(left)
    return extract_here(setup, part) if part else Record(lease.part.name)


def extract_here(setup: Setup, part: Part) -> Record:
    """As `extract_part`, with the device, threads and name of the dask worker that this is."""
    device = choose_device(setup.device, setup.wanted)
    threads = 1  # dask has a thread per core already
    if device.startswith("cuda"):
        threads = int(engines.resources().get("CPU", min(GPU_NODE_THREADS, engines.cores())))
    written_by = (*setup.written_by, *engines.here().items())
    real = replace(setup, device=device, threads=max(1, threads), written_by=written_by)
    return _extract(setup, part, real)


def split(lease: Task, known: dict[Path, Feature] | None = None) -> list[Task] | None:
    """A lease that kills, cut in two; None if it cannot be cut. What the store has by now is left out.

    `known` keeps features by folder, and what they know of their parts, from one call to the next.
    """
    known = {} if known is None else known
    part = lease.part.only({name: _not_there(lease, name, known) for name in lease.part.missing})
    if part is None:
        return []
    if part != lease.part:
        return [replace(lease, part=part)]
    if len(part.utterances) > 1:
        half = len(part.utterances) // 2
        cuts = [{u.id for u in some} for some in (part.utterances[:half], part.utterances[half:])]
        pieces = [part.only({name: ids & cut for name, ids in part.missing.items()}) for cut in cuts]
    elif len(part.missing) > 1:
        pieces = [part.only({name: ids}) for name, ids in part.missing.items()]
    else:
        return None
    return [replace(lease, part=piece) for piece in pieces if piece]


def lost(lease: Task, reason: str) -> Record:
    """The record of one utterance that kills whoever computes it; quarantined in the store if the run says so."""
    setup, part = lease.setup, lease.part
    record = Record(part.name)
    for one in setup.wanted:
        bad = [
            Quarantine(u.id, u.digest, u.file, reason)
            for u in part.utterances
            if u.id in part.missing.get(one.spec.fingerprint, ())
        ]
        if not bad:
            continue
        if setup.keep_quarantine:
            feature = open_store(setup.store).add(one.spec)
            feature.publish(PartRows(setup.corpus, quarantined=bad), setup.backend, dict(setup.written_by))
        record.quarantined[one.spec.fingerprint] = bad
    return record


def _folder(setup: Setup, fingerprint: str) -> Path:
    [spec] = [one.spec for one in setup.wanted if one.spec.fingerprint == fingerprint]
    return setup.store / spec.feature / fingerprint


def _published(setup: Setup, part: Part, fingerprint: str) -> bool:
    """Whether exactly this part is there: the one that comes of it if no utterance is quarantined."""
    mine = [u for u in part.utterances if u.id in part.missing[fingerprint]]
    name = part_name(setup.corpus, [u.id for u in mine], [u.digest or "" for u in mine])
    return (_folder(setup, fingerprint) / "parts" / name / "part.json").exists()


def _not_there(lease: Task, fingerprint: str, known: dict[Path, Feature]) -> frozenset[str]:
    """The ids of a lease that the store still lacks, however the parts that hold them were cut."""
    folder = _folder(lease.setup, fingerprint)
    if folder not in known:
        known[folder] = Feature(lease.setup.store, folder)
    feature = known[folder]
    feature.parts()

    def there(utterance: Utterance) -> bool:
        return feature.place((lease.setup.corpus, utterance.id, utterance.digest)) is not None

    ids = lease.part.missing[fingerprint]
    return frozenset(u.id for u in lease.part.utterances if u.id in ids and not there(u))
