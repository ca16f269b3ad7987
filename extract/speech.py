"""HuBERT, wav2vec 2.0 and their like, Wav2Vec2-BERT and Whisper: frames of a speech encoder,
batched as one by one.

Four things make padding leak into other rows, and each is closed here:
- base models normalise the first convolution over *time* (GroupNorm): `rowwise` takes each row's statistics from
  its own frames;
- between the convolutions of the positions, padding becomes nonzero (data2vec's several layers, the batch norm of some
  HuBERTs): it is cleared before the next convolution sees it;
- the transformer attends to padding: the attention mask goes in whenever the batch has padding;
- Hugging Face's batch normaliser averages over the padding too: each waveform is normalised alone, before padding.

Whisper attends to padding as it was trained to: every window is padded with silence to 30 s,
batched or alone.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ser.errors import UtteranceError, WrongUse
from ser.weights.checkpoint import Checkpoint, Size
from ser.weights.load import loading

from .audio import CHANNELS, RESAMPLER, Clip
from .extractors import Encoder, Layer, Outcome, Precision, batches

RATE = 16000  # Hz, of every encoder of these families
# WavLM passes torch a boolean mask beside a float one, on purpose.
warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """One layer of a speech encoder.

    If an encoder of waveforms ends in a LayerNorm (the large models), `norm` says whether the rows
    are taken before or after it: by default after if no layer is named (Hugging Face's
    `last_hidden_state`), before if one is (the output of that layer itself). For all other encoders
    it is "none".

    An utterance longer than `window` seconds is cut into windows that overlap by twice `context`:
    each window's frames within `context` of an inner edge are dropped, so a kept frame sees at
    least that much on each side. Its waveform (of Wav2Vec2-BERT: each band of its log-mel
    spectrogram) is still normalised as a whole; attention, and the base models' norm over time, see
    one window. Whisper has windows of its own.

    With `pool` "mean" there is one row per utterance: the mean of its frames in float32, before any
    rounding.
    """

    layer: int
    norm: Literal["before", "after", "none"]
    normalize: (
        bool  # the waveform to zero mean and unit variance, as the checkpoint's preprocessor says
    )
    precision: Precision = "float32"
    pool: Literal["none", "mean"] = "none"
    window: float = 60.0  # seconds
    context: float = 5.0  # seconds
    sampling_rate: int = field(default=RATE, init=False)
    resampler: str = field(default=RESAMPLER, init=False)
    channels: str = field(default=CHANNELS, init=False)

    def __post_init__(self) -> None:
        if not self.window >= 2 or not 0 <= self.context <= self.window / 4:
            raise WrongUse("window must be 2 seconds or more, and context at most a quarter of it")


class Piece(NamedTuple):
    """A piece of one utterance as the model takes it, and which of its frames go to the store."""

    samples: np.ndarray
    keep: slice
    seconds: float  # of audio, padding included


class SpeechExtractor(Encoder):
    """Frames `[frames, dim]`, one per 20 ms."""

    name, version, Config = "speech", 1, SpeechConfig
    packages = ("torch", "transformers", "soundfile", "soxr")
    own = frozenset({"layer", "norm", "pool"})
    normed = False  # whether the last layer is always the one after the final LayerNorm
    frame = 0  # samples between frames; 0: as the checkpoint's convolutions have it

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Checkpoint) -> SpeechConfig:
        """The complete config on this checkpoint. Raises `WrongUse` for what the encoder cannot
        give.
        """
        ends_in_norm = bool(checkpoint.config.get("do_stable_layer_norm"))
        preprocessor = checkpoint.preprocessor or {}
        norm = ("before" if "layer" in settings else "after") if ends_in_norm else "none"
        defaults = {"norm": norm, "normalize": bool(preprocessor.get("do_normalize", True))}
        config: SpeechConfig = super().resolve({**defaults, **settings}, checkpoint)
        if (config.norm == "none") == ends_in_norm:
            allowed = (
                "before or after" if ends_in_norm else "none: this encoder ends in no LayerNorm"
            )
            raise WrongUse(f"norm={config.norm}: for {checkpoint.model} it is {allowed}")
        if config.norm == "after" and config.layer != (
            last := checkpoint.setting("num_hidden_layers")
        ):
            raise WrongUse(
                f"norm=after is for the last layer ({last}) alone, not for layer {config.layer}"
            )
        if "normalize" not in settings and checkpoint.preprocessor is None:
            raise WrongUse(
                f"{checkpoint.model} has no preprocessor_config.json to say whether waveforms are normalised: "
                "ask for normalize=true or normalize=false"
            )
        if (
            "normalize" not in settings
            and (rate := preprocessor.get("sampling_rate", RATE)) != RATE
        ):
            raise WrongUse(
                f"{checkpoint.model} takes audio at {rate} Hz; only {RATE} Hz is supported"
            )
        return config

    @classmethod
    def hop(cls, config: Any, checkpoint: Checkpoint) -> float:
        """Seconds between frames, 0.02: 320 samples, the class's own or the product of the
        convolutions' strides.
        """
        return (cls.frame or math.prod(checkpoint.setting("conv_stride", list[Size]))) / RATE

    def open(self) -> None:
        """Load the model, and let its norms and convolutions see each utterance's own frames alone."""
        super().open()
        self.model.adapter = (
            None  # after the encoder of some models fine-tuned for ASR: frames of 160 ms
        )
        self.kernels, self.strides = (
            tuple(self.model.config.conv_kernel),
            tuple(self.model.config.conv_stride),
        )
        self.frame = self.stride = math.prod(self.strides)  # samples between frames
        self.field = 1 + sum(
            (k - 1) * math.prod(self.strides[:i]) for i, k in enumerate(self.kernels)
        )  # samples
        self.least = self.field
        first = self.model.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm.forward = partial(self.rowwise, first.layer_norm.forward)
        positions = self.model.encoder.pos_conv_embed
        for convolution in getattr(positions, "layers", ()):
            convolution.register_forward_pre_hook(lambda _module, args: self.cleared(args[0]))
        if getattr(positions, "batch_norm", None) is not None:
            positions.batch_norm.register_forward_hook(
                lambda _module, _args, frames: self.cleared(frames)
            )

    def rowwise(self, norm: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """The GroupNorm `norm` over time of `frames` `[batch, channels, time]`, by each row's valid
        frames alone.

        Padded frames become zero. Without padding it is the `norm` itself.
        """
        longest = frames.shape[2]
        valid = [
            (samples - self.kernels[0]) // self.strides[0] + 1 for samples in self.state.lengths
        ]
        if all(n == longest for n in valid):
            return norm(frames)
        rows = (norm(frames[row : row + 1, :, :n]) for row, n in enumerate(valid))
        return torch.cat([nn.functional.pad(row, (0, longest - row.shape[2])) for row in rows])

    def cleared(self, frames: Tensor) -> Tensor:
        """Frames `[batch, dim, time]` with zeros as padding, as a convolution pads the end of one
        row.
        """
        valid = torch.tensor(
            [self.rows(samples) for samples in self.state.lengths], device=frames.device
        )
        return frames.masked_fill(
            torch.arange(frames.shape[2], device=frames.device) >= valid[:, None, None], 0
        )

    def hidden(self, config: Any, output: Any) -> Tensor:
        """The layer `[batch, time, dim]`; after the final norm it is the model's output."""
        after = config.norm == "after" or (
            self.normed and config.layer == self.checkpoint.setting("num_hidden_layers")
        )
        return cast(Tensor, output.last_hidden_state if after else super().hidden(config, output))

    def rows(self, length: int) -> int:
        """Frames that the convolutions make of so many samples: one per 20 ms, `(n - 400) // 320 +
        1`.
        """
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            length = (length - kernel) // stride + 1
        return length

    def run(self, batch: Sequence[Clip]) -> list[Outcome]:
        """The frames of each clip, `[frames, dim]` of each spec, or their mean `[1, dim]`."""
        waves = [clip.at(RATE) for clip in batch]
        pieces = [
            (row, piece)
            for row, wave in enumerate(waves)
            if len(wave) >= self.least
            for piece in self.cut(wave)
        ]
        # An hour has many windows: they are batched too, by at most `batch_seconds`, padded.
        most = max(self.batch_seconds, self.config.window) if self.batch_seconds else None
        windows: list[list[list[Layer]]] = [[] for _ in batch]
        for group in batches(pieces, lambda item: item[1].seconds, most):
            outputs = self.forward([piece.samples for _, piece in group])
            for (row, piece), layers in zip(group, outputs, strict=True):
                kept = [Layer(values[piece.keep], peaks[piece.keep]) for values, peaks in layers]
                for number, config in enumerate(self.configs):
                    if config.pool == "mean":  # at once: all frames of an hour would take gigabytes
                        kept[number] = Layer(
                            kept[number].values.mean(0, np.float64, keepdims=True),
                            kept[number].peaks,
                        )
                windows[row].append(kept)
        return [self.joined(wave, layers) for wave, layers in zip(waves, windows, strict=True)]

    def prepared(self, samples: np.ndarray) -> np.ndarray:
        """The whole waveform `[n]` as the model takes it."""
        if not self.config.normalize:
            return samples
        # As the Wav2Vec2 feature extractor computes it.
        return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)

    def joined(self, wave: np.ndarray, windows: Sequence[list[Layer]]) -> Outcome:
        """The rows of one utterance, from the layers of each of its pieces: its frames, or their
        mean.
        """
        if not windows:
            return UtteranceError(
                f"is too short for {self.label} ({len(wave)} of {self.least} samples)"
            )
        whole: list[Any] = []
        for spec, config, *layers in zip(self.specs, self.configs, *windows, strict=True):
            # Copied, so that the batch with its padding (of Whisper, most of the 30 s) is freed.
            values, peaks = (np.concatenate(arrays) for arrays in zip(*layers, strict=True))
            if config.pool == "mean":
                frames = [len(layer.peaks) for layer in layers]
                whole.append(np.average(values.astype(spec.dtype), axis=0, weights=frames)[None])
            else:
                whole.append(Layer(values, peaks))
        return self.outcome(whole)

    def cut(self, samples: np.ndarray) -> Iterator[Piece]:
        """One piece, or the overlapping windows of a long utterance."""
        samples, second = self.prepared(samples), self.stride * RATE / self.frame
        total = self.rows(len(samples))
        window = int(self.config.window * RATE / self.frame)  # frames
        if total <= window:
            yield Piece(samples, slice(0, total), len(samples) / second)
            return
        context = int(self.config.context * RATE / self.frame)
        for first in range(0, total - 2 * context, window - 2 * context):
            last = min(first + window, total)
            start = first * self.stride
            piece = samples[start : start + (last - first - 1) * self.stride + self.field]
            keep = slice(context if first else 0, last - first - (context if last < total else 0))
            yield Piece(piece, keep, len(piece) / second)


class FilterbankExtractor(SpeechExtractor):
    """An encoder of the log-mel frames that the checkpoint's own feature extractor makes:
    Wav2Vec2-BERT 2.0.
    """

    name, version = "w2v-bert", 1
    preprocessor = "SeamlessM4TFeatureExtractor"
    least = 560  # samples: two log-mel frames of 25 ms
    frame, stride, field = (
        320,
        1,
        1,
    )  # samples, for Whisper too; the others in frames as the model takes them
    fixed = frozenset({"norm", "normalize"})
    rows = Encoder.rows  # as many as there are inputs

    def open(self) -> None:
        """Load the model and its feature extractor. Raises `WeightsError` unless one fits the
        other.
        """
        import transformers

        Encoder.open(self)
        folder = self.checkpoint.path
        with loading(f"{folder}: its preprocessor does not fit"):
            self.features = getattr(transformers, self.preprocessor).from_pretrained(
                folder, local_files_only=True
            )
            probe = self.features(
                np.zeros(RATE, np.float32), sampling_rate=RATE, return_tensors="np"
            )
            if probe.input_features.shape[1:] != (
                expected := self.shape(probe.input_features.shape[1])
            ):
                raise ValueError(
                    f"it gives {probe.input_features.shape[1:]} values, and the model takes {expected}"
                )

    def shape(self, frames: int) -> tuple[int, int]:
        """The shape of the model's input for one second."""
        return frames, self.model.config.feature_projection_input_dim

    def prepared(self, samples: np.ndarray) -> np.ndarray:
        """Log-mel frames `[frames, 160]`, two side by side, each band normalised over the
        utterance.
        """
        made = self.features(samples, sampling_rate=RATE, return_tensors="np")
        # The last of an odd number of frames is paired with padding, and masked: it gives no row.
        return cast(
            np.ndarray, made.input_features[0][made.attention_mask[0] == 1].astype(np.float32)
        )


class WhisperExtractor(FilterbankExtractor):
    """The encoder of Whisper, 50 states a second; its last layer is the one after the final
    LayerNorm.

    Audio is cut into consecutive windows of 30 s, each padded with silence, whose states are cut
    off. Positions restart in each window, and its log-mel spectrogram is scaled to its own loudest
    value.
    """

    name, version = "whisper", 1
    fixed = frozenset({"norm", "normalize", "window", "context"})
    normed = True
    preprocessor = "WhisperFeatureExtractor"
    least = 400

    def shape(self, frames: int) -> tuple[int, int]:
        """The shape of the model's input for one second, padded to a window."""
        return self.model.config.num_mel_bins, 2 * self.model.config.max_source_positions

    def rows(self, length: int) -> int:
        """All states of a window, with those of its padding."""
        return cast(int, self.model.config.max_source_positions)

    def cut(self, samples: np.ndarray) -> Iterator[Piece]:
        """Consecutive windows of log-mel frames `[bands, 3000]`; state k is kept if the audio
        reaches 20·k ms.
        """
        for start in range(0, len(samples), self.features.n_samples):
            window = samples[start : start + self.features.n_samples]
            spectrogram = self.features(
                window, sampling_rate=RATE, return_tensors="np"
            ).input_features[0]
            keep = slice(0, math.ceil(len(window) / self.frame))
            yield Piece(spectrogram, keep, self.features.n_samples / RATE)
