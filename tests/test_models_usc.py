"""USC: the CNN, the classifier on BERT's features and their late fusion, against the text written plainly."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.errors import WrongUse
from ser.tests.plain_layers import build, double, linear, make_batch, softmax, utterances  # noqa: F401
from ser.train.models import FUSIONS
from ser.train.models.ragged import Batch, Sequences
from ser.train.models.usc import UscSettings

pytestmark = pytest.mark.usefixtures("double")
CLIPS = [12, 40, 75, 1]  # frames: of 40 that a clip is padded or cropped to
DIMS = {"audio": 13, "text": 7}  # thirteen MFCCs are the fewest that the CNN takes


def plain_cnn(model: nn.Module, rows: Tensor, frames: int = 40) -> Tensor:
    """Zeros behind a clip's end; 3×3 convolutions with zeros around, LeakyReLU, the largest of each 2×2 or fewer."""
    clip = torch.zeros(1, frames, rows.shape[1])
    clip[0, : min(len(rows), frames)] = rows[:frames]
    for conv in model.convolutions:
        if isinstance(conv, nn.Conv2d):
            clip = F.max_pool2d(F.leaky_relu(F.conv2d(clip, conv.weight, conv.bias, padding=1)), 2, ceil_mode=True)
    first, last = (layer for layer in model.linear if isinstance(layer, nn.Linear))
    return linear(last, F.leaky_relu(linear(first, clip.flatten())))


def plain_bert(model: nn.Module, rows: Tensor) -> Tensor:
    return linear(model.linear[1], rows[0])


@pytest.mark.parametrize("name", ["cnn", "bert"])
def test_one_modality_is_its_section(name):
    model, batch = build(name, DIMS), make_batch(name, CLIPS, DIMS)
    plain = plain_cnn if name == "cnn" else plain_bert
    expected = torch.stack([plain(model, rows) for x in utterances(batch) for rows in x.values()])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


def test_late_fusion_adds_the_mapped_probabilities():
    model, batch = build("cnn+bert", DIMS), make_batch("cnn+bert", CLIPS, DIMS)
    got = model(batch)
    for i, x in enumerate(utterances(batch)):
        own = {"audio": plain_cnn(model.audio, x["audio"]), "text": plain_bert(model.text, x["text"])}
        for m, logits in own.items():
            torch.testing.assert_close(got[m][i], logits, rtol=0, atol=1e-10)
        z = sum(linear(model.linear[m], softmax(logits)) for m, logits in own.items())
        torch.testing.assert_close(got["logits"][i], z, rtol=0, atol=1e-10)


def test_structure_is_the_papers():
    settings = UscSettings()
    model = FUSIONS["cnn"].build(settings, {"audio": 80}, 5)
    kinds = [type(layer).__name__ for layer in model.modules()]
    assert kinds.count("Conv2d") == kinds.count("MaxPool2d") == 5
    assert kinds.count("Linear") == 2
    assert kinds.count("LeakyReLU") == 6
    assert all(layer.p == 0.6 for layer in model.modules() if isinstance(layer, nn.Dropout))
    batch = Batch({"audio": Sequences(torch.randn(900, 80).float(), torch.tensor([700, 200]))}, *[torch.zeros(2)] * 3)
    assert model.float()(batch)["logits"].shape == (2, 5)


@pytest.mark.parametrize("name", ["bert", "cnn+bert"])
def test_fine_tuning_says_that_it_has_no_encoder(name):
    with pytest.raises(WrongUse, match="finetune_layers=2 trains an encoder, and none was given"):
        build(name, finetune_layers=2)
