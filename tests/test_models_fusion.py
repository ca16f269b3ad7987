"""What holds for every entry of FUSIONS: names, settings, and that it runs in any precision, with modalities hidden."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from ser.errors import WrongUse
from ser.train.models import FUSIONS, Fusion, get_fusion
from ser.train.models.ragged import Batch, Sequences

DIMS = {"audio": 30, "text": 20}
TINY: dict[str, Any] = {"dropout": 0.0, "d_model": 16, "heads": 4, "gru_hidden": 6, "frames": 50, "lstm_hidden": 8}


def build(fusion: Fusion) -> nn.Module:
    torch.manual_seed(0)
    known = {f.name for f in dataclasses.fields(fusion.settings)}
    settings = fusion.settings(**{name: value for name, value in TINY.items() if name in known})
    return fusion.build(settings, {m: DIMS[m] for m in fusion.inputs}, 4)


def make_batch(fusion: Fusion) -> Batch:
    torch.manual_seed(1)
    lengths = {"audio": [70, 3, 1, 150, 12], "text": [3, 1, 5, 2, 9]}
    if fusion.level == "vector":
        lengths = dict.fromkeys(lengths, [1] * 5)
    inputs = {m: Sequences(torch.randn(sum(lengths[m]), DIMS[m]), torch.tensor(lengths[m])) for m in fusion.inputs}
    dialogues = torch.tensor([3, 2]) if fusion.unit == "dialogue" else torch.ones(5, dtype=torch.int64)
    return Batch(inputs, torch.randint(4, (5,)), torch.arange(5), dialogues)


@pytest.mark.parametrize("name", FUSIONS)
def test_heads_and_stages(name):
    fusion = FUSIONS[name]
    model, batch = build(fusion), make_batch(fusion)
    outputs = model(batch)
    assert all(logits.shape == (5, 4) for logits in outputs.values())
    for stage in fusion.stages:
        assert stage.output in outputs
        assert any(parameter.startswith(stage.trains) for parameter, _ in model.named_parameters())
    assert fusion.stages[-1].output == "logits"  # what the run is scored by
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(batch)["logits"], outputs["logits"])


@pytest.mark.parametrize("name", FUSIONS)
def test_bfloat16_is_close(name):
    fusion = FUSIONS[name]
    model, batch = build(fusion), make_batch(fusion)
    if fusion.level == "sequence" and len(fusion.inputs) == 2:
        batch.hidden = {"audio": torch.tensor([1, 0, 0, 0, 0]).bool(), "text": torch.tensor([0, 1, 0, 0, 0]).bool()}
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch)
    for head, logits in exact.items():
        assert (rounded[head] - logits).abs().max() < 0.02
    sum(logits.float().square().sum() for logits in rounded.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", FUSIONS)
def test_same_seed_same_numbers(name):
    fusion = FUSIONS[name]
    losses = []
    for _ in range(2):
        model, batch = build(fusion), make_batch(fusion)
        torch.manual_seed(3)
        adam = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(3):
            loss = sum(logits.square().sum() for logits in model(batch).values())
            adam.zero_grad()
            loss.backward()
            adam.step()
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_get_fusion():
    assert get_fusion("audio", {"audio": "utterance"}).name == "audio:utterance"
    assert get_fusion("text", {"text": "token"}).name == "text:token"
    assert get_fusion("lgf-add", {"audio": "frame", "text": "token"}).level == "vector"  # pooled by the trainer
    for name, levels, message in [
        ("lgf-ad", {"audio": "utterance", "text": "utterance"}, "did you mean lgf-add"),
        ("lgf-add", {"audio": "utterance"}, "takes audio and text, and --features gives audio"),
        ("audio", {"text": "token"}, "needs one audio feature"),
        (
            "audio:utterance",
            {"audio": "utterance", "text": "token"},
            "takes audio, and --features gives audio and text",
        ),
        ("mit", {"audio": "utterance", "text": "token"}, "takes audio frames"),
    ]:
        with pytest.raises(WrongUse, match=message):
            get_fusion(name, levels)


def test_every_entry_is_complete():
    for name, fusion in FUSIONS.items():
        assert fusion.name == name
        fields = {f.name: f for f in dataclasses.fields(fusion.settings)}
        common = {"epochs", "batch_size", "lr", "weight_decay", "dropout", "standardise_audio", "standardise_text"}
        assert common <= fields.keys()
        assert all(f.metadata["source"] and f.metadata["help"] for f in fields.values())
        fusion.settings()  # every field has a default
