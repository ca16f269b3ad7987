"""The training loop: Adam over the batches, evaluation after each epoch, the epoch that the selection names is kept.

One thread, one seed: the same seed gives the same bytes on one machine.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ser.cache.errors import SerError, WrongUse

from .adam import Adam
from .data import Dataset
from .evaluate import predict
from .folds import Fold
from .inputs import Scaling
from .losses import LOSSES, cross_entropy
from .metrics import confusions, unweighted_accuracy, weighted_accuracy
from .models import Stage
from .plan import Plan
from .state import State, collect, restore, snapshot
from .views import with_views


class Diverged(SerError):
    """The loss is no longer a number. `kept` and `scaling` are those of the last good epoch that the selection kept."""

    def __init__(self, message: str, kept: Mapping[str, Tensor], scaling: Mapping[str, Scaling]) -> None:
        super().__init__(message)
        self.kept, self.scaling = kept, scaling


@dataclass(frozen=True)
class Epoch:
    """One line of a run's log; `wa` and `ua` of the part that is watched (dev, or test with best-test), if any."""

    stage: str
    epoch: int  # from 1
    epochs: int
    loss: float  # mean per utterance
    wa: float | None
    ua: float | None
    seconds: float  # of runs that are trained at once, each its share
    kept: bool  # whether this epoch is the one to keep so far


@dataclass
class Fitted:
    """The model with the weights that the selection chose."""

    model: nn.Module
    scaling: dict[str, Scaling]
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The epoch that was kept in the last stage, from 1."""
        return [line["epoch"] for line in self.history if line["kept"]][-1]


def fit(
    data: Dataset,
    fold: Fold,
    plan: Plan,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_state: Callable[[Callable[[], State]], None] | None = None,
    resume: State | None = None,
) -> Fitted:
    """Train one model on one fold.

    `on_epoch` hears of every epoch; `on_state` gets a function that takes the state, to call when it wants to keep it.
    `resume` goes on from a state. Raises `Diverged` when the loss is no longer a number, naming epoch and batch.
    """
    refuse_without_dev(fold, plan)
    training = _Training(data, fold, plan)
    return training.run(on_epoch or (lambda epoch: None), on_state or (lambda take: None), resume)


def refuse_without_dev(fold: Fold, plan: Plan) -> None:
    """Raise `WrongUse` for a selection on a dev part that is empty."""
    if plan.select == "val" and not len(fold.dev):
        raise WrongUse("--select val needs a dev part, and dev=none leaves none; use --select last or another dev")


class _Training:
    """One run in the making."""

    def __init__(self, data: Dataset, fold: Fold, plan: Plan) -> None:
        self.data, self.fold, self.plan = data, fold, plan
        self.scaling = fit_scaling(data, fold, plan.settings)
        self.live = self.scaling  # what each batch still has to go through
        lessons = shuffled(data, fold, plan.seed) if plan.training.shuffle_labels else data
        self.lessons, self.rows = with_views(lessons, fold.train)
        if plan.fusion.level == "vector":  # small enough to be scaled once, in place of in every epoch
            self.data, self.live = data.scaled(self.scaling), {}
            self.lessons = self.data if self.lessons is data else self.lessons.scaled(self.scaling)
        self.data, self.lessons = self.data.on(plan.device), self.lessons.on(plan.device)
        torch.manual_seed(plan.seed)  # initial weights, and dropout from here on
        self.model = plan.fusion.build(plan.settings, data.dims, len(data.utterances.classes)).to(plan.device)
        self.generators = {name: Generator().manual_seed(plan.seed) for name in ("shuffling", "hiding")}
        self.trainable = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.masking = plan.fusion.masking(plan.settings) if plan.fusion.masking else None
        self.history: list[dict[str, Any]] = []
        self.kept = snapshot(self.model)
        self.best_score = -math.inf

    def run(
        self,
        on_epoch: Callable[[Epoch], None],
        on_state: Callable[[Callable[[], State]], None],
        resume: State | None,
    ) -> Fitted:
        for number, stage in enumerate(self.plan.fusion.stages):
            if resume and number < resume.stage:
                continue
            for name, weight in self.model.named_parameters():
                weight.requires_grad_(name in self.trainable and name.startswith(stage.trains))
            optimiser = make_optimiser(dict(self.model.named_parameters()), stage, self.plan.settings)
            self.best_score = -math.inf
            first = 0
            if resume and number == resume.stage:
                self.kept = restore(resume.tensors, self.model, optimiser, self.generators)
                self.history, self.best_score, first = list(resume.history), resume.best_score, resume.epoch
            for epoch in range(first, self.plan.settings.epochs):
                on_epoch(self._epoch(stage, epoch, optimiser))

                def take(stage: int = number, done: int = epoch + 1, adam: torch.optim.Adam = optimiser) -> State:
                    tensors = collect(self.model, self.kept, adam, self.generators)
                    return State(stage, done, self.best_score, list(self.history), tensors)

                on_state(take)
            self.model.load_state_dict(self.kept)
        return Fitted(self.model, self.scaling, self.history)

    def _epoch(self, stage: Stage, epoch: int, optimiser: torch.optim.Adam) -> Epoch:
        """Train on every batch once, then look at the watched part."""
        plan, settings = self.plan, self.plan.settings
        started = time.perf_counter()
        losses, sizes = [], []
        self.model.train()
        batches = self.lessons.batches(
            self.rows,
            plan.fusion.unit,
            settings.batch_size,
            self.live,
            generator=self.generators["shuffling"],
            soft=plan.training.soft_labels,
        )
        for batch in batches:
            if self.masking is not None:
                batch.hidden = self.masking.hide(len(batch), epoch, settings.epochs, self.generators["hiding"])
            batch.heads = plan.heads(stage)
            with plan.autocast():
                outputs = {head: logits.float() for head, logits in self.model(batch).items()}
            if stage.output == "logits":
                loss = LOSSES[plan.loss](outputs, batch, plan.reduction)
            else:
                loss = cross_entropy(outputs[stage.output], batch, plan.reduction)
            losses.append(loss.detach())
            sizes.append(1 if plan.reduction == "sum" else len(batch))
            if not loss.is_cuda:  # there, to ask for every loss would have the GPU wait for the answer
                self._refuse(stage, epoch, len(losses) - 1, loss.item())
            optimiser.zero_grad()
            loss.backward()
            if plan.training.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), plan.training.clip_norm)
            set_rate(optimiser, settings)
            optimiser.step()
        values = torch.stack(losses).tolist()
        for number, value in enumerate(values):
            self._refuse(stage, epoch, number, value)
        total = sum(value * size for value, size in zip(values, sizes, strict=True))
        return self._look(stage, epoch, total / len(self.rows), started)

    def _refuse(self, stage: Stage, epoch: int, batch: int, loss: float) -> None:
        """Raise `Diverged` unless the loss is a number."""
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss became {loss} in epoch {epoch + 1}, batch {batch + 1} (stage {stage.name}); the best "
                "weights before it are kept; try a lower lr or --set clip_norm=1",
                self.kept,
                self.scaling,
            )

    def _look(self, stage: Stage, epoch: int, loss: float, started: float) -> Epoch:
        """Score the watched part and keep the weights if the selection says so."""
        plan = self.plan
        watched = self.fold.test if plan.select == "best-test" else self.fold.dev
        wa = ua = None
        if len(watched):
            heads = frozenset({stage.output})
            probabilities = predict(self.model, self.data, watched, plan, self.live, heads=heads)[stage.output]
            labels, classes = self.data.utterances.labels[watched], len(self.data.utterances.classes)
            [matrix] = confusions(labels, probabilities.argmax(1)[None], classes)
            wa, ua = weighted_accuracy(matrix), unweighted_accuracy(matrix)
        score = (ua if plan.training.select_score == "ua" else wa) if plan.select != "last" else float(epoch)
        kept = score is not None and score > self.best_score
        if kept and score is not None:
            self.best_score, self.kept = score, snapshot(self.model)
        line = Epoch(stage.name, epoch + 1, plan.settings.epochs, loss, wa, ua, time.perf_counter() - started, kept)
        self.history.append(asdict(line))
        return line


def shuffled(data: Dataset, fold: Fold, seed: int) -> Dataset:
    """The same utterances with the labels of the training part in random order."""
    labels = data.utterances.labels.copy()
    labels[fold.train] = np.random.default_rng(seed).permutation(labels[fold.train])
    return replace(data, utterances=replace(data.utterances, labels=labels), targets=None)


def make_optimiser(weights: Mapping[str, Tensor], stage: Stage, settings: Any) -> torch.optim.Adam:
    """Adam over the stage's parameters, with its L2 term in the gradient (Perspective §3.3, USC Table 2)."""
    chosen = [weight for name, weight in weights.items() if weight.requires_grad and name.startswith(stage.trains)]
    fused = chosen[0].device.type in ("cpu", "cuda")  # one kernel for all weights
    return Adam(chosen, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)


def set_rate(optimiser: torch.optim.Adam, settings: Any) -> None:
    """Before each update: that of t = 0, 1, … has the rate lr / (1 + lr_decay t), if the fusion has an `lr_decay`."""
    decay = getattr(settings, "lr_decay", 0.0)
    if decay:
        group = optimiser.param_groups[0]
        if "updates" not in group:  # asked once, as after a resume: to ask each time would have a GPU wait
            first = group["params"][0]
            group["updates"] = int(optimiser.state[first]["step"]) if first in optimiser.state else 0
        group["lr"] = settings.lr / (1 + decay * group["updates"])
        group["updates"] += 1


def fit_scaling(data: Dataset, fold: Fold, settings: Any) -> dict[str, Scaling]:
    """Z-scores of the modalities whose `standardise_…` is set, from the training part alone."""
    return {
        modality: Scaling.of(inputs, fold.train)
        for modality, inputs in data.inputs.items()
        if getattr(settings, f"standardise_{modality}", False)
    }
