"""Log-mel spectrogram and the MFCC made from it: librosa's numbers, by torch's FFT."""

import math
from dataclasses import dataclass, field
from typing import Any, cast

import librosa
import numpy as np
import torch
from scipy.fft import dct

from ser.errors import UtteranceError, WrongUse

from .audio import CHANNELS, RESAMPLER, Clip
from .augment import augment, check_view
from .extractor import Extractor

# An hour has 360,000: this bounds the spectrum in memory.
FRAMES_AT_ONCE = 4096


@dataclass(frozen=True)
class MelConfig:
    """A log-mel spectrogram: natural logarithm of `max(power, floor)`.

    USC (§4) takes librosa's spectrogram at 22.05 kHz: `logmel:sampling_rate=22050`.
    """

    # Hz.
    sampling_rate: int = 16000
    # Both in seconds. The window is Hann's.
    window: float = 0.025
    hop: float = 0.010
    bands: int = 80
    # The lowest and the highest frequency in Hz. `high` 0 is half the sampling rate.
    low: float = 0.0
    high: float = 0.0
    # Of power, before the logarithm.
    floor: float = 1e-10
    # Of MFCC: how many, from the first, of its orthonormal DCT-II. 0: log-mel itself.
    coefficients: int = 0
    # Half a window of zeros at each end: frame t is centred at t * hop.
    padding: str = field(default="constant", init=False)
    resampler: str = field(default=RESAMPLER, init=False)
    channels: str = field(default=CHANNELS, init=False)
    # An augmented copy, such as "pitch-1" (see augment.py).
    view: str = ""

    def __post_init__(self) -> None:
        nyquist = self.sampling_rate / 2
        if not 500 <= nyquist <= 96000 or not 0 <= self.low < (self.high or nyquist) <= nyquist:
            raise WrongUse(
                "sampling_rate, low and high are in Hz: low below high, "
                "high at most half of sampling_rate"
            )

        smallest = min(self.window_samples, self.hop_samples, self.bands)
        if not 0 < self.floor < math.inf or smallest < 1:
            raise WrongUse("window and hop (in seconds), floor and bands must be above 0")

        if not 0 <= self.coefficients <= self.bands:
            raise WrongUse(f"{self.coefficients} coefficients cannot come from {self.bands} bands")
        if self.view:
            check_view(self.view)

    @property
    def window_samples(self) -> int:
        """Window and FFT length: 400 at 16 kHz, 551 at 22.05 kHz."""
        return round(self.window * self.sampling_rate)

    @property
    def hop_samples(self) -> int:
        """160 at 16 kHz, 220 at 22.05 kHz."""
        return round(self.hop * self.sampling_rate)


class MelExtractor(Extractor):
    """One row per hop. Log-mel and MFCC of the same spectrogram compute it once."""

    name = "mel"
    version = 1
    Config = MelConfig
    packages = ("torch", "librosa", "soundfile", "soxr")
    varying = frozenset({"coefficients"})

    @classmethod
    def dim(cls, config: MelConfig, checkpoint: Any) -> int:
        """Bands or coefficients."""
        return config.coefficients or config.bands

    @classmethod
    def hop(cls, config: MelConfig, checkpoint: Any) -> float:
        """Seconds between frames, as the samples have it: 0.01 at 16 kHz, 0.009977 at 22.05 kHz."""
        return config.hop_samples / config.sampling_rate

    def open(self) -> None:
        """Make librosa's Slaney filterbank `[1 + n_fft // 2, bands]`."""
        config = self.config
        filterbank = librosa.filters.mel(
            sr=config.sampling_rate,
            n_fft=config.window_samples,
            n_mels=config.bands,
            fmin=config.low,
            fmax=config.high or config.sampling_rate / 2,
        )
        self.filterbank = torch.from_numpy(filterbank.T).contiguous()

    def extract(self, clip: Clip) -> list[np.ndarray]:
        """Log-mel or MFCC of a clip of n samples, `[1 + n // hop, dim]` float32 each."""
        config = self.config
        samples = clip.at(config.sampling_rate)
        if config.view:
            samples = augment(samples, config.sampling_rate, config.view)
        if len(samples) < config.window_samples:
            raise UtteranceError(
                f"is too short for {self.label} "
                f"({clip.seconds * 1000:.0f} ms; one window is needed)"
            )

        logmel = self.spectrogram(samples)
        arrays: list[np.ndarray] = []
        for feature_config in self.configs:
            count = feature_config.coefficients
            if count:
                arrays.append(dct(logmel, norm="ortho")[:, :count])
            else:
                arrays.append(logmel)
        return arrays

    def spectrogram(self, samples: np.ndarray) -> np.ndarray:
        """Log-mel of `samples` `[n]`: `[1 + n // hop, bands]` float32."""
        config = self.config
        # In float64, as librosa: the rounding of a float32 FFT would show in the logarithm of quiet
        # bands.
        side = config.window_samples // 2
        padded = torch.nn.functional.pad(torch.from_numpy(samples).double(), (side, side))
        # A view, `[frames, n_fft]`.
        frames = padded.unfold(0, config.window_samples, config.hop_samples)
        window = torch.hann_window(config.window_samples, dtype=torch.float64)

        bands: list[torch.Tensor] = []
        with torch.inference_mode():
            for piece in frames.split(FRAMES_AT_ONCE):
                # [frames, 1 + n_fft // 2]
                spectrum = torch.fft.rfft(piece * window)
                power = spectrum.real.float().square() + spectrum.imag.float().square()
                bands.append(power @ self.filterbank)

            logmel = torch.cat(bands).clamp_(min=config.floor).log_()
            return cast(np.ndarray, logmel.numpy())
