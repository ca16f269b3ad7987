"""The training loop of `fit` for many runs of one fold at once: on a GPU a small model leaves most of it idle.

The runs differ in seed and loss. Each draws its batches and its dropout from generators of its own, so that the others
change nothing but the order of sums. On a CPU these are the draws of `fit`, if the loss wants all heads (all are
computed here); a GPU's own dropout draws otherwise. A run whose loss is no longer a number is told when the others are
done.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.func import vmap

from .data import Dataset
from .fit import (
    LOSSES,
    Diverged,
    Epoch,
    Fitted,
    Reduction,
    fit_standardizers,
    make_optimiser,
    refuse_without_dev,
    set_rate,
    shuffled,
    snapshot,
)
from .models.ragged import Batch
from .models.stacked import NO_LABEL, Layout, Stack
from .scores import confusions, unweighted_accuracy, weighted_accuracy
from .settings import TrainConfig
from .splits import Fold

MOST = 64  # runs at once: beyond, even a large GPU has enough to do
SHARE = 0.4  # of a GPU's free memory: two workers may ask at the same moment


def can_train_together(data: Dataset, plan: TrainConfig) -> bool:
    """Whether this plan can be trained with others of its kind at once: its fusion must say so."""
    apart = plan.training.soft_labels or plan.training.clip_norm or data.views
    return plan.fusion.stacks is not None and plan.fusion.stacks(plan.settings) and not apart


def fit_many(
    data: Dataset, fold: Fold, plans: Sequence[TrainConfig], on_epoch: Sequence[Callable[[Epoch], None]] = ()
) -> list[Fitted | Diverged]:
    """Train one model per plan; the plans differ in seed and loss alone, and `can_train_together` holds for them.

    `on_epoch[i]` hears of every epoch of plan i. A run that diverged gives the fault in the place of its model.
    Raises `WrongUse` for a selection on a dev part that is empty.
    """
    refuse_without_dev(fold, plans[0])
    with torch.random.fork_rng(devices=[]):
        return _Together(data, fold, plans).run(on_epoch or [lambda epoch: None] * len(plans))


@dataclass
class _Run:
    """What is one run's own."""

    plan: TrainConfig
    model: nn.Module
    shuffling: Generator
    labels: np.ndarray  # of all utterances
    best_score: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)
    fault: str | None = None


class _Together:
    """R runs in the making."""

    def __init__(self, data: Dataset, fold: Fold, plans: Sequence[TrainConfig]) -> None:
        self.fold, self.plan = fold, plans[0]
        self.scaling = fit_standardizers(data, fold, self.plan.settings)
        self.data = data.scaled(self.scaling)
        self.values = {m: x.values for m, x in self.data.on(self.plan.device).inputs.items()}
        self.groups = data.groups(fold.train, self.plan.fusion.unit)
        dropping = []
        self.runs: list[_Run] = []
        for plan in plans:
            torch.manual_seed(plan.seed)
            model = plan.fusion.build(plan.settings, data.dims, len(data.utterances.classes)).to(plan.device)
            dropping.append(_dropping(plan))
            lessons = shuffled(data, fold, plan.seed) if plan.training.shuffle_labels else data
            self.runs.append(_Run(plan, model, Generator().manual_seed(plan.seed), lessons.utterances.labels))
        self.labels = np.stack([run.labels for run in self.runs])
        self.stack = Stack([run.model for run in self.runs], self.plan.settings.dropout, dropping)
        self.optimiser = make_optimiser(self.stack.weights, self.plan.fusion.stages[0], self.plan.settings)
        self.losses = sorted({plan.loss for plan in plans})
        own = [[self.losses.index(plan.loss) for plan in plans]]
        self.own = torch.tensor(own, device=self.plan.device)  # [1, R]
        self.idle = {loss: self._idle(replace(self.plan, loss=loss)) for loss in self.losses}
        self.kept = {name: weight.detach().clone() for name, weight in self.stack.weights.items()}

    def _idle(self, plan: TrainConfig) -> set[str]:
        """The weights that a run by itself would leave as they are, since its loss does not look at what they give."""
        model = copy.deepcopy(self.runs[0].model)
        [batch] = self.data.on(plan.device).batches(self.groups[0], plan.fusion.unit, 1, {})
        batch.heads = plan.heads(plan.fusion.stages[0])
        LOSSES[plan.loss](model(batch), batch, plan.reduction).backward()
        return {name for name, weight in model.named_parameters() if weight.grad is None}

    def run(self, on_epoch: Sequence[Callable[[Epoch], None]]) -> list[Fitted | Diverged]:
        for epoch in range(self.plan.settings.epochs):
            started = time.perf_counter()
            losses = self._train(epoch)
            for i, line in self._look(epoch, losses, started).items():
                self.runs[i].history.append(asdict(line))
                on_epoch[i](line)
            if all(run.fault for run in self.runs):
                break
        return [self._outcome(i, run) for i, run in enumerate(self.runs)]

    def _train(self, epoch: int) -> np.ndarray:
        """Every batch of every run once; the mean loss per utterance of each run `[R]`."""
        plan, size = self.plan, self.plan.settings.batch_size
        order = torch.stack([torch.randperm(len(self.groups), generator=run.shuffling) for run in self.runs]).numpy()
        total = torch.zeros(len(self.runs), device=plan.device)
        bad = torch.zeros(len(self.runs), dtype=torch.int64, device=plan.device)  # the batch that was, from 1
        for number, start in enumerate(range(0, len(self.groups), size), 1):
            layout = Layout.of(self.groups, order[:, start : start + size])
            truth = np.where(layout.real, np.take_along_axis(self.labels, layout.rows, 1), NO_LABEL)
            with plan.autocast():
                outputs = {h: x.float() for h, x in self.stack(self.values, layout, training=True).items()}
            losses = self._losses(outputs, torch.from_numpy(truth).to(plan.device, non_blocking=True))
            bad = torch.where((bad == 0) & ~losses.isfinite(), number, bad)
            self.optimiser.zero_grad()
            losses.sum().backward()
            set_rate(self.optimiser, plan.settings)
            self.optimiser.step()
            weight = 1 if plan.reduction == "sum" else torch.from_numpy(layout.real.sum(1)).to(plan.device)
            total += losses.detach() * weight
        # Looked at here alone: to ask after every batch would have the GPU wait for the answer.
        for run, batch in zip(self.runs, bad.tolist(), strict=True):
            if batch and not run.fault:
                run.fault = (
                    f"the loss became no number in epoch {epoch + 1}, batch {batch} (stage train); the best weights "
                    "before it are kept; try a lower lr or --set clip_norm=1"
                )
        return (total / len(self.fold.train)).cpu().numpy()

    def _losses(self, outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The loss of each run, by its own plan `[R]`."""
        found = {loss: vmap(partial(_loss, loss, self.plan.reduction))(outputs, labels) for loss in self.losses}
        return torch.stack(list(found.values())).gather(0, self.own)[0]

    def _look(self, epoch: int, losses: np.ndarray, started: float) -> dict[int, Epoch]:
        """Score the watched part of each run that is still at it, and keep the weights that its selection names."""
        plan = self.plan
        watched = self.fold.test if plan.select == "best-test" else self.fold.dev
        matrices = self._confusions(watched) if len(watched) else None
        seconds = (time.perf_counter() - started) / len(self.runs)
        lines, better = {}, np.zeros(len(self.runs), dtype=bool)
        for i, run in enumerate(self.runs):
            if run.fault:
                continue
            wa = ua = None
            if matrices is not None:
                wa, ua = float(weighted_accuracy(matrices[i])), float(unweighted_accuracy(matrices[i]))
            score = (ua if plan.training.select_score == "ua" else wa) if plan.select != "last" else float(epoch)
            better[i] = score is not None and score > run.best_score
            if better[i] and score is not None:
                run.best_score = score
            stage, epochs = plan.fusion.stages[0].name, plan.settings.epochs
            lines[i] = Epoch(stage, epoch + 1, epochs, float(losses[i]), wa, ua, seconds, bool(better[i]))
        chosen = torch.from_numpy(better).to(plan.device)
        for name, weight in self.stack.weights.items():
            self.kept[name] = torch.where(chosen.view(-1, *[1] * (weight.ndim - 1)), weight.detach(), self.kept[name])
        return lines

    @torch.no_grad()
    def _confusions(self, watched: np.ndarray) -> np.ndarray:
        """C `[R, K, K]` of the watched part."""
        plan, size = self.plan, self.plan.settings.batch_size
        groups = self.data.groups(watched, plan.fusion.unit)
        truth, predicted = [], []
        for start in range(0, len(groups), size):
            of_one = np.arange(start, min(start + size, len(groups)))
            layout = Layout.of(groups, np.tile(of_one, (len(self.runs), 1)))
            with plan.autocast():
                logits = self.stack(self.values, layout, training=False)["logits"]
            real = layout.real[0]
            truth.append(self.data.utterances.labels[layout.rows[0, real]])
            predicted.append(logits.argmax(2)[:, torch.from_numpy(real)])
        classes = len(self.data.utterances.classes)
        return confusions(np.concatenate(truth), torch.cat(predicted, 1).cpu().numpy(), classes)

    def _outcome(self, i: int, run: _Run) -> Fitted | Diverged:
        idle = self.idle[run.plan.loss]  # these stay as at the start: here the loss of another run may have moved them
        kept = {name: weight[i] for name, weight in self.kept.items() if name not in idle}
        run.model.load_state_dict(kept, strict=False)
        if run.fault:
            return Diverged(run.fault, snapshot(run.model), self.scaling)
        return Fitted(run.model, self.scaling, run.history)


def _dropping(plan: TrainConfig) -> Generator:
    """The generator of a run's dropout, which goes on, on a CPU, where that of its first weights stands."""
    generator = Generator(plan.device)
    return generator.set_state(torch.get_rng_state()) if plan.device == "cpu" else generator.manual_seed(plan.seed)


def _loss(loss: str, reduction: Reduction, outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """One run's loss, as it is under vmap."""
    return LOSSES[loss](outputs, Batch({}, labels=labels, utterances=labels, dialogues=labels), reduction)


def runs_at_once(data: Dataset, fold: Fold, plan: TrainConfig) -> int:
    """About how many runs fit into what is free of a GPU's memory: each with its weights and its largest batch."""
    if torch.device(plan.device).type != "cuda":
        return MOST
    with torch.random.fork_rng(devices=[]):
        model = plan.fusion.build(plan.settings, data.dims, len(data.utterances.classes))
    weights = sum(weight.numel() for weight in model.parameters())
    turns = sorted(map(len, data.groups(fold.train, plan.fusion.unit)))[-plan.settings.batch_size :]
    inputs = sum(turns) * sum(data.dims.values())
    attended = len(turns) * turns[-1] ** 2 * plan.settings.heads * 3  # of up to three streams
    # Weights, gradients, Adam's moments, what is kept, and room; and what the way back holds beside the rest.
    needed = 4 * (6 * weights + 3 * inputs + 4 * attended)
    free, _ = torch.cuda.mem_get_info(plan.device)
    return max(1, min(MOST, int(SHARE * free / needed)))
