"""The layers of Vaswani et al., "Attention is all you need", NIPS 2017, on packed rows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packed import Plan, attention, check_heads


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, §3.2.2) on packed rows.

    Parameter names and starting values are those of `nn.MultiheadAttention`. `dropout` is that of the weights α.
    """

    def __init__(self, d: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(d, heads)
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * d, d)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_proj = nn.Linear(d, d)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor, which: slice = slice(3)) -> Tensor:
        """The queries, keys and values of rows `[r, d]`, or those of them that `which` cuts out; `[r, 3, h, d / h]`."""
        w, b = self.in_proj_weight.unflatten(0, (3, -1))[which], self.in_proj_bias.unflatten(0, (3, -1))[which]
        return F.linear(x, w.flatten(0, 1), b.flatten()).unflatten(1, (len(w), self.heads, -1))

    @property
    def dropping(self) -> float:
        """The dropout probability of the weights: none outside training."""
        return self.dropout if self.training else 0.0

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        """Self-attention; rows `[r, d]` → `[r, d]`."""
        q, k, v = self.project(x).unbind(1)
        return self.out_proj(attention(q, k, v, plan, plan, self.dropping).flatten(1))

    def cross(self, x: Tensor, plan: Plan, memory: Tensor, keys: Plan) -> Tensor:
        """Rows `[r, d]` attend to rows `memory` `[r_k, d]`, laid out by `keys`; `[r, d]`."""
        (q,), (k, v) = self.project(x, slice(1)).unbind(1), self.project(memory, slice(1, 3)).unbind(1)
        return self.out_proj(attention(q, k, v, plan, keys, self.dropping).flatten(1))


class EncoderLayer(nn.Module):
    """Vaswani et al. 2017, §3.1: self-attention and a feed-forward net, each with dropout, residual and norm (§5.4).

    Parameter names are those of `nn.TransformerEncoderLayer`.
    """

    def __init__(self, d: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(d, heads)
        self.linear1, self.linear2 = nn.Linear(d, feed_forward), nn.Linear(feed_forward, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        """Rows `[r, d]` → `[r, d]`."""
        x = self.norm1(x + self.dropout(self.self_attn(x, plan)))
        return self.norm2(x + self.dropout(self.linear2(F.relu(self.linear1(x)))))


class DecoderLayer(EncoderLayer):
    """Vaswani et al. 2017, §3.1: an encoder layer with attention to a memory in its middle.

    Parameter names are those of `nn.TransformerDecoderLayer`.
    """

    def __init__(self, d: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__(d, heads, feed_forward, dropout)
        self.multihead_attn = Attention(d, heads)
        self.norm3 = nn.LayerNorm(d)

    def forward(self, x: Tensor, plan: Plan, memory: Tensor, keys: Plan) -> Tensor:  # type: ignore[override]
        """Rows `[r, d]` attend to `memory` `[r_k, d]`; `[r, d]`."""
        x = self.norm1(x + self.dropout(self.self_attn(x, plan)))
        x = self.norm2(x + self.dropout(self.multihead_attn.cross(x, plan, memory, keys)))
        return self.norm3(x + self.dropout(self.linear2(F.relu(self.linear1(x)))))
