"""Z-scores of one modality."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.layers.device import send
from .inputs import Inputs

# Utterances whose rows are added up at once.
CHUNK = 256


@dataclass(frozen=True)
class Standardizer:
    """Z-score of one modality: (x − mean) / std.

    Each is float32 [dim], or [1 + C, dim]: row c is that of corpus c, and row 0 that of utterances
    of no corpus: the whole training part's.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, inputs: Inputs, utterances: np.ndarray) -> "Standardizer":
        """Statistics of all rows of these utterances: `fit_standardizers` chooses which."""
        first, *others = np.array_split(utterances, len(utterances) // CHUNK + 1)
        low, high, total, squares = inputs.moments(first)
        for chunk in others:
            chunk_low, chunk_high, chunk_total, chunk_squares = inputs.moments(chunk)
            low = torch.minimum(low, chunk_low)
            high = torch.maximum(high, chunk_high)
            total = total + chunk_total
            squares = squares + chunk_squares

        rows = int(np.diff(inputs.offsets)[utterances].sum())
        mean = total / rows
        variance = (squares / rows - mean * mean).clamp_min(0)
        # A column that is constant in training stays (almost) zero, instead of being divided by
        # zero.
        std = torch.where((high > low) & (variance > 0), variance.sqrt(), 1.0)
        return cls(mean.float(), std.float())

    def __call__(self, values: Tensor, corpora: np.ndarray, lengths: Tensor) -> Tensor:
        """Standardised values [rows, dim], float32.

        They are of utterances of the corpora of these numbers [n], with these lengths [n].
        """
        mean = self.mean
        std = self.std
        if mean.ndim > 1:
            row = send(torch.from_numpy(corpora).repeat_interleave(lengths), values.device)
            mean = mean[row]
            std = std[row]
        return (values.float() - mean) / std

    @property
    def of_new_speech(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation that new speech, which is of no corpus, is z-scored by; [dim] each."""
        if self.mean.ndim > 1:
            return self.mean[0], self.std[0]
        return self.mean, self.std

    def on(self, device: torch.device | str) -> "Standardizer":
        """The same on a device."""
        return Standardizer(self.mean.to(device), self.std.to(device))
