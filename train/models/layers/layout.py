"""Where sequences lie among packed rows."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .device import send


class Steps(NamedTuple):
    """Packed rows in the order in which recurrent layers take them.

    Within a step, longer sequences come first, so that those alive are always the first ones.
    """

    forwards: Tensor
    """int64 `[r]`: the rows, walking all sequences from their first row to their last."""
    backwards: Tensor
    """int64 `[r]`: the rows, walking all sequences from their last row to their first."""
    alive: list[int]
    """How many sequences have a row at each step; sums to r."""


class RaggedLayout:
    """Where each of n sequences lies among r packed rows.

    Computed once per batch, used by every layer. Three sequences of lengths 2, 0 and 3, packed and
    padded (`pad`, and back by `unpad`):

        rows       a0 a1 c0 c1 c2          a0 a1 ·        n = 3
        owner       0  0  2  2  2          ·  ·  ·        longest = 3
        position    0  1  0  1  2          c0 c1 c2
        cells       0  1  6  7  8   (in the padded form, counted row by row)

    and in the order in which a recurrent layer steps through them (`steps`), longer sequences
    first:

        forwards   c0 a0 | c1 a1 | c2      2, 2 and 1 sequences are alive
        backwards  c2 a1 | c1 a0 | c0

    The lengths are known on the CPU, so that no layer has to wait for a GPU to return a number. The
    indices are made of them on `device`, where `device_lengths` are the lengths, if they are there
    already.
    """

    # Whether the shapes are those of many batches at once, which only padded forms can be given.
    fixed = False

    def __init__(
        self,
        lengths: Tensor,
        device: torch.device | None = None,
        device_lengths: Tensor | None = None,
    ) -> None:
        self.lengths = lengths  # int64 [n]
        self.device = device or lengths.device
        if device_lengths is not None:
            self.device_lengths = device_lengths

    @cached_property
    def device_lengths(self) -> Tensor:
        """`lengths` on the device; int64 `[n]`."""
        return send(self.lengths, self.device)

    @cached_property
    def longest(self) -> int:
        """Rows of the longest sequence.

        At least 1, so that the padded form always has a cell to attend to.
        """
        return max(self.lengths.tolist(), default=0) or 1

    @cached_property
    def owner(self) -> Tensor:
        """The sequence that each row belongs to; int64 `[r]`."""
        numbers = torch.arange(len(self.lengths), device=self.device)
        rows = int(self.lengths.sum())
        return numbers.repeat_interleave(self.device_lengths, output_size=rows)

    @cached_property
    def position(self) -> Tensor:
        """The place of each row in its sequence, from 0; int64 `[r]`."""
        starts = self.device_lengths.cumsum(0) - self.device_lengths
        return torch.arange(len(self.owner), device=self.device) - starts[self.owner]

    @cached_property
    def cells(self) -> Tensor:
        """The place of each row in the flattened padded form; int64 `[r]`."""
        return self.owner * self.longest + self.position

    @cached_property
    def attended(self) -> Tensor:
        """What attention takes in; bool `[n, longest]`.

        The cells that hold a row, and all cells of a sequence without rows.
        """
        lengths = self.device_lengths[:, None]
        holds_a_row = torch.arange(self.longest, device=self.device) < lengths
        return holds_a_row | (lengths == 0)

    @cached_property
    def even(self) -> bool:
        """Whether on a GPU the rows are their padded form, since all sequences are as long."""
        on_cuda = self.device.type == "cuda"
        return on_cuda and not self.fixed and set(self.lengths.tolist()) == {self.longest}

    @cached_property
    def steps(self) -> Steps:
        """The rows in the order in which recurrent layers take them."""
        order = self.lengths.argsort(descending=True, stable=True)
        lengths = self.lengths[order]
        ends = self.lengths.cumsum(0)[order]

        step = torch.arange(self.longest)[:, None]
        alive = step < lengths  # [longest, n]
        forwards = (ends - lengths + step)[alive]
        backwards = (ends - 1 - step)[alive]

        return Steps(
            forwards=send(forwards, self.device),
            backwards=send(backwards, self.device),
            alive=alive.sum(1).tolist(),
        )

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Rows `[r, …]` → `[n, longest, …]`, with `value` where there is no row."""
        if self.even:
            return x.unflatten(0, (len(self.lengths), self.longest))

        padding = x.new_full((len(self.lengths) * self.longest, *x.shape[1:]), value)
        padded = padding.index_copy(0, self.cells, x)
        return padded.unflatten(0, (len(self.lengths), self.longest))

    def unpad(self, x: Tensor) -> Tensor:
        """`[n, longest, …]` → rows `[r, …]`."""
        if self.even:
            return x.flatten(0, 1)
        return x.flatten(0, 1).index_select(0, self.cells)

    def total(self, x: Tensor) -> Tensor:
        """The sum of each sequence's rows `[r, d]`; `[n, d]`, zeros for a sequence without rows."""
        if self.even:
            return self.pad(x).sum(1)

        zeros = x.new_zeros(len(self.lengths), x.shape[1])
        return zeros.index_add(0, self.owner, x)

    def of_length(self, rows: int) -> "RaggedLayout":
        """The layout of as many sequences, of so many rows each."""
        return RaggedLayout(torch.full_like(self.lengths, rows), self.device)


# Packed rows `[r, …]`, and where they lie.
Rows = tuple[Tensor, RaggedLayout]


def concatenate(a: Tensor, a_layout: RaggedLayout, b: Tensor, b_layout: RaggedLayout) -> Rows:
    """The rows of a and b sequence by sequence, `[r_a + r_b, d]`, and their layout."""
    order = torch.cat([a_layout.owner, b_layout.owner]).argsort(stable=True)
    layout = RaggedLayout(
        a_layout.lengths + b_layout.lengths,
        a_layout.device,
        a_layout.device_lengths + b_layout.device_lengths,
    )
    return torch.cat([a, b]).index_select(0, order), layout
