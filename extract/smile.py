"""IS13: the 6373 functionals of the INTERSPEECH 2013 ComParE challenge, by openSMILE's own set of that name.

It is not ComParE_2016, which has the same names in the same order and up to 1,808 other values.
openSMILE's licence is for research and non-commercial use, and covers the extracted features.
"""

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ser.cache.spec import Modality, Spec

from .audio import CHANNELS, RESAMPLER, Clip
from .extractors import Outcome, Rows, UtteranceError, as_stored

VERSION = 1
DIM = 6373
LARGEST_SAMPLE = 32767 / 32768  # openSMILE casts x * 32768 to int16: 1.0 would wrap to -1.0


@dataclass(frozen=True)
class SmileConfig:
    """What openSMILE is told."""

    feature_set: str = "IS13_ComParE"
    level: str = "functionals"
    sampling_rate: int = 16000
    resampler: str = RESAMPLER
    channels: str = CHANNELS
    clip: float = LARGEST_SAMPLE


# Too short is told by name below. (catch_warnings is no help in threads.)
warnings.filterwarnings("ignore", "Segment too short", UserWarning)


class SmileExtractor:
    """One vector of 6373 values per utterance; threads scale, for openSMILE runs without the GIL."""

    stage = "is13"
    modality: Modality = "audio"
    batched = False

    def __init__(self, config: SmileConfig, spec: Spec) -> None:
        self.config, self.specs = config, (spec,)
        self._local = threading.local()

    def run(self, batch: Sequence[Clip]) -> list[Outcome]:
        """IS13 of each clip, `[1, 6373]` float32, bit for bit as openSMILE gives it on the same samples."""
        return [self._one(clip) for clip in batch]

    def _one(self, clip: Clip) -> Outcome:
        samples = clip.at(self.config.sampling_rate)
        if samples.max(initial=0.0) > self.config.clip or samples.min(initial=0.0) < -1.0:
            clip.warnings.append("clipped to full scale for is13")
            samples = np.clip(samples, -1.0, self.config.clip)
        values = self._smile()(samples, self.config.sampling_rate)[0, :, 0]
        if np.isnan(values).all():
            return UtteranceError(f"is too short for is13 ({clip.seconds * 1000:.0f} ms)")
        [spec] = self.specs
        try:
            return {spec.fingerprint: Rows(as_stored(values[None], spec.dtype))}
        except UtteranceError as fault:
            return fault

    def _smile(self):  # type: ignore[no-untyped-def]  # opensmile has no types
        # One per thread: cheap, and nothing is shared that a later release could make stateful.
        if not hasattr(self._local, "smile"):
            import opensmile

            self._local.smile = opensmile.Smile(opensmile.FeatureSet.IS13, opensmile.FeatureLevel.Functionals)
        return self._local.smile
