"""Multi-head attention within each sequence of packed rows."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.errors import WrongUse

from .layout import RaggedLayout, Rows

# Rows of the longest sequence: above, one at a time beats a padded batch on a CPU.
MAX_PADDED = 24


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, §3.2.2) on packed rows.

    Parameter names and starting values are those of `nn.MultiheadAttention`. `dropout` is that of
    the weights α, and `keep` the share of the keys that `attention` keeps. Raises `WrongUse` if the
    width does not split into the heads.
    """

    def __init__(self, d: int, heads: int, dropout: float = 0.0, keep: float = 1.0) -> None:
        super().__init__()
        if d % heads != 0:
            raise WrongUse(
                f"attention of width {d} cannot be split into {heads} heads; change --set heads=…"
            )
        self.heads = heads
        self.dropout = dropout
        self.keep = keep

        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * d, d)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_proj = nn.Linear(d, d)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, layout: RaggedLayout, memory: Rows | None = None) -> Tensor:
        """Rows `[r, d]` attend to the rows `[r_k, d]` of a `memory`, or to each other; `[r, d]`."""
        if memory is None:
            q, k, v = self.project(x).unbind(1)
            return self.attend(q, k, v, layout, layout)

        memory_rows, memory_layout = memory
        q = self.project(x, slice(1))[:, 0]
        k, v = self.project(memory_rows, slice(1, 3)).unbind(1)
        return self.attend(q, k, v, layout, memory_layout)

    def project(self, x: Tensor, parts: slice = slice(3)) -> Tensor:
        """The queries, keys and values of rows `[r, d]`; `[r, 3, h, d / h]`.

        Or those of the three that `parts` cuts out.
        """
        weight = self.in_proj_weight
        bias = self.in_proj_bias
        if parts != slice(3):
            weight = weight.unflatten(0, (3, -1))[parts].flatten(0, 1)
            bias = bias.unflatten(0, (3, -1))[parts].flatten(0, 1)

        d_head = weight.shape[1] // self.heads
        return F.linear(x, weight, bias).unflatten(1, (-1, self.heads, d_head))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, queries: RaggedLayout, keys: RaggedLayout
    ) -> Tensor:
        """Attention of what `project` gives, and the last linear map.

        Queries `[r, h, d / h]`, keys and values `[r_k, h, d / h]` → `[r, d]`.
        """
        dropout = self.dropout if self.training else 0.0
        attended = attention(q, k, v, queries, keys, dropout, self.keep)
        return self.out_proj(attended.flatten(1))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: RaggedLayout,
    keys: RaggedLayout,
    dropout: float = 0.0,
    keep: float = 1.0,
) -> Tensor:
    """softmax(q kᵀ / √d_head) v within each sequence.

    `[r_q, h, d_head]`, `[r_k, h, d_head]` → `[r_q, h, d_head]`. Where a sequence has queries and no
    keys, the result is zero. `dropout` is that of the weights. With `keep` below 1, each head drops
    the keys that get the least weight from all queries together, up to this share (one at least) of
    a sequence's keys; the weights of the others stay as they are (key-sparse attention, Chen et
    al., ICASSP 2022).
    """
    if q.is_cpu and keys.longest > MAX_PADDED and not keys.fixed:
        return _attend_one_by_one(q, k, v, queries, keys, dropout, keep)

    # A sequence without keys attends to all its padding, whose values are zeros: so is their mean.
    mask = None if keys.even else keys.attended[:, None, None]
    attended = _attend(queries.pad(q), keys.pad(k), keys.pad(v), mask, dropout, keep)
    return queries.unpad(attended)


def _attend_one_by_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: RaggedLayout,
    keys: RaggedLayout,
    dropout: float,
    keep: float,
) -> Tensor:
    """`attention` without padding: one sequence after the other."""
    q_parts = q.split(queries.lengths.tolist())
    k_parts = k.split(keys.lengths.tolist())
    v_parts = v.split(keys.lengths.tolist())

    attended = []
    for q_i, k_i, v_i in zip(q_parts, k_parts, v_parts, strict=True):
        if len(k_i) == 0:
            attended.append(torch.zeros_like(q_i))
        else:
            attended.append(_attend(q_i[None], k_i[None], v_i[None], None, dropout, keep)[0])
    return torch.cat(attended)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, keep: float
) -> Tensor:
    """`attention` of padded sequences `[n, t, h, d_head]`; `mask` is true where keys are.

    `mask` is bool `[n, 1, 1, t_k]`; None where all are.
    """
    q = q.transpose(1, 2)  # [n, h, t, d_head]
    k = k.transpose(1, 2)
    v = v.transpose(1, 2)

    if keep >= 1.0:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    else:
        attended = _attend_to_strongest_keys(q, k, v, mask, dropout, keep)
    return attended.transpose(1, 2)


def _attend_to_strongest_keys(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, keep: float
) -> Tensor:
    """Key-sparse attention of padded sequences `[n, h, t, d_head]`."""
    scores = q @ k.mT / math.sqrt(q.shape[3])
    if mask is None:
        mask = scores.new_ones(1, 1, 1, k.shape[2], dtype=torch.bool)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(3)

    # What each key gets from all queries. A query that is padding, zero, gives all keys the same.
    received = weights.sum(2)  # [n, h, t_k]
    kept = (mask.sum(3) * keep).long().clamp(min=1)
    kept = kept.expand(len(q), q.shape[1], -1)  # [n, h, 1]

    least = received.sort(2, descending=True).values.gather(2, kept - 1)
    weights = weights.masked_fill((received < least)[:, :, None], 0.0)
    return F.dropout(weights, dropout) @ v
