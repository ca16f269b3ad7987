"""The systems that the papers compare with, against their descriptions written plainly."""

# Attributes of torch's modules have no types.
# mypy: ignore-errors

import pytest
import torch

from ser.tests.plain_layers import LONG, attend, both_ways, build, double, linear, make_batch, parts, utterances  # noqa: F401

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
