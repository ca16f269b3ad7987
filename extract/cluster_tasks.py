"""Extraction tasks in other processes: each computes and publishes its parts, and sends a small result back.

On a dask cluster any worker may take a task, twice if need be: what is published already is not computed again. A task
that kills whoever computes it is cut in two until one utterance (and one feature) is left, and that one is quarantined
by name.
"""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version

from ser import engines
from ser.cache.spec import Spec
from ser.cache.store import Feature
from ser.errors import DISTRIBUTION, SerError

from .plan import ExtractionTask, lacking
from .worker import TaskResult, Worker

GPU_NODE_THREADS = 8  # that decode for one GPU worker and run its CPU extractors, unless it declares CPU=…
GPU_SHARE = 0.25  # of a GPU that a task takes, so that others are decoded and written while one is computed


def extract_task(task: ExtractionTask) -> TaskResult:
    """Compute and publish one task, idempotently, by the extractors that this process holds for its config."""
    with engines.cached(task.config, lambda: Worker(task.config.here())) as worker:
        [result] = worker.run([task])
    return result


def run_on_cluster(tasks: Iterable[ExtractionTask], scheduler: str, insecure: bool) -> Iterator[TaskResult]:
    """The results of all tasks, computed on a dask cluster. Raises what `engines.Cluster.run` raises."""
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


def extract_on_worker(task: ExtractionTask) -> TaskResult:
    """Compute and publish one task on a dask worker."""
    config, store = task.config, task.config.asked.store
    if not store.is_dir():
        raise SerError(f"a dask worker sees no {store}; workers need the same files under the same paths")
    if config.written_by["ser"] != version(DISTRIBUTION):
        raise SerError(f"a dask worker has ser {version(DISTRIBUTION)}; install the version that this command has")
    from distributed import get_worker, secede

    here, threads, worker = config.here(), 1, get_worker()  # dask has a thread per core already
    if here.device.startswith("cuda"):
        declared = worker.state.total_resources.get("CPU", min(GPU_NODE_THREADS, engines.cores()))
        threads = max(1, int(declared))
        secede()  # its thread: the worker begins the next task beside this one
    me = {"worker": worker.address, "name": str(worker.name), "host": socket.gethostname(), "pid": os.getpid()}
    return extract_task(replace(task, config=replace(here, threads=threads, written_by={**config.written_by, **me})))


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
