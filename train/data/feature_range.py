"""How far an utterance's features lie from those that a model was trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .inputs import Inputs
from .standardizer import Standardizer

# Of the training part so many utterances say how far is usual, spread over it.
UTTERANCES = 2000
# A column counts so many standard deviations at most: one alone does not decide.
HIGHEST_Z = 10.0
PERCENTILES = 101


@dataclass(frozen=True)
class FeatureRange:
    """Where the training part lies, by the mean of each utterance's rows.

    The distance of an utterance is the root of its mean squared z-score over the columns.
    """

    mean: Tensor
    """Float32 [dim], over the training part."""
    std: Tensor
    """Float32 [dim], over the training part."""
    percentiles: Tensor
    """The 0th, 1st, …, 100th percentile of the training part's distances, float32 [101]."""

    @classmethod
    def of(cls, inputs: Inputs, utterances: np.ndarray) -> "FeatureRange":
        """That of these utterances [n], or of `UTTERANCES` of them."""
        spread = np.linspace(0, len(utterances) - 1, min(UTTERANCES, len(utterances)))
        vectors = _means(inputs, utterances[spread.round().astype(int)])

        count = len(vectors)
        scale = Standardizer.of(Inputs(vectors, np.arange(count + 1)), np.arange(count))
        distances = _distances((vectors - scale.mean) / scale.std)
        steps = torch.linspace(0, 1, PERCENTILES)
        return cls(scale.mean, scale.std, torch.quantile(distances, steps))

    def percentile(self, rows: Tensor) -> float:
        """Of an utterance's rows [rows, dim]: how many % of the training part lie nearer."""
        vector = rows.float().mean(0, keepdim=True)
        distance = _distances((vector - self.mean) / self.std)
        return float(np.interp(distance.item(), self.percentiles.numpy(), np.arange(PERCENTILES)))


def _means(inputs: Inputs, utterances: np.ndarray) -> Tensor:
    """The mean of each utterance's rows, float32 [utterances, dim]."""
    if (np.diff(inputs.offsets)[utterances] == 1).all():
        # One row is its own mean: all are taken at once.
        pieces = inputs.pieces(utterances)
        return torch.cat([inputs.take(piece).values.float() for piece in pieces])
    return torch.stack([inputs.take(one).values.float().mean(0) for one in utterances[:, None]])


def _distances(z: Tensor) -> Tensor:
    """The distance of each utterance, by its z-scores [n, dim]."""
    return z.clamp(-HIGHEST_Z, HIGHEST_Z).square().mean(1).sqrt()
