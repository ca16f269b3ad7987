"""IS13: the 6373 functionals of the INTERSPEECH 2013 ComParE challenge, by openSMILE's own set of that name.

It is not ComParE_2016, which has the same names in the same order and up to 1,808 other values.
openSMILE's licence is for research and non-commercial use, and covers the extracted features.
"""

import threading
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ser.errors import UtteranceError

from .audio import CHANNELS, RESAMPLER, Clip
from .extractors import Extractor

DIM = 6373
LARGEST_SAMPLE = 32767 / 32768  # openSMILE casts x * 32768 to int16: 1.0 would wrap to -1.0
# Utterances that are too short are named below. (catch_warnings is not safe in threads.)
warnings.filterwarnings("ignore", "Segment too short", UserWarning)


@dataclass(frozen=True)
class SmileConfig:
    """How openSMILE is called. There is nothing to set."""

    feature_set: str = field(default="IS13_ComParE", init=False)
    level: str = field(default="functionals", init=False)
    sampling_rate: int = field(default=16000, init=False)
    resampler: str = field(default=RESAMPLER, init=False)
    channels: str = field(default=CHANNELS, init=False)
    clip: float = field(default=LARGEST_SAMPLE, init=False)


_local = threading.local()  # one openSMILE per thread: nothing is shared that a later release could make stateful


class SmileExtractor(Extractor):
    """One vector of 6373 values per utterance; threads scale, since openSMILE runs without the GIL."""

    name, version, Config = "smile", 1, SmileConfig
    packages = ("opensmile", "soundfile", "soxr")

    @classmethod
    def dim(cls, config: SmileConfig, checkpoint: Any) -> int:
        """6373 functionals."""
        return DIM

    def extract(self, item: Clip) -> list[np.ndarray]:
        """IS13 of a clip, `[1, 6373]` float32, bit for bit as openSMILE gives it on the same samples."""
        rate = self.config.sampling_rate
        samples = item.at(rate)
        if samples.max(initial=0.0) > self.config.clip or samples.min(initial=0.0) < -1.0:
            item.warnings.append("clipped to full scale for is13")
            samples = np.clip(samples, -1.0, self.config.clip)
        if not hasattr(_local, "smile"):
            import opensmile

            _local.smile = opensmile.Smile(opensmile.FeatureSet.IS13, opensmile.FeatureLevel.Functionals)
        values = _local.smile(samples, rate)[0, :, 0]
        if np.isnan(values).all():
            raise UtteranceError(f"is too short for is13 ({item.seconds * 1000:.0f} ms)")
        return [values[None]]
