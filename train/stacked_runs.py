"""R models of one kind as one, under `torch.func.vmap`.

Each has its weights and its batch along a leading axis. Vmap needs the same shapes for all, so
batches are padded to common ones: a dummy last dialogue of one turn takes the surplus rows and
steps, and has no part in any loss. Axis letters beside those of `models.layers`:

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

# r, the rows of a batch, is a multiple of it, so that few shapes occur.
ROWS = 128

# Logits `[R, r, K]` by head, the dataset's row of each `[R, r]`, and whether it is one `[R, r]`.
StackedOutputs = tuple[dict[str, Tensor], Tensor, Tensor]


def turn_table(groups: Sequence[np.ndarray]) -> Tensor:
    """The dataset's rows of each dialogue's turns, int64 `[g + 1, t]`, padded with -1.

    The last line, the dummy dialogue, is all -1.
    """
    turns = [torch.from_numpy(group) for group in groups]
    turns.append(torch.empty(0, dtype=torch.int64))
    return pad_sequence(turns, batch_first=True, padding_value=-1)


def batch_of(turns: Tensor, chosen: Tensor) -> tuple[Tensor, int]:
    """The chosen dialogues `[R, m - 1]` of a `turn_table`, for each run, as a batch.

    With the dummy dialogue they are `[R, m]`. Beside them r for all runs: one more than any run
    needs, rounded up to a multiple of `ROWS`.
    """
    dummy = len(turns) - 1
    dialogues = F.pad(chosen, (0, 1), value=dummy)

    utterances = (turns[dialogues] >= 0).sum((1, 2))  # [R]
    needed = int(utterances.max()) + 1
    return dialogues, -(-needed // ROWS) * ROWS


def lay_out(turns: Tensor, chosen: Tensor, r: int) -> tuple[Tensor, Tensor, RaggedLayout]:
    """Where the utterances of one run's batch stand, in r rows.

    They are those of the dialogues `chosen` `[m]` of a `turn_table`. The row of the dataset, int64
    `[r]`, whether it is one, bool `[r]`, and their layout. As many turns are stepped through as the
    longest of the table has, with every dialogue at each step: so those of as many dialogues and
    rows have the same shapes, and nobody has to wait for a number.
    """
    turns = turns[chosen]  # [m, t]
    m, t = turns.shape
    is_turn = turns >= 0
    cell = torch.arange(m * t, device=turns.device).view(m, t)
    dummy_cell = (m - 1) * t
    dummy_row = r - 1

    # The row of each cell, the dummy's where there is no turn; and back, the cell of each row.
    turns_before = is_turn.flatten().cumsum(0).view(m, t) - 1
    row = torch.where(is_turn, turns_before, dummy_row)
    cells_of_turns = torch.where(is_turn, cell, dummy_cell).flatten()
    cells = cells_of_turns.new_full((r,), dummy_cell)
    cells = cells.scatter(0, row.flatten(), cells_of_turns)

    # The layout, with what it would compute by itself: `r` rows in `m` dialogues of `t` steps.
    layout = RaggedLayout(is_turn.sum(1).clamp(min=1))
    turn_from_the_end = (layout.lengths[:, None] - 1 - cell[0]) % t
    row_from_the_end = row.gather(1, turn_from_the_end)
    layout.fixed = True
    layout.longest = t
    layout.cells = cells
    layout.steps = Steps(
        forwards=row.T.flatten(),
        backwards=torch.where(is_turn, row_from_the_end, dummy_row).T.flatten(),
        alive=[m] * t,
    )

    dataset_rows = turns.flatten()[cells].clamp(min=0)
    return dataset_rows, cells < dummy_cell, layout


class DrawnDropout(nn.Module):
    """Dropout by masks that are drawn already, in the order of the calls.

    Where none is left, it notes the width that a call needs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor] = []
        self.widths: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.masks:
            return x * self.masks.pop(0)
        self.widths.append(x.shape[-1])
        return x


class StackedRuns:
    """R models that differ in their weights alone.

    `weights` are theirs by name, each `[R, …]`, with gradients. `values` `[utterances, dim]` are
    those of the whole dataset, by modality. `frame`, a model that may have wider inputs than
    `models`, computes in their place: its additional weights are zero, and stay so as those inputs
    are. `generators` are the random generators of their dropout, one per run: no run changes what
    another draws.
    """

    def __init__(
        self,
        frame: nn.Module,
        models: list[nn.Module],
        values: dict[str, Tensor],
        generators: list[Generator],
    ) -> None:
        self.model = frame
        self.values = values
        self.generators = generators

        weights, self.buffers = stack_module_state(models)
        self.weights: dict[str, Tensor] = {}
        for name, frame_weight in frame.named_parameters():
            stacked = weights[name].detach()
            missing = frame_weight.shape[-1] - stacked.shape[-1]
            self.weights[name] = F.pad(stacked, [0, missing]).requires_grad_()

        self.dropout = 0.0  # the one that all have
        # What dropout keeps, bool [R, utterances, the sum of its calls' widths].
        self.kept: Tensor | None = None
        self._drawn = DrawnDropout()
        self._replace_dropout()

    def _replace_dropout(self) -> None:
        """Put the one of drawn masks in the place of each dropout of the model."""
        for module in list(self.model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    self.dropout = child.p
                    setattr(module, name, self._drawn)

    def __call__(
        self, turns: Tensor, chosen: Tensor, r: int, training: bool = False
    ) -> StackedOutputs:
        """Logits `[R, r, K]` by head, the dataset's row of each, and whether it is one.

        The rows are int64 `[R, r]`, whether they are any is bool `[R, r]`. Of a `batch_of` the
        `turn_table` turns, on the models' device. In training dropout is by `kept`, if that is
        drawn.
        """
        self.model.train(training)
        kept = self.kept if training else None
        axis_of_kept = None if kept is None else 0
        forward = vmap(self._forward_one_run, in_dims=(None, None, 0, 0, 0, axis_of_kept))

        # The attention that vmap knows on every device.
        with sdpa_kernel(SDPBackend.MATH):
            return forward(turns, r, self.weights, self.buffers, chosen, kept)

    def _forward_one_run(
        self, turns: Tensor, r: int, weights: Any, buffers: Any, chosen: Tensor, kept: Tensor | None
    ) -> StackedOutputs:
        """One run, as it is under vmap."""
        rows, real, layout = lay_out(turns, chosen, r)
        if kept is not None:
            masks = kept[rows].split(self._drawn.widths, 1)
            self._drawn.masks = [mask / (1.0 - self.dropout) for mask in masks]

        dtype = next(iter(weights.values())).dtype
        one_row_each = torch.ones_like(rows)
        inputs = {}
        for modality, vectors in self.values.items():
            inputs[modality] = Sequences(vectors[rows].to(dtype), one_row_each)
        batch = Batch(inputs, dialogues=layout.lengths)

        outputs = functional_call(self.model, (weights, buffers), (batch, layout))
        return outputs, rows, real

    def draw(self, turns: Tensor, chosen: Tensor, r: int) -> None:
        """Draw what dropout keeps of every utterance in the epoch to come.

        It takes the place of what was drawn before. A batch, as a call takes it, shows how much
        that is.
        """
        if self.kept is None:
            with torch.no_grad():
                self(turns, chosen, r, training=True)
            values = next(iter(self.values.values()))
            shape = (len(self.generators), len(values), sum(self._drawn.widths))
            self.kept = torch.empty(shape, dtype=torch.bool, device=values.device)

        for kept_of_run, generator in zip(self.kept.unbind(0), self.generators, strict=True):
            kept_of_run.bernoulli_(1.0 - self.dropout, generator=generator)
