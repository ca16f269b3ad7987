"""Training jobs: one, or many of one fold at once, each into its run's folder."""

import contextlib
import gc
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ser.disk.memory import is_out_of_memory
from ser.errors import Diverged, SerError, WrongUse

from .checkpoint import snapshot
from .config import TrainConfig
from .evaluate import finish
from .fit import Fitted, fit
from .fit_many import fit_many, runs_at_once
from .fit_solved import fit_solved
from .job import Job, OnProgress
from .job_in_training import JobInTraining
from .model_file import write_model
from .models.encoder_front import state_of
from .run_folder import FAULT, STATE, Run, claimed
from .selection import describe_choice


def train_jobs(
    jobs: Sequence[Job], out: Path, resume: bool = False, on_epoch: OnProgress | None = None
) -> list[Run | Diverged]:
    """Train the jobs of one group, each into `<out>/<its name>`.

    A finished run is returned as it is. Several, and one that is `stacked`, are trained at once
    (`fit_many`): if memory runs out, half as many, down to one; if their inputs do not fit on the
    GPU, one after the other. They keep no states. Any other job does, and continues from its last
    with `resume`; without states it starts anew. For a job that diverged the list holds the fault,
    and its folder the weights of the last good epoch. Raises `SerError`, with the remedy, if memory
    runs out.
    """
    first = jobs[0]
    together = len(jobs) > 1 or first.stacked

    with contextlib.ExitStack() as stack:
        stack.enter_context(oom_as_error(first.config))
        runs = claim_all(jobs, out, stack)

        # What is finished already.
        ended: dict[str, Run | Diverged] = {}
        for name, run in runs.items():
            if run.finished:
                ended[name] = run.checked()

        # What is left to train.
        waiting: list[JobInTraining] = []
        for job in jobs:
            if job.name in ended:
                continue
            run = runs[job.name]
            if together or not resume:
                (run.path / STATE).unlink(missing_ok=True)
            waiting.append(JobInTraining(job, run, stack, not together, on_epoch))

        stack.enter_context(one_thread())
        at_once = 1
        if together:
            # First, so that what the data takes on the GPU does not count as free.
            first.data.on(first.config.device)
            at_once = runs_at_once(first.data, first.fold, first.config)

        while waiting:
            if not together:
                job_in_training = waiting.pop(0)
                with job_in_training.interruptible():
                    ended[job_in_training.run.name] = train_alone(job_in_training)
                continue

            chunk = waiting[:at_once]
            started = time.monotonic()
            # The models of the last chunk are gone before the next are made.
            models: list[Fitted] = []
            torch.cuda.empty_cache()
            try:
                models = fit_together(chunk)
            except (MemoryError, RuntimeError) as error:
                if len(chunk) == 1 or not is_out_of_memory(error):
                    raise
                at_once = len(chunk) // 2
                free_memory(chunk, error)
                continue

            if not models:
                # Their inputs do not fit on the GPU: one after the other.
                together = False
                continue

            seconds = (time.monotonic() - started) / len(chunk)
            for job_in_training, model in zip(chunk, models, strict=True):
                ended[job_in_training.run.name] = end(job_in_training, model, seconds)
            waiting = waiting[at_once:]

        return [ended[job.name] for job in jobs]


def claim_all(jobs: Sequence[Job], out: Path, stack: contextlib.ExitStack) -> dict[str, Run]:
    """The jobs' run folders by name, with nobody else at work in them until the stack is closed."""
    runs = {}
    # In the same order in all processes, so that none waits for ever.
    for name in sorted(job.name for job in jobs):
        runs[name] = stack.enter_context(claimed(out / name))
    return runs


def fit_together(chunk: Sequence[JobInTraining]) -> list[Fitted]:
    """The models of some jobs of one group; none where their inputs do not fit on the GPU."""
    first = chunk[0].job
    configs = [job_in_training.job.config for job_in_training in chunk]
    return fit_many(first.data, first.fold, configs, chunk)


def free_memory(chunk: Sequence[JobInTraining], error: BaseException) -> None:
    """Give back what a try to train a chunk took before memory ran out, and say so in the logs."""
    for job_in_training in chunk:
        job_in_training(
            f"memory ran out with {len(chunk)} runs at once; started anew with half as many"
        )

    # The frames hold the models, in which a module and its hooks know each other.
    traceback.clear_frames(error.__traceback__)
    gc.collect()


def train_alone(job_in_training: JobInTraining) -> Run | Diverged:
    """Train one job, from its state if there is one, and write what it has come to."""
    job = job_in_training.job
    started = time.monotonic()
    torch.cuda.empty_cache()

    state = None
    if (job_in_training.run.path / STATE).exists():
        state = job_in_training.run.tensors(STATE)
    train = fit_solved if job.config.fusion.solved else fit
    model = train(job.data, job.fold, job.config, job_in_training, state)
    return end(job_in_training, model, time.monotonic() - started)


def end(job_in_training: JobInTraining, model: Fitted, seconds: float) -> Run | Diverged:
    """Write what a training has come to: the result, or the fault and the last good weights."""
    run = job_in_training.run
    if model.fault:
        write_model(run, snapshot(state_of(model.model)), model.scaling)

    config = job_in_training.job.config
    choice = describe_choice(model.history, config.select, config.training.select_score)
    if choice:
        job_in_training(choice)

    fault = model.fault or finish(run, job_in_training.job, model, seconds)
    if not fault:
        return run

    job_in_training(fault)
    run.write_json(FAULT, {"fault": fault})
    return Diverged(f"{run.path}: {fault}")


@contextlib.contextmanager
def oom_as_error(config: TrainConfig) -> Iterator[None]:
    """Raise `SerError`, with the remedy, if an allocation fails.

    And `WrongUse` for what cannot be deterministic.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if "deterministic implementation" in str(fault):
            raise WrongUse(
                f"--deterministic: {config.fusion.name} has an operation without a deterministic "
                f"form on {config.device}; leave it out"
            ) from fault
        if not is_out_of_memory(fault):
            raise

        size = config.settings.batch_size
        raise SerError(
            f"the memory of {config.device} ran out while training {config.fusion.name} in batches "
            f"of {size}; what was finished is kept: run again while less else is running there "
            f"(a sweep: fewer --workers), or with --precision bf16 or "
            f"--set batch_size={max(1, size // 2)}, which change the numbers"
        ) from fault


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: the same numbers on any load.

    And one process per core is faster than threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
