"""`ser features`: carry out a plan, as in `extract(plan(ExtractionConfig(Path("corpus"),
features="hubert,is13")))`.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np

from ser import engines
from ser.cache.feature import Feature
from ser.cache.part import Quarantine
from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.errors import ExtractionStopped, SerError, UtteranceError

from .batches import GPU_SECONDS, batches
from .corpora.reading import Problem
from .plan import ExtractionConfig, ExtractionPlan, ExtractionTask, lacking, plan
from .resolve import load_extractors
from .worker import TaskResult, Worker, extract_on_worker, extract_task, read_input

__all__ = [
    "ExtractionConfig",
    "ExtractionPlan",
    "ExtractionRun",
    "ExtractionStopped",
    "Summary",
    "extract",
    "plan",
]

NAMED = 5  # faults that a message names before it counts the rest
ESTIMATED = 100  # utterances: fewer are computed sooner than estimated
TRIED = 2  # utterances for each thread, or batches on a GPU, that are timed for an estimate
GPU_SHARE = (
    0.25  # of a GPU that a task takes on dask: others are decoded and written while one is computed
)
OnProgress = Callable[[str, int, int], None]  # stage, utterances done, of how many


@dataclass
class Summary:
    """What a run did. `features` has one entry per feature name, with the keys that `--json`
    prints.
    """

    store: str
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    quarantined: dict[str, dict[str, str]] = field(default_factory=dict)  # feature → id → reason
    refused: list[str] = field(
        default_factory=list
    )  # parts of the corpus without a row: a missing session, a bad line
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0  # wall clock
    audio_seconds: float = 0.0  # decoded
    stages: dict[str, float] = field(
        default_factory=dict
    )  # busy seconds, shared among its threads; slowest first
    check: dict[str, float] = field(
        default_factory=dict
    )  # feature → max relative deviation from one by one

    @property
    def whole(self) -> bool:
        """Whether every feature has every utterance of the corpus; if not, the run ends with exit
        code 3.
        """
        return not any(self.quarantined.values()) and not self.refused

    @property
    def sentence(self) -> str:
        """The closing line, such as "42.0 min of audio in 55.2 s: 46× real time; limited by is13"."""
        slowest = f"; limited by {next(iter(self.stages))}" if self.stages else ""
        if not self.audio_seconds:
            return f"done in {self.seconds:.1f} s{slowest}"
        speed = self.audio_seconds / max(self.seconds, 1e-9)
        return f"{self.audio_seconds / 60:.1f} min of audio in {self.seconds:.1f} s: {speed:.0f}× real time{slowest}"


def extract(plan: ExtractionPlan, on_progress: OnProgress | None = None) -> Summary:
    """Compute and publish all that is missing; see `ExtractionRun.extract`."""
    with ExtractionRun(plan) as run:
        return run.extract(on_progress)


class ExtractionRun(ExitStack):
    """Carries out a plan in this process or in those that the plan names. Models stay open until it
    is closed: an estimate and the extraction after it load each model once.
    """

    def __init__(self, plan: ExtractionPlan) -> None:
        super().__init__()
        self.plan, self.tasks = plan, plan.tasks()
        self.totals = sum(
            (task.stages for task in self.tasks), Counter[str]()
        )  # utterances of each stage

    @cached_property
    def processes(self) -> int:
        """How many of this machine compute: by default one, or with several GPUs one for each."""
        config = self.plan.worker_config()
        default = (
            engines.gpus(config.device)
            if any(feature.checkpoint for feature in config.resolved)
            else 1
        )
        return max(1, min(self.plan.config.workers or default, len(self.tasks)))

    @cached_property
    def worker(self) -> Worker:
        """What computes in this process. Raises `WrongUse` for a device that is not here."""
        threads = max(1, engines.cores() // self.processes)
        return self.enter_context(
            closing(Worker(replace(self.plan.worker_config().here(), threads=threads)))
        )

    def extract(self, on_progress: OnProgress | None = None) -> Summary:
        """Compute and publish all that is missing. Rows in the store are not touched, so a killed
        run resumes.

        Raises `ExtractionStopped` for a corpus that is not whole, and at the first part with
        unusable utterances, unless the config says `on_error="skip"`; that part's good rows are
        kept. Raises `StoreError` when the disk is full, and `SerError` when a worker process dies.
        """
        start = time.perf_counter()
        config, scan, manifest = self.plan.config, self.plan.scan, self.plan.manifest
        stop_if_unusable(self.plan)
        store = open_store(config.store, create=True)
        # A trial with `--limit` must not shrink the latest manifest.
        trial = config.limit is not None and manifest.corpus in store.corpora()
        if not trial or not {*manifest.ids} <= {*store.manifest(manifest.corpus).ids}:
            store.put_manifest(manifest, config.replace, "features")
        features = [store.add(feature.resolved.spec) for feature in self.plan.features]
        deviations = measure_deviations(self.plan, config.check) if config.check else {}
        for feature in features:
            if (deviation := deviations.get(feature.spec.name)) is not None:
                feature.annotate(check={"utterances": config.check, "max_relative": deviation})
        total = TaskResult()
        # Closed at once when this fails: else its threads would go on through all tasks before the
        # message is seen.
        with closing(self._results(on_progress)) as results:
            for result in results:
                total.add(result)
                stop_at(config, result.quarantined)
        summary = Summary(
            store=str(config.store),
            refused=[str(problem) for problem in scan.refused],
            warnings=[*scan.warnings],
            seconds=time.perf_counter() - start,
            audio_seconds=total.audio_seconds,
            stages=dict(sorted(total.seconds.items(), key=lambda entry: -entry[1])),
            check=deviations,
        )
        for feature in features:
            spec, quarantined = feature.spec, feature.quarantined(manifest)
            rows, computed = feature.rows(manifest), total.computed[spec.name]
            if lost := len(manifest) - rows - len(quarantined):
                raise SerError(f"{spec.name}: {lost} rows are unaccounted for")
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
            summary.quarantined[spec.name] = quarantined
        ids: dict[
            str, set[str]
        ] = {}  # by warning: one line each, with its count and first utterance
        for warning, id_ in total.warnings:
            ids.setdefault(warning, set()).add(id_)
        for warning, warned in sorted(ids.items()):
            subject = (
                min(warned) if len(warned) == 1 else f"{len(warned)} utterances ({min(warned)}, …)"
            )
            summary.warnings.append(f"{subject}: {warning}")
        return summary

    def _results(self, on_progress: OnProgress | None) -> Generator[TaskResult]:
        config, tasks = self.plan.config, self.tasks
        if not tasks:
            return
        done, total = Counter[str](), self.totals

        def progress(stage: str, count: int) -> None:
            done[stage] += count
            if on_progress:
                on_progress(stage, min(done[stage], total[stage]), total[stage])

        results: Iterable[TaskResult]
        if config.scheduler is not None:
            results = run_on_cluster(tasks, config.scheduler, config.insecure)
        elif self.processes > 1:
            self.worker.close()  # each process opens its own extractors, and chooses its device
            worker_config = replace(self.plan.worker_config(), threads=self.worker.config.threads)
            results = engines.run(
                extract_task,
                [replace(task, config=worker_config) for task in tasks],
                self.processes,
            )
        else:
            self.worker.on_stage = progress
            yield from self.worker.run(tasks)
            return
        for result in results:
            for stage, count in result.stages.items():
                progress(stage, count)
            yield result

    def estimate(self) -> float | None:
        """The seconds that the plan will take on this machine, estimated from a few utterances.

        None if there is little to do, or if other machines do it. A GPU's time is added to the
        CPU's beside it.
        """
        if (
            self.plan.config.scheduler is not None
            or max(self.totals.values(), default=0) < ESTIMATED
        ):
            return None
        total = 0.0
        for modality in self.plan.utterances:
            tasks = [task for task in self.tasks if task.modality == modality]
            usable = [
                utterance
                for task in tasks
                for utterance in task.utterances
                if not utterance.problem
            ]
            # Of all lengths: a few for each thread, or for a GPU a few whole batches.
            groups = batches(usable, attrgetter("length"), self.worker.most)
            step = max(
                1,
                len(groups) // (TRIED * (1 if self.worker.on_gpu else self.worker.config.threads)),
            )
            if sample := tuple(
                utterance for group in groups[step // 2 :: step] for utterance in group
            ):
                specs = tuple(
                    one.spec for one in tasks[0].config.resolved if one.spec.modality == modality
                )
                trial = self.worker.trial(replace(tasks[0], utterances=sample, specs=specs))
                total += sum(
                    seconds * self.totals[stage] / len(sample)
                    for stage, seconds in trial.seconds.items()
                )
        return total / min(self.processes, engines.cores())


def run_on_cluster(
    tasks: Iterable[ExtractionTask], scheduler: str, insecure: bool
) -> Iterator[TaskResult]:
    """The results of all tasks, computed on a dask cluster. Raises what `engines.Cluster.run`
    raises.

    Any worker may take a task, twice if need be: published rows are not computed again. A task that
    kills its workers is cut in two until one utterance (and one feature) is left, and that is
    quarantined by name.
    """
    with engines.Cluster(scheduler, insecure) as cluster:

        def on_gpu(task: ExtractionTask) -> bool:
            device = task.config.device
            wanted = device.startswith("cuda") or (
                device == "auto" and any("GPU" in kind for kind in cluster.kinds)
            )
            return (
                wanted
                and not cluster.own
                and any(feature.checkpoint for feature in task.config.resolved)
            )

        def needs(task: ExtractionTask) -> Mapping[str, float]:
            if on_gpu(task):
                return {"GPU": GPU_SHARE}
            # A CPU, if every worker without a GPU declares one: a worker that declares nothing must
            # not stand idle.
            declared = [kind.keys() & {"CPU", "GPU"} for kind in cluster.kinds]
            return {"CPU": 1.0} if all(declared) and any("CPU" in kind for kind in declared) else {}

        placed = (part for task in tasks for part in (by_device(task) if on_gpu(task) else [task]))
        yield from cluster.run(extract_on_worker, placed, needs, split, give_up)


def by_device(task: ExtractionTask) -> Iterator[ExtractionTask]:
    """The task's features that need a model, apart from those that a CPU computes."""
    for has_model in (True, False):
        group = tuple(
            one for one in task.config.resolved if (one.checkpoint is not None) == has_model
        )
        if specs := tuple(one.spec for one in group if one.spec in task.specs):
            yield replace(task, config=replace(task.config, resolved=group), specs=specs)


def split(task: ExtractionTask) -> list[ExtractionTask] | None:
    """A task that kills its workers, cut in two; None if it cannot be cut. Rows that the store has
    are left out.
    """
    config, missing = task.config, list[tuple[Spec, set[str]]]()
    for spec in task.specs:
        feature = Feature(config.asked.store, config.asked.store / spec.folder)
        feature.parts()
        absent = {
            u.id for u in task.utterances if feature.place((config.corpus, u.id, u.digest)) is None
        }
        missing.append((spec, absent))
    if (left := lacking(config, task.modality, task.utterances, missing)) != [task]:
        return left
    if (half := len(task.utterances) // 2) > 0:
        return [
            replace(task, utterances=task.utterances[:half]),
            replace(task, utterances=task.utterances[half:]),
        ]
    if len(task.specs) > 1:
        return [replace(task, specs=(spec,)) for spec in task.specs]
    return None


def give_up(task: ExtractionTask, reason: str) -> TaskResult:
    """The result of one utterance that kills its workers; quarantined in the store if the run says
    so.
    """
    unusable = tuple(replace(utterance, problem=reason) for utterance in task.utterances)
    [result] = Worker(task.config).run([replace(task, utterances=unusable)])
    return replace(result, stages=task.stages)


def stop_if_unusable(plan: ExtractionPlan) -> None:
    """Raises `ExtractionStopped` for all that the scan found unusable, unless the config says
    `on_error="skip"`.
    """
    unusable: dict[str, list[Quarantine]] = {}
    for feature in plan.features:
        if bad := [row.quarantine(row.problem) for row in feature.missing if row.problem]:
            unusable[feature.resolved.spec.name] = bad
    stop_at(plan.config, unusable, plan.scan.refused)


def stop_at(
    config: ExtractionConfig,
    failed: Mapping[str, list[Quarantine]],
    refused: Sequence[Problem] = (),
) -> None:
    """Raises `ExtractionStopped`, naming what `failed` by feature and was `refused`, unless the
    config says `skip`.
    """
    failures = [
        f"{f.id} ({f.path}): {f.reason}" if f.path else f"{f.id}: {f.reason}"
        for f in chain(*failed.values())
    ]
    faults = [*map(str, refused), *dict.fromkeys(failures)]
    if config.on_error == "skip" or not faults:
        return
    count = "1 problem" if len(faults) == 1 else f"{len(faults)} problems"
    where = f" for {', '.join(failed)}" if failures else ""
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    remedy = "correct the corpus, or go on without them by --on-error skip"
    raise ExtractionStopped(
        f"{count} with the corpus{where}: {'; '.join(faults[:NAMED])}{more}; {remedy}"
    )


def measure_deviations(plan: ExtractionPlan, count: int) -> dict[str, float]:
    """Feature name → max |difference| / max |reference| over `count` utterances spread from
    shortest to longest.

    For `--check N`, on the user's own corpus and model. The reference is computed one utterance at
    a time, the others in batches, on a CPU too. Both are in float32, before the store's dtype
    rounds them. A feature without rows (all utterances too short, say) is left out.
    """
    deviations: dict[str, float] = {}
    most = plan.config.batch_seconds or GPU_SECONDS
    features = [
        replace(one.resolved, spec=replace(one.resolved.spec, dtype="float32"))
        for one in plan.features
    ]
    device = replace(plan.worker_config(), resolved=tuple(features)).here().device
    for modality, utterances in plan.utterances.items():
        usable = sorted(
            (row for row in utterances if not row.problem), key=lambda row: (-row.length, row.id)
        )
        spread = np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)
        read = [
            (usable[row].length, read_input(usable[row], modality, plan.scan.root))
            for row in spread
        ]
        inputs = [
            (length, value) for length, value in read if not isinstance(value, UtteranceError)
        ]
        for extractor in load_extractors(
            [one for one in features if one.spec.modality == modality], device, most
        ):
            for batch in batches(inputs, itemgetter(0), most):
                values = [value for _, value in batch]
                for value, batched in zip(values, extractor.run(values), strict=True):
                    [alone] = extractor.run([value])
                    if isinstance(batched, UtteranceError) or isinstance(alone, UtteranceError):
                        continue
                    for spec in extractor.specs:
                        deviation = relative(
                            batched[spec.fingerprint].values, alone[spec.fingerprint].values
                        )
                        deviations[spec.name] = max(deviations.get(spec.name, 0.0), deviation)
    return deviations


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """Max |difference| / max |reference|."""
    if ours.shape != reference.shape:
        return float("inf")
    return float(np.abs(ours - reference).max() / max(float(np.abs(reference).max()), 1e-30))
