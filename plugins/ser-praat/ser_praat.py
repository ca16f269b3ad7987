"""Praat's measures of the voice as a feature of ser: one row for each utterance.

They are Praat's own, by parselmouth; README.md says by which of its commands.
"""

import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import parselmouth
from parselmouth.praat import call

from ser.cache.spec import Spec
from ser.errors import UtteranceError, WrongUse
from ser.extract.audio import Clip
from ser.extract.extractor import Extractor
from ser.extract.registry import FeatureKind

FORMANTS = (1, 2, 3)

# Praat's defaults of voice reports: shortest and longest period in seconds, and the largest factors
# between neighbouring periods and amplitudes.
PERIODS = (0.0001, 0.02, 1.3)
LARGEST_AMPLITUDE_FACTOR = 1.6

# A syllable is louder by so many dB than what lies beside it.
DIP = 2.0

# Praat keeps what it is doing in global variables.
PRAAT_AT_WORK = threading.Lock()

NAMES = (
    "F0_mean",
    "F0_median",
    "F0_sd",
    "F0_min",
    "F0_max",
    "F0_sd_semitones",
    "jitter_local",
    "jitter_rap",
    "jitter_ppq5",
    "shimmer_local",
    "shimmer_local_dB",
    "shimmer_apq3",
    "shimmer_apq5",
    "HNR_mean",
    "HNR_sd",
    *(f"F{number}_{what}" for number in FORMANTS for what in ("mean", "sd", "bandwidth")),
    "intensity_mean",
    "intensity_sd",
    "intensity_max",
    "rate_syllables",
    "rate_voiced",
)


@dataclass(frozen=True)
class PraatConfig:
    """Where Praat looks for pitch and formants, in Hz."""

    floor: float = 75.0
    ceiling: float = 500.0
    formant_ceiling: float = 5500.0


class Praat(Extractor):
    """One vector `[len(NAMES)]` for each utterance, at the file's own rate."""

    name = "praat"
    version = 1
    Config = PraatConfig
    packages = ("praat-parselmouth",)
    always_float32 = True

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Any) -> PraatConfig:
        """The config. Raises `WrongUse` for bounds that Praat cannot search between."""
        config = PraatConfig(**settings)
        if not 0 < config.floor < config.ceiling:
            raise WrongUse(
                f"praat:floor={config.floor:g},ceiling={config.ceiling:g}: pitch is searched from "
                "the floor up to the ceiling, both above 0 Hz"
            )
        if config.formant_ceiling <= 0:
            raise WrongUse(
                f"praat:formant_ceiling={config.formant_ceiling:g}: has to be above 0 Hz"
            )
        return config

    @classmethod
    def dim(cls, config: PraatConfig, checkpoint: Any) -> int:
        """How many measures there are."""
        return len(NAMES)

    @classmethod
    def dimension_names(cls, spec: Spec) -> tuple[str, ...]:
        """Their names."""
        return NAMES

    def extract(self, item: Clip) -> list[np.ndarray]:
        """The measures, `[1, len(NAMES)]`. Raises `UtteranceError` for one that is undefined."""
        with PRAAT_AT_WORK:
            try:
                measures = measure(item.samples, item.rate, self.config)
            except parselmouth.PraatError as fault:
                reason = str(fault).strip().splitlines()[0].rstrip(".")
                raise UtteranceError(f"Praat cannot measure it: {reason}") from fault

        undefined = [name for name in NAMES if not math.isfinite(measures[name])]
        if undefined:
            raise UtteranceError(
                f"Praat gives no {undefined[0]} of it, nor {len(undefined) - 1} other measures: "
                "too little of it is voiced"
            )
        return [np.array([[measures[name] for name in NAMES]])]


def measure(samples: np.ndarray, rate: int, config: PraatConfig) -> dict[str, float]:
    """All measures by name, NaN where Praat calls one undefined, of samples `[n]`."""
    sound = parselmouth.Sound(samples.astype(np.float64), rate)
    pitch = call(sound, "To Pitch", 0.0, config.floor, config.ceiling)
    measures = of_pitch(pitch)
    measures |= of_periods(sound, pitch)
    measures |= of_harmonicity(sound, config)
    measures |= of_formants(sound, pitch, config)

    intensity = call(sound, "To Intensity", config.floor, 0.0, "yes")
    measures["intensity_mean"] = call(intensity, "Get mean", 0.0, 0.0, "energy")
    measures["intensity_sd"] = call(intensity, "Get standard deviation", 0.0, 0.0)
    measures["intensity_max"] = call(intensity, "Get maximum", 0.0, 0.0, "parabolic")
    measures["rate_syllables"] = syllables(intensity, pitch) / sound.duration
    return measures


def of_pitch(pitch: parselmouth.Pitch) -> dict[str, float]:
    """F0 in Hz, its deviation in semitones too, and the share of frames that are voiced."""
    return {
        "F0_mean": call(pitch, "Get mean", 0.0, 0.0, "Hertz"),
        "F0_median": call(pitch, "Get quantile", 0.0, 0.0, 0.5, "Hertz"),
        "F0_sd": call(pitch, "Get standard deviation", 0.0, 0.0, "Hertz"),
        "F0_min": call(pitch, "Get minimum", 0.0, 0.0, "Hertz", "parabolic"),
        "F0_max": call(pitch, "Get maximum", 0.0, 0.0, "Hertz", "parabolic"),
        "F0_sd_semitones": call(pitch, "Get standard deviation", 0.0, 0.0, "semitones"),
        "rate_voiced": call(pitch, "Count voiced frames") / call(pitch, "Get number of frames"),
    }


def of_periods(sound: parselmouth.Sound, pitch: parselmouth.Pitch) -> dict[str, float]:
    """How much neighbouring periods differ in length (jitter) and amplitude (shimmer)."""
    points = call([sound, pitch], "To PointProcess (cc)")
    measures = {}
    for kind in ("local", "rap", "ppq5"):
        measures[f"jitter_{kind}"] = call(points, f"Get jitter ({kind})", 0.0, 0.0, *PERIODS)

    for kind in ("local", "local_dB", "apq3", "apq5"):
        measures[f"shimmer_{kind}"] = call(
            [sound, points],
            f"Get shimmer ({kind})",
            *(0.0, 0.0),
            *PERIODS,
            LARGEST_AMPLITUDE_FACTOR,
        )
    return measures


def of_harmonicity(sound: parselmouth.Sound, config: PraatConfig) -> dict[str, float]:
    """The harmonics-to-noise ratio in dB, over the frames that have one."""
    harmonicity = call(sound, "To Harmonicity (cc)", 0.01, config.floor, 0.1, 1.0)
    return {
        "HNR_mean": call(harmonicity, "Get mean", 0.0, 0.0),
        "HNR_sd": call(harmonicity, "Get standard deviation", 0.0, 0.0),
    }


def of_formants(
    sound: parselmouth.Sound, pitch: parselmouth.Pitch, config: PraatConfig
) -> dict[str, float]:
    """Formants and their bandwidths in Hz, at the voiced frames of the pitch."""
    formant = call(sound, "To Formant (burg)", 0.0, 5, config.formant_ceiling, 0.025, 50.0)
    frequencies = pitch.selected_array["frequency"]
    times = pitch.xs()[frequencies > 0]

    measures = {}
    for number in FORMANTS:
        values = np.array([formant.get_value_at_time(number, time) for time in times])
        bandwidths = np.array([formant.get_bandwidth_at_time(number, time) for time in times])
        known = values[np.isfinite(values)]
        measures[f"F{number}_mean"] = float(known.mean()) if len(known) else math.nan
        measures[f"F{number}_sd"] = float(known.std(ddof=1)) if len(known) > 1 else math.nan
        widths = bandwidths[np.isfinite(bandwidths)]
        measures[f"F{number}_bandwidth"] = float(widths.mean()) if len(widths) else math.nan
    return measures


def syllables(intensity: parselmouth.Intensity, pitch: parselmouth.Pitch) -> int:
    """Peaks of the intensity in voiced frames, each `DIP` dB above the dips on both sides.

    They are louder than the median, too.
    """
    values = intensity.values[0]
    times = intensity.xs()
    loud = float(np.median(values))

    count = 0
    lowest = values[0]
    # The loudest frame since the last dip.
    peak = None
    for frame, value in enumerate(values):
        if peak is None:
            lowest = min(lowest, value)
            if value >= lowest + DIP:
                peak = frame
        elif value > values[peak]:
            peak = frame
        elif value <= values[peak] - DIP:
            is_voiced = math.isfinite(pitch.get_value_at_time(times[peak]))
            count += bool(is_voiced and values[peak] >= loud)
            peak = None
            lowest = value
    return count


PRAAT = FeatureKind(
    "audio", "utterance", "Praat's pitch, jitter, shimmer, HNR, formants, intensity, rate", Praat
)
