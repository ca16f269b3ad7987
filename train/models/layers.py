"""Attention and transformer layers on packed rows, and bi-directional GRUs over several streams of
the same dialogues.

The GRUs' backward pass is written by hand. torch's own layer takes one small step after the other
for each direction of each layer, and records each for autograd. Here all directions of all streams
step together, only the state's own product is left inside the loop, and the gradients of the
weights are one product each at the end. The numbers are those of `nn.GRU`, whose parameters it
uses:

    r = σ(W_ir x + b_ir + W_hr h + b_hr)          z = σ(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))  h' = (1 − z) ⊙ n + z ⊙ h

Axis letters beside those of `ragged.py`: g directions of all streams, s rows in step order, H the
state's width.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ser.errors import WrongUse

from .ragged import RaggedLayout, Rows, attention, recurrent


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, §3.2.2) on packed rows.

    Parameter names and starting values are those of `nn.MultiheadAttention`. `dropout` is that of
    the weights α, and `keep` the share of the keys that `attention` keeps.
    """

    def __init__(self, d: int, heads: int, dropout: float = 0.0, keep: float = 1.0) -> None:
        super().__init__()
        if d % heads:
            raise WrongUse(
                f"attention of width {d} cannot be split into {heads} heads; change --set heads=…"
            )
        self.heads, self.dropout, self.keep = heads, dropout, keep
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * d, d)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_proj = nn.Linear(d, d)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor, which: slice = slice(3)) -> Tensor:
        """The queries, keys and values of rows `[r, d]`, or those of them that `which` cuts out;
        `[r, 3, h, d / h]`.
        """
        w, b = self.in_proj_weight, self.in_proj_bias
        if which != slice(3):
            w, b = (whole.unflatten(0, (3, -1))[which].flatten(0, 1) for whole in (w, b))
        return F.linear(x, w, b).unflatten(
            1, (-1, self.heads, self.in_proj_weight.shape[1] // self.heads)
        )

    def forward(self, x: Tensor, layout: RaggedLayout, memory: Rows | None = None) -> Tensor:
        """Rows `[r, d]` attend to the rows `[r_k, d]` of a `memory`, or to each other; `[r, d]`."""
        if memory is None:
            q, k, v = self.project(x).unbind(1)
            return self.attend(q, k, v, layout, layout)
        [q], (k, v) = (
            self.project(x, slice(1)).unbind(1),
            self.project(memory[0], slice(1, 3)).unbind(1),
        )
        return self.attend(q, k, v, layout, memory[1])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: RaggedLayout, keys: RaggedLayout
    ) -> Tensor:
        """Queries `[r, h, d / h]`, and keys and values `[r_k, h, d / h]` laid out by `keys` → `[r,
        d]`.
        """
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attention(q, k, v, layout, keys, dropout, self.keep).flatten(1))


class EncoderLayer(nn.Module):
    """Vaswani et al. 2017, §3.1: self-attention and a feed-forward net, each with dropout, residual
    and norm (§5.4).

    Parameter names are those of `nn.TransformerEncoderLayer`.
    """

    def __init__(
        self, d: int, heads: int, feed_forward: int, dropout: float, attn: Attention | None = None
    ) -> None:
        super().__init__()
        self.self_attn = attn or Attention(d, heads)
        self.linear1, self.linear2 = nn.Linear(d, feed_forward), nn.Linear(feed_forward, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layout: RaggedLayout, memory: Rows | None = None) -> Tensor:
        """Rows `[r, d]` attend to the rows `[r_k, d]` of a `memory`, or to each other; `[r, d]`."""
        x = self.norm1(x + self.dropout(self.self_attn(x, layout, memory)))
        return self.norm2(x + self.dropout(self.linear2(F.relu(self.linear1(x)))))


class DecoderLayer(EncoderLayer):
    """Vaswani et al. 2017, §3.1: an encoder layer with attention to a memory in its middle.

    Parameter names are those of `nn.TransformerDecoderLayer`.
    """

    def __init__(self, d: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__(d, heads, feed_forward, dropout)
        self.multihead_attn = Attention(d, heads)
        self.norm3 = nn.LayerNorm(d)

    def forward(self, x: Tensor, layout: RaggedLayout, memory: Rows) -> Tensor:  # type: ignore[override]
        """Rows `[r, d]` attend to each other, and then to the rows `[r_k, d]` of the `memory`; `[r,
        d]`.
        """
        x = self.norm1(x + self.dropout(self.self_attn(x, layout)))
        x = self.norm2(x + self.dropout(self.multihead_attn(x, layout, memory)))
        return self.norm3(x + self.dropout(self.linear2(F.relu(self.linear1(x)))))


def classifier(
    dropout: float, *widths: int, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear layers from each width to the next, activation and dropout between; `[n, first]` →
    logits `[n, last]`.
    """
    first, *others = (nn.Linear(*pair) for pair in pairwise(widths))
    return nn.Sequential(
        first, *(part for layer in others for part in (activation(), nn.Dropout(dropout), layer))
    )


def bigru(
    layers: nn.ModuleDict, x: Mapping[str, Tensor], layout: RaggedLayout
) -> dict[str, Tensor]:
    """Each stream's one-layer bi-directional `nn.GRU` over its rows `[r, d]`, all laid out by
    `layout`; `[r, 2 H]`.
    """
    if (
        layout.device.type == "cuda" and not layout.fixed
    ):  # cuDNN has a kernel for the whole sequence
        return {name: recurrent(layers[name], rows, layout) for name, rows in x.items()}
    forwards, backwards, alive = layout.steps
    inputs = torch.stack(
        [rows.index_select(0, order) for rows in x.values() for order in (forwards, backwards)]
    )
    w_i, w_h, b_i, b_h = (
        torch.stack(
            [getattr(layers[name], f"{kind}_l0{way}") for name in x for way in ("", "_reverse")]
        )
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    y = _Scan.apply(torch.baddbmm(b_i[:, None], inputs, w_i.mT), w_h, b_h, alive)[0].unflatten(
        0, (-1, 2)
    )
    empty = y.new_zeros(len(x), len(next(iter(x.values()))), y.shape[3])  # of y [streams, 2, s, H]
    ways = [
        empty.index_copy(1, order, y[:, way]) for way, order in enumerate((forwards, backwards))
    ]
    return dict(zip(x, torch.cat(ways, 2).unbind(), strict=True))


class _Scan(torch.autograd.Function):
    """The recurrence. Inputs: W_i x + b_i `[g, s, 3 H]`, W_h `[g, 3 H, H]`, b_h `[g, 3 H]`; states
    `[g, s, H]`.

    What else it returns is for the way back: the gates r and z, n, and W_h h + b_h.
    """

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor, alive: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g, s, width = x.shape[0], x.shape[1], w.shape[2]
        products = torch.empty_like(x)  # W_h h + b_h
        gates, n, states = (
            x.new_empty(g, s, size) for size in (2 * width, width, width)
        )  # r and z, n, h'
        h = x.new_zeros(g, alive[0], width)
        bias, w_t = b[:, None], w.mT
        # The rows of each step, as views: whatever is written to them stands in the whole.
        ways = [
            whole.split(alive, 1)
            for whole in (*x.split([2 * width, width], 2), products, gates, n, states)
        ]
        for x_rz, x_n, product, rz, n_t, h_t in zip(*ways, strict=True):
            torch.baddbmm(bias, h[:, : h_t.shape[1]], w_t, out=product)
            torch.add(x_rz, product[..., : 2 * width], out=rz).sigmoid_()
            torch.addcmul(x_n, rz[..., :width], product[..., 2 * width :], out=n_t).tanh_()
            h = torch.lerp(n_t, h[:, : h_t.shape[1]], rz[..., width:], out=h_t)
        return states, gates, n, products

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, w, _, ctx.alive = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(w, *output)

    @staticmethod
    def vmap(
        info: Any,
        dims: tuple[int, int, int, None],
        x: Tensor,
        w: Tensor,
        b: Tensor,
        alive: list[int],
    ) -> Any:
        """Many models at once are no more than many directions."""
        whole = [
            each.movedim(dim, 0).flatten(0, 1)
            for each, dim in zip((x, w, b), dims[:3], strict=True)
        ]
        found = _Scan.apply(*whole, alive)
        return tuple(each.unflatten(0, (info.batch_size, -1)) for each in found), (0, 0, 0, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        w, states, gates, n, products = ctx.saved_tensors
        g, _, width = states.shape
        product_n = products[..., 2 * width :]
        r, z = gates.split(width, 2)
        first = states.new_zeros(g, ctx.alive[0], width)
        lasting = zip(states.split(ctx.alive, 1), ctx.alive[1:], strict=False)
        before = torch.cat(
            [first, *(h[:, :count] for h, count in lasting)], 1
        )  # the h that each step started from
        # What the gradient of h' is multiplied by on its way to n's input, and to the three parts
        # of W_h h + b_h.
        to_n = (1 - z) * (1 - n * n)
        to_product = torch.stack(
            [to_n * product_n * r * (1 - r), (before - n) * z * (1 - z), to_n * r], 2
        )
        total = (
            grad.clone()
        )  # the gradient of h', to which each step adds what comes from the step after it
        later = states.new_zeros(g, 0, width)
        steps = zip(*(whole.split(ctx.alive, 1) for whole in (total, z, to_product)), strict=True)
        for d_h, z_t, way in reversed(list(steps)):
            d_h[:, : later.shape[1]] += later
            later = torch.baddbmm(d_h * z_t, (d_h[:, :, None] * way).flatten(2), w)
        d_product = (total[:, :, None] * to_product).flatten(2)  # [g, s, 3 H]
        d_x = torch.cat([d_product[..., : 2 * width], total * to_n], 2)
        return d_x, d_product.mT @ before, d_product.sum(1), None
