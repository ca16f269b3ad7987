"""torch's recurrent layers on packed rows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .device import without_autocast
from .layout import RaggedLayout


def recurrent(layer: nn.Module, x: Tensor, layout: RaggedLayout) -> Tensor:
    """A recurrent layer over each sequence of packed rows `[r, d]`, without padding.

    `[r, 2 hidden]` of a bi-directional one. It computes in the precision of its weights: under
    autocast to bfloat16, torch runs these layers in float16 on a GPU.
    """
    if len(x) == 0:
        # Over a row that nobody sees, so that the gradients are zeros and not None.
        row = F.pad(x, (0, 0, 0, 1))
        row_layout = RaggedLayout(torch.ones(1, dtype=torch.int64), x.device)
        return recurrent(layer, row, row_layout)[:0]

    steps = layout.steps
    weights_dtype = next(layer.parameters()).dtype
    rows = x.index_select(0, steps.forwards).to(weights_dtype)

    with without_autocast(x.device.type):
        output, _ = layer(PackedSequence(rows, torch.tensor(steps.alive)))
    return torch.empty_like(output.data).index_copy(0, steps.forwards, output.data)
