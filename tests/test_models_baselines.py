"""The systems that the papers compare with, against their descriptions written plainly."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.train.models import FUSIONS
from ser.train.models.baselines import BcLstmSettings, CmaSettings, ConcatSettings
from ser.train.models.ragged import Batch, Sequences

DIMS = {"audio": 6, "text": 5}
SETTINGS = {
    "bc-lstm": BcLstmSettings(dropout=0.0, lstm_hidden=3, dense=4),
    "concat:utterance": ConcatSettings(dropout=0.0, hidden=4),
    "cma": CmaSettings(dropout=0.0, lstm_hidden=4, heads=2),
}


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(name: str) -> nn.Module:
    return FUSIONS[name].build(SETTINGS[name], DIMS, 4).to(torch.get_default_dtype())


def make_batch(name: str) -> Batch:
    frames, tokens = ([4, 9, 1, 150], [2, 1, 5, 3]) if name == "cma" else ([1] * 4, [1] * 4)
    lengths = {"audio": torch.tensor(frames), "text": torch.tensor(tokens)}
    inputs = {m: Sequences(torch.randn(int(lengths[m].sum()), dim), lengths[m]) for m, dim in DIMS.items()}
    dialogues = torch.tensor([3, 1]) if FUSIONS[name].unit == "dialogue" else torch.ones(4, dtype=torch.int64)
    return Batch(inputs, torch.randint(4, (4,)), torch.arange(4), dialogues)


def lstm_one_way(lstm: nn.LSTM, x: list[Tensor], way: str) -> list[Tensor]:
    w_i, w_h, b_i, b_h = (getattr(lstm, f"{p}_l0{way}") for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = c = torch.zeros(w_h.shape[1])
    out = []
    for x_t in x:
        i, f, g, o = (w_i @ x_t + b_i + w_h @ h + b_h).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return out


def lstm_both_ways(lstm: nn.LSTM, x: list[Tensor]) -> list[Tensor]:
    forwards, backwards = lstm_one_way(lstm, x, ""), lstm_one_way(lstm, x[::-1], "_reverse")[::-1]
    return [torch.cat(pair) for pair in zip(forwards, backwards, strict=True)]


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def test_bc_lstm():
    model, batch = build("bc-lstm"), make_batch("bc-lstm")
    expected: dict[str, list[Tensor]] = {"audio": [], "text": [], "logits": []}
    start = 0
    for length in batch.dialogues.tolist():
        z = {}
        for m, level in (("audio", model.audio), ("text", model.text)):
            h = lstm_both_ways(level.lstm, list(batch.inputs[m].values[start : start + length]))
            z[m] = [linear(level.dense, h_t).clamp(min=0) for h_t in h]
            expected[m] += [linear(level.logits, z_t) for z_t in z[m]]
        both = [torch.cat(pair) for pair in zip(z["audio"], z["text"], strict=True)]
        h = lstm_both_ways(model.fusion.lstm, both)
        expected["logits"] += [linear(model.fusion.logits, linear(model.fusion.dense, t).clamp(min=0)) for t in h]
        start += length
    for head, logits in model(batch).items():
        torch.testing.assert_close(logits, torch.stack(expected[head]), rtol=0, atol=1e-10)


def test_bc_lstm_trains_its_levels_one_after_the_other():
    model, batch = build("bc-lstm"), make_batch("bc-lstm")
    for stage in FUSIONS["bc-lstm"].stages:
        model.zero_grad()
        F.cross_entropy(model(batch)[stage.output], batch.labels).backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached >= {name for name, _ in model.named_parameters() if name.startswith(stage.trains)}


def test_concatenation():
    model, batch = build("concat:utterance"), make_batch("concat:utterance")
    both = zip(batch.inputs["audio"].values, batch.inputs["text"].values, strict=True)
    expected = [linear(model.layers[4], linear(model.layers[1], torch.cat(x)).clamp(min=0)) for x in both]
    torch.testing.assert_close(model(batch)["logits"], torch.stack(expected), rtol=0, atol=1e-10)


def attend(layer: nn.Module, x: Tensor, memory: Tensor) -> Tensor:
    d, heads = x.shape[1], 2
    w, b = layer.in_proj_weight, layer.in_proj_bias
    q, k, v = (y @ w[i * d : (i + 1) * d].T + b[i * d : (i + 1) * d] for i, y in enumerate((x, memory, memory)))
    context = []
    for cut in (slice(0, d // heads), slice(d // heads, d)):
        scores = (q[:, cut] @ k[:, cut].T / math.sqrt(d // heads)).exp()
        context.append(scores / scores.sum(1, keepdim=True) @ v[:, cut])
    return torch.cat(context, 1) @ layer.out_proj.weight.T + layer.out_proj.bias


def test_cross_modal_attention():
    model, batch = build("cma"), make_batch("cma")
    parts = {m: s.values.split(s.lengths.tolist()) for m, s in batch.inputs.items()}
    expected = []
    for i in range(4):
        x = {m: torch.stack(lstm_both_ways(model.encoder[m], list(parts[m][i]))) for m in DIMS}
        statistics = []
        for m, other in (("audio", "text"), ("text", "audio")):
            y = attend(model.attention[m], x[m], x[other])
            statistics += [y.mean(0), (((y - y.mean(0)) ** 2).mean(0) + 1e-8).sqrt()]
        expected.append(linear(model.logits, torch.cat(statistics)))
    torch.testing.assert_close(model(batch)["logits"], torch.stack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_and_hidden_modalities(name):
    model, batch = build(name), make_batch(name)
    sum(logits.square().sum() for logits in model(batch).values()).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.abs().max() > 1e-12, parameter
    hidden = {"audio": torch.tensor([1, 0, 0, 1]).bool(), "text": torch.tensor([0, 1, 0, 0]).bool()}
    batch.hidden = hidden
    expected = model(batch)["logits"]
    for m in hidden:
        values, lengths = batch.inputs[m].values.clone(), batch.inputs[m].lengths
        values[hidden[m].repeat_interleave(lengths)] = torch.nan
        batch.inputs[m] = Sequences(values, lengths)
    got = model(batch)["logits"]
    assert got.isfinite().all()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
