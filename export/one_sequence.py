"""What is traced in the place of packed rows: a single sequence, whose length is a shape.

The models work on the packed rows of many sequences (`train/models/layers/`), and read the
sequences' lengths as numbers. A graph of ONNX has no such numbers while it is traced: its length is
the shape of what it will be given. One sequence needs no packing, so everything here is plainer
than what it replaces, and gives the same numbers; `export` compares them before it writes anything.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ser.train.models.batch import Batch
from ser.train.models.layers.layout import RaggedLayout

# In ONNX's order of the gates (GRU: z, r, h; LSTM: i, o, f, c), the number of the gate in torch's
# (GRU: r, z, n; LSTM: i, f, g, o).
GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


class OneSequence(RaggedLayout):
    """The layout of one sequence of r rows; r may be symbolic."""

    # On these two hangs that attention takes the padded form, without a mask.
    fixed = True
    even = True

    def __init__(self, rows: int) -> None:
        super().__init__(torch.full((1,), rows), torch.device("cpu"))
        self.longest = rows

    @property
    def owner(self) -> Tensor:
        """Row by row the number of its sequence, which is 0; int64 `[r]`."""
        return torch.zeros(self.longest, dtype=torch.int64)

    @property
    def position(self) -> Tensor:
        """The place of each row, from 0; int64 `[r]`."""
        return torch.arange(self.longest)

    @property
    def attended(self) -> Tensor:
        """Every cell of the padded form; bool `[1, r]`."""
        return torch.ones(1, self.longest, dtype=torch.bool)

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Rows `[r, …]` → `[1, r, …]`."""
        return x[None]

    def unpad(self, x: Tensor) -> Tensor:
        """`[1, r, …]` → rows `[r, …]`."""
        return x[0]

    def total(self, x: Tensor) -> Tensor:
        """The sum of the rows `[r, d]`; `[1, d]`."""
        return x.sum(0, keepdim=True)

    def of_length(self, rows: int) -> "OneSequence":
        """The layout of one sequence of so many rows."""
        return OneSequence(rows)


def layout_of(lengths: Any, device: object = None, device_lengths: object = None) -> RaggedLayout:
    """In the place of `RaggedLayout`, whose parameters it takes.

    A layout that stands where a batch has the lengths of its dialogues is taken as it is.
    """
    assert isinstance(lengths, OneSequence), "a layout of numbers cannot be traced"
    return lengths


def concatenate(
    a: Tensor, layout_a: RaggedLayout, b: Tensor, layout_b: RaggedLayout
) -> tuple[Tensor, RaggedLayout]:
    """The rows `[r_a, d]`, and behind them the rows `[r_b, d]`."""
    return torch.cat([a, b]), OneSequence(layout_a.longest + layout_b.longest)


def vectors(batch: Batch, modality: str, dim: int) -> Tensor:
    """One modality's vectors `[n, dim]`: there is one of each utterance."""
    return batch.inputs[modality].values


def recurrent(layer: nn.RNNBase, x: Tensor, layout: RaggedLayout) -> Tensor:
    """One of torch's recurrent layers, a single one, as ONNX's operator of the same name; rows
    `[r, d]` → `[r, H]`, or `[r, 2 H]` of both directions.

    Torch's exporter would fix the number of rows.
    """
    ways = ["", "_reverse"] if layer.bidirectional else [""]
    biases: list[Tensor] = []
    for way in ways:
        of_input = _reordered(layer, f"bias_ih_l0{way}")
        of_state = _reordered(layer, f"bias_hh_l0{way}")
        biases.append(torch.cat([of_input, of_state]))
    inputs = [
        x[:, None],
        torch.stack([_reordered(layer, f"weight_ih_l0{way}") for way in ways]),
        torch.stack([_reordered(layer, f"weight_hh_l0{way}") for way in ways]),
        torch.stack(biases),
    ]

    attributes: dict[str, Any] = {
        "hidden_size": layer.hidden_size,
        "direction": "bidirectional" if layer.bidirectional else "forward",
    }
    if layer.mode == "GRU":
        # The reset gate as torch has it: r ⊙ (W_hn h + b_hn), not W_hn (r ⊙ h) + b_hn.
        attributes["linear_before_reset"] = 1

    shape = (x.shape[0], len(ways), 1, layer.hidden_size)
    states = torch.onnx.ops.symbolic(layer.mode, inputs, attributes, dtype=x.dtype, shape=shape)
    return states[:, :, 0].flatten(1)


def _reordered(layer: nn.RNNBase, name: str) -> Tensor:
    """A weight or bias `[gates · H, …]`, its gates in the order of ONNX."""
    gates = getattr(layer, name).unflatten(0, (-1, layer.hidden_size))
    return torch.cat([gates[number] for number in GATES[layer.mode]])


def bigru(
    layers: nn.ModuleDict, x: Mapping[str, Tensor], layout: RaggedLayout
) -> dict[str, Tensor]:
    """Each stream's bi-directional GRU over its rows `[r, d]`; `[r, 2 H]`."""
    return {
        stream: recurrent(layers[stream], rows, layout)  # type: ignore[arg-type]
        for stream, rows in x.items()
    }


def pool_windows(x: Tensor, layout: RaggedLayout, size: int) -> tuple[Tensor, RaggedLayout]:
    """GBAN's maxima of every `size` rows `[r, d]`, the last one over as many as are left."""
    rows = x.shape[0]
    windows = (rows + size - 1) // size
    padded = nn.functional.pad(x, (0, 0, 0, windows * size - rows), value=-torch.inf)
    maxima = padded.reshape(windows, size, x.shape[1]).amax(1)
    return maxima, OneSequence(windows)


def last_rows(x: Tensor, layout: RaggedLayout) -> Tensor:
    """The last of the rows `[r, d]`; `[1, d]`."""
    return x[-1:]


def spoken_frames(frames: Tensor, audio: RaggedLayout, text: RaggedLayout) -> Tensor:
    """CME's frames of an utterance that has tokens: all of them, `[r, d]`."""
    return frames


def mean_max_by_token(frames: Tensor, audio: RaggedLayout, text: RaggedLayout) -> Tensor:
    """CME's mean and maximum of each token's frames, by a mask `[tokens, frames]`."""
    n_frames = frames.shape[0]
    n_tokens = text.longest
    token = torch.arange(n_tokens)
    first = (token * n_frames // n_tokens)[:, None]
    end = ((token + 1) * n_frames // n_tokens)[:, None]
    frame = torch.arange(n_frames)[None]
    is_share = (frame >= first) & (frame < end)

    sizes = is_share.sum(1, keepdim=True)
    means = is_share.to(frames.dtype) @ frames / sizes.clamp(min=1)
    masked = torch.where(is_share[..., None], frames[None], -torch.inf)
    maxima = torch.where(sizes > 0, masked.amax(1), 0.0)
    return torch.cat([means, maxima], 1)


ONE_SEQUENCE = {
    "RaggedLayout": layout_of,
    "pool_windows": pool_windows,
    "last_rows": last_rows,
    "spoken_frames": spoken_frames,
    "mean_max_by_token": mean_max_by_token,
    "concatenate": concatenate,
    "vectors": vectors,
    "recurrent": recurrent,
    "bigru": bigru,
}


@contextlib.contextmanager
def replaced(functions: Mapping[str, Any], model: nn.Module) -> Iterator[None]:
    """In the context, the files of all models, and that of `model`, call these functions where they
    call ones of the same names.
    """
    names = {name for name in sys.modules if name.startswith("ser.train.models.")}
    names.add(type(model).__module__)
    with contextlib.ExitStack() as stack:
        for name in names:
            module = sys.modules[name]
            for function, substitute in functions.items():
                if hasattr(module, function):
                    stack.enter_context(mock.patch.object(module, function, substitute))
        yield
