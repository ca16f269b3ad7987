"""The top of an encoder on cached rows is the top of the whole encoder, for every architecture.

The plain model of Hugging Face, one utterance at a time, is the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ser.tests.small_models import DIMS, FRAMES, TOKENS, TRAINED, make_batch, settings_of
from ser.train.models.batch import Sequences, visible_rows
from ser.train.models.encoder_front import masked, with_encoders
from ser.train.models.encoders import (
    ARCHITECTURES,
    Adapters,
    EncoderTop,
    add_adapters,
    cut_top,
    merge_adapters,
    untrained_top,
)
from ser.train.models.encoders.text import name_of_layers
from ser.train.models.layers.layout import RaggedLayout
from ser.weights.demo import randomise_norms_and_biases

DEPTH = 3
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SPEECH = {
    **SIZES,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
TEXT = {**SIZES, "vocab_size": 40, "pad_token_id": 1, "max_position_embeddings": 40}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}

# What the sizes lack, by architecture; a second one of an architecture behind a space.
SETTINGS: dict[str, dict[str, Any]] = {
    "data2vec-audio": {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5},
    "wavlm": {"num_buckets": 8, "max_bucket_distance": 6},
    "wav2vec2-bert": {
        "feature_projection_input_dim": 12,
        "conv_depthwise_kernel_size": 3,
        "left_max_position_embeddings": 4,
    },
    "wav2vec2-bert relative": {
        "feature_projection_input_dim": 12,
        "conv_depthwise_kernel_size": 3,
        "position_embeddings_type": "relative",
    },
    "hubert large": LARGE,
    "wav2vec2 large": LARGE,
    "wavlm large": {**LARGE, "num_buckets": 8, "max_bucket_distance": 6},
    "unispeech-sat large": LARGE,
    "whisper": {
        "d_model": 16,
        "encoder_layers": DEPTH,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "num_mel_bins": 8,
        "max_source_positions": 10,
        "vocab_size": 8,
        "pad_token_id": 1,
    },
    "deberta": RELATIVE,
    "deberta-v2": {**RELATIVE, "position_buckets": 4, "conv_kernel_size": 3},
    "distilbert": {"dim": 16, "n_layers": DEPTH, "n_heads": 2, "hidden_dim": 24},
    "electra": {"embedding_size": 8},
    "eurobert": {"num_key_value_heads": 2, "head_dim": 8},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2},
    "rembert": {"input_embedding_size": 8},
}

# How many layers from the top are trained. What two show, one and all show too.
TOPS = [1, pytest.param(2, marks=pytest.mark.slow), DEPTH]
LENGTHS = [5, 1, 9]


def _cases() -> list[str]:
    architectures = [*ARCHITECTURES["audio"], *ARCHITECTURES["text"]]
    return [*architectures, *(name for name in SETTINGS if " " in name)]


@dataclass
class Whole:
    """A whole encoder, and what it makes of some utterances."""

    config: dict[str, Any]
    model: Any
    layers: nn.ModuleList
    """All of its layers."""
    run: Callable[[Any], Tensor]
    """One utterance's input → the last hidden states `[rows, d]`."""
    inputs: list[Any]
    states: dict[int, list[Tensor]]
    """By k, the rows of layer k of each utterance."""


@pytest.fixture(scope="module", params=_cases())
def whole(request: pytest.FixtureRequest) -> Whole:
    """In float64."""
    return make_whole(request.param)


def make_whole(case: str) -> Whole:
    architecture = case.partition(" ")[0]
    audio = architecture in ARCHITECTURES["audio"]
    sizes = SPEECH if audio else TEXT
    if architecture in ("whisper", "distilbert"):
        sizes = {} if architecture == "whisper" else {**TEXT}
    entries = {**sizes, **SETTINGS.get(case, {})}
    config = transformers.AutoConfig.for_model(architecture, **entries)

    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    randomise_norms_and_biases(model)
    model = model.eval().double()
    if architecture == "whisper":
        model = model.encoder
    layers = model.layers if architecture == "whisper" else None
    layers = layers or (
        model.encoder.layers
        if audio
        else model.get_submodule(name_of_layers(model).removeprefix("model."))
    )

    inputs, run = inputs_of(architecture, model)
    states: dict[int, list[Tensor]] = {k: [] for k in range(DEPTH)}

    def keep(number: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            states[number].append(x[0].detach().clone())

        return hook

    hooks = [
        layer.register_forward_pre_hook(keep(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    with torch.no_grad():
        for x in inputs:
            run(x)
    for hook in hooks:
        hook.remove()
    described = {**config.to_dict(), "model_type": architecture}
    return Whole(described, model, layers, run, inputs, states)


def inputs_of(architecture: str, model: Any) -> tuple[list[Any], Callable[[Any], Tensor]]:
    """Three utterances of unlike lengths, and the plain model."""
    if architecture == "whisper":
        # Windows of one utterance.
        inputs = [torch.randn(windows, 8, 20).double() for windows in (1, 2)]
        return [window[None] for x in inputs for window in x], lambda x: model(x).last_hidden_state[
            0
        ]
    if architecture == "wav2vec2-bert":
        inputs = [torch.randn(1, length, 12).double() for length in LENGTHS]
    elif architecture in ARCHITECTURES["audio"]:
        inputs = [torch.randn(1, 15 + 20 * length).double() for length in LENGTHS]
    else:
        inputs = [torch.randint(2, 40, (1, length)) for length in LENGTHS]
        return inputs, lambda x: model(x, attention_mask=torch.ones_like(x)).last_hidden_state[0]
    return inputs, lambda x: model(x).last_hidden_state[0]


def rows_below(whole: Whole, k: int) -> tuple[Tensor, RaggedLayout]:
    """The packed rows of layer k of all utterances; of Whisper with whose states are of audio."""
    states = whole.states[k]
    if whole.config["model_type"] == "whisper":
        states = [nn.functional.pad(x, (0, 1), value=1.0) for x in states]
    lengths = torch.tensor([len(x) for x in states])
    return torch.cat(states), RaggedLayout(lengths)


def top_of(whole: Whole, layers: int) -> EncoderTop:
    import copy

    return cut_top(copy.deepcopy(whole.model), layers).eval()


@pytest.mark.parametrize("layers", TOPS)
def test_outputs_are_those_of_the_whole_encoder(whole: Whole, layers: int) -> None:
    x, layout = rows_below(whole, DEPTH - layers)
    with torch.no_grad():
        expected = torch.cat([whole.run(x) for x in whole.inputs])
        rows, lengths = top_of(whole, layers)(x, layout)
    assert lengths.lengths.tolist() == layout.lengths.tolist()
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", TOPS)
def test_gradients_are_those_of_the_whole_encoder(whole: Whole, layers: int) -> None:
    """With its layers below frozen; one utterance at a time, and in one batch."""
    top = top_of(whole, layers)
    rows, _ = top(*rows_below(whole, DEPTH - layers))
    torch.manual_seed(1)
    direction = torch.randn_like(rows)
    (rows * direction).sum().backward()

    whole.model.zero_grad()
    outputs = torch.cat([whole.run(x) for x in whole.inputs])
    (outputs * direction).sum().backward()

    trained = gradients(top, top.layers_of_stack)
    expected = gradients(whole.model, whole.layers[DEPTH - layers :])
    assert len(trained) >= 6 * layers
    for name, gradient in trained.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-10)


def gradients(model: nn.Module, layers: nn.ModuleList) -> dict[str, Tensor]:
    """Those of the trained weights: of the layers, and of what is outside of all layers."""
    numbers = {}
    for number, layer in enumerate(layers):
        for name, weight in layer.named_parameters():
            numbers[weight] = f"{number}.{name}"

    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.grad is not None:
            found[numbers.get(weight, name.rpartition("model.")[2])] = weight.grad
    return found


@pytest.mark.parametrize("layers", [1, DEPTH])
def test_a_trained_top_is_built_again_without_its_checkpoint(whole: Whole, layers: int) -> None:
    x, layout = rows_below(whole, DEPTH - layers)
    top = top_of(whole, layers)
    again = untrained_top(whole.config, layers).double().eval()
    again.load_state_dict(top.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(x, layout)[0], top(x, layout)[0], rtol=0, atol=1e-12)
    trained = {name for name, weight in top.named_parameters() if weight.requires_grad}
    assert trained == {name for name, weight in again.named_parameters() if weight.requires_grad}


def test_adapters_are_low_rank_changes_of_every_projection(whole: Whole) -> None:
    """By hand: the plain top with W + (alpha / rank) B A; nothing before the first update."""
    pytest.importorskip("peft")
    x, layout = rows_below(whole, 2)
    plain = top_of(whole, 1)
    adapted = top_of(whole, 1)
    add_adapters(adapted, Adapters(rank=2, alpha=3.0, dropout=0.0))
    adapted.double()
    with torch.no_grad():
        torch.testing.assert_close(adapted(x, layout)[0], plain(x, layout)[0], rtol=0, atol=1e-12)

    trained = {name: w for name, w in adapted.named_parameters() if w.requires_grad}
    torch.manual_seed(0)
    for weight in trained.values():
        nn.init.normal_(weight, std=0.1)
    rows, _ = adapted(x, layout)
    (rows * torch.randn_like(rows)).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in trained.values())

    changes = {}
    for name, weight in trained.items():
        projection, _, rest = name.partition(".lora_A.")
        if rest:
            changes[f"{projection}.weight"] = 1.5 * trained[f"{projection}.lora_B.{rest}"] @ weight
    linear = {
        name
        for name, module in plain.layers_of_stack.named_modules()
        if isinstance(module, nn.Linear) and "gru" not in name
    }
    assert {name.removeprefix(f"{plain.stack}.") for name in changes} == {
        f"{name}.weight" for name in linear
    }

    state = plain.state_dict()
    plain.load_state_dict({**state, **{name: state[name] + changes[name] for name in changes}})
    merge_adapters(adapted)
    assert adapted.state_dict().keys() == state.keys()
    with torch.no_grad():
        # Some norms compute in float32.
        torch.testing.assert_close(plain(x, layout)[0], rows, rtol=0, atol=1e-6)
        torch.testing.assert_close(adapted(x, layout)[0], plain(x, layout)[0], rtol=0, atol=1e-6)


SMALL_HUBERT = {
    **SPEECH,
    "model_type": "hubert",
    "hidden_size": DIMS["audio"],
    "num_attention_heads": 3,
    "num_conv_pos_embedding_groups": 3,
}
SMALL_BERT = {
    **TEXT,
    "model_type": "bert",
    "hidden_size": DIMS["text"],
    "num_attention_heads": 1,
}


@pytest.mark.parametrize("name", TRAINED)
def test_every_fusion_takes_what_its_encoders_give(name: str) -> None:
    """It sees the rows of the last layer, or their mean, and its loss reaches their weights."""
    plain = TRAINED[name]
    configs = {"audio": SMALL_HUBERT, "text": SMALL_BERT}
    tops = {}
    for modality in plain.inputs:
        tops[modality] = partial(untrained_top, configs[modality], 1)
    fusion = with_encoders(plain, tops, {"audio": "mean", "text": "mean"})

    settings = settings_of(name)
    dims = {modality: DIMS[modality] for modality in plain.inputs}
    torch.manual_seed(0)
    model = fusion.build(settings, dims, 4).eval()

    batch = make_batch(name)
    rows = {"audio": FRAMES, "text": TOKENS}
    for modality in plain.inputs:
        lengths = torch.tensor(rows[modality])
        values = torch.randn(int(lengths.sum()), DIMS[modality])
        batch.inputs[modality] = Sequences(values, lengths)

    logits = model(batch)["logits"]
    encoded = model.encoders(batch)
    alone = plain.build(settings, dims, 4).eval()
    weights = model.state_dict()
    alone.load_state_dict({key: weights[key] for key in alone.state_dict()})
    torch.testing.assert_close(logits, alone(encoded)["logits"], rtol=0, atol=0)

    for modality in plain.inputs:
        top = model.encoders[modality]
        x, layout = visible_rows(batch, modality, DIMS[modality])
        expected, _ = top(x, layout)
        if plain.level == "vector":
            expected = torch.stack([part.mean(0) for part in expected.split(rows[modality])])
        torch.testing.assert_close(encoded.inputs[modality].values, expected)

    logits.square().sum().backward()
    for top in model.encoders.values():
        assert any(weight.grad is not None and weight.grad.any() for weight in top.parameters())


@pytest.fixture
def trained_hubert() -> EncoderTop:
    torch.manual_seed(0)
    return untrained_top(SMALL_HUBERT, 2)


def test_layers_are_counted_from_the_top(trained_hubert: EncoderTop) -> None:
    above = {trained_hubert.layers_above(name) for name, _ in trained_hubert.named_parameters()}
    assert above == {0, 1}
    assert trained_hubert.layers_above("encoder.layers.0.attention.k_proj.weight") == 1

    bert = untrained_top(SMALL_BERT, "all")
    assert bert.layers_above("model.embeddings.word_embeddings.weight") == DEPTH
    modern = untrained_top({**TEXT, **SETTINGS["modernbert"], "model_type": "modernbert"}, 1)
    assert modern.layers_above("model.final_norm.weight") == 0


@pytest.mark.parametrize("config", [SMALL_HUBERT, {**SMALL_BERT, "model_type": "mpnet"}])
def test_recomputed_activations_give_the_same_gradients(config: dict[str, Any]) -> None:
    """With the same dropout, to the bit."""
    found = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        top = untrained_top(config, 2).train()
        if recomputes:
            top.recompute()
        torch.manual_seed(1)
        x = torch.randn(12, top.columns)
        rows, _ = top(x, RaggedLayout(torch.tensor([5, 7])))
        rows.square().sum().backward()
        found.append([weight.grad for weight in top.parameters() if weight.grad is not None])
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)


def test_a_share_of_the_rows_is_masked_in_spans_by_the_mean_of_their_sequence() -> None:
    torch.manual_seed(0)
    x = torch.arange(4000.0)[:, None]
    layout = RaggedLayout(torch.tensor([3000, 1000]))
    rows = masked(x, layout, 0.3)

    changed = (rows != x)[:, 0]
    assert changed.float().mean() == pytest.approx(0.3, abs=0.05)
    assert set(rows[changed][:, 0].tolist()) == {1499.5, 3499.5}
    # A span is at least so long, but at the end of its sequence.
    starts = (changed & ~changed.roll(1)).nonzero()[:, 0].tolist()
    ends = (changed & ~changed.roll(-1)).nonzero()[:, 0].tolist()
    lengths = [end - start + 1 for start, end in zip(starts, ends, strict=True) if end != 2999]
    assert min(lengths[:-1]) >= 9
