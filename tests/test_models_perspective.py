"""Perspective: against its equations written plainly, dialogue by dialogue, and against torch's own padded modules."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from ser.benchmarks.train import PlainPerspective
from ser.errors import WrongUse
from ser.tests.plain_layers import DIMS, attend, build, check_updates, linear, make_dialogues, parts, recurrent, softmax
from ser.train.models import FUSIONS
from ser.train.models.perspective import PerspectiveSettings
from ser.train.models.ragged import Batch

pytestmark = pytest.mark.usefixtures("double")
NAMES = [f"{position}-{method}" for position in ("ef", "mf", "lf", "lgf") for method in ("add", "concat", "at")]


def fuse(method: str, fusion: nn.Module, a: Tensor, t: Tensor) -> Tensor:
    """§2.3 for one utterance."""
    if method == "add":
        return a + t  # eq. 1
    if method == "concat":
        return fusion.w_f.weight @ torch.cat([a, t])  # eq. 2
    b = torch.stack([t, a], 1)  # columns
    return b @ softmax((fusion.w_vector.weight @ torch.tanh(fusion.w_matrix.weight @ b))[0])


def equations(model: nn.Module, batch: Batch, name: str) -> dict[str, Tensor]:
    """§2.2 and §2.3 for one dialogue after the other."""
    position, _, method = name.partition("-")

    def fused_at(where: str, x: dict[str, Tensor]) -> dict[str, Tensor]:
        if where != position:
            return x
        pairs = zip(x["audio"], x["text"], strict=True)
        return x | {"fused": torch.stack([fuse(method, model.fusion, a, t) for a, t in pairs])}

    found = []
    for dialogue in parts(batch, batch.dialogues.tolist()):
        x = {m: linear(model.features[m], rows.values).clamp(min=0) for m, rows in dialogue.inputs.items()}
        x = fused_at("ef", x)
        x = {s: recurrent(model.gru[s], rows) for s, rows in x.items()}
        x = fused_at("mf", x)
        x = {s: attend(model.attention[s], rows, rows) for s, rows in x.items()}
        x = fused_at("lf", x)
        x = {s: linear(model.logits[s], rows) for s, rows in x.items()}
        found.append(fused_at("lgf", x))
    logits = {stream: torch.cat([x[stream] for x in found]) for stream in found[0]}
    return {"logits": logits.pop("fused"), **logits} if method else {"logits": logits.popitem()[1]}


@pytest.mark.parametrize("name", [*NAMES, "audio:utterance", "text:utterance"])
def test_forward_and_training_follow_the_papers_equations(name):
    model, dims = build(name), {m: DIMS[m] for m in FUSIONS[name].inputs}
    batch = make_dialogues([3, 1, 5, 2], dims)
    got, expected = model(batch), equations(model, batch, name)
    assert got.keys() == expected.keys()
    for head, logits in expected.items():
        torch.testing.assert_close(got[head], logits, rtol=0, atol=1e-10)

    def slow_loss(model: nn.Module, batch: Batch) -> Tensor:
        outputs = equations(model, batch, name)
        return sum(F.cross_entropy(logits, batch.truth, reduction="sum") for logits in outputs.values())

    check_updates(model, copy.deepcopy(model), slow_loss, lambda: make_dialogues([3, 1, 4], dims), steps=3, decay=1e-5)


def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    sizes = batch.dialogues.tolist()
    x = {m: pad_sequence(list(s.values.split(sizes)), batch_first=True) for m, s in batch.inputs.items()}
    truth = pad_sequence(list(batch.truth.split(sizes)), batch_first=True, padding_value=-1).flatten()
    heads = model(x, batch.dialogues).values()
    return sum(F.cross_entropy(h.flatten(0, 1), truth, reduction="sum", ignore_index=-1) for h in heads)


@pytest.mark.parametrize("sizes", [[3, 1, 8, 2], [150, 20, 60]], ids=["padded attention", "attention per dialogue"])
def test_twelve_updates_equal_the_plain_model(sizes):
    settings = {"d_model": 16, "gru_hidden": 8, "heads": 4, "dropout": 0.0}
    ours, plain = build("lgf-add", **settings), PlainPerspective(PerspectiveSettings(**settings), DIMS, 4)
    plain.load_state_dict(ours.state_dict())
    check_updates(ours, plain, plain_loss, lambda: make_dialogues(sizes), decay=1e-5)


# The released code ----------------------------------------------------------------------------------------------------


class PlainReleased(PlainPerspective):
    """What Luyizhe/SpeechEmotion@17036b9 computes, on padded dialogues, with torch's modules."""

    def __init__(self, settings: PerspectiveSettings, method: str) -> None:
        super().__init__(settings, DIMS, 4)
        width = 2 * settings.gru_hidden
        self.hidden = nn.ModuleDict({m: nn.Linear(width, width) for m in DIMS})
        self.fusion = nn.Module()
        if method == "at":
            self.fusion.w_matrix = nn.Linear(4, 4, bias=False)
            self.fusion.register_buffer("w_vector", torch.empty(4))

    def forward(self, x: dict[str, Tensor], lengths: Tensor) -> dict[str, Tensor]:
        heads = {}
        for m, values in x.items():
            there = torch.arange(values.shape[1]) < lengths[:, None]
            rows = pack_padded_sequence(self.features[m](values), lengths, batch_first=True, enforce_sorted=False)
            h = pad_packed_sequence(self.gru[m](rows)[0], batch_first=True)[0]
            h = self.attention[m](h, h, h, key_padding_mask=~there, need_weights=True)[0]
            heads[m] = self.logits[m](torch.relu(self.hidden[m](h)) * there[..., None])
        heads["logits"] = heads["audio"] + heads["text"]
        if hasattr(self.fusion, "w_matrix"):
            u = self.fusion.w_matrix(torch.stack([heads["text"], heads["audio"]], 2))  # [m, S, 2, K]
            weights = torch.softmax(torch.relu(u) @ self.fusion.w_vector, 2)
            heads["logits"] = torch.einsum("msik,msi->msk", u, weights)
        return {head: found.softmax(2) for head, found in heads.items()}


@pytest.mark.parametrize("method", ["add", "at"])
def test_released_code_update_by_update(method):
    """Losses and weights are the same over updates of plain Adam; the score vector stays as it was."""
    ours = build(f"lgf-{method}", released=True, heads=4)
    plain = PlainReleased(PerspectiveSettings(d_model=8, gru_hidden=4, dropout=0.0), method)
    plain.load_state_dict(start := copy.deepcopy(ours.state_dict()))
    check_updates(ours, plain, plain_loss, lambda: make_dialogues([3, 1, 5, 30, 2]), decay=1e-5)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=0, atol=1e-10)
        assert torch.equal(weight, start[name]) == name.endswith("w_vector")
    assert build("lgf-add", released=True, dropout=0.2).attention["text"].dropout == 0.2


def test_released_code_has_nothing_else():
    assert {name for name in FUSIONS if "released" not in FUSIONS[name].unused} >= {"lgf-add", "lgf-at"}
    assert all("released" in FUSIONS[name].unused for name in (*NAMES[:-3], "lgf-concat", "audio:utterance"))
    with pytest.raises(WrongUse, match="constant rate; leave lr_decay out"):
        build("lgf-add", released=True, lr_decay=0.0)
