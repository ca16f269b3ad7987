"""From wanted features to the passes that compute them: those that can share a forward pass share it."""

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from ser.cache.spec import Level, Modality, Spec
from ser.engines import is_out_of_memory
from ser.errors import UtteranceError, WrongUse, unknown

if TYPE_CHECKING:
    from ser.weights import Checkpoint


GPU_SECONDS = 300.0  # padded audio per batch; sorted lengths waste ~1 % of it
TOKENS_PER_SECOND = 50.0  # a token costs an encoder what a frame does: 300 s of audio are as much as 15,000 tokens
CHARACTERS_PER_TOKEN = 4.0


def batches(lengths: Sequence[float], most: float | None) -> list[list[int]]:
    """Indices in order, grouped so that longest × count ≤ `most`; None: one by one. A longer one stands alone."""
    groups: list[list[int]] = []
    longest = 0.0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if most is None or not groups or longest * (len(groups[-1]) + 1) > most:
            groups.append([])
            longest = length
        groups[-1].append(index)
    return groups


def text_seconds(text: str) -> float:
    """What a transcript costs an encoder, in seconds of audio."""
    return (2 + len(text) / CHARACTERS_PER_TOKEN) / TOKENS_PER_SECOND


In = TypeVar("In")
Out = TypeVar("Out")


def in_halves(forward: Callable[[Sequence[In]], list[Out]], batch: Sequence[In]) -> list[Out]:
    """`forward(batch)`, one result per item; where memory ends, that of each half alone, down to one item."""
    try:
        return forward(batch)
    except RuntimeError as fault:
        if len(batch) == 1 or not is_out_of_memory(fault):
            raise
    # Not above: there the fault's traceback still holds the tensors that did not fit.
    import torch

    torch.cuda.empty_cache()
    half = len(batch) // 2
    return in_halves(forward, batch[:half]) + in_halves(forward, batch[half:])


class Layers:
    """The outputs of a model's layers during one forward pass, per thread.

    `taken[k]` is the output of the k-th layer, `taken[0]` the input of the first; `[batch, time, dim]`.
    """

    def __init__(self) -> None:
        self._state = threading.local()

    def watch(self, owner: nn.Module, attribute: str, wanted: set[int]) -> None:
        """Watch the `wanted` layers of the ModuleList `owner.attribute`.

        Layers above the deepest wanted one cost time and change nothing: they are dropped. One always stays.
        """
        layers: Any = getattr(owner, attribute)[: max(*wanted, 1)]
        setattr(owner, attribute, layers)
        if 0 in wanted:
            layers[0].register_forward_pre_hook(lambda _module, args: self._take(0, args[0]))
        for number in wanted - {0}:
            layers[number - 1].register_forward_hook(
                lambda _module, _args, output, number=number: self._take(
                    number, output[0] if isinstance(output, tuple) else output
                )
            )

    def _take(self, number: int, hidden: Tensor) -> None:
        self.taken[number] = hidden

    @property
    def taken(self) -> dict[int, Tensor]:
        """What this thread's forward pass has given so far; clear it before and after."""
        if not hasattr(self._state, "taken"):
            self._state.taken = {}
        return self._state.taken


FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Rows:
    """One feature of one utterance: `values` `[rows, dim]` and, where the extractor has any, `extras` `[rows]`."""

    values: np.ndarray
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what is odd about them


Outcome = dict[str, Rows] | UtteranceError  # fingerprint → rows


class Extractor(Protocol):
    """Computes the features `specs` of a batch together; safe to call from several threads at once.

    `stage` names it in the summary. `batched` says whether one call on many utterances is cheaper than many calls:
    only then are batches made. What a pass returns for an utterance does not depend on its batch.
    """

    modality: Modality
    batched: bool
    stage: str

    @property
    def specs(self) -> tuple[Spec, ...]:
        """What it computes."""
        ...

    def run(self, batch: Sequence[Any]) -> list[Outcome]:
        """The features of each `Clip` (audio) or transcript (text), in order; `UtteranceError` where there are none."""
        ...


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` in the dtype of the store. Raises `UtteranceError` for numbers that it cannot hold."""
    if not np.isfinite(values).all():
        raise UtteranceError("the extractor gave NaN or infinite values")
    if dtype == "float16" and values.size and np.abs(values).max() > FLOAT16_MAX:
        raise UtteranceError("a value is beyond what float16 holds (65504): use --dtype float32")
    return np.ascontiguousarray(values, dtype=dtype)


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
class ExtractorKind:
    """Code of one's own that computes features, under the name that `Family.extractor` gives it.

    `config` is a frozen dataclass with a default for each field: what it holds is hashed into the fingerprint. `open`
    makes the pass that computes a spec (see `passes.Extractor`).
    """

    config: type
    version: int  # raised when its numbers change
    dim: Callable[[Any], int]
    open: "Callable[[Any, Spec], Extractor]"
    hop: Callable[[Any], float | None] = lambda config: None  # seconds between frames
    packages: tuple[str, ...] = ()  # whose versions are noted beside the feature


EXTRACTORS: dict[str, ExtractorKind] = {}  # beside the built-in speech, text, smile and mel


@dataclass(frozen=True)
class ResolvedFeature:
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


def resolve(names: Sequence[str], models: Mapping[str, str], dtype: DType) -> list[ResolvedFeature]:
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
    wanted: dict[str, ResolvedFeature] = {}
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


def _wanted(feature: str, settings: dict[str, str], checkpoint: "Checkpoint | None", dtype: DType) -> ResolvedFeature:
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
    return ResolvedFeature(spec, config, checkpoint)


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


def choose_device(name: str, wanted: Sequence[ResolvedFeature]) -> str:
    """The device by name: `auto` is the first GPU, if any model needs one and there is one. Raises `WrongUse`."""
    if not any(one.checkpoint for one in wanted):
        return "cpu"
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise WrongUse(f"--device {name}: it is auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise WrongUse(f"--device {name}: torch finds no such device here; leave it auto")
    return str(device)


def load_extractors(
    wanted: Sequence[ResolvedFeature], device: str, batch_seconds: float | None = None
) -> list[Extractor]:
    """One pass per extractor; features that can share a forward pass share it."""
    passes: list[Extractor] = []
    shared: dict[tuple[Any, ...], list[ResolvedFeature]] = {}
    for one in wanted:
        if one.spec.extractor in EXTRACTORS:
            passes.append(EXTRACTORS[one.spec.extractor].open(one.config, one.spec))
        elif one.spec.extractor == "smile":
            from .smile import SmileExtractor

            passes.append(SmileExtractor(one.config, one.spec))
        elif one.spec.extractor == "mel":
            from .mel import MelExtractor

            passes.append(MelExtractor(one.config, one.spec))
        else:
            assert one.checkpoint is not None
            own = {key: value for key, value in one.spec.config.items() if key not in {"layer", "norm"}}
            shared.setdefault((one.checkpoint.digest, *sorted(own.items())), []).append(one)
    for group in shared.values():
        passes.append(_model_pass(group, device, batch_seconds))
    return passes


def _model_pass(group: Sequence[ResolvedFeature], device: str, batch_seconds: float | None) -> Extractor:
    import torch

    if device.startswith("cuda"):
        # TF32 keeps ten bits of the mantissa: float32 is meant where float32 is said.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    configs, specs = [one.config for one in group], [one.spec for one in group]
    checkpoint = group[0].checkpoint
    assert checkpoint is not None
    if group[0].spec.extractor == "speech":
        from .speech import SpeechExtractor

        return SpeechExtractor(configs, specs, checkpoint, torch.device(device), batch_seconds)
    from .text import TextExtractor

    return TextExtractor(configs, specs, checkpoint, torch.device(device))
