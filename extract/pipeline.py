"""One task on its way to the store: decode → compute → publish, in threads.

Arrays never leave the process that made them: a part is published where it is computed, and only a
small `TaskResult` goes back.
"""

import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, as_completed, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

from ser.cache.feature import part_names
from ser.cache.part import PartRecord, Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows, part_name
from ser.cache.spec import Spec
from ser.disk.memory import is_out_of_memory
from ser.disk.records import read_checksummed
from ser.engines import cached
from ser.errors import SerError, UtteranceError

from .audio import Clip
from .batches import batches
from .extractor import Extracted, Extractor, FeatureRows
from .inputs import Input
from .resolve import versions_here
from .tasks import ExtractionTask, Utterance, place_in_recording
from .worker import Pool, Pools, Worker

# Tasks in work beside those being written, so that no core waits at the end of one.
AHEAD = 2


@dataclass
class TaskResult:
    """What one task, or several, have done: counts by feature, seconds by stage."""

    computed: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    quarantined: dict[str, list[Quarantine]] = field(default_factory=dict)
    # Of each stage its share of the time.
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    audio_seconds: float = 0.0
    # Each with its utterance's id.
    warnings: list[tuple[str, str]] = field(default_factory=list)
    # Utterances done, by stage.
    stages: Counter[str] = field(default_factory=Counter)

    def add(self, other: "TaskResult") -> None:
        """Add what another task has computed, its seconds and warnings.

        Its quarantined utterances and stages are left out.
        """
        self.computed += other.computed
        self.batches += other.batches
        self.audio_seconds += other.audio_seconds
        self.warnings += other.warnings
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


def run_tasks(worker: Worker, tasks: Iterable[ExtractionTask]) -> Iterator[TaskResult]:
    """Compute and publish tasks, yielding each result when its parts are safe on disk.

    Results come in any order. Memory holds as many parts as there are writers, and `AHEAD` more.
    """
    pending: set[Future[TaskResult]] = set()
    with Pools(worker.config) as pools:
        for task in tasks:
            # No name holds the pipeline, so that its rows are freed once they are written.
            pending.add(pools.writers.submit(PartPipeline(worker, task, pools).publish))
            while len(pending) >= pools.writers.width + AHEAD:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()

        for future in as_completed(pending):
            yield future.result()


def extract_task(task: ExtractionTask) -> TaskResult:
    """Compute and publish one task, idempotently.

    By the extractors that this process holds open for the task's config.
    """
    with cached(task.config, lambda: Worker(task.config.here())) as worker:
        [result] = run_tasks(worker, [task])
    return result


def time_task(worker: Worker, task: ExtractionTask) -> TaskResult:
    """Compute a task for its times. Nothing is published."""
    with Pools(worker.config) as pools:
        # The first call of a thread loads and allocates.
        PartPipeline(worker, task, pools).compute()
        return PartPipeline(worker, task, pools).compute()


def _pass_on(futures: Mapping[str, Future[Input]], reading: Future[None]) -> None:
    """Let those who wait for what was not read have the reading's error."""
    waiting = [future for future in futures.values() if not future.done()]
    if not waiting:
        return
    fault = CancelledError() if reading.cancelled() else reading.exception()
    for future in waiting:
        future.set_exception(fault or CancelledError())


class PartPipeline:
    """One task in a worker's pools: a future for every input, and for every batch of an extractor.

    All of them are submitted when it is made.
    """

    def __init__(self, worker: Worker, task: ExtractionTask, pools: Pools) -> None:
        self.worker = worker
        self.task = task
        self.pools = pools
        self.result = TaskResult(stages=task.stages)

        # By fingerprint, the parts that were there when the task started.
        self.parts_before: dict[str, set[str]] = {}
        # Of the features that the task has still to compute.
        self.specs: list[Spec] = []
        part = self._part_name()
        for spec in task.specs:
            names = part_names(worker.config.store / spec.folder)
            self.parts_before[spec.fingerprint] = names
            if part not in names:
                self.specs.append(spec)

        usable: list[Utterance] = []
        if self.specs:
            usable = [utterance for utterance in task.utterances if not utterance.problem]
        # First in, first out: the inputs that an extractor waits for are submitted before it.
        self.inputs = self._submit_inputs(usable)
        # By fingerprint and id.
        self.rows: dict[tuple[str, str], FeatureRows | UtteranceError] = {}
        # Of each batch, the names of its features.
        self.computing: list[Future[list[str]]] = []
        if usable:
            self._submit_batches(usable)

    def _part_name(self) -> str:
        """The part that the task makes if no utterance is quarantined.

        A feature that has it is done.
        """
        ids = [utterance.id for utterance in self.task.utterances]
        digests = [utterance.digest or "" for utterance in self.task.utterances]
        return part_name(PartRows(self.worker.config.corpus, ids, digests))

    def _submit_batches(self, usable: list[Utterance]) -> None:
        """Hand every batch of every extractor to the pool that computes it."""
        # Equal transcripts are neighbours and computed once; audio files are never taken to be
        # equal.
        same = attrgetter("source" if self.task.modality == "text" else "id")
        units = [list(unit) for _, unit in groupby(usable, same)]

        extractors = self.worker.extractors(self.task.modality)
        for extractor in sorted(extractors, key=attrgetter("batched")):
            stages = {spec.feature for spec in self.specs if spec in extractor.specs}
            if not stages:
                continue

            pool = self.pools.cpu
            limit = None
            if extractor.batched:
                pool = self.pools.models
                limit = self.worker.batch_limit
            for batch in batches(units, lambda unit: unit[0].length, limit):
                self.computing.append(pool.submit(self._compute, extractor, batch, stages, pool))

    def _submit_inputs(self, usable: list[Utterance]) -> dict[str, Future[Input]]:
        """A future of each utterance's input: segments of one recording are read in one go."""
        inputs: dict[str, Future[Input]] = {}
        by_recording: dict[str, list[Utterance]] = {}
        for utterance in usable:
            if utterance.span is None:
                inputs[utterance.id] = self.pools.decoders.submit(self._read, utterance)
            else:
                by_recording.setdefault(utterance.source or "", []).append(utterance)

        for segments in by_recording.values():
            segments.sort(key=place_in_recording)
            futures = {segment.id: Future[Input]() for segment in segments}
            reading = self.pools.decoders.submit(self._read_segments, segments, futures)
            # Whoever waits for a segment must not wait for a reading that was cancelled or failed.
            reading.add_done_callback(partial(_pass_on, futures))
            inputs.update(futures)
        return inputs

    def _read_segments(
        self, segments: Sequence[Utterance], futures: Mapping[str, Future[Input]]
    ) -> None:
        """Read the segments of one recording, in their order. Runs in a decoder's thread."""
        for segment in segments:
            if self.pools.stopping.is_set():
                return
            futures[segment.id].set_result(self._read(segment))

    def _read(self, utterance: Utterance) -> Input:
        """The input of one utterance. Runs in a decoder's thread."""
        start = time.perf_counter()
        extractor_input = self.worker.inputs.read(utterance, self.task.modality)
        if self.task.modality == "audio":
            self._note({"decode"}, 1, start, self.pools.decoders)
        return extractor_input

    def _compute(
        self, extractor: Extractor, units: list[list[Utterance]], stages: set[str], pool: Pool
    ) -> list[str]:
        """Compute one batch, and return the names of the features that it has. Runs in `pool`.

        A unit is the utterances that share one input.
        """
        inputs: dict[str, Any] = {unit[0].id: self.inputs[unit[0].id].result() for unit in units}
        usable = {
            id_: value for id_, value in inputs.items() if not isinstance(value, UtteranceError)
        }

        start = time.perf_counter()
        # The pool has a thread per core: torch must start no others. It is set for each thread.
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        results: list[Extracted] = []
        try:
            if usable:
                with self.worker.gpu if extractor.batched else contextlib.nullcontext():
                    results = extractor.run(list(usable.values()))
        except (MemoryError, RuntimeError) as fault:
            if not is_out_of_memory(fault):
                raise
            raise SerError(
                f"memory ran out in {extractor.label} on {next(iter(usable))}; lower "
                "--batch-seconds, or cut the utterance into shorter ones (a speech encoder does "
                "that by itself: ask for hubert:window=30)"
            ) from fault
        extracted_by_id = dict(zip(usable, results, strict=True))
        self._note(stages, sum(map(len, units)), start, pool)

        for unit in units:
            first = unit[0].id
            extracted = extracted_by_id.get(first, inputs[first])
            for spec in extractor.specs:
                fingerprint = spec.fingerprint
                if isinstance(extracted, UtteranceError):
                    rows = extracted
                else:
                    rows = extracted[fingerprint]
                for utterance in unit:
                    self.rows[fingerprint, utterance.id] = rows

        if not usable:
            return []
        return [spec.name for spec in extractor.specs]

    def _note(self, stages: set[str], count: int, start: float, pool: Pool) -> None:
        """One more batch is done: count its utterances, and share its time among its stages."""
        seconds = (time.perf_counter() - start) / pool.width
        with self.worker.lock:
            for stage in stages:
                self.result.seconds[stage] += seconds / len(stages)
                if self.worker.on_stage:
                    self.worker.on_stage(stage, count)

    def compute(self) -> TaskResult:
        """Wait for all rows."""
        for future in self.computing:
            self.result.batches.update(future.result())
        return self.result

    def publish(self) -> TaskResult:
        """Wait for all rows and write one part per feature."""
        result = self.compute()
        for id_, future in self.inputs.items():
            clip = future.result()
            if isinstance(clip, Clip):
                result.audio_seconds += clip.seconds
                result.warnings += [(warning, id_) for warning in dict.fromkeys(clip.warnings)]
        # The waveforms are not needed any more.
        self.inputs.clear()

        start = time.perf_counter()
        for spec in self.specs:
            self._publish_feature(spec)
        result.seconds["write"] += (time.perf_counter() - start) / self.pools.writers.width
        return result

    def _publish_feature(self, spec: Spec) -> None:
        """Write the part of one feature."""
        config = self.worker.config
        published = self._published(spec)
        inputs: list[str] = []
        part = PartRows(config.corpus, inputs=inputs, finite=True)
        quarantined: list[Quarantine] = []

        for utterance in self.task.utterances:
            if (utterance.id, utterance.digest) in published:
                continue
            if utterance.problem:
                quarantined.append(utterance.quarantine(utterance.problem))
                continue
            rows = self.rows[spec.fingerprint, utterance.id]
            if isinstance(rows, UtteranceError):
                quarantined.append(utterance.quarantine(str(rows)))
                continue

            part.ids.append(utterance.id)
            inputs.append(utterance.digest or "")
            part.arrays.append(rows.values)
            part.finite &= rows.finite
            for name, column in rows.extras.items():
                part.extras.setdefault(name, []).append(column)
            self.result.warnings += [(warning, utterance.id) for warning in rows.warnings]

        # Else they are left out, and tried again next time.
        if config.on_error == "skip":
            part.quarantined = quarantined
        if part.ids or part.quarantined:
            feature = self.worker.store.add(spec)
            # Of the machine that computes it: several may work on one feature, at several times.
            written_by = {**config.written_by, "versions": versions_here(spec)}
            publish_part(feature, part, config.backend, written_by)

        self.result.computed[spec.name] += len(part.ids)
        if quarantined:
            self.result.quarantined[spec.name] = quarantined

    def _published(self, spec: Spec) -> set[tuple[str, str | None]]:
        """Id and digest of the rows that others have published since the task started.

        While a process is suspended, its task may be given to others, cut up and published under
        other names. If it is suspended again between this check and the rename of its part, or if
        two processes check at the same moment, rows do appear twice: they are equal, and the first
        by name counts.
        """
        folder = self.worker.config.store / spec.folder
        rows: set[tuple[str, str | None]] = set()
        for name in part_names(folder) - self.parts_before[spec.fingerprint]:
            # `Feature.parts` names one that cannot be read.
            with contextlib.suppress(SerError):
                part = read_checksummed(folder / "parts" / name / "part.json", PartRecord)
                if part.corpus == self.worker.config.corpus:
                    rows.update(zip(part.ids, part.inputs, strict=True))
        return rows
