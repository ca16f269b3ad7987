"""The registry of features: the names that users give, and what computes each.

Built-in features, a user's own and those of installed packages are in one table, `FEATURES`. The
classes of ser's own extractors are imported when they are first needed: torch and transformers are
slow to import.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from ser.cache.spec import Level
from ser.corpus.names import Modality
from ser.errors import DISTRIBUTION, WrongUse, unknown
from ser.plugins import Registry

from .extractor import Extractor


@dataclass(frozen=True)
class FeatureKind:
    """What a feature name stands for."""

    modality: Modality
    level: Level
    summary: str
    # The class, or a function that imports and returns it.
    extractor: type[Extractor] | Callable[[], type[Extractor]]
    # The default checkpoint. "": the user must name one; None: computed without weights.
    model: str | None = None
    # Settings of the extractor that the name stands for.
    preset: Mapping[str, Any] = field(default_factory=dict)
    # Defaults of settings that the user may change.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # A package that it needs and ser alone does not: as it is imported, and the extra of ser.
    package: tuple[str, str] | None = None

    @property
    def extractor_class(self) -> type[Extractor]:
        """The extractor's class, imported when it is first needed."""
        if isinstance(self.extractor, type):
            return self.extractor
        return self.extractor()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that may follow the feature's name, with their types.

        They are the fields of the extractor's config.
        """
        extractor = self.extractor_class
        types = get_type_hints(extractor.Config)

        settings: dict[str, Any] = {}
        for entry in fields(extractor.Config):
            setting = entry.metadata.get("setting", entry.name)
            hidden = setting in self.preset or setting in extractor.fixed
            if entry.init and not hidden:
                settings[setting] = types[entry.name]
        return settings


OPENSMILE = ("opensmile", "smile")


def lacks(package: str, extra: str) -> str:
    """That a package is not installed here, and the command that installs it."""
    return f"{package} is not installed here; run `pip install '{DISTRIBUTION}[{extra}]'`"


def _speech() -> type[Extractor]:
    from .speech import SpeechExtractor

    return SpeechExtractor


def _filterbank() -> type[Extractor]:
    from .filterbank import FilterbankExtractor

    return FilterbankExtractor


def _whisper() -> type[Extractor]:
    from .whisper import WhisperExtractor

    return WhisperExtractor


def _text() -> type[Extractor]:
    from .text import TextExtractor

    return TextExtractor


def _smile() -> type[Extractor]:
    try:
        from .smile import SmileExtractor
    except ImportError as fault:
        raise WrongUse(lacks(*OPENSMILE)) from fault

    return SmileExtractor


def _mel() -> type[Extractor]:
    from .mel import MelExtractor

    return MelExtractor


BUILT_IN: Mapping[str, FeatureKind] = {
    # Encoders of speech.
    "hubert": FeatureKind(
        "audio",
        "frame",
        "HuBERT frames, 50 a second",
        _speech,
        model="facebook/hubert-base-ls960",
    ),
    "wav2vec2": FeatureKind(
        "audio",
        "frame",
        "wav2vec 2.0 frames",
        _speech,
        model="facebook/wav2vec2-base",
    ),
    "wavlm": FeatureKind(
        "audio",
        "frame",
        "WavLM frames",
        _speech,
        model="microsoft/wavlm-base-plus",
    ),
    "data2vec": FeatureKind(
        "audio",
        "frame",
        "data2vec frames",
        _speech,
        model="facebook/data2vec-audio-base",
    ),
    "unispeech-sat": FeatureKind(
        "audio",
        "frame",
        "UniSpeech-SAT",
        _speech,
        model="microsoft/unispeech-sat-base-plus",
    ),
    "w2v-bert": FeatureKind(
        "audio",
        "frame",
        "Wav2Vec2-BERT 2.0 frames",
        _filterbank,
        model="facebook/w2v-bert-2.0",
    ),
    "whisper": FeatureKind(
        "audio",
        "frame",
        "states of Whisper's encoder",
        _whisper,
        model="openai/whisper-base",
    ),
    # Encoders of text.
    "mpnet": FeatureKind(
        "text",
        "token",
        "MPNet tokens",
        _text,
        model="microsoft/mpnet-base",
    ),
    "bert": FeatureKind(
        "text",
        "token",
        "BERT tokens",
        _text,
        model="bert-base-uncased",
    ),
    "bert-cased": FeatureKind(
        "text",
        "token",
        "BERT tokens, cased (USC §5.1)",
        _text,
        model="bert-base-cased",
    ),
    "roberta": FeatureKind(
        "text",
        "token",
        "RoBERTa tokens",
        _text,
        model="FacebookAI/roberta-base",
    ),
    "deberta": FeatureKind(
        "text",
        "token",
        "DeBERTa tokens",
        _text,
        model="microsoft/deberta-v3-base",
    ),
    "electra": FeatureKind(
        "text",
        "token",
        "ELECTRA tokens",
        _text,
        model="google/electra-base-discriminator",
    ),
    "xlm-r": FeatureKind(
        "text",
        "token",
        "XLM-R tokens",
        _text,
        model="FacebookAI/xlm-roberta-base",
    ),
    "modernbert": FeatureKind(
        "text",
        "token",
        "ModernBERT tokens",
        _text,
        model="answerdotai/ModernBERT-base",
    ),
    "text": FeatureKind(
        "text",
        "token",
        "tokens of the text encoder that --model names",
        _text,
        model="",
    ),
    # openSMILE's sets.
    "is13": FeatureKind(
        "audio",
        "utterance",
        "openSMILE's IS13_ComParE",
        _smile,
        preset={"set": "IS13_ComParE"},
        package=OPENSMILE,
    ),
    "egemaps": FeatureKind(
        "audio",
        "utterance",
        "openSMILE's eGeMAPSv02",
        _smile,
        preset={"set": "eGeMAPSv02"},
        package=OPENSMILE,
    ),
    "compare": FeatureKind(
        "audio",
        "utterance",
        "openSMILE's ComParE_2016",
        _smile,
        preset={"set": "ComParE_2016"},
        package=OPENSMILE,
    ),
    "smile": FeatureKind(
        "audio",
        "utterance",
        "any set of openSMILE, as smile:set=GeMAPSv01b",
        _smile,
        package=OPENSMILE,
    ),
    # Spectra.
    "logmel": FeatureKind(
        "audio",
        "frame",
        "log-mel spectrogram, 100 frames a second",
        _mel,
        preset={"coefficients": 0},
    ),
    "mfcc": FeatureKind(
        "audio",
        "frame",
        "MFCC of the log-mel spectrogram",
        _mel,
        defaults={"coefficients": 40},
    ),
}

FEATURES: Registry[FeatureKind] = Registry("feature", "ser.extractors", FeatureKind, BUILT_IN)


def split_names(features: str | Sequence[str]) -> list[str]:
    """`"hubert:layer=9,norm=before,is13"` to its names, each once.

    A comma before `key=` belongs to a variant.
    """
    text = features if isinstance(features, str) else ",".join(features)
    text = re.sub(r"\s*,\s*", ",", text.strip())

    names = [name for name in re.split(r",(?!\w+=)", text) if name]
    if not names:
        raise WrongUse(f"no feature is named; known: {', '.join(sorted(FEATURES))}")
    return list(dict.fromkeys(names))


def parse_name(name: str) -> tuple[str, dict[str, str]]:
    """`"hubert:layer=9"` to `("hubert", {"layer": "9"})`.

    Raises `WrongUse` for an unknown feature or setting.
    """
    feature, _, variant = name.partition(":")
    if feature not in FEATURES:
        raise unknown("feature", feature, FEATURES)
    if not variant:
        return feature, {}

    kind = FEATURES[feature]
    known = kind.settings
    settings: dict[str, str] = {}
    for piece in variant.split(","):
        key, equals, value = piece.partition("=")
        # `layers` stands for several features of an encoder: `resolve` expands it.
        several_layers = key == "layers" and kind.model is not None
        if key not in known and not several_layers:
            raise unknown(f"setting of {feature}", key, known)
        if not equals or not value or key in settings:
            raise WrongUse(f"{name}: settings are written {feature}:{key}=VALUE, each once")
        settings[key] = value
    return feature, settings
