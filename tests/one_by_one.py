"""Layers that see where a sequence ends, written plainly: one sequence after the other.

What is called so in `train/models/layers/` computes all sequences of a batch at once. Shapes and
numbers are the same: tests hold the two against each other.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn


class RaggedLayout:
    """How rows `[r, …]` are cut into n sequences: the first `lengths[0]` are those of the first,
    and so on.
    """

    def __init__(self, lengths: Tensor, device: torch.device | None = None) -> None:
        self.lengths = self.device_lengths = lengths  # int64 [n]
        self.device = device or lengths.device

    def each(self, x: Tensor) -> tuple[Tensor, ...]:
        """The rows of each sequence."""
        return (x,) if len(self.lengths) == 1 else x.split(self.lengths.tolist())

    @cached_property
    def longest(self) -> Any:
        """Rows of the longest sequence, at least 1."""
        return self.lengths.max().clamp(min=1)

    @cached_property
    def owner(self) -> Tensor:
        """The sequence that each row belongs to; int64 `[r]`."""
        numbers = torch.arange(len(self.lengths))
        return (
            torch.zeros_like(self.position)
            if len(numbers) == 1
            else numbers.repeat_interleave(self.lengths)
        )

    @cached_property
    def position(self) -> Tensor:
        """The place of each row in its sequence, from 0; int64 `[r]`."""
        return torch.cat([torch.arange(length) for length in self.lengths])

    @cached_property
    def attended(self) -> Tensor:
        """Which cells of the padded form hold a row, and all of a sequence without; bool `[n,
        longest]`.
        """
        lengths = self.lengths[:, None]
        return (torch.arange(self.longest) < lengths) | (lengths == 0)

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Rows `[r, …]` → `[n, longest, …]`."""
        none = x.new_full((1, *x.shape[1:]), value)
        parts = [part if len(part) else none for part in self.each(x)]
        return parts[0][None] if len(parts) == 1 else nn.utils.rnn.pad_sequence(parts, True, value)

    def unpad(self, x: Tensor) -> Tensor:
        """`[n, longest, …]` → rows `[r, …]`."""
        return x[0, : self.lengths[0]] if len(self.lengths) == 1 else x[self.owner, self.position]

    def of_length(self, rows: int) -> "RaggedLayout":
        """The layout of as many sequences, of so many rows each."""
        return RaggedLayout(torch.full_like(self.lengths, rows))

    def total(self, x: Tensor) -> Tensor:
        """The sum of each sequence's rows `[r, d]`; `[n, d]`, zeros for a sequence without rows."""
        return torch.stack([part.sum(0) for part in self.each(x)])


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: RaggedLayout,
    keys: RaggedLayout,
    dropout: float = 0.0,
    keep: float = 1.0,
) -> Tensor:
    """softmax(q kᵀ / √d_head) v within each sequence; `[r_q, h, d_head]`, `[r_k, h, d_head]` →
    `[r_q, h, d_head]`.

    With `keep` below 1, each head drops the keys that get the least weight from all queries
    together, up to this share of the keys (one stays at least); the weights of the others stay as
    they are.
    """
    found = []
    for q_i, k_i, v_i, count in zip(
        queries.each(q), keys.each(k), keys.each(v), keys.lengths, strict=True
    ):
        weights = (torch.einsum("qhd,khd->hqk", q_i, k_i) / math.sqrt(q.shape[2])).softmax(2)
        if keep < 1 and len(k_i):
            received = weights.sum(1)  # [h, t_k]
            kept = (count * keep).long().clamp(min=1)
            least = received.sort(1, descending=True).values.index_select(1, kept[None] - 1)
            weights = weights.masked_fill((received < least)[:, None], 0.0)
        found.append(torch.einsum("hqk,khd->qhd", weights, v_i))
    return torch.cat(found)


def recurrent(layer: nn.RNNBase, x: Tensor, layout: RaggedLayout) -> Tensor:
    """One of torch's recurrent layers over each sequence; `[r, d]` → `[r, 2 hidden]`."""
    width = layer.hidden_size * (2 if layer.bidirectional else 1)
    return torch.cat(
        [layer(part)[0] if len(part) else x.new_zeros(0, width) for part in layout.each(x)]
    )


def bigru(
    layers: nn.ModuleDict, x: Mapping[str, Tensor], layout: RaggedLayout
) -> dict[str, Tensor]:
    """Each stream's bi-directional GRU over its rows `[r, d]`; `[r, 2 H]` each."""
    return {name: recurrent(cast(nn.GRU, layers[name]), rows, layout) for name, rows in x.items()}


def max_rows(x: Tensor, layout: RaggedLayout) -> Tensor:
    """The largest values among each sequence's rows `[r, d]`; `[n, d]`, zeros for a sequence
    without rows.
    """
    return torch.stack([part.amax(0) if len(part) else part.sum(0) for part in layout.each(x)])


def concatenate(
    a: Tensor, of_a: RaggedLayout, b: Tensor, of_b: RaggedLayout
) -> tuple[Tensor, RaggedLayout]:
    """The rows of a and b utterance by utterance, `[r_a + r_b, d]`, and their layout."""
    pairs = zip(of_a.each(a), of_b.each(b), strict=True)
    return torch.cat([part for pair in pairs for part in pair]), RaggedLayout(
        of_a.lengths + of_b.lengths
    )
