"""Packed rows: linear maps and norms never see where an utterance ends; what does see it stands here."""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ser.cache.errors import WrongUse
from ser.train.batch import Batch

LONG = 24  # rows of the longest sequence: above, one at a time beats a padded batch on a CPU


class Plan:
    """Where each of n sequences lies among r packed rows. Computed once per batch, used by every layer."""

    fixed = False  # whether the shapes are those of many batches at once, which only padded forms can be given

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths  # int64 [n]

    @cached_property
    def sizes(self) -> list[int]:
        """`lengths` as numbers."""
        return self.lengths.tolist()

    @cached_property
    def longest(self) -> int:
        """Rows of the longest sequence; at least 1, so that the padded form always has a cell to look at."""
        return max(self.sizes, default=0) or 1

    @cached_property
    def owner(self) -> Tensor:
        """The sequence that each row belongs to; int64 `[r]`."""
        n = torch.arange(len(self.lengths), device=self.lengths.device)
        return n.repeat_interleave(self.lengths, output_size=sum(self.sizes))

    @cached_property
    def position(self) -> Tensor:
        """The place of each row in its sequence, from 0; int64 `[r]`."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.owner), device=starts.device) - starts[self.owner]

    @cached_property
    def real(self) -> Tensor:
        """Which cells of the padded form hold a row; bool `[n, longest]`."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    @cached_property
    def cells(self) -> Tensor:
        """The place of each row in the flattened padded form; int64 `[r]`."""
        return self.owner * self.longest + self.position

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Rows `[r, …]` → `[n, longest, …]`."""
        padded = x.new_full((len(self.lengths) * self.longest, *x.shape[1:]), value).index_copy(0, self.cells, x)
        return padded.unflatten(0, (len(self.lengths), self.longest))

    def unpad(self, x: Tensor) -> Tensor:
        """`[n, longest, …]` → rows `[r, …]`."""
        return x.flatten(0, 1).index_select(0, self.cells)

    def repeat(self, times: int) -> "Plan":
        """The plan of `times` such batches, one after the other."""
        return Plan(self.lengths.repeat(times))

    @cached_property
    def steps(self) -> tuple[Tensor, Tensor, list[int]]:
        """Rows in the order in which recurrent layers take them, and how many sequences are alive at each step.

        The first tensor, int64 `[r]`, walks all sequences forwards, the second backwards; within a step, longer
        sequences come first, so that those alive are always the first ones.
        """
        rank = self.lengths.argsort(descending=True, stable=True).argsort()
        forwards = (self.position * len(self.lengths) + rank[self.owner]).argsort()
        owner, position = self.owner[forwards], self.position[forwards]
        backwards = forwards + self.lengths[owner] - 1 - 2 * position
        return forwards, backwards, self.real.sum(0).tolist()


def visible(batch: Batch, modality: str, dim: int) -> tuple[Tensor, Plan]:
    """The rows `[r, dim]` of one modality and their plan, without those of utterances for which it is hidden.

    Leaving a row out is what an attention mask of zero does, and costs nothing. Raises `WrongUse` if the features
    have another dimension than the model was built for.
    """
    x = batch.inputs[modality]
    check_width(x.values, modality, dim)
    hidden = batch.hidden.get(modality)
    if hidden is None:
        return x.values, Plan(x.lengths)
    return x.values[~hidden[Plan(x.lengths).owner]], Plan(x.lengths * ~hidden)


def vectors(batch: Batch, modality: str, dim: int) -> Tensor:
    """One modality's vectors `[n, dim]`; zeros, the mean of standardised features, where it is hidden.

    Raises `WrongUse` if the features have another dimension, or more than one row per utterance.
    """
    x = batch.inputs[modality]
    check_width(x.values, modality, dim)
    if len(x.values) != len(batch):
        raise WrongUse(f"this model takes one {modality} vector per utterance, and got frames or tokens; pool them")
    hidden = batch.hidden.get(modality)
    return x.values if hidden is None else x.values.masked_fill(hidden[:, None], 0.0)


def check_width(x: Tensor, modality: str, dim: int) -> None:
    """Raise `WrongUse` unless the rows of `x` have `dim` values."""
    if x.shape[1] != dim:
        raise WrongUse(f"this model was built for {modality} features of {dim} values, and got {x.shape[1]}")


def check_heads(width: int, heads: int) -> None:
    """Raise `WrongUse` unless attention of that width splits into that many heads."""
    if width % heads:
        raise WrongUse(f"attention of width {width} cannot be split into {heads} heads; change --set heads=…")


def attention(q: Tensor, k: Tensor, v: Tensor, queries: Plan, keys: Plan, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √d_head) v within each sequence; `[r_q, h, d_head]`, `[r_k, h, d_head]` → `[r_q, h, d_head]`.

    Where a sequence has queries and no keys, the result is zero. `dropout` is that of the weights.
    """
    if q.is_cpu and keys.longest > LONG and not keys.fixed:
        parts = zip(q.split(queries.sizes), k.split(keys.sizes), v.split(keys.sizes), strict=True)
        return torch.cat(
            [
                _attend(q_i[None], k_i[None], v_i[None], None, dropout)[0] if len(k_i) else torch.zeros_like(q_i)
                for q_i, k_i, v_i in parts
            ]
        )
    mask = (keys.real | (keys.lengths == 0)[:, None])[:, None, None]  # without keys: the mean of the padding's zeros
    return queries.unpad(_attend(queries.pad(q), keys.pad(k), keys.pad(v), mask, dropout))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    # [n, t, h, d_head] → [n, h, t, d_head] and back
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2)


class SelfAttentionPooling(nn.Module):
    """α = softmax(w · x) over the rows of a sequence, z = Σ α x."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.score = nn.Linear(d, 1, bias=False)  # a bias would not change the softmax

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        """Rows `[r, d]` → `[n, d]`; zeros for a sequence without rows."""
        scores = self.score(x)[:, 0]
        scores = plan.pad(scores, torch.finfo(scores.dtype).min)
        weights = plan.unpad(scores.softmax(1))[:, None]
        return x.new_zeros(len(plan.lengths), x.shape[1]).index_add(0, plan.owner, weights * x)


def recurrent(layer: nn.RNNBase, x: Tensor, plan: Plan) -> Tensor:
    """One of torch's recurrent layers over each sequence of packed rows `[r, d]`, without padding; `[r, 2 hidden]`."""
    if not len(x):
        return x.new_zeros(0, layer.hidden_size * (2 if layer.bidirectional else 1))
    forwards, _, alive = plan.steps
    y = layer(PackedSequence(x.index_select(0, forwards), torch.tensor(alive)))[0].data
    return torch.empty_like(y).index_copy(0, forwards, y)


def interleave(a: Tensor, a_plan: Plan, b: Tensor, b_plan: Plan) -> tuple[Tensor, Plan]:
    """The rows of a and b concatenated utterance by utterance, `[r_a + r_b, d]`, and their plan."""
    pairs = zip(a.split(a_plan.sizes), b.split(b_plan.sizes), strict=True)
    return torch.cat([rows for pair in pairs for rows in pair]), Plan(a_plan.lengths + b_plan.lengths)
