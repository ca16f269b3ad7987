"""Perspective: against its equations written plainly, dialogue by dialogue, and against torch's own padded modules."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ser.benchmarks.train import PlainPerspective
from ser.errors import WrongUse
from ser.train.models import FUSIONS
from ser.train.models.perspective import Fuse, PerspectiveSettings
from ser.train.models.ragged import Batch, Sequences

DIMS = {"audio": 9, "text": 7}
SMALL = PerspectiveSettings(d_model=6, gru_hidden=4, heads=2, dropout=0.0)
NAMES = [f"{position}-{method}" for position in ("ef", "mf", "lf", "lgf") for method in ("add", "concat", "at")]


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_batch(dialogues: list[int], dims: dict[str, int] = DIMS) -> Batch:
    n = sum(dialogues)
    inputs = {m: Sequences(torch.randn(n, dim), torch.ones(n, dtype=torch.int64)) for m, dim in dims.items()}
    return Batch(inputs, torch.randint(4, (n,)), torch.arange(n), torch.tensor(dialogues))


def build(name: str, settings: PerspectiveSettings = SMALL, dims: dict[str, int] = DIMS) -> nn.Module:
    return FUSIONS[name].build(settings, dims, 4).to(torch.get_default_dtype())


# The paper, written plainly -------------------------------------------------------------------------------------------


def gru_one_way(x: list[Tensor], w_i: Tensor, w_h: Tensor, b_i: Tensor, b_h: Tensor) -> list[Tensor]:
    width = w_h.shape[1]
    h, out = torch.zeros(width), []
    for x_t in x:
        i, j = w_i @ x_t + b_i, w_h @ h + b_h
        r = 1 / (1 + torch.exp(-(i[:width] + j[:width])))
        z = 1 / (1 + torch.exp(-(i[width : 2 * width] + j[width : 2 * width])))
        n = torch.tanh(i[2 * width :] + r * j[2 * width :])
        h = (1 - z) * n + z * h
        out.append(h)
    return out


def gru_both_ways(gru: nn.GRU, x: list[Tensor]) -> list[Tensor]:
    forwards = gru_one_way(x, gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
    backwards = gru_one_way(
        x[::-1], gru.weight_ih_l0_reverse, gru.weight_hh_l0_reverse, gru.bias_ih_l0_reverse, gru.bias_hh_l0_reverse
    )
    return [torch.cat([f, b]) for f, b in zip(forwards, backwards[::-1], strict=True)]


def attend(layer: nn.Module, x: list[Tensor], heads: int) -> list[Tensor]:
    d = len(x[0])
    w, b, size = layer.in_proj_weight, layer.in_proj_bias, d // heads
    q, k, v = ([w[i * d : (i + 1) * d] @ x_t + b[i * d : (i + 1) * d] for x_t in x] for i in range(3))
    out = []
    for i in range(len(x)):
        context = []
        for h in range(heads):
            cut = slice(h * size, (h + 1) * size)
            scores = torch.stack([q[i][cut] @ k_j[cut] / size**0.5 for k_j in k]).exp()
            alpha = scores / scores.sum()
            context.append(sum(a * v_j[cut] for a, v_j in zip(alpha, v, strict=True)))
        out.append(layer.out_proj.weight @ torch.cat(context) + layer.out_proj.bias)
    return out


def fuse(method: str, fusion: nn.Module, a: Tensor, t: Tensor) -> Tensor:
    if method == "add":
        return a + t  # eq. 1
    if method == "concat":
        return fusion.w_f.weight @ torch.cat([a, t])  # eq. 2
    b = torch.stack([t, a], 1)  # columns
    p = torch.tanh(fusion.w_matrix.weight @ b)
    scores = (fusion.w_vector.weight @ p)[0].exp()
    return b @ (scores / scores.sum())


def equations(model: nn.Module, batch: Batch, name: str, heads: int = 2) -> dict[str, Tensor]:
    """§2.2 and §2.3 for one dialogue after the other, one utterance after the other."""
    position, _, method = name.partition("-")
    modalities = ["audio", "text"] if method else [position.partition(":")[0]]
    logits: dict[str, list[Tensor]] = {}
    start = 0
    for length in batch.dialogues.tolist():
        x: dict[str, list[Tensor]] = {}
        for m in modalities:
            layer = model.features[m]
            rows = batch.inputs[m].values[start : start + length]
            x[m] = [torch.clamp(layer.weight @ u + layer.bias, min=0) for u in rows]
        start += length

        def fused_at(where: str, x: dict[str, list[Tensor]]) -> None:
            if where == position:
                pairs = zip(x["audio"], x["text"], strict=True)
                x["fused"] = [fuse(method, getattr(model, "fusion", nn.Module()), a, t) for a, t in pairs]

        fused_at("ef", x)
        x = {s: gru_both_ways(model.gru[s], rows) for s, rows in x.items()}
        fused_at("mf", x)
        x = {s: attend(model.attention[s], rows, heads) for s, rows in x.items()}
        fused_at("lf", x)
        x = {s: [model.logits[s].weight @ u + model.logits[s].bias for u in rows] for s, rows in x.items()}
        fused_at("lgf", x)
        for stream, rows in x.items():
            logits.setdefault(stream, []).extend(rows)
    out = {stream: torch.stack(rows) for stream, rows in logits.items()}
    return (
        {"logits": out["fused"], "audio": out["audio"], "text": out["text"]}
        if method
        else {"logits": out[modalities[0]]}
    )


@pytest.mark.parametrize("name", [*NAMES, "audio:utterance", "text:utterance"])
def test_forward_is_the_papers_equations(name):
    model = build(name)
    batch = make_batch([3, 1, 5, 2], DIMS)
    got, expected = model(batch), equations(model, batch, name)
    assert got.keys() == expected.keys()
    for head, logits in expected.items():
        torch.testing.assert_close(got[head], logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_training_follows_the_equations_step_by_step(name):
    fast = build(name)
    slow = copy.deepcopy(fast)
    adams = [torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-5) for model in (fast, slow)]
    for _ in range(3):
        batch = make_batch([3, 1, 4])
        losses = []
        for adam, outputs in zip(adams, (fast(batch), equations(slow, batch, name)), strict=True):
            loss = sum(F.cross_entropy(logits, batch.labels, reduction="sum") for logits in outputs.values())
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)


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
    settings = dataclasses.replace(SMALL, d_model=16, gru_hidden=8, heads=4)
    ours = build("lgf-add", settings)
    plain = PlainPerspective(settings, DIMS, 4)
    plain.load_state_dict(ours.state_dict())
    adams = [torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-5) for model in (ours, plain)]
    first = None
    for _ in range(12):
        batch = make_batch(sizes)
        losses = []
        for adam, loss in zip(adams, (packed_loss(ours, batch), plain_loss(plain, batch)), strict=True):
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        first = first or losses[0]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0] != first


def test_first_step_in_float32():
    torch.set_default_dtype(torch.float32)
    dims = {"audio": 6373, "text": 768}
    settings = PerspectiveSettings(dropout=0.0)
    ours, plain = build("lgf-add", settings, dims), PlainPerspective(settings, dims, 4)
    plain.load_state_dict(ours.state_dict())
    batch = make_batch([37, 12, 60, 25], dims)
    a, b = packed_loss(ours, batch), plain_loss(plain, batch)
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    a.backward()
    b.backward()
    theirs = dict(plain.named_parameters())
    for name, p in ours.named_parameters():
        q = theirs[name]
        assert torch.linalg.norm(p.grad - q.grad) <= 1e-4 * torch.linalg.norm(q.grad) + 1e-6, name


@pytest.mark.parametrize("name", ["ef-at", "lgf-add", "text:utterance"])
def test_dialogues_do_not_see_each_other(name):
    model = build(name)
    batch = make_batch([4, 2, 6])
    alone, start = [], 0
    for length in (4, 2, 6):
        inputs = {
            m: Sequences(s.values[start : start + length], s.lengths[start : start + length])
            for m, s in batch.inputs.items()
        }
        one = Batch(inputs, batch.labels[start : start + length], torch.arange(length), torch.tensor([length]))
        alone.append(model(one)["logits"])
        start += length
    torch.testing.assert_close(model(batch)["logits"], torch.cat(alone), rtol=0, atol=1e-12)


def test_structure_is_the_papers():
    settings = PerspectiveSettings()
    stated = {
        "epochs": 150,
        "batch_size": 20,
        "lr": 0.001,
        "lr_decay": 0.00001,
        "weight_decay": 0.00001,
        "dropout": 0.2,
    }
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
    assert all(f.metadata["source"] and f.metadata["help"] for f in dataclasses.fields(settings))


@pytest.mark.parametrize(
    ("position", "streams"),
    [
        ("ef", {"gru", "attention", "logits"}),
        ("mf", {"attention", "logits"}),
        ("lf", {"logits"}),
        ("lgf", set()),
    ],
)
def test_what_stands_behind_the_fusion_is_there_a_third_time(position, streams):
    model = build(f"{position}-add")
    assert {name for name in ("gru", "attention", "logits") if "fused" in getattr(model, name)} == streams


@pytest.mark.parametrize("name", NAMES)
def test_perspective_loss_reaches_every_parameter(name):
    model = build(name)
    packed_loss(model, make_batch([5, 3])).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.abs().max() > 1e-9, parameter


def test_single_loss_leaves_the_branches_behind_an_early_fusion_untrained():
    model = build("ef-add")
    batch = make_batch([5, 3])
    F.cross_entropy(model(batch)["logits"], batch.labels).backward()
    untrained = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert untrained == {n for n, _ in model.named_parameters() if n.split(".")[0] != "features" and "fused" not in n}


def test_at_fusion_weighs_the_unmapped_vectors():
    fusion = Fuse("at", 3)
    fusion.w_vector.weight.data.zero_()  # equal scores
    a, t = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(fusion(a, t), (a + t) / 2)


def test_hidden_modality_has_no_influence():
    for name in ("lgf-at", "ef-concat", "audio:utterance"):
        model = build(name)
        batch = make_batch([4, 3])
        hidden = torch.tensor([True, False, False, True, True, False, False])
        batch.hidden = {"audio": hidden}
        expected = model(batch)["logits"]
        poisoned = batch.inputs["audio"].values.clone()
        poisoned[hidden] = torch.nan
        batch.inputs["audio"] = Sequences(poisoned, batch.inputs["audio"].lengths)
        got = model(batch)["logits"]
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        got.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# The released code ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["add", "at"])
def test_released_code(method):
    model = build(f"lgf-{method}", dataclasses.replace(SMALL, released=True, dropout=0.2)).eval()
    batch = make_batch([3, 5])
    x = {}
    for m in ("audio", "text"):
        rows = batch.inputs[m].values @ model.features[m].weight.T + model.features[m].bias
        h, start = [], 0
        for length in (3, 5):
            part = list(rows[start : start + length].relu() if m == "audio" else rows[start : start + length])
            h += attend(model.attention[m], gru_both_ways(model.gru[m], part), heads=1)
            start += length
        dense = torch.tanh(torch.stack(h) @ model.dense[m].weight.T + model.dense[m].bias)
        x[m] = dense @ model.logits[m].weight.T + model.logits[m].bias
    if method == "add":
        z = x["audio"] + x["text"]
    else:
        mapped = {m: v @ model.fusion.w_matrix.weight.T for m, v in x.items()}
        scores = torch.stack([mapped[m].clamp(min=0) @ model.fusion.w_vector for m in ("audio", "text")]).exp()
        z = sum(s[:, None] * mapped[m] for s, m in zip(scores / scores.sum(0), ("audio", "text"), strict=True))
    got = model(batch)
    torch.testing.assert_close(got["logits"], z.exp() / z.exp().sum(1, keepdim=True), rtol=0, atol=1e-10)
    torch.testing.assert_close(got["audio"].sum(1), torch.ones(8))  # probabilities
    assert "fusion.w_vector" not in dict(model.named_parameters())


@pytest.mark.parametrize("name", ["lgf-concat", "ef-add", "mf-at", "lf-add", "audio:utterance"])
def test_released_code_has_nothing_else(name):
    with pytest.raises(WrongUse, match="lgf-add and lgf-at only"):
        build(name, dataclasses.replace(SMALL, released=True))


# Wrong use ------------------------------------------------------------------------------------------------------------


def test_wrong_use_is_one_sentence():
    with pytest.raises(WrongUse, match=r"6.*4 heads"):
        build("lgf-add", dataclasses.replace(SMALL, gru_hidden=3, heads=4))
    with pytest.raises(WrongUse, match="audio features of 9 values, and got 5"):
        build("lgf-add")(make_batch([2, 3], {"audio": 5, "text": 7}))
    frames = make_batch([2, 3])
    frames.inputs["audio"] = Sequences(torch.randn(12, 9), torch.tensor([2, 3, 1, 4, 2]))
    with pytest.raises(WrongUse, match="one audio vector per utterance"):
        build("lgf-add")(frames)
