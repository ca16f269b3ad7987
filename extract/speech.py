"""HuBERT, wav2vec 2.0 and their like: frames of a speech encoder, batched as one by one.

Four things make padding leak into other rows, and each is closed here:

- Base models normalise the first convolution over *time* (GroupNorm): `normalize_rowwise` takes
  each row's statistics from its own frames.
- Between the convolutions of the positions, padding becomes nonzero (data2vec's several layers,
  the batch norm of some HuBERTs): `clear_padding` makes it zero before the next one sees it.
- The transformer attends to padding: `Encoder` passes the attention mask whenever the batch has
  padding.
- Hugging Face's batch normaliser averages over the padding too: `prepare` normalises each waveform
  alone, before padding.

What this class takes from `Encoder` and `Extractor`:

    configs, specs    of each feature that is computed in the same pass, such as two layers
    config            the first of them, for what they have in common
    batch_seconds     padded audio that a batch may hold; None: one utterance
    forward(inputs)   pads the inputs, runs the model once, and gives for each input a `Layer` per
                      feature: its frames, and as `peaks` the largest absolute value of each, by
                      which `as_rows` refuses what float16 cannot hold
    state.lengths     the inputs' lengths during that pass
    as_rows(arrays)   one utterance's result, of an array or `Layer` per feature
    label             the features' names, for messages

`clip.at(rate)` is a decoded utterance, mono, float32 `[n]`, resampled to that rate.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ser.errors import UtteranceError, WrongUse
from ser.weights.checkpoint import Checkpoint, Size

from .audio import CHANNELS, ENCODER_RATE, RESAMPLER, Clip
from .batches import batches
from .encoder import Encoder, Precision
from .extractor import Extracted, Layer

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
    # The waveform to zero mean and unit variance, as the checkpoint's preprocessor says.
    normalize: bool
    precision: Precision = "float32"
    pool: Literal["none", "mean"] = "none"
    # Both in seconds.
    window: float = 60.0
    context: float = 5.0
    sampling_rate: int = field(default=ENCODER_RATE, init=False)
    resampler: str = field(default=RESAMPLER, init=False)
    channels: str = field(default=CHANNELS, init=False)

    def __post_init__(self) -> None:
        if not self.window >= 2 or not 0 <= self.context <= self.window / 4:
            raise WrongUse("window must be 2 seconds or more, and context at most a quarter of it")


class Piece(NamedTuple):
    """A piece of one utterance as the model takes it."""

    # `[n]` samples, or `[n, bands]` log-mel frames.
    inputs: np.ndarray
    # Which of its frames go to the store.
    keep: slice
    # Of audio, padding included.
    seconds: float


class SpeechExtractor(Encoder):
    """Frames `[frames, dim]`, one per 20 ms."""

    name = "speech"
    version = 1
    Config = SpeechConfig
    packages = ("torch", "transformers", "soundfile", "soxr")
    varying = frozenset({"layer", "norm", "pool"})
    architectures: ClassVar[tuple[str, ...]] = (
        "hubert",
        "wav2vec2",
        "wavlm",
        "data2vec-audio",
        "unispeech-sat",
    )

    # Whether the last layer is always the one after the final LayerNorm.
    ends_after_norm = False
    # Samples between frames. 0: as the checkpoint's convolutions have it.
    frame_samples = 0
    # Between frames, and under one frame, in the model's inputs: here samples too.
    frame_step: int
    receptive_field: int
    # The shortest utterance that has a frame, in samples.
    shortest: int

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Checkpoint) -> SpeechConfig:
        """The complete config on this checkpoint.

        Raises `WrongUse` for what the encoder cannot give.
        """
        preprocessor = checkpoint.preprocessor or {}
        ends_in_norm = bool(checkpoint.config.get("do_stable_layer_norm"))
        norm = "none"
        if ends_in_norm:
            norm = "before" if "layer" in settings else "after"

        defaults = {"norm": norm, "normalize": bool(preprocessor.get("do_normalize", True))}
        config: SpeechConfig = super().resolve({**defaults, **settings}, checkpoint)

        names_norm = config.norm != "none"
        if names_norm and not ends_in_norm:
            raise WrongUse(
                f"norm={config.norm}: for {checkpoint.model} it is none: "
                "this encoder ends in no LayerNorm"
            )
        if ends_in_norm and not names_norm:
            raise WrongUse(f"norm=none: for {checkpoint.model} it is before or after")

        last = checkpoint.setting("num_hidden_layers")
        if config.norm == "after" and config.layer != last:
            raise WrongUse(
                f"norm=after is for the last layer ({last}) alone, not for layer {config.layer}"
            )

        if "normalize" not in settings:
            if checkpoint.preprocessor is None:
                raise WrongUse(
                    f"{checkpoint.model} has no preprocessor_config.json to say whether waveforms "
                    "are normalised: ask for normalize=true or normalize=false"
                )
            rate = preprocessor.get("sampling_rate", ENCODER_RATE)
            if rate != ENCODER_RATE:
                raise WrongUse(
                    f"{checkpoint.model} takes audio at {rate} Hz; "
                    f"only {ENCODER_RATE} Hz is supported"
                )
        return config

    @classmethod
    def hop(cls, config: Any, checkpoint: Checkpoint) -> float:
        """Seconds between frames, 0.02.

        That is 320 samples: the class's own, or the product of the convolutions' strides.
        """
        if cls.frame_samples:
            return cls.frame_samples / ENCODER_RATE
        return math.prod(checkpoint.setting("conv_stride", list[Size])) / ENCODER_RATE

    def open(self) -> None:
        """Load the model, and let its norms and convolutions see each utterance's own frames."""
        super().open()
        # After the encoder of some models fine-tuned for ASR: frames of 160 ms.
        self.model.adapter = None

        self.kernels = tuple(self.model.config.conv_kernel)
        self.strides = tuple(self.model.config.conv_stride)
        self.frame_samples = math.prod(self.strides)
        self.frame_step = self.frame_samples
        self.receptive_field = 1
        samples_between = 1
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            self.receptive_field += (kernel - 1) * samples_between
            samples_between *= stride
        self.shortest = self.receptive_field

        first = self.model.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm.forward = partial(self.normalize_rowwise, first.layer_norm.forward)

        positions = self.model.encoder.pos_conv_embed
        for convolution in getattr(positions, "layers", ()):
            convolution.register_forward_pre_hook(
                lambda _module, args: self.clear_padding(args[0]),
            )
        if getattr(positions, "batch_norm", None) is not None:
            positions.batch_norm.register_forward_hook(
                lambda _module, _args, frames: self.clear_padding(frames),
            )

    def normalize_rowwise(self, norm: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """The GroupNorm `norm` over time of `frames` `[batch, channels, time]`, row by row.

        Each row's statistics are those of its valid frames; padded frames become zero. Without
        padding it is the `norm` itself.
        """
        longest = frames.shape[2]
        valid = [
            (samples - self.kernels[0]) // self.strides[0] + 1 for samples in self.state.lengths
        ]
        if all(count == longest for count in valid):
            return norm(frames)

        rows: list[Tensor] = []
        for row, count in enumerate(valid):
            normed = norm(frames[row : row + 1, :, :count])
            rows.append(nn.functional.pad(normed, (0, longest - count)))
        return torch.cat(rows)

    def clear_padding(self, frames: Tensor) -> Tensor:
        """Frames `[batch, dim, time]` with zeros as padding, as alone at the end of a row."""
        counts = [self.row_count(samples) for samples in self.state.lengths]
        ends = torch.tensor(counts, device=frames.device)[:, None, None]
        positions = torch.arange(frames.shape[2], device=frames.device)
        return frames.masked_fill(positions >= ends, 0)

    def row_count(self, length: int) -> int:
        """Frames that the convolutions make of so many samples, one per 20 ms.

        Of the usual ones that is `(n - 400) // 320 + 1`.
        """
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            length = (length - kernel) // stride + 1
        return length

    def hidden(self, config: Any, output: Any) -> Tensor:
        """The layer `[batch, time, dim]`; after the final norm it is the model's output."""
        last = self.checkpoint.setting("num_hidden_layers")
        if config.norm == "after" or (self.ends_after_norm and config.layer == last):
            return cast(Tensor, output.last_hidden_state)
        return super().hidden(config, output)

    def run(self, batch: Sequence[Clip]) -> list[Extracted]:
        """The frames of each clip, `[frames, dim]` of each spec, or their mean `[1, dim]`."""
        waves = [clip.at(ENCODER_RATE) for clip in batch]

        # With the number of their clip.
        pieces: list[tuple[int, Piece]] = []
        for number, wave in enumerate(waves):
            if len(wave) >= self.shortest:
                pieces.extend((number, piece) for piece in self.cut(wave))

        # An hour has many windows: they are batched too, by at most `batch_seconds`, padded.
        limit = None
        if self.batch_seconds:
            limit = max(self.batch_seconds, self.config.window)

        # For each clip the layers of each of its pieces.
        outputs: list[list[list[Layer]]] = [[] for _ in batch]
        for group in batches(pieces, lambda item: item[1].seconds, limit):
            layers_of_group = self.forward([piece.inputs for _, piece in group])
            for (number, piece), layers in zip(group, layers_of_group, strict=True):
                outputs[number].append(self.kept(layers, piece.keep))

        return [self.join(wave, layers) for wave, layers in zip(waves, outputs, strict=True)]

    def cut(self, samples: np.ndarray) -> Iterator[Piece]:
        """One piece, or the overlapping windows of a long utterance."""
        inputs = self.prepare(samples)
        inputs_per_second = self.frame_step * ENCODER_RATE / self.frame_samples
        total = self.row_count(len(inputs))
        window = int(self.config.window * ENCODER_RATE / self.frame_samples)
        if total <= window:
            yield Piece(inputs, slice(0, total), len(inputs) / inputs_per_second)
            return

        # In frames, as `window`.
        context = int(self.config.context * ENCODER_RATE / self.frame_samples)
        for first in range(0, total - 2 * context, window - 2 * context):
            last = min(first + window, total)
            start = first * self.frame_step
            end = start + (last - first - 1) * self.frame_step + self.receptive_field
            piece = inputs[start:end]

            kept_from = context if first > 0 else 0
            kept_to = last - first
            if last < total:
                kept_to -= context
            yield Piece(piece, slice(kept_from, kept_to), len(piece) / inputs_per_second)

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        """The whole waveform `[n]` as the model takes it."""
        if not self.config.normalize:
            return samples
        # As the Wav2Vec2 feature extractor computes it.
        normalized = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return cast(np.ndarray, normalized.astype(np.float32))

    def kept(self, layers: Sequence[Layer], keep: slice) -> list[Layer]:
        """The frames of one piece that go to the store, of each spec, or their mean `[1, dim]`.

        The mean is taken at once: all frames of an hour would take gigabytes. Its `peaks` are still
        those of the frames.
        """
        kept: list[Layer] = []
        for config, layer in zip(self.configs, layers, strict=True):
            values = layer.values[keep]
            if config.pool == "mean":
                values = values.mean(0, np.float64, keepdims=True)
            kept.append(Layer(values, layer.peaks[keep]))
        return kept

    def join(self, wave: np.ndarray, pieces: Sequence[list[Layer]]) -> Extracted:
        """The rows of one utterance, from the layers of each of its pieces.

        These are its frames, or the mean of the pieces' means, weighted by their frames.
        """
        if not pieces:
            return UtteranceError(
                f"is too short for {self.label} ({len(wave)} of {self.shortest} samples)"
            )

        arrays: list[np.ndarray | Layer] = []
        for number, (spec, config) in enumerate(zip(self.specs, self.configs, strict=True)):
            layers = [piece[number] for piece in pieces]
            # Copied, so that the batch with its padding (of Whisper, most of the 30 s) is freed.
            values = np.concatenate([layer.values for layer in layers])
            if config.pool == "mean":
                frames = [len(layer.peaks) for layer in layers]
                mean = np.average(values.astype(spec.dtype), axis=0, weights=frames)
                arrays.append(mean[None])
            else:
                peaks = np.concatenate([layer.peaks for layer in layers])
                arrays.append(Layer(values, peaks))
        return self.as_rows(arrays)
