"""Packed rows: linear maps and norms never see where an utterance ends; what does see it stands
here.

Axis letters of all models (`[r, d]` is a shape):

    n  utterances of a batch     m  dialogues      K  classes
    r  rows: frames or tokens of all utterances    d  width      h  heads      t  places in the padded form
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ser.errors import WrongUse

Heads = frozenset[str] | None  # the outputs that are wanted; None is all
NOTHING = torch.empty(0)  # of speech that nothing is known of


@dataclass
class Sequences:
    """One modality of a batch: `values` `[r, dim]`, and the rows of each utterance, `lengths` int64
    `[n]`.

    At utterance level all lengths are one. An utterance that the model is to do without has none.
    With `rows` int64 `[r]`, on the CPU, these are the ones to be taken of more values, on a GPU.
    """

    values: Tensor
    lengths: Tensor
    rows: Tensor | None = None
    layout: "RaggedLayout | None" = None  # of the values, if it is known already


@dataclass
class Batch:
    """Utterances to train on or to classify."""

    inputs: dict[str, Sequences]  # by modality, "audio" or "text"
    dialogues: Tensor  # int64 [m]: utterances of each dialogue, in turn order; sums to n
    speakers: Tensor | None = (
        None  # int64 [n]: numbers of the speakers; None where nobody tells them apart
    )
    heads: Heads = None  # so that a model can leave out the rest
    truth: Tensor = NOTHING  # what the loss compares with: classes, int64 [n], or soft labels, ratings, … [n, …]
    utterances: Tensor = NOTHING  # int64 [n]: its row in the dataset

    def wants(self, *heads: str) -> bool:
        """Whether any of these outputs is wanted."""
        return self.heads is None or not self.heads.isdisjoint(heads)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())).lengths)

    @property
    def device(self) -> torch.device:
        """Where the batch is computed."""
        return next(iter(self.inputs.values())).values.device


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on `device`: to a GPU goes one copy, which nobody waits for, and any values that
    are not there yet.

    How many rows and turns there are is known on the CPU too, so that nobody has to wait for these
    numbers.
    """
    if (device := torch.device(device)) == batch.truth.device:
        return batch
    chosen = [x.rows for x in batch.inputs.values() if x.rows is not None]
    sent = [
        *chosen,
        *(x.lengths for x in batch.inputs.values()),
        batch.truth,
    ]  # int64 but for the last
    if device.type == "cuda":
        whole = send(torch.cat([x.flatten().view(torch.uint8) for x in sent]).pin_memory(), device)
        pieces = zip(whole.split([x.nbytes for x in sent]), sent, strict=True)
        *there, truth = (piece.view(x.dtype).view(x.shape) for piece, x in pieces)
    else:
        *there, truth = (x.to(device) for x in sent)
    found = iter(there)
    values = [
        send(x.values, device) if x.rows is None else x.values[next(found)]
        for x in batch.inputs.values()
    ]
    inputs = {
        m: Sequences(rows, x.lengths, layout=RaggedLayout(x.lengths, device, lengths))
        for (m, x), rows, lengths in zip(batch.inputs.items(), values, found, strict=True)
    }
    return replace(batch, inputs=inputs, truth=truth)


def send(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`. CUDA copies it aside first; Apple's GPU may read it later, so that must be
    waited for.
    """
    return x.to(device, non_blocking=device.type == "cuda")


LONG = 24  # rows of the longest sequence: above, one at a time beats a padded batch on a CPU


class RaggedLayout:
    """Where each of n sequences lies among r packed rows. Computed once per batch, used by every
    layer.

    Three sequences of lengths 2, 0 and 3, packed and padded (`pad`, and back by `unpad`):

        rows       a0 a1 c0 c1 c2          a0 a1 ·        n = 3
        owner       0  0  2  2  2          ·  ·  ·        longest = 3
        position    0  1  0  1  2          c0 c1 c2
        cells       0  1  6  7  8   (in the padded form, counted row by row)

    and in the order in which a recurrent layer steps through them (`steps`), longer sequences
    first:

        forwards   c0 a0 | c1 a1 | c2      2, 2 and 1 sequences are alive
        backwards  c2 a1 | c1 a0 | c0

    The lengths are known on the CPU, so that no layer has to wait for a GPU to return a number. The
    indices are made of them on `device`, where they may be `there` already.
    """

    fixed = False  # whether the shapes are those of many batches at once, which only padded forms can be given

    def __init__(
        self, lengths: Tensor, device: torch.device | None = None, there: Tensor | None = None
    ) -> None:
        self.lengths = lengths  # int64 [n]
        self.device = device or lengths.device
        if there is not None:
            self.there = there

    @cached_property
    def there(self) -> Tensor:
        """`lengths` on the device."""
        return send(self.lengths, self.device)

    @cached_property
    def longest(self) -> int:
        """Rows of the longest sequence; at least 1, so that the padded form always has a cell to
        attend to.
        """
        return max(self.lengths.tolist(), default=0) or 1

    @cached_property
    def owner(self) -> Tensor:
        """The sequence that each row belongs to; int64 `[r]`."""
        numbers = torch.arange(len(self.lengths), device=self.device)
        return numbers.repeat_interleave(self.there, output_size=int(self.lengths.sum()))

    @cached_property
    def position(self) -> Tensor:
        """The place of each row in its sequence, from 0; int64 `[r]`."""
        starts = self.there.cumsum(0) - self.there
        return torch.arange(len(self.owner), device=self.device) - starts[self.owner]

    @cached_property
    def cells(self) -> Tensor:
        """The place of each row in the flattened padded form; int64 `[r]`."""
        return self.owner * self.longest + self.position

    @cached_property
    def attended(self) -> Tensor:
        """What attention takes in: the cells that hold a row, and all of a sequence without; bool
        `[n, longest]`.
        """
        lengths = self.there[:, None]
        return (torch.arange(self.longest, device=self.device) < lengths) | (lengths == 0)

    @cached_property
    def even(self) -> bool:
        """Whether on a GPU the rows are their padded form, since all sequences are as long."""
        return (
            self.device.type == "cuda"
            and not self.fixed
            and set(self.lengths.tolist()) == {self.longest}
        )

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Rows `[r, …]` → `[n, longest, …]`."""
        if self.even:
            return x.unflatten(0, (len(self.lengths), self.longest))
        padded = x.new_full((len(self.lengths) * self.longest, *x.shape[1:]), value).index_copy(
            0, self.cells, x
        )
        return padded.unflatten(0, (len(self.lengths), self.longest))

    def unpad(self, x: Tensor) -> Tensor:
        """`[n, longest, …]` → rows `[r, …]`."""
        return x.flatten(0, 1) if self.even else x.flatten(0, 1).index_select(0, self.cells)

    def total(self, x: Tensor) -> Tensor:
        """The sum of each sequence's rows `[r, d]`; `[n, d]`, zeros for a sequence without rows."""
        if self.even:
            return self.pad(x).sum(1)
        return x.new_zeros(len(self.lengths), x.shape[1]).index_add(0, self.owner, x)

    def of_length(self, rows: int) -> "RaggedLayout":
        """The layout of as many sequences, of so many rows each."""
        return RaggedLayout(torch.full_like(self.lengths, rows), self.device)

    @cached_property
    def steps(self) -> tuple[Tensor, Tensor, list[int]]:
        """Rows in the order in which recurrent layers take them, and how many sequences are alive
        at each step.

        The first tensor, int64 `[r]`, walks all sequences forwards, the second backwards; within a
        step, longer sequences come first, so that those alive are always the first ones.
        """
        order, t = (
            self.lengths.argsort(descending=True, stable=True),
            torch.arange(self.longest)[:, None],
        )
        lengths, ends = self.lengths[order], self.lengths.cumsum(0)[order]
        alive = t < lengths  # [t, n]
        forwards, backwards = (ends - lengths + t)[alive], (ends - 1 - t)[alive]
        return send(forwards, self.device), send(backwards, self.device), alive.sum(1).tolist()


Rows = tuple[Tensor, RaggedLayout]  # packed rows `[r, …]`, and where they lie


def visible(batch: Batch, modality: str, dim: int) -> Rows:
    """The rows `[r, dim]` of one modality and their layout.

    Raises `WrongUse` if the features have another dimension than the model was built for.
    """
    x = batch.inputs[modality]
    if x.values.shape[1] != dim:
        raise WrongUse(
            f"this model was built for {modality} features of {dim} values, and got {x.values.shape[1]}"
        )
    return x.values, x.layout or RaggedLayout(x.lengths, x.values.device)


def vectors(batch: Batch, modality: str, dim: int) -> Tensor:
    """One modality's vectors `[n, dim]`; zeros, the mean of standardised features, for an utterance
    without.

    Raises `WrongUse` if the features have another dimension, or more than one row per utterance.
    """
    x, layout = visible(batch, modality, dim)
    if len(x) == len(batch):
        return x
    if layout.longest > 1:
        raise WrongUse(
            f"this model takes one {modality} vector per utterance, and got frames or tokens; pool them"
        )
    return layout.total(x)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: RaggedLayout,
    keys: RaggedLayout,
    dropout: float = 0.0,
    keep: float = 1.0,
) -> Tensor:
    """softmax(q kᵀ / √d_head) v within each sequence; `[r_q, h, d_head]`, `[r_k, h, d_head]` →
    `[r_q, h, d_head]`.

    Where a sequence has queries and no keys, the result is zero. `dropout` is that of the weights.
    With `keep` below 1, each head drops the keys that get the least weight from all queries
    together, up to this share (one at least) of a sequence's keys; the weights of the others stay
    as they are (key-sparse attention, Chen et al., ICASSP 2022).
    """
    if q.is_cpu and keys.longest > LONG and not keys.fixed:
        of_q, of_k = queries.lengths.tolist(), keys.lengths.tolist()
        parts = zip(q.split(of_q), k.split(of_k), v.split(of_k), strict=True)
        return torch.cat(
            [
                _attend(q_i[None], k_i[None], v_i[None], None, dropout, keep)[0]
                if len(k_i)
                else torch.zeros_like(q_i)
                for q_i, k_i, v_i in parts
            ]
        )
    mask = (
        None if keys.even else keys.attended[:, None, None]
    )  # without keys: the mean of the padding's zeros
    return queries.unpad(_attend(queries.pad(q), keys.pad(k), keys.pad(v), mask, dropout, keep))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, keep: float
) -> Tensor:
    q, k, v = (
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
    )  # [n, t, h, d_head] → [n, h, t, d_head]
    if keep >= 1.0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(
            1, 2
        )
    scores = q @ k.mT / math.sqrt(q.shape[3])
    mask = scores.new_ones(1, 1, 1, k.shape[2], dtype=torch.bool) if mask is None else mask
    weights = scores.masked_fill(~mask, -torch.inf).softmax(3)
    received = weights.sum(2)  # [n, h, t_k]: a query that is padding, zero, gives all keys the same
    kept = (mask.sum(3) * keep).long().clamp(min=1).expand(len(q), q.shape[1], -1)  # [n, h, 1]
    least = received.sort(2, descending=True).values.gather(2, kept - 1)
    weights = weights.masked_fill((received < least)[:, :, None], 0.0)
    return (F.dropout(weights, dropout) @ v).transpose(1, 2)


def mean_rows(x: Tensor, layout: RaggedLayout) -> Tensor:
    """The mean of each sequence's rows `[r, d]`; `[n, d]`, zeros for a sequence without rows."""
    return layout.total(x) / layout.there.clamp(min=1)[:, None]


def max_rows(x: Tensor, layout: RaggedLayout) -> Tensor:
    """The largest values among each sequence's rows `[r, d]`; `[n, d]`, zeros for a sequence
    without rows.
    """
    owner = layout.owner[:, None].expand_as(x)
    return x.new_zeros(len(layout.lengths), x.shape[1]).scatter_reduce(
        0, owner, x, "amax", include_self=False
    )


class SelfAttentionPooling(nn.Module):
    """α = softmax(w · x) over the rows of a sequence, z = Σ α x."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.score = nn.Linear(d, 1, bias=False)  # a bias would not change the softmax

    def forward(self, x: Tensor, layout: RaggedLayout) -> Tensor:
        """Rows `[r, d]` → `[n, d]`; zeros for a sequence without rows."""
        scores = self.score(x)[:, 0]
        scores = layout.pad(scores, torch.finfo(scores.dtype).min)
        weights = layout.unpad(scores.softmax(1))[:, None]
        return layout.total(weights * x)


def recurrent(layer: nn.Module, x: Tensor, layout: RaggedLayout) -> Tensor:
    """One of torch's recurrent layers over each sequence of packed rows `[r, d]`, without padding;
    `[r, 2 hidden]`.

    In the precision of its weights: under autocast to bfloat16, torch runs these layers in float16
    on a GPU.
    """
    if not len(x):  # over a row that nobody sees, so that the gradients are zeros and not None
        return recurrent(
            layer, F.pad(x, (0, 0, 0, 1)), RaggedLayout(torch.ones(1, dtype=torch.int64), x.device)
        )[:0]
    forwards, _, alive = layout.steps
    rows = x.index_select(0, forwards).to(next(layer.parameters()).dtype)
    with without_autocast(x.device.type):
        y = layer(PackedSequence(rows, torch.tensor(alive)))[0].data
    return torch.empty_like(y).index_copy(0, forwards, y)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Compute in the precision of what is given, on a type of device that torch may not have
    autocast for.
    """
    return (
        torch.autocast(device, enabled=False)
        if torch.amp.is_autocast_available(device)
        else nullcontext()
    )


def concatenate(a: Tensor, of_a: RaggedLayout, b: Tensor, of_b: RaggedLayout) -> Rows:
    """The rows of a and b utterance by utterance, `[r_a + r_b, d]`, and their layout."""
    order = torch.cat([of_a.owner, of_b.owner]).argsort(stable=True)
    both = RaggedLayout(of_a.lengths + of_b.lengths, of_a.device, of_a.there + of_b.there)
    return torch.cat([a, b]).index_select(0, order), both
