"""HuBERT, wav2vec 2.0 and WavLM: frames of a speech encoder, batched to the same numbers as one by one.

Three things make padding leak into other rows, and each is closed here:
- base models normalise the first convolution over *time* (GroupNorm): `RowwiseNorm` takes each row's statistics from
  its own frames;
- the transformer attends to padding: the attention mask goes in, always;
- Hugging Face's batch normaliser averages over the padding too: each waveform is normalised alone, before padding.
"""

import math
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ser.cache.spec import Modality, Spec
from ser.errors import WrongUse
from ser.weights import Checkpoint, load_encoder

from .audio import CHANNELS, RESAMPLER, Clip
from .extractors import Layers, Outcome, Rows, UtteranceError, as_stored, in_halves

VERSION = 1
RATE = 16000  # Hz, of every encoder of these families
ARCHITECTURES = ("hubert", "wav2vec2", "wavlm")
# WavLM hands torch a boolean mask beside a float one: as meant, and no news to a user.
warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)


@dataclass(frozen=True)
class SpeechConfig:
    """One layer of a speech encoder.

    Layer k is the output of the k-th transformer layer, 0 the input of the first. Where the encoder ends in a
    LayerNorm (the large models), `norm` says whether the rows are taken before or after it: after, where no layer is
    named (Hugging Face's `last_hidden_state`), before, where one is (its `hidden_states[k]`). It is "none" elsewhere.

    An utterance longer than `window` seconds is cut into windows that overlap by twice `context`: each window's
    frames within `context` of an inner edge are dropped, so a kept frame sees at least that much on each side. Its
    waveform is still normalised as a whole; attention, and the base models' norm over time, see one window.
    """

    layer: int
    norm: str  # "before", "after", "none"
    normalize: bool  # the waveform to zero mean and unit variance, as the checkpoint's preprocessor says
    precision: str = "float32"  # or "bfloat16": autocast
    window: float = 60.0  # seconds
    context: float = 5.0  # seconds
    sampling_rate: int = RATE
    resampler: str = RESAMPLER
    channels: str = CHANNELS


def resolve(settings: dict[str, Any], checkpoint: Checkpoint) -> SpeechConfig:
    """The complete config of `settings` on this checkpoint. Raises `WrongUse` for what the encoder cannot give."""
    if checkpoint.architecture not in ARCHITECTURES:
        raise WrongUse(
            f"{checkpoint.model} is a {checkpoint.architecture} model, no speech encoder of {', '.join(ARCHITECTURES)}"
        )
    settings = dict(settings)
    layers = int(checkpoint.setting("num_hidden_layers"))
    ends_in_norm = bool(checkpoint.config.get("do_stable_layer_norm"))
    named = "layer" in settings
    layer = settings.pop("layer", layers)
    norm = settings.pop("norm", None)
    if not 0 <= layer <= layers:
        raise WrongUse(f"layer={layer}: {checkpoint.model} has layers 0 to {layers}")
    if norm is None:
        norm = ("before" if named else "after") if ends_in_norm else "none"
    if norm not in ("before", "after", "none") or (norm == "none") == ends_in_norm:
        allowed = "before or after" if ends_in_norm else "none: this encoder ends in no LayerNorm"
        raise WrongUse(f"norm={norm}: for {checkpoint.model} it is {allowed}")
    if norm == "after" and layer != layers:
        raise WrongUse(f"norm=after is for the last layer ({layers}) alone, not for layer {layer}")
    normalize = settings.pop("normalize", None)
    if normalize is None:
        if checkpoint.preprocessor is None:
            raise WrongUse(
                f"{checkpoint.model} has no preprocessor_config.json to say whether waveforms are normalised: "
                "ask for normalize=true or normalize=false"
            )
        normalize = bool(checkpoint.preprocessor.get("do_normalize", True))
        rate = checkpoint.preprocessor.get("sampling_rate", RATE)
        if rate != RATE:
            raise WrongUse(f"{checkpoint.model} takes audio at {rate} Hz; only {RATE} Hz is supported")
    config = SpeechConfig(layer=layer, norm=norm, normalize=normalize, **settings)
    if config.precision not in ("float32", "bfloat16"):
        raise WrongUse(f"precision={config.precision}: it is float32 or bfloat16")
    if not config.window >= 2 or not 0 <= config.context <= config.window / 4:
        raise WrongUse("window must be 2 seconds or more, and context at most a quarter of it")
    return config


def hop_seconds(checkpoint: Checkpoint) -> float:
    """Seconds between frames: the product of the convolutions' strides, 320 samples, 0.02."""
    return math.prod(checkpoint.setting("conv_stride")) / RATE


class RowwiseNorm(nn.Module):
    """A GroupNorm over time whose statistics come from each row's valid frames only.

    Padded frames become zero. With one row, or none padded, it is the wrapped norm itself.
    """

    def __init__(self, norm: nn.GroupNorm, state: threading.local) -> None:
        super().__init__()
        self.norm, self.state = norm, state

    def forward(self, frames: Tensor) -> Tensor:  # [batch, channels, time]
        valid: list[int] = self.state.first_frames
        if all(n == frames.shape[2] for n in valid):
            return cast(Tensor, self.norm(frames))
        rows = [self.norm(frames[row : row + 1, :, :n]) for row, n in enumerate(valid)]
        normed = rows[0].new_zeros(frames.shape)  # under autocast the norm gives another dtype than it takes
        for row, n in enumerate(valid):
            normed[row, :, :n] = rows[row][0]
        return normed


@dataclass(frozen=True)
class Piece:
    """A stretch of one utterance: frames `first .. first + frames` of the whole, of which `keep` goes to the store."""

    utterance: int
    samples: np.ndarray
    frames: int
    keep: slice


class SpeechExtractor:
    """Several layers of one encoder from one forward pass."""

    modality: Modality = "audio"
    batched = True

    def __init__(
        self,
        configs: Sequence[SpeechConfig],
        specs: Sequence[Spec],
        checkpoint: Checkpoint,
        device: torch.device,
        batch_seconds: float | None = None,
    ) -> None:
        self.configs, self.specs, self.stage = tuple(configs), tuple(specs), specs[0].feature
        self.shared, self.device = configs[0], device
        self.batch_seconds = batch_seconds
        self._state = threading.local()
        self.model = load_encoder(checkpoint).to(device)
        config = self.model.config
        self.kernels, self.strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self.hop = math.prod(self.strides)
        self.field = 1 + sum((k - 1) * math.prod(self.strides[:i]) for i, k in enumerate(self.kernels))
        first = self.model.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm = RowwiseNorm(first.layer_norm, self._state)
        self._layers = Layers()
        self._layers.watch(self.model.encoder, "layers", {config.layer for config in self.configs})

    def frames(self, samples: int) -> int:
        """Frames that the convolutions make of so many samples: one per 20 ms, `(n - 400) // 320 + 1`."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def run(self, batch: Sequence[Clip]) -> list[Outcome]:
        """The frames of each clip, `[frames, dim]` of each spec."""
        outcomes: list[Outcome] = [{} for _ in batch]
        pieces: list[Piece] = []
        for row, clip in enumerate(batch):
            samples = clip.at(RATE)
            if len(samples) < self.field:
                outcomes[row] = UtteranceError(
                    f"is too short for {self.stage} ({len(samples)} of {self.field} samples)"
                )
            else:
                pieces += self.cut(row, normalised(samples) if self.shared.normalize else samples)
        made: dict[tuple[int, str], list[np.ndarray]] = {}
        for group in self._groups(pieces):
            for piece, layers in zip(group, self.forward([p.samples for p in group]), strict=True):
                for spec, values in zip(self.specs, layers, strict=True):
                    try:
                        stored = as_stored(values[piece.keep], spec.dtype)
                        made.setdefault((piece.utterance, spec.fingerprint), []).append(stored)
                    except UtteranceError as fault:
                        outcomes[piece.utterance] = fault
        for row, outcome in enumerate(outcomes):
            if isinstance(outcome, dict):
                for spec in self.specs:
                    parts = made[row, spec.fingerprint]
                    outcome[spec.fingerprint] = Rows(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return outcomes

    def cut(self, utterance: int, samples: np.ndarray) -> list[Piece]:
        """One piece, or the overlapping windows of a long utterance."""
        total = self.frames(len(samples))
        window = int(self.shared.window * RATE / self.hop)
        if total <= window:
            return [Piece(utterance, samples, total, slice(0, total))]
        context = int(self.shared.context * RATE / self.hop)
        pieces = []
        for first in range(0, total - 2 * context, window - 2 * context):
            last = min(first + window, total)
            start = first * self.hop
            stretch = samples[start : start + (last - first - 1) * self.hop + self.field]
            keep = slice(context if first else 0, last - first - (context if last < total else 0))
            pieces.append(Piece(utterance, stretch, last - first, keep))
        return pieces

    def _groups(self, pieces: list[Piece]) -> list[list[Piece]]:
        """A batch's pieces in calls of at most `batch_seconds` padded (windows of an hour are many)."""
        most = max(self.batch_seconds or 0.0, self.shared.window) * RATE
        groups: list[list[Piece]] = []
        longest = 0
        for piece in pieces:
            longest = max(longest, len(piece.samples))
            # one by one on a CPU: two windows of a long utterance do not go together either
            if not groups or self.batch_seconds is None or longest * (len(groups[-1]) + 1) > most:
                groups.append([])
                longest = len(piece.samples)
            groups[-1].append(piece)
        return groups

    def forward(self, waves: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Frames of each wave, one `[frames, dim]` float32 per spec. Halves the batch where memory ends."""
        return in_halves(self._forward, waves)

    def _forward(self, waves: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        longest = max(len(wave) for wave in waves)
        padded = torch.zeros(len(waves), longest, pin_memory=self.device.type == "cuda")
        mask = torch.zeros(len(waves), longest, dtype=torch.long)
        for row, wave in enumerate(waves):
            padded[row, : len(wave)] = torch.from_numpy(wave)
            mask[row, : len(wave)] = 1
        self._state.first_frames = [(len(wave) - self.kernels[0]) // self.strides[0] + 1 for wave in waves]
        self._layers.taken.clear()
        even = all(len(wave) == longest for wave in waves)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.shared.precision == "bfloat16"),
        ):
            output = self.model(
                padded.to(self.device, non_blocking=True),
                attention_mask=None if even else mask.to(self.device, non_blocking=True),
            )
            layers = [
                output.last_hidden_state if config.norm == "after" else self._layers.taken[config.layer]
                for config in self.configs
            ]
            arrays = [layer.float().cpu().numpy() for layer in layers]  # [batch, time, dim] each
        self._layers.taken.clear()
        valid = [self.frames(len(wave)) for wave in waves]
        return [[array[row, :n] for array in arrays] for row, n in enumerate(valid)]


def normalised(samples: np.ndarray) -> np.ndarray:
    """`(x - mean) / sqrt(var + 1e-7)` over one utterance, as the Wav2Vec2 feature extractor computes it."""
    return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)
