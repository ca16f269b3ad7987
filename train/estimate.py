"""What is ahead: parameters, updates and time, from a few timed steps, before anything is trained."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .experiment import Experiment, Job, at_once, prepare
from .fit import Diverged, fit_scaling, make_optimiser
from .loader import Loader
from .losses import LOSSES
from .memory import told_if_memory_ends
from .plan import Plan
from .single import one_thread
from .together import fit_together, runs_at_once
from .views import with_views

ENOUGH = 0.5  # seconds of timed steps: one step of a large model says enough


@dataclass(frozen=True)
class Estimate:
    """What is ahead, from a few timed steps."""

    parameters: int
    utterances: int
    runs: int
    epochs: int  # per run
    updates: int  # over all runs
    seconds: float

    @property
    def seconds_per_run(self) -> float:
        """On average; of runs that are trained at once, each its share."""
        return self.seconds / self.runs


def dry_run(experiment: Experiment, loader: Loader | None = None, steps: int = 3) -> Estimate:
    """Parameters, steps and an estimate of the time, from at most `steps` timed steps of the first run."""
    return estimate(prepare(experiment, loader), steps)


def estimate(jobs: Sequence[Job], steps: int = 3) -> Estimate:
    """The estimate for jobs that are prepared already."""
    job = jobs[0]
    plan, settings = job.plan, job.plan.settings
    with told_if_memory_ends(plan):
        parameters, seconds = _timed(job, steps)
    rows = np.sum([np.diff(inputs.offsets) for inputs in job.data.inputs.values()], axis=0)  # of each utterance
    epochs = settings.epochs * len(plan.fusion.stages)
    copies = len(job.data.views) + 1
    units = [len(j.data.groups(j.fold.train, plan.fusion.unit)) * copies for j in jobs]
    updates = sum(-(-n // settings.batch_size) for n in units) * epochs
    first = [jobs[number] for number in at_once(jobs)[0]]
    if len(first) > 1:
        whole = seconds_at_once(first) * len(jobs)
    else:
        # A forward pass over the watched part costs about a third of a training step.
        watched = [j.fold.test if plan.select == "best-test" else j.fold.dev for j in jobs]
        work = sum(
            rows[j.fold.train].sum() * copies + rows[part].sum() / 3 for j, part in zip(jobs, watched, strict=True)
        )
        whole = float(seconds * work * epochs)
    return Estimate(parameters, len(job.data.utterances), len(jobs), epochs, updates, whole)


def seconds_at_once(jobs: Sequence[Job]) -> float:
    """Seconds of one of the runs that are trained at once, from two epochs of them, of which the first warms up."""

    def short(plan: Plan) -> Plan:
        return replace(plan, settings=replace(plan.settings, epochs=2))

    some = jobs[: runs_at_once(jobs[0].data, jobs[0].fold, jobs[0].plan)]
    with told_if_memory_ends(jobs[0].plan):
        found = fit_together(jobs[0].data, jobs[0].fold, [short(job.plan) for job in some])
    epochs = [each.history[-1]["seconds"] for each in found if not isinstance(each, Diverged)]
    return max(epochs, default=0.0) * jobs[0].plan.settings.epochs


def _timed(job: Job, steps: int) -> tuple[int, float]:
    """The model's parameters, and seconds of training per row: a step's utterances may be long or short ones."""
    plan, settings = job.plan, job.plan.settings
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = plan.fusion.build(settings, job.data.dims, len(job.data.utterances.classes)).to(plan.device)
        parameters = sum(weight.numel() for weight in model.parameters())
        optimiser = make_optimiser(dict(model.named_parameters()), plan.fusion.stages[-1], settings)
        scaling = fit_scaling(job.data, job.fold, settings)
        shuffling = torch.Generator().manual_seed(plan.seed)
        lessons, rows = with_views(job.data, job.fold.train)
        batches = lessons.batches(rows, plan.fusion.unit, settings.batch_size, scaling, shuffling)
        taken, seconds = 0, 0.0
        for number, batch in zip(range(steps + 1), batches, strict=False):
            held = sum(len(inputs.values) for inputs in batch.inputs.values())
            started = time.perf_counter()
            batch.heads = plan.heads(plan.fusion.stages[-1])
            batch = batch.to(plan.device)
            with plan.autocast():
                outputs = model(batch)
            loss = LOSSES[plan.loss](outputs, batch, plan.reduction)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
            if number or steps == 0:  # the first step warms up
                taken, seconds = taken + held, seconds + time.perf_counter() - started
            elif len(rows) == len(batch):  # and is the only one
                taken, seconds = held, time.perf_counter() - started
            if seconds > ENOUGH:
                break
    return parameters, seconds / taken
