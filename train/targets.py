"""What a run learns of an utterance: its class, its ratings, or both at once.

A target says how many outputs each head of a model has, what the loss compares them with, what
predictions they make, and how these are scored. Inside a run ratings stand on a scale of −1 to 1
(`rating_scales`); what a run reports is on the corpus's scale.

    n  utterances     K  classes     D  dimensions: valence, arousal and dominance
"""

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
from .data.utterances import DIMENSIONS, Utterances
from .losses import class_loss, class_weights, concordance_loss
from .models import Fusion
from .rating_scales import normalise_ratings, predicted_ratings, use_one_scale
from .records import Calibration, Scores
from .run_folder import column
from .scores.calibration import choose_temperature, ece, reliability, tempered
from .scores.classes import scores
from .scores.raters import divergences
from .scores.ratings import dimension_scores
from .settings import TrainingSettings

ScoreName = Literal["ua", "wa", "macro_f1", "ccc"]

# The training settings that say something of classes alone, or of ratings alone.
CLASS_SETTINGS = ("soft_labels", "class_weights", "effective_beta", "focal_gamma", "sampler")
RATING_SETTINGS = ("vad_loss", "vad_weight", "vad_scale")


@dataclass(frozen=True)
class Target:
    """What is learnt: an entry of `TARGETS`.

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
    unused: tuple[str, ...] = RATING_SETTINGS
    """Training settings that change nothing."""

    def width(self, classes: int) -> int:
        """Outputs of each head."""
        outputs = 0
        if self.labelled:
            outputs += classes
        if self.rated:
            outputs += len(DIMENSIONS)
        return outputs

    def build(
        self, fusion: Fusion, settings: Any, dims: Mapping[str, int], classes: int
    ) -> nn.Module:
        """The fusion's model with heads of that width.

        A model that reads its own `predictions` gets the target's.
        """
        model = fusion.build(settings, dims, self.width(classes))
        if hasattr(model, "predictions"):
            model.predictions = self.predictions  # type: ignore[assignment]
        return model

    def prepare(
        self, fusion: Fusion, settings: Any, training: TrainingSettings, data: Dataset
    ) -> tuple[TrainingSettings, Dataset]:
        """The training settings and the data as this target needs them.

        The settings with what it chooses by itself, the data with its ratings on one scale. Raises
        `WrongUse` for what it cannot use.
        """
        self._check_unused(training)
        training = self.choose_score(training)
        if not self.rated:
            return training, data

        self._check_ratings_can_be_learnt(fusion, settings, training)
        return use_one_scale(self.name, training, data)

    def _check_unused(self, training: TrainingSettings) -> None:
        """Raise `WrongUse` for a setting that was set and would change nothing."""
        defaults = TrainingSettings()
        for name in self.unused:
            if getattr(training, name) != getattr(defaults, name):
                raise WrongUse(
                    f"--set {name}: --target {self.name} has no use for it; leave it out"
                )

        beta_is_set = training.effective_beta != defaults.effective_beta
        if beta_is_set and training.class_weights != "effective":
            raise WrongUse(
                "--set effective_beta: it is that of class_weights=effective; set both, or leave "
                "it out"
            )

    def choose_score(self, training: TrainingSettings) -> TrainingSettings:
        """With a score that the target has as `select_score`.

        Raises `WrongUse` if another was set.
        """
        choices: list[ScoreName] = []
        if self.labelled:
            choices += ["ua", "wa", "macro_f1"]
        if self.rated:
            choices += ["ccc"]

        if training.select_score in choices:
            return training
        if training.select_score != TrainingSettings().select_score:
            raise WrongUse(
                f"--set select_score={training.select_score}: --target {self.name} selects by "
                f"{' or '.join(choices)}"
            )
        return replace(training, select_score=choices[0])

    def _check_ratings_can_be_learnt(
        self, fusion: Fusion, settings: Any, training: TrainingSettings
    ) -> None:
        """Raise `WrongUse` for settings with which ratings cannot be learnt."""
        if getattr(settings, "released", False):
            raise WrongUse(
                "released=true makes probabilities of classes alone; leave it out with "
                f"--target {self.name}"
            )
        one_utterance = fusion.unit == "utterance" and settings.batch_size == 1
        if training.vad_loss == "ccc" and one_utterance:
            raise WrongUse(
                "vad_loss=ccc compares the utterances of a batch; use batch_size=2 or more, or "
                "vad_loss=mse"
            )

    def truth(
        self,
        data: Dataset,
        training: TrainingSettings,
        train: np.ndarray,
        votes: np.ndarray | None = None,
    ) -> Tensor | None:
        """What the loss compares outputs with, of all utterances; None is their classes.

        `train` are the rows of the training part, by which classes are weighted: then w_k p_ik `[n,
        K]`. Ratings, the ends of their scale at −1 and 1, are `[n, D]`, and behind class numbers or
        soft labels if there are classes. `votes` `[n, K]` are soft labels in place of the raters'.
        """
        shares = self._class_shares(data, training, train, votes)
        if not self.rated:
            return shares

        dimensions = normalise_ratings(data.utterances.dimensions, training)
        ratings = torch.from_numpy(dimensions).float()
        if not self.labelled:
            return ratings
        if shares is None:
            shares = torch.from_numpy(data.utterances.labels)[:, None]
        return torch.cat([shares, ratings], 1)

    def _class_shares(
        self,
        data: Dataset,
        training: TrainingSettings,
        train: np.ndarray,
        votes: np.ndarray | None,
    ) -> Tensor | None:
        """Soft labels, and weighted ones, `[n, K]`; None where class numbers say the same."""
        shares = None
        if self.voted or (training.soft_labels and not training.shuffle_labels):
            shares = torch.from_numpy(data.utterances.votes)
        learnt = shares if votes is None else torch.from_numpy(votes)
        if training.class_weights == "none":
            return learnt

        if shares is None or learnt is None:
            labels = torch.from_numpy(data.utterances.labels)
            shares = F.one_hot(labels, len(data.utterances.classes)).float()
            learnt = shares
        # By all votes, whichever of them are learnt.
        return learnt * class_weights(shares[torch.from_numpy(train)], training)

    def loss(self, outputs: Tensor, truth: Tensor, config: TrainConfig) -> Tensor:
        """The loss of one head's outputs for a batch, summed or averaged over it.

        `config.reduction` says which. Classes: see `class_loss`. Ratings: the mean over the
        dimensions of 1 − CCC, or of the mean squared error; times n where losses are summed. Both:
        that of the classes + `vad_weight` times that of the ratings.
        """
        training = config.training
        gamma = training.focal_gamma
        if not self.rated:
            return class_loss(outputs, truth, gamma, config.reduction)

        d = len(DIMENSIONS)
        rating_loss = concordance_loss if training.vad_loss == "ccc" else F.mse_loss
        loss_of_ratings = rating_loss(outputs[:, -d:], truth[:, -d:])
        if config.reduction == "sum":
            loss_of_ratings = loss_of_ratings * len(outputs)
        if not self.labelled:
            return loss_of_ratings

        # One column before the ratings holds class numbers, more of them soft labels.
        class_truth = truth[:, :-d] if truth.shape[1] > d + 1 else truth[:, 0].long()
        loss_of_classes = class_loss(outputs[:, :-d], class_truth, gamma, config.reduction)
        return loss_of_classes + training.vad_weight * loss_of_ratings

    def predictions(self, outputs: Tensor) -> Tensor:
        """What a head's outputs say, of the same shape: probabilities, and ratings as they are."""
        k = outputs.shape[1]
        if self.rated:
            k -= len(DIMENSIONS)
        return torch.cat([outputs[:, :k].softmax(1), outputs[:, k:]], 1)

    def score(
        self, utterances: Utterances, rows: np.ndarray, predicted: np.ndarray, config: TrainConfig
    ) -> Scores:
        """All scores of predictions for the rows; some can select an epoch."""
        values: dict[str, Any] = {}
        if self.labelled:
            classes = utterances.classes
            best_classes = predicted[:, : len(classes)].argmax(1)
            values.update(scores(utterances.labels[rows], best_classes, classes))

        if self.voted:
            distances = divergences(utterances.votes[rows], predicted)
            for name, by_utterance in distances.items():
                values[name] = float(by_utterance.mean())

        if self.rated:
            ratings = predicted_ratings(predicted, config.training)
            values.update(dimension_scores(utterances.dimensions[rows], ratings))

        return Scores(**values)

    def evaluation_loss(
        self, utterances: Utterances, rows: np.ndarray, predicted: np.ndarray, config: TrainConfig
    ) -> float:
        """The mean loss per utterance of predictions for the rows.

        It says which of several epochs with one score is the best, so it has no weights of classes.
        Classes: -log p of the true one, or the cross-entropy with the raters' votes. Ratings: the
        mean squared error on [-1, 1]. Both: their sum.
        """
        loss = 0.0
        k = len(utterances.classes) if self.labelled else 0
        if self.labelled:
            p = predicted[:, :k].astype(np.float64)
            log_p = np.log(np.maximum(p, np.finfo(np.float32).tiny))
            if self.voted:
                by_utterance = -(utterances.votes[rows] * log_p).sum(1)
            else:
                by_utterance = -log_p[np.arange(len(rows)), utterances.labels[rows]]
            loss += float(by_utterance.mean())

        if self.rated:
            ratings = normalise_ratings(utterances.dimensions[rows], config.training)
            errors = predicted[:, k:].astype(np.float64) - ratings
            loss += float(np.square(errors).mean())

        return loss

    def calibrate(
        self,
        utterances: Utterances,
        dev: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
    ) -> Calibration | None:
        """The temperature that is fitted on dev, and what it does to the test part's ECE.

        `dev` and `test` are rows and their predictions. None where there are no classes.
        """
        k = len(utterances.classes)
        if k == 0:
            return None

        dev_rows, on_dev = dev
        fitted = choose_temperature(utterances.labels[dev_rows], on_dev[:, :k])
        temperature = fitted.temperature

        test_rows, on_test = test
        truth = utterances.labels[test_rows]
        probabilities = on_test[:, :k]
        before = ece(reliability(truth, probabilities))
        after = ece(reliability(truth, tempered(probabilities, temperature)))
        return Calibration(
            temperature=temperature,
            n_dev=len(dev_rows),
            ece=before,
            ece_tempered=after,
            unfitted=fitted.fault,
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
        columns: dict[str, Any] = {}
        columns["id"] = [utterances.ids[row] for row in rows]
        columns["speaker"] = [utterances.speakers[row] for row in rows]
        columns["dialogue"] = utterances.dialogues[rows]

        if self.labelled:
            classes = utterances.classes
            k = len(classes)
            best_classes = tests["both"][:, :k].argmax(1)
            columns["truth"] = [classes[label] for label in utterances.labels[rows]]
            columns["predicted"] = [classes[label] for label in best_classes]
            for test, predicted in tests.items():
                columns[column("probabilities", test)] = list(predicted[:, :k])

        if self.voted:
            columns["votes"] = list(utterances.votes[rows])

        if self.rated:
            for d, name in enumerate(DIMENSIONS):
                columns[f"truth {name}"] = utterances.dimensions[rows, d]
                for test, predicted in tests.items():
                    ratings = predicted_ratings(predicted, config.training)
                    columns[column(f"predicted {name}", test)] = ratings[:, d]

        return columns


# By the names that `--target` takes, see `options.Experiment.target`.
TARGETS = {
    "class": Target("class"),
    "distribution": Target("distribution", voted=True, unused=("soft_labels", *RATING_SETTINGS)),
    "distribution+undecided": Target(
        "distribution+undecided",
        voted=True,
        undecided=True,
        unused=("soft_labels", *RATING_SETTINGS),
    ),
    "vad": Target("vad", labelled=False, rated=True, unused=("vad_weight", *CLASS_SETTINGS)),
    "class+vad": Target("class+vad", rated=True, unused=()),
}
