"""What a run learns of an utterance: its class, its valence, arousal and dominance, or both at
once.

A target says how many outputs each head of a model has, what the loss compares them with, what
predictions they make, and how these are scored. Inside a run the ends of the corpus's scale of
valence, arousal and dominance are −1 and 1, so that an untrained head, whose outputs are about 0,
predicts the middle; what a run reports is on the corpus's scale. Nothing is clipped: raters' means
and predictions may lie beyond its ends.

    n  utterances     K  classes     D  dimensions: valence, arousal and dominance
"""

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.errors import WrongUse

from .config import TrainConfig
from .data.dataset import Dataset
from .data.utterances import DIMENSIONS, IEMOCAP_ID, Utterances
from .models import Fusion
from .records import Calibration, Scores
from .run_folder import column
from .scores.calibration import ece, fit_temperature, reliability, tempered
from .scores.classes import scores
from .scores.raters import divergences
from .scores.ratings import dimension_scores
from .settings import TrainingSettings

Score = Literal["ua", "wa", "macro_f1", "ccc"]
OF_CLASSES = (
    "soft_labels",
    "class_weights",
    "effective_beta",
    "focal_gamma",
    "sampler",
)  # settings of these alone
OF_RATINGS = ("vad_loss", "vad_weight", "vad_scale")
# The scale that a corpus's raters used, where the ids tell the corpus: lowest and highest.
SCALES = {
    IEMOCAP_ID.pattern: "1..5",  # Busso et al. 2008, and the demo
    r"MSP-IMPROV-S\d\d\w-.*": "1..5",  # Busso et al. 2017
    r"MSP-PODCAST_\d{4}_\d{4}.*": "1..7",  # Lotfian & Busso 2019
}
OUTSIDE = 0.01  # of the ratings may lie outside of their scale, as a few of IEMOCAP's do; with more it is another scale
TINY = 1e-8  # added below the CCC of a batch, where nothing varies


def scale_of(training: TrainingSettings) -> tuple[float, float]:
    """The lowest and the highest rating, such as 1 and 5. Raises `WrongUse` where `vad_scale` is
    not a range.
    """
    low, _, high = training.vad_scale.partition("..")
    with contextlib.suppress(ValueError):
        if 0 < float(high) - float(low) < float("inf"):
            return float(low), float(high)
    raise WrongUse(
        f"--set vad_scale={training.vad_scale[:200]}: must be auto, or a range such as 1..5"
    )


def _normalised(ratings: np.ndarray, training: TrainingSettings) -> np.ndarray:
    """Ratings of the corpus's scale, whose ends become −1 and 1."""
    low, high = scale_of(training)
    return 2 * (ratings - low) / (high - low) - 1


@dataclass(frozen=True)
class Target:
    """What is learnt: a row of `TARGETS`.

    A head has K outputs if the target is `labelled`, then D if it is `rated`: logits of the
    classes, and ratings. Where it is `voted`, the shares of the raters' votes are the truth of the
    loss, with KL and JS divergence beside the scores of the class of the majority; utterances
    without one train too where it is `undecided`, and stand in no dev or test part: a run says KL
    and JS of those of its test speakers. An utterance needs a label only for the classes.
    """

    name: str
    labelled: bool = True
    rated: bool = False
    voted: bool = False
    undecided: bool = False
    unused: tuple[str, ...] = OF_RATINGS  # settings that change nothing

    def width(self, classes: int) -> int:
        """Outputs of each head."""
        return classes * self.labelled + len(DIMENSIONS) * self.rated

    def build(
        self, fusion: Fusion, settings: Any, dims: Mapping[str, int], classes: int
    ) -> nn.Module:
        """The fusion's model with heads of that width; one that reads its own `predictions` gets
        the target's.
        """
        model = fusion.build(settings, dims, self.width(classes))
        if hasattr(model, "predictions"):
            model.predictions = self.predictions  # type: ignore[assignment]
        return model

    def settled(
        self, fusion: Fusion, settings: Any, training: TrainingSettings, data: Dataset
    ) -> tuple[TrainingSettings, Dataset]:
        """The training settings with what this target chooses by itself, and the data with its
        ratings on one scale.

        Raises `WrongUse` for what it cannot use.
        """
        usual = TrainingSettings()
        for key in self.unused:
            if getattr(training, key) != getattr(usual, key):
                raise WrongUse(f"--set {key}: --target {self.name} has no use for it; leave it out")
        if (
            training.effective_beta != usual.effective_beta
            and training.class_weights != "effective"
        ):
            raise WrongUse(
                "--set effective_beta: it is that of class_weights=effective; set both, or leave it out"
            )
        known: list[Score] = ["ua", "wa", "macro_f1"] if self.labelled else []  # the default first
        known += ["ccc"] if self.rated else []
        if training.select_score not in known:
            if training.select_score != usual.select_score:
                metrics = " or ".join(known)
                raise WrongUse(
                    f"--set select_score={training.select_score}: --target {self.name} selects by {metrics}"
                )
            training = replace(training, select_score=known[0])
        if not self.rated:
            return training, data
        if getattr(settings, "released", False):
            what = "released=true makes probabilities of classes alone"
            raise WrongUse(f"{what}; leave it out with --target {self.name}")
        if training.vad_loss == "ccc" and fusion.unit == "utterance" and settings.batch_size == 1:
            raise WrongUse(
                "vad_loss=ccc compares the utterances of a batch; use batch_size=2 or more, or vad_loss=mse"
            )
        return self._on_one_scale(training, data)

    def _on_one_scale(
        self, training: TrainingSettings, data: Dataset
    ) -> tuple[TrainingSettings, Dataset]:
        """With the corpus's scale in the place of `auto`; several corpora's, each by its own,
        become −1 to 1.
        """
        utterances, given = data.utterances, training.vad_scale
        corpora = np.array(utterances.corpora or [data.record["corpus"]] * len(utterances))
        known: dict[str, str | None] = {}  # by corpus, the scale that its ids show
        for name in np.unique(corpora):
            ids = np.array(utterances.own_ids)[corpora == name]
            matching = [
                scale
                for form, scale in SCALES.items()
                if all(re.fullmatch(form, id_) for id_ in ids)
            ]
            known[name] = matching[0] if matching else None
        several = len({*known.values()} - {None}) > 1
        if several and (given != "auto" or None in known.values()):
            scales = ", ".join(f"{name} {scale or 'not known'}" for name, scale in known.items())
            raise WrongUse(
                f"--target {self.name}: the raters of these corpora used different scales ({scales}), and each is "
                "normalised by its own; leave --set vad_scale out, and corpora whose scale is not known"
            )
        normalised = utterances.dimensions.copy()
        for name in known:
            scale = known[name] if given == "auto" else given
            if scale is None:
                what = (
                    f"the scale on which corpus {name} rates {', '.join(DIMENSIONS)} is not known"
                )
                raise WrongUse(
                    f"--target {self.name}: {what}; give it, such as --set vad_scale=1..5"
                )
            training = replace(training, vad_scale=scale)
            ratings = utterances.dimensions[corpora == name]
            low, high = scale_of(training)
            if np.mean((ratings < low) | (ratings > high)) > OUTSIDE:
                what = f"corpus {name} has ratings from {ratings.min():g} to {ratings.max():g}"
                raise WrongUse(
                    f"--set vad_scale={training.vad_scale}: {what}; give the scale that its raters used"
                )
            normalised[corpora == name] = _normalised(ratings, training)
        if not several:
            return training, data
        data = replace(data, utterances=replace(utterances, dimensions=normalised))
        return replace(training, vad_scale="-1..1"), data

    def truth(self, data: Dataset, training: TrainingSettings, train: np.ndarray) -> Tensor | None:
        """What the loss compares the outputs for all utterances with; None is their classes, int64
        `[n]`.

        `train` are the rows of the training part, by which classes are weighted: then w_k p_ik `[n,
        K]`. Ratings, the ends of their scale at −1 and 1, are `[n, D]`, and behind class numbers or
        soft labels if there are classes.
        """
        labels, votes = map(torch.from_numpy, (data.utterances.labels, data.utterances.votes))
        soft = (
            votes if self.voted or (training.soft_labels and not training.shuffle_labels) else None
        )
        if training.class_weights != "none":
            soft = F.one_hot(labels, len(data.utterances.classes)).float() if soft is None else soft
            soft = soft * class_weights(soft[torch.from_numpy(train)], training)
        if not self.rated:
            return soft
        ratings = torch.from_numpy(_normalised(data.utterances.dimensions, training)).float()
        return (
            torch.cat([labels[:, None] if soft is None else soft, ratings], 1)
            if self.labelled
            else ratings
        )

    def loss(self, outputs: Tensor, truth: Tensor, config: TrainConfig) -> Tensor:
        """Of the outputs of one head for a batch, summed or averaged over it as `config.reduction`
        says.

        Classes: see `class_loss`. Ratings: the mean over the dimensions of 1 − CCC, or of the mean
        squared error; times n where losses are summed. Both: that of the classes + `vad_weight`
        times that of the ratings.
        """
        training, reduction, d = config.training, config.reduction, len(DIMENSIONS)
        if not self.rated:
            return class_loss(outputs, truth, training.focal_gamma, reduction)
        each = concordance_loss if training.vad_loss == "ccc" else F.mse_loss
        ratings = each(outputs[:, -d:], truth[:, -d:]) * (len(outputs) if reduction == "sum" else 1)
        if not self.labelled:
            return ratings
        classes = truth[:, :-d] if truth.shape[1] > d + 1 else truth[:, 0].long()
        of_classes = class_loss(outputs[:, :-d], classes, training.focal_gamma, reduction)
        return of_classes + training.vad_weight * ratings

    def predictions(self, outputs: Tensor) -> Tensor:
        """What the outputs of a head say, of the same shape: probabilities of the classes, and
        ratings as they are.
        """
        k = outputs.shape[1] - len(DIMENSIONS) * self.rated
        return torch.cat([outputs[:, :k].softmax(1), outputs[:, k:]], 1)

    def scored(
        self, utterances: Utterances, rows: np.ndarray, predicted: np.ndarray, config: TrainConfig
    ) -> Scores:
        """All scores of predictions for the rows; some can select an epoch."""
        classes = utterances.classes
        scored: dict[str, Any] = {}
        if self.labelled:
            scored = scores(
                utterances.labels[rows], predicted[:, : len(classes)].argmax(1), classes
            )
        if self.voted:
            for name, values in divergences(utterances.votes[rows], predicted).items():
                scored[name] = float(values.mean())
        if self.rated:
            scored |= dimension_scores(
                utterances.dimensions[rows], rated_as(predicted, config.training)
            )
        return Scores(**scored)

    def calibrated(
        self,
        utterances: Utterances,
        dev: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
    ) -> Calibration | None:
        """The temperature of the probabilities, fitted on dev, and what it does to the ECE of the
        test part.

        Both are rows and their predictions. None where there are no classes.
        """
        k = len(utterances.classes)
        if k == 0:
            return None
        (dev_rows, on_dev), (test_rows, on_test) = dev, test
        temperature = fit_temperature(utterances.labels[dev_rows], on_dev[:, :k])
        truth, untempered = utterances.labels[test_rows], on_test[:, :k]
        before = ece(reliability(truth, untempered))
        after = ece(reliability(truth, tempered(untempered, temperature)))
        return Calibration(
            temperature=temperature, n_dev=len(dev_rows), ece=before, ece_tempered=after
        )

    def columns(
        self,
        utterances: Utterances,
        rows: np.ndarray,
        tests: Mapping[str, np.ndarray],
        config: TrainConfig,
    ) -> dict[str, Any]:
        """The columns of a run's predictions.parquet: who speaks, truth and, by test, predictions.

        Ratings are on the corpus's scale: "truth valence", "predicted valence", "predicted valence
        only text", ….
        """
        classes, k = utterances.classes, len(utterances.classes)
        columns: dict[str, Any] = {"id": [utterances.ids[row] for row in rows]}
        columns["speaker"] = [utterances.speakers[row] for row in rows]
        columns["dialogue"] = utterances.dialogues[rows]
        if self.labelled:
            columns["truth"] = [classes[label] for label in utterances.labels[rows]]
            columns["predicted"] = [classes[label] for label in tests["both"][:, :k].argmax(1)]
            columns |= {
                column("probabilities", test): list(predicted[:, :k])
                for test, predicted in tests.items()
            }
        if self.voted:
            columns["votes"] = list(utterances.votes[rows])
        for d, name in enumerate(DIMENSIONS if self.rated else ()):
            columns[f"truth {name}"] = utterances.dimensions[rows, d]
            for test, predicted in tests.items():
                columns[column(f"predicted {name}", test)] = rated_as(predicted, config.training)[
                    :, d
                ]
        return columns


def rated_as(predicted: np.ndarray, training: TrainingSettings) -> np.ndarray:
    """The ratings of a target's predictions on the corpus's scale, float64 `[n, D]`."""
    low, high = scale_of(training)
    return low + (high - low) * (predicted[:, -len(DIMENSIONS) :].astype(np.float64) + 1) / 2


def class_weights(shares: Tensor, training: TrainingSettings) -> Tensor:
    """Weights w `[K]` by the sizes n_k = Σ_i p_ik of the classes in the training part, whose shares
    are p `[n, K]`.

    inverse    w_k ∝ 1 / n_k: every class has the same part in the loss
    effective  w_k ∝ (1 − β) / (1 − β^n_k), by the effective number of samples (Cui et al. 2019, eq. 2)

    Scaled so that Σ_k n_k w_k = Σ_k n_k, the mean weight of a training utterance being 1: so the
    loss and the rate keep their scale, and `inverse` is scikit-learn's "balanced". A class of which
    there is nothing weighs 0.
    """
    sizes, beta = shares.sum(0, dtype=torch.float64), training.effective_beta
    number = (
        sizes
        if training.class_weights == "inverse"
        else -torch.expm1(sizes * math.log(beta)) / (1 - beta)
    )
    weights = torch.where(sizes > 0, 1 / number, 0.0)
    return (weights * sizes.sum() / (weights @ sizes)).float()


def class_loss(outputs: Tensor, truth: Tensor, gamma: float, reduction: str) -> Tensor:
    """The cross-entropy of logits `[n, K]`, or the focal loss, summed or averaged over the
    utterances with a truth.

    Σ_i −log q_iy of the probabilities q for classes y `[n]`; for soft labels p `[n, K]` (USC §3.2)
    Σ_i Σ_k −p_ik log q_ik. With a `gamma` γ each term has the factor (1 − q_ik)^γ (Lin et al. 2017,
    eq. 4).
    """
    if not gamma:
        return F.cross_entropy(outputs, truth, reduction=reduction)
    logs = outputs.log_softmax(1)
    # One class each, and none where it is no class, as in the rows of `fit_many` that hold nobody.
    shares = (
        truth
        if truth.ndim == 2
        else (truth[:, None] == torch.arange(logs.shape[1], device=logs.device)).float()
    )
    missed = (-torch.expm1(logs)).clamp_min(
        torch.finfo(logs.dtype).tiny
    )  # of 0, powers below 1 have no gradient
    total = -(shares * missed**gamma * logs).sum()
    return total if reduction == "sum" else total / shares.any(1).sum()


def concordance_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 − the mean over the columns of Lin's CCC of a batch `[n, D]`; see `concordance`.

    1, without a gradient, for a batch of one utterance or of equal ratings, in which nothing varies
    with the truth.
    """
    p, t = predicted - predicted.mean(0), truth - truth.mean(0)
    apart = (predicted.mean(0) - truth.mean(0)).square()
    ccc = 2 * (p * t).mean(0) / (p.square().mean(0) + t.square().mean(0) + apart + TINY)
    return 1 - ccc.mean()


# By the names that `--target` takes, which are in options.toml.
_ALL = (
    Target("class"),
    Target("distribution", voted=True, unused=("soft_labels", *OF_RATINGS)),
    Target(
        "distribution+undecided", voted=True, undecided=True, unused=("soft_labels", *OF_RATINGS)
    ),
    Target("vad", labelled=False, rated=True, unused=("vad_weight", *OF_CLASSES)),
    Target("class+vad", rated=True, unused=()),
)
TARGETS = {target.name: target for target in _ALL}
