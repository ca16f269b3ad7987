"""How the speakers of the demo corpus sound: each session and gender has a voice of its own."""

from dataclasses import dataclass

import numpy as np

from .dialogues import Line
from .draws import generator_named
from .synthesiser import Voice, speak

# Root mean square of a neutral voice.
LOUDNESS = 0.06


@dataclass(frozen=True)
class Manner:
    """What an emotion makes of a voice: factors of pitch, gain and pace; the rest as it is."""

    pitch: float
    swing: float
    gain: float
    pace: float
    jitter: float
    tilt: float
    breath: float

    def towards(self, other: "Manner", share: float) -> "Manner":
        """The manner at this share of the way to another one."""
        mixed = {}
        for name, start in vars(self).items():
            mixed[name] = start + share * (getattr(other, name) - start)
        return Manner(**mixed)


MANNERS = {
    #             pitch swing gain  pace  jitter tilt  breath
    "neu": Manner(1.00, 0.07, 1.00, 1.00, 0.010, 0.80, 0.05),
    "ang": Manner(1.20, 0.15, 2.30, 1.20, 0.030, 0.45, 0.06),
    "hap": Manner(1.28, 0.20, 1.25, 1.05, 0.008, 0.72, 0.07),
    "exc": Manner(1.45, 0.24, 1.60, 1.20, 0.012, 0.66, 0.08),
    "sad": Manner(0.90, 0.03, 0.50, 0.78, 0.022, 0.90, 0.16),
    "fru": Manner(1.08, 0.10, 1.40, 0.95, 0.022, 0.66, 0.07),
    "sur": Manner(1.50, 0.28, 1.20, 1.00, 0.012, 0.75, 0.12),
    "fea": Manner(1.40, 0.10, 0.70, 1.25, 0.040, 0.82, 0.22),
    "dis": Manner(0.95, 0.12, 1.10, 0.85, 0.035, 0.70, 0.10),
    "oth": Manner(1.05, 0.18, 0.90, 0.90, 0.015, 0.78, 0.10),
}


@dataclass(frozen=True)
class Bounds:
    """The bounds between which the voices of a gender lie."""

    pitch: tuple[float, float]
    """In Hz."""
    tract: tuple[float, float]
    """Scale of the formants."""
    gain: tuple[float, float]
    """Factor."""


BOUNDS = {
    "F": Bounds(pitch=(185, 225), tract=(1.10, 1.20), gain=(0.8, 1.2)),
    "M": Bounds(pitch=(100, 130), tract=(0.94, 1.04), gain=(0.8, 1.2)),
}


def speak_line(line: Line) -> np.ndarray:
    """The line in the voice of its speaker: int16 `[samples]` at 16 kHz."""
    return speak(line.text, _voice(line), generator_named(line.id))


def _voice(line: Line) -> Voice:
    gender = line.id.rpartition("_")[2][0]
    bounds = BOUNDS[gender]
    # Of the speaker.
    rng = generator_named(f"{line.id[:5]}{gender}")
    pitch = float(rng.uniform(*bounds.pitch))
    tract = float(rng.uniform(*bounds.tract))
    gain = float(rng.uniform(*bounds.gain))

    manner = MANNERS["neu"].towards(MANNERS[line.voice], line.intensity)
    return Voice(
        pitch=pitch * manner.pitch,
        tract=tract,
        gain=LOUDNESS * gain * manner.gain,
        swing=manner.swing,
        pace=manner.pace,
        jitter=manner.jitter,
        tilt=manner.tilt,
        breath=manner.breath,
    )
