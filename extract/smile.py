"""openSMILE's feature sets, each by openSMILE's own name: IS13_ComParE, eGeMAPSv02, ComParE_2016
and the others.

IS13_ComParE and ComParE_2016 have the same names in the same order, but up to 1,808 values differ.
openSMILE's licence is for research and non-commercial use, and covers the extracted features.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
import opensmile

from ser.errors import UtteranceError, WrongUse, unknown

from .audio import CHANNELS, RESAMPLER, Clip
from .extractors import Extractor

LARGEST_SAMPLE = 32767 / 32768  # openSMILE casts x * 32768 to int16: 1.0 would wrap to -1.0
SETS = {
    PurePath(known.value).name: known for known in opensmile.FeatureSet
}  # by the name of their configuration file
LEVELS = {"functionals": "func", "lld": "lld", "deltas": "lld_de"}
# Too short utterances are reported below, and the user chose the old sets. (catch_warnings is not
# safe in threads.)
warnings.filterwarnings("ignore", "Segment too short|Feature set .* is deprecated", UserWarning)


@dataclass(frozen=True)
class SmileConfig:
    """How openSMILE is called: with which set (`set=`), for one vector or for frames every 10 ms."""

    feature_set: str = field(metadata={"setting": "set"})
    level: Literal["functionals", "lld", "deltas"] = "functionals"
    sampling_rate: int = field(default=16000, init=False)
    resampler: str = field(default=RESAMPLER, init=False)
    channels: str = field(default=CHANNELS, init=False)
    clip: float = field(default=LARGEST_SAMPLE, init=False)


def open_smile(config: SmileConfig) -> opensmile.Smile:
    """The library itself."""
    return opensmile.Smile(SETS[config.feature_set], opensmile.FeatureLevel(LEVELS[config.level]))


class SmileExtractor(Extractor):
    """One vector per utterance, or frames; threads scale, since openSMILE runs without the GIL."""

    name, version, Config = "smile", 1, SmileConfig
    packages = ("opensmile", "soundfile", "soxr")
    exact = True

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Any) -> SmileConfig:
        """The config. Raises `WrongUse` for an unknown set, or a level that the set does not have."""
        wanted = settings.pop("set", "")
        name = next((name for name, known in SETS.items() if wanted in (name, known.name)), None)
        if name is None:
            raise unknown("set of openSMILE (smile:set=NAME)", wanted, SETS)
        if settings.get("level") == "deltas" and "GeMAPS" in name:
            raise WrongUse(f"level=deltas: {name} gives no deltas apart; ask for level=lld")
        return SmileConfig(name, **settings)

    @classmethod
    def dim(cls, config: SmileConfig, checkpoint: Any) -> int:
        """Values of a row: for the functionals of IS13_ComParE, 6373."""
        return int(open_smile(config).num_features)

    @classmethod
    def hop(cls, config: SmileConfig, checkpoint: Any) -> float | None:
        """Seconds between frames: 0.01 in all sets. Functionals have one row an utterance."""
        return None if config.level == "functionals" else 0.01

    def open(self) -> None:
        """Open the library, once for all threads: its calls share no state."""
        self.smile = open_smile(self.config)

    def extract(self, item: Clip) -> list[np.ndarray]:
        """The rows of a clip, `[1, dim]` or `[frames, dim]` float32, bit for bit as openSMILE gives
        them.
        """
        config = self.config
        samples = item.at(config.sampling_rate)
        if samples.max(initial=0.0) > config.clip or samples.min(initial=0.0) < -1.0:
            item.warnings.append(f"clipped to full scale for {self.label}")
            samples = np.clip(samples, -1.0, config.clip)
        values = self.smile(samples, config.sampling_rate)[0].T
        if np.isnan(values).all():
            raise UtteranceError(f"is too short for {self.label} ({item.seconds * 1000:.0f} ms)")
        return [values]
