"""Log-mel spectrogram and the MFCC made from it: librosa's numbers, by torch's FFT."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import librosa
import numpy as np
import scipy.fft
import torch

from ser.cache.spec import Modality, Spec
from ser.errors import WrongUse

from .audio import CHANNELS, RESAMPLER, Clip
from .extractors import Outcome, Rows, UtteranceError, as_stored

VERSION = 1
FRAMES_AT_ONCE = 4096  # an hour has 360,000: this bounds the spectrum in memory


@dataclass(frozen=True)
class MelConfig:
    """A log-mel spectrogram: natural logarithm of `max(power, floor)`.

    USC (§3.1) takes librosa's spectrogram at 22.05 kHz: `logmel:sampling_rate=22050`.
    """

    sampling_rate: int = 16000  # Hz
    window: float = 0.025  # seconds, Hann
    hop: float = 0.010  # seconds
    bands: int = 80
    low: float = 0.0  # Hz
    high: float = 0.0  # Hz; 0 is half the sampling rate
    floor: float = 1e-10  # of power, before the logarithm
    coefficients: int = 0  # 0: log-mel; else MFCC, the orthonormal DCT-II of it, with that many coefficients
    padding: str = "constant"  # half a window of zeros at each end: frame t is centred on sample t * hop
    resampler: str = RESAMPLER
    channels: str = CHANNELS
    view: str = ""  # an augmented copy, such as "pitch-1" (see views.py)

    @property
    def window_samples(self) -> int:
        """Window and FFT length: 400 at 16 kHz, 551 at 22.05 kHz."""
        return round(self.window * self.sampling_rate)

    @property
    def hop_samples(self) -> int:
        """160 at 16 kHz, 220 at 22.05 kHz."""
        return round(self.hop * self.sampling_rate)

    @property
    def dim(self) -> int:
        """Values per frame."""
        return self.coefficients or self.bands


class MelExtractor:
    """One row per hop; an utterance's rows are the same bits whatever is computed beside it."""

    modality: Modality = "audio"
    batched = False

    def __init__(self, config: MelConfig, spec: Spec) -> None:
        self.config, self.specs, self.stage = config, (spec,), spec.feature

    @cached_property
    def _bank(self) -> torch.Tensor:
        """Librosa's Slaney filterbank `[1 + n_fft // 2, bands]`."""
        c = self.config
        high = c.high or c.sampling_rate / 2
        return torch.from_numpy(
            librosa.filters.mel(sr=c.sampling_rate, n_fft=c.window_samples, n_mels=c.bands, fmin=c.low, fmax=high).T
        ).contiguous()

    def run(self, batch: Sequence[Clip]) -> list[Outcome]:
        """The spectrogram of each clip, `[1 + n // hop, dim]`, n samples long."""
        return [self._one(clip) for clip in batch]

    def _one(self, clip: Clip) -> Outcome:
        samples = clip.at(self.config.sampling_rate)
        if self.config.view:
            from .augment import change

            samples = change(samples, self.config.sampling_rate, self.config.view)
        if len(samples) < self.config.window_samples:
            return UtteranceError(f"is too short for {self.stage} ({clip.seconds * 1000:.0f} ms; one window is needed)")
        [spec] = self.specs
        try:
            return {spec.fingerprint: Rows(as_stored(self.spectrogram(samples), spec.dtype))}
        except UtteranceError as fault:
            return fault

    def spectrogram(self, samples: np.ndarray) -> np.ndarray:
        """Log-mel or MFCC of `samples` `[n]`: `[1 + n // hop, dim]` float32."""
        c = self.config
        side = c.window_samples // 2
        # In float64, as librosa: the rounding of a float32 FFT would show in the logarithm of quiet bands.
        padded = torch.nn.functional.pad(torch.from_numpy(samples).double(), (side, side))
        frames = 1 + (len(padded) - c.window_samples) // c.hop_samples
        window = torch.hann_window(c.window_samples, dtype=torch.float64)
        bands = torch.empty(frames, c.bands)
        with torch.inference_mode():
            for first in range(0, frames, FRAMES_AT_ONCE):
                last = min(first + FRAMES_AT_ONCE, frames)
                piece = padded[first * c.hop_samples : (last - 1) * c.hop_samples + c.window_samples]
                spectrum = torch.stft(
                    piece, c.window_samples, c.hop_samples, window=window, center=False, return_complex=True
                )  # [1 + n_fft // 2, last - first]
                power = spectrum.real.float().square() + spectrum.imag.float().square()
                bands[first:last] = power.T @ self._bank
        logmel = bands.clamp_(min=c.floor).log_().numpy()
        if not c.coefficients:
            return logmel
        return np.asarray(scipy.fft.dct(logmel, type=2, norm="ortho", axis=1)[:, : c.coefficients])


def hop_seconds(config: MelConfig) -> float:
    """Seconds between frames, as the samples have it: 0.01 at 16 kHz, 0.009977 at 22.05 kHz."""
    return config.hop_samples / config.sampling_rate


def resolve(settings: dict[str, Any]) -> MelConfig:
    """The complete config. Raises `WrongUse` for settings that cannot be."""
    config = MelConfig(**settings)
    if not 0 < config.floor < math.inf:
        raise WrongUse(f"floor={config.floor}: it must be above 0")
    if not 1000 <= config.sampling_rate <= 192000:
        raise WrongUse(f"sampling_rate={config.sampling_rate}: it is in Hz, such as 16000")
    if min(config.window_samples, config.hop_samples, config.bands) < 1:
        raise WrongUse("window, hop and bands must be above 0; window and hop are in seconds, such as 0.025")
    if not 0 <= config.low < (config.high or config.sampling_rate / 2) <= config.sampling_rate / 2:
        raise WrongUse("low and high are in Hz, low below high, and high at most half the sampling rate")
    if not 0 <= config.coefficients <= config.bands:
        raise WrongUse(f"{config.coefficients} coefficients cannot come from {config.bands} bands")
    if config.view:
        from .augment import check

        check(config.view)
    return config
