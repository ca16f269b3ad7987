"""The training loop of `fit` for many runs of one fold at once: on a GPU a small model leaves most of it idle.

The runs differ in seed and loss. Each draws its batches and its dropout from generators of its own, so that the others
change nothing but the order of sums. On a CPU these are the draws of `fit`, if the loss wants all heads (all are
computed here); a GPU's own dropout draws otherwise. A run that diverges is reported when the others are done.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.func import vmap

from ser.engines import exact_arithmetic
from ser.errors import Diverged

from .data.dataset import Dataset
from .data.splits import Fold
from .fit import (
    Epoch,
    Fitted,
    Selection,
    divergence,
    fit_standardizers,
    learning_rate,
    make_optimiser,
    rows_to_evaluate,
    shuffled,
    snapshot,
    training_loss,
)
from .models.stacked import NO_LABEL, Layout, Stack
from .scores import SHOWN, confusions, metrics
from .settings import TrainConfig

MOST = 64  # runs at once: beyond, even a large GPU has enough to do
SHARE = 0.4  # of a GPU's free memory: two workers may ask at the same moment


def can_train_together(data: Dataset, config: TrainConfig) -> bool:
    """Whether this run can be trained with others of its kind at once: its fusion must say so."""
    apart = config.training.soft_labels or config.training.clip_norm or config.training.refit or data.views
    apart = apart or config.target != "class" or config.training.class_weights != "none"
    return config.fusion.stacks is not None and config.fusion.stacks(config.settings) and not apart


@torch.random.fork_rng(devices=[])
def fit_many(
    data: Dataset, fold: Fold, configs: Sequence[TrainConfig], on_epoch: Sequence[Callable[[Epoch], None]] = ()
) -> list[Fitted | Diverged]:
    """Train one model per config; the configs differ in seed and loss alone, and `can_train_together` holds for them.

    `on_epoch[i]` gets every epoch of run i. A run that diverged gives the fault in the place of its model. Raises
    `WrongUse` for a selection on a dev part that is empty.
    """
    config, settings, device = configs[0], configs[0].settings, configs[0].device
    exact_arithmetic(device, config.deterministic)
    [stage] = config.fusion.stages
    eval_rows = rows_to_evaluate(fold, config)
    scaling = fit_standardizers(data, fold, settings, config.training.standardise_by)
    scaled = data.scaled(scaling)
    values = {modality: inputs.values for modality, inputs in scaled.on(device).inputs.items()}
    groups = data.groups(fold.train, config.fusion.unit)
    labels = np.stack([shuffled(data, fold, each).utterances.labels for each in configs])

    models, dropping = [], []
    for each in configs:
        torch.manual_seed(each.seed)
        models.append(config.fusion.build(settings, data.dims, len(data.utterances.classes)).to(device))
        own = Generator(device).manual_seed(each.seed)
        dropping.append(own.set_state(torch.get_rng_state()) if device == "cpu" else own)  # as in `fit`
    shuffling = [Generator().manual_seed(each.seed) for each in configs]
    stack = Stack(models, settings.dropout, dropping)
    optimiser = make_optimiser(stack.weights, stage, settings)
    kinds = sorted({each.loss for each in configs})
    kind = torch.tensor([[kinds.index(each.loss) for each in configs]], device=device)  # [1, R]
    losses_of = [partial(training_loss, config=replace(config, loss=name), stage=stage) for name in kinds]
    kept = {name: weight.detach().clone() for name, weight in stack.weights.items()}
    selections = [Selection(each, {}) for each in configs]
    faults: dict[int, str] = {}

    for epoch in range(settings.epochs):
        left = [i for i, selection in enumerate(selections) if i not in faults and not selection.stopped(stage)]
        if not left:
            break
        started = time.perf_counter()
        order = torch.stack([torch.randperm(len(groups), generator=one) for one in shuffling]).numpy()
        starts = range(0, len(groups), settings.batch_size)
        total, every = torch.zeros(len(configs), device=device), []
        for update, start in enumerate(starts, epoch * len(starts)):
            layout = Layout.of(groups, order[:, start : start + settings.batch_size])
            truth = np.where(layout.real, np.take_along_axis(labels, layout.rows, 1), NO_LABEL)
            there = torch.from_numpy(truth).to(device, non_blocking=True)
            with config.autocast():
                outputs = {head: x.float() for head, x in stack(values, layout, training=True).items()}
            by_kind = [vmap(loss)(outputs, there) for loss in losses_of]
            losses = torch.stack(by_kind).gather(0, kind)[0]  # [R]: each run's own
            every.append(losses.detach())
            size = 1 if config.reduction == "sum" else torch.from_numpy(layout.real.sum(1)).to(device)
            total += losses.detach() * size
            optimiser.param_groups[0]["lr"] = learning_rate(settings, update)
            optimiser.zero_grad()
            losses.sum().backward()
            optimiser.step()
        # Asked here alone: after every batch it would make the GPU wait for the answer.
        for i, of_run in enumerate(torch.stack(every, 1).tolist()):
            if i in left and (fault := divergence(of_run, stage, epoch)):
                faults[i] = fault
        means = (total / len(fold.train)).tolist()
        matrices = _evaluate(stack, scaled, values, eval_rows, config) if len(eval_rows) else None
        seconds = (time.perf_counter() - started) / len(configs)
        better = torch.zeros(len(configs), dtype=torch.bool)
        for i, selection in enumerate(selections):
            if i in left and i not in faults:
                scored = {} if matrices is None else metrics(matrices[i])
                found: dict[str, Any] = {name: float(scored[name]) for name in SHOWN.values() if name in scored}
                line = selection.add(stage, epoch, means[i], found, seconds)
                better[i] = line.kept
                if on_epoch:
                    on_epoch[i](line)
        chosen = better.to(device)
        for name, weight in stack.weights.items():
            kept[name] = torch.where(chosen.view(-1, *[1] * (weight.ndim - 1)), weight.detach(), kept[name])

    # What a run's own loss does not train stays as at the start: here the loss of another run may have moved it.
    idle = {each.loss: _idle(each, copy.deepcopy(models[0]), scaled, groups[0]) for each in configs}
    fitted: list[Fitted | Diverged] = []
    for i, (each, model) in enumerate(zip(configs, models, strict=True)):
        own_weights = {name: weight[i] for name, weight in kept.items() if name not in idle[each.loss]}
        model.load_state_dict(own_weights, strict=False)
        if fault := faults.get(i):
            fitted.append(Diverged(fault, snapshot(model), scaling))
        else:
            fitted.append(Fitted(model, scaling, selections[i].history))
    return fitted


def _idle(config: TrainConfig, model: nn.Module, data: Dataset, dialogue: np.ndarray) -> set[str]:
    """The weights that a run by itself would leave as they are, since its loss does not depend on them."""
    [batch] = data.on(config.device).batches(dialogue, config.fusion.unit, 1, {})
    [stage] = config.fusion.stages
    batch.heads = config.heads(stage)
    training_loss(model(batch), batch.truth, config, stage).backward()
    return {name for name, weight in model.named_parameters() if weight.grad is None}


@torch.no_grad()
def _evaluate(
    stack: Stack, data: Dataset, values: dict[str, Tensor], rows: np.ndarray, config: TrainConfig
) -> np.ndarray:
    """C `[R, K, K]` of the rows."""
    size, runs = config.settings.batch_size, len(stack.generators)
    groups = data.groups(rows, config.fusion.unit)
    predicted = []
    for start in range(0, len(groups), size):
        of_one = np.arange(start, min(start + size, len(groups)))
        layout = Layout.of(groups, np.tile(of_one, (runs, 1)))
        with config.autocast():
            logits = stack(values, layout, training=False)["logits"]
        predicted.append(logits.argmax(2)[:, torch.from_numpy(layout.real[0])])
    truth = data.utterances.labels[np.concatenate(groups)]
    return confusions(truth, torch.cat(predicted, 1).cpu().numpy(), len(data.utterances.classes))


def runs_at_once(data: Dataset, fold: Fold, config: TrainConfig) -> int:
    """About how many runs fit into the free memory of a GPU: each with its weights and its largest batch."""
    if torch.device(config.device).type != "cuda":
        return MOST
    with torch.random.fork_rng(devices=[]):
        model = config.fusion.build(config.settings, data.dims, len(data.utterances.classes))
    weights = sum(weight.numel() for weight in model.parameters())
    turns = sorted(map(len, data.groups(fold.train, config.fusion.unit)))[-config.settings.batch_size :]
    inputs = sum(turns) * sum(data.dims.values())
    attended = len(turns) * turns[-1] ** 2 * config.settings.heads * 3  # of up to three streams
    # Weights, gradients, Adam's moments, what is kept, and room; and what the way back holds beside the rest.
    needed = 4 * (6 * weights + 3 * inputs + 4 * attended)
    free, _ = torch.cuda.mem_get_info(config.device)
    return max(1, min(MOST, int(SHARE * free / needed)))
