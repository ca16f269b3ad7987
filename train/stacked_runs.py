"""R models of one kind as one: under `torch.func.vmap`, each with its weights and its batch along a
leading axis.

Vmap needs the same shapes for all, so batches are padded to common ones: a dummy last dialogue of
one turn takes the surplus rows and steps, and has no part in any loss. Axis letters beside those of
`models.layers`:

    R  runs
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from .models.batch import Batch, Sequences
from .models.layers.layout import RaggedLayout, Steps

ROWS = 128  # r is a multiple of it, so that few shapes occur
# Logits `[R, r, K]` by head, of which row of the dataset each is, and whether of any `[R, r]`.
Outputs = tuple[dict[str, Tensor], Tensor, Tensor]


def table(groups: Sequence[np.ndarray]) -> Tensor:
    """The dataset's rows of each dialogue's turns, padded with -1; the last line, the dummy
    dialogue, is all -1.

    int64 `[g + 1, t]`.
    """
    turns = [*map(torch.from_numpy, groups), torch.empty(0, dtype=torch.int64)]
    return pad_sequence(turns, batch_first=True, padding_value=-1)


def batch_of(turns: Tensor, chosen: Tensor) -> tuple[Tensor, int]:
    """The chosen dialogues of a `table` for each run `[R, m - 1]`, with the dummy one `[R, m]`; and
    r for all runs.

    r is one more than any run needs, and a multiple of `ROWS`.
    """
    chosen = F.pad(chosen, (0, 1), value=len(turns) - 1)
    return chosen, -(-(int((turns[chosen] >= 0).sum((1, 2)).max()) + 1) // ROWS) * ROWS


def lay_out(turns: Tensor, chosen: Tensor, r: int) -> tuple[Tensor, Tensor, RaggedLayout]:
    """Where the utterances of one run's batch stand: of the dialogues `chosen` `[m]` of a `table`,
    in r rows.

    The row of the dataset, int64 `[r]`, whether it is one, bool `[r]`, and their layout. As many
    turns are stepped through as the longest of the table has, with every dialogue at each step: so
    those of as many dialogues and rows have the same shapes, and nobody has to wait for a number.
    """
    turns = turns[chosen]  # [m, t]
    (m, t), there = turns.shape, turns >= 0
    cell, none = torch.arange(m * t, device=turns.device).view(m, t), (m - 1) * t
    place = torch.where(
        there, there.flatten().cumsum(0).view(m, t) - 1, r - 1
    )  # the row of each cell, or the last
    cells = torch.where(there, cell, none).flatten()
    cells = cells.new_full((r,), none).scatter(0, place.flatten(), cells)
    layout = RaggedLayout(there.sum(1).clamp(min=1))
    back = place.gather(1, (layout.lengths[:, None] - 1 - cell[0]) % t)
    layout.fixed, layout.longest, layout.cells = True, t, cells
    layout.steps = Steps(
        forwards=place.T.flatten(),
        backwards=torch.where(there, back, r - 1).T.flatten(),
        alive=[m] * t,
    )
    return turns.flatten()[cells].clamp(min=0), cells < none, layout


class DrawnDropout(nn.Module):
    """Dropout by given masks, in the order of the calls; where none is left, it notes the width
    that is asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor] = []
        self.widths: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.masks:
            return x * self.masks.pop(0)
        if self.training:
            self.widths.append(x.shape[-1])
        return x


class StackedRuns:
    """R models that differ in their weights alone; `weights` are theirs by name, each `[R, …]`,
    with gradients.

    `values` `[utterances, dim]` are those of the whole dataset, by modality. `frame`, a model that
    may have wider inputs than `models`, computes in their place: its additional weights are zero,
    and stay so as those inputs are. `generators` are the random generators of their dropout, one
    per run: no run changes what another draws.
    """

    def __init__(
        self,
        frame: nn.Module,
        models: list[nn.Module],
        values: dict[str, Tensor],
        generators: list[Generator],
    ) -> None:
        weights, buffers = stack_module_state(models)
        self.model, self.values = frame, values
        wide = {name: weight.shape[-1:] for name, weight in self.model.named_parameters()}
        self.weights: dict[str, Tensor] = {
            name: F.pad(w.detach(), [0, sum(wide[name]) - sum(w.shape[1:][-1:])]).requires_grad_()
            for name, w in weights.items()
        }
        self.buffers, self.generators, self._drawn = buffers, generators, DrawnDropout()
        self.dropout = 0.0  # the one that all have
        self.kept: Tensor | None = (
            None  # what dropout keeps, bool [R, utterances, widths of its calls]
        )
        for module in list(self.model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    self.dropout = child.p
                    setattr(module, name, self._drawn)

    def __call__(self, turns: Tensor, chosen: Tensor, r: int, training: bool = False) -> Outputs:
        """Logits `[R, r, K]` by head, of which row of the dataset each is `[R, r]`, and whether of
        any, bool `[R, r]`.

        Of a `batch_of` the `table` turns, on the models' device. In training dropout is by `kept`,
        if that is drawn.
        """
        self.model.train(training)
        kept = self.kept if training else None
        in_dims = None, None, 0, 0, 0, None if kept is None else 0
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap knows on every device
            return vmap(self._one, in_dims)(turns, r, self.weights, self.buffers, chosen, kept)

    def _one(
        self, turns: Tensor, r: int, weights: Any, buffers: Any, chosen: Tensor, kept: Tensor | None
    ) -> Outputs:
        """One run, as it is under vmap."""
        rows, real, layout = lay_out(turns, chosen, r)
        if kept is not None:
            self._drawn.masks = [
                mask / (1.0 - self.dropout) for mask in kept[rows].split(self._drawn.widths, 1)
            ]
        dtype, ones = next(iter(weights.values())).dtype, torch.ones_like(rows)
        inputs = {
            modality: Sequences(whole[rows].to(dtype), ones)
            for modality, whole in self.values.items()
        }
        batch = Batch(inputs, dialogues=layout.lengths)
        return functional_call(self.model, (weights, buffers), (batch, layout)), rows, real

    def draw(self, turns: Tensor, chosen: Tensor, r: int) -> None:
        """Draw what dropout keeps of every utterance in the epoch to come, in the place of what was
        drawn before.

        A batch, as a call takes it, shows how much that is.
        """
        if self.kept is None:
            with torch.no_grad():
                self(turns, chosen, r, training=True)
            values = next(iter(self.values.values()))
            shape = len(self.generators), len(values), sum(self._drawn.widths)
            self.kept = torch.empty(shape, dtype=torch.bool, device=values.device)
        for kept, generator in zip(self.kept.unbind(0), self.generators, strict=True):
            kept.bernoulli_(1.0 - self.dropout, generator=generator)
