"""The training loop: Adam over the batches, evaluation after each epoch, the epoch that the
selection names is kept.

One thread, one seed: the same seed gives the same bytes on one machine, also for a run that is
resumed.
"""

import inspect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from msgspec import convert, to_builtins
from safetensors.torch import save
from torch import Generator, Tensor, nn

from ser.engines import exact_arithmetic
from ser.errors import WrongUse

from .config import TrainConfig
from .data.dataset import Dataset
from .data.folds import Fold
from .data.standardizer import Standardizer
from .data.views import with_views
from .models import Stage
from .models.ragged import Heads
from .records import Epoch, Scores
from .targets import TARGETS

NO_NUMBERS = "the predictions became nan; try a lower lr or --set clip_norm=1"
Random = Mapping[str, Generator]  # that of torch, and those of a training's own draws
EVALUATED = 64  # utterances at once on a GPU, at least: an evaluation keeps no activations


@dataclass
class Fitted:
    """A model with its scaling: at the end of a training, with the weights that the selection
    chose.
    """

    model: nn.Module
    scaling: dict[str, Standardizer]
    history: list[Epoch] = field(default_factory=list)
    fault: str | None = None  # why it ended too early; the weights are the best before that

    @property
    def epoch(self) -> int:
        """The epoch that was kept in the last stage, from 1."""
        return [line.epoch for line in self.history if line.kept][-1]

    @torch.inference_mode()
    def predict(
        self,
        data: Dataset,
        rows: np.ndarray,
        config: TrainConfig,
        hide: str | None = None,
        heads: Heads = None,
    ) -> dict[str, np.ndarray]:
        """The target's predictions [n, …] for the given rows, in their order, by head: for those of
        `heads` at least.

        `hide` hides one modality from all.
        """
        exact_arithmetic(config.device, config.deterministic)
        self.model.eval()
        target = TARGETS[config.target]
        predictions: dict[str, list[Tensor]] = {}
        predicted_rows, size = list[Tensor](), config.settings.batch_size
        if config.fusion.unit == "utterance" and torch.device(config.device).type == "cuda":
            size = max(size, EVALUATED)
        hidden = (lambda n: {hide: torch.ones(n, dtype=torch.bool)}) if hide else None
        for batch in data.on(config.device).batches(
            rows, config.fusion.unit, size, self.scaling, hide=hidden
        ):
            batch.heads = heads
            with config.autocast():
                outputs = self.model(batch)
            predicted_rows.append(batch.utterances)
            for head, logits in outputs.items():
                predictions.setdefault(head, []).append(target.predictions(logits.float()))
        place = torch.empty(len(data.utterances), dtype=torch.int64)  # of each row's prediction
        place[torch.cat(predicted_rows or [place[:0]])] = torch.arange(len(rows))
        order = place[torch.from_numpy(rows)]
        # Here we wait for the GPU.
        return {head: torch.cat(parts).cpu()[order].numpy() for head, parts in predictions.items()}


@torch.random.fork_rng(devices=[])
def fit(
    data: Dataset,
    fold: Fold,
    config: TrainConfig,
    on_epoch: Callable[[Epoch, Callable[[], bytes]], None] | None = None,
    resume: tuple[Mapping[str, Tensor], Mapping[str, str]] | None = None,
    chosen: Sequence[Epoch] = (),
) -> Fitted:
    """Train one model on one fold; with `refit` then another on train + dev, for as many epochs as
    dev chose.

    `on_epoch` gets every epoch, and a function that makes the `state` after it; `resume` is what
    such a file holds, tensors and metadata, to go on from. `chosen` is the history of the model
    before, whose kept epoch is the last of each stage. If the loss is no longer a number, the
    training ends with a `fault` naming epoch and batch.
    """
    if config.training.refit:
        once = replace(config, training=replace(config.training, refit=False))
        if not (chosen := read_state(resume[1])["chosen"] if resume else []):
            first_model = fit(data, fold, once, on_epoch, resume)
            if first_model.fault:
                return first_model
            chosen, resume = first_model.history, None
        return fit(data, fold.refitted, replace(once, select="last"), on_epoch, resume, chosen)
    exact_arithmetic(config.device, config.deterministic)
    fusion, settings, target = config.fusion, config.settings, TARGETS[config.target]
    eval_rows = rows_to_evaluate(fold, config)
    scaling = fit_standardizers(data, fold, settings, config.training.standardise_by)
    per_batch = scaling
    if fusion.level == "vector":  # small enough to be scaled once, instead of in every epoch
        data, per_batch = data.scaled(scaling), {}
    data = data.on(config.device)
    train_data, train_rows = with_views(shuffled(data, fold, config), fold.train)
    truth = target.truth(train_data, config.training, fold.train)
    updates = -(
        -len(train_data.groups(train_rows, fusion.unit)) // settings.batch_size
    )  # per epoch

    torch.manual_seed(config.seed)  # initial weights, and dropout from here on
    classes = len(data.utterances.classes)
    model, width = (
        target.build(fusion, settings, data.dims, classes).to(config.device),
        target.width(classes),
    )
    random = {name: Generator().manual_seed(config.seed) for name in ("shuffling", "hiding")}
    random["torch"] = torch.default_generator
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    selection = Selection(config, snapshot(model.state_dict()), chosen=list(chosen))
    about: dict[str, Any] = read_state(resume[1]) if resume else {"stage": 0}

    def hide(n: int) -> dict[str, Tensor]:
        return fusion.hide(settings, n, epoch, random["hiding"]) if fusion.hide else {}

    for number, stage in enumerate(fusion.stages[about["stage"] :], about["stage"]):
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in trainable and name.startswith(stage.trains))
        optimiser = make_optimiser(dict(model.named_parameters()), stage, settings)
        selection.best, first, fault = -math.inf, 0, None
        if resume and number == about["stage"]:
            first, selection.best, selection.history = (
                about["epoch"],
                float(about["best_score"]),
                about["history"],
            )
            selection.restore(resume[0], model, optimiser, random)
        for epoch in range(first, selection.epochs(stage)):
            if selection.stopped(stage):
                break
            started = time.perf_counter()
            losses, sizes = [], []
            model.train()
            options = (
                settings.batch_size,
                per_batch,
                random["shuffling"],
                truth,
                config.training.sampler,
                hide,
            )
            for update, batch in enumerate(
                train_data.batches(train_rows, fusion.unit, *options), epoch * updates
            ):
                optimiser.param_groups[0]["lr"] = learning_rate(settings, update)
                batch.heads = config.heads(stage)
                with config.autocast():
                    returned = model(batch)
                if not isinstance(returned, Mapping) or {
                    x.shape[1:] for x in returned.values()
                } != {(width,)}:
                    raise WrongUse(
                        f"the model must return a dict of heads [n, {width}], 'logits' among them"
                    )
                outputs = {head: logits.float() for head, logits in returned.items()}
                loss = training_loss(outputs, batch.truth, config, stage)
                losses.append(loss.detach())
                sizes.append(1 if config.reduction == "sum" else len(batch))
                if loss.is_cpu and not math.isfinite(
                    loss.item()
                ):  # a GPU would have to wait for every loss
                    break
                optimiser.zero_grad()
                loss.backward()
                if config.training.clip_norm:
                    nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
                optimiser.step()
            values = torch.stack(losses).tolist()
            if fault := divergence(values, stage, epoch):
                break
            mean = sum(value * size for value, size in zip(values, sizes, strict=True)) / len(
                train_rows
            )
            scores, head = None, stage.output
            if len(eval_rows):
                predicted = Fitted(model, per_batch).predict(
                    data, eval_rows, config, heads=frozenset({head})
                )[head]
                scores = target.scored(data.utterances, eval_rows, predicted, config)
            line = selection.add(stage, epoch, mean, scores, time.perf_counter() - started)
            if line.kept:
                selection.kept = snapshot(model.state_dict())
            if on_epoch:
                on_epoch(
                    line, partial(selection.state, number, epoch + 1, model, optimiser, random)
                )
        model.load_state_dict(selection.kept)
        if fault := fault or (NO_NUMBERS if selection.best == -math.inf else None):
            break
    return Fitted(model, scaling, selection.chosen + selection.history, fault)


def rows_to_evaluate(fold: Fold, config: TrainConfig) -> np.ndarray:
    """The rows that are scored after each epoch. Raises `WrongUse` for a selection on a dev part
    that is empty.
    """
    if config.select == "val" and not len(fold.dev):
        raise WrongUse(
            "--select val needs a dev part, and dev=none leaves none; use --select last or another dev"
        )
    return fold.test if config.select == "best-test" else fold.dev


def shuffled(data: Dataset, fold: Fold, config: TrainConfig) -> Dataset:
    """With `shuffle_labels` the same utterances, the labels and ratings of the training part in
    random order.
    """
    if not config.training.shuffle_labels:
        return data
    order = np.arange(len(data.utterances))
    order[fold.train] = np.random.default_rng(config.seed).permutation(fold.train)
    mixed = data.utterances.take(order)
    learnt = replace(
        data.utterances, labels=mixed.labels, dimensions=mixed.dimensions, votes=mixed.votes
    )
    return replace(data, utterances=learnt, read=lambda: data.inputs)


def fit_standardizers(
    data: Dataset, fold: Fold, settings: Any, by: str = "all"
) -> dict[str, Standardizer]:
    """Z-scores of the modalities whose `standardise_…` is set, from the training part alone.

    By "corpus" of each corpus by itself; a corpus that does not train by its dev and test part,
    without their labels.
    """
    standardizers, rows = {}, [fold.train]
    numbers, used = (
        data.utterances.corpus_numbers,
        np.concatenate([fold.train, fold.dev, fold.test]),
    )
    for number in range(1, numbers.max() + 1) if by == "corpus" else ():
        in_training, anywhere = (part[numbers[part] == number] for part in (fold.train, used))
        rows.append(next(part for part in (in_training, anywhere, fold.train) if len(part)))
    for modality, inputs in data.inputs.items():
        if getattr(settings, f"standardise_{modality}", False):
            each = [Standardizer.of(inputs, part) for part in rows]
            mean, std = (
                torch.stack([one.mean for one in each]),
                torch.stack([one.std for one in each]),
            )
            standardizers[modality] = Standardizer(mean.squeeze(0), std.squeeze(0))
    return standardizers


class Adam(torch.optim.Adam):
    """The same Adam, which does not import torch's compiler: that takes each process most of a
    second of CPU.

    torch wraps these methods to keep the compiler out of them, and imports it to do so. Here they
    are unwrapped.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def make_optimiser(weights: Mapping[str, Tensor], stage: Stage, settings: Any) -> torch.optim.Adam:
    """Adam over the stage's parameters, with its L2 term in the gradient (Perspective §3.3, USC
    Table 2).
    """
    chosen = [
        weight
        for name, weight in weights.items()
        if weight.requires_grad and name.startswith(stage.trains)
    ]
    fused = chosen[0].device.type in ("cpu", "cuda")  # one kernel for all weights
    return Adam(chosen, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)


def learning_rate(settings: Any, update: int) -> float:
    """That of a stage's update t = 0, 1, …: lr / (1 + decay t), if the settings have a `decay`,
    else lr.
    """
    return settings.lr / (1 + getattr(settings, "decay", 0.0) * update)


# The heads whose cross-entropies add up: L_s (Perspective eq. 3), and L_p = L_a + L_t + L_s (eq.
# 4–6), with which the unimodal heads learn beside the fused one.
LOSSES: dict[str, tuple[str, ...]] = {
    "single": ("logits",),
    "perspective": ("audio", "text", "logits"),
}


def training_loss(
    outputs: Mapping[str, Tensor], truth: Tensor, config: TrainConfig, stage: Stage
) -> Tensor:
    """The sum over the heads, by `config.loss` or of the stage's one, of the target's loss.

    What each head adds, and the shapes of outputs and truth, is the target's: see `Target.loss`.
    Raises `WrongUse` for a model without the heads of the loss.
    """
    heads = LOSSES[config.loss] if stage.output == "logits" else (stage.output,)
    if not outputs.keys() >= set(heads):
        raise WrongUse(
            f"--loss {config.loss} needs audio and text heads, as lgf-add has them; use --loss single"
        )
    losses = [TARGETS[config.target].loss(outputs[head], truth, config) for head in heads]
    return sum(losses[1:], start=losses[0])


def divergence(losses: Sequence[float], stage: Stage, epoch: int) -> str | None:
    """The sentence for the first loss of an epoch (from 0) that is not a number, naming its batch;
    None if all are.
    """
    for batch, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            advice = "try a lower lr or --set clip_norm=1"
            if epoch + batch == 1:
                advice = "no update came before it: look into the model, where an attention over no rows gives nan"
            where = f"epoch {epoch + 1}, batch {batch} (stage {stage.name})"
            return (
                f"the loss became {loss} in {where}; the best weights before it are kept; {advice}"
            )
    return None


def read_state(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata of a `Selection.state` holds."""
    state = json.loads(metadata["state"])
    for key in ("history", "chosen"):
        state[key] = convert(state[key], list[Epoch])
    return state


def snapshot(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a model's weights, or of other tensors, on the CPU, as safetensors files take them."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in values.items()
    }


@dataclass
class Selection:
    """The epochs of one model so far, and the weights of the one to keep; `chosen` is the history
    of one before it.
    """

    config: TrainConfig
    kept: dict[str, Tensor]
    best: float = -math.inf  # score of this stage's epochs
    history: list[Epoch] = field(default_factory=list)
    chosen: list[Epoch] = field(default_factory=list)

    def epochs(self, stage: Stage) -> int:
        """How many a stage has: as many as were chosen for it before, or as are set."""
        kept = {line.stage: line.epoch for line in self.chosen if line.kept}
        return kept.get(stage.name, self.config.settings.epochs)

    def stopped(self, stage: Stage) -> bool:
        """Whether `patience` epochs of the stage have passed since the one to keep."""
        ends = (
            n
            for n, line in enumerate(reversed(self.history))
            if line.kept or line.stage != stage.name
        )
        return 0 < self.config.training.patience <= next(ends, 0)

    def add(
        self, stage: Stage, epoch: int, loss: float, scored: Scores | None, seconds: float
    ) -> Epoch:
        """Add an epoch (from 0) with the scores of the evaluated part; `kept` of it says whether it
        is the best yet.
        """
        scores: dict[str, float | None] = dict.fromkeys(("wa", "ua", "macro_f1", "ccc"))
        if scored is not None:
            for metric in ("wa", "ua", "macro_f1"):
                scores[metric] = scored.score(metric)
            if scored.ccc is not None:
                scores["ccc"] = float(np.mean(list(scored.ccc.values())))
        score = (
            float(epoch)
            if self.config.select == "last"
            else scores[self.config.training.select_score]
        )
        kept = score is not None and score > self.best
        self.best = score if score is not None and kept else self.best
        name = f"{stage.name} again" if self.chosen else stage.name
        line = Epoch(
            stage=name,
            epoch=epoch + 1,
            epochs=self.epochs(stage),
            loss=loss,
            seconds=seconds,
            kept=kept,
            **scores,
        )
        self.history.append(line)
        return line

    def state(
        self, stage: int, epoch: int, model: nn.Module, optimiser: torch.optim.Adam, random: Random
    ) -> bytes:
        """Where an unfinished run stands after so many epochs of a stage, as a safetensors file.

        The model, the weights kept so far, Adam's moments and every random generator: `model.*`,
        `kept.*`, `adam.<n>.*` and `random.*`; stage, epoch and the scores so far in the metadata.
        """
        adam = {
            f"{n}.{name}": x
            for n, of in optimiser.state_dict()["state"].items()
            for name, x in of.items()
        }
        generators = {name: generator.get_state() for name, generator in random.items()}
        if (kind := (device := torch.device(self.config.device)).type) != "cpu":
            generators[kind] = torch.get_device_module(kind).get_rng_state(device)
        parts = {"model": model.state_dict(), "kept": self.kept, "adam": adam, "random": generators}
        tensors = {
            f"{part}.{name}": x
            for part, values in parts.items()
            for name, x in snapshot(values).items()
        }
        about = {
            "stage": stage,
            "epoch": epoch,
            "best_score": repr(self.best),
            "history": to_builtins(self.history),
        }
        about["chosen"] = to_builtins(self.chosen)
        return save(tensors, {"state": json.dumps(about)})

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        model: nn.Module,
        optimiser: torch.optim.Adam,
        random: Random,
    ) -> None:
        """Put everything back as `state` found it."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}

        generators, numbers = below("random."), {int(name.split(".")[0]) for name in below("adam.")}
        self.kept = below("kept.")
        model.load_state_dict(below("model."))
        optimiser.load_state_dict(
            {**optimiser.state_dict(), "state": {n: below(f"adam.{n}.") for n in numbers}}
        )
        for name, generator in random.items():
            generator.set_state(generators[name])
        if (kind := (device := torch.device(self.config.device)).type) in generators:
            torch.get_device_module(kind).set_rng_state(generators[kind], device)
