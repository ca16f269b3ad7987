"""The contract that every entry of FUSIONS keeps, whichever paper it is from, and the layers that
all share.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.errors import WrongUse
from ser.export.one_sequence import replaced
from ser.tests import one_by_one
from ser.tests.plain_layers import CASES, FRAMES, LONG, build, make_batch, parts, widths, without
from ser.train.models import FUSIONS
from ser.train.models.layers.attention import attention
from ser.train.models.layers.gru import bigru
from ser.train.models.layers.layout import RaggedLayout, concatenate
from ser.train.models.layers.pooling import SelfAttentionPooling, max_rows, mean_rows
from ser.train.models.layers.rnn import recurrent

in_float64 = pytest.mark.usefixtures("double")
every_fusion = pytest.mark.parametrize("name", CASES)
every_length = pytest.mark.parametrize(
    ("name", "frames"),
    [
        (name, frames)
        for name, one in CASES.items()
        for frames in (FRAMES, LONG)[: 1 + (one.level == "sequence")]
    ],
)
HIDDEN = {
    "audio": torch.tensor([True, False, False, True]),
    "text": torch.tensor([False, True, False, False]),
}


@every_fusion
@in_float64
def test_heads_stages_and_gradients(name):
    fusion, model, batch = CASES[name], build(name), make_batch(name)
    assert fusion.name == name.removesuffix(" on layers") and fusion.source
    outputs = model(batch)
    assert all(logits.shape == (4, 4) for logits in outputs.values())
    for stage in fusion.stages:
        assert stage.output in outputs
        model.zero_grad()
        F.cross_entropy(model(batch)[stage.output], batch.truth).backward()
        reached = {
            name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
        }
        trained = {name for name, _ in model.named_parameters() if name.startswith(stage.trains)}
        behind = {
            n
            for n in trained
            if name[:2] in ("ef", "mf", "lf") and n.split(".")[1] in ("audio", "text")
        }
        assert (
            trained and reached >= trained - behind
        )  # what is behind the fusion waits for the perspective loss
    assert fusion.stages[-1].output == "logits"  # what the run is scored by
    model.zero_grad()
    sum(logits.square().sum() for logits in model(batch).values()).backward()
    assert [
        parameter
        for parameter, p in model.named_parameters()
        if p.grad is None or p.grad.abs().max() < 1e-12
    ] == []
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(batch)["logits"], outputs["logits"])


@every_length
@in_float64
def test_a_batch_is_its_utterances_or_dialogues_one_at_a_time(name, frames):
    """Also where a modality is hidden, of whose rows there are none: from some, or from all.

    Gradients are zeros and never None, which Adam would leave out: else a step would be another on
    another device.
    """
    whole, inputs = make_batch(name, frames), CASES[name].inputs
    every = torch.ones(4, dtype=torch.bool)
    for hidden in (
        {},
        {m: HIDDEN[m] for m in inputs},
        *({m: every} for m in inputs),
        dict.fromkeys(inputs, every),
    ):
        model, batch = build(name), without(whole, hidden)
        alone, outputs = (
            [model(one) for one in parts(batch, batch.dialogues.tolist())],
            model(batch),
        )
        for head, logits in outputs.items():
            torch.testing.assert_close(
                logits, torch.cat([one[head] for one in alone]), rtol=0, atol=1e-12
            )
        sum(logits.square().sum() for logits in outputs.values()).backward()
        assert [
            n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
        ] == []
        wholly = [
            m for m, which in hidden.items() if which.all() and CASES[name].level == "sequence"
        ]
        own = tuple(
            f"{part}.{m}" for m in wholly for part in ("lstm", "encoder", "refine", "project")
        )
        assert not any(p.grad.any() for n, p in model.named_parameters() if n.startswith(own))


@every_fusion
def test_wrong_features_are_one_sentence(name):
    fusion = CASES[name]
    for modality in fusion.inputs:
        with pytest.raises(
            WrongUse,
            match=f"built for {modality} features of {widths(name)[modality]} values, and got 3",
        ):
            build(name)(make_batch(name, dims={**widths(name), modality: 3}))
    if fusion.level == "vector":
        batch = make_batch(name)
        batch.inputs[fusion.inputs[0]] = make_batch(name.replace(fusion.name, "cma")).inputs[
            fusion.inputs[0]
        ]
        with pytest.raises(WrongUse, match=f"one {fusion.inputs[0]} vector per utterance"):
            build(name)(batch)


@pytest.mark.parametrize("name", ["mit", "lgf-add", "cma", "ks-transformer"])
def test_heads_that_do_not_split_are_one_sentence(name):
    with pytest.raises(WrongUse, match="width 8 cannot be split into 3 heads"):
        build(name, heads=3)


# Packed rows, attention, pooling, and the GRU with its backward pass by hand
# ------------------------------------------


PACKED = SimpleNamespace(
    RaggedLayout=RaggedLayout,
    attention=attention,
    concatenate=concatenate,
    max_rows=max_rows,
    recurrent=recurrent,
)


def outcomes(of, x, y, lengths, others):
    """What the layers of a module make of rows `[r, 2, 5]` and `[s, 2, 5]` in sequences, some of
    them empty.
    """
    torch.manual_seed(1)
    a, b = of.RaggedLayout(torch.tensor(lengths)), of.RaggedLayout(torch.tensor(others))
    rows, pool, lstm = (
        x.flatten(1),
        SelfAttentionPooling(10),
        nn.LSTM(10, 3, bidirectional=True),
    )
    joined, layout = of.concatenate(rows, a, y.flatten(1), b)
    found = [of.attention(x, y, y.flip(0), a, b, keep=keep) for keep in (1.0, 0.5)]
    found += [a.total(rows), of.max_rows(rows, a), of.recurrent(lstm, rows, a), joined]
    found += [mean_rows(rows, a), pool(rows, a)]  # which see the ends by the layout alone
    return [*found, a.pad(x, -1.0), a.unpad(a.pad(x)), x[a.position], x[a.owner]], layout.lengths


@in_float64
@pytest.mark.parametrize("longest", [7, 200], ids=["padded", "one by one"])
def test_layers_and_their_gradients_are_the_plain_ones(longest):
    lengths, others = [2, 3, 0, 1], [longest, 0, 4, 1]
    x, y = (torch.randn(sum(sizes), 2, 5, requires_grad=True) for sizes in (lengths, others))
    (ours, laid), (plain, wanted) = (
        outcomes(of, x, y, lengths, others) for of in (PACKED, one_by_one)
    )
    assert torch.equal(laid, wanted)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad(sum((one**2).sum() for one in found), (x, y)) for found in (ours, plain)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@in_float64
@pytest.mark.parametrize(("lengths", "count"), [([4, 1, 7, 4], 3), ([1, 1], 1)])
def test_bigru_and_its_gradients_are_those_of_torchs_gru(lengths, count):
    layers = nn.ModuleDict({str(i): nn.GRU(5, 3, bidirectional=True) for i in range(count)})
    plan = RaggedLayout(torch.tensor(lengths))
    x = {name: torch.randn(sum(lengths), 5, requires_grad=True) for name in layers}
    leaves = [*layers.parameters(), *x.values()]
    wanted = {name: torch.randn(sum(lengths), 6) for name in x}

    def gradients(y: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            sum((wanted[name] * rows).sum() for name, rows in y.items()), leaves
        )

    def sequence_by_sequence(name: str) -> Tensor:
        return torch.cat([layers[name](part[:, None])[0][:, 0] for part in x[name].split(lengths)])

    ours, theirs = bigru(layers, x, plan), {name: sequence_by_sequence(name) for name in x}
    packed = {name: recurrent(layers[name], rows, plan) for name, rows in x.items()}
    for name in x:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-14)
        torch.testing.assert_close(packed[name], theirs[name], rtol=0, atol=1e-14)
    for a, b, c in zip(gradients(ours), gradients(theirs), gradients(packed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(c, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_gives_the_same_numbers_on_plain_layers(name: str) -> None:
    """One sequence after the other, also where an utterance lacks its text."""
    torch.manual_seed(0)
    model = build(name).eval()
    whole = make_batch(name, LONG)
    batches = [whole]
    if len(FUSIONS[name].inputs) == 2 and FUSIONS[name].level == "sequence":
        batches.append(without(whole, {"text": torch.tensor([False, True, False, True])}))

    names = ("RaggedLayout", "attention", "recurrent", "bigru", "max_rows", "concatenate")
    plain = {name: getattr(one_by_one, name) for name in names}
    for batch in batches:
        with torch.no_grad(), replaced(plain, model):
            expected = model(batch)
        for head, logits in model(batch).items():
            torch.testing.assert_close(logits, expected[head], rtol=0, atol=1e-6)
