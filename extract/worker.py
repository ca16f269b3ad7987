"""Compute one task at a time: decode → extractors in threads → publish; here, in another process,
or on dask.

Arrays never leave the process that made them: a part is published where it is computed, and only a
small `TaskResult` goes back.
"""

import contextlib
import gc
import os
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from ser.cache.feature import part_names
from ser.cache.part import PartRecord, Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows, part_name
from ser.cache.spec import Spec
from ser.cache.store import Store
from ser.corpus.names import Modality
from ser.disk.records import read_checksummed
from ser.engines import cached, cores, is_out_of_memory
from ser.errors import DISTRIBUTION, SerError, UtteranceError

from .audio import Clip, decode
from .batches import GPU_SECONDS, batches
from .extractor import Extracted, Extractor, FeatureRows
from .plan import ExtractionTask, Utterance, WorkerConfig
from .resolve import load_extractors

AHEAD = 2  # tasks in work beside those being written, so that no core waits at the end of one
BATCHES = 2  # on a GPU at once: the rows of one are copied from it while the next is computed
GPU_WRITERS = 4  # a part of HuBERT's rows takes longer to write than a GPU takes to compute it
GPU_NODE_THREADS = (
    8  # that decode for one GPU worker and run its CPU extractors, unless it declares CPU=…
)


@dataclass
class TaskResult:
    """The result of one task, or of several: counts by feature, and by stage its share of the time."""

    computed: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    quarantined: dict[str, list[Quarantine]] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    audio_seconds: float = 0.0
    warnings: list[tuple[str, str]] = field(default_factory=list)  # each with its utterance's id
    stages: Counter[str] = field(default_factory=Counter)  # utterances done

    def add(self, other: "TaskResult") -> None:
        """Add what another task has computed, its seconds and warnings; not its quarantined
        utterances and stages.
        """
        self.computed += other.computed
        self.batches += other.batches
        self.audio_seconds += other.audio_seconds
        self.warnings += other.warnings
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


def read_input(utterance: Utterance, modality: Modality, root: Path) -> Clip | str | UtteranceError:
    """An extractor's input: the utterance's decoded audio or its transcript, or why it cannot be
    used.

    Raises `CorpusError` if the audio cannot be read or has changed since the scan: no fault of the
    utterance.
    """
    if modality == "text":
        return utterance.source or ""
    try:
        return decode(root / (utterance.source or ""), utterance.digest)
    except UtteranceError as fault:
        return fault


class Pool(ThreadPoolExecutor):
    """Threads, and their number."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__(width, name)
        self.width = width


class Pools(contextlib.ExitStack):
    """The thread pools of one run's stages; on a CPU all but the writers share one.

    When they close, as on Ctrl-C, running work ends (an utterance, a publication), and waiting work
    never starts.
    """

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__()
        on_gpu, cuda = config.device != "cpu", config.device.startswith("cuda")
        self.writers = self.enter_context(Pool(GPU_WRITERS if on_gpu else 1, "ser-write"))
        self.cpu = self.models = self.decoders = self.enter_context(Pool(config.threads, "ser-cpu"))
        if on_gpu:
            self.models = self.enter_context(Pool(BATCHES if cuda else 1, "ser-gpu"))
            self.decoders = self.enter_context(Pool(max(2, config.threads // 4), "ser-decode"))
        for pool in (
            self.decoders,
            self.models,
            self.cpu,
            self.writers,
        ):  # all of them, before any is waited for
            self.callback(pool.shutdown, wait=False, cancel_futures=True)


class PartPipeline:
    """One task in a worker's pools: a future for every input, and for every batch of every
    extractor.
    """

    def __init__(self, worker: "Worker", task: ExtractionTask, pools: Pools) -> None:
        self.worker, self.task, self.pools, self.result = (
            worker,
            task,
            pools,
            TaskResult(stages=task.stages),
        )
        self.before = {
            spec.fingerprint: part_names(worker.config.asked.store / spec.folder)
            for spec in task.specs
        }
        # The part that the task makes if no utterance is quarantined: a feature that has it is
        # done.
        rows = task.utterances
        part = part_name(
            PartRows(
                worker.config.corpus, [row.id for row in rows], [row.digest or "" for row in rows]
            )
        )
        self.specs = [spec for spec in task.specs if part not in self.before[spec.fingerprint]]
        usable = [row for row in rows if not row.problem] if self.specs else []
        # First in, first out: the inputs that an extractor waits for were submitted before it.
        self.inputs = {row.id: pools.decoders.submit(self._read, row) for row in usable}
        self.outcomes: dict[
            tuple[str, str], FeatureRows | UtteranceError
        ] = {}  # by fingerprint and id
        self.computing: list[Future[list[str]]] = []  # of each batch, the names of its features
        # Equal transcripts are neighbours and computed once; audio files are never taken to be
        # equal.
        key = attrgetter("source" if task.modality == "text" else "id")
        units = [list(unit) for _, unit in groupby(usable, key)]
        extractors = worker.extractors(task.modality) if usable else []
        for extractor in sorted(extractors, key=attrgetter("batched")):
            stages = {spec.feature for spec in self.specs if spec in extractor.specs}
            pool, most = (pools.models, worker.most) if extractor.batched else (pools.cpu, None)
            for batch in batches(units, lambda unit: unit[0].length, most) if stages else ():
                self.computing.append(pool.submit(self._compute, extractor, batch, stages, pool))

    def _read(self, utterance: Utterance) -> Clip | str | UtteranceError:
        start = time.perf_counter()
        read = read_input(utterance, self.task.modality, self.worker.config.root)
        if self.task.modality == "audio":
            self._note({"decode"}, 1, start, self.pools.decoders)
        return read

    def _compute(
        self, extractor: Extractor, units: list[list[Utterance]], stages: set[str], pool: Pool
    ) -> list[str]:
        inputs: dict[str, Any] = {unit[0].id: self.inputs[unit[0].id].result() for unit in units}
        usable = {
            id_: value for id_, value in inputs.items() if not isinstance(value, UtteranceError)
        }
        start = time.perf_counter()
        if (
            "torch" in sys.modules
        ):  # the pool has a thread per core: torch must start no others, set for each thread
            sys.modules["torch"].set_num_threads(1)
        try:
            with self.worker.gpu if extractor.batched else contextlib.nullcontext():
                made = (
                    dict(zip(usable, extractor.run(list(usable.values())), strict=True))
                    if usable
                    else {}
                )
        except (MemoryError, RuntimeError) as fault:
            if not is_out_of_memory(fault):
                raise
            raise SerError(
                f"memory ran out in {extractor.label} on {next(iter(usable))}; lower --batch-seconds, or cut the "
                "utterance into shorter ones (a speech encoder does that by itself: ask for hubert:window=30)"
            ) from fault
        self._note(stages, sum(map(len, units)), start, pool)
        for unit in units:
            outcome: Extracted = made.get(unit[0].id, inputs[unit[0].id])
            for spec in extractor.specs:
                rows = outcome if isinstance(outcome, UtteranceError) else outcome[spec.fingerprint]
                self.outcomes.update({(spec.fingerprint, utterance.id): rows for utterance in unit})
        return [spec.name for spec in extractor.specs if usable]

    def _note(self, stages: set[str], count: int, start: float, pool: Pool) -> None:
        """One more batch is done: count its utterances for each stage, and share its time among the
        stages.
        """
        seconds = (time.perf_counter() - start) / pool.width
        with self.worker.lock:
            for stage in stages:
                self.result.seconds[stage] += seconds / len(stages)
                if self.worker.on_stage:
                    self.worker.on_stage(stage, count)

    def computed(self) -> TaskResult:
        """Wait for all rows."""
        for future in self.computing:
            self.result.batches.update(future.result())
        return self.result

    def publish(self) -> TaskResult:
        """Wait for all rows and write one part per feature."""
        config, result = self.worker.config, self.computed()
        for id_, read in self.inputs.items():
            if isinstance(clip := read.result(), Clip):
                result.audio_seconds += clip.seconds
                result.warnings += [(warning, id_) for warning in dict.fromkeys(clip.warnings)]
        self.inputs.clear()
        start = time.perf_counter()
        for spec in self.specs:
            published, inputs, bad = self._published(spec), list[str](), list[Quarantine]()
            rows = PartRows(config.corpus, inputs=inputs, finite=True)
            for utterance in self.task.utterances:
                if (utterance.id, utterance.digest) in published:
                    continue
                problem = utterance.problem
                outcome = (
                    UtteranceError(problem)
                    if problem
                    else self.outcomes[spec.fingerprint, utterance.id]
                )
                if isinstance(outcome, UtteranceError):
                    bad.append(utterance.quarantine(str(outcome)))
                    continue
                rows.ids.append(utterance.id)
                inputs.append(utterance.digest or "")
                rows.arrays.append(outcome.values)
                rows.finite &= outcome.finite
                for key, extra in outcome.extras.items():
                    rows.extras.setdefault(key, []).append(extra)
                result.warnings += [(warning, utterance.id) for warning in outcome.warnings]
            if config.asked.on_error == "skip":  # else it is left out, and tried again next time
                rows.quarantined = bad
            if rows.ids or rows.quarantined:
                feature = self.worker.store.add(spec)
                publish_part(feature, rows, config.asked.backend, config.written_by)
            result.computed[spec.name] += len(rows.ids)
            if bad:
                result.quarantined[spec.name] = bad
        result.seconds["write"] += (time.perf_counter() - start) / self.pools.writers.width
        return result

    def _published(self, spec: Spec) -> set[tuple[str, str | None]]:
        """Id and digest of the rows that others have published since the task started.

        While a process is suspended, its task may be given to others, cut up and published under
        other names. If it is suspended again between this check and the rename of its part, or if
        two processes check at the same moment, rows do appear twice: they are equal, and the first
        by name counts.
        """
        folder, rows = self.worker.config.asked.store / spec.folder, set[tuple[str, str | None]]()
        for name in part_names(folder) - self.before[spec.fingerprint]:
            with contextlib.suppress(SerError):  # `Feature.parts` names one that cannot be read
                part = read_checksummed(folder / "parts" / name / "part.json", PartRecord)
                if part.corpus == self.worker.config.corpus:
                    rows.update(zip(part.ids, part.inputs, strict=True))
        return rows


class Worker:
    """Computes tasks with one set of open extractors.

    On a CPU every stage shares one pool with a thread per core, and each thread computes alone:
    utterances are independent, so this scales where threads within one small operation do not. On a
    GPU the models have threads of their own, fed by decoding threads that never wait behind the
    slower CPU extractors.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.store = Store(config.asked.store)
        self.on_stage: Callable[[str, int], None] | None = None
        self.on_gpu = config.device != "cpu"
        self.most = config.asked.batch_seconds or (GPU_SECONDS if self.on_gpu else None)
        self._extractors: dict[Modality, list[Extractor]] = {}
        self.gpu = threading.Semaphore(BATCHES) if self.on_gpu else contextlib.nullcontext()
        self.lock, self._opening = threading.Lock(), threading.Lock()

    def close(self) -> None:
        """Drop the extractors, and free the GPU memory that they took."""
        self._extractors.clear()
        if self.on_gpu:
            import torch

            gc.collect()  # a module and its hooks refer to each other
            torch.cuda.empty_cache()

    def extractors(self, modality: Modality) -> list[Extractor]:
        """Those of one modality, opened when they are first needed: an all-text run loads no speech
        model.
        """
        with self._opening:  # a dask worker may have several threads: no model is loaded twice
            if modality not in self._extractors:
                features = [
                    feature for feature in self.config.resolved if feature.spec.modality == modality
                ]
                self._extractors[modality] = load_extractors(
                    features, self.config.device, self.most
                )
            return self._extractors[modality]

    def run(self, tasks: Iterable[ExtractionTask]) -> Iterator[TaskResult]:
        """Compute and publish tasks, yielding each result when its parts are safe on disk, in any
        order.

        Memory holds as many parts as there are writers, and `AHEAD` more.
        """
        pending = set[Future[TaskResult]]()
        with Pools(self.config) as pools:
            for task in tasks:
                pending.add(pools.writers.submit(PartPipeline(self, task, pools).publish))
                while len(pending) >= pools.writers.width + AHEAD:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(pending))

    def trial(self, task: ExtractionTask) -> TaskResult:
        """Compute a task for its times. Nothing is published."""
        with Pools(self.config) as pools:
            PartPipeline(
                self, task, pools
            ).computed()  # the first call of a thread loads and allocates
            return PartPipeline(self, task, pools).computed()


def extract_task(task: ExtractionTask) -> TaskResult:
    """Compute and publish one task, idempotently, by the extractors that this process holds for its
    config.
    """
    with cached(task.config, lambda: Worker(task.config.here())) as worker:
        [result] = worker.run([task])
    return result


def extract_on_worker(task: ExtractionTask) -> TaskResult:
    """Compute and publish one task on a dask worker."""
    config, store = task.config, task.config.asked.store
    if not store.is_dir():
        raise SerError(
            f"a dask worker sees no {store}; workers need the same files under the same paths"
        )
    if config.written_by["ser"] != version(DISTRIBUTION):
        raise SerError(
            f"a dask worker has ser {version(DISTRIBUTION)}; install the version that this command has"
        )
    from distributed import get_worker, secede

    here, threads, worker = config.here(), 1, get_worker()  # dask has a thread per core already
    if here.device.startswith("cuda"):
        threads = max(
            1, int(worker.state.total_resources.get("CPU", min(GPU_NODE_THREADS, cores())))
        )
        secede()  # the worker starts its next task beside this one
    process = {
        "worker": worker.address,
        "name": str(worker.name),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    here = replace(here, threads=threads, written_by={**config.written_by, **process})
    return extract_task(replace(task, config=here))
