"""How a model is fitted that needs no training loop: `linear` and `svm`, by scikit-learn.

Each candidate, a strength C of the penalty on one layer of an encoder, is fitted to the training
part at once. The one with the lowest loss on the part that selects is kept; of equals the first,
so the strongest penalty on the lowest layer. Where nothing selects there is one candidate.

No random number is drawn and one thread computes, so that every seed gives the same bytes.
"""

import logging
import math
import time
import warnings
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch
from msgspec import structs
from threadpoolctl import threadpool_limits
from torch import Tensor

from ser.errors import WrongUse

from .checkpoint import Progress, read_progress, snapshot, write_kept
from .config import TrainConfig
from .data.dataset import Dataset
from .data.folds import Fold
from .data.inputs import Inputs
from .data.utterances import DIMENSIONS
from .data.views import with_views
from .fit import Fitted, OnEpoch, State, fit_standardizers, rows_to_evaluate, shuffled
from .models.solved import Solve, SolvedModel, Truth
from .records import Epoch, Scores
from .selection import epoch_scores
from .solved_candidates import Candidate, list_candidates
from .targets import TARGETS

log = logging.getLogger("ser.train")


def fit_solved(
    data: Dataset,
    fold: Fold,
    config: TrainConfig,
    on_epoch: OnEpoch | None = None,
    resume: State | None = None,
) -> Fitted:
    """Fit one model on one fold; with `refit` then another, on train and dev, as dev chose.

    As `fit.fit` does; each epoch of the history is a candidate.
    """
    candidates = list_candidates(config, data)
    with threadpool_limits(1):
        fitted = fit_candidates(data, fold, config, candidates, on_epoch, resume)
        if not config.training.refit:
            return fitted

        chosen = candidates[fitted.epoch - 1]
        config_of_second = replace(config, select="last")
        refitted = fit_candidates(data, fold.refitted, config_of_second, [chosen])

    # The outputs are scaled as dev has it, which the second has learnt.
    scales = {}
    for name, value in fitted.model.state_dict().items():
        if name == "scale":
            scales[name] = value
    refitted.model.load_state_dict({**refitted.model.state_dict(), **scales})

    [epoch] = refitted.history
    epoch = structs.replace(
        epoch, stage=f"{epoch.stage} again", epoch=fitted.epoch, epochs=len(candidates)
    )
    return replace(refitted, history=[*fitted.history, epoch])


def fit_candidates(
    data: Dataset,
    fold: Fold,
    config: TrainConfig,
    candidates: list[Candidate],
    on_epoch: OnEpoch | None = None,
    resume: State | None = None,
) -> Fitted:
    """Fit every candidate, and keep the best."""
    target = TARGETS[config.target]
    scaling = fit_standardizers(data, fold, config.settings, config.training.standardise_by)
    scaled = data.scaled(scaling)
    train_data, train_rows = with_views(shuffled(scaled, fold, config), fold.train)
    truth = truth_of_rows(train_data, train_rows, fold, config)
    eval_rows = rows_to_evaluate(fold, config)
    labels = scaled.utterances.labels[eval_rows]

    classes = len(data.utterances.classes)
    model = target.build(config.fusion, config.settings, data.dims, classes)
    model = cast(SolvedModel, model.requires_grad_(False))

    history: list[Epoch] = []
    kept = snapshot(model.state_dict())
    least = math.inf
    if resume:
        tensors, metadata = resume
        progress = read_progress(metadata)
        history = list(progress.history)
        least = progress.loss_of_best
        kept = {name.removeprefix("kept."): tensor for name, tensor in tensors.items()}

    place_of_solver: int | None = None
    for number, candidate in enumerate(candidates[len(history) :], len(history)):
        started = time.perf_counter()

        # The vectors of its layer, which the strengths share.
        if candidate.place != place_of_solver:
            model.choose_layer(candidate.place)
            seen = seen_vectors(train_data, train_rows, model.columns)
            x = seen.double().numpy()
            if not x.any():
                # Standardised, what is the same everywhere is 0.
                raise WrongUse(
                    "the utterances to learn from all have the same features: there is nothing to "
                    "learn; look whether their recordings hold sound"
                )
            seen_eval = seen_vectors(scaled, eval_rows, model.columns)
            solve = model.solver(x, truth)
            place_of_solver = candidate.place

        fit_quietly(solve, candidate)
        if len(eval_rows) and not target.rated and not target.voted:
            model.calibrate(seen_eval.float(), labels)

        # The loss of what it learnt from, and the scores and the loss of the part that selects.
        learnt = predict(model, seen, config)
        loss = target.evaluation_loss(train_data.utterances, train_rows, learnt, config)
        scores: Scores | None = None
        eval_loss: float | None = None
        if len(eval_rows):
            predicted = predict(model, seen_eval, config)
            scores = target.score(scaled.utterances, eval_rows, predicted, config)
            eval_loss = target.evaluation_loss(scaled.utterances, eval_rows, predicted, config)

        decisive = eval_loss
        if config.select == "last" or decisive is None:
            # There is one candidate.
            decisive = 0.0
        is_best = decisive < least
        if is_best:
            least = decisive
            kept = snapshot(model.state_dict())

        epoch = Epoch(
            stage="train",
            epoch=number + 1,
            epochs=len(candidates),
            loss=loss,
            **epoch_scores(scores),
            seconds=time.perf_counter() - started,
            kept=is_best,
            eval_loss=eval_loss,
            tried=candidate.tried,
        )
        history.append(epoch)
        if on_epoch:
            progress = Progress(
                stage=0,
                epoch=number + 1,
                best_score=-least,
                loss_of_best=least,
                history=history,
                chosen=(),
            )
            on_epoch(epoch, partial(write_kept, progress, kept))

    model.load_state_dict(kept)
    return Fitted(model, scaling, history)


def truth_of_rows(data: Dataset, rows: np.ndarray, fold: Fold, config: TrainConfig) -> Truth:
    """What the rows are said to be. Raises `WrongUse` for a training part of one class."""
    target = TARGETS[config.target]
    truth = target.truth(data, config.training, fold.train)
    classes = len(data.utterances.classes)
    if truth is None:
        truth = torch.from_numpy(data.utterances.labels)[:, None]
    values = truth[torch.from_numpy(rows)].double().numpy()

    ratings = None
    if target.rated:
        ratings = values[:, -len(DIMENSIONS) :]
        values = values[:, : -len(DIMENSIONS)]
    if not target.labelled:
        return Truth(ratings=ratings)

    # One column holds class numbers, more of them shares.
    shares = values
    if values.shape[1] == 1:
        shares = np.eye(classes)[values[:, 0].astype(int)]
    if np.count_nonzero(shares.any(0)) < 2:
        raise WrongUse(
            f"fold {fold.name}: its training part has one class alone, and there is nothing to "
            "tell apart; choose another protocol or dev part"
        )
    return Truth(shares, ratings)


def seen_vectors(data: Dataset, rows: np.ndarray, columns: Tensor | None) -> Tensor:
    """What a model sees of the rows, in their dtype `[n, d]`: these columns of all, or all."""
    of_modalities = []
    for inputs in data.inputs.values():
        of_modalities.append(_all_columns(inputs, rows))
    x = torch.cat(of_modalities, 1)
    if columns is not None:
        x = x[:, columns]
    return x


def _all_columns(inputs: Inputs, rows: np.ndarray) -> Tensor:
    """The vectors `[n, dim]` of the rows, read in pieces where they are streamed."""
    # A view that leaves the modality as it is has the rows of the utterances themselves.
    rows = rows % (len(inputs.offsets) - 1)
    pieces = [inputs.values[:0]]
    for piece in inputs.pieces(rows):
        pieces.append(inputs.take(piece).values)
    return torch.cat(pieces)


def fit_quietly(solve: Solve, candidate: Candidate) -> None:
    """Fit the candidate; what scikit-learn warns of goes to the log."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(candidate.strength)
    for warning in caught:
        if "converge" in str(warning.message):
            log.warning("C %g has not converged; its fit may still improve", candidate.strength)


def predict(model: SolvedModel, x: Tensor, config: TrainConfig) -> np.ndarray:
    """What the target predicts from what is seen `[n, d]`: probabilities or ratings `[n, K]`."""
    outputs = model.outputs(x.float())
    return TARGETS[config.target].predictions(outputs).numpy()
