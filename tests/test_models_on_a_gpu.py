"""What a GPU is given, tried without one: torch's meta device has shapes and no values.

Whoever asks it for a number, as every wait for a GPU does, fails there, and so does whoever mixes devices.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from ser.tests.tiny_store import make_store
from ser.train.fit import make_optimiser
from ser.train.inputs import Inputs
from ser.train.load import load_dataset
from ser.train.losses import LOSSES
from ser.train.models import FUSIONS
from ser.train.models.packed import Plan, attention, ragged_attention
from ser.train.plan import Plan as RunPlan
from ser.train.settings import parse_settings

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
    plan = RunPlan(fusion, settings, training, loss="perspective" if fusion.stacks and len(features) == 2 else "single")
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
    ("queries", "keys"), [([5, 0, 7, 1], [5, 0, 7, 1]), ([3, 3, 3], [9, 1, 40]), ([2, 4], [1, 1])], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_ragged_attention_is_attention(queries: list[int], keys: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plans = Plan(torch.tensor(queries)), Plan(torch.tensor(keys))
    x = [torch.randn(n, 2, 8, dtype=dtype, requires_grad=True) for n in (sum(queries), sum(keys), sum(keys))]
    ours, theirs = (each(*x, *plans) for each in (ragged_attention, attention))
    slope = torch.randn_like(theirs)
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 4e-2}
    torch.testing.assert_close(ours, theirs, **tolerance)
    for ours_, theirs_ in zip(torch.autograd.grad(ours, x, slope), torch.autograd.grad(theirs, x, slope), strict=True):
        torch.testing.assert_close(ours_, theirs_, **tolerance)


def test_plans_are_made_where_the_lengths_are() -> None:
    plan = Plan(torch.tensor([2, 0, 3]), torch.device("meta"))
    assert (plan.sizes, plan.longest, plan.steps[2]) == ([2, 0, 3], 3, [2, 2, 1])
    there = (plan.owner, plan.position, plan.cells, plan.real, plan.attended, plan.first(2), *plan.steps[:2])
    assert {x.device.type for x in there} == {"meta"}
