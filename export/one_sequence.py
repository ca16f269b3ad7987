"""The layout of a single sequence, whose length is a shape.

The models work on the packed rows of many sequences (`train/models/layers/`), and read the
sequences' lengths as numbers. A graph of ONNX has no such numbers while it is traced: its length is
the shape of its input. One sequence needs no packing, so everything here is plainer than what it
replaces (`substitutes.py`), and gives the same numbers; `export` compares them before it keeps a
graph.
"""

from typing import Any

import torch
from torch import Tensor

from ser.train.models.batch import Batch
from ser.train.models.layers.layout import RaggedLayout


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

    def maximum(self, x: Tensor) -> Tensor:
        """The largest values among the rows `[r, d]`; `[1, d]`."""
        return x.amax(0, keepdim=True)

    def of_length(self, rows: int) -> "OneSequence":
        """The layout of one sequence of so many rows."""
        return OneSequence(rows)


def layout_of(lengths: Any, device: object = None, device_lengths: object = None) -> RaggedLayout:
    """In the place of `RaggedLayout`, whose parameters it takes.

    A layout that stands where a batch has the lengths of its dialogues is taken as it is.
    """
    assert isinstance(lengths, RaggedLayout), "a layout of numbers cannot be traced"
    return lengths


def concatenate(
    a: Tensor, layout_a: RaggedLayout, b: Tensor, layout_b: RaggedLayout
) -> tuple[Tensor, RaggedLayout]:
    """The rows `[r_a, d]`, and behind them the rows `[r_b, d]`."""
    return torch.cat([a, b]), OneSequence(layout_a.longest + layout_b.longest)


def vectors(batch: Batch, modality: str, dim: int) -> Tensor:
    """One modality's vectors `[n, dim]`: there is one of each utterance."""
    return batch.inputs[modality].values


def max_rows(x: Tensor, layout: Any) -> Tensor:
    """The largest values among each sequence's rows `[r, d]`; `[n, d]`."""
    return layout.maximum(x)


def last_rows(x: Tensor, layout: RaggedLayout) -> Tensor:
    """The last one of the rows `[r, d]`; `[1, d]`."""
    return x[-1:]


def pool_windows(x: Tensor, layout: RaggedLayout, size: int) -> tuple[Tensor, RaggedLayout]:
    """The maxima of every `size` rows `[r, d]`, the last one over as many as are left."""
    rows, d = x.shape
    windows = (rows + size - 1) // size
    padded = torch.nn.functional.pad(x, (0, 0, 0, windows * size - rows), value=-torch.inf)
    return padded.reshape(windows, size, d).amax(1), OneSequence(windows)
