"""`ser features`: carry out a plan, as in `extract(plan(ExtractionConfig(Path("corpus"), features="hubert,is13")))`."""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np

from ser import engines
from ser.cache.spec import Spec
from ser.cache.store import Feature, Quarantine, open_store
from ser.errors import ExtractionStopped, SerError, UtteranceError

from .corpora.scan import Problem
from .extractors import GPU_SECONDS, batches
from .plan import ExtractionConfig, ExtractionPlan, ExtractionTask, lacking, plan
from .registry import load_extractors
from .worker import TaskResult, Worker, extract_on_worker, extract_task, read_input

__all__ = ["ExtractionConfig", "ExtractionPlan", "ExtractionRun", "ExtractionStopped", "Summary", "extract", "plan"]

NAMED = 5  # faults that a message names before it counts the rest
ESTIMATED = 100  # utterances to compute: fewer are done before they are estimated
TRIED = 2  # utterances for each thread, or batches on a GPU, that are timed for an estimate
GPU_SHARE = 0.25  # of a GPU that a task takes on dask, so that others are decoded and written while one is computed
OnProgress = Callable[[str, int, int], None]  # stage, utterances done, of how many


@dataclass
class Summary:
    """What a run did. `features` has one entry per feature name, with the keys that `--json` prints."""

    store: str
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    quarantined: dict[str, dict[str, str]] = field(default_factory=dict)  # feature → id → reason
    refused: list[str] = field(default_factory=list)  # what of the corpus has no row: a missing session, a bad line
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0  # wall clock
    audio_seconds: float = 0.0  # decoded
    stages: dict[str, float] = field(default_factory=dict)  # seconds of all its threads busy, slowest first
    check: dict[str, float] = field(default_factory=dict)  # feature → max relative deviation from one by one

    @property
    def whole(self) -> bool:
        """Whether every feature has every utterance of the corpus; if not, the run ends with exit code 3."""
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
    """Carries out a plan in this process or in those that the plan names. The models that it opens are held until it
    is closed, so that an estimate and the extraction after it load each only once.
    """

    def __init__(self, plan: ExtractionPlan) -> None:
        super().__init__()
        self.plan, self.tasks = plan, plan.tasks()
        # By stage, how many utterances it has to do.
        self.totals = sum((task.stages for task in self.tasks), Counter[str]())

    @cached_property
    def processes(self) -> int:
        """Of this machine: by default one, or with several GPUs one for each."""
        config = self.plan.worker_config()
        each = engines.gpus(config.device) if any(one.checkpoint for one in config.resolved) else 1
        return max(1, min(self.plan.config.workers or each, len(self.tasks)))

    @cached_property
    def worker(self) -> Worker:
        """What computes in this process. Raises `WrongUse` for a device that is not here."""
        threads = max(1, engines.cores() // self.processes)
        return self.enter_context(closing(Worker(replace(self.plan.worker_config().here(), threads=threads))))

    def extract(self, on_progress: OnProgress | None = None) -> Summary:
        """Compute and publish all that is missing. What is there already is not touched, so a killed run resumes.

        Raises `ExtractionStopped` for a corpus that is not whole, and at the first part with unusable utterances,
        unless the config says `on_error="skip"`; that part's good rows are kept. Raises `StoreError` when the disk is
        full, and `SerError` when a worker process dies.
        """
        begun = time.perf_counter()
        plan, config = self.plan, self.plan.config
        stop_if_unusable(plan)
        store = open_store(config.store, create=True)
        corpus = plan.manifest.corpus
        # A trial with `--limit` must not shrink the latest manifest.
        known = set(store.manifest(corpus).ids) if config.limit is not None and corpus in store.corpora() else set()
        if not known.issuperset(plan.manifest.ids):
            store.put_manifest(plan.manifest, config.replace, "features")
        opened = {feature.resolved.spec.name: store.add(feature.resolved.spec) for feature in plan.features}
        deviations = measure_deviations(plan, config.check) if config.check else {}
        for name, most in deviations.items():
            opened[name].annotate(check={"utterances": config.check, "max_relative": most})
        total = TaskResult()
        # Closed at once when this fails: else its threads would go on through all tasks before the message is seen.
        with closing(self._results(on_progress)) as results:
            for result in results:
                total.add(result)
                stop_at(config, result.quarantined)
        summary = Summary(
            store=str(config.store),
            refused=[str(problem) for problem in plan.scan.refused],
            warnings=[*plan.scan.warnings],
            seconds=time.perf_counter() - begun,
            audio_seconds=total.audio_seconds,
            stages=dict(sorted(total.seconds.items(), key=lambda entry: -entry[1])),
            check=deviations,
        )
        for feature in plan.features:
            spec = feature.resolved.spec
            quarantined = opened[spec.name].quarantined(plan.manifest)
            rows, computed = opened[spec.name].rows(plan.manifest), total.computed[spec.name]
            if rows + len(quarantined) != len(plan.manifest):
                raise SerError(f"{spec.name}: {len(plan.manifest) - rows - len(quarantined)} rows are unaccounted for")
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
        ids: dict[str, list[str]] = {}  # by warning: one line each, with its count and first utterance
        for what, utterance in dict.fromkeys(total.warnings):
            ids.setdefault(what, []).append(utterance)
        for what, found in sorted(ids.items()):
            whose = found[0] if len(found) == 1 else f"{len(found)} utterances ({found[0]}, …)"
            summary.warnings.append(f"{whose}: {what}")
        return summary

    def _results(self, report: OnProgress | None) -> Generator[TaskResult]:
        config, tasks = self.plan.config, self.tasks
        if not tasks:
            return
        done, total = Counter[str](), self.totals

        def progress(stage: str, count: int) -> None:
            done[stage] += count
            if report:
                report(stage, min(done[stage], total[stage]), total[stage])

        results: Iterable[TaskResult]
        if config.scheduler is not None:
            results = run_on_cluster(tasks, config.scheduler, config.insecure)
        elif self.processes > 1:
            self.worker.close()  # the processes open extractors of their own
            asked = replace(self.plan.worker_config(), threads=self.worker.config.threads)  # each chooses its device
            results = engines.run(extract_task, [replace(task, config=asked) for task in tasks], self.processes)
        else:
            self.worker.on_stage = progress
            yield from self.worker.run(tasks)
            return
        for result in results:
            for stage, count in result.stages.items():
                progress(stage, count)
            yield result

    def estimate(self) -> float | None:
        """The seconds that the plan will take on this machine, as far as a few utterances can tell.

        None if there is little to do, or if other machines do it. What a GPU does beside the CPU is added to it.
        """
        if self.plan.config.scheduler is not None or max(self.totals.values(), default=0) < ESTIMATED:
            return None
        total = 0.0
        for modality in self.plan.utterances:
            tasks = [task for task in self.tasks if task.modality == modality]
            usable = [one for task in tasks for one in task.utterances if not one.problem]
            # Of all lengths: a few for each thread, or for a GPU a few whole batches.
            groups = batches(usable, attrgetter("length"), self.worker.most)
            step = max(1, len(groups) // (TRIED * (1 if self.worker.on_gpu else self.worker.config.threads)))
            if some := tuple(one for group in groups[step // 2 :: step] for one in group):
                specs = tuple(one.spec for one in tasks[0].config.resolved if one.spec.modality == modality)
                took = self.worker.trial(replace(tasks[0], utterances=some, specs=specs)).seconds
                total += sum(seconds * self.totals[stage] / len(some) for stage, seconds in took.items())
        return total / min(self.processes, engines.cores())


def run_on_cluster(tasks: Iterable[ExtractionTask], scheduler: str, insecure: bool) -> Iterator[TaskResult]:
    """The results of all tasks, computed on a dask cluster. Raises what `engines.Cluster.run` raises.

    Any worker may take a task, twice if need be: what is published already is not computed again. A task that kills
    whoever computes it is cut in two until one utterance (and one feature) is left, and that is quarantined by name.
    """
    with engines.Cluster(scheduler, insecure) as cluster:

        def on_gpu(task: ExtractionTask) -> bool:
            device = task.config.device
            asked = device.startswith("cuda") or (device == "auto" and any("GPU" in kind for kind in cluster.kinds))
            return asked and not cluster.own and any(one.checkpoint for one in task.config.resolved)

        def needs(task: ExtractionTask) -> Mapping[str, float]:
            if on_gpu(task):
                return {"GPU": GPU_SHARE}
            # A CPU where whoever has no GPU declares one: else a plain worker would stand idle for not having done so.
            declared = [kind.keys() & {"CPU", "GPU"} for kind in cluster.kinds]
            return {"CPU": 1.0} if all(declared) and any("CPU" in kind for kind in declared) else {}

        placed = (one for task in tasks for one in (by_device(task) if on_gpu(task) else [task]))
        yield from cluster.run(extract_on_worker, placed, needs, split, give_up)


def by_device(task: ExtractionTask) -> Iterator[ExtractionTask]:
    """The task's features that need a model, apart from those that a CPU computes."""
    for modelled in (True, False):
        group = tuple(one for one in task.config.resolved if (one.checkpoint is not None) == modelled)
        if mine := tuple(spec for spec in task.specs if spec in [one.spec for one in group]):
            yield replace(task, config=replace(task.config, resolved=group), specs=mine)


def split(task: ExtractionTask) -> list[ExtractionTask] | None:
    """A task that kills, cut in two; None if it cannot be cut. What the store has by now is left out."""
    config, missing = task.config, list[tuple[Spec, set[str]]]()
    for spec in task.specs:
        feature = Feature(config.asked.store, config.asked.store / spec.folder)
        feature.parts()
        lacks = {u.id for u in task.utterances if feature.place((config.corpus, u.id, u.digest)) is None}
        missing.append((spec, lacks))
    if (left := lacking(config, task.modality, task.utterances, missing)) != [task]:
        return left
    if (half := len(task.utterances) // 2) > 0:
        return [replace(task, utterances=some) for some in (task.utterances[:half], task.utterances[half:])]
    if len(task.specs) > 1:
        return [replace(task, specs=(one,)) for one in task.specs]
    return None


def give_up(task: ExtractionTask, reason: str) -> TaskResult:
    """The result of one utterance that kills whoever computes it; quarantined in the store if the run says so."""
    unusable = tuple(replace(one, problem=reason) for one in task.utterances)
    [result] = Worker(task.config).run([replace(task, utterances=unusable)])
    return replace(result, stages=task.stages)


def stop_if_unusable(plan: ExtractionPlan) -> None:
    """Raises `ExtractionStopped` for all that the scan found unusable, unless the config says `on_error="skip"`."""
    found: dict[str, list[Quarantine]] = {}
    for feature in plan.features:
        if bad := [one for one in feature.missing if one.problem]:
            found[feature.resolved.spec.name] = [Quarantine(u.id, u.digest, u.file, u.problem or "") for u in bad]
    stop_at(plan.config, found, plan.scan.refused)


def stop_at(config: ExtractionConfig, bad: Mapping[str, Sequence[Quarantine]], refused: Sequence[Problem] = ()) -> None:
    """Raises `ExtractionStopped`, naming what is `bad` by feature and `refused`, unless the config goes on (`skip`)."""
    unusable = [one for some in bad.values() for one in some]
    named = dict.fromkeys(f"{one.id}{f' ({one.path})' if one.path else ''}: {one.reason}" for one in unusable)
    faults = [*map(str, refused), *named]
    if config.on_error == "skip" or not faults:
        return
    what = f"{len(faults)} problem{'s' * (len(faults) > 1)} with the corpus"
    where = f" for {', '.join(bad)}" if unusable else ""
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    then = "correct the corpus, or go on without them by --on-error skip"
    raise ExtractionStopped(f"{what}{where}: {'; '.join(faults[:NAMED])}{more}; {then}")


def measure_deviations(plan: ExtractionPlan, count: int) -> dict[str, float]:
    """Feature name → max |difference| / max |reference| over `count` utterances spread from shortest to longest.

    For `--check N`, on the user's own corpus and model. The reference is one utterance at a time; on a CPU, where a run
    goes one by one too, the others are in batches all the same. Both in float32, before the store's dtype rounds them.
    A feature that none of them has (all too short, say) is left out.
    """
    found: dict[str, float] = {}
    most = plan.config.batch_seconds or GPU_SECONDS
    features = [replace(one.resolved, spec=replace(one.resolved.spec, dtype="float32")) for one in plan.features]
    device = replace(plan.worker_config(), resolved=tuple(features)).here().device
    for modality, utterances in plan.utterances.items():
        mine = [one for one in features if one.spec.modality == modality]
        usable = sorted((one for one in utterances if not one.problem), key=lambda one: (-one.length, one.id))
        spread = np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)
        chosen = [usable[row] for row in spread]
        read = [(one.length, read_input(one, modality, plan.scan.root)) for one in chosen]
        inputs = [(length, value) for length, value in read if not isinstance(value, UtteranceError)]
        for extractor in load_extractors(mine, device, most):
            for batch in batches(inputs, itemgetter(0), most):
                values = [value for _, value in batch]
                for value, together in zip(values, extractor.run(values), strict=True):
                    [alone] = extractor.run([value])
                    if isinstance(together, UtteranceError) or isinstance(alone, UtteranceError):
                        continue
                    for spec in extractor.specs:
                        ours, reference = (rows[spec.fingerprint].values for rows in (together, alone))
                        found[spec.name] = max(found.get(spec.name, 0.0), relative(ours, reference))
    return found


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """Max |difference| / max |reference|."""
    if ours.shape != reference.shape:
        return float("inf")
    return float(np.abs(ours - reference).max() / max(float(np.abs(reference).max()), 1e-30))
