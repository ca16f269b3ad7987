"""Perspective: against its equations written plainly, dialogue by dialogue, and against torch's own padded modules."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ser.benchmarks.train import PlainPerspective
from ser.errors import WrongUse
from ser.tests.plain_layers import (  # noqa: F401
    DIMS,
    attend,
    both_ways,
    build,
    check_first_step,
    check_updates,
    double,
    linear,
    make_dialogues,
    parts,
    softmax,
)
from ser.train.models import FUSIONS
from ser.train.models.perspective import PerspectiveSettings
from ser.train.models.ragged import Batch

pytestmark = pytest.mark.usefixtures("double")
NAMES = [f"{position}-{method}" for position in ("ef", "mf", "lf", "lgf") for method in ("add", "concat", "at")]


def fuse(method: str, fusion: nn.Module, a: Tensor, t: Tensor) -> Tensor:
    """§2.3 for one utterance."""
    if method == "add":
        return a + t  # eq. 1
    if method == "concat":
        return fusion.w_f.weight @ torch.cat([a, t])  # eq. 2
    b = torch.stack([t, a], 1)  # columns
    return b @ softmax((fusion.w_vector.weight @ torch.tanh(fusion.w_matrix.weight @ b))[0])


def equations(model: nn.Module, batch: Batch, name: str) -> dict[str, Tensor]:
    """§2.2 and §2.3 for one dialogue after the other."""
    position, _, method = name.partition("-")

    def fused_at(where: str, x: dict[str, Tensor]) -> dict[str, Tensor]:
        if where != position:
            return x
        pairs = zip(x["audio"], x["text"], strict=True)
        return x | {"fused": torch.stack([fuse(method, model.fusion, a, t) for a, t in pairs])}

    found = []
    for dialogue in parts(batch, batch.dialogues.tolist()):
        x = {m: linear(model.features[m], rows.values).clamp(min=0) for m, rows in dialogue.inputs.items()}
        x = fused_at("ef", x)
        x = {s: both_ways(model.gru[s], rows) for s, rows in x.items()}
        x = fused_at("mf", x)
        x = {s: attend(model.attention[s], rows, rows) for s, rows in x.items()}
        x = fused_at("lf", x)
        x = {s: linear(model.logits[s], rows) for s, rows in x.items()}
        found.append(fused_at("lgf", x))
    logits = {stream: torch.cat([x[stream] for x in found]) for stream in found[0]}
    return {"logits": logits.pop("fused"), **logits} if method else {"logits": logits.popitem()[1]}


@pytest.mark.parametrize("name", [*NAMES, "audio:utterance", "text:utterance"])
def test_forward_is_the_papers_equations(name):
    model = build(name)
    batch = make_dialogues([3, 1, 5, 2], {m: DIMS[m] for m in FUSIONS[name].inputs})
    got, expected = model(batch), equations(model, batch, name)
    assert got.keys() == expected.keys()
    for head, logits in expected.items():
        torch.testing.assert_close(got[head], logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_training_follows_the_equations_step_by_step(name):
    fast = build(name)

    def slow_loss(model: nn.Module, batch: Batch) -> Tensor:
        outputs = equations(model, batch, name)
        return sum(F.cross_entropy(logits, batch.labels, reduction="sum") for logits in outputs.values())

    pairs = [(fast, packed_loss), (copy.deepcopy(fast), slow_loss)]
    check_updates(pairs, lambda: make_dialogues([3, 1, 4]), steps=3, weight_decay=1e-5)


def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    sizes = batch.dialogues.tolist()
    x = {m: pad_sequence(list(s.values.split(sizes)), batch_first=True) for m, s in batch.inputs.items()}
    truth = pad_sequence(list(batch.labels.split(sizes)), batch_first=True, padding_value=-1).flatten()
    heads = model(x, batch.dialogues).values()
    return sum(F.cross_entropy(h.flatten(0, 1), truth, reduction="sum", ignore_index=-1) for h in heads)


def packed_loss(model: nn.Module, batch: Batch) -> Tensor:
    return sum(F.cross_entropy(logits, batch.labels, reduction="sum") for logits in model(batch).values())


@pytest.mark.parametrize("sizes", [[3, 1, 8, 2], [150, 20, 60]], ids=["padded attention", "attention per dialogue"])
def test_twelve_updates_equal_the_plain_model(sizes):
    settings = {"d_model": 16, "gru_hidden": 8, "heads": 4, "dropout": 0.0}
    ours, plain = build("lgf-add", **settings), PlainPerspective(PerspectiveSettings(**settings), DIMS, 4)
    plain.load_state_dict(ours.state_dict())
    check_updates([(ours, packed_loss), (plain, plain_loss)], lambda: make_dialogues(sizes), weight_decay=1e-5)


def test_first_step_in_float32():
    torch.set_default_dtype(torch.float32)
    dims, settings = {"audio": 6373, "text": 768}, PerspectiveSettings(dropout=0.0)
    ours, plain = FUSIONS["lgf-add"].build(settings, dims, 4), PlainPerspective(settings, dims, 4)
    plain.load_state_dict(ours.state_dict())
    batch = make_dialogues([37, 12, 60, 25], dims)
    check_first_step([(ours, packed_loss), (plain, plain_loss)], batch)


def test_structure_is_the_papers():
    settings = PerspectiveSettings()
    stated = {"epochs": 150, "batch_size": 20, "lr": 1e-3, "lr_decay": 1e-5, "weight_decay": 1e-5, "dropout": 0.2}
    assert {name: getattr(settings, name) for name in stated} == stated
    model = FUSIONS["lgf-add"].build(settings, {"audio": 6373, "text": 768}, 4)
    assert model.features["audio"].weight.shape == (100, 6373)
    assert model.features["text"].weight.shape == (100, 768)
    for m in ("audio", "text"):
        assert model.gru[m].bidirectional
        assert model.gru[m].hidden_size * 2 == 100
        assert model.attention[m].heads == 4
        assert model.attention[m].out_proj.weight.shape == (100, 100)
        assert model.logits[m].weight.shape == (4, 100)
    concat = FUSIONS["lgf-concat"].build(settings, {"audio": 6373, "text": 768}, 4)
    assert concat.fusion.w_f.weight.shape == (4, 8)  # d × 2d, with d = K at position ④
    assert concat.fusion.w_f.bias is None


def test_single_loss_leaves_the_branches_behind_an_early_fusion_untrained():
    model, batch = build("ef-add"), make_dialogues([5, 3])
    F.cross_entropy(model(batch)["logits"], batch.labels).backward()
    untrained = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert untrained == {n for n, _ in model.named_parameters() if n.split(".")[0] != "features" and "fused" not in n}


# The released code ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["add", "at"])
def test_released_code(method):
    model, batch = build(f"lgf-{method}", released=True, dropout=0.2).eval(), make_dialogues([3, 5])
    x = {}
    for m in ("audio", "text"):
        h = []
        for dialogue in parts(batch, [3, 5]):
            rows = linear(model.features[m], dialogue.inputs[m].values)
            rows = both_ways(model.gru[m], rows.relu() if m == "audio" else rows)
            h.append(attend(model.attention[m], rows, rows, heads=1))
        x[m] = linear(model.logits[m], linear(model.dense[m], torch.cat(h)).tanh())
    if method == "add":
        z = x["audio"] + x["text"]
    else:
        mapped = torch.stack([linear(model.fusion.w_matrix, x[m]) for m in ("audio", "text")], 2)  # [n, K, 2]
        scores = torch.stack([mapped[..., i].clamp(min=0) @ model.fusion.w_vector for i in range(2)], 1)
        z = (softmax(scores)[:, None] * mapped).sum(2)
    got = model(batch)
    torch.testing.assert_close(got["logits"], softmax(z), rtol=0, atol=1e-10)
    torch.testing.assert_close(got["audio"].sum(1), torch.ones(8))  # probabilities
    assert "fusion.w_vector" not in dict(model.named_parameters())


@pytest.mark.parametrize("name", ["lgf-concat", "ef-add", "mf-at", "lf-add", "audio:utterance"])
def test_released_code_has_nothing_else(name):
    with pytest.raises(WrongUse, match="lgf-add and lgf-at only"):
        build(name, released=True)
