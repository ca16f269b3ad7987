"""openSMILE's feature sets: IS13_ComParE, eGeMAPSv02, ComParE_2016 and the others.

Each goes by openSMILE's own name. IS13_ComParE and ComParE_2016 have the same names in the same
order, but up to 1,808 values differ. openSMILE's licence is for research and non-commercial use,
and covers the extracted features.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
import opensmile

from ser.cache.spec import Spec
from ser.errors import UtteranceError, WrongUse, unknown

from .audio import CHANNELS, RESAMPLER, Clip
from .extractor import Extractor

# openSMILE casts x * 32768 to int16: 1.0 would wrap to -1.0.
LARGEST_SAMPLE = 32767 / 32768
# By the name of their configuration file.
SETS: Mapping[str, opensmile.FeatureSet] = {
    PurePath(feature_set.value).name: feature_set for feature_set in opensmile.FeatureSet
}
# openSMILE's own names of what `level=` takes.
LEVELS = {"functionals": "func", "lld": "lld", "deltas": "lld_de"}
# Too short utterances are reported below, and the user chose the old sets. (catch_warnings is not
# safe in threads.)
warnings.filterwarnings("ignore", "Segment too short|Feature set .* is deprecated", UserWarning)


@dataclass(frozen=True)
class SmileConfig:
    """How openSMILE is called: with which set (`set=`), for one vector or a frame every 10 ms."""

    feature_set: str = field(metadata={"setting": "set"})
    level: Literal["functionals", "lld", "deltas"] = "functionals"
    sampling_rate: int = field(default=16000, init=False)
    resampler: str = field(default=RESAMPLER, init=False)
    channels: str = field(default=CHANNELS, init=False)
    clip: float = field(default=LARGEST_SAMPLE, init=False)


@cache
def open_smile(config: SmileConfig) -> opensmile.Smile:
    """The library itself: opening it runs it once, for the names of its values."""
    level = opensmile.FeatureLevel(LEVELS[config.level])
    return opensmile.Smile(SETS[config.feature_set], level)


class SmileExtractor(Extractor):
    """One vector per utterance, or frames; threads scale, since openSMILE runs without the GIL."""

    name = "smile"
    version = 1
    Config = SmileConfig
    packages = ("opensmile", "soundfile", "soxr")
    always_float32 = True

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Any) -> SmileConfig:
        """The config. Raises `WrongUse` for an unknown set, or a level that it does not have."""
        rest = dict(settings)
        name = set_name(rest.pop("set", ""))
        if rest.get("level") == "deltas" and "GeMAPS" in name:
            raise WrongUse(f"level=deltas: {name} gives no deltas apart; ask for level=lld")
        return SmileConfig(name, **rest)

    @classmethod
    def dim(cls, config: SmileConfig, checkpoint: Any) -> int:
        """Values of a row: for the functionals of IS13_ComParE, 6373."""
        return int(open_smile(config).num_features)

    @classmethod
    def hop(cls, config: SmileConfig, checkpoint: Any) -> float | None:
        """Seconds between frames: 0.01 in all sets. Functionals have one row an utterance."""
        return None if config.level == "functionals" else 0.01

    @classmethod
    def dimension_names(cls, spec: Spec) -> Sequence[str]:
        """The names that openSMILE gives them."""
        config = SmileConfig(spec.config["feature_set"], spec.config["level"])
        return list(open_smile(config).feature_names)

    def open(self) -> None:
        """Open the library, once for all threads: its calls share no state."""
        self.smile = open_smile(self.config)

    def extract(self, clip: Clip) -> list[np.ndarray]:
        """The rows of a clip, float32 `[1, dim]` or `[frames, dim]`.

        They are those of openSMILE bit for bit.
        """
        config = self.config
        samples = clip.at(config.sampling_rate)
        if samples.max(initial=0.0) > config.clip or samples.min(initial=0.0) < -1.0:
            clip.warnings.append(f"clipped to full scale for {self.label}")
            samples = np.clip(samples, -1.0, config.clip)

        values = self.smile(samples, config.sampling_rate)[0].T
        if np.isnan(values).all():
            raise UtteranceError(f"is too short for {self.label} ({clip.seconds * 1000:.0f} ms)")
        return [values]


def set_name(wanted: str) -> str:
    """The name of a set's configuration file, from that or from the name of openSMILE's member.

    Raises `WrongUse` for an unknown set.
    """
    for name, feature_set in SETS.items():
        if wanted in (name, feature_set.name):
            return name
    raise unknown("set of openSMILE (smile:set=NAME)", wanted, SETS)
