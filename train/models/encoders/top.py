"""What the tops of all encoders have in common.

k  layers below the top     N  layers of the top     L = k + N
d  hidden size              r  packed rows
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..layers.layout import RaggedLayout, Rows

# Of an encoder: so many layers at its top; all: its embeddings too.
TopLayers = int | Literal["all"]


class EncoderTop(nn.Module):
    """The top layers of a pretrained encoder, with what follows them.

    They compute what they compute within the whole model, from the rows of the layer below.
    """

    columns: int
    """Of a row that it takes."""
    window: int | None = None
    """Rows that it attends over at most: longer sequences are cut into consecutive pieces."""
    stack: str
    """The name of the list of its layers."""
    behind: tuple[str, ...] = ()
    """The names of what stands behind the last layer."""
    of_checkpoint: frozenset[str] = frozenset()
    """The names of the weights that stay those of its checkpoint, and that a run does not hold."""

    def forward(self, x: Tensor, layout: RaggedLayout) -> Rows:
        """Rows of layer k `[r, columns]` → rows of layer L `[r, d]`, and where they lie."""
        raise NotImplementedError

    @property
    def layers_of_stack(self) -> nn.ModuleList:
        """Its layers, from the lowest to the top."""
        layers = self.get_submodule(self.stack)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def layers_above(self, weight: str) -> int:
        """How many layers lie above a weight of that name: 0 in the last layer and behind it.

        What is before all layers, or of all of them, lies below the lowest.
        """
        count = len(self.layers_of_stack)
        if not weight.startswith(f"{self.stack}."):
            return 0 if weight.startswith(self.behind) else count
        number = weight.removeprefix(f"{self.stack}.").partition(".")[0]
        return count - 1 - int(number)

    def recompute(self) -> None:
        """Compute each layer again in the backward pass, in place of keeping its activations.

        Chen et al., "Training deep nets with sublinear memory cost", 2016.
        """
        for layer in self.layers_of_stack:
            layer.forward = partial(_recomputed, layer, layer.forward)

    def call_projections(self) -> None:
        """Let each layer call its projections as modules, so that an adapter of one counts.

        Nearly all do so by themselves.
        """

    def train_only(self, *parts: nn.Module | None) -> None:
        """Give gradients to these parts, and to no other."""
        self.requires_grad_(False)
        for part in parts:
            if part is not None:
                part.requires_grad_(True)


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a layer's `forward` gives; in training without keeping what it was made of."""
    # Its import takes seconds.
    from torch.utils.checkpoint import checkpoint

    if not layer.training or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def drop_layers_below(layers: nn.ModuleList, top: TopLayers) -> int:
    """Leave the top layers alone in the list. Returns how many were below them."""
    below = 0
    if top != "all":
        below = len(layers) - top
    del layers[:below]
    return below


def cut_into_windows(layout: RaggedLayout, window: int | None) -> RaggedLayout:
    """The same rows as sequences of at most `window` rows; a sequence without rows is none."""
    # A graph of ONNX has one sequence of any length.
    if window is None or layout.fixed or layout.longest <= window:
        return layout

    lengths = []
    for length in layout.lengths.tolist():
        whole_windows, rest = divmod(length, window)
        lengths += [window for _ in range(whole_windows)]
        if rest:
            lengths.append(rest)
    return RaggedLayout(torch.tensor(lengths), layout.device)


def attention_mask(layout: RaggedLayout) -> Tensor | None:
    """The cells that hold a row, bool `[n, longest]`; None where all do, as in extraction."""
    if layout.fixed or len(set(layout.lengths.tolist())) == 1:
        return None
    return layout.attended


class PassedOn(nn.Module):
    """In place of what stands before the first layer: its argument, as it is."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x
