"""Bi-directional GRUs over several streams of the same dialogues, all stepping together.

The backward pass is written by hand. torch's own layer takes one small step after the other for
each direction of each layer, and records each for autograd. Here all directions of all streams step
together, only the state's own product is left inside the loop, and the gradients of the weights are
one product each at the end. The numbers are those of `nn.GRU`, whose parameters it uses:

    r = σ(W_ir x + b_ir + W_hr h + b_hr)          z = σ(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))  h' = (1 − z) ⊙ n + z ⊙ h

Axis letters beside those of `layers`:

    g  directions of all streams
    s  rows in step order
    H  width of the state
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .layout import RaggedLayout
from .rnn import recurrent


def bigru(
    layers: nn.ModuleDict, streams: Mapping[str, Tensor], layout: RaggedLayout
) -> dict[str, Tensor]:
    """Each stream's one-layer bi-directional `nn.GRU` over its rows `[r, d]`; `[r, 2 H]` each.

    `layout` is that of all streams.
    """
    if layout.device.type == "cuda" and not layout.fixed:
        # cuDNN has a kernel for the whole sequence.
        return {name: recurrent(layers[name], rows, layout) for name, rows in streams.items()}

    steps = layout.steps
    in_step_order = []
    for rows in streams.values():
        in_step_order.append(rows.index_select(0, steps.forwards))
        in_step_order.append(rows.index_select(0, steps.backwards))
    x = torch.stack(in_step_order)  # [g, s, d]

    w_i = _stack_directions(layers, streams, "weight_ih")  # [g, 3 H, d]
    w_h = _stack_directions(layers, streams, "weight_hh")  # [g, 3 H, H]
    b_i = _stack_directions(layers, streams, "bias_ih")  # [g, 3 H]
    b_h = _stack_directions(layers, streams, "bias_hh")  # [g, 3 H]

    w_i_x = torch.baddbmm(b_i[:, None], x, w_i.mT)
    states, *_ = _Scan.apply(w_i_x, w_h, b_h, steps.alive)
    states = states.unflatten(0, (-1, 2))  # [streams, 2, s, H]

    rows_of_a_stream = len(next(iter(streams.values())))
    empty = states.new_zeros(len(streams), rows_of_a_stream, states.shape[3])
    forwards = empty.index_copy(1, steps.forwards, states[:, 0])
    backwards = empty.index_copy(1, steps.backwards, states[:, 1])
    both_ways = torch.cat([forwards, backwards], 2)  # [streams, r, 2 H]
    return dict(zip(streams, both_ways.unbind(), strict=True))


def _stack_directions(layers: nn.ModuleDict, streams: Mapping[str, Tensor], kind: str) -> Tensor:
    """The parameters of a kind, such as "weight_ih", of both directions of each stream's layer."""
    parameters = []
    for name in streams:
        parameters.append(getattr(layers[name], f"{kind}_l0"))
        parameters.append(getattr(layers[name], f"{kind}_l0_reverse"))
    return torch.stack(parameters)


class _Scan(torch.autograd.Function):
    """The recurrence.

    Inputs: W_i x + b_i `[g, s, 3 H]`, W_h `[g, 3 H, H]`, b_h `[g, 3 H]`, and how many sequences are
    alive at each step. Returns the states h' `[g, s, H]`. What else it returns is for the way back:
    the gates r and z `[g, s, 2 H]`, n `[g, s, H]`, and W_h h + b_h `[g, s, 3 H]`.
    """

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor, alive: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        directions, rows, _ = x.shape
        width = w.shape[2]

        products = torch.empty_like(x)  # W_h h + b_h
        gates = x.new_empty(directions, rows, 2 * width)  # r and z
        n = x.new_empty(directions, rows, width)
        states = x.new_empty(directions, rows, width)  # h'

        # The rows of each step, as views: whatever is written to them stands in the whole.
        x_gates, x_n = x.split([2 * width, width], 2)
        steps = zip(
            x_gates.split(alive, 1),
            x_n.split(alive, 1),
            products.split(alive, 1),
            gates.split(alive, 1),
            n.split(alive, 1),
            states.split(alive, 1),
            strict=True,
        )

        bias = b[:, None]
        w_t = w.mT
        h = x.new_zeros(directions, alive[0], width)
        for x_gates_t, x_n_t, product_t, gates_t, n_t, state_t in steps:
            h = h[:, : state_t.shape[1]]  # of the sequences that are still alive
            torch.baddbmm(bias, h, w_t, out=product_t)

            torch.add(x_gates_t, product_t[..., : 2 * width], out=gates_t).sigmoid_()
            r_t = gates_t[..., :width]
            z_t = gates_t[..., width:]

            torch.addcmul(x_n_t, r_t, product_t[..., 2 * width :], out=n_t).tanh_()
            h = torch.lerp(n_t, h, z_t, out=state_t)
        return states, gates, n, products

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, w, _, alive = inputs
        ctx.alive = alive
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
        x_dim, w_dim, b_dim, _ = dims
        x = x.movedim(x_dim, 0).flatten(0, 1)
        w = w.movedim(w_dim, 0).flatten(0, 1)
        b = b.movedim(b_dim, 0).flatten(0, 1)

        outputs = _Scan.apply(x, w, b, alive)
        by_model = tuple(output.unflatten(0, (info.batch_size, -1)) for output in outputs)
        return by_model, (0, 0, 0, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        w, states, gates, n, products = ctx.saved_tensors
        alive = ctx.alive
        directions, _, width = states.shape
        r, z = gates.split(width, 2)
        product_n = products[..., 2 * width :]

        # The h that each step started from.
        before = [states.new_zeros(directions, alive[0], width)]
        for state_t, alive_next in zip(states.split(alive, 1), alive[1:], strict=False):
            before.append(state_t[:, :alive_next])
        h = torch.cat(before, 1)

        # What the gradient of h' is multiplied by on its way to n's input, and to the three parts
        # of W_h h + b_h.
        to_n = (1 - z) * (1 - n * n)
        to_r_product = to_n * product_n * r * (1 - r)
        to_z_product = (h - n) * z * (1 - z)
        to_n_product = to_n * r
        to_product = torch.stack([to_r_product, to_z_product, to_n_product], 2)  # [g, s, 3, H]

        # The gradient of h', to which each step adds what comes from the step after it.
        total = grad.clone()
        later = states.new_zeros(directions, 0, width)
        steps = zip(
            total.split(alive, 1), z.split(alive, 1), to_product.split(alive, 1), strict=True
        )
        for total_t, z_t, to_product_t in reversed(list(steps)):
            total_t[:, : later.shape[1]] += later
            d_product_t = (total_t[:, :, None] * to_product_t).flatten(2)
            later = torch.baddbmm(total_t * z_t, d_product_t, w)

        d_product = (total[:, :, None] * to_product).flatten(2)  # [g, s, 3 H]
        d_x = torch.cat([d_product[..., : 2 * width], total * to_n], 2)
        d_w = d_product.mT @ h
        d_b = d_product.sum(1)
        return d_x, d_w, d_b, None
