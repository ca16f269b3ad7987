"""Tasks on a dask cluster: where each may run, and what becomes of one that kills its workers."""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ser import engines
from ser.cache.feature import Feature
from ser.cache.spec import Spec
from ser.errors import SerError

from .pipeline import TaskResult, extract_task, run_tasks
from .tasks import ExtractionTask, tasks_for
from .worker import Worker

# Of a GPU that a task takes: others are decoded and written while one is computed.
GPU_SHARE = 0.25
# Threads that decode for one GPU worker and run its CPU extractors, unless it declares CPU=….
GPU_NODE_THREADS = 8


def run_on_cluster(
    tasks: Iterable[ExtractionTask],
    scheduler: str,
    insecure: bool,
    timeout: float | None = None,
) -> Iterator[TaskResult]:
    """The results of all tasks. Raises what `engines.Cluster.run` raises.

    Any worker may take a task, twice if need be: published rows are not computed again. A task that
    kills its workers is cut in two until one utterance (and one feature) is left, and that is
    quarantined by name.
    """
    with engines.Cluster(scheduler, insecure, timeout) as cluster:

        def on_gpu(task: ExtractionTask) -> bool:
            device = task.config.device
            wanted = device.startswith("cuda")
            if device == "auto":
                wanted = any("GPU" in kind for kind in cluster.kinds)
            return wanted and not cluster.local_workers and task.config.has_model

        def needs(task: ExtractionTask) -> Mapping[str, float]:
            if on_gpu(task):
                return {"GPU": GPU_SHARE}
            # A CPU, if every worker without a GPU declares one: a worker that declares nothing must
            # not stand idle.
            declared = [kind.keys() & {"CPU", "GPU"} for kind in cluster.kinds]
            if all(declared) and any("CPU" in kind for kind in declared):
                return {"CPU": 1.0}
            return {}

        def placed() -> Iterator[ExtractionTask]:
            for task in tasks:
                if on_gpu(task):
                    yield from by_device(task)
                else:
                    yield task

        yield from cluster.run(extract_on_worker, placed(), needs, split, give_up)


def by_device(task: ExtractionTask) -> Iterator[ExtractionTask]:
    """The task's features that need a model, apart from those that a CPU computes."""
    for has_model in (True, False):
        features = tuple(
            feature
            for feature in task.config.features
            if (feature.checkpoint is not None) == has_model
        )
        specs = tuple(feature.spec for feature in features if feature.spec in task.specs)
        if specs:
            yield replace(task, config=replace(task.config, features=features), specs=specs)


def extract_on_worker(task: ExtractionTask) -> TaskResult:
    """Compute and publish one task on a dask worker."""
    config = task.config
    if not config.store.is_dir():
        raise SerError(
            f"a dask worker sees no {config.store}; "
            "workers need the same files under the same paths"
        )
    from distributed import get_worker, secede

    here = config.here()
    worker = get_worker()
    # dask has a thread per core already.
    threads = 1
    if here.device.startswith("cuda"):
        default = min(GPU_NODE_THREADS, engines.cores())
        threads = max(1, int(worker.state.total_resources.get("CPU", default)))
        # The worker starts its next task beside this one.
        secede()

    written_by = {
        **config.written_by,
        "worker": worker.address,
        "name": str(worker.name),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    here = replace(here, threads=threads, written_by=written_by)
    return extract_task(replace(task, config=here))


def split(task: ExtractionTask) -> list[ExtractionTask] | None:
    """A task that kills its workers, cut in two; None if it cannot be cut.

    Rows that the store has are left out.
    """
    config = task.config
    missing: list[tuple[Spec, set[str]]] = []
    for spec in task.specs:
        feature = Feature(config.store, config.store / spec.folder)
        feature.parts()
        ids = {
            utterance.id
            for utterance in task.utterances
            if feature.place((config.corpus, utterance.id, utterance.digest)) is None
        }
        missing.append((spec, ids))

    rest = tasks_for(config, task.modality, task.utterances, missing)
    if rest != [task]:
        return rest

    half = len(task.utterances) // 2
    if half > 0:
        return [
            replace(task, utterances=task.utterances[:half]),
            replace(task, utterances=task.utterances[half:]),
        ]
    if len(task.specs) > 1:
        return [replace(task, specs=(spec,)) for spec in task.specs]
    return None


def give_up(task: ExtractionTask, reason: str) -> TaskResult:
    """The result of one utterance that kills its workers.

    It is quarantined in the store if the run says so.
    """
    unusable = tuple(replace(utterance, problem=reason) for utterance in task.utterances)
    worker = Worker(task.config)
    [result] = run_tasks(worker, [replace(task, utterances=unusable)])
    return replace(result, stages=task.stages)
