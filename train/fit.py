"""The training loop: Adam over the batches, evaluation after each epoch, the epoch that the selection names is kept.

One thread, one seed: the same seed gives the same bytes on one machine.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ser.errors import Diverged, WrongUse

from .data import Dataset, Standardizer, with_views
from .models import Stage
from .models.ragged import Batch
from .scores import confusions, unweighted_accuracy, weighted_accuracy
from .settings import Reduction, TrainConfig
from .splits import Fold


class Adam(torch.optim.Adam):
    """The same Adam, which does not import torch's compiler: that takes each process most of a second of CPU.

    torch wraps these methods in order to keep the compiler out of them, and imports it to do so. Here they stand
    as they are within the wrapping.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


Loss = Callable[[Mapping[str, Tensor], Batch, Reduction], Tensor]


def cross_entropy(logits: Tensor, batch: Batch, reduction: Reduction) -> Tensor:
    """Σ_i −log P(ŷ_i = y_i) over the utterances, or its mean; logits [n, K].

    With soft targets p [n, K] (USC §3.2): Σ_i Σ_k −p_ik log P(ŷ_i = k).
    """
    truth = batch.labels if batch.targets is None else batch.targets
    return F.cross_entropy(logits, truth, reduction=reduction)


def single(outputs: Mapping[str, Tensor], batch: Batch, reduction: Reduction) -> Tensor:
    """L_s of the fused logits (Perspective eq. 3)."""
    return cross_entropy(outputs["logits"], batch, reduction)


def perspective(outputs: Mapping[str, Tensor], batch: Batch, reduction: Reduction) -> Tensor:
    """L_p = L_a + L_t + L_s: the unimodal heads learn beside the fused one (Perspective eq. 4–6).

    Raises `WrongUse` for a model without the two heads.
    """
    if not {"audio", "text"} <= outputs.keys():
        raise WrongUse("--loss perspective needs audio and text heads, as lgf-add has them; use --loss single")
    audio, text, fused = (cross_entropy(outputs[head], batch, reduction) for head in ("audio", "text", "logits"))
    return audio + text + fused


LOSSES: dict[str, Loss] = {"single": single, "perspective": perspective}


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: Dataset,
    rows: np.ndarray,
    plan: TrainConfig,
    scaling: Mapping[str, Standardizer],
    hide: str | None = None,
    heads: frozenset[str] | None = None,
) -> dict[str, np.ndarray]:
    """Probabilities [n, K] of the given rows, in their order, for each head, or those of `heads` at least.

    `hide` hides one modality from all.
    """
    model.eval()
    found: dict[str, np.ndarray] = {}
    place = np.empty(len(data.utterances), dtype=np.int64)
    place[rows] = np.arange(len(rows))
    for batch in data.batches(rows, plan.fusion.unit, plan.settings.batch_size, scaling):
        batch.heads = heads
        if hide:
            batch.hidden = {hide: torch.ones(len(batch), dtype=torch.bool)}
        with plan.autocast():
            outputs = model(batch.to(plan.device))
        for head, logits in outputs.items():
            probabilities = found.setdefault(head, np.empty((len(rows), logits.shape[1]), dtype=np.float32))
            probabilities[place[batch.utterances.numpy()]] = logits.float().softmax(1).cpu().numpy()
    return found


@dataclass
class State:
    """The model, the weights kept so far, Adam's moments and every random generator, on the CPU."""

    stage: int
    epoch: int  # epochs done in this stage
    best_score: float
    history: list[dict[str, Any]]
    tensors: dict[str, Tensor]  # model.*, kept.*, adam.<n>.*, random.*


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def collect(
    model: nn.Module, kept: Mapping[str, Tensor], optimiser: torch.optim.Adam, generators: Mapping[str, Generator]
) -> dict[str, Tensor]:
    """The tensors of a `State`."""
    tensors = {f"model.{name}": value for name, value in snapshot(model).items()}
    tensors |= {f"kept.{name}": value for name, value in kept.items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value.detach().to("cpu", copy=True) for name, value in moments.items()}
    tensors |= {f"random.{name}": generator.get_state() for name, generator in generators.items()}
    tensors["random.torch"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimiser: torch.optim.Adam,
    generators: Mapping[str, Generator],
) -> dict[str, Tensor]:
    """Put everything back as `collect` found it. Returns the weights that were kept."""
    model.load_state_dict(_below(tensors, "model"))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "adam").items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    for name, generator in generators.items():
        generator.set_state(tensors[f"random.{name}"])
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return _below(tensors, "kept")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{prefix}."): value for n, value in tensors.items() if n.startswith(f"{prefix}.")}


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
    scaling: dict[str, Standardizer]
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The epoch that was kept in the last stage, from 1."""
        return [line["epoch"] for line in self.history if line["kept"]][-1]


def fit(
    data: Dataset,
    fold: Fold,
    plan: TrainConfig,
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


def refuse_without_dev(fold: Fold, plan: TrainConfig) -> None:
    """Raise `WrongUse` for a selection on a dev part that is empty."""
    if plan.select == "val" and not len(fold.dev):
        raise WrongUse("--select val needs a dev part, and dev=none leaves none; use --select last or another dev")


class _Training:
    """One run in the making."""

    def __init__(self, data: Dataset, fold: Fold, plan: TrainConfig) -> None:
        self.data, self.fold, self.plan = data, fold, plan
        self.scaling = fit_standardizers(data, fold, plan.settings)
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
            wa, ua = float(weighted_accuracy(matrix)), float(unweighted_accuracy(matrix))
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


def fit_standardizers(data: Dataset, fold: Fold, settings: Any) -> dict[str, Standardizer]:
    """Z-scores of the modalities whose `standardise_…` is set, from the training part alone."""
    return {
        modality: Standardizer.of(inputs, fold.train)
        for modality, inputs in data.inputs.items()
        if getattr(settings, f"standardise_{modality}", False)
    }
