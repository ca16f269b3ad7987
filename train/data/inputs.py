"""One modality of all utterances, packed: rows one after the other, and where each starts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..models.batch import Sequences

Pool = Literal["mean", "meanstd"]

# Standardised values [rows, dim] of utterances of such corpora [n] and lengths [n].
Standardize = Callable[[Tensor, np.ndarray, Tensor], Tensor]

# The share of a GPU's free memory that inputs may take; larger ones stay in the CPU's.
GPU_SHARE = 0.5

# A block so wide sums bit for bit as it does within all columns: torch adds them up side by side.
COLUMNS_OF_A_BLOCK = 32


@dataclass(frozen=True)
class Inputs:
    """One modality of all n utterances.

    Numbers wrap around: utterance n is utterance 0 again, so a view (an augmented copy) that leaves
    a modality as it is takes no memory for it.
    """

    values: Tensor
    """[rows, dim], in the stored dtype."""
    offsets: np.ndarray
    """Where each utterance's rows start, and where the last one's end; int64 [n + 1]."""
    pinned: bool = False
    """Whether rows are taken into pinned memory, to travel to a GPU."""
    room: int = 64 << 20
    """Bytes that may be added up, or read, at once."""
    streamed: ClassVar[bool] = False
    """Whether the rows are read from the store when a batch needs them: see `Streamed`."""

    @property
    def dim(self) -> int:
        """Dimension of a row."""
        return self.values.shape[1]

    def take(self, utterances: np.ndarray, hidden: Tensor | None = None) -> Sequences:
        """The rows of the utterances [n], one after the other, in the stored dtype.

        None of those that are `hidden`, bool [n]. Rows of values on a GPU are taken when the batch
        is sent there.
        """
        rows, lengths = self.rows(utterances)
        if hidden is not None:
            rows = rows[~hidden.repeat_interleave(lengths)]
            lengths = lengths * ~hidden

        if self.values.device.type != "cpu":
            return Sequences(self.values, lengths, rows)
        values = torch.empty(len(rows), self.dim, dtype=self.values.dtype, pin_memory=self.pinned)
        torch.index_select(self.values, 0, rows, out=values)
        return Sequences(values, lengths)

    def rows(self, utterances: np.ndarray) -> tuple[Tensor, Tensor]:
        """Which rows of the values are these utterances' [r], and how many each has [n], int64."""
        utterances = utterances % (len(self.offsets) - 1)
        starts = self.offsets[utterances]
        lengths = self.offsets[utterances + 1] - starts

        rows_before = np.cumsum(lengths) - lengths
        rows = np.arange(lengths.sum()) + np.repeat(starts - rows_before, lengths)
        return torch.from_numpy(rows), torch.from_numpy(lengths)

    def pieces(self, utterances: np.ndarray) -> list[np.ndarray]:
        """The utterances cut into arrays that there is room to take: one, as they are in memory."""
        return [utterances]

    def moments(self, utterances: np.ndarray) -> Tensor:
        """Of the utterances' rows: least and largest value, sum, sum of squares; float64 [4, dim].

        So many columns at a time as there is room for. The sums are bit by bit those of all columns
        at once.
        """
        pieces = self.pieces(utterances)
        rows = int(np.diff(self.offsets)[utterances].sum())
        width = max(1, self.room // (8 * rows * COLUMNS_OF_A_BLOCK)) * COLUMNS_OF_A_BLOCK

        # Several pieces are taken again for each block of columns.
        whole = self.take(utterances).values if len(pieces) == 1 else None

        moments: list[Tensor] = []
        for first in range(0, max(1, self.dim - 1), width):
            # A last column alone would be added up in another order: it joins the block before.
            stop = first + width if first + width < self.dim - 1 else self.dim
            block = torch.empty(rows, stop - first, dtype=torch.float64)
            if whole is not None:
                block[:] = whole[:, first:stop]
            else:
                start = 0
                for piece in pieces:
                    values = self.take(piece).values
                    block[start : start + len(values)] = values[:, first:stop]
                    start += len(values)

            low = block.amin(0)
            high = block.amax(0)
            total = block.sum(0)
            squares = block.mul_(block).sum(0)
            moments.append(torch.stack([low, high, total, squares]))
        return torch.cat(moments, 1)

    def scaled(self, standardize: Standardize, corpora: np.ndarray) -> "Inputs":
        """The same standardised, float32; `corpora` [n] are the numbers of the corpora."""
        lengths = torch.from_numpy(np.diff(self.offsets))
        corpora = np.resize(corpora, len(lengths))
        return replace(self, values=standardize(self.values, corpora, lengths))

    def on(self, device: torch.device) -> "Inputs":
        """The same with the values on `device`, in the stored dtype.

        Where a GPU has no room they stay where they are, and each batch travels.
        """
        if device.type == "cuda":
            free, _total = torch.cuda.mem_get_info(device)
            if self.values.nbytes > GPU_SHARE * free:
                return replace(self, pinned=True)
        return replace(self, values=self.values.to(device))

    def averaged(self, frames: int) -> "Inputs":
        """Means of so many frames each, float32; an utterance's last over as many as are left."""
        values = self.values.numpy()
        lengths = -(-np.diff(self.offsets) // frames)
        offsets = np.concatenate([[0], lengths.cumsum()])

        means = np.empty((lengths.sum(), self.dim), np.float32)
        for place, (start, end) in zip(offsets, pairwise(self.offsets), strict=False):
            firsts = np.arange(0, end - start, frames)
            sums = np.add.reduceat(values[start:end].astype(np.float32), firsts)
            counts = np.diff(firsts, append=end - start)
            means[place : place + len(firsts)] = sums / counts[:, None]
        return Inputs(torch.from_numpy(means), offsets)

    def pooled(self, pool: Pool) -> "Inputs":
        """One float32 vector per utterance: the mean over its rows [n, dim], or [n, 2 dim].

        The latter is mean and standard deviation.
        """
        values = self.values.numpy()
        statistics = (np.mean, np.std) if pool == "meanstd" else (np.mean,)

        vectors = np.empty((len(self.offsets) - 1, self.dim * len(statistics)), dtype=np.float32)
        for vector, (start, end) in zip(vectors, pairwise(self.offsets), strict=True):
            rows = values[start:end].astype(np.float32)
            vector[:] = np.concatenate([statistic(rows, axis=0) for statistic in statistics])
        return Inputs(torch.from_numpy(vectors), np.arange(len(self.offsets)))
