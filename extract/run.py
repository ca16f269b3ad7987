"""`ser features`: carry out a plan, here or in the processes and on the machines that it names.

extract(plan(ExtractionConfig(Path("corpus"), features="hubert,is13")))
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cached_property
from operator import attrgetter

from ser import engines
from ser.cache.feature import Feature
from ser.cache.store import Store, open_store
from ser.corpus.names import Modality
from ser.errors import ExtractionStopped, SerError

from .batches import batches
from .check import measure_deviations
from .cluster import run_on_cluster
from .config import ExtractionConfig
from .pipeline import TaskResult, extract_task, run_tasks, time_task
from .plan import ExtractionPlan, plan
from .summary import Summary, group_warnings
from .tasks import Utterance
from .unusable import stop_at, stop_if_unusable
from .worker import Worker

__all__ = [
    "ExtractionConfig",
    "ExtractionPlan",
    "ExtractionRun",
    "ExtractionStopped",
    "Summary",
    "extract",
    "plan",
]

# Utterances: fewer are computed sooner than estimated.
MIN_ESTIMATED = 100
# Utterances for each thread, or batches on a GPU, that are timed for an estimate.
SAMPLES_PER_THREAD = 2

# Told of a stage, how many utterances are done, and of how many.
OnProgress = Callable[[str, int, int], None]


def extract(plan: ExtractionPlan, on_progress: OnProgress | None = None) -> Summary:
    """Compute and publish all that is missing; see `ExtractionRun.extract`."""
    with ExtractionRun(plan) as run:
        return run.extract(on_progress)


class ExtractionRun(ExitStack):
    """Carries out a plan in this process or in those that the plan names.

    Models stay open until it is closed: an estimate and the extraction after it load each model
    once.
    """

    def __init__(self, plan: ExtractionPlan) -> None:
        super().__init__()
        self.plan = plan
        self.tasks = plan.tasks()
        # Utterances of each stage.
        self.totals: Counter[str] = sum((task.stages for task in self.tasks), Counter[str]())

    @cached_property
    def processes(self) -> int:
        """How many of this machine compute: by default one, or with several GPUs one for each."""
        wanted = self.plan.config.workers
        if not wanted:
            config = self.plan.worker_config()
            wanted = engines.gpus(config.device) if config.has_model else 1
        return max(1, min(wanted, len(self.tasks)))

    @cached_property
    def worker(self) -> Worker:
        """What computes in this process. Raises `WrongUse` for a device that is not here."""
        threads = max(1, engines.cores() // self.processes)
        config = replace(self.plan.worker_config().here(), threads=threads)
        return self.enter_context(closing(Worker(config)))

    def extract(self, on_progress: OnProgress | None = None) -> Summary:
        """Compute and publish all that is missing.

        Rows in the store are not touched, so a killed run resumes. Raises `ExtractionStopped` for a
        corpus that is not whole, and at the first part with unusable utterances, unless the config
        says `on_error="skip"`; that part's good rows are kept. Raises `StoreError` when the disk is
        full, and `SerError` when a worker process dies.
        """
        start = time.perf_counter()
        config = self.plan.config
        stop_if_unusable(self.plan)

        store = open_store(config.store, create=True)
        self._put_manifest(store)
        features = [store.add(feature.spec) for feature in self.plan.features]

        deviations: dict[str, float] = {}
        if config.check:
            deviations = measure_deviations(self.plan, config.check)
        for feature in features:
            deviation = deviations.get(feature.spec.name)
            if deviation is not None:
                feature.annotate(check={"utterances": config.check, "max_relative": deviation})

        total = TaskResult()
        # Closed at once when this fails: else its threads would go on through all tasks before the
        # message is seen.
        with closing(self._results(on_progress)) as results:
            for result in results:
                total.add(result)
                stop_at(config, result.quarantined)
        return self._summary(features, total, deviations, time.perf_counter() - start)

    def _put_manifest(self, store: Store) -> None:
        """Make the corpus as it is now the store's latest.

        Not with `--limit`, which must not shrink it: then only if it has other utterances.
        """
        config = self.plan.config
        manifest = self.plan.manifest
        if config.limit is not None and manifest.corpus in store.corpora():
            stored = store.manifest(manifest.corpus)
            if set(manifest.ids) <= set(stored.ids):
                return
        store.put_manifest(manifest, config.replace, "features")

    def _summary(
        self,
        features: list[Feature],
        total: TaskResult,
        deviations: dict[str, float],
        seconds: float,
    ) -> Summary:
        """What was done. Raises `SerError` if a row is neither in the store nor quarantined."""
        scan = self.plan.scan
        manifest = self.plan.manifest
        slowest_first = sorted(total.seconds.items(), key=lambda entry: -entry[1])
        summary = Summary(
            store=str(self.plan.config.store),
            refused=[str(problem) for problem in scan.refused],
            left_out={name: str(fault) for name, fault in self.plan.unavailable.items()},
            warnings=[*scan.warnings, *group_warnings(total.warnings)],
            seconds=seconds,
            audio_seconds=total.audio_seconds,
            stages=dict(slowest_first),
            check=deviations,
        )

        for feature in features:
            spec = feature.spec
            quarantined = feature.quarantined(manifest)
            rows = feature.rows(manifest)
            computed = total.computed[spec.name]
            lost = len(manifest) - rows - len(quarantined)
            if lost:
                raise SerError(f"{spec.name}: {lost} rows are unaccounted for")

            summary.quarantined[spec.name] = quarantined
            summary.features[spec.name] = {
                "rows": rows,
                "computed": computed,
                "reused": rows - computed,
                "quarantined": len(quarantined),
                "batches": total.batches[spec.name],
                "seconds": round(total.seconds[spec.feature], 3),
                "fingerprint": spec.fingerprint,
                "random_weights": spec.random_weights,
            }
        return summary

    def _results(self, on_progress: OnProgress | None) -> Generator[TaskResult]:
        """The results of all tasks, by the engine that the plan names."""
        if not self.tasks:
            return
        done = Counter[str]()

        def progress(stage: str, count: int) -> None:
            done[stage] += count
            if on_progress:
                total = self.totals[stage]
                on_progress(stage, min(done[stage], total), total)

        config = self.plan.config
        if config.scheduler is None and self.processes == 1:
            self.worker.on_stage = progress
            yield from run_tasks(self.worker, self.tasks)
            return

        results: Iterable[TaskResult]
        if config.scheduler is not None:
            results = run_on_cluster(self.tasks, config.scheduler, config.insecure, config.timeout)
        else:
            results = self._run_in_processes()
        for result in results:
            for stage, count in result.stages.items():
                progress(stage, count)
            yield result

    def _run_in_processes(self) -> Iterable[TaskResult]:
        """The results of all tasks from several processes of this machine."""
        # Each process opens its own extractors, and chooses its device.
        self.worker.close()
        config = replace(self.plan.worker_config(), threads=self.worker.config.threads)
        tasks = [replace(task, config=config) for task in self.tasks]
        return engines.run(extract_task, tasks, self.processes)

    def estimate(self) -> float | None:
        """The seconds that the plan will take on this machine, estimated from a few utterances.

        None if there is little to do, or if other machines do it. A GPU's time is added to the
        CPU's beside it.
        """
        most_utterances = max(self.totals.values(), default=0)
        if self.plan.config.scheduler is not None or most_utterances < MIN_ESTIMATED:
            return None

        seconds = sum(self._estimate_modality(modality) for modality in self.plan.utterances)
        return seconds / min(self.processes, engines.cores())

    def _estimate_modality(self, modality: Modality) -> float:
        """The seconds of one process for all tasks of a modality."""
        tasks = [task for task in self.tasks if task.modality == modality]
        usable: list[Utterance] = []
        for task in tasks:
            usable += [utterance for utterance in task.utterances if not utterance.problem]

        # Of all lengths: a few for each thread, or for a GPU a few whole batches.
        groups = batches(usable, attrgetter("length"), self.worker.batch_limit)
        threads = 1 if self.worker.on_gpu else self.worker.config.threads
        step = max(1, len(groups) // (SAMPLES_PER_THREAD * threads))
        sample: list[Utterance] = []
        for group in groups[step // 2 :: step]:
            sample += group
        if not sample:
            return 0.0

        specs = tuple(
            feature.spec
            for feature in tasks[0].config.features
            if feature.spec.modality == modality
        )
        timed = time_task(self.worker, replace(tasks[0], utterances=tuple(sample), specs=specs))
        return sum(
            seconds * self.totals[stage] / len(sample) for stage, seconds in timed.seconds.items()
        )
