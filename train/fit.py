"""The training loop: updates by Adam, a score after each epoch, and the best epoch is kept.

`fit` trains one model on one fold, `fit_once` is the loop itself, and what it calls stands below in
the order in which it is called. The words:

    data       the labelled utterances of a corpus, row by row, with their features
    rows       numbers of utterances in `data`; a part of a fold is an array of them
    fold       the rows of train, dev and test; `fold.refitted` joins train and dev
    config     how one run trains: `config.settings` are those of its model (batch_size, lr, …),
               `config.training` those of any training (select_score, patience, …)
    fusion     a model of a paper: how it is built, its stages, and which modality it may hide
    unit       what a batch counts, by the fusion: single utterances, or whole dialogues
    views      augmented copies of the utterances, whose rows stand behind them and only train
    scaling    by modality, the z-score that its features are standardised with
    truth      what the loss compares outputs with, of all rows; None means their classes
    heads      the outputs of a model by name, each [n, width]: "logits", and with some fusions
               "audio" and "text", which see one modality alone
    target     what is learnt: classes, raters' votes or ratings. It says what a head's width is,
               what the loss compares outputs with, and how predictions are scored
    stage      a training of some of the weights by the loss of one head. Most fusions have one
               stage, a few train their unimodal parts first
    selection  says of each epoch whether it is the best of its stage yet

One thread, one seed: the same seed gives the same bytes on one machine, also for a run that is
resumed.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ser.engines import exact_arithmetic
from ser.errors import WrongUse

from .checkpoint import (
    Progress,
    read_average,
    read_progress,
    restore_state,
    snapshot,
    write_state,
)
from .config import TrainConfig
from .data.dataset import Dataset, Hide
from .data.feature_range import FeatureRange
from .data.folds import Fold
from .data.standardizer import Standardizer
from .data.views import with_views
from .ingredients import (
    add_ingredients,
    auxiliary_loss,
    auxiliary_task,
    draw_mix,
    rate_factor,
    remove_auxiliary_heads,
)
from .models import Stage
from .models.batch import Batch, Heads
from .models.encoder_front import layers_above, load_state, state_of
from .models.pooled_vector import AUXILIARY
from .rater_dropout import rater_dropout
from .records import Epoch
from .selection import Selection
from .settings import TrainingSettings
from .targets import TARGETS
from .weight_average import WeightAverage

NO_NUMBERS = "the predictions became nan; try a lower lr or --set clip_norm=1"

# Utterances at once on a GPU, at least: an evaluation keeps no activations.
EVALUATED = 64

# Called with an epoch, and with a function that makes the state after it as a file's bytes.
OnEpoch = Callable[[Epoch, Callable[[], bytes]], None]

# The state of an unfinished training: tensors and metadata of such a file, see `checkpoint`.
State = tuple[Mapping[str, Tensor], Mapping[str, str]]


@dataclass
class Fitted:
    """A model with its scaling; after a training, with the weights that the selection chose."""

    model: nn.Module
    scaling: dict[str, Standardizer]
    """By modality, the z-score of its inputs."""
    history: list[Epoch] = field(default_factory=list)
    fault: str | None = None
    """Why it ended too early; the weights are the best before that."""
    ranges: dict[str, FeatureRange] = field(default_factory=dict)
    """By modality, where the training part lies, of a model that was opened again."""

    @property
    def epoch(self) -> int:
        """The epoch that was kept in the last stage, from 1."""
        kept = [record.epoch for record in self.history if record.kept]
        return kept[-1]

    @torch.inference_mode()
    def predict(
        self,
        data: Dataset,
        rows: np.ndarray,
        config: TrainConfig,
        hide: str | None = None,
        heads: Heads = None,
    ) -> dict[str, np.ndarray]:
        """The target's predictions for these rows by head, each [n, …] in their order.

        For the heads in `heads` at least; None is all. `hide` hides one modality from all rows.
        """
        # Torch computes on this device in full float32, and reproducibly if the config says so.
        exact_arithmetic(config.device, config.deterministic)
        self.model.eval()
        target = TARGETS[config.target]
        unit = config.fusion.unit
        size = config.settings.batch_size
        if unit == "utterance" and torch.device(config.device).type == "cuda":
            size = max(size, EVALUATED)
        hide_from_all = hiding_everywhere(hide) if hide else None

        predicted_rows: list[Tensor] = []
        predictions: dict[str, list[Tensor]] = {}
        batches = data.on(config.device).batches(
            rows, unit=unit, size=size, standardizers=self.scaling, hide=hide_from_all
        )
        for batch in batches:
            batch.heads = heads
            with config.autocast():
                outputs = self.model(batch)
            predicted_rows.append(batch.utterances)
            for head, logits in outputs.items():
                predictions.setdefault(head, []).append(target.predictions(logits.float()))
        if not predicted_rows:
            return {}

        # Batches come in the order of dialogues; the predictions go back into that of the rows.
        place_of_row = torch.empty(len(data.utterances), dtype=torch.int64)
        place_of_row[torch.cat(predicted_rows)] = torch.arange(len(rows))
        order = place_of_row[torch.from_numpy(rows)]

        in_order = {}
        for head, parts in predictions.items():
            # Here we wait for the GPU.
            in_order[head] = torch.cat(parts).cpu()[order].numpy()
        return in_order


def fit(
    data: Dataset,
    fold: Fold,
    config: TrainConfig,
    on_epoch: OnEpoch | None = None,
    resume: State | None = None,
) -> Fitted:
    """Train one model on one fold; with `refit` then another, on train and dev.

    That one has as many epochs as dev chose. `on_epoch` gets every epoch, and a function that makes
    the state after it (`checkpoint.write_state`); `resume` is what such a file holds, tensors and
    metadata, to go on from. If the loss is no longer a number, the training ends with a `fault`
    naming epoch and batch.
    """
    if not config.training.refit:
        return fit_once(data, fold, config, on_epoch, resume)

    config_of_one = replace(config, training=replace(config.training, refit=False))

    # The first model says after how many epochs dev is best.
    chosen: Sequence[Epoch] = ()
    if resume:
        _, metadata = resume
        chosen = read_progress(metadata).chosen
    if not chosen:
        first_model = fit_once(data, fold, config_of_one, on_epoch, resume)
        if first_model.fault:
            return first_model
        chosen = first_model.history
        resume = None

    # The second has as many, and no dev part to select by.
    config_of_second = replace(config_of_one, select="last")
    return fit_once(data, fold.refitted, config_of_second, on_epoch, resume, chosen=chosen)


# The caller's random numbers are as before, whatever is drawn inside.
@torch.random.fork_rng(devices=[])
def fit_once(
    data: Dataset,
    fold: Fold,
    config: TrainConfig,
    on_epoch: OnEpoch | None = None,
    resume: State | None = None,
    chosen: Sequence[Epoch] = (),
) -> Fitted:
    """Train one model: stage by stage, epoch by epoch, batch by batch.

    `chosen` is the history of the model before, whose kept epoch is the last of each stage.
    """
    # Torch computes on this device in full float32, and reproducibly if the config says so.
    exact_arithmetic(config.device, config.deterministic)
    fusion = config.fusion
    settings = config.settings
    training = config.training
    target = TARGETS[config.target]

    # The features: standardised by the training part, on the device.
    scaling = fit_standardizers(data, fold, settings, training.standardise_by)
    batch_scaling = scaling
    if fusion.level == "vector":
        # One vector per utterance: small enough to be scaled once, instead of in every batch.
        data = data.scaled(scaling)
        batch_scaling = {}
    data = data.on(config.device)

    # What it learns from, with the augmented views behind the utterances, and what is scored.
    train_data, train_rows = with_views(shuffled(data, fold, config), fold.train)
    truth = target.truth(train_data, training, fold.train)
    dropout_of_raters = rater_dropout(data, train_data, training)
    eval_rows = rows_to_evaluate(fold, config)
    units = len(train_data.groups(train_rows, fusion.unit))
    batch_sizes = [
        min(settings.batch_size, units - first) for first in range(0, units, settings.batch_size)
    ]
    updates_per_epoch = math.ceil(len(batch_sizes) / training.accumulate)

    # The model. From here on torch's generator draws initial weights, then dropout.
    torch.manual_seed(config.seed)
    classes = len(data.utterances.classes)
    width = target.width(classes)
    model = target.build(fusion, settings, data.dims, classes)
    auxiliary = auxiliary_task(train_data, fold, training, fusion)
    add_ingredients(model, training, auxiliary)
    model = model.to(config.device)
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}

    # The random numbers of a training: of the order of batches, of which modality an utterance of
    # a batch does without, and torch's own, which dropout draws.
    generators = {
        "shuffling": Generator().manual_seed(config.seed),
        "hiding": Generator().manual_seed(config.seed),
        "torch": torch.default_generator,
    }

    # Which epoch is the best so far, a copy of its weights, and why training broke, if it did.
    selection = Selection(config, chosen=list(chosen))
    kept = snapshot(state_of(model))
    fault: str | None = None

    # Where it starts: at the first stage, or where the state of a stopped training stands.
    first_stage = 0
    resumed: Progress | None = None
    saved_tensors: Mapping[str, Tensor] = {}
    if resume:
        saved_tensors, metadata = resume
        resumed = read_progress(metadata)
        first_stage = resumed.stage

    for stage_number, stage in enumerate(fusion.stages[first_stage:], first_stage):
        # A stage trains the weights whose names begin with `stage.trains`, with an Adam of its own.
        for name, weight in model.named_parameters():
            trains = name.startswith(stage.trains) and not is_frozen(model, name, stage)
            weight.requires_grad_(name in trainable and trains)
        factors = encoder_rates(model, getattr(settings, stage.lr), training)
        optimiser = make_optimiser(dict(model.named_parameters()), stage, settings, factors)
        average = WeightAverage(training.ema)
        updates = selection.epochs(stage) * updates_per_epoch
        selection.start_stage()
        first_epoch = 0
        if resumed and stage_number == first_stage:
            # As it was after its last epoch: the counts here, the tensors by `restore_state`.
            first_epoch = resumed.epoch
            selection.best = resumed.best_score
            selection.loss_of_best = resumed.loss_of_best
            selection.history = list(resumed.history)
            kept = restore_state(saved_tensors, model, optimiser, generators, config.device)
            average.restore(read_average(saved_tensors), model)

        for epoch in range(first_epoch, selection.epochs(stage)):
            if selection.stopped(stage):
                break
            started = time.perf_counter()

            if dropout_of_raters is not None:
                votes = dropout_of_raters.draw()
                truth = target.truth(train_data, training, fold.train, votes)

            # One epoch of updates.
            model.train()
            losses = []
            weights_of_losses = []
            batches = train_data.batches(
                train_rows,
                unit=fusion.unit,
                size=settings.batch_size,
                standardizers=batch_scaling,
                generator=generators["shuffling"],
                truth=truth,
                sampler=training.sampler,
                hide=hiding(config, epoch, generators["hiding"]),
            )
            for number, batch in enumerate(batches):
                update = epoch * updates_per_epoch + number // training.accumulate
                rate = learning_rate(settings, update, stage.lr)
                rate *= rate_factor(training, update, updates)
                for group in optimiser.param_groups:
                    group["lr"] = rate * group["factor"]

                # The heads that the loss looks at; the model may leave out the rest. It computes in
                # bfloat16 where the config says so, and the loss in float32.
                batch.heads = config.heads(stage)
                batch.mix = draw_mix(training, len(batch), config.device)
                batch.progress = update / updates
                with config.autocast():
                    returned = model(batch)
                outputs = checked_outputs(returned, width)
                loss = mixed_loss(outputs, batch, config, stage)
                loss = loss + auxiliary_loss(returned, batch, auxiliary)

                # A mean over a batch counts as many times as the batch has utterances.
                losses.append(loss.detach())
                weights_of_losses.append(1 if config.reduction == "sum" else len(batch))
                # A GPU would have to wait for every loss: there it is looked at after the epoch.
                if loss.is_cpu and not math.isfinite(loss.item()):
                    break

                # The batches of an update are one large batch.
                if number % training.accumulate == 0:
                    optimiser.zero_grad()
                (loss * share_of_update(number, batch_sizes, config)).backward()
                ends_update = (number + 1) % training.accumulate == 0
                if not ends_update and number + 1 < len(batch_sizes):
                    continue
                if training.clip_norm:
                    nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
                optimiser.step()
                average.update(model)

            # The mean loss of an utterance, as the weights were at each update.
            loss_values = torch.stack(losses).tolist()
            fault = divergence(loss_values, stage, epoch)
            if fault:
                break
            weighted_losses = zip(loss_values, weights_of_losses, strict=True)
            total_loss = sum(value * weight for value, weight in weighted_losses)
            mean_loss = total_loss / len(train_rows)

            # The scores, and the loss, of the part that selects.
            scores = None
            eval_loss = None
            if len(eval_rows):
                heads = frozenset({stage.output})
                model_so_far = Fitted(model, batch_scaling)
                with average.applied(model):
                    by_head = model_so_far.predict(data, eval_rows, config, heads=heads)
                predicted = by_head[stage.output]
                scores = target.score(data.utterances, eval_rows, predicted, config)
                eval_loss = target.evaluation_loss(data.utterances, eval_rows, predicted, config)

            # Keep the weights if this epoch is the best yet.
            seconds = time.perf_counter() - started
            epoch_record = selection.add(stage, epoch, mean_loss, scores, eval_loss, seconds)
            if epoch_record.kept:
                with average.applied(model):
                    kept = snapshot(state_of(model))

            # Whoever listens may write the state down.
            if on_epoch:
                progress = Progress(
                    stage=stage_number,
                    epoch=epoch + 1,
                    best_score=selection.best,
                    loss_of_best=selection.loss_of_best,
                    history=selection.history,
                    chosen=selection.chosen,
                )
                make_state = partial(
                    write_state,
                    progress,
                    kept,
                    model,
                    optimiser,
                    generators,
                    config.device,
                    average=average.weights,
                )
                on_epoch(epoch_record, make_state)

        # The next stage, and the run, go on from the weights of the best epoch.
        load_state(model, kept)
        if not fault and selection.best == -math.inf:
            fault = NO_NUMBERS
        if fault:
            break

    remove_auxiliary_heads(model)
    return Fitted(model, scaling, selection.chosen + selection.history, fault)


def rows_to_evaluate(fold: Fold, config: TrainConfig) -> np.ndarray:
    """The rows that are scored after each epoch.

    Raises `WrongUse` for a selection on a dev part that is empty.
    """
    if config.select == "val" and not len(fold.dev):
        raise WrongUse(
            "--select val needs a dev part, and dev=none leaves none; use --select last or "
            "another dev"
        )
    if config.select == "best-test":
        return fold.test
    return fold.dev


def fit_standardizers(
    data: Dataset, fold: Fold, settings: Any, by: str = "all"
) -> dict[str, Standardizer]:
    """Z-scores of the modalities whose `standardise_…` is set, from the training part alone.

    By "corpus" of each corpus by itself; a corpus that does not train by its dev and test part,
    without their labels.
    """
    # Row 0 of the statistics is the whole training part's, row c that of corpus c.
    rows_of_statistics = [fold.train]
    if by == "corpus":
        corpora = data.utterances.corpus_numbers
        used = np.concatenate([fold.train, fold.dev, fold.test])
        for number in range(1, corpora.max() + 1):
            rows = fold.train[corpora[fold.train] == number]
            if not len(rows):
                # It does not train.
                rows = used[corpora[used] == number]
            if not len(rows):
                # It is in no part of this fold.
                rows = fold.train
            rows_of_statistics.append(rows)

    standardizers = {}
    for modality, inputs in data.inputs.items():
        if not getattr(settings, f"standardise_{modality}", False):
            continue
        fitted = [Standardizer.of(inputs, rows) for rows in rows_of_statistics]
        mean = torch.stack([standardizer.mean for standardizer in fitted])
        std = torch.stack([standardizer.std for standardizer in fitted])
        standardizers[modality] = Standardizer(mean.squeeze(0), std.squeeze(0))
    return standardizers


def shuffled(data: Dataset, fold: Fold, config: TrainConfig) -> Dataset:
    """The data; with `shuffle_labels`, labels and ratings of the training part in random order."""
    if not config.training.shuffle_labels:
        return data

    order = np.arange(len(data.utterances))
    order[fold.train] = np.random.default_rng(config.seed).permutation(fold.train)
    in_order = data.utterances.take(order)
    relabelled = replace(
        data.utterances,
        labels=in_order.labels,
        dimensions=in_order.dimensions,
        votes=in_order.votes,
    )
    return replace(data, utterances=relabelled, read=lambda: data.inputs)


class Adam(torch.optim.Adam):
    """The same Adam, which does not import torch's compiler, and which no profiler listens to.

    The import takes each process most of a second of CPU. torch wraps these methods to keep the
    compiler out of them, and imports it to do so. Here they are unwrapped. Of an update of a small
    model, what would tell a profiler of it is a tenth.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    # So torch knows a step that it need not wrap.
    step.hooked = True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None


def make_optimiser(
    weights: Mapping[str, Tensor],
    stage: Stage,
    settings: Any,
    factors: Mapping[str, float] | None = None,
) -> torch.optim.Adam:
    """Adam over the stage's parameters, with its L2 term in the gradient.

    Perspective §3.3, USC Table 2. `factors` say by name what the rate of some weights is multiplied
    by: those of one factor are a group.
    """
    by_factor: dict[float, list[Tensor]] = {}
    for name, weight in weights.items():
        if weight.requires_grad and name.startswith(stage.trains):
            factor = (factors or {}).get(name, 1.0)
            by_factor.setdefault(factor, []).append(weight)

    groups = [{"params": trained, "factor": factor} for factor, trained in by_factor.items()]
    # One kernel for all weights, where there is one.
    fused = next(iter(weights.values())).device.type in ("cpu", "cuda")
    return Adam(
        groups, lr=getattr(settings, stage.lr), weight_decay=settings.weight_decay, fused=fused
    )


def encoder_rates(model: nn.Module, lr: float, training: TrainingSettings) -> dict[str, float]:
    """By name, what the rate `lr` is multiplied by for each weight of a trained encoder.

    A layer learns slower than the one above it (Howard & Ruder, ACL 2018, §3.2).
    """
    factor_of_top = 1.0
    # A trial run learns nothing: its lr is 0.
    if training.encoder_lr and lr:
        factor_of_top = training.encoder_lr / lr

    factors = {}
    for name, _ in model.named_parameters():
        above = layers_above(model, name)
        if above is not None:
            factors[name] = float(factor_of_top * training.encoder_lr_decay**above)
    return factors


def is_frozen(model: nn.Module, name: str, stage: Stage) -> bool:
    """Whether a weight is of an encoder's layer that the stage does not train yet."""
    above = layers_above(model, name)
    return above is not None and stage.encoder_layers is not None and above >= stage.encoder_layers


def share_of_update(number: int, batch_sizes: Sequence[int], config: TrainConfig) -> float:
    """What the loss of a batch counts in its update: 1 where losses are sums.

    A mean counts by the batch's part in the units of all batches of the update.
    """
    accumulate = config.training.accumulate
    if config.reduction == "sum":
        return 1.0
    first = number - number % accumulate
    return batch_sizes[number] / sum(batch_sizes[first : first + accumulate])


def hiding(config: TrainConfig, epoch: int, generator: Generator) -> Hide:
    """Which of n utterances of a batch do without a modality in an epoch, drawn by the fusion."""

    def hide(n: int) -> dict[str, Tensor]:
        if config.fusion.hide is None:
            return {}
        return config.fusion.hide(config.settings, n, epoch, generator)

    return hide


def hiding_everywhere(modality: str) -> Hide:
    """All n utterances of a batch do without the modality."""

    def hide(n: int) -> dict[str, Tensor]:
        return {modality: torch.ones(n, dtype=torch.bool)}

    return hide


def learning_rate(settings: Any, update: int, setting: str = "lr") -> float:
    """That of a stage's update t = 0, 1, …: lr / (1 + decay t).

    Settings without a `decay` have 0. `setting` names the one that lr is.
    """
    rate: float = getattr(settings, setting)
    return rate / (1 + getattr(settings, "decay", 0.0) * update)


def checked_outputs(returned: Any, width: int) -> dict[str, Tensor]:
    """What a model returned, in float32, without auxiliary heads.

    Raises `WrongUse` unless it is heads `[n, width]`.
    """
    shapes = set()
    if isinstance(returned, Mapping):
        returned = {head: x for head, x in returned.items() if not head.startswith(AUXILIARY)}
        shapes = {logits.shape[1:] for logits in returned.values()}
    if shapes != {(width,)}:
        raise WrongUse(f"the model must return a dict of heads [n, {width}], 'logits' among them")
    return {head: logits.float() for head, logits in returned.items()}


# The heads whose cross-entropies add up: L_s (Perspective eq. 3), and L_p = L_a + L_t + L_s (eq.
# 4–6), with which the unimodal heads learn beside the fused one.
LOSSES: dict[str, tuple[str, ...]] = {
    "single": ("logits",),
    "perspective": ("audio", "text", "logits"),
}


def mixed_loss(
    outputs: Mapping[str, Tensor], batch: Batch, config: TrainConfig, stage: Stage
) -> Tensor:
    """The `training_loss` of a batch; of a mixed one λ times its own, 1 − λ times its partners'.

    That is the loss of mixed truths, as a cross-entropy is linear in them (Zhang et al. 2018, §2).
    """
    loss = training_loss(outputs, batch.truth, config, stage)
    if batch.mix is None:
        return loss
    of_partners = training_loss(outputs, batch.truth[batch.mix.partners], config, stage)
    return batch.mix.share * loss + (1 - batch.mix.share) * of_partners


def training_loss(
    outputs: Mapping[str, Tensor], truth: Tensor, config: TrainConfig, stage: Stage
) -> Tensor:
    """The sum over the heads, by `config.loss` or of the stage's one, of the target's loss.

    What each head adds, and the shapes of outputs and truth, is the target's: see `Target.loss`.
    Raises `WrongUse` for a model without the heads of the loss.
    """
    heads: tuple[str, ...] = (stage.output,)
    if stage.output == "logits":
        heads = LOSSES[config.loss]
    if not outputs.keys() >= set(heads):
        raise WrongUse(
            f"--loss {config.loss} needs audio and text heads, as lgf-add has them; "
            "use --loss single"
        )

    target = TARGETS[config.target]
    losses = [target.loss(outputs[head], truth, config) for head in heads]
    return sum(losses[1:], start=losses[0])


def divergence(losses: Sequence[float], stage: Stage, epoch: int) -> str | None:
    """What to say of the first loss of an epoch (from 0) that is not a number; None if all are."""
    for batch, loss in enumerate(losses, 1):
        if math.isfinite(loss):
            continue
        advice = "try a lower lr or --set clip_norm=1"
        if epoch == 0 and batch == 1:
            advice = (
                "no update came before it: look into the model, where an attention over no rows "
                "gives nan"
            )
        return (
            f"the loss became {loss} in epoch {epoch + 1}, batch {batch} (stage {stage.name}); "
            f"the best weights before it are kept; {advice}"
        )
    return None
