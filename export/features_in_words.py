"""How each feature of a run is made, in words and numbers: for whoever computes it without ser."""

from typing import Any

from ser.cache.spec import Spec
from ser.train.records import FeatureRecord

# What a frame of an encoder of waveforms is made of.
FRAMES = "one frame every {:g} ms"


def feature_in_words(spec: Spec) -> str:
    """What a store holds of the feature, in sentences."""
    describe = BY_EXTRACTOR.get(spec.extractor, other)
    sentences = describe(spec)

    shape = f"{spec.dim} values"
    if spec.hop:
        shape += f", {FRAMES.format(1000 * spec.hop)}"
    sentences.append(f"{shape}, rounded to {spec.dtype}")
    return "; ".join(sentences)


def reading_in_words(spec: Spec, record: FeatureRecord, by_vectors: bool) -> str:
    """What the run does with the rows that a store holds; empty where it takes them as they are."""
    steps: list[str] = []
    if record.hop is not None and spec.hop:
        every = round(record.hop / spec.hop)
        steps.append(f"averaged over {every} frames ({record.hop:g} s), the last over what is left")
    if by_vectors and spec.level != "utterance":
        pooled = "mean" if record.pool == "mean" else "mean, and then the standard deviation (n)"
        steps.append(f"made one vector: the {pooled} of the rows")
    return ", then ".join(steps)


def encoder_of_waveforms(spec: Spec) -> list[str]:
    """HuBERT, wav2vec 2.0 and their like."""
    config = spec.config
    sentences = [checkpoint_in_words(spec), audio_in_words(spec)]
    if config["normalize"]:
        sentences.append("the whole waveform x becomes (x - mean) / sqrt(variance + 1e-7)")
    else:
        sentences.append("the waveform is taken as it is")

    sentences.append(layer_in_words(spec))
    norms = {
        "before": "taken before the encoder's final LayerNorm",
        "after": "taken after the encoder's final LayerNorm",
    }
    if config["norm"] in norms:
        sentences.append(norms[config["norm"]])

    sentences += pooling_in_words(spec)
    sentences.append(
        f"above {config['window']:g} s in windows that overlap by twice {config['context']:g} s"
    )
    return sentences


def whisper(spec: Spec) -> list[str]:
    """The encoder of Whisper."""
    states = "the states that the audio reaches"
    if spec.config.get("pad") == "keep":
        states = "all states of each window"
    return [
        checkpoint_in_words(spec),
        audio_in_words(spec),
        "in consecutive windows of 30 s, the last padded with zeros",
        "log-mel spectrogram of WhisperFeatureExtractor (Hann window of 25 ms every 10 ms, log10, "
        "at least 8 below the window's maximum, (x + 4) / 4)",
        layer_in_words(spec),
        f"the last layer is after the final LayerNorm; {states} are kept",
        *pooling_in_words(spec),
    ]


def filterbank_encoder(spec: Spec) -> list[str]:
    """Wav2Vec2-BERT 2.0."""
    return [
        checkpoint_in_words(spec),
        audio_in_words(spec),
        "log-mel frames of SeamlessM4TFeatureExtractor (160 values, two frames side by side, each "
        "band normalised over the utterance)",
        layer_in_words(spec),
        *pooling_in_words(spec),
    ]


def text_encoder(spec: Spec) -> list[str]:
    """BERT, MPNet and their like."""
    config = spec.config
    sentences = [checkpoint_in_words(spec), "its own tokenizer", layer_in_words(spec)]
    kept = "with" if config["special"] else "without"
    sentences.append(f"one row per token, {kept} the special tokens, which the encoder always sees")
    return [*sentences, *text_in_words(spec)]


def tokens_in_words(spec: Spec) -> str:
    """What the encoder of a text feature takes, where the run trained it from the tokens on."""
    sentences = [
        "token ids, with the special tokens",
        f"by the tokenizer of {checkpoint_in_words(spec)}",
        *text_in_words(spec),
    ]
    return "; ".join(sentences)


def mel(spec: Spec) -> list[str]:
    """Log-mel spectrograms and MFCC."""
    config = spec.config
    high = config["high"] or config["sampling_rate"] / 2
    sentences = [
        audio_in_words(spec),
        f"power spectrum by a Hann window of {1000 * config['window']:g} ms, frame t centred at t "
        "times the hop, half a window of zeros at each end",
        f"{config['bands']} mel bands of librosa from {config['low']:g} to {high:g} Hz",
        f"natural logarithm of at least {config['floor']:g}",
    ]
    if config["coefficients"]:
        sentences.append(f"the first {config['coefficients']} values of an orthonormal DCT-II")
    return sentences


def smile(spec: Spec) -> list[str]:
    """OpenSMILE's sets."""
    config = spec.config
    return [
        f"openSMILE's {config['feature_set']}, {config['level']}, by the package opensmile",
        audio_in_words(spec),
        f"clipped to -1 and {config['clip']:g}",
    ]


def other(spec: Spec) -> list[str]:
    """An extractor of another package, or rows that were imported."""
    settings = ", ".join(f"{key} = {value}" for key, value in spec.config.items())
    origin = spec.provenance.get("file") or spec.provenance.get("package") or "not recorded"
    return [f"extractor {spec.extractor}, version {spec.version} ({origin})", settings or "as is"]


BY_EXTRACTOR = {
    "speech": encoder_of_waveforms,
    "whisper": whisper,
    "w2v-bert": filterbank_encoder,
    "text": text_encoder,
    "mel": mel,
    "smile": smile,
}


def checkpoint_in_words(spec: Spec) -> str:
    """The encoder's id, and ser's digest of its weights and settings."""
    digest = str(spec.checkpoint.get("digest", ""))[:16]
    return f"encoder {spec.provenance.get('model', 'not recorded')} (digest {digest}…)"


def audio_in_words(spec: Spec) -> str:
    """Rate and channels."""
    rate = spec.config["sampling_rate"]
    return f"mono at {rate} Hz (channels averaged, resampled by soxr), floats from -1 to 1"


def layer_in_words(spec: Spec) -> str:
    """Which hidden state."""
    last = spec.provenance.get("layers", "?")
    words = f"layer {spec.config['layer']} of {last} (0 is what the first takes)"
    if spec.config.get("precision") == "bfloat16":
        words += ", under autocast to bfloat16"
    return words


def pooling_in_words(spec: Spec) -> list[str]:
    """Of an encoder whose frames were averaged before they were stored."""
    config: Any = spec.config
    return ["the mean of all frames"] if config.get("pool") == "mean" else []


def text_in_words(spec: Spec) -> list[str]:
    """What is done to a text, and where it ends."""
    sentences: list[str] = []
    if spec.config["tags"] == "remove":
        sentences.append("tags such as [LAUGHTER] are removed from the text")
    sentences.append(f"cut to {spec.config['most']} tokens")
    return sentences
