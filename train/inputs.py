"""One modality of all utterances in one packed array, and its z-score."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .batch import Sequences
from .choice import Pool

FITS = 0.5  # of a GPU's free memory may be inputs that stay there


@dataclass(frozen=True)
class Inputs:
    """One modality of all n utterances: values [rows, dim] as stored, `offsets` [n + 1] int64.

    With `repeats`, utterances n, n + 1, … are the same ones again.
    """

    values: Tensor
    offsets: np.ndarray
    repeats: int = 1

    @property
    def dim(self) -> int:
        """Dimension of a row."""
        return self.values.shape[1]

    def take(self, utterances: np.ndarray) -> Sequences:
        """The rows of the given utterances, one after the other, in the stored dtype."""
        if self.repeats > 1:
            utterances = utterances % (len(self.offsets) - 1)
        starts, lengths = self.offsets[utterances], np.diff(self.offsets)[utterances]
        before = np.cumsum(lengths) - lengths
        rows = torch.from_numpy(np.arange(lengths.sum()) + np.repeat(starts - before, lengths))
        if self.values.is_pinned():  # and so must be what a GPU is to take by itself
            values = torch.empty(len(rows), self.dim, dtype=self.values.dtype, pin_memory=True)
            torch.index_select(self.values, 0, rows, out=values)
        else:
            values = self.values[rows.to(self.values.device, non_blocking=True)]
        return Sequences(values, torch.from_numpy(lengths))

    def on(self, device: torch.device) -> "Inputs":
        """The same with the values on `device`, in the stored dtype; pinned where they do not fit on a GPU."""
        if device.type == "cuda" and self.values.nbytes > FITS * torch.cuda.mem_get_info(device)[0]:
            return replace(self, values=self.values.pin_memory())
        return replace(self, values=self.values.to(device))

    def pooled(self, pool: Pool) -> "Inputs":
        """One float32 vector per utterance: the mean over its rows, or mean and standard deviation [n, 2 dim]."""
        pieces = self.values.numpy()
        bounds = zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
        vectors = np.empty((len(self.offsets) - 1, self.dim * (2 if pool == "meanstd" else 1)), dtype=np.float32)
        for vector, (start, end) in zip(vectors, bounds, strict=True):
            rows = pieces[start:end].astype(np.float32)
            vector[: self.dim] = rows.mean(axis=0)
            if pool == "meanstd":
                vector[self.dim :] = rows.std(axis=0)
        return Inputs(torch.from_numpy(vectors), np.arange(len(self.offsets)))


@dataclass(frozen=True)
class Scaling:
    """Z-score of one modality: (x − mean) / std, each [dim] float32."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, inputs: Inputs, utterances: np.ndarray) -> "Scaling":
        """Statistics of all rows of the given utterances, which must be those of the training part alone."""
        total, squares, rows = torch.zeros(inputs.dim).double(), torch.zeros(inputs.dim).double(), 0
        low, high = torch.tensor(np.inf), torch.tensor(-np.inf)
        for chunk in np.array_split(utterances, len(utterances) // 256 + 1):
            values = inputs.take(chunk).values
            low, high = torch.minimum(low, values.amin(0).float()), torch.maximum(high, values.amax(0).float())
            wide = values.double()
            total, squares, rows = total + wide.sum(0), squares + (wide * wide).sum(0), rows + len(wide)
        mean = total / rows
        variance = (squares / rows - mean * mean).clamp_min(0)
        # What is constant in training says nothing: it stays (almost) zero in place of being divided by zero.
        std = torch.where((high > low) & (variance > 0), variance.sqrt(), 1.0)
        return cls(mean.float(), std.float())

    def of_all(self, inputs: Inputs) -> Inputs:
        """The same utterances with their values scaled, in float32."""
        return replace(inputs, values=self(inputs.values))

    def __call__(self, values: Tensor) -> Tensor:
        """Scaled values [rows, dim] in float32."""
        return (values.float() - self.mean.to(values.device)) / self.std.to(values.device)
