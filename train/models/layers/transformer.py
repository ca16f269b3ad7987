"""Transformer layers (Vaswani et al. 2017) on packed rows."""

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention
from .layout import RaggedLayout, Rows


class EncoderLayer(nn.Module):
    """Vaswani et al. 2017, §3.1: self-attention and a feed-forward net.

    Each with dropout, residual and norm (§5.4). Parameter names are those of
    `nn.TransformerEncoderLayer`.
    """

    def __init__(
        self, d: int, heads: int, feed_forward: int, dropout: float, attn: Attention | None = None
    ) -> None:
        super().__init__()
        self.self_attn = Attention(d, heads) if attn is None else attn
        self.linear1 = nn.Linear(d, feed_forward)
        self.linear2 = nn.Linear(feed_forward, d)
        self.norm1 = nn.LayerNorm(d)
        self.norm2 = nn.LayerNorm(d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layout: RaggedLayout, memory: Rows | None = None) -> Tensor:
        """Rows `[r, d]` attend to the rows `[r_k, d]` of a `memory`, or to each other; `[r, d]`."""
        x = self.norm1(x + self.dropout(self.self_attn(x, layout, memory)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """§3.3: W₂ ReLU(W₁ x + b₁) + b₂, row by row; `[r, d]` → `[r, d]`."""
        return self.linear2(F.relu(self.linear1(x)))


class DecoderLayer(EncoderLayer):
    """Vaswani et al. 2017, §3.1: an encoder layer with attention to a memory in its middle.

    Parameter names are those of `nn.TransformerDecoderLayer`.
    """

    def __init__(self, d: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__(d, heads, feed_forward, dropout)
        self.multihead_attn = Attention(d, heads)
        self.norm3 = nn.LayerNorm(d)

    def forward(self, x: Tensor, layout: RaggedLayout, memory: Rows) -> Tensor:  # type: ignore[override]
        """Rows `[r, d]` attend to each other, then to rows `[r_k, d]` of the `memory`; `[r, d]`."""
        x = self.norm1(x + self.dropout(self.self_attn(x, layout)))
        x = self.norm2(x + self.dropout(self.multihead_attn(x, layout, memory)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))
