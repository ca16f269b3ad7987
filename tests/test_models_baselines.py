"""The systems that the papers compare with, against their descriptions written plainly."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import pytest
import torch
import torch.nn.functional as F

from ser.benchmarks.train import sinusoids
from ser.tests.plain_layers import (  # noqa: F401
    LONG,
    attend,
    both_ways,
    build,
    double,
    linear,
    make_batch,
    make_dialogues,
    one_way,
    parts,
    softmax,
    utterances,
)

pytestmark = pytest.mark.usefixtures("double")


def test_bc_lstm():
    model, batch = build("bc-lstm"), make_batch("bc-lstm")

    def level(module, x):
        z = linear(module.dense, both_ways(module.lstm, x)).clamp(min=0)
        return z, linear(module.logits, z)

    expected = {"audio": [], "text": [], "logits": []}
    for dialogue in parts(batch, batch.dialogues.tolist()):
        levels = {m: level(getattr(model, m), dialogue.inputs[m].values) for m in ("audio", "text")}
        levels["logits"] = level(model.fusion, torch.cat([levels[m][0] for m in ("audio", "text")], 1))
        for head, (_, logits) in levels.items():
            expected[head].append(logits)
    for head, logits in model(batch).items():
        torch.testing.assert_close(logits, torch.cat(expected[head]), rtol=0, atol=1e-10)


def test_concatenation():
    model, batch = build("concat:utterance"), make_batch("concat:utterance")
    both = torch.cat([batch.inputs[m].values for m in ("audio", "text")], 1)
    expected = linear(model.layers[4], linear(model.layers[1], both).clamp(min=0))
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)


def test_cross_modal_attention():
    model, batch = build("cma"), make_batch("cma", LONG)
    expected = []
    for utterance in utterances(batch):
        x = {m: both_ways(model.encoder[m], rows) for m, rows in utterance.items()}
        statistics = []
        for m, other in (("audio", "text"), ("text", "audio")):
            y = attend(model.attention[m], x[m], x[other])
            statistics += [y.mean(0), (((y - y.mean(0)) ** 2).mean(0) + 1e-8).sqrt()]
        expected.append(linear(model.logits, torch.cat(statistics)))
    torch.testing.assert_close(model(batch)["logits"], torch.stack(expected), rtol=0, atol=1e-10)


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
                    m[turns] = one_way(gru, u[:i][turns])
            m = torch.tanh(m)
            for gru in (model.influence, model.memory, model.memory):
                m = one_way(gru, m) if i else m
                q = torch.tanh(q + softmax(torch.tanh(m @ q)) @ m)
            expected.append(linear(model.logits, q))
    torch.testing.assert_close(model(batch)["logits"], torch.stack(expected), rtol=0, atol=1e-10)


def test_catf_lstm_turn_by_turn():
    model, batch = build("catf-lstm"), make_dialogues([3, 1, 6])  # two turns more than have weights of their own

    def level(cat, x):
        h, found = one_way(cat.lstm, x), []
        for i, h_t in enumerate(h):
            t = min(i, 3)
            alpha = softmax(cat.w[t] @ torch.tanh(cat.w_h[t] @ h.T))
            found.append(torch.tanh(cat.w_p[t] @ (h.T @ alpha) + cat.w_x[t] @ h_t))
        return torch.stack(found), linear(cat.logits, torch.stack(found))

    expected = {"audio": [], "text": [], "logits": []}
    for dialogue in parts(batch, [3, 1, 6]):
        levels = {m: level(getattr(model, m), dialogue.inputs[m].values) for m in ("audio", "text")}
        b = torch.stack([levels["text"][0], levels["audio"][0]], 2)  # [n, d, 2]
        alpha = softmax((model.fuse.w_vector.weight @ torch.tanh(model.fuse.w_matrix.weight @ b))[:, 0])
        levels["logits"] = level(model.fusion, (b * alpha[:, None]).sum(2))
        for head, (_, logits) in levels.items():
            expected[head].append(logits)
    for head, logits in model(batch).items():
        torch.testing.assert_close(logits, torch.cat(expected[head]), rtol=0, atol=1e-10)


def gban(model, audio, text):
    windows = torch.stack([part.max(0).values for part in audio.split(2)])
    s, w = both_ways(model.lstm["audio"], windows), both_ways(model.lstm["text"], text)

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
    return linear(model.logits, both_ways(model.lstm, torch.stack(words)).max(0).values)


def ks_transformer(model, audio, text):
    def norm(layer, x):
        return F.layer_norm(x, (8,), layer.weight, layer.bias)

    def stack(module, x, memory=None):
        x = norm(module.norm, x)
        memory = None if memory is None else norm(module.memory_norm, memory)
        for layer in module.layers:
            y = key_sparse(layer.self_attn, x, memory)
            x = norm(layer.norm1, x + y)
            x = norm(layer.norm2, x + linear(layer.linear2, linear(layer.linear1, x).clamp(min=0)))
        return x

    def key_sparse(layer, x, memory):
        q = x + sinusoids(len(x), 8)
        k, v = (q, q) if memory is None else (memory + sinusoids(len(memory), 8), memory)
        maps = zip(layer.in_proj_weight.split(8), layer.in_proj_bias.split(8), (q, k, v), strict=True)
        q, k, v = (y @ w.T + b for w, b, y in maps)
        heads = []
        for cut in (slice(0, 4), slice(4, 8)):
            weights = softmax(q[:, cut] @ k[:, cut].T / 2)
            if layer.keep < 1:
                kept = weights.sum(0).topk(max(1, len(k) // 2)).indices
                weights = torch.stack([weights[:, j] * (j in kept) for j in range(len(k))], 1)
            heads.append(weights @ v[:, cut])
        return linear(layer.out_proj, torch.cat(heads, 1))

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


@pytest.mark.parametrize("plain", [gban, cme, ks_transformer])
def test_utterance_by_utterance(plain):
    name = plain.__name__.replace("_", "-")
    model, batch = build(name), make_batch(name, LONG)
    expected = torch.stack([plain(model, **rows) for rows in utterances(batch)])
    torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-10)
