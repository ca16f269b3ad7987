"""MSMSER: against its sections written plainly, utterance by utterance, and against torch's own padded layers."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ser.benchmarks.train import PlainMsmser
from ser.errors import WrongUse
from ser.train.models import FUSIONS
from ser.train.models.msmser import MsmserSettings, RandomModalityMasking
from ser.train.models.ragged import Batch, Sequences

DIMS = {"audio": 9, "text": 7}
SMALL = MsmserSettings(d_model=8, heads=2, queries=3, feed_forward=2, dropout=0.0, encoder_depth=2, decoder_depth=2)
NAMES = ("mit", "mit:no-encoder", "mit:no-selfatt", "concat", "audio:frame", "text:token")
FRAMES = [5, 1, 9, 4]
LONG = [5, 140, 1, 20]  # more frames than packed.LONG: attention goes utterance by utterance


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_batch(frames: list[int], tokens: tuple[int, ...] = (3, 2, 1, 6), dims: dict[str, int] = DIMS) -> Batch:
    n = len(frames)
    lengths = {"audio": torch.tensor(frames), "text": torch.tensor(tokens[:n])}
    inputs = {m: Sequences(torch.randn(int(lengths[m].sum()), dim), lengths[m]) for m, dim in dims.items()}
    return Batch(inputs, torch.randint(4, (n,)), torch.arange(n), torch.ones(n, dtype=torch.int64))


def build(name: str, settings: MsmserSettings = SMALL) -> nn.Module:
    return FUSIONS[name].build(settings, DIMS, 4).to(torch.get_default_dtype())


def utterances(batch: Batch) -> list[dict[str, Tensor]]:
    parts = {m: s.values.split(s.lengths.tolist()) for m, s in batch.inputs.items()}
    return [{m: rows[i] for m, rows in parts.items()} for i in range(len(batch))]


# The paper, written plainly, for one utterance [t, d] -----------------------------------------------------------------


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def norm(layer: nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(1, keepdim=True) + layer.eps) * layer.weight + layer.bias


def attend(layer: nn.Module, x: Tensor, memory: Tensor, heads: int) -> Tensor:
    d = x.shape[1]
    w, b = layer.in_proj_weight, layer.in_proj_bias
    q, k, v = (y @ w[i * d : (i + 1) * d].T + b[i * d : (i + 1) * d] for i, y in enumerate((x, memory, memory)))
    context = []
    for h in range(heads):
        cut = slice(h * d // heads, (h + 1) * d // heads)
        scores = torch.exp(q[:, cut] @ k[:, cut].T / math.sqrt(d // heads))
        context.append(scores / scores.sum(1, keepdim=True) @ v[:, cut])
    return linear(layer.out_proj, torch.cat(context, 1))


def feed_forward(layer: nn.Module, x: Tensor) -> Tensor:
    return linear(layer.linear2, linear(layer.linear1, x).clamp(min=0))


def refine(module: nn.Module, x: Tensor, heads: int) -> Tensor:
    """§2.1."""
    x = linear(module.project, x)
    for layer in module.encoder:
        x = norm(layer.norm1, x + attend(layer.self_attn, x, x, heads))
        x = norm(layer.norm2, x + feed_forward(layer, x))
    if module.scales is None:
        return x
    scale = linear(module.scales[2], linear(module.scales[0], x).clamp(min=0))
    return x / (1 + torch.exp(-scale))  # one sigmoid for each frame


def position_codes(t: int, d: int) -> Tensor:
    """Vaswani et al. 2017, §3.5."""
    codes = torch.zeros(t, d)
    for place in range(t):
        for i in range(d):
            angle = place / 10000 ** (2 * (i // 2) / d)
            codes[place, i] = math.cos(angle) if i % 2 else math.sin(angle)
    return codes


def pool(module: nn.Module, x: Tensor) -> Tensor:
    scores = torch.exp(x @ module.score.weight[0])
    return scores / scores.sum() @ x


def classify(module: nn.Module, z: Tensor) -> Tensor:
    return linear(module[3], linear(module[0], z[None]).clamp(min=0))[0]


def equations(model: nn.Module, x: dict[str, Tensor], heads: int, hidden: str = "") -> Tensor:
    """§2.1 and §2.2; `hidden` names the modality whose attention mask is zero."""
    a, w = refine(model.audio, x["audio"], heads), refine(model.text, x["text"], heads)
    mit = model.interaction
    parts = []
    for modality, rows, code in (("audio", a, mit.types[0]), ("text", w, mit.types[1])):
        if modality != hidden:
            parts.append(rows + position_codes(*rows.shape) + code)
    memory = torch.cat(parts)
    q = mit.queries
    for layer in mit.decoder:
        q = norm(layer.norm1, q + attend(layer.self_attn, q, q, heads))
        q = norm(layer.norm2, q + attend(layer.multihead_attn, q, memory, heads))
        q = norm(layer.norm3, q + feed_forward(layer, q))
    return classify(model.classifier, pool(mit.pool, q))


def without_mit(model: nn.Module, x: dict[str, Tensor], heads: int) -> Tensor:
    pooled = [pool(model.pool[m], refine(model.refine[m], x[m], heads)) for m in model.dims]
    return classify(model.classifier, torch.cat(pooled))


@pytest.mark.parametrize("frames", [FRAMES, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", NAMES)
def test_forward_is_the_papers_sections(name, frames):
    model, batch = build(name), make_batch(frames)
    plain = equations if name.startswith("mit") else without_mit
    expected = torch.stack([plain(model, x, SMALL.heads) for x in utterances(batch)])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


def test_variants_lack_what_they_say():
    full, no_encoder, no_gate = build("mit"), build("mit:no-encoder"), build("mit:no-selfatt")
    assert len(full.audio.encoder) == 2
    assert full.audio.scales is not None
    assert len(no_encoder.audio.encoder) == len(no_encoder.text.encoder) == 0
    assert no_encoder.audio.scales is not None
    assert len(no_gate.audio.encoder) == 2
    assert no_gate.audio.scales is no_gate.text.scales is None
    assert not hasattr(build("concat"), "interaction")


@pytest.mark.parametrize("name", NAMES)
def test_packed_batch_equals_one_utterance_at_a_time(name):
    model, batch = build(name), make_batch(LONG)
    alone = []
    for x in utterances(batch):
        one = {m: Sequences(rows, torch.tensor([len(rows)])) for m, rows in x.items()}
        alone.append(model(Batch(one, torch.zeros(1), torch.zeros(1), torch.ones(1)))["logits"])
    torch.testing.assert_close(model(batch)["logits"], torch.cat(alone), rtol=0, atol=1e-12)


def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    x = {m: pad_sequence(list(s.values.split(s.lengths.tolist())), batch_first=True) for m, s in batch.inputs.items()}
    return F.cross_entropy(model(x, {m: s.lengths for m, s in batch.inputs.items()})["logits"], batch.labels)


def packed_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch)["logits"], batch.labels)


@pytest.mark.parametrize("frames", [FRAMES, LONG], ids=["short", "long"])
def test_twelve_updates_equal_the_plain_model(frames):
    ours, plain = build("mit"), PlainMsmser(SMALL, DIMS, 4)
    plain.load_state_dict(ours.state_dict())
    adams = [torch.optim.Adam(model.parameters(), 1e-3) for model in (ours, plain)]
    first = None
    for _ in range(12):
        batch = make_batch(frames)
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
    settings = MsmserSettings(d_model=96, heads=8, dropout=0.0)
    ours, plain = build("mit", settings), PlainMsmser(settings, DIMS, 4)
    plain.load_state_dict(ours.state_dict())
    batch = make_batch([150, 60, 220, 31])
    a, b = packed_loss(ours, batch), plain_loss(plain, batch)
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    a.backward()
    b.backward()
    theirs = dict(plain.named_parameters())
    for name, p in ours.named_parameters():
        q = theirs[name]
        assert torch.linalg.norm(p.grad - q.grad) <= 1e-4 * torch.linalg.norm(q.grad) + 1e-6, name


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    model = build(name)
    packed_loss(model, make_batch(FRAMES)).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.abs().max() > 1e-12, parameter


def test_structure_is_the_papers():
    settings = MsmserSettings()
    stated = {"epochs": 100, "batch_size": 8, "lr": 2e-5, "d_model": 768, "heads": 8, "queries": 30, "rmm_start": 0.8}
    assert {name: getattr(settings, name) for name in stated} == stated
    model = FUSIONS["mit"].build(settings, {"audio": 1024, "text": 768}, 4)
    assert model.interaction.queries.shape == (30, 768)  # L × d_e
    assert model.interaction.types.shape == (2, 768)
    assert model.audio.project.weight.shape == (768, 1024)
    for layer in (*model.audio.encoder, *model.text.encoder, *model.interaction.decoder):
        assert layer.self_attn.heads == 8
        assert layer.linear1.weight.shape == (3072, 768)
    assert [type(layer).__name__ for layer in model.audio.scales] == ["Linear", "ReLU", "Linear", "Sigmoid"]
    assert model.audio.scales[2].weight.shape == (1, 768)  # one scale per frame
    assert model.classifier[3].weight.shape == (4, 768)
    for tokens in (2, 5, 10, 20, 30, 50):  # Fig. 2
        assert len(build("mit", dataclasses.replace(SMALL, queries=tokens)).interaction.queries) == tokens


# Random modality masking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [FRAMES, LONG], ids=["short", "long"])
def test_hidden_is_an_attention_mask_of_zero(frames):
    model, batch = build("mit"), make_batch(frames)
    batch.hidden = {
        "audio": torch.tensor([True, False, False, False]),
        "text": torch.tensor([False, True, False, True]),
    }
    expected = [
        equations(model, x, SMALL.heads, hidden)
        for x, hidden in zip(utterances(batch), ("audio", "text", "", "text"), strict=True)
    ]
    torch.testing.assert_close(model(batch)["logits"], torch.stack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("frames", [FRAMES, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", NAMES)
def test_hidden_values_have_no_influence(name, frames):
    model, batch = build(name), make_batch(frames)
    hidden = {"audio": torch.tensor([True, False, False, True]), "text": torch.tensor([False, True, False, False])}
    batch.hidden = {m: hidden[m] for m in FUSIONS[name].inputs}
    expected = model(batch)["logits"]
    for m in batch.hidden:
        values, lengths = batch.inputs[m].values.clone(), batch.inputs[m].lengths
        values[hidden[m].repeat_interleave(lengths)] = torch.nan
        batch.inputs[m] = Sequences(values, lengths)
    got = model(batch)["logits"]
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    got.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("seen", ["audio", "text"])
def test_a_whole_batch_can_do_with_one_modality(seen):
    model, batch = build("mit"), make_batch(LONG)
    other = "text" if seen == "audio" else "audio"
    batch.hidden = {other: torch.ones(4, dtype=torch.bool)}
    expected = [equations(model, x, SMALL.heads, other) for x in utterances(batch)]
    torch.testing.assert_close(model(batch)["logits"], torch.stack(expected), rtol=0, atol=1e-10)


def test_masking_frequencies_are_the_stated_ones():
    rmm = RandomModalityMasking(MsmserSettings())
    generator = torch.Generator().manual_seed(1)
    n = 200_000
    for epoch, p in [(0, 0.8), (7, 0.72), (35, 0.4), (63, 0.08), (70, 0.0), (99, 0.0)]:
        assert rmm.probability(epoch, 100) == pytest.approx(p)
        assert rmm.probability(epoch * 2, 200) == pytest.approx(p)  # scaled with the epochs
        hidden = rmm.hide(n, epoch, 100, generator)
        text, audio = hidden["text"], hidden["audio"]
        assert not (text & audio).any()
        tolerance = 4 * math.sqrt(0.25 / n)
        assert text.double().mean().item() == pytest.approx(0.6 * p, abs=tolerance)
        assert audio.double().mean().item() == pytest.approx(0.4 * p, abs=tolerance)
        assert (text | audio).any() == (p > 0)


def test_masking_follows_its_generator_and_can_be_off():
    rmm = RandomModalityMasking(MsmserSettings())
    one, two = (rmm.hide(100, 0, 10, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(one[m], two[m]) for m in ("audio", "text"))
    off = RandomModalityMasking(MsmserSettings(rmm_start=0.0)).hide(100, 0, 10, torch.Generator().manual_seed(5))
    assert not off["audio"].any()
    assert not off["text"].any()
    assert FUSIONS["mit"].masking is not None
    assert FUSIONS["concat"].masking is None


# Wrong use ------------------------------------------------------------------------------------------------------------


def test_wrong_use_is_one_sentence():
    with pytest.raises(WrongUse, match="width 8 cannot be split into 3 heads"):
        build("mit", dataclasses.replace(SMALL, heads=3))
    with pytest.raises(WrongUse, match="text features of 7 values, and got 5"):
        build("mit")(make_batch(FRAMES, dims={"audio": 9, "text": 5}))
