"""Compute one part at a time: decode → extractors in threads → model passes → publish.

Arrays never leave the process that made them: a part is published where it is computed, and only a small record of it
goes back.
"""

import gc
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ser.cache.layout import Quarantine
from ser.cache.parts import PartRows
from ser.cache.spec import Modality
from ser.cache.store import open_store

from .batching import GPU_SECONDS
from .features import Wanted
from .opening import open_passes
from .passes import Pass, Unusable
from .plan import Part
from .running import Pool, Pools, Running

AHEAD = 2  # parts in hand at once, so that no core waits at the end of one

OnStage = Callable[[str, int], None]  # stage, utterances done


@dataclass(frozen=True)
class Setup:
    """What all parts of a run share."""

    store: Path
    root: Path
    corpus: str
    wanted: tuple[Wanted, ...]
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
        self, setup: Setup, on_stage: OnStage | None = None, opened: Mapping[Modality, list[Pass]] | None = None
    ) -> None:
        self.setup, self.on_stage = setup, on_stage or (lambda _stage, _count: None)
        self.on_gpu = setup.device.startswith("cuda")
        self.most = setup.batch_seconds or (GPU_SECONDS if self.on_gpu else None)
        self.store = open_store(setup.store)
        self.passes: dict[Modality, list[Pass]] = dict(opened or {})
        self._lock, self._opening = threading.Lock(), threading.Lock()

    def close(self) -> None:
        """Let the passes go, and the memory of a GPU that they took."""
        self.passes.clear()
        if self.on_gpu:
            import torch

            gc.collect()  # a module and its hooks know each other
            torch.cuda.empty_cache()

    def _passes(self, modality: Modality) -> list[Pass]:
        with self._opening:
            if modality not in self.passes:  # an all-text run loads no speech model
                mine = [one for one in self.setup.wanted if one.spec.modality == modality]
                self.passes[modality] = open_passes(mine, self.setup.device, self.most)
            return self.passes[modality]

    def run(self, parts: Iterable[Part]) -> Iterator[Record]:
        """Compute and publish parts, yielding each record when its part is safe on disk."""
        with self._pools() as pools:
            ahead: deque[Running] = deque()
            published: deque[Future[Record]] = deque()
            for part in parts:
                ahead.append(Running(self, part, Record(part.name), self._passes(part.modality), pools))
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

    def _publish(self, running: Running) -> Record:
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
                if isinstance(outcome, Unusable):
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

    def count_batch(self, record: Record, one: Pass) -> None:
        """One more batch of each feature that a pass computes."""
        with self._lock:
            record.batches.update(spec.fingerprint for spec in one.specs)
