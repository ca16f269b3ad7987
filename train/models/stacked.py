"""Many models of one kind at once, along a leading axis: the runs of a cell as one batched computation.

The model's own code runs under `torch.func.vmap`, each run with its weights and its batch. Vmap wants the same shapes
of all, so batches are laid out here in common ones, with a last dialogue of one turn that takes what is too much: it
has a place in every step of every layer, and no part in any loss. Few shapes occur, so that a GPU captures each once
as a CUDA graph. Axis letters beside those of `ser.train.models.ragged`:

    R  runs
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from .ragged import Batch, RaggedLayout, Sequences

NO_LABEL = -100  # what torch's losses leave out
ROWS = 128  # r is a multiple of it, so that few shapes occur
Found = tuple[dict[str, Tensor], Tensor, Tensor]  # what a `Stack` returns


def table(groups: Sequence[np.ndarray]) -> Tensor:
    """The turns of each dialogue, rows of the dataset, and those of one that has none; int64 `[g + 1, t]`, then -1."""
    turns = [*map(torch.from_numpy, groups), torch.empty(0, dtype=torch.int64)]
    return pad_sequence(turns, batch_first=True, padding_value=-1)


def batch_of(turns: Tensor, chosen: Tensor) -> tuple[Tensor, int]:
    """The dialogues of a `table` that are chosen for each run `[R, m - 1]`, with its last `[R, m]`; and r for them all.

    r is one more than any run needs, and a multiple of `ROWS`.
    """
    chosen = F.pad(chosen, (0, 1), value=len(turns) - 1)
    return chosen, -(-(int((turns[chosen] >= 0).sum((1, 2)).max()) + 1) // ROWS) * ROWS


def lay_out(turns: Tensor, chosen: Tensor, r: int) -> tuple[Tensor, Tensor, RaggedLayout]:
    """Where the utterances of one run's batch stand: of the dialogues `chosen` `[m]` of a `table`, in r rows.

    The row of the dataset, int64 `[r]`, whether it is one, bool `[r]`, and their layout. As many turns are stepped
    through as the longest of the table has, with every dialogue at each step: so those of as many dialogues and rows
    have the same shapes, and nobody has to wait for a number.
    """
    turns = turns[chosen]  # [m, t]
    (m, t), there = turns.shape, turns >= 0
    cell, none = torch.arange(m * t, device=turns.device).view(m, t), (m - 1) * t
    place = torch.where(there, there.flatten().cumsum(0).view(m, t) - 1, r - 1)  # the row of each cell, or the last
    cells = torch.where(there, cell, none).flatten()
    cells = cells.new_full((r,), none).scatter(0, place.flatten(), cells)
    layout = RaggedLayout(there.sum(1).clamp(min=1))
    back = place.gather(1, (layout.lengths[:, None] - 1 - cell[0]) % t)
    layout.fixed, layout.longest, layout.cells = True, t, cells
    layout.steps = place.T.flatten(), torch.where(there, back, r - 1).T.flatten(), [m] * t
    return turns.flatten()[cells].clamp(min=0), cells < none, layout


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

    `values` `[utterances, dim]` are those of the whole dataset, by modality. `frame`, a model that may take wider ones
    than `models`, computes in their place: what its weights have more is zero, and stays so while those values are.
    `generators` are the random generators of their dropout, one per run: no run changes what another draws.
    """

    def __init__(
        self,
        frame: nn.Module,
        models: list[nn.Module],
        values: dict[str, Tensor],
        dropout: float,
        generators: list[torch.Generator],
    ) -> None:
        weights, buffers = stack_module_state(models)
        self.model, self.values = frame, values
        wide = {name: weight.shape[-1:] for name, weight in self.model.named_parameters()}
        self.weights: dict[str, Tensor] = {
            name: F.pad(w.detach(), [0, sum(wide[name]) - sum(w.shape[1:][-1:])]).requires_grad_()
            for name, w in weights.items()
        }
        self.buffers, self.dropout, self.generators = buffers, dropout, generators
        self._drawn = _Drawn()
        self.kept: Tensor | None = None  # what dropout keeps, bool [R, utterances, widths of its calls]
        for module in list(self.model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, self._drawn)

    def __call__(self, turns: Tensor, chosen: Tensor, r: int, training: bool = False) -> Found:
        """Logits `[R, r, K]` by head, of which row of the dataset each is `[R, r]`, and whether of any, bool `[R, r]`.

        Of a `batch_of` the `table` turns, on the models' device. In training dropout is by `kept`, if that is drawn.
        """
        self.model.train(training)
        kept = self.kept if training else None
        in_dims = None, None, 0, 0, 0, None if kept is None else 0
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap knows on every device
            return vmap(self._one, in_dims)(turns, r, self.weights, self.buffers, chosen, kept)

    def _one(self, turns: Tensor, r: int, weights: Any, buffers: Any, chosen: Tensor, kept: Tensor | None) -> Found:
        """One run, as it is under vmap."""
        rows, real, layout = lay_out(turns, chosen, r)
        if kept is not None:
            self._drawn.masks = [mask / (1.0 - self.dropout) for mask in kept[rows].split(self._drawn.widths, 1)]
        dtype, ones = next(iter(weights.values())).dtype, torch.ones_like(rows)
        inputs = {modality: Sequences(whole[rows].to(dtype), ones) for modality, whole in self.values.items()}
        batch = Batch(inputs, dialogues=layout.lengths)
        return functional_call(self.model, (weights, buffers), (batch, layout)), rows, real

    def draw(self, turns: Tensor, chosen: Tensor, r: int) -> None:
        """Draw what dropout keeps of every utterance in the epoch to come, in the place of what was drawn before.

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
