"""The features by name, the settings that a name may carry, and the specs that come of them."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from ser.cache.errors import WrongUse, unknown
from ser.cache.spec import Level, Modality, Spec

if TYPE_CHECKING:
    from ser.weights import Checkpoint

    from .passes import Pass

DType = Literal["float16", "float32"]
DEFAULT = ("hubert", "mpnet", "bert", "is13", "logmel")


@dataclass(frozen=True)
class Family:
    """What a feature name stands for. `settings` are those that may follow the name, with their types."""

    modality: Modality
    level: Level
    extractor: str  # the module that computes it
    summary: str
    settings: Mapping[str, type]
    model: str | None = None  # default checkpoint
    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_SPEECH = {"layer": int, "norm": str, "normalize": bool, "precision": str, "window": float, "context": float}
_TEXT = {"layer": int, "special": bool, "tags": str, "most": int, "precision": str}
_FRAMES = {"sampling_rate": int, "window": float, "hop": float, "view": str}
_MEL = {**_FRAMES, "bands": int, "low": float, "high": float, "floor": float}

FEATURES: dict[str, Family] = {
    "hubert": Family("audio", "frame", "speech", "HuBERT frames, 50 a second", _SPEECH, "facebook/hubert-base-ls960"),
    "wav2vec2": Family("audio", "frame", "speech", "wav2vec 2.0 frames", _SPEECH, "facebook/wav2vec2-base"),
    "wavlm": Family("audio", "frame", "speech", "WavLM frames", _SPEECH, "microsoft/wavlm-base-plus"),
    "mpnet": Family("text", "token", "text", "MPNet tokens", _TEXT, "microsoft/mpnet-base"),
    "bert": Family("text", "token", "text", "BERT tokens", _TEXT, "bert-base-uncased"),
    "is13": Family("audio", "utterance", "smile", "openSMILE's IS13_ComParE, 6373 functionals", {}),
    "logmel": Family("audio", "frame", "mel", "log-mel spectrogram, 100 frames a second", _MEL),
    "mfcc": Family(
        *("audio", "frame", "mel", "MFCC of the log-mel spectrogram", {**_MEL, "coefficients": int}),
        preset={"coefficients": 40},
    ),
}


@dataclass(frozen=True)
class Extractor:
    """Code of one's own that computes features, under the name that `Family.extractor` gives it.

    `config` is a frozen dataclass with a default for each field: what it holds is hashed into the fingerprint. `open`
    makes the pass that computes a spec (see `passes.Pass`).
    """

    config: type
    version: int  # raised when its numbers change
    dim: Callable[[Any], int]
    open: "Callable[[Any, Spec], Pass]"
    hop: Callable[[Any], float | None] = lambda config: None  # seconds between frames
    packages: tuple[str, ...] = ()  # whose versions are noted beside the feature


EXTRACTORS: dict[str, Extractor] = {}  # beside the built-in speech, text, smile and mel


@dataclass(frozen=True)
class Wanted:
    """One feature to compute: its spec, the extractor's config, and the checkpoint that it reads."""

    spec: Spec
    config: Any
    checkpoint: "Checkpoint | None" = None


def split_names(features: str | Sequence[str]) -> list[str]:
    """`"hubert:layer=9,norm=before,is13"` to its names: a piece with `=` and no `:` belongs to the name before it."""
    text = features if isinstance(features, str) else ",".join(features)
    names: list[str] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if "=" in piece and ":" not in piece and names and ":" in names[-1]:
            names[-1] += f",{piece}"
        elif piece:
            names.append(piece)
    if not names:
        raise WrongUse(f"no feature is named; known: {', '.join(sorted(FEATURES))}")
    return list(dict.fromkeys(names))


def parse(name: str) -> tuple[str, dict[str, str]]:
    """`"hubert:layer=9"` to `("hubert", {"layer": "9"})`. Raises `WrongUse` for an unknown feature or setting."""
    feature, _, variant = name.partition(":")
    if feature not in FEATURES:
        raise unknown("feature", feature, FEATURES)
    settings: dict[str, str] = {}
    for piece in variant.split(",") if variant else []:
        key, equals, value = piece.partition("=")
        if key not in {*FEATURES[feature].settings, "layers"} or (key == "layers" and not _is_encoder(feature)):
            raise unknown(f"setting of {feature}", key, FEATURES[feature].settings)
        if not equals or not value or key in settings:
            raise WrongUse(f"{name}: settings are written {feature}:{key}=VALUE, each once")
        settings[key] = value
    return feature, settings


def resolve(names: Sequence[str], models: Mapping[str, str], dtype: DType) -> list[Wanted]:
    """Everything that `names` ask for, each spec complete. Finds and hashes the checkpoints.

    Raises `WrongUse` for an unknown name, a setting that cannot be, or a checkpoint that is not here.
    """
    asked = [parse(name) for name in names]
    for feature in models:
        if feature not in FEATURES:
            raise unknown("feature in --model", feature, FEATURES)
        if not _is_encoder(feature):
            raise WrongUse(f"--model {feature}=…: {feature} is computed without weights")
    checkpoints: dict[str, Checkpoint] = {}
    wanted: dict[str, Wanted] = {}
    for feature, settings in asked:
        if _is_encoder(feature) and feature not in checkpoints:
            from ser.weights import find_checkpoint

            default = FEATURES[feature].model or ""
            checkpoints[feature] = find_checkpoint(models.get(feature, default), option=f"--model {feature}=PATH")
        for single in _expand(settings, checkpoints.get(feature)):
            one = _wanted(feature, single, checkpoints.get(feature), dtype)
            wanted.setdefault(one.spec.fingerprint, one)
    return list(wanted.values())


def _is_encoder(feature: str) -> bool:
    return FEATURES[feature].model is not None


def _expand(settings: dict[str, str], checkpoint: "Checkpoint | None") -> list[dict[str, str]]:
    """`layers=all` and `layers=6-9` to one set of settings per layer."""
    if "layers" not in settings or checkpoint is None:
        return [settings]
    rest = {key: value for key, value in settings.items() if key != "layers"}
    if "layer" in rest:
        raise WrongUse("give layer=K or layers=A-B, not both")
    first, dash, last = settings["layers"].partition("-")
    if settings["layers"] == "all":
        first, dash, last = "0", "-", str(checkpoint.setting("num_hidden_layers"))
    if not dash or not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise WrongUse(f"layers={settings['layers']}: write layers=all or a range such as layers=6-9")
    return [{**rest, "layer": str(layer)} for layer in range(int(first), int(last) + 1)]


def _wanted(feature: str, settings: dict[str, str], checkpoint: "Checkpoint | None", dtype: DType) -> Wanted:
    family = FEATURES[feature]
    variant = ",".join(f"{key}={value}" for key, value in sorted(settings.items()))
    typed = {key: _typed(feature, key, value) for key, value in settings.items()}
    config, dim, version, hop = _configure(family, typed, checkpoint)
    spec = Spec(
        feature=feature,
        modality=family.modality,
        level=family.level,
        dim=dim,
        dtype="float32" if family.level == "utterance" else dtype,
        extractor=family.extractor,
        version=version,
        variant=variant,
        hop=hop,
        config=asdict(config),
        checkpoint={"digest": checkpoint.digest, "random": checkpoint.random} if checkpoint else {},
        provenance=_provenance(f"{feature}:{variant}" if variant else feature, family, checkpoint),
    )
    return Wanted(spec, config, checkpoint)


def _configure(
    family: Family, settings: dict[str, Any], checkpoint: "Checkpoint | None"
) -> tuple[Any, int, int, float | None]:
    """The extractor's complete config, and its dim, version and hop."""
    if (own := EXTRACTORS.get(family.extractor)) is not None:
        config = own.config(**{**family.preset, **settings})
        return config, own.dim(config), own.version, own.hop(config)
    # Each extractor is imported only where it is asked for: torch and transformers are slow to import.
    if family.extractor == "smile":
        from . import smile

        return smile.SmileConfig(), smile.DIM, smile.VERSION, None
    if family.extractor == "mel":
        from . import mel

        config = mel.resolve({**family.preset, **settings})
        return config, config.dim, mel.VERSION, mel.hop_seconds(config)
    assert checkpoint is not None
    dim = int(checkpoint.setting("hidden_size"))
    if family.extractor == "speech":
        from . import speech

        return speech.resolve(settings, checkpoint), dim, speech.VERSION, speech.hop_seconds(checkpoint)
    from . import text

    return text.resolve(settings, checkpoint), dim, text.VERSION, None


def _typed(feature: str, key: str, value: str) -> Any:
    kind = FEATURES[feature].settings[key]
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        typed = kind(value)
        if kind is float and not math.isfinite(typed):
            raise ValueError
        return typed
    except (ValueError, KeyError):
        what = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise WrongUse(f"{feature}:{key}={value}: {key} is {what}") from None


def _provenance(name: str, family: Family, checkpoint: "Checkpoint | None") -> dict[str, Any]:
    from importlib.metadata import version

    packages = {
        "smile": ("opensmile", "soundfile", "soxr"),
        "mel": ("torch", "librosa", "soundfile", "soxr"),
        "speech": ("torch", "transformers", "soundfile", "soxr"),
        "text": ("torch", "transformers", "tokenizers"),
        **{name: own.packages for name, own in EXTRACTORS.items()},
    }[family.extractor]
    found: dict[str, Any] = {
        "versions": {name: version(name) for name in ("ser", "numpy", *packages)},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"ser features CORPUS --features {name}",  # no paths, no environment: nothing private
    }
    if checkpoint:
        found["model"] = checkpoint.model
        if (
            checkpoint.model == (folder := checkpoint.path.resolve()).name
        ):  # no id of the Hub: where `ser predict` looks
            found["folder"] = str(folder)
    return found
