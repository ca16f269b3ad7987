"""What a GPU is given, tried without one: torch's meta device has shapes and no values.

Whoever asks it for a number, as every wait for a GPU does, fails there, and so does whoever mixes devices.
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nested._internal import sdpa

from ser.tests.tiny_store import make_store
from ser.train import fit_many
from ser.train.data import Inputs, load_dataset
from ser.train.fit import LOSSES, make_optimiser
from ser.train.models import FUSIONS
from ser.train.models.layers import Attention
from ser.train.models.ragged import RaggedLayout, attention, ragged_attention
from ser.train.models.stacked import Stack
from ser.train.settings import TrainConfig, parse_settings
from ser.train.splits import Fold

FEATURES = {"sequence": {"audio": "hubert", "text": "mpnet"}, "vector": {"audio": "is13", "text": "bert"}}
TINY = ("d_model=16", "heads=2", "gru_hidden=8", "lstm_hidden=8", "frames=48", "channels=2", "queries=3")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("tiny")).path


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_a_training_step_asks_the_gpu_for_nothing(store: Path, name: str) -> None:
    fusion = FUSIONS[name]
    features = {**FEATURES[fusion.level], **({"audio": "logmel"} if name.startswith("cnn") else {})}
    data, fusion = load_dataset(store, "+".join(features[m] for m in fusion.inputs), name)
    known = set(fusion.settings.__dataclass_fields__)
    settings, training = parse_settings(fusion, [s for s in TINY if s.partition("=")[0] in known])
    plan = TrainConfig(
        fusion, settings, training, loss="perspective" if fusion.stacks and len(features) == 2 else "single"
    )
    there = data.on("meta")
    assert there is data.on("meta") and data.on("cpu") is data
    model = fusion.build(settings, data.dims, len(data.utterances.classes)).to("meta")
    for stage in fusion.stages:
        optimiser = make_optimiser(dict(model.named_parameters()), stage, settings)
        [batch, *_] = there.batches(np.arange(12), fusion.unit, 4, {})
        assert {x.values.device.type for x in batch.inputs.values()} == {batch.device.type} == {"meta"}
        if fusion.masking:
            batch.hidden = fusion.masking(settings).hide(len(batch), 0, 10, torch.Generator().manual_seed(0))
        batch.heads = plan.heads(stage)
        outputs = model(batch)
        loss = LOSSES["single"]({"logits": outputs[stage.output]}, batch, "sum")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with pytest.raises(RuntimeError):
            loss.item()  # the meta device does refuse


def test_what_travels_is_the_stored_dtype() -> None:
    stored = Inputs(torch.randn(9, 3).half(), np.array([0, 2, 5, 9]))
    there = stored.on(torch.device("meta"))
    taken = there.take(np.array([2, 0]))
    assert (taken.values.dtype, taken.values.shape, taken.values.device.type) == (torch.float16, (6, 3), "meta")
    assert taken.lengths.tolist() == [4, 2] and taken.lengths.device.type == "cpu"


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ([5, 0, 7, 1], [5, 0, 7, 1]),
        ([3, 3, 3], [9, 1, 40]),
        ([2, 4], [1, 1]),
        ([0, 5], [0, 5]),
        ([2, 3], [0, 4]),
        ([0, 0], [0, 0]),
        ([2], [0]),
    ],
    ids=str,
)
@pytest.mark.parametrize(("width", "heads"), [(100, 4), (32, 2), (768, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_ragged_attention_is_attention(
    queries: list[int],
    keys: list[int],
    width: int,
    heads: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what torch is handed is what its kernels for a GPU take: it says so itself, where it chooses among them."""
    torch.manual_seed(0)
    layer, plans = (
        Attention(width, heads).to(dtype),
        (RaggedLayout(torch.tensor(queries)), RaggedLayout(torch.tensor(keys))),
    )
    x = torch.randn(sum(queries), width, dtype=dtype, requires_grad=True)
    memory = torch.randn(sum(keys), width, dtype=dtype, requires_grad=True)
    (q,), (k, v) = layer.project(x, slice(1)).unbind(1), layer.project(memory, slice(1, 3)).unbind(1)
    theirs = attention(q, k, v, *plans)
    handed = []
    real = F.scaled_dot_product_attention

    def looked_at(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        handed.append(torch._C._SDPAParams(q, k, v, None, 0.0, False, False))
        return real(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", looked_at)
    ours = ragged_attention(q, k, v, *plans)
    assert len(handed) == any(a and b for a, b in zip(queries, keys, strict=True))
    for params in handed:
        assert sdpa._can_use_flash_sdpa_jagged(params) and sdpa._can_use_efficient_sdpa_jagged(params)
    slope = torch.randn_like(theirs)
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 4e-2}
    torch.testing.assert_close(ours, theirs, **tolerance)
    if handed:
        grads = [torch.autograd.grad(each, (x, memory), slope, retain_graph=True) for each in (ours, theirs)]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("fusion", ["lgf-at", "ef-add", "mf-concat", "audio:utterance"])
def test_a_step_of_many_runs_asks_the_gpu_for_nothing(
    store: Path, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its generators do not exist there: dropout is drawn elsewhere, and has its own tests."""

    def draw(self: Stack, counts: list[int], r: int, device: torch.device) -> list[Tensor]:
        return [torch.ones(len(counts), r, width, device=device) for width in self._drawn.widths]

    monkeypatch.setattr(Stack, "_draw", draw)
    monkeypatch.setattr(fit_many, "_dropping", lambda plan: torch.Generator())
    data, found = load_dataset(store, "is13+bert" if "-" in fusion else "is13", fusion)
    settings, training = parse_settings(found, ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2"))
    losses = ("single", "perspective") if "-" in fusion else ("single",)
    plans = [
        TrainConfig(found, settings, training, loss=loss, seed=seed, device="meta", select="last")
        for loss in losses
        for seed in (0, 1)
    ]
    monkeypatch.setattr(TrainConfig, "autocast", lambda plan: contextlib.nullcontext())  # the meta device has none
    fold = Fold("1", np.arange(24), np.arange(0), np.arange(0))
    many = fit_many._Together(data, fold, plans)
    with pytest.raises(RuntimeError) as asked:
        many._train(0)
    assert [entry.name for entry in asked.traceback][-1] == "_train", "asked at the end of the epoch, and there alone"
    assert "tolist" in str(asked.traceback[-1].statement)


def test_plans_are_made_where_the_lengths_are() -> None:
    plan = RaggedLayout(torch.tensor([2, 0, 3]), torch.device("meta"))
    assert (plan.sizes, plan.longest, plan.steps[2]) == ([2, 0, 3], 3, [2, 2, 1])
    there = (plan.owner, plan.position, plan.cells, plan.real, plan.attended, plan.first(2), *plan.steps[:2])
    assert {x.device.type for x in there} == {"meta"}
