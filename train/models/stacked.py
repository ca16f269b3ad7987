"""Many models of one kind at once, along a leading axis: the runs of a cell as one batched computation.

The model's own code runs under `torch.func.vmap`, each run with its weights and its batch. Vmap wants the same shapes
of all, so batches are laid out here in common ones, with a last dialogue of one turn that takes what is too much: it
has a place in every step of every layer, and no part in any loss. Axis letters beside those of
`ser.train.models.ragged`:

    R  runs
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .ragged import Batch, RaggedLayout, Sequences

NO_LABEL = -100  # what torch's losses leave out


@dataclass(frozen=True)
class Layout:
    """Where the utterances of R batches stand, each of m − 1 dialogues, in r rows; r is one more than any needs."""

    rows: np.ndarray  # int64 [R, r]: row in the dataset; anything where there is none
    real: np.ndarray  # bool [R, r]
    lengths: np.ndarray  # int64 [R, m]: turns of each dialogue, the last being the one that is none
    longest: int
    cells: np.ndarray  # int64 [R, r]: see `RaggedLayout.cells`
    forwards: np.ndarray  # int64 [R, s]: see `RaggedLayout.steps`
    backwards: np.ndarray  # int64 [R, s]
    alive: list[int]

    @classmethod
    def of(cls, groups: list[np.ndarray], chosen: np.ndarray) -> "Layout":
        """Of the dialogues `groups` (rows in turn order), those `chosen` for each run, int64 `[R, m − 1]`."""
        sizes, starts = np.array([len(group) for group in groups]), np.cumsum([0, *map(len, groups[:-1])])
        lengths = np.pad(sizes[chosen], ((0, 0), (0, 1)), constant_values=1)
        runs, m = lengths.shape
        longest = int(lengths.max())
        turn = np.arange(longest)
        there = turn < lengths[..., None]  # [R, m, longest]
        place = (there.reshape(runs, -1).cumsum(1) - 1).reshape(there.shape)  # the row of each cell that is there
        r = int(place[:, -1, 0].max()) + 1

        run, dialogue, turn_there = there[:, :-1].nonzero()
        row = place[run, dialogue, turn_there]
        rows, cells = np.zeros((runs, r), np.int64), np.full((runs, r), (m - 1) * longest)
        rows[run, row] = np.concatenate(groups)[starts[chosen[run, dialogue]] + turn_there]
        cells[run, row] = dialogue * longest + turn_there

        place[:, -1, 0] = r - 1
        rank = np.argsort(np.argsort(-lengths, axis=1, kind="stable"), axis=1)
        alive = there.sum(1).max(0)
        before = np.cumsum(alive) - alive
        forwards, backwards = (np.full((runs, alive.sum()), r - 1) for _ in range(2))
        run, dialogue, step = there.nonzero()
        slot = before[step] + rank[run, dialogue]
        forwards[run, slot] = place[run, dialogue, step]
        backwards[run, slot] = place[run, dialogue, lengths[run, dialogue] - 1 - step]
        real = cells < (m - 1) * longest
        return cls(rows, real, lengths, longest, cells, forwards, backwards, alive.tolist())


class _Given(RaggedLayout):
    """A layout whose indices are given, in the shapes of a `Layout`."""

    fixed = True

    def __init__(self, lengths: Tensor, longest: int, cells: Tensor, steps: Any = None) -> None:
        super().__init__(lengths)
        self.longest, self.cells, self.steps = longest, cells, steps

    def repeat(self, times: int) -> RaggedLayout:
        size = len(self.lengths) * self.longest
        return _Given(
            self.lengths.repeat(times), self.longest, torch.cat([self.cells + i * size for i in range(times)])
        )


class _Drawn(nn.Module):
    """Dropout by given masks, in the order of the calls; while it counts, it notes the widths that are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor] = []
        self.counting = False
        self.widths: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.counting:
            self.widths.append(x.shape[-1])
            return x
        return x * self.masks.pop(0)


class Stack:
    """R models that differ in their weights alone; `weights` are theirs by name, each `[R, …]`, with gradients.

    `generators` are the random generators of their dropout, one per run: no run changes what another draws.
    """

    def __init__(self, models: list[nn.Module], dropout: float, generators: list[torch.Generator]) -> None:
        weights, buffers = stack_module_state(models)
        self.weights: dict[str, Tensor] = {n: w.detach().requires_grad_() for n, w in weights.items()}
        self.buffers, self.dropout, self.generators = buffers, dropout, generators
        self.model = copy.deepcopy(models[0])
        self._drawn = _Drawn()
        for module in list(self.model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, self._drawn)

    def __call__(self, values: dict[str, Tensor], layout: Layout, training: bool) -> dict[str, Tensor]:
        """Logits `[R, r, K]` by head; `values` `[utterances, dim]` are those of the whole dataset, by modality."""
        self.model.train(training)
        weight = next(iter(self.weights.values()))
        device = weight.device
        rows = torch.from_numpy(layout.rows)
        x = {m: whole[rows.to(whole.device, non_blocking=True)].to(device, weight.dtype) for m, whole in values.items()}
        indices = (layout.lengths, layout.cells, layout.forwards, layout.backwards)
        laid = tuple(torch.from_numpy(index).to(device, non_blocking=True) for index in indices)
        call = vmap(partial(self._one, layout))
        inputs = (self.weights, self.buffers, x, laid)
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap knows on every device
            if training and not self._drawn.widths:
                self._drawn.counting = True
                with torch.no_grad():
                    call(*inputs, [])
                self._drawn.counting = False
            return call(*inputs, self._draw(layout.real.sum(1).tolist(), rows.shape[1], device) if training else [])

    def _one(
        self, layout: Layout, weights: Any, buffers: Any, x: dict[str, Tensor], laid: Any, masks: list[Tensor]
    ) -> dict[str, Tensor]:
        """One run, as it is under vmap."""
        self._drawn.masks = list(masks)
        lengths, cells, forwards, backwards = laid
        ones, none = torch.ones_like(cells), torch.zeros_like(cells)
        inputs = {modality: Sequences(rows, ones) for modality, rows in x.items()}
        batch = Batch(inputs, labels=none, utterances=none, dialogues=lengths)
        given = _Given(lengths, layout.longest, cells, (forwards, backwards, layout.alive))
        return functional_call(self.model, (weights, buffers), (batch, given))

    def _draw(self, counts: list[int], r: int, device: torch.device) -> list[Tensor]:
        """Masks `[R, r, width]` for each call of dropout, drawn as torch's own dropout draws them."""
        keep = 1.0 - self.dropout
        masks = [torch.zeros(len(counts), r, width, device=device) for width in self._drawn.widths]
        for run, (count, generator) in enumerate(zip(counts, self.generators, strict=True)):
            for mask in masks:
                mask[run, :count].bernoulli_(keep, generator=generator)
        return [mask.div_(keep or 1.0) for mask in masks]
