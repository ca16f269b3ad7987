"""Inputs that do not fit into memory: read from the store, block by block checked.

They are read when a batch needs them, see `read_ahead`. Rows and their order are those of training
in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..models.batch import Sequences
from .inputs import GPU_SHARE, Inputs, Standardize


@dataclass(frozen=True, kw_only=True)
class Streamed(Inputs):
    """Inputs whose rows are read from the store, all at once or when they are taken.

    `values` is empty, and says their dtype and dimension.
    """

    streamed: ClassVar[bool] = True

    read: Callable[[np.ndarray], Inputs]
    """Gives these utterances, which are sorted, each named once."""
    cost: np.ndarray
    """Bytes that each utterance takes while it is read, int64 [n]."""
    order: np.ndarray
    """The utterances in an order that is quick to read."""
    whole: int = 0
    """The budget of memory that would hold everything."""
    workers: int = 1
    """How many processes train at once, each with such a budget."""

    @property
    def bytes(self) -> int:
        """Of all values, if they were in memory."""
        return int(self.offsets[-1]) * self.dim * self.values.itemsize

    def window(self, utterances: np.ndarray) -> Inputs:
        """These utterances, read now; the others have no rows in it."""
        numbers = np.unique(utterances % len(self.cost))
        read = self.read(numbers)

        lengths = np.zeros_like(self.offsets)
        lengths[numbers + 1] = np.diff(read.offsets)
        return Inputs(read.values, lengths.cumsum(), self.pinned)

    def take(self, utterances: np.ndarray, hidden: Tensor | None = None) -> Sequences:
        """The rows of the utterances, read now."""
        return self.window(utterances).take(utterances, hidden)

    def in_memory(self, device: torch.device | str = "cpu") -> Inputs:
        """All of it in memory, or on a GPU, read piece by piece."""
        rows_of_all = int(self.offsets[-1])
        values = torch.empty(rows_of_all, self.dim, dtype=self.values.dtype, device=device)
        for piece in self.pieces(self.order):
            numbers = np.sort(piece)
            rows, _ = self.rows(numbers)
            values[rows.to(device)] = self.read(numbers).values.to(device)
        return Inputs(values, self.offsets)

    def on(self, device: torch.device) -> Inputs:
        """On a GPU where it fits there; else each batch travels, from pinned memory."""
        if device.type != "cuda":
            return self
        if self.bytes <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            return self.in_memory(device)
        return replace(self, pinned=True)

    def scaled(self, standardize: Standardize, corpora: np.ndarray) -> Inputs:
        """The same, standardised as it is read."""
        corpora = np.resize(corpora, len(self.cost))

        def read(utterances: np.ndarray) -> Inputs:
            return self.read(utterances).scaled(standardize, corpora[utterances])

        return replace(
            self,
            values=self.values.float(),
            read=read,
            cost=self.cost + np.diff(self.offsets) * self.dim * 4,
        )

    def pieces(self, utterances: np.ndarray) -> list[np.ndarray]:
        """The utterances in pieces that take half the room each: what is read is copied."""
        ends = np.cumsum(self.cost[utterances])
        cuts = [0]
        while cuts[-1] < len(utterances):
            before = ends[cuts[-1] - 1] if cuts[-1] else 0
            limit = self.room // 2 + before
            cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, limit, "right"))))
        return [utterances[start:stop] for start, stop in pairwise(cuts)]
