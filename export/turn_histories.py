"""The histories of one dialogue, as `train/models/icon.py` computes them.

There each speaker has one. How many speakers there are is no shape, so here each turn has a history
of its own, that of whoever speaks it: n of them, of all n turns each, and v = n² rows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ser.train.models.batch import Batch
from ser.train.models.icon import Histories
from ser.train.models.layers.layout import RaggedLayout

from .recurrent import recurrent


class TurnHistories(RaggedLayout):
    """The layout of n histories of n turns each; n may be symbolic."""

    def __init__(self, turns: int) -> None:
        super().__init__(torch.full((turns,), turns), torch.device("cpu"))
        self.longest = turns

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Rows `[v, …]` → `[n, n, …]`."""
        return x.unflatten(0, (self.longest, self.longest))

    def unpad(self, x: Tensor) -> Tensor:
        """`[n, n, …]` → rows `[v, …]`."""
        return x.flatten(0, 1)


def speaker_histories(batch: Batch) -> Histories:
    """The history of each turn's speaker. Without speakers a dialogue is one person's."""
    n = next(iter(batch.inputs.values())).values.shape[0]
    speakers = batch.speakers
    if speakers is None:
        speakers = torch.zeros(n, dtype=torch.int64)

    turns = torch.arange(n).expand(n, n)
    is_own = speakers[:, None] == speakers
    layout: Any = TurnHistories(n)
    return Histories(turns.flatten(), is_own.flatten(), layout)


def rows_of_speakers(histories: Histories) -> tuple[Tensor, Tensor]:
    """Turn i stands in row i of its own history, the i-th; int64 `[n]` twice: rows and turns."""
    layout: Any = histories.lengths
    turns = torch.arange(layout.longest)
    return turns * (layout.longest + 1), turns


def with_influence(
    states: Tensor,
    gru: nn.GRU,
    h: Tensor,
    histories: Histories,
    is_spoken: Tensor,
    dropout: nn.Dropout,
) -> Tensor:
    """The states `[v, d]`, with those of `gru` in the rows that `is_spoken`, bool `[v]`.

    The turns that are spoken go first in each history, in their order. What the layer says of the
    others behind them is not taken.
    """
    layout: Any = histories.lengths
    spoken = layout.pad(is_spoken).long()  # [n, n]
    ranks_of_spoken = spoken.cumsum(1) - 1
    ranks_of_others = spoken.sum(1, keepdim=True) + (1 - spoken).cumsum(1) - 1
    ranks = torch.where(spoken > 0, ranks_of_spoken, ranks_of_others)
    order = torch.zeros_like(ranks).scatter(1, ranks, layout.pad(histories.turns))

    sorted_states = recurrent(gru, h[order.flatten()], layout)  # [v, d]
    ranks_by_value = ranks[:, :, None].expand(-1, -1, states.shape[1])
    influence = layout.unpad(layout.pad(sorted_states).gather(1, ranks_by_value))
    return torch.where(is_spoken[:, None], influence, states)
