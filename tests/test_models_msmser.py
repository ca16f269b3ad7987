"""MSMSER: against its sections written plainly, utterance by utterance, and against torch's own padded layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ser.benchmarks.train import PlainMsmser, sinusoids
from ser.tests.plain_layers import (
    DIMS,
    TINY,
    attend,
    build,
    check_updates,
    feed_forward,
    linear,
    make_batch,
    norm,
    short_and_long,
    softmax,
    utterances,
    without,
)
from ser.train.models.msmser import MsmserSettings, random_modality_masking
from ser.train.models.ragged import Batch

pytestmark = pytest.mark.usefixtures("double")
NAMES = ("mit", "mit:no-encoder", "mit:no-selfatt", "concat", "concat:rmm", "audio:frame", "text:token")
SIZES = {key: value for key, value in TINY.items() if key in MsmserSettings.__dataclass_fields__}


# The paper, written plainly, for one utterance [t, d] -----------------------------------------------------------------


def refine(module: nn.Module, x: Tensor) -> Tensor:
    """§2.1."""
    x = linear(module.project, x)
    for layer in module.encoder:
        x = norm(layer.norm1, x + attend(layer.self_attn, x, x))
        x = norm(layer.norm2, x + feed_forward(layer, x))
    if module.scales is None:
        return x
    scale = linear(module.scales[2], linear(module.scales[0], x).clamp(min=0))
    return x / (1 + torch.exp(-scale))  # one sigmoid for each frame


def pool(module: nn.Module, x: Tensor) -> Tensor:
    return softmax(x @ module.score.weight[0]) @ x


def classify(module: nn.Module, z: Tensor) -> Tensor:
    return linear(module[3], linear(module[0], z[None]).clamp(min=0))[0]


def equations(model: nn.Module, x: dict[str, Tensor], hidden: str = "") -> Tensor:
    """§2.1 and §2.2; `hidden` names the modality whose attention mask is zero."""
    mit = model.interaction
    parts = []
    for modality, refinement, code in (("audio", model.audio, mit.types[0]), ("text", model.text, mit.types[1])):
        if modality != hidden:
            rows = refine(refinement, x[modality])
            parts.append(rows + sinusoids(*rows.shape) + code)
    memory, q = torch.cat(parts), mit.queries
    for layer in mit.decoder:
        q = norm(layer.norm1, q + attend(layer.self_attn, q, q))
        q = norm(layer.norm2, q + attend(layer.multihead_attn, q, memory))
        q = norm(layer.norm3, q + feed_forward(layer, q))
    return classify(model.classifier, pool(mit.pool, q))


def without_mit(model: nn.Module, x: dict[str, Tensor]) -> Tensor:
    return classify(
        model.classifier, torch.cat([pool(model.pool[m], refine(model.refine[m], x[m])) for m in model.dims])
    )


@short_and_long
@pytest.mark.parametrize("name", NAMES)
def test_forward_is_the_papers_sections(name, frames):
    model, batch = build(name), make_batch(name, frames)
    plain = equations if name.startswith("mit") else without_mit
    expected = torch.stack([plain(model, x) for x in utterances(batch)])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


def test_variants_lack_what_they_say():
    full, no_encoder, no_gate = build("mit"), build("mit:no-encoder"), build("mit:no-selfatt")
    assert len(full.audio.encoder) == len(no_gate.audio.encoder) == 2
    assert len(no_encoder.audio.encoder) == len(no_encoder.text.encoder) == 0
    assert full.audio.scales is not None and no_encoder.audio.scales is not None
    assert no_gate.audio.scales is no_gate.text.scales is None
    assert not hasattr(build("concat"), "interaction")


def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    x = {m: pad_sequence(list(s.values.split(s.lengths.tolist())), batch_first=True) for m, s in batch.inputs.items()}
    logits = model(x, {m: s.lengths for m, s in batch.inputs.items()})["logits"]
    return F.cross_entropy(logits, batch.truth, reduction="sum")


@short_and_long
def test_twelve_updates_equal_the_plain_model(frames):
    ours, plain = build("mit"), PlainMsmser(MsmserSettings(**SIZES), DIMS, 4)
    plain.load_state_dict(ours.state_dict())
    check_updates(ours, plain, plain_loss, lambda: make_batch("mit", frames))


# Random modality masking ----------------------------------------------------------------------------------------------


@short_and_long
@pytest.mark.parametrize("hidden", ["audio,text,,text", "audio,audio,audio,audio", "text,text,text,text"])
def test_hidden_is_an_attention_mask_of_zero(frames, hidden):
    model, batch, of = build("mit"), make_batch("mit", frames), hidden.split(",")
    expected = [equations(model, x, one) for x, one in zip(utterances(batch), of, strict=True)]
    shown = without(batch, {m: torch.tensor([one == m for one in of]) for m in DIMS})
    torch.testing.assert_close(model(shown)["logits"], torch.stack(expected), rtol=0, atol=1e-10)


def test_masking_frequencies_are_the_stated_ones():
    generator, n = torch.Generator().manual_seed(1), 200_000
    for epoch, p in [(0, 0.8), (7, 0.72), (35, 0.4), (63, 0.08), (70, 0.0), (99, 0.0)]:
        for times in (1, 2):  # scaled with the epochs
            settings = MsmserSettings(epochs=100 * times)
            hidden = random_modality_masking(settings, n, epoch * times, generator)
            text, audio = hidden["text"], hidden["audio"]
            assert not (text & audio).any()
            tolerance = 4 * math.sqrt(0.25 / n)
            assert text.double().mean().item() == pytest.approx(0.6 * p, abs=tolerance)
            assert audio.double().mean().item() == pytest.approx(0.4 * p, abs=tolerance)
            assert (text | audio).any() == (p > 0)
