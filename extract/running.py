"""One part in the pools of a worker: what waits for what, and what came of it."""

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ser.cache.errors import SerError
from ser.engines import memory_ended

from .arrivals import Arrivals
from .audio import Clip, decode, locate
from .batching import batches
from .passes import Outcome, Pass, Rows, Unusable
from .plan import Part, Utterance

if TYPE_CHECKING:
    from .work import Record, Worker


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


class Running:
    """One part in the pools: the future of every outcome."""

    def __init__(self, worker: "Worker", part: Part, record: "Record", passes: list[Pass], pools: Pools) -> None:
        self.worker, self.part, self.record, self.pools = worker, part, record, pools
        self.inputs: dict[str, Future[Any]] = {}
        self.outcomes: list[tuple[Pass, list[Utterance], Future[list[Outcome]], int]] = []
        self.arrivals = {
            one.spec.fingerprint: Arrivals(worker.store.path / one.spec.feature / one.spec.fingerprint)
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
        known.set_result(Unusable(utterance.problem) if utterance.problem else utterance.text)
        return known

    def _decode(self, utterance: Utterance) -> Clip | Unusable:
        def once() -> Clip | Unusable:
            try:
                return decode(locate(self.worker.setup.root, utterance.audio or ""), utterance.digest)
            except Unusable as fault:
                return fault

        clip: Clip | Unusable = self.worker.timed(self.record, "decode", 1, self.pools.decoders.width, once)
        return clip

    def _submit(self, one: Pass) -> None:
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

    def _compute(self, one: Pass, utterances: list[Utterance], count: int) -> list[Outcome]:
        inputs = [self.inputs[utterance.id].result() for utterance in utterances]
        usable = [row for row, value in enumerate(inputs) if not isinstance(value, Unusable)]
        outcomes: list[Outcome] = list(inputs)
        if usable:
            threads = (self.pools.models if one.batched else self.pools.cpu).width
            made = self.worker.timed(
                self.record, one.stage, count, threads, lambda: self._run(one, utterances, inputs, usable)
            )
            for row, outcome in zip(usable, made, strict=True):
                outcomes[row] = outcome
        return outcomes

    def _run(self, one: Pass, utterances: list[Utterance], inputs: list[Any], usable: list[int]) -> list[Outcome]:
        self.worker.count_batch(self.record, one)
        if not self.worker.on_gpu:
            one_thread()
        try:
            return one.run([inputs[row] for row in usable])
        except (MemoryError, RuntimeError) as fault:
            if memory_ended(fault):
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

    def results(self) -> dict[str, dict[str, Rows | Unusable]]:
        """Fingerprint → id → rows, when all is done."""
        found: dict[str, dict[str, Rows | Unusable]] = {name: {} for name in self.part.missing}
        for one, unit, future, position in self.outcomes:
            outcome = future.result()[position]
            for spec in one.specs:
                for utterance in unit:
                    rows = outcome if isinstance(outcome, Unusable) else outcome[spec.fingerprint]
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


def _out_of_memory(one: Pass, utterance: Utterance) -> SerError:
    way_out = "lower --batch-seconds" if one.batched else "cut it into shorter utterances"
    if one.batched and one.modality == "audio":
        way_out += f", or ask for {one.stage}:window=30"
    return SerError(f"memory ran out in {one.stage} on {utterance.id}; {way_out}")


def one_thread() -> None:
    """The pool has a thread per core: torch shall not start more of its own in each."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
