"""Compute one part at a time: decode → extractors in threads → model passes → publish.

Arrays never leave the process that made them: a part is published where it is computed, and only a small record of it
goes back.
"""

import contextlib
import gc
import os
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ser.cache.part import PartRecord, PartRows, Quarantine, read_part_record
from ser.cache.spec import Modality
from ser.cache.store import open_store
from ser.engines import is_out_of_memory
from ser.errors import SerError

from .audio import Clip, decode, locate
from .extractors import GPU_SECONDS, Extractor, Outcome, ResolvedFeature, Rows, UtteranceError, batches, load_extractors
from .plan import Part, Utterance

SETTLED = 3.0  # seconds after which a folder's time of change says so if it changes again: some clocks tick every two


class PartWatcher:
    """What is published in `<store>/<feature>/<fingerprint>/` from now on, or beside the parts that are `known`.

    A look lists the folder, unless it has not changed since the last one, and reads each new `part.json` once.
    """

    def __init__(self, folder: Path, known: Iterable[str] | None = None) -> None:
        self.folder = folder / "parts"
        self._unchanged: int | None = None  # the folder's time of change, where no later change can have the same
        self._known = set(self._listed() if known is None else known)

    def new(self) -> Iterator[PartRecord]:
        """What every part says that has come since the last look; `Feature.parts` names those that make no sense."""
        names = [name for name in self._listed() if name not in self._known and not name.startswith(".")]
        self._known.update(names)
        for name in names:
            with contextlib.suppress(SerError):
                yield read_part_record(self.folder / name)

    def _listed(self) -> list[str]:
        """All names in the folder; none at all where it is as it was."""
        begun = time.time()
        try:
            opened = os.open(self.folder, os.O_RDONLY)  # NFS looks at the server when a folder is opened, not at `stat`
        except FileNotFoundError:
            return []
        try:
            changed = os.fstat(opened).st_mtime_ns
            if changed == self._unchanged:
                return []
            self._unchanged = changed if begun - changed / 1e9 > SETTLED else None
            return os.listdir(opened)  # noqa: PTH208 (thousands)
        finally:
            os.close(opened)


class Pool(ThreadPoolExecutor):
    """A pool that knows its width."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__(width, name)
        self.width = width


@dataclass(frozen=True)
class Pools:
    """Where decoding, the CPU's extractors, the models and publishing run; the first three may be one."""

    decoders: Pool
    cpu: Pool
    models: Pool
    writer: Pool


class PartPipeline:
    """One part in the pools: the future of every outcome."""

    def __init__(self, worker: "Worker", part: Part, record: "Record", passes: list[Extractor], pools: Pools) -> None:
        self.worker, self.part, self.record, self.pools = worker, part, record, pools
        self.inputs: dict[str, Future[Any]] = {}
        self.outcomes: list[tuple[Extractor, list[Utterance], Future[list[Outcome]], int]] = []
        self.arrivals = {
            one.spec.fingerprint: PartWatcher(worker.store.path / one.spec.feature / one.spec.fingerprint)
            for one in worker.setup.wanted
            if one.spec.fingerprint in part.missing
        }
        # First in, first out: whatever an extractor waits for was submitted before it.
        for utterance in part.utterances:
            self.inputs[utterance.id] = self._input(utterance)
        for batched in (False, True):
            for one in passes:
                if one.batched is batched:
                    self._submit(one)

    def _input(self, utterance: Utterance) -> Future[Any]:
        if utterance.problem is None and self.part.modality == "audio":
            return self.pools.decoders.submit(self._decode, utterance)
        known: Future[Any] = Future()
        known.set_result(UtteranceError(utterance.problem) if utterance.problem else utterance.text)
        return known

    def _decode(self, utterance: Utterance) -> Clip | UtteranceError:
        def once() -> Clip | UtteranceError:
            try:
                return decode(locate(self.worker.setup.root, utterance.audio or ""), utterance.digest)
            except UtteranceError as fault:
                return fault

        clip: Clip | UtteranceError = self.worker.timed(self.record, "decode", 1, self.pools.decoders.width, once)
        return clip

    def _submit(self, one: Extractor) -> None:
        asked = frozenset().union(*(self.part.missing.get(spec.fingerprint, frozenset()) for spec in one.specs))
        utterances = [utterance for utterance in self.part.utterances if utterance.id in asked]
        # Equal transcripts are computed once; no two audio files are taken to be equal.
        groups: dict[str, list[Utterance]] = {}
        for utterance in utterances:
            same = utterance.text or "" if self.part.modality == "text" and not utterance.problem else utterance.id
            groups.setdefault(same, []).append(utterance)
        units = list(groups.values())
        pool = self.pools.models if one.batched else self.pools.cpu
        for batch in batches([unit[0].length for unit in units], self.worker.most if one.batched else None):
            chosen = [units[index] for index in batch]
            future = pool.submit(self._compute, one, [unit[0] for unit in chosen], sum(map(len, chosen)))
            for position, unit in enumerate(chosen):
                self.outcomes.append((one, unit, future, position))

    def _compute(self, one: Extractor, utterances: list[Utterance], count: int) -> list[Outcome]:
        inputs = [self.inputs[utterance.id].result() for utterance in utterances]
        usable = [row for row, value in enumerate(inputs) if not isinstance(value, UtteranceError)]
        outcomes: list[Outcome] = list(inputs)
        if usable:
            threads = (self.pools.models if one.batched else self.pools.cpu).width
            made = self.worker.timed(
                self.record, one.stage, count, threads, lambda: self._run(one, utterances, inputs, usable)
            )
            for row, outcome in zip(usable, made, strict=True):
                outcomes[row] = outcome
        return outcomes

    def _run(self, one: Extractor, utterances: list[Utterance], inputs: list[Any], usable: list[int]) -> list[Outcome]:
        self.worker.count_batch(self.record, one)
        if not self.worker.on_gpu:
            one_thread()
        try:
            return one.run([inputs[row] for row in usable])
        except (MemoryError, RuntimeError) as fault:
            if is_out_of_memory(fault):
                raise _out_of_memory(one, utterances[usable[0]]) from fault
            raise

    def there_by_now(self, fingerprint: str) -> set[tuple[str, str | None]]:
        """Id and digest of the rows that others have published since the part was begun.

        A process that is stopped for a while may find that its part was given away, cut up (what kills a worker is cut)
        and published under other names. If it is stopped again between this look and the rename of what it writes, or
        two look at the same moment, rows do stand twice: they are equal, and the first by name counts.
        """
        new = self.arrivals[fingerprint].new()
        mine = (record for record in new if record.corpus == self.worker.setup.corpus)
        return {pair for record in mine for pair in zip(record.ids, record.inputs, strict=True)}

    def results(self) -> dict[str, dict[str, Rows | UtteranceError]]:
        """Fingerprint → id → rows, when all is done."""
        found: dict[str, dict[str, Rows | UtteranceError]] = {name: {} for name in self.part.missing}
        for one, unit, future, position in self.outcomes:
            outcome = future.result()[position]
            for spec in one.specs:
                for utterance in unit:
                    rows = outcome if isinstance(outcome, UtteranceError) else outcome[spec.fingerprint]
                    found[spec.fingerprint][utterance.id] = rows
                    if isinstance(rows, Rows):
                        self.record.warnings += [(warning, utterance.id) for warning in rows.warnings]
        for utterance in self.part.utterances:
            clip = self.inputs[utterance.id].result()
            if isinstance(clip, Clip):
                self.record.audio_seconds += clip.seconds
                self.record.warnings += [(warning, utterance.id) for warning in dict.fromkeys(clip.warnings)]
        self.inputs.clear()
        return found


def _out_of_memory(one: Extractor, utterance: Utterance) -> SerError:
    way_out = "lower --batch-seconds" if one.batched else "cut it into shorter utterances"
    if one.batched and one.modality == "audio":
        way_out += f", or ask for {one.stage}:window=30"
    return SerError(f"memory ran out in {one.stage} on {utterance.id}; {way_out}")


def one_thread() -> None:
    """The pool has a thread per core: torch shall not start more of its own in each."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


AHEAD = 2  # parts in hand at once, so that no core waits at the end of one

OnStage = Callable[[str, int], None]  # stage, utterances done


@dataclass(frozen=True)
class Setup:
    """What all parts of a run share."""

    store: Path
    root: Path
    corpus: str
    wanted: tuple[ResolvedFeature, ...]
    backend: str
    device: str
    threads: int
    batch_seconds: float | None
    keep_quarantine: bool  # publish what cannot be used as quarantined; else leave it out, to be tried again
    written_by: tuple[tuple[str, Any], ...] = ()


@dataclass
class Record:
    """What became of one part: counts by fingerprint, and by stage the seconds that it kept its threads busy."""

    part: str
    computed: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    quarantined: dict[str, list[Quarantine]] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    audio_seconds: float = 0.0
    warnings: list[tuple[str, str]] = field(default_factory=list)  # what, utterance
    stages: Counter[str] = field(default_factory=Counter)  # utterances done


class Worker:
    """Computes parts with one set of open passes.

    On a CPU every stage shares one pool with a thread per core, and each thread computes alone: utterances are
    independent, so this scales where threads within one small operation do not. On a GPU the models have threads of
    their own, fed by decoding threads that never wait behind the slower CPU extractors.
    """

    def __init__(
        self, setup: Setup, on_stage: OnStage | None = None, opened: Mapping[Modality, list[Extractor]] | None = None
    ) -> None:
        self.setup, self.on_stage = setup, on_stage or (lambda _stage, _count: None)
        self.on_gpu = setup.device.startswith("cuda")
        self.most = setup.batch_seconds or (GPU_SECONDS if self.on_gpu else None)
        self.store = open_store(setup.store)
        self.passes: dict[Modality, list[Extractor]] = dict(opened or {})
        self._lock, self._opening = threading.Lock(), threading.Lock()

    def close(self) -> None:
        """Let the passes go, and the memory of a GPU that they took."""
        self.passes.clear()
        if self.on_gpu:
            import torch

            gc.collect()  # a module and its hooks know each other
            torch.cuda.empty_cache()

    def _passes(self, modality: Modality) -> list[Extractor]:
        with self._opening:
            if modality not in self.passes:  # an all-text run loads no speech model
                mine = [one for one in self.setup.wanted if one.spec.modality == modality]
                self.passes[modality] = load_extractors(mine, self.setup.device, self.most)
            return self.passes[modality]

    def run(self, parts: Iterable[Part]) -> Iterator[Record]:
        """Compute and publish parts, yielding each record when its part is safe on disk."""
        with self._pools() as pools:
            ahead: deque[PartPipeline] = deque()
            published: deque[Future[Record]] = deque()
            for part in parts:
                ahead.append(PartPipeline(self, part, Record(part.name), self._passes(part.modality), pools))
                if len(ahead) > AHEAD:
                    published.append(pools.writer.submit(self._publish, ahead.popleft()))
                while len(published) > AHEAD or (published and published[0].done()):
                    yield published.popleft().result()
            published += [pools.writer.submit(self._publish, running) for running in ahead]
            ahead.clear()
            for future in published:
                yield future.result()

    @contextmanager
    def _pools(self) -> Iterator[Pools]:
        threads = self.setup.threads
        cpu = Pool(threads, "ser-cpu")
        # Two, so that one batch's rows are taken from the GPU while the next is computed.
        gpu = Pool(2, "ser-gpu") if self.on_gpu else cpu
        decoders = Pool(max(2, threads // 4), "ser-decode") if self.on_gpu else cpu
        pools = Pools(decoders, cpu, gpu, Pool(1, "ser-write"))
        try:
            yield pools
        finally:
            # On Ctrl-C: what runs ends (an utterance, a publication), what waits never starts.
            for pool in (decoders, cpu, gpu, pools.writer):
                pool.shutdown(wait=False, cancel_futures=True)
            for pool in (decoders, cpu, gpu, pools.writer):
                pool.shutdown(wait=True)

    def _publish(self, running: PartPipeline) -> Record:
        record, part = running.record, running.part
        results = running.results()
        start = time.perf_counter()
        for one in self.setup.wanted:
            name, missing = one.spec.fingerprint, part.missing.get(one.spec.fingerprint, frozenset())
            if not missing:
                continue
            rows, inputs, bad = PartRows(self.setup.corpus), list[str](), list[Quarantine]()
            there = running.there_by_now(name)
            for utterance in part.utterances:
                if utterance.id not in missing or (utterance.id, utterance.digest) in there:
                    continue
                outcome = results[name][utterance.id]
                if isinstance(outcome, UtteranceError):
                    bad.append(Quarantine(utterance.id, utterance.digest, utterance.file, str(outcome)))
                else:
                    rows.ids.append(utterance.id)
                    inputs.append(utterance.digest or "")
                    rows.arrays.append(outcome.values)
                    for key, extra in outcome.extras.items():
                        rows.extras.setdefault(key, []).append(extra)
            rows.inputs = inputs
            if self.setup.keep_quarantine:
                rows.quarantined = bad
            if rows.ids or rows.quarantined:
                self.store.add(one.spec).publish(rows, self.setup.backend, dict(self.setup.written_by))
            record.computed[name] += len(rows.ids)
            if bad:
                record.quarantined[name] = bad
        record.seconds["write"] += time.perf_counter() - start
        return record

    def timed(self, record: Record, stage: str, count: int, threads: int, function: Callable[[], Any]) -> Any:
        """Run a stage that has so many threads, and add its share of the clock to the part's record."""
        start = time.perf_counter()
        value = function()
        with self._lock:
            record.seconds[stage] += (time.perf_counter() - start) / threads
            record.stages[stage] += count
            self.on_stage(stage, count)
        return value

    def count_batch(self, record: Record, one: Extractor) -> None:
        """One more batch of each feature that a pass computes."""
        with self._lock:
            record.batches.update(spec.fingerprint for spec in one.specs)
