"""USC: the CNN, the classifier on BERT's features and their late fusion, against the text written plainly."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.errors import WrongUse
from ser.train.models import FUSIONS
from ser.train.models.ragged import Batch, Sequences
from ser.train.models.usc import UscSettings

DIMS = {"audio": 13, "text": 7}
SMALL = UscSettings(frames=40, channels=2, hidden=5, dropout=0.0)


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_batch(frames: tuple[int, ...] = (12, 40, 75, 1), tokens: tuple[int, ...] = (3, 1, 5, 2)) -> Batch:
    n = len(frames)
    inputs = {
        m: Sequences(torch.randn(sum(lengths), DIMS[m]), torch.tensor(lengths))
        for m, lengths in (("audio", frames), ("text", tokens))
    }
    return Batch(inputs, torch.randint(5, (n,)), torch.arange(n), torch.ones(n, dtype=torch.int64))


def build(name: str, settings: UscSettings = SMALL) -> nn.Module:
    return FUSIONS[name].build(settings, DIMS, 5).to(torch.get_default_dtype())


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.01 * x)


def convolve_and_pool(image: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    """3×3 convolution with zeros around, LeakyReLU, and the largest of each 2×2 (fewer at the edge)."""
    w, b = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    channels, height, width = len(w), image.shape[1], image.shape[2]
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    out = np.empty((channels, height, width))
    for i in range(height):
        for j in range(width):
            out[:, i, j] = (w * padded[None, :, i : i + 3, j : j + 3]).sum((1, 2, 3)) + b
    out = leaky(out)
    pooled = np.empty((channels, -(-height // 2), -(-width // 2)))
    for i in range(pooled.shape[1]):
        for j in range(pooled.shape[2]):
            pooled[:, i, j] = out[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    return pooled


def plain_cnn(model: nn.Module, rows: Tensor, frames: int) -> Tensor:
    clip = np.zeros((1, frames, rows.shape[1]))
    clip[0, : min(len(rows), frames)] = rows[:frames].numpy()
    for conv in model.convolutions:
        if isinstance(conv, nn.Conv2d):
            clip = convolve_and_pool(clip, conv)
    first, last = (layer for layer in model.linear if isinstance(layer, nn.Linear))
    hidden = leaky(first.weight.detach().numpy() @ clip.reshape(-1) + first.bias.detach().numpy())
    return torch.from_numpy(last.weight.detach().numpy() @ hidden + last.bias.detach().numpy())


def plain_bert(model: nn.Module, rows: Tensor) -> Tensor:
    return model.linear[1].weight @ rows[0] + model.linear[1].bias


def split(batch: Batch, modality: str) -> list[Tensor]:
    x = batch.inputs[modality]
    return list(x.values.split(x.lengths.tolist()))


def test_cnn_is_the_plain_convolutions():
    model, batch = build("cnn"), make_batch()
    expected = torch.stack([plain_cnn(model, rows, SMALL.frames) for rows in split(batch, "audio")])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


def test_bert_classifies_the_first_token():
    model, batch = build("bert"), make_batch()
    expected = torch.stack([plain_bert(model, rows) for rows in split(batch, "text")])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


def test_late_fusion_adds_the_mapped_probabilities():
    model, batch = build("cnn+bert"), make_batch()
    got = model(batch)
    for i, (a, w) in enumerate(zip(split(batch, "audio"), split(batch, "text"), strict=True)):
        own = {"audio": plain_cnn(model.audio, a, SMALL.frames), "text": plain_bert(model.text, w)}
        z = torch.zeros(5)
        for m, logits in own.items():
            probabilities = logits.exp() / logits.exp().sum()
            z = z + model.linear[m].weight @ probabilities + model.linear[m].bias
            torch.testing.assert_close(got[m][i], logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(got["logits"][i], z, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["cnn", "bert", "cnn+bert"])
def test_a_batch_equals_one_utterance_at_a_time(name):
    model, batch = build(name), make_batch()
    alone = []
    for rows in zip(split(batch, "audio"), split(batch, "text"), strict=True):
        one = {m: Sequences(x, torch.tensor([len(x)])) for m, x in zip(("audio", "text"), rows, strict=True)}
        alone.append(model(Batch(one, torch.zeros(1), torch.zeros(1), torch.ones(1)))["logits"])
    torch.testing.assert_close(model(batch)["logits"], torch.cat(alone), rtol=0, atol=1e-12)


def test_structure_is_the_papers():
    settings = UscSettings()
    stated = {"epochs": 15, "lr": 1.5e-4, "weight_decay": 1e-3, "dropout": 0.6}
    assert {name: getattr(settings, name) for name in stated} == stated
    model = FUSIONS["cnn"].build(settings, {"audio": 80}, 5)
    kinds = [type(layer).__name__ for layer in model.modules()]
    assert kinds.count("Conv2d") == kinds.count("MaxPool2d") == 5
    assert kinds.count("Linear") == 2
    assert kinds.count("LeakyReLU") == 6
    assert all(layer.p == 0.6 for layer in model.modules() if isinstance(layer, nn.Dropout))
    batch = Batch({"audio": Sequences(torch.randn(900, 80).float(), torch.tensor([700, 200]))}, *[torch.zeros(2)] * 3)
    assert model.float()(batch)["logits"].shape == (2, 5)


def test_stages_train_the_two_models_and_then_all_of_it():
    fusion, model, batch = FUSIONS["cnn+bert"], build("cnn+bert"), make_batch()
    assert [(s.output, s.trains) for s in fusion.stages] == [
        ("audio", ("audio.",)),
        ("text", ("text.",)),
        ("logits", ("",)),
    ]
    for stage in fusion.stages:
        trained = {name for name, _ in model.named_parameters() if name.startswith(stage.trains)}
        model.zero_grad()
        F.cross_entropy(model(batch)[stage.output], batch.labels).backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == trained


@pytest.mark.parametrize("name", ["cnn", "bert", "cnn+bert"])
def test_hidden_values_have_no_influence(name):
    model, batch = build(name), make_batch()
    hidden = {"audio": torch.tensor([1, 0, 0, 1]).bool(), "text": torch.tensor([0, 1, 0, 0]).bool()}
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


def test_fine_tuning_says_that_it_has_no_encoder():
    for name in ("bert", "cnn+bert"):
        with pytest.raises(WrongUse, match="finetune_layers=2 trains an encoder, and none was given"):
            build(name, dataclasses.replace(SMALL, finetune_layers=2))
