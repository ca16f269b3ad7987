"""The training loop of `fit.fit` for many runs of one fold at once.

On a GPU a small model leaves most of it idle. The runs differ in seed and loss. Each draws its
batches, as that does, and its dropout from generators of its own, so that the others change nothing
but the order of sums. A run that diverges is reported when the others are done.

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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ser.engines import exact_arithmetic

from . import fit
from .config import TrainConfig
from .cuda_graphs import Graphs
from .data.dataset import Dataset
from .data.folds import Fold
from .fit import Fitted
from .ingredients import rate_factor
from .models.batch import Batch
from .records import Epoch, Scores
from .scores.classes import confusions, metrics
from .selection import Selection
from .stacked_runs import StackedRuns, batch_of, turn_table
from .stacked_updates import Loss, StackedUpdates

# Runs at once: beyond, even a large GPU has enough to do.
MAX_RUNS = 64
# Of a GPU's free memory: five workers may ask at the same moment.
MEMORY_SHARE = 0.15
# What a vector's width is padded to: products over 6373 values are slow on a GPU.
ALIGNED = 64
# Devices whose updates are captured.
GRAPHS = ("cuda",)


def can_train_together(data: Dataset, config: TrainConfig) -> bool:
    """Whether this run can be trained with others of its kind at once: its fusion must say so."""
    stacks = config.fusion.stacks
    if stacks is None or not stacks(config.settings):
        return False

    training = config.training
    needs_a_loop_of_its_own = (
        training.soft_labels
        or training.class_weights != "none"
        or training.clip_norm
        or training.ema
        or training.mixup
        or training.aux != "none"
        or training.accumulate > 1
        or training.refit
        or config.target != "class"
        or data.views
    )
    return not needs_a_loop_of_its_own


@torch.random.fork_rng(devices=[])
def fit_many(
    data: Dataset,
    fold: Fold,
    configs: Sequence[TrainConfig],
    on_epoch: Sequence[Callable[[Epoch | str], None]] = (),
) -> list[Fitted]:
    """Train one model per config.

    The configs differ in seed and loss alone, and `can_train_together` holds for them.
    `on_epoch[i]` gets every epoch of run i, and a line if updates cannot be captured. Returns []
    where the inputs do not fit on the GPU: the caller then trains one after the other. Raises
    `WrongUse` for a selection on a dev part that is empty.
    """
    # All of this config but seed and loss is that of every run.
    config = configs[0]
    device = config.device
    fusion = config.fusion
    settings = config.settings
    [stage] = fusion.stages
    classes = data.utterances.classes
    exact_arithmetic(device, config.deterministic)

    # What they learn from: scaled, on the device, with zeros up to an aligned width.
    eval_rows = fit.rows_to_evaluate(fold, config)
    scaling = fit.fit_standardizers(data, fold, settings, config.training.standardise_by)
    scaled = data.scaled(scaling)
    values = aligned_values(scaled, device)
    if values is None:
        return []
    aligned_dims = {modality: vectors.shape[1] for modality, vectors in values.items()}
    labels = labels_by_run(data, fold, configs).to(device)

    # The dialogues to train on, and the batches to evaluate: the same for all runs and epochs.
    train_groups = data.groups(fold.train, fusion.unit)
    eval_groups = data.groups(eval_rows, fusion.unit)
    turns = turn_table(train_groups)
    turns_on_device = turns.to(device)
    eval_batches = batches_to_evaluate(eval_groups, config, len(configs))

    # The models. Each run draws its weights, its batches and its dropout by its own seed.
    models = []
    dropping = []
    for run_config in configs:
        torch.manual_seed(run_config.seed)
        models.append(fusion.build(settings, data.dims, len(classes)).to(device))
        dropping.append(Generator(device).manual_seed(run_config.seed))
    shuffling = [Generator().manual_seed(run_config.seed) for run_config in configs]
    frame = fusion.build(settings, aligned_dims, len(classes))
    stack = StackedRuns(frame, models, values, dropping)
    updates = StackedUpdates(stack, configs, stage, turns_on_device, labels)

    selections = [Selection(run_config) for run_config in configs]
    faults: dict[int, str] = {}
    graphs = Graphs(torch.device(device).type in GRAPHS, on_epoch)
    batch_starts = range(0, len(train_groups), settings.batch_size)
    # By the shape of a batch: the tensor on the device that names its dialogues.
    places: dict[tuple[int, int], Tensor] = {}

    for epoch in range(settings.epochs):
        active = []
        for run, selection in enumerate(selections):
            if run not in faults and not selection.stopped(stage):
                active.append(run)
        if not active:
            break
        started = time.perf_counter()

        # One epoch of updates.
        orders = [torch.randperm(len(train_groups), generator=random) for random in shuffling]
        order = torch.stack(orders)  # [R, dialogues]
        losses = []
        updates.loss_sums.zero_()
        for update, start in enumerate(batch_starts, epoch * len(batch_starts)):
            dialogues, r = batch_of(turns, order[:, start : start + settings.batch_size])
            shape = (r, dialogues.shape[1])
            if shape not in places:
                places[shape] = torch.empty_like(dialogues, device=device)
            place = places[shape]
            if torch.cuda.is_available():
                dialogues = dialogues.pin_memory()
            place.copy_(dialogues, non_blocking=True)

            if start == 0:
                stack.draw(turns_on_device, place, r)
            rate = fit.learning_rate(settings, update)
            rate *= rate_factor(config.training, update, settings.epochs * len(batch_starts))
            updates.rate.fill_(rate)
            losses.append(graphs(shape, partial(updates.update, place, r)))

        # Checked once per epoch: after every batch the GPU would wait for the answer.
        for run, losses_of_run in enumerate(torch.stack(losses, 1).tolist()):
            fault = fit.divergence(losses_of_run, stage, epoch)
            if fault and run in active:
                faults[run] = fault
        mean_losses = (updates.loss_sums / len(fold.train)).tolist()

        # The scores, and the loss, of the part that selects.
        scores: list[Scores] = []
        eval_losses: list[float] = []
        if eval_batches:
            classified = []
            for number, eval_batch in enumerate(eval_batches):
                classified.append(graphs(number, partial(updates.classify, *eval_batch)))
            predicted, of_truth = torch.cat(classified, 2).cpu().numpy()
            real = predicted[0] >= 0
            truth = data.utterances.labels[np.concatenate(eval_groups)]
            scores = score_runs(truth, predicted[:, real].astype(np.int64), len(classes))
            eval_losses = losses_of_runs(of_truth[:, real])

        # Keep the weights of the runs for which this epoch is the best yet.
        seconds = (time.perf_counter() - started) / len(configs)
        improved = torch.zeros(len(configs), dtype=torch.bool)
        for run in active:
            if run in faults:
                continue
            scores_of_run = scores[run] if scores else None
            eval_loss = eval_losses[run] if eval_losses else None
            epoch_record = selections[run].add(
                stage, epoch, mean_losses[run], scores_of_run, eval_loss, seconds
            )
            improved[run] = epoch_record.kept
            if on_epoch:
                on_epoch[run](epoch_record)
        updates.improved.copy_(improved)
        graphs("keep", updates.keep)

    # What a run's own loss does not train stays as at the start: here the loss of another run may
    # have moved it.
    idle: dict[str, set[str]] = {}
    [batch] = scaled.batches(train_groups[0], unit=fusion.unit, size=1, standardizers={})
    for name, loss in updates.losses.items():
        batch.heads = replace(config, loss=name).heads(stage)
        idle[name] = idle_weights(models[0], batch, loss)

    fitted = []
    for run, model in enumerate(models):
        load_weights(model, updates.kept, run, idle[configs[run].loss])
        fitted.append(Fitted(model, scaling, selections[run].history, faults.get(run)))
    return fitted


def aligned_values(scaled: Dataset, device: str) -> dict[str, Tensor] | None:
    """All vectors on the device, `[utterances, dim]` by modality; None where they do not fit there.

    They have zeros up to a multiple of `ALIGNED`.
    """
    inputs_there = {}
    for modality, inputs in scaled.inputs.items():
        inputs_there[modality] = inputs.on(torch.device(device))
    if any(inputs.streamed or inputs.pinned for inputs in inputs_there.values()):
        return None

    aligned = {}
    for modality, inputs in inputs_there.items():
        missing = -inputs.values.shape[1] % ALIGNED
        aligned[modality] = F.pad(inputs.values, (0, missing))
    return aligned


def labels_by_run(data: Dataset, fold: Fold, configs: Sequence[TrainConfig]) -> Tensor:
    """The classes that each run learns, int64 `[R, utterances]`: with `shuffle_labels` its own."""
    labels = [fit.shuffled(data, fold, config).utterances.labels for config in configs]
    return torch.from_numpy(np.stack(labels))


def batches_to_evaluate(
    groups: Sequence[np.ndarray], config: TrainConfig, runs: int
) -> list[tuple[Tensor, Tensor, int]]:
    """The dialogues that are scored, in batches: arguments of `StackedUpdates.classify`."""
    if not groups:
        return []
    turns = turn_table(groups)
    turns_on_device = turns.to(config.device)

    batches = []
    for numbers in torch.arange(len(groups)).split(config.settings.batch_size):
        dialogues, r = batch_of(turns, numbers.expand(runs, -1))
        batches.append((turns_on_device, dialogues.to(config.device), r))
    return batches


def score_runs(truth: np.ndarray, predicted: np.ndarray, classes: int) -> list[Scores]:
    """The scores of each run's predictions `[R, n]`."""
    by_metric = metrics(confusions(truth, predicted, classes))
    scores = []
    for run in range(len(predicted)):
        scores.append(
            Scores(
                n=len(truth),
                wa=float(by_metric["wa"][run]),
                ua=float(by_metric["ua"][run]),
                macro_f1=float(by_metric["macro_f1"][run]),
            )
        )
    return scores


def losses_of_runs(of_truth: np.ndarray) -> list[float]:
    """The mean -log p of each run, of the probabilities of the true classes `[R, n]`."""
    p = np.maximum(of_truth.astype(np.float64), np.finfo(np.float32).tiny)
    mean_losses: list[float] = (-np.log(p)).mean(1).tolist()
    return mean_losses


def idle_weights(model: nn.Module, batch: Batch, loss: Loss) -> set[str]:
    """The names of the weights that a loss does not train."""
    model = copy.deepcopy(model).cpu()
    loss(model(batch), batch.truth).backward()
    return {name for name, weight in model.named_parameters() if weight.grad is None}


def load_weights(model: nn.Module, stacked: dict[str, Tensor], run: int, idle: set[str]) -> None:
    """Give a model its run's weights of the stacked ones `[R, …]`, but for those that are idle."""
    weights = {}
    for name, weight in model.named_parameters():
        if name not in idle:
            # Without the padding.
            weights[name] = stacked[name][run][..., : weight.shape[-1]]
    model.load_state_dict(weights, strict=False)


def runs_at_once(data: Dataset, fold: Fold, config: TrainConfig) -> int:
    """About how many runs fit into a GPU's free memory, each with weights and largest batch."""
    if torch.device(config.device).type != "cuda":
        return MAX_RUNS

    settings = config.settings
    with torch.random.fork_rng(devices=[]):
        model = config.fusion.build(settings, data.dims, len(data.utterances.classes))
    weights = sum(weight.numel() for weight in model.parameters())

    turns = sorted(len(group) for group in data.groups(fold.train, config.fusion.unit))
    largest_batch = turns[-settings.batch_size :]
    inputs = sum(largest_batch) * sum(data.dims.values())
    # Of up to three streams.
    attended = len(largest_batch) * largest_batch[-1] ** 2 * settings.heads * 3

    # Weights, gradients, Adam's moments, what is kept, and room; what the way back holds beside the
    # rest, twice, as a graph keeps its own.
    floats = 6 * weights + 2 * (3 * inputs + 4 * attended)
    # What dropout keeps, of up to six layers: a byte each.
    dropout_bytes = len(data.utterances) * 6 * 2 * settings.gru_hidden
    bytes_per_run = 4 * floats + dropout_bytes

    free, _ = torch.cuda.mem_get_info(config.device)
    return max(1, min(MAX_RUNS, int(MEMORY_SHARE * free / bytes_per_run)))
