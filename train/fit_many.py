"""The training loop of `fit.fit` for many runs of one fold at once: on a GPU a small model leaves
most of it idle.

The runs differ in seed and loss. Each draws its batches, as that does, and its dropout from
generators of its own, so that the others change nothing but the order of sums. A run that diverges
is reported when the others are done.

The model's own code runs under `torch.func.vmap`, each run with its weights and its batch along a
leading axis. Vmap needs the same shapes for all, so batches are padded to common ones: a dummy last
dialogue of one turn takes the surplus rows and steps, and has no part in any loss. Few shapes
occur, so that a GPU captures each once: there an update is one CUDA graph, and so is an evaluation.
What is left to do one by one is to say which dialogues a batch has, and once per epoch each run's
dropout. Axis letters beside those of `models.layers`:

    R  runs
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.func import vmap

from ser.engines import exact_arithmetic

from . import fit
from .config import TrainConfig
from .cuda_graphs import Graphs
from .data.dataset import Dataset
from .data.folds import Fold
from .fit import Fitted
from .records import Epoch, Scores
from .scores.classes import confusions, metrics
from .selection import Selection
from .stacked_runs import StackedRuns, batch_of, table

MAX_RUNS = 64  # runs at once: beyond, even a large GPU has enough to do
SHARE = 0.15  # of a GPU's free memory: five workers may ask at the same moment
ALIGNED = 64  # what a vector's width is padded to: products over 6373 values are slow on a GPU
GRAPHS = ("cuda",)  # devices whose updates are captured
NO_LABEL = -100  # what torch's losses leave out


def can_train_together(data: Dataset, config: TrainConfig) -> bool:
    """Whether this run can be trained with others of its kind at once: its fusion must say so."""
    apart = (
        config.training.soft_labels
        or config.training.clip_norm
        or config.training.refit
        or data.views
    )
    apart = apart or config.target != "class" or config.training.class_weights != "none"
    return config.fusion.stacks is not None and config.fusion.stacks(config.settings) and not apart


@torch.random.fork_rng(devices=[])
def fit_many(
    data: Dataset,
    fold: Fold,
    configs: Sequence[TrainConfig],
    on_epoch: Sequence[Callable[[Epoch | str], None]] = (),
) -> list[Fitted]:
    """Train one model per config; the configs differ in seed and loss alone, and
    `can_train_together` holds for them.

    `on_epoch[i]` gets every epoch of run i, and a line if updates cannot be captured. Returns []
    where the inputs do not fit on the GPU: the caller then trains one after the other. Raises
    `WrongUse` for a selection on a dev part that is empty.
    """
    config, settings, device = configs[0], configs[0].settings, configs[0].device
    exact_arithmetic(device, config.deterministic)
    [stage] = config.fusion.stages
    eval_rows = fit.rows_to_evaluate(fold, config)
    scaling = fit.fit_standardizers(data, fold, settings, config.training.standardise_by)
    scaled = data.scaled(scaling)
    there = {
        modality: inputs.on(torch.device(device)) for modality, inputs in scaled.inputs.items()
    }
    if any(inputs.streamed or inputs.pinned for inputs in there.values()):
        return []
    values = {modality: inputs.values for modality, inputs in there.items()}
    dims = {m: x.shape[1] + -x.shape[1] % ALIGNED for m, x in values.items()}
    values = {m: F.pad(x, (0, dims[m] - x.shape[1])) for m, x in values.items()}
    groups = data.groups(fold.train, config.fusion.unit)
    shuffled_labels = np.stack(
        [fit.shuffled(data, fold, each).utterances.labels for each in configs]
    )
    labels = torch.from_numpy(shuffled_labels).to(device)  # [R, utterances]

    models, dropping = [], []
    for each in configs:
        torch.manual_seed(each.seed)
        models.append(
            config.fusion.build(settings, data.dims, len(data.utterances.classes)).to(device)
        )
        dropping.append(Generator(device).manual_seed(each.seed))
    shuffling = [Generator().manual_seed(each.seed) for each in configs]
    frame = config.fusion.build(settings, dims, len(data.utterances.classes))
    stack = StackedRuns(frame, models, values, dropping)
    optimiser = fit.make_optimiser(stack.weights, stage, settings)
    rate = torch.tensor(settings.lr, device=device)
    optimiser.param_groups[0].update(lr=rate, capturable=True)
    kinds = sorted({each.loss for each in configs})
    kind = torch.tensor([[kinds.index(each.loss) for each in configs]], device=device)  # [1, R]
    losses_of = [
        partial(fit.training_loss, config=replace(config, loss=name), stage=stage) for name in kinds
    ]
    kept = {name: weight.detach().clone() for name, weight in stack.weights.items()}
    selections = [Selection(each) for each in configs]
    faults: dict[int, str] = {}

    graphs = Graphs(torch.device(device).type in GRAPHS, on_epoch)
    total, chosen = (
        torch.zeros(len(configs), device=device),
        torch.zeros_like(kind[0], dtype=torch.bool),
    )
    places: dict[tuple[int, ...], Tensor] = {}  # by shape: where the dialogues of a batch are named
    eval_groups = data.groups(eval_rows, config.fusion.unit)
    turns, held = table(groups), table(eval_groups)
    turns_there, held_there = turns.to(device), held.to(device)
    cuts = torch.arange(len(eval_groups)).split(settings.batch_size) if eval_groups else ()
    laid = [
        batch_of(held, some.expand(len(configs), -1)) for some in cuts
    ]  # all runs and epochs evaluate alike
    evaluated = [(held_there, some.to(device), r) for some, r in laid]

    def step(batch: Tensor, r: int) -> Tensor:
        """One update of all runs, of tensors alone; their losses `[R]`."""
        with config.autocast():
            outputs, rows, real = stack(turns_there, batch, r, training=True)
            outputs = {head: x.float() for head, x in outputs.items()}
        truth = torch.where(real, labels.gather(1, rows), NO_LABEL)
        by_kind = [vmap(loss)(outputs, truth) for loss in losses_of]
        losses = torch.stack(by_kind).gather(0, kind)[0]  # each run's own
        total.add_(losses.detach() * (1 if config.reduction == "sum" else real.sum(1)))
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
        return losses.detach()

    @torch.no_grad()
    def best(*batch: Any) -> Tensor:
        """The most likely class of each row, int64 `[R, r]`; -1 where there is none."""
        with config.autocast():
            outputs, _, real = stack(*batch)
        return torch.where(real, outputs["logits"].argmax(2), -1)

    def keep() -> Tensor:
        """The weights of the chosen runs in the place of what is kept of them."""
        for name, weight in stack.weights.items():
            of_run = chosen.view(-1, *[1] * (weight.ndim - 1))
            kept[name].copy_(torch.where(of_run, weight.detach(), kept[name]))
        return chosen

    for epoch in range(settings.epochs):
        left = [
            i
            for i, selection in enumerate(selections)
            if i not in faults and not selection.stopped(stage)
        ]
        if not left:
            break
        started = time.perf_counter()
        order = torch.stack([torch.randperm(len(groups), generator=one) for one in shuffling])
        starts, every = range(0, len(groups), settings.batch_size), list[Tensor]()
        total.zero_()
        for update, start in enumerate(starts, epoch * len(starts)):
            some, r = batch_of(turns, order[:, start : start + settings.batch_size])
            place = places.setdefault((r, some.shape[1]), torch.empty_like(some, device=device))
            place.copy_(some.pin_memory() if torch.cuda.is_available() else some, non_blocking=True)
            if start == 0:
                stack.draw(turns_there, place, r)
            rate.fill_(fit.learning_rate(settings, update))
            every.append(graphs((r, some.shape[1]), partial(step, place, r)))
        # Checked once per epoch: after every batch the GPU would wait for the answer.
        for i, of_run in enumerate(torch.stack(every, 1).tolist()):
            if i in left and (fault := fit.divergence(of_run, stage, epoch)):
                faults[i] = fault
        means = (total / len(fold.train)).tolist()
        scored = dict[str, np.ndarray]()
        if evaluated:
            classes = [graphs(i, partial(best, *each)) for i, each in enumerate(evaluated)]
            truth, predicted = (
                data.utterances.labels[np.concatenate(eval_groups)],
                torch.cat(classes, 1).cpu(),
            )
            predicted = predicted[:, predicted[0] >= 0]
            scored = metrics(confusions(truth, predicted.numpy(), len(data.utterances.classes)))
        seconds = (time.perf_counter() - started) / len(configs)
        better = [False] * len(configs)
        for i, selection in enumerate(selections):
            if i in left and i not in faults:
                found = None
                if scored:
                    found = Scores(
                        n=len(eval_rows),
                        wa=float(scored["wa"][i]),
                        ua=float(scored["ua"][i]),
                        macro_f1=float(scored["macro_f1"][i]),
                    )
                line = selection.add(stage, epoch, means[i], found, seconds)
                better[i] = line.kept
                if on_epoch:
                    on_epoch[i](line)
        chosen.copy_(torch.tensor(better))
        graphs("keep", keep)

    # What a run's own loss does not train stays as at the start: here the loss of another run may
    # have moved it.
    idle, [batch] = dict[str, set[str]](), scaled.batches(groups[0], config.fusion.unit, 1, {})
    for name, loss in zip(kinds, losses_of, strict=True):
        alone, batch.heads = copy.deepcopy(models[0]).cpu(), replace(config, loss=name).heads(stage)
        loss(alone(batch), batch.truth).backward()
        idle[name] = {
            weight_name for weight_name, weight in alone.named_parameters() if weight.grad is None
        }
    fitted = list[Fitted]()
    for i, (each, model) in enumerate(zip(configs, models, strict=True)):
        shapes = {
            name: weight.shape
            for name, weight in model.named_parameters()
            if name not in idle[each.loss]
        }
        own_weights = {
            name: kept[name][i][..., : sum(shape[-1:])] for name, shape in shapes.items()
        }
        model.load_state_dict(own_weights, strict=False)
        fitted.append(Fitted(model, scaling, selections[i].history, faults.get(i)))
    return fitted


def runs_at_once(data: Dataset, fold: Fold, config: TrainConfig) -> int:
    """About how many runs fit into the free memory of a GPU: each with its weights and its largest
    batch.
    """
    if torch.device(config.device).type != "cuda":
        return MAX_RUNS
    with torch.random.fork_rng(devices=[]):
        model = config.fusion.build(config.settings, data.dims, len(data.utterances.classes))
    weights = sum(weight.numel() for weight in model.parameters())
    turns = sorted(map(len, data.groups(fold.train, config.fusion.unit)))[
        -config.settings.batch_size :
    ]
    inputs = sum(turns) * sum(data.dims.values())
    attended = len(turns) * turns[-1] ** 2 * config.settings.heads * 3  # of up to three streams
    # Weights, gradients, Adam's moments, what is kept, and room; what the way back holds beside the
    # rest, twice, as a graph keeps its own; and what dropout keeps, of up to six layers.
    dropped = len(data.utterances) * 6 * 2 * config.settings.gru_hidden
    needed = 4 * (6 * weights + 2 * (3 * inputs + 4 * attended)) + dropped
    free, _ = torch.cuda.mem_get_info(config.device)
    return max(1, min(MAX_RUNS, int(SHARE * free / needed)))
