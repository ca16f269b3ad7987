"""One vector of each sequence's packed rows."""

import torch
from torch import Tensor, nn

from .layout import RaggedLayout


def mean_rows(x: Tensor, layout: RaggedLayout) -> Tensor:
    """The mean of each sequence's rows `[r, d]`; `[n, d]`, zeros for a sequence without rows."""
    return layout.total(x) / layout.device_lengths.clamp(min=1)[:, None]


def max_rows(x: Tensor, layout: RaggedLayout) -> Tensor:
    """The largest values among each sequence's rows `[r, d]`.

    `[n, d]`, zeros for a sequence without rows.
    """
    owner = layout.owner[:, None].expand_as(x)
    zeros = x.new_zeros(len(layout.lengths), x.shape[1])
    return zeros.scatter_reduce(0, owner, x, "amax", include_self=False)


class SelfAttentionPooling(nn.Module):
    """α = softmax(w · x) over the rows of a sequence, z = Σ α x."""

    def __init__(self, d: int) -> None:
        super().__init__()
        # A bias would not change the softmax.
        self.score = nn.Linear(d, 1, bias=False)

    def forward(self, x: Tensor, layout: RaggedLayout) -> Tensor:
        """Rows `[r, d]` → `[n, d]`; zeros for a sequence without rows."""
        scores = self.score(x)[:, 0]
        scores = layout.pad(scores, torch.finfo(scores.dtype).min)
        weights = layout.unpad(scores.softmax(1))[:, None]
        return layout.total(weights * x)
