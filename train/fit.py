"""The training loop: Adam over the batches, evaluation after each epoch, the epoch that the selection names is kept.

One thread, one seed: the same seed gives the same bytes on one machine.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ser.cache.errors import SerError, WrongUse

from .data import Dataset
from .inputs import Scaling
from .losses import LOSSES, Reduction, cross_entropy
from .metrics import scores
from .models import Fusion, Stage
from .protocols import Fold
from .settings import TrainingSettings
from .views import with_views

Select = Literal["val", "last", "best-test"]
Precision = Literal["float32", "bf16"]
SELECTIONS = {
    "val": "the epoch with the best score on the dev part",
    "last": "the last epoch",
    "best-test": "the epoch with the best score on the TEST part, which lifts every number",
}


class Diverged(SerError):
    """The loss is no longer a number. `kept` and `scaling` are those of the last good epoch that the selection kept."""

    def __init__(self, message: str, kept: Mapping[str, Tensor], scaling: Mapping[str, Scaling]) -> None:
        super().__init__(message)
        self.kept, self.scaling = kept, scaling


@dataclass(frozen=True)
class Plan:
    """How one run trains."""

    fusion: Fusion
    settings: Any  # of the fusion
    training: TrainingSettings
    loss: str = "single"
    select: Select = "val"
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "float32"

    def autocast(self) -> torch.autocast:
        """Where a forward pass runs: in bfloat16 wherever that is safe, if `precision` is bf16."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def reduction(self) -> Reduction:
        """Sum over the utterances of a batch of dialogues (Perspective eq. 3), mean elsewhere, unless set."""
        if self.training.reduction == "auto":
            return "sum" if self.fusion.unit == "dialogue" else "mean"
        return self.training.reduction


@dataclass(frozen=True)
class Epoch:
    """One line of a run's log; `wa` and `ua` of the part that is watched (dev, or test with best-test), if any."""

    stage: str
    epoch: int  # from 1
    epochs: int
    loss: float  # mean per utterance
    wa: float | None
    ua: float | None
    seconds: float
    kept: bool  # whether this epoch is the one to keep so far


@dataclass
class State:
    """Where a run stands at the end of an epoch: all that is needed to go on to the same bytes."""

    stage: int
    epoch: int  # epochs done in this stage
    best_score: float
    history: list[dict[str, Any]]
    tensors: dict[str, Tensor]  # model.*, kept.*, adam.<n>.*, random.*


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
    if plan.select == "val" and not len(fold.dev):
        raise WrongUse("--select val needs a dev part, and dev=none leaves none; use --select last or another dev")
    training = _Training(data, fold, plan)
    return training.run(on_epoch or (lambda epoch: None), on_state or (lambda take: None), resume)


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
        torch.manual_seed(plan.seed)  # initial weights, and dropout from here on
        self.model = plan.fusion.build(plan.settings, data.dims, len(data.utterances.classes)).to(plan.device)
        self.shuffling = Generator().manual_seed(plan.seed)
        self.hiding = Generator().manual_seed(plan.seed)
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
            optimiser = make_optimiser(self.model, stage, self.plan.settings)
            self.best_score = -math.inf
            first = 0
            if resume and number == resume.stage:
                first = self._restore(resume, optimiser)
            for epoch in range(first, self.plan.settings.epochs):
                on_epoch(self._epoch(stage, epoch, optimiser))
                on_state(lambda n=number, done=epoch + 1, adam=optimiser: self._state(n, done, adam))  # type: ignore[misc]
            self.model.load_state_dict(self.kept)
        return Fitted(self.model, self.scaling, self.history)

    def _epoch(self, stage: Stage, epoch: int, optimiser: torch.optim.Adam) -> Epoch:
        """Train on every batch once, then look at the watched part."""
        plan, settings = self.plan, self.plan.settings
        started = time.perf_counter()
        total = 0.0
        self.model.train()
        batches = self.lessons.batches(
            self.rows,
            plan.fusion.unit,
            settings.batch_size,
            self.live,
            generator=self.shuffling,
            soft=plan.training.soft_labels,
        )
        for number, batch in enumerate(batches):
            if self.masking is not None:
                batch.hidden = self.masking.hide(len(batch), epoch, settings.epochs, self.hiding)
            batch = batch.to(plan.device)
            with plan.autocast():
                outputs = {head: logits.float() for head, logits in self.model(batch).items()}
            if stage.output == "logits":
                loss = LOSSES[plan.loss](outputs, batch, plan.reduction)
            else:
                loss = cross_entropy(outputs[stage.output], batch, plan.reduction)
            value = loss.item()
            if not math.isfinite(value):
                raise Diverged(
                    f"the loss became {value} in epoch {epoch + 1}, batch {number + 1} (stage {stage.name}); the best "
                    "weights before it are kept; try a lower lr or --set clip_norm=1",
                    self.kept,
                    self.scaling,
                )
            optimiser.zero_grad()
            loss.backward()
            if plan.training.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), plan.training.clip_norm)
            set_rate(optimiser, settings)
            optimiser.step()
            total += value * (1 if plan.reduction == "sum" else len(batch))
        return self._look(stage, epoch, total / len(self.rows), started)

    def _look(self, stage: Stage, epoch: int, loss: float, started: float) -> Epoch:
        """Score the watched part and keep the weights if the selection says so."""
        plan = self.plan
        watched = self.fold.test if plan.select == "best-test" else self.fold.dev
        wa = ua = None
        if len(watched):
            probabilities = predict(self.model, self.data, watched, plan, self.live)[stage.output]
            labels = self.data.utterances.labels[watched]
            found = scores(labels.tolist(), probabilities.argmax(1).tolist(), self.data.utterances.classes)
            wa, ua = found["wa"], found["ua"]
        score = (ua if plan.training.select_score == "ua" else wa) if plan.select != "last" else float(epoch)
        kept = score is not None and score > self.best_score
        if kept and score is not None:
            self.best_score, self.kept = score, snapshot(self.model)
        line = Epoch(stage.name, epoch + 1, plan.settings.epochs, loss, wa, ua, time.perf_counter() - started, kept)
        self.history.append(asdict(line))
        return line

    def _state(self, stage: int, epoch: int, optimiser: torch.optim.Adam) -> State:
        tensors = {f"model.{name}": value for name, value in snapshot(self.model).items()}
        tensors |= {f"kept.{name}": value for name, value in self.kept.items()}
        for number, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value.detach().clone() for name, value in moments.items()}
        tensors |= {
            "random.torch": torch.get_rng_state(),
            "random.shuffling": self.shuffling.get_state(),
            "random.hiding": self.hiding.get_state(),
        }
        return State(stage, epoch, self.best_score, list(self.history), tensors)

    def _restore(self, state: State, optimiser: torch.optim.Adam) -> int:
        """Stand where the state stood. Returns the epochs done in its stage."""
        pick = _below(state.tensors)
        self.model.load_state_dict(pick("model"))
        self.kept = pick("kept")
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in pick("adam").items():
            number, _, moment = name.partition(".")
            moments.setdefault(int(number), {})[moment] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        torch.set_rng_state(state.tensors["random.torch"])
        self.shuffling.set_state(state.tensors["random.shuffling"])
        self.hiding.set_state(state.tensors["random.hiding"])
        self.history, self.best_score = list(state.history), state.best_score
        return state.epoch


def shuffled(data: Dataset, fold: Fold, seed: int) -> Dataset:
    """The same utterances with the labels of the training part in random order."""
    labels = data.utterances.labels.copy()
    labels[fold.train] = np.random.default_rng(seed).permutation(labels[fold.train])
    return replace(data, utterances=replace(data.utterances, labels=labels), targets=None)


def _below(tensors: Mapping[str, Tensor]) -> Callable[[str], dict[str, Tensor]]:
    return lambda prefix: {
        name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")
    }


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def make_optimiser(model: nn.Module, stage: Stage, settings: Any) -> torch.optim.Adam:
    """Adam over the stage's parameters, with its L2 term in the gradient (Perspective §3.3, USC Table 2)."""
    chosen = [weight for name, weight in model.named_parameters() if name.startswith(stage.trains)]
    return torch.optim.Adam(chosen, lr=settings.lr, weight_decay=settings.weight_decay)


def set_rate(optimiser: torch.optim.Adam, settings: Any) -> None:
    """The rate of update t = 0, 1, … is lr / (1 + lr_decay t), where the fusion has an `lr_decay`."""
    decay = getattr(settings, "lr_decay", 0.0)
    if decay:
        first = optimiser.param_groups[0]["params"][0]
        done = float(optimiser.state[first]["step"]) if first in optimiser.state else 0.0
        optimiser.param_groups[0]["lr"] = settings.lr / (1 + decay * done)


def fit_scaling(data: Dataset, fold: Fold, settings: Any) -> dict[str, Scaling]:
    """Z-scores of the modalities whose `standardise_…` is set, from the training part alone."""
    return {
        modality: Scaling.of(inputs, fold.train)
        for modality, inputs in data.inputs.items()
        if getattr(settings, f"standardise_{modality}", False)
    }


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: Dataset,
    rows: np.ndarray,
    plan: Plan,
    scaling: Mapping[str, Scaling],
    hide: str | None = None,
) -> dict[str, np.ndarray]:
    """Probabilities [n, K] of the given rows, in their order, for each head; `hide` hides one modality from all."""
    model.eval()
    found: dict[str, np.ndarray] = {}
    place = np.empty(len(data.utterances), dtype=np.int64)
    place[rows] = np.arange(len(rows))
    for batch in data.batches(rows, plan.fusion.unit, plan.settings.batch_size, scaling):
        if hide:
            batch.hidden = {hide: torch.ones(len(batch), dtype=torch.bool)}
        with plan.autocast():
            outputs = model(batch.to(plan.device))
        for head, logits in outputs.items():
            probabilities = found.setdefault(head, np.empty((len(rows), logits.shape[1]), dtype=np.float32))
            probabilities[place[batch.utterances.numpy()]] = logits.float().softmax(1).cpu().numpy()
    return found
