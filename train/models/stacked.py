"""Many models of one kind at once, along a leading axis: the runs of a cell as one batched computation.

The model's own code runs under `torch.func.vmap`, each run with its weights and its batch. Vmap wants the same shapes
of all, so batches are laid out here in common ones, with a last dialogue of one turn that takes what is too much: it
has a place in every step of every layer, and no part in any loss. Few shapes occur, so that a GPU captures each once
as a CUDA graph. Axis letters beside those of `ser.train.models.ragged`:

    R  runs
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .ragged import Batch, RaggedLayout, Sequences

NO_LABEL = -100  # what torch's losses leave out
ROWS = 128  # r is a multiple of it, so that few shapes occur


@dataclass(frozen=True)
class Layout:
    """Where the utterances of R batches stand, each of m − 1 dialogues, in r rows; r is one more than any needs."""

    longest: int
    rows: Tensor  # int64 [R, r]: row in the dataset; anything where there is none
    lengths: Tensor  # int64 [R, m]: turns of each dialogue, the last being the one that is none
    cells: Tensor  # int64 [R, r]: see `RaggedLayout.cells`
    forwards: Tensor  # int64 [R, s]: see `RaggedLayout.steps`
    backwards: Tensor  # int64 [R, s]

    @classmethod
    def of(cls, groups: list[np.ndarray], chosen: np.ndarray) -> "Layout":
        """Of the dialogues `groups` (rows in turn order), those `chosen` for each run, int64 `[R, m − 1]`.

        As many turns are stepped through as the longest of `groups` has, with every dialogue at each step, and r is a
        multiple of `ROWS`: so all layouts of as many dialogues and rows have the same shapes.
        """
        sizes, starts = np.array([len(group) for group in groups]), np.cumsum([0, *map(len, groups[:-1])])
        lengths = np.pad(sizes[chosen], ((0, 0), (0, 1)), constant_values=1)
        (runs, m), longest = lengths.shape, int(sizes.max())
        turn = np.arange(longest)
        there = turn < lengths[..., None]  # [R, m, longest]
        there[:, -1] = False
        place = there.reshape(runs, -1).cumsum(1) - 1
        r = -(-(int(place.max()) + 2) // ROWS) * ROWS
        place = np.where(there, place.reshape(there.shape), r - 1)  # the row of each cell, the last where there is none

        run, dialogue, here = there.nonzero()
        row = place[run, dialogue, here]
        rows, cells = np.zeros((runs, r), np.int64), np.full((runs, r), (m - 1) * longest)
        rows[run, row] = np.concatenate(groups)[starts[chosen[run, dialogue]] + here]
        cells[run, row] = dialogue * longest + here

        back = np.take_along_axis(place, (lengths[..., None] - 1 - turn) % longest, 2)
        ways = (place, np.where(there, back, r - 1))
        forwards, backwards = (way.swapaxes(1, 2).reshape(runs, -1) for way in ways)
        return cls(longest, *map(torch.from_numpy, (rows, lengths, cells, forwards, backwards)))

    @property
    def real(self) -> Tensor:
        """Which rows hold an utterance; bool `[R, r]`."""
        return self.cells < (self.lengths.shape[1] - 1) * self.longest

    @property
    def indices(self) -> tuple[Tensor, ...]:
        """Rows, lengths, cells and both ways of the steps: all that differs between layouts of the same shapes."""
        return self.rows, self.lengths, self.cells, self.forwards, self.backwards

    def packed(self) -> Tensor:
        """The `indices` in one tensor, int64 `[R · (2 r + m + 2 s)]`: one upload."""
        return torch.cat([each.flatten() for each in self.indices])

    def within(self, packed: Tensor) -> "Layout":
        """The same, its `indices` views of a tensor that is, or will be, filled by `packed`."""
        parts = packed.split([each.numel() for each in self.indices])
        return Layout(self.longest, *(part.view_as(each) for part, each in zip(parts, self.indices, strict=True)))


class _Drawn(nn.Module):
    """Dropout by given masks, in the order of the calls; where none is left, it notes the width that is asked."""

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


class Stack:
    """R models that differ in their weights alone; `weights` are theirs by name, each `[R, …]`, with gradients.

    `generators` are the random generators of their dropout, one per run: no run changes what another draws. `frame`, a
    model that takes wider inputs, computes in the place of theirs: what its weights have more is zero, and stays so
    while those inputs are.
    """

    def __init__(
        self, models: list[nn.Module], dropout: float, generators: list[torch.Generator], frame: nn.Module | None = None
    ) -> None:
        weights, buffers = stack_module_state(models)
        self.model = frame or copy.deepcopy(models[0])
        wide = {name: weight.shape[-1:] for name, weight in self.model.named_parameters()}
        self.weights: dict[str, Tensor] = {
            name: F.pad(w.detach(), [0, sum(wide[name]) - sum(w.shape[1:][-1:])]).requires_grad_()
            for name, w in weights.items()
        }
        self.buffers, self.dropout, self.generators = buffers, dropout, generators
        self._drawn = _Drawn()
        self._kept = torch.empty(0)
        for module in list(self.model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, self._drawn)

    def __call__(self, values: dict[str, Tensor], layout: Layout, masks: list[Tensor] | None) -> dict[str, Tensor]:
        """Logits `[R, r, K]` by head; `values` `[utterances, dim]` are those of the whole dataset, by modality.

        Values and layout are on the models' device; `masks` are those of dropout, or None where nothing is trained.
        """
        self.model.train(masks is not None)
        weight = next(iter(self.weights.values()))
        x = {modality: whole[layout.rows].to(weight.dtype) for modality, whole in values.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap knows on every device
            one = partial(self._one, layout.longest)
            return vmap(one)(self.weights, self.buffers, x, layout.indices[1:], masks or [])

    def _one(
        self, longest: int, weights: Any, buffers: Any, x: dict[str, Tensor], indices: Any, masks: list[Tensor]
    ) -> dict[str, Tensor]:
        """One run, as it is under vmap."""
        self._drawn.masks = list(masks)
        lengths, cells, forwards, backwards = indices
        ones, none = torch.ones_like(cells), torch.zeros_like(cells)
        inputs = {modality: Sequences(rows, ones) for modality, rows in x.items()}
        batch = Batch(inputs, truth=none, utterances=none, dialogues=lengths)
        turns = RaggedLayout(lengths)
        turns.fixed, turns.longest, turns.cells = True, longest, cells
        turns.steps = forwards, backwards, [len(lengths)] * longest
        return functional_call(self.model, (weights, buffers), (batch, turns))

    def widths(self, values: dict[str, Tensor], layout: Layout) -> list[int]:
        """Those of what each call of dropout is given."""
        if not self._drawn.widths:
            with torch.no_grad():
                self(values, layout, [])
        return self._drawn.widths

    def draw(self, utterances: int, values: dict[str, Tensor], layout: Layout) -> None:
        """Draw what dropout keeps of every utterance in the epoch to come, in the place of what was drawn before."""
        if not len(self._kept):
            shape = len(self.generators), utterances, sum(self.widths(values, layout))
            self._kept = torch.empty(shape, dtype=torch.bool, device=layout.rows.device)
        for kept, generator in zip(self._kept.unbind(0), self.generators, strict=True):
            kept.bernoulli_(1.0 - self.dropout, generator=generator)

    def drawn(self, rows: Tensor) -> list[Tensor]:
        """Masks `[R, r, width]` of these rows `[R, r]` out of what `draw` drew."""
        kept = self._kept[torch.arange(len(rows), device=rows.device)[:, None], rows]
        return [mask / (1.0 - self.dropout or 1.0) for mask in kept.split(self._drawn.widths, 2)]


class Graphs:
    """Functions of tensors that keep their places, by their keys: on a GPU, CUDA graphs.

    The first call of a key runs as it is, the second is captured, and replayed from then on: no operation is started
    by itself any more. Where that fails (an old driver, too little memory) the `logs` get a line, and all run as they
    are. Results are copies.
    """

    def __init__(self, enabled: bool, logs: Sequence[Callable[[str], None]] = ()) -> None:
        self.enabled, self.logs = enabled, logs
        self._known: dict[Hashable, tuple[Any, Tensor] | None] = {}
        self._pool: Any = None  # one for all: none needs what another has left there

    def __call__(self, key: Hashable, function: Callable[[], Tensor]) -> Tensor:
        """What `function` returns: of one key always the same function of the same tensors."""
        if self.enabled and key in self._known and self._known[key] is None:
            try:
                self._known[key] = self.captured(function)
            except RuntimeError as fault:
                self.enabled = False
                why = str(fault.__context__ or fault).partition("\n")[0]  # the end of a broken capture fails too
                for log in self.logs:
                    log(f"updates cannot be captured as CUDA graphs here, and each takes longer ({why})")
        if found := self._known.setdefault(key):
            graph, result = found
            graph.replay()
            return result.clone()
        return function().clone()

    def captured(self, function: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """The graph that does all of it again without Python, and what it fills. Nothing is done yet."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # A capture that breaks leaves its own stream as the current one; and other threads may use the GPU meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            result = function()
        return graph, result
