"""The contract that every entry of FUSIONS keeps, and the layers that all share."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.corpus.manifest import Manifest
from ser.errors import WrongUse
from ser.export.substitutes import replaced
from ser.tests import one_by_one
from ser.tests.small_models import (
    CASES,
    FRAMES,
    LONG,
    TRAINED,
    build,
    make_batch,
    parts,
    widths,
    without,
)
from ser.train.data.loading import has_dialogues
from ser.train.models import FUSIONS, get_fusion
from ser.train.models.layers.attention import attention
from ser.train.models.layers.gru import bigru
from ser.train.models.layers.layout import RaggedLayout, concatenate
from ser.train.models.layers.pooling import SelfAttentionPooling, max_rows, mean_rows
from ser.train.models.layers.rnn import recurrent

in_float64 = pytest.mark.usefixtures("double")
every_fusion = pytest.mark.parametrize("name", CASES)

HIDDEN = {
    "audio": torch.tensor([True, False, False, True]),
    "text": torch.tensor([False, True, False, False]),
}


def fusions_and_lengths() -> list[Any]:
    """Each case with short utterances, and where it takes sequences with long ones too."""
    cases = []
    for name, fusion in CASES.items():
        cases.append(pytest.param(name, FRAMES, id=f"{name}, short"))
        if fusion.level == "sequence":
            cases.append(pytest.param(name, LONG, id=f"{name}, long"))
    return cases


def square_sum(outputs: dict[str, Tensor]) -> Tensor:
    """A loss that all outputs take part in."""
    return sum(logits.square().sum() for logits in outputs.values())


@every_fusion
@in_float64
def test_heads_are_logits_in_training_and_inference(name):
    fusion = CASES[name]
    assert fusion.name == name.removesuffix(" on layers")
    assert fusion.source

    model = build(name)
    batch = make_batch(name)
    outputs = model(batch)
    assert all(logits.shape == (4, 4) for logits in outputs.values())

    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(batch)["logits"], outputs["logits"])


@every_fusion
@in_float64
def test_each_stage_reaches_the_parameters_that_it_trains(name):
    model = build(name)
    batch = make_batch(name)
    parameters = dict(model.named_parameters())
    stages = CASES[name].stages
    # What the run is scored by.
    assert stages[-1].output == "logits"

    for stage in stages:
        model.zero_grad()
        F.cross_entropy(model(batch)[stage.output], batch.truth).backward()

        reached = set()
        trained = set()
        for parameter, weight in parameters.items():
            if weight.grad is not None and weight.grad.any():
                reached.add(parameter)
            if parameter.startswith(stage.trains):
                trained.add(parameter)

        # What is behind Perspective's fusion waits for the perspective loss.
        behind = set()
        if name[:2] in ("ef", "mf", "lf"):
            behind = {p for p in trained if p.split(".")[1] in ("audio", "text")}
        assert trained
        assert reached >= trained - behind


@every_fusion
@in_float64
def test_all_heads_together_reach_all_parameters(name):
    model = build(name)
    square_sum(model(make_batch(name))).backward()

    for parameter, weight in model.named_parameters():
        assert weight.grad is not None, parameter
        assert weight.grad.abs().max() >= 1e-12, parameter


@pytest.mark.parametrize(("name", "frames"), fusions_and_lengths())
@in_float64
def test_a_batch_is_its_utterances_or_dialogues_one_at_a_time(name, frames):
    """Also where a modality is hidden, of whose rows there are none: from some, or from all.

    Gradients are zeros and never None, which Adam would leave out: else a step would be another on
    another device.
    """
    whole = make_batch(name, frames)
    inputs = CASES[name].inputs
    everybody = torch.ones(4, dtype=torch.bool)

    ways = [{}, {modality: HIDDEN[modality] for modality in inputs}]
    for modality in inputs:
        ways.append({modality: everybody})
    ways.append(dict.fromkeys(inputs, everybody))

    model = build(name)
    for hidden in ways:
        model.zero_grad()
        batch = without(whole, hidden)
        with torch.no_grad():
            alone = [model(part) for part in parts(batch, batch.dialogues.tolist())]
        outputs = model(batch)

        for head, logits in outputs.items():
            expected = torch.cat([part[head] for part in alone])
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)

        square_sum(outputs).backward()
        for parameter, weight in model.named_parameters():
            assert weight.grad is not None, parameter
            assert weight.grad.isfinite().all(), parameter
            if sees_only_hidden(name, parameter, hidden):
                assert not weight.grad.any(), parameter


def sees_only_hidden(name: str, parameter: str, hidden: dict[str, Tensor]) -> bool:
    """Whether a parameter of a modality's own layers sees no rows at all."""
    if CASES[name].level != "sequence":
        return False
    for modality, is_hidden in hidden.items():
        layers = tuple(f"{p}.{modality}" for p in ("lstm", "encoder", "refine", "project"))
        if is_hidden.all() and parameter.startswith(layers):
            return True
    return False


@every_fusion
def test_features_of_another_width_are_one_sentence(name):
    for modality in CASES[name].inputs:
        dims = widths(name)
        fault = f"built for {modality} features of {dims[modality]} values, and got 3"
        batch = make_batch(name, dims={**dims, modality: 3})
        with pytest.raises(WrongUse, match=fault):
            build(name)(batch)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].level == "vector"])
def test_frames_for_a_model_of_vectors_are_one_sentence(name):
    modality = CASES[name].inputs[0]
    on_frames = name.replace(CASES[name].name, "cma")
    batch = make_batch(name)
    batch.inputs[modality] = make_batch(on_frames).inputs[modality]

    with pytest.raises(WrongUse, match=f"one {modality} vector per utterance"):
        build(name)(batch)


@pytest.mark.parametrize("name", ["mit", "lgf-add", "cma", "ks-transformer"])
def test_heads_that_do_not_split_are_one_sentence(name):
    with pytest.raises(WrongUse, match="width 8 cannot be split into 3 heads"):
        build(name, heads=3)


# Packed rows, attention, pooling, and the GRU with its backward pass by hand


PACKED = SimpleNamespace(
    RaggedLayout=RaggedLayout,
    attention=attention,
    concatenate=concatenate,
    max_rows=max_rows,
    recurrent=recurrent,
)


def results_of_layers(
    layers: Any, x: Tensor, y: Tensor, x_lengths: list[int], y_lengths: list[int]
) -> list[Tensor]:
    """What the layers of a module make of rows `[r, 2, 5]` and `[s, 2, 5]`.

    Some of the sequences are empty.
    """
    torch.manual_seed(1)
    pool = SelfAttentionPooling(10)
    lstm = nn.LSTM(10, 3, bidirectional=True)
    x_layout = layers.RaggedLayout(torch.tensor(x_lengths))
    y_layout = layers.RaggedLayout(torch.tensor(y_lengths))
    rows = x.flatten(1)
    return [
        layers.attention(x, y, y.flip(0), x_layout, y_layout),
        layers.attention(x, y, y.flip(0), x_layout, y_layout, keep=0.5),
        layers.max_rows(rows, x_layout),
        layers.recurrent(lstm, rows, x_layout),
        layers.concatenate(rows, x_layout, y.flatten(1), y_layout)[0],
        # What sees the ends by the layout alone.
        mean_rows(rows, x_layout),
        pool(rows, x_layout),
        x_layout.total(rows),
        x_layout.pad(x, -1.0),
        x_layout.unpad(x_layout.pad(x)),
        x[x_layout.position],
        x[x_layout.owner],
    ]


@in_float64
@pytest.mark.parametrize("longest", [7, 200], ids=["padded", "one by one"])
def test_layers_and_their_gradients_are_the_plain_ones(longest):
    x_lengths = [2, 3, 0, 1]
    y_lengths = [longest, 0, 4, 1]
    x = torch.randn(sum(x_lengths), 2, 5, requires_grad=True)
    y = torch.randn(sum(y_lengths), 2, 5, requires_grad=True)

    ours = results_of_layers(PACKED, x, y, x_lengths, y_lengths)
    plain = results_of_layers(one_by_one, x, y, x_lengths, y_lengths)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)

    our_gradients = torch.autograd.grad(sum((result**2).sum() for result in ours), (x, y))
    plain_gradients = torch.autograd.grad(sum((result**2).sum() for result in plain), (x, y))
    torch.testing.assert_close(our_gradients, plain_gradients, rtol=1e-10, atol=1e-10)


def test_joined_sequences_are_as_long_as_both_together():
    x = RaggedLayout(torch.tensor([2, 3, 0, 1]))
    y = RaggedLayout(torch.tensor([7, 0, 4, 1]))
    _, joined = concatenate(torch.randn(6, 2), x, torch.randn(12, 2), y)
    assert joined.lengths.tolist() == [9, 3, 4, 2]


@in_float64
@pytest.mark.parametrize(
    ("lengths", "count"),
    [
        pytest.param([4, 1, 7, 4], 3, id="three streams"),
        pytest.param([1, 1], 1, id="single turns"),
    ],
)
def test_bigru_and_its_gradients_are_those_of_torchs_gru(lengths, count):
    layers = nn.ModuleDict({str(i): nn.GRU(5, 3, bidirectional=True) for i in range(count)})
    layout = RaggedLayout(torch.tensor(lengths))
    x = {name: torch.randn(sum(lengths), 5, requires_grad=True) for name in layers}
    factors = {name: torch.randn(sum(lengths), 6) for name in x}
    leaves = [*layers.parameters(), *x.values()]

    def gradients(outputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        loss = sum((factors[name] * rows).sum() for name, rows in outputs.items())
        return torch.autograd.grad(loss, leaves)

    together = bigru(layers, x, layout)
    packed = {}
    expected = {}
    for name, rows in x.items():
        packed[name] = recurrent(layers[name], rows, layout)
        sequences = [layers[name](sequence)[0] for sequence in rows.split(lengths)]
        expected[name] = torch.cat(sequences)

    torch.testing.assert_close(together, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-14)
    wanted = gradients(expected)
    torch.testing.assert_close(gradients(together), wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients(packed), wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", TRAINED)
def test_every_fusion_gives_the_same_numbers_on_plain_layers(name: str) -> None:
    """One sequence after the other, also where an utterance lacks its text."""
    torch.manual_seed(0)
    model = build(name).eval()
    whole = make_batch(name, LONG)
    batches = [whole]
    if len(FUSIONS[name].inputs) == 2 and FUSIONS[name].level == "sequence":
        batches.append(without(whole, {"text": torch.tensor([False, True, False, True])}))

    layers = (RaggedLayout, attention, recurrent, bigru, max_rows, concatenate)
    plain = {layer: getattr(one_by_one, layer.__name__) for layer in layers}
    for batch in batches:
        with torch.no_grad(), replaced(plain, model):
            expected = model(batch)
        for head, logits in model(batch).items():
            torch.testing.assert_close(logits, expected[head], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "level", "with_dialogues", "expected"),
    [
        pytest.param("audio", "utterance", True, "audio:utterance", id="vectors of dialogues"),
        pytest.param("audio", "utterance", False, "linear:audio", id="vectors by themselves"),
        pytest.param("text", "utterance", False, "linear:text", id="text by itself"),
        pytest.param("audio", "frame", False, "audio:frame", id="frames"),
        pytest.param("audio:utterance", "utterance", False, "audio:utterance", id="by its name"),
    ],
)
def test_one_modality_alone_is_the_model_that_fits_its_corpus(
    name: str, level: str, with_dialogues: bool, expected: str
) -> None:
    modality = name.partition(":")[0]
    assert get_fusion(name, {modality: level}, with_dialogues).name == expected


@pytest.mark.parametrize("dialogues", ["of two turns", "of one", "unnamed"])
def test_a_corpus_has_dialogues_where_one_joins_two_utterances(dialogues: str) -> None:
    names = {"of two turns": ["a", "a", "b"], "of one": ["a", "b", "c"], "unnamed": [None] * 3}
    rows = []
    for number, dialogue in enumerate(names[dialogues]):
        rows.append({"id": str(number), "dialogue": dialogue, "label": "ang"})

    manifest = Manifest.from_rows("made", rows)
    assert has_dialogues(manifest) == (dialogues == "of two turns")
