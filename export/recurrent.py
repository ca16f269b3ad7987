"""Torch's recurrent layers as ONNX's operators of the same names."""

from typing import Any

import torch
from torch import Tensor, nn

from ser.train.models.layers.layout import RaggedLayout

# In ONNX's order of the gates (GRU: z, r, h; LSTM: i, o, f, c), the number of the gate in torch's
# (GRU: r, z, n; LSTM: i, f, g, o).
GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


def recurrent(layer: nn.RNNBase, x: Tensor, layout: RaggedLayout) -> Tensor:
    """A single recurrent layer over sequences of equal lengths, of packed rows `[r, d]`.

    `[r, H]`, or `[r, 2 H]` of both directions. Torch's exporter would fix the number of rows.
    """
    padded = layout.pad(x).transpose(0, 1)  # [t, n, d]

    suffixes = ["", "_reverse"] if layer.bidirectional else [""]
    input_weights: list[Tensor] = []
    state_weights: list[Tensor] = []
    biases: list[Tensor] = []
    for suffix in suffixes:
        input_weights.append(_reordered(layer, f"weight_ih_l0{suffix}"))
        state_weights.append(_reordered(layer, f"weight_hh_l0{suffix}"))
        input_bias = _reordered(layer, f"bias_ih_l0{suffix}")
        state_bias = _reordered(layer, f"bias_hh_l0{suffix}")
        biases.append(torch.cat([input_bias, state_bias]))

    inputs = [padded, torch.stack(input_weights), torch.stack(state_weights), torch.stack(biases)]
    attributes: dict[str, Any] = {
        "hidden_size": layer.hidden_size,
        "direction": "bidirectional" if layer.bidirectional else "forward",
    }
    if layer.mode == "GRU":
        # The reset gate as torch has it: r ⊙ (W_hn h + b_hn), not W_hn (r ⊙ h) + b_hn.
        attributes["linear_before_reset"] = 1

    t, n, _ = padded.shape
    shape = (t, len(suffixes), n, layer.hidden_size)
    states = torch.onnx.ops.symbolic(layer.mode, inputs, attributes, dtype=x.dtype, shape=shape)
    return layout.unpad(states.permute(2, 0, 1, 3).flatten(2))


def _reordered(layer: nn.RNNBase, name: str) -> Tensor:
    """A weight or bias `[gates · H, …]`, its gates in the order of ONNX."""
    gates = getattr(layer, name).unflatten(0, (-1, layer.hidden_size))
    return torch.cat([gates[number] for number in GATES[layer.mode]])
