"""Log-mel spectrogram and the MFCC made from it: librosa's numbers, by torch's FFT."""

import math
from dataclasses import dataclass, field
from typing import Any

import librosa
import numpy as np
import torch
from scipy.fft import dct

from ser.errors import UtteranceError, WrongUse

from .audio import CHANNELS, RESAMPLER, Clip, change, check_view
from .extractors import Extractor

FRAMES_AT_ONCE = 4096  # an hour has 360,000: this bounds the spectrum in memory


@dataclass(frozen=True)
class MelConfig:
    """A log-mel spectrogram: natural logarithm of `max(power, floor)`.

    USC (§4) takes librosa's spectrogram at 22.05 kHz: `logmel:sampling_rate=22050`.
    """

    sampling_rate: int = 16000  # Hz
    window: float = 0.025  # seconds, Hann
    hop: float = 0.010  # seconds
    bands: int = 80
    low: float = 0.0  # Hz
    high: float = 0.0  # Hz; 0 is half the sampling rate
    floor: float = 1e-10  # of power, before the logarithm
    coefficients: int = 0  # of MFCC, the first of its orthonormal DCT-II; 0: log-mel itself
    padding: str = field(
        default="constant", init=False
    )  # half a window of zeros at each end: frame t at t * hop
    resampler: str = field(default=RESAMPLER, init=False)
    channels: str = field(default=CHANNELS, init=False)
    view: str = ""  # an augmented copy, such as "pitch-1" (see audio.py)

    def __post_init__(self) -> None:
        nyquist = self.sampling_rate / 2
        if not 500 <= nyquist <= 96000 or not 0 <= self.low < (self.high or nyquist) <= nyquist:
            raise WrongUse(
                "sampling_rate, low and high are in Hz: low below high, high at most half of sampling_rate"
            )
        if (
            not 0 < self.floor < math.inf
            or min(self.window_samples, self.hop_samples, self.bands) < 1
        ):
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

    name, version, Config = "mel", 1, MelConfig
    packages = ("torch", "librosa", "soundfile", "soxr")
    own = frozenset({"coefficients"})

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
        c = self.config
        high = c.high or c.sampling_rate / 2
        bank = librosa.filters.mel(
            sr=c.sampling_rate, n_fft=c.window_samples, n_mels=c.bands, fmin=c.low, fmax=high
        )
        self.bank = torch.from_numpy(bank.T).contiguous()

    def extract(self, item: Clip) -> list[np.ndarray]:
        """Log-mel or MFCC of a clip, `[1 + n // hop, dim]` float32 each, n samples long."""
        c = self.config
        samples = item.at(c.sampling_rate)
        if c.view:
            samples = change(samples, c.sampling_rate, c.view)
        if len(samples) < c.window_samples:
            raise UtteranceError(
                f"is too short for {self.label} ({item.seconds * 1000:.0f} ms; one window is needed)"
            )
        logmel = self.spectrogram(samples)
        counts = (one.coefficients for one in self.configs)
        return [dct(logmel, norm="ortho")[:, :count] if count else logmel for count in counts]

    def spectrogram(self, samples: np.ndarray) -> np.ndarray:
        """Log-mel of `samples` `[n]`: `[1 + n // hop, bands]` float32."""
        c = self.config
        side = c.window_samples // 2
        # In float64, as librosa: the rounding of a float32 FFT would show in the logarithm of quiet
        # bands.
        padded = torch.nn.functional.pad(torch.from_numpy(samples).double(), (side, side))
        frames = padded.unfold(0, c.window_samples, c.hop_samples)  # a view, `[frames, n_fft]`
        window = torch.hann_window(c.window_samples, dtype=torch.float64)
        bands = []
        with torch.inference_mode():
            for piece in frames.split(FRAMES_AT_ONCE):
                spectrum = torch.fft.rfft(piece * window)  # [frames, 1 + n_fft // 2]
                power = spectrum.real.float().square() + spectrum.imag.float().square()
                bands.append(power @ self.bank)
            return torch.cat(bands).clamp_(min=c.floor).log_().numpy()
