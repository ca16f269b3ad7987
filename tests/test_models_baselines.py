"""USC and the systems that the papers compare with, against their descriptions written plainly."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.benchmarks.train import sinusoids
from ser.errors import WrongUse
from ser.tests.plain_layers import (
    LONG,
    attend,
    build,
    feed_forward,
    linear,
    make_batch,
    make_dialogues,
    norm,
    parts,
    recurrent,
    softmax,
    utterances,
)
from ser.train.models import FUSIONS
from ser.train.models.ragged import Batch, Sequences
from ser.train.models.usc import UscSettings

pytestmark = pytest.mark.usefixtures("double")


def bc_level(module, x):
    z = linear(module.dense, recurrent(module.lstm, x)).clamp(min=0)
    return z, linear(module.logits, z)


def bc_fuse(model, audio, text):
    return torch.cat([audio, text], 1)


def catf_level(cat, x):
    h, found = recurrent(cat.lstm, x), []
    for i, h_t in enumerate(h):
        t = min(i, 3)
        alpha = softmax(cat.w[t] @ torch.tanh(cat.w_h[t] @ h.T))
        found.append(torch.tanh(cat.w_p[t] @ (h.T @ alpha) + cat.w_x[t] @ h_t))
    return torch.stack(found), linear(cat.logits, torch.stack(found))


def catf_fuse(model, audio, text):
    b = torch.stack([text, audio], 2)  # [n, d, 2]
    alpha = softmax((model.fuse.w_vector.weight @ torch.tanh(model.fuse.w_matrix.weight @ b))[:, 0])
    return (b * alpha[:, None]).sum(2)


@pytest.mark.parametrize(
    ("name", "level", "fuse"), [("bc-lstm", bc_level, bc_fuse), ("catf-lstm", catf_level, catf_fuse)]
)
def test_two_levels_over_a_dialogue(name, level, fuse):
    model, batch = build(name), make_dialogues([3, 1, 6])  # two turns more than have weights of their own
    expected = {"audio": [], "text": [], "logits": []}
    for dialogue in parts(batch, [3, 1, 6]):
        levels = {m: level(getattr(model, m), dialogue.inputs[m].values) for m in ("audio", "text")}
        levels["logits"] = level(model.fusion, fuse(model, levels["audio"][0], levels["text"][0]))
        for head, (_, logits) in levels.items():
            expected[head].append(logits)
    for head, logits in model(batch).items():
        torch.testing.assert_close(logits, torch.cat(expected[head]), rtol=0, atol=1e-10)


def test_superb_on_layer_means_is_the_head_on_frames():
    """SUPERB's emotion head as s3prl has it, frame by frame: over 12 updates the same losses and the same weights."""
    (name, layers, dim), frames = ("superb on layers", 3, 9), [5, 1, 200, 4]
    ours, plain = build(name), build(name)
    plain.load_state_dict(ours.state_dict())
    truth = torch.randint(4, (12, 4))

    def on_frames(model, x):
        shares, logits = softmax(model.layer_sums.weights["audio 0"]), []
        for one in x.split(frames):  # [t, layers, dim]
            summed = sum(share * one[:, i] for i, share in enumerate(shares))
            logits.append(linear(model.logits, linear(model.projector, summed).mean(0)))
        return torch.stack(logits)

    def on_means(model, x):
        batch = make_batch(name)
        batch.inputs["audio"].values = torch.stack([one.mean(0).flatten() for one in x.split(frames)])
        return model(batch)["logits"]

    adams = [torch.optim.Adam(model.parameters(), 1e-2) for model in (ours, plain)]
    for labels in truth:
        x = torch.randn(sum(frames), layers, dim)
        losses = []
        for adam, model, forward in zip(adams, (ours, plain), (on_means, on_frames), strict=True):
            loss = torch.nn.functional.cross_entropy(forward(model, x), labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss)
        torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-12)
    for (weight, p), (_, q) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-12, weight
    assert ours.layer_sums.weights["audio 0"].abs().min() > 1e-3  # they have been trained


def test_icon_turn_by_turn():
    """Each turn with the histories of its own speaker and of the other, as the authors' code is given them."""
    model, batch, expected = build("icon"), make_dialogues([5, 1, 4]), []
    batch.speakers = torch.tensor([0, 1, 1, 0, 0, 7, 2, 2, 3, 2])
    for dialogue in parts(batch, [5, 1, 4]):
        u = torch.cat([dialogue.inputs[m].values for m in ("audio", "text")], 1)
        for i, said in enumerate(dialogue.speakers):
            q, m = torch.tanh(linear(model.query, u[i])), torch.zeros(i, 8)
            own = dialogue.speakers[:i] == said
            for gru, turns in ((model.own, own), (model.other, ~own)):
                if turns.any():
                    m[turns] = recurrent(gru, u[:i][turns])
            m = torch.tanh(m)
            for gru in (model.influence, model.memory, model.memory):
                m = recurrent(gru, m) if i else m
                q = torch.tanh(q + softmax(torch.tanh(m @ q)) @ m)
            expected.append(linear(model.logits, q))
    torch.testing.assert_close(model(batch)["logits"], torch.stack(expected), rtol=0, atol=1e-10)


def concat_utterance(model, audio, text):
    return linear(model.layers[4], linear(model.layers[1], torch.cat([audio, text], 1)).clamp(min=0))[0]


def cma(model, audio, text):
    a, w = recurrent(model.encoder["audio"], audio), recurrent(model.encoder["text"], text)
    seen = attend(model.attention["audio"], a, w), attend(model.attention["text"], w, a)
    statistics = [(y.mean(0), (((y - y.mean(0)) ** 2).mean(0) + 1e-8).sqrt()) for y in seen]
    return linear(model.logits, torch.cat([one for pair in statistics for one in pair]))


def gban(model, audio, text):
    windows = torch.stack([part.max(0).values for part in audio.split(2)])
    s, w = recurrent(model.lstm["audio"], windows), recurrent(model.lstm["text"], text)

    def aligned(score, queries, keys):
        return torch.stack([softmax(torch.tanh(q + keys) @ score.weight[0]) @ keys for q in queries]).mean(0)

    x = [aligned(model.score["audio"], s, w), aligned(model.score["text"], w, s), w[-1], s[-1]]
    h = [torch.tanh(linear(one, y)) for one, y in zip(model.maps, x, strict=True)]
    z = [torch.sigmoid(linear(gate, torch.cat(x[i : i + 2]))) for gate, i in zip(model.gates, (0, 2), strict=True)]
    fused = z[0] * h[0] + (1 - z[0]) * h[1] + z[1] * h[2] + (1 - z[1]) * h[3]
    return linear(model.logits[3], linear(model.logits[0], fused).clamp(min=0))


def cme(model, audio, text):
    words, count = [], len(text)
    for j, w in enumerate(text):
        frames = linear(model.audio, audio[j * len(audio) // count : (j + 1) * len(audio) // count])
        a = torch.cat([frames.mean(0), frames.max(0).values]) if len(frames) else torch.zeros(8)
        s = linear(model.text, w)
        excited = torch.sigmoid(linear(model.excite_text, a)), torch.sigmoid(linear(model.excite_audio, w))
        words.append(torch.cat([s * (1 + excited[0]), a * (1 + excited[1])]))
    return linear(model.logits, recurrent(model.lstm, torch.stack(words)).max(0).values)


def ks_transformer(model, audio, text):
    def stack(module, x, memory=None):
        x = norm(module.norm, x)
        memory = None if memory is None else norm(module.memory_norm, memory)
        for layer in module.layers:
            x = norm(layer.norm1, x + key_sparse(layer.self_attn, x, memory))
            x = norm(layer.norm2, x + feed_forward(layer, x))
        return x

    def key_sparse(layer, x, memory):
        q = x + sinusoids(len(x), 8)
        k, v = (q, q) if memory is None else (memory + sinusoids(len(memory), 8), memory)
        return attend(layer, q, k, v)

    x = [stack(model.own[m], linear(model.project[m], rows)) for m, rows in (("audio", audio), ("text", text))]
    z = []
    for m, own, other in (("audio", *x), ("text", *x[::-1])):
        y = own
        for i in range(0, 4, 2):
            y = stack(model.cross[m][i + 1], stack(model.cross[m][i], y, other))
        z.append(stack(model.last[m], own + (y + own)).mean(0))
    h = torch.cat(z)
    for i in (0, 3):
        h = linear(model.classifier[i], h).clamp(min=0)
    return linear(model.classifier[6], h)


@pytest.mark.parametrize("plain", [concat_utterance, cma, gban, cme, ks_transformer])
def test_utterance_by_utterance(plain):
    name = plain.__name__.replace("_", ":" if plain is concat_utterance else "-")
    model, batch = build(name), make_batch(name, LONG)
    expected = torch.stack([plain(model, **rows) for rows in utterances(batch)])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


# USC -----------------------------------------------------------------------------------------------------------------

CLIPS = [12, 40, 75, 1]  # frames: of 40 that a clip is padded or cropped to
USC_DIMS = {"audio": 13, "text": 7}  # thirteen MFCCs are the fewest that the CNN takes


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
def test_one_modality_is_its_section_of_usc(name):
    model, batch = build(name, USC_DIMS), make_batch(name, CLIPS, USC_DIMS)
    plain = plain_cnn if name == "cnn" else plain_bert
    expected = torch.stack([plain(model, rows) for x in utterances(batch) for rows in x.values()])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


def test_uscs_late_fusion_adds_the_mapped_probabilities():
    model, batch = build("cnn+bert", USC_DIMS), make_batch("cnn+bert", CLIPS, USC_DIMS)
    got = model(batch)
    for i, x in enumerate(utterances(batch)):
        own = {"audio": plain_cnn(model.audio, x["audio"]), "text": plain_bert(model.text, x["text"])}
        for m, logits in own.items():
            torch.testing.assert_close(got[m][i], logits, rtol=0, atol=1e-10)
        z = sum(linear(model.linear[m], softmax(logits)) for m, logits in own.items())
        torch.testing.assert_close(got["logits"][i], z, rtol=0, atol=1e-10)


def test_uscs_cnn_has_the_papers_layers():
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
