"""Small models and batches of each fusion, and the plain layers of `ser export` for one sequence `[t, d]`.

What the fast layers are held against.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.export import plain_layers
from ser.train.models import FUSIONS, Fusion, with_layer_sums
from ser.train.models.ragged import Batch, Sequences

DIMS = {"audio": 9, "text": 7}
LAYERS = 3
# Each fusion as it is, and one of each kind of settings on a learned sum of layers of the audio, which it does not see.
CASES: dict[str, Fusion] = dict(FUSIONS)
for _name, _fusion in {one.settings: (name, one) for name, one in FUSIONS.items() if "audio" in one.inputs}.values():
    CASES[f"{_name} on layers"] = with_layer_sums(_fusion, {"audio": {"sums": [[LAYERS, DIMS["audio"]]]}})
# Of Perspective's twelve, each position and each method: all of them share what is around their fused rows.
ALIKE = {"ef-concat", "ef-at", "mf-add", "mf-at", "lf-add", "lf-concat"}
DIFFERENT = [name for name in FUSIONS if name not in ALIKE]
# Small sizes, by the names that the fusions' settings share.
TINY: dict[str, Any] = {"dropout": 0.0, "d_model": 8, "heads": 2, "queries": 3, "feed_forward": 2, "encoder_depth": 2}
TINY |= {"cross_depth": 2, "dropout_classifier": 0.0, "turns": 4, "pool": 2}
TINY |= {"decoder_depth": 2, "gru_hidden": 4, "lstm_hidden": 4, "dense": 4, "frames": 40, "channels": 2, "hidden": 5}
FRAMES, TOKENS = [5, 1, 9, 4], [3, 2, 1, 6]
LONG = [5, 50, 1, 20]  # more frames than ragged.LONG: attention goes utterance by utterance
short_and_long = pytest.mark.parametrize("frames", [FRAMES, LONG], ids=["short", "long"])


def build(name: str, dims: dict[str, int] = DIMS, classes: int = 4, **settings: Any) -> nn.Module:
    """The fusion at small sizes, without dropout."""
    fusion = CASES[name]
    known = {field.name for field in dataclasses.fields(fusion.settings)}
    chosen = fusion.settings(**{key: value for key, value in (TINY | settings).items() if key in known})
    return fusion.build(chosen, {m: dims[m] for m in fusion.inputs}, classes).to(torch.get_default_dtype())


def widths(name: str) -> dict[str, int]:
    """Columns of the rows that a case takes, by modality."""
    return DIMS if name in FUSIONS else {**DIMS, "audio": LAYERS * DIMS["audio"]}


def make_batch(name: str, frames: list[int] = FRAMES, dims: dict[str, int] | None = None) -> Batch:
    """Four random utterances of what the fusion takes: frames and tokens, or vectors in dialogues of 3 and 1 (or 4)."""
    fusion, dims = CASES[name], dims or widths(name)
    vectors = fusion.level == "vector"
    lengths = {"audio": [1] * 4, "text": [1] * 4} if vectors else {"audio": frames, "text": TOKENS}
    inputs = {m: Sequences(torch.randn(sum(lengths[m]), dims[m]), torch.tensor(lengths[m])) for m in fusion.inputs}
    dialogues = torch.tensor({"utterance": [1] * 4, "dialogue": [4] if "icon" in name else [3, 1]}[fusion.unit])
    speakers = torch.tensor([0, 0, 1, 0])  # so that everybody's turns have a past of two
    return Batch(inputs, torch.randint(4, (4,)), torch.arange(4), dialogues, speakers)


def make_dialogues(sizes: list[int], dims: dict[str, int] = DIMS) -> Batch:
    """Vectors of dialogues of these many turns."""
    n = sum(sizes)
    inputs = {m: Sequences(torch.randn(n, dim), torch.ones(n, dtype=torch.int64)) for m, dim in dims.items()}
    return Batch(inputs, torch.randint(4, (n,)), torch.arange(n), torch.tensor(sizes), torch.arange(n) % 2)


def parts(batch: Batch, sizes: list[int]) -> list[Batch]:
    """The batch cut into batches of so many utterances."""
    cut, start = [], 0
    for size in sizes:
        inputs = {}
        for m, x in batch.inputs.items():
            ends = [0, *x.lengths.cumsum(0).tolist()]
            inputs[m] = Sequences(x.values[ends[start] : ends[start + size]], x.lengths[start : start + size])
        rows = slice(start, start + size)
        turns = torch.tensor([size]), None if batch.speakers is None else batch.speakers[rows]
        cut.append(Batch(inputs, batch.truth[rows], batch.utterances[rows], *turns))
        start += size
    return cut


def without(batch: Batch, hidden: dict[str, Tensor]) -> Batch:
    """The batch whose utterances have no rows of what is hidden, bool `[n]` by modality."""
    inputs = dict(batch.inputs)
    for m, which in hidden.items():
        x = inputs[m]
        inputs[m] = Sequences(x.values[~which.repeat_interleave(x.lengths)], x.lengths * ~which)
    return dataclasses.replace(batch, inputs=inputs)


def utterances(batch: Batch) -> list[dict[str, Tensor]]:
    """The rows of each utterance, by modality."""
    return [{m: x.values for m, x in one.inputs.items()} for one in parts(batch, [1] * len(batch))]


def packed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the cross-entropies of all heads and utterances."""
    return sum(F.cross_entropy(logits, batch.truth, reduction="sum") for logits in model(batch).values())


def check_updates(
    ours: nn.Module, plain: nn.Module, plain_loss: Callable, make: Callable, steps: int = 12, decay: float = 0.0
) -> None:
    """Two models, the plain one with its loss of a model and a batch, have the same losses at every training step."""
    pairs = [(ours, packed_loss), (plain, plain_loss)]
    adams = [torch.optim.Adam(model.parameters(), 1e-3, weight_decay=decay) for model, _ in pairs]
    for _ in range(steps):
        batch, losses = make(), []
        for adam, (model, loss_of) in zip(adams, pairs, strict=True):
            loss = loss_of(model, batch)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """W x + b of each row."""
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def softmax(x: Tensor) -> Tensor:
    """Of the last axis."""
    return x.exp() / x.exp().sum(-1, keepdim=True)


def norm(layer: nn.Module, x: Tensor) -> Tensor:
    """Layer norm of each row."""
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(1, keepdim=True) + layer.eps) * layer.weight + layer.bias


def feed_forward(layer: nn.Module, x: Tensor) -> Tensor:
    """Vaswani et al. 2017, §3.3."""
    return linear(layer.linear2, linear(layer.linear1, x).clamp(min=0))


def attend(layer: nn.Module, x: Tensor, memory: Tensor, values: Tensor | None = None) -> Tensor:
    """Vaswani et al. 2017, §3.2.2: rows of x `[t, d]` attend to those of memory, and take the values of others."""
    of_each = zip(
        (x, memory, memory if values is None else values),
        layer.in_proj_weight.chunk(3),
        layer.in_proj_bias.chunk(3),
        strict=True,
    )
    q, k, v = (F.linear(rows, w, b).unflatten(1, (layer.heads, -1)) for rows, w, b in of_each)
    found = plain_layers.attention(q, k, v, alone(x), alone(memory), keep=layer.keep)
    return linear(layer.out_proj, found.flatten(1))


def recurrent(layer: nn.RNNBase, x: Tensor) -> Tensor:
    """A GRU or LSTM by torch itself: `[t, d]` → `[t, 2 H]`, or `[t, H]` in one direction."""
    return plain_layers.recurrent(layer, x, alone(x))


def alone(x: Tensor) -> plain_layers.RaggedLayout:
    """The layout of rows that are one sequence."""
    return plain_layers.RaggedLayout(torch.tensor([len(x)]))
