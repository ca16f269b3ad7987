"""HuBERT, wav2vec 2.0 and WavLM: frames of a speech encoder, batched to the same numbers as one by one.

Three things make padding leak into other rows, and each is closed here:
- base models normalise the first convolution over *time* (GroupNorm): `RowwiseNorm` takes each row's statistics from
  its own frames;
- the transformer attends to padding: the attention mask goes in whenever the batch has padding;
- Hugging Face's batch normaliser averages over the padding too: each waveform is normalised alone, before padding.
"""

import math
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor, nn

from ser.errors import UtteranceError, WrongUse
from ser.weights import Checkpoint
from ser.weights.find import Count

from .audio import CHANNELS, RESAMPLER, Clip
from .extractors import Encoder, Outcome, Precision, Rows, batches

RATE = 16000  # Hz, of every encoder of these families
# WavLM hands torch a boolean mask beside a float one, as it means to.
warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)


@dataclass(frozen=True)
class SpeechConfig:
    """One layer of a speech encoder.

    Where the encoder ends in a LayerNorm (the large models), `norm` says whether the rows are taken before or after
    it: after, where no layer is named (Hugging Face's `last_hidden_state`), before, where one is (the output of that
    layer itself). It is "none" elsewhere.

    With `pool` "mean" there is one row per utterance: the mean of its frames in float32, before any rounding.

    An utterance longer than `window` seconds is cut into windows that overlap by twice `context`: each window's
    frames within `context` of an inner edge are dropped, so a kept frame sees at least that much on each side. Its
    waveform is still normalised as a whole; attention, and the base models' norm over time, see one window.
    """

    layer: int
    norm: Literal["before", "after", "none"]
    normalize: bool  # the waveform to zero mean and unit variance, as the checkpoint's preprocessor says
    precision: Precision = "float32"
    window: float = 60.0  # seconds
    context: float = 5.0  # seconds
    pool: Literal["none", "mean"] = "none"
    sampling_rate: int = field(default=RATE, init=False)
    resampler: str = field(default=RESAMPLER, init=False)
    channels: str = field(default=CHANNELS, init=False)


class RowwiseNorm(nn.Module):
    """A GroupNorm over time whose statistics come from each row's valid frames only.

    Padded frames become zero. With one row, or none padded, it is the wrapped norm itself. `state.lengths` holds the
    samples of each row, and the convolution before this norm makes `(samples - kernel) // stride + 1` frames of them.
    """

    def __init__(self, norm: nn.GroupNorm, state: threading.local, kernel: int, stride: int) -> None:
        super().__init__()
        self.norm, self.state, self.kernel, self.stride = norm, state, kernel, stride

    def forward(self, frames: Tensor) -> Tensor:  # [batch, channels, time]
        valid = [(samples - self.kernel) // self.stride + 1 for samples in self.state.lengths]
        if all(n == frames.shape[2] for n in valid):
            return cast(Tensor, self.norm(frames))
        rows = [self.norm(frames[row : row + 1, :, :n]) for row, n in enumerate(valid)]
        normed = rows[0].new_zeros(frames.shape)  # under autocast the norm gives another dtype than it takes
        for row, n in enumerate(valid):
            normed[row, :, :n] = rows[row][0]
        return normed


@dataclass(frozen=True)
class Piece:
    """A stretch of one utterance's samples, and which of its frames go to the store."""

    utterance: int
    samples: np.ndarray
    keep: slice


class SpeechExtractor(Encoder):
    """Frames `[frames, dim]`, one per 20 ms."""

    name, version, Config = "speech", 1, SpeechConfig
    packages = ("torch", "transformers", "soundfile", "soxr")
    architectures = ("hubert", "wav2vec2", "wavlm")
    layers = "layers"
    own = frozenset({"layer", "norm", "pool"})

    @classmethod
    def complete(cls, settings: dict[str, Any], checkpoint: Checkpoint, named: bool) -> SpeechConfig:
        """The config of `settings`, whose layer is in range. Raises `WrongUse` for what the encoder cannot give."""
        layers = checkpoint.setting("num_hidden_layers")
        ends_in_norm = bool(checkpoint.config.get("do_stable_layer_norm"))
        if "norm" not in settings:
            settings["norm"] = ("before" if named else "after") if ends_in_norm else "none"
        norm, layer = settings["norm"], settings["layer"]
        if (norm == "none") == ends_in_norm:
            allowed = "before or after" if ends_in_norm else "none: this encoder ends in no LayerNorm"
            raise WrongUse(f"norm={norm}: for {checkpoint.model} it is {allowed}")
        if norm == "after" and layer != layers:
            raise WrongUse(f"norm=after is for the last layer ({layers}) alone, not for layer {layer}")
        if "normalize" not in settings:
            if checkpoint.preprocessor is None:
                raise WrongUse(
                    f"{checkpoint.model} has no preprocessor_config.json to say whether waveforms are normalised: "
                    "ask for normalize=true or normalize=false"
                )
            settings["normalize"] = bool(checkpoint.preprocessor.get("do_normalize", True))
            rate = checkpoint.preprocessor.get("sampling_rate", RATE)
            if rate != RATE:
                raise WrongUse(f"{checkpoint.model} takes audio at {rate} Hz; only {RATE} Hz is supported")
        config = SpeechConfig(**settings)
        if not config.window >= 2 or not 0 <= config.context <= config.window / 4:
            raise WrongUse("window must be 2 seconds or more, and context at most a quarter of it")
        return config

    @classmethod
    def hop(cls, config: SpeechConfig, checkpoint: Checkpoint | None) -> float:
        """Seconds between frames: the product of the convolutions' strides, 320 samples, 0.02."""
        assert checkpoint is not None
        return math.prod(checkpoint.setting("conv_stride", list[Count])) / RATE

    def open(self) -> None:
        """Load the model, and let its first norm see each row's own frames alone."""
        super().open()
        self.kernels, self.strides = tuple(self.model.config.conv_kernel), tuple(self.model.config.conv_stride)
        self.stride = math.prod(self.strides)  # samples between frames
        self.field = 1 + sum((k - 1) * math.prod(self.strides[:i]) for i, k in enumerate(self.kernels))  # samples
        first = self.model.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm = RowwiseNorm(first.layer_norm, self.state, self.kernels[0], self.strides[0])

    def hidden(self, config: SpeechConfig, output: Any) -> Tensor:
        """The layer `[batch, time, dim]`; after the final norm it is the model's output."""
        return cast(Tensor, output.last_hidden_state if config.norm == "after" else super().hidden(config, output))

    def rows(self, length: int) -> int:
        """Frames that the convolutions make of so many samples: one per 20 ms, `(n - 400) // 320 + 1`."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            length = (length - kernel) // stride + 1
        return length

    def run(self, batch: Sequence[Clip]) -> list[Outcome]:
        """The frames of each clip, `[frames, dim]` of each spec, or their mean `[1, dim]`."""
        stored: list[list[Outcome]] = [[] for _ in batch]  # of each window of each clip
        frames: list[list[int]] = [[] for _ in batch]
        pieces: list[Piece] = []
        for row, clip in enumerate(batch):
            samples = clip.at(RATE)
            if len(samples) < self.field:
                reason = f"is too short for {self.label} ({len(samples)} of {self.field} samples)"
                stored[row].append(UtteranceError(reason))
            else:
                if self.config.normalize:  # as the Wav2Vec2 feature extractor computes it
                    samples = ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)
                pieces += self.cut(row, samples)
        # An hour has many windows: they too go in calls of at most `batch_seconds`, padded.
        most = max(self.batch_seconds, self.config.window) * RATE if self.batch_seconds else None
        for group in batches(pieces, lambda piece: len(piece.samples), most):
            for piece, layers in zip(group, self.forward([piece.samples for piece in group]), strict=True):
                kept = [values[piece.keep] for values in layers]
                frames[piece.utterance].append(len(kept[0]))
                rows = [
                    values.mean(0, dtype=np.float64, keepdims=True) if config.pool == "mean" else values
                    for values, config in zip(kept, self.configs, strict=True)
                ]
                stored[piece.utterance].append(self.outcome(rows))
        return [self.joined(*windows) for windows in zip(stored, frames, strict=True)]

    def joined(self, windows: list[Outcome], frames: list[int]) -> Outcome:
        """The rows of one utterance of windows with so many frames, or the fault of a window of it."""
        found: list[dict[str, Rows]] = []
        for window in windows:
            if isinstance(window, UtteranceError):
                return window
            found.append(window)
        if len(found) == 1:
            return found[0]
        whole = {name: np.concatenate([rows[name].values for rows in found]) for name in found[0]}
        for spec, config in zip(self.specs, self.configs, strict=True):
            if config.pool == "mean":
                mean = np.average(whole[spec.fingerprint], axis=0, weights=frames)[None]
                whole[spec.fingerprint] = mean.astype(spec.dtype)
        return {name: Rows(values) for name, values in whole.items()}

    def cut(self, utterance: int, samples: np.ndarray) -> list[Piece]:
        """One piece, or the overlapping windows of a long utterance."""
        total = self.rows(len(samples))
        window = int(self.config.window * RATE / self.stride)  # frames
        if total <= window:
            return [Piece(utterance, samples, slice(0, total))]
        context = int(self.config.context * RATE / self.stride)
        pieces = []
        for first in range(0, total - 2 * context, window - 2 * context):
            last = min(first + window, total)
            start = first * self.stride
            stretch = samples[start : start + (last - first - 1) * self.stride + self.field]
            keep = slice(context if first else 0, last - first - (context if last < total else 0))
            pieces.append(Piece(utterance, stretch, keep))
        return pieces
