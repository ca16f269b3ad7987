"""A small source-filter synthesiser: glottal pulses and breath through formant resonators (Fant 1960; Klatt 1980).

It makes no words that anyone could understand, only syllables on a text's vowels, in a voice whose pitch, loudness,
pace, jitter and spectral tilt depend on speaker and emotion.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE = 16000
SHORTEST, LONGEST = 0.62, 7.9  # seconds

# Formants in Hz of a male voice (Peterson & Barney 1952, rounded).
VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (300, 2250, 2950),
    "o": (500, 900, 2400),
    "u": (320, 900, 2240),
    "y": (390, 1990, 2550),
}
BANDWIDTHS = (80, 110, 160)  # Hz


@dataclass(frozen=True)
class Speaker:
    """`pitch` in Hz; `tract` scales the formants; `gain` is the distance to the microphone, as it were."""

    pitch: float
    tract: float
    gain: float


@dataclass(frozen=True)
class Manner:
    """How something is said, relative to a neutral voice.

    `pitch`, `pace` and `gain` are factors; `swing` is the deviation of log pitch from syllable to syllable; `jitter`
    that from period to period; `tilt` in [0, 1) darkens the source; `breath` is the noise beside the pulses.
    """

    pitch: float
    swing: float
    gain: float
    pace: float
    jitter: float
    tilt: float
    breath: float

    def towards(self, other: "Manner", share: float) -> "Manner":
        """A manner moved from this one by `share` of the way to another."""
        mine, theirs = np.array(list(vars(self).values())), np.array(list(vars(other).values()))
        return Manner(*(float(v) for v in mine + share * (theirs - mine)))


NEUTRAL = Manner(pitch=1.0, swing=0.07, gain=1.0, pace=1.0, jitter=0.010, tilt=0.80, breath=0.05)
MANNERS = {
    "neu": NEUTRAL,
    "ang": Manner(pitch=1.20, swing=0.15, gain=2.3, pace=1.20, jitter=0.030, tilt=0.45, breath=0.06),
    "hap": Manner(pitch=1.28, swing=0.20, gain=1.25, pace=1.05, jitter=0.008, tilt=0.72, breath=0.07),
    "exc": Manner(pitch=1.45, swing=0.24, gain=1.6, pace=1.20, jitter=0.012, tilt=0.66, breath=0.08),
    "sad": Manner(pitch=0.90, swing=0.03, gain=0.5, pace=0.78, jitter=0.022, tilt=0.90, breath=0.16),
    "fru": Manner(pitch=1.08, swing=0.10, gain=1.4, pace=0.95, jitter=0.022, tilt=0.66, breath=0.07),
    "sur": Manner(pitch=1.50, swing=0.28, gain=1.2, pace=1.00, jitter=0.012, tilt=0.75, breath=0.12),
    "fea": Manner(pitch=1.40, swing=0.10, gain=0.7, pace=1.25, jitter=0.040, tilt=0.82, breath=0.22),
    "dis": Manner(pitch=0.95, swing=0.12, gain=1.1, pace=0.85, jitter=0.035, tilt=0.70, breath=0.10),
    "oth": Manner(pitch=1.05, swing=0.18, gain=0.9, pace=0.90, jitter=0.015, tilt=0.78, breath=0.10),
}


def speak(text: str, speaker: Speaker, manner: Manner, rng: np.random.Generator) -> NDArray[np.int16]:
    """Say `text`: int16 `[samples]` at 16 kHz, 0.6 to 8 s long."""
    vowels = _syllables(text) or ["a", "a"]  # a tag alone is a sigh
    seconds = np.clip(rng.normal(0.17, 0.03, len(vowels)) / manner.pace, 0.08, 0.4)
    pauses = np.where(rng.random(len(vowels)) < 0.08, 0.12, 0.03) / manner.pace
    total = float(np.sum(seconds + pauses))
    scale = float(np.clip(total, SHORTEST - 0.1, LONGEST - 0.1)) / total
    spans = ((seconds + pauses) * scale * RATE).astype(int)
    voiced = (seconds * scale * RATE).astype(int)
    edges = np.concatenate([[0], np.cumsum(spans)])
    length = int(edges[-1])

    pitch = _pitch(edges, speaker, manner, rng)
    loudness = _loudness(edges, voiced, rng)
    source = _source(pitch, manner, rng) * loudness
    sound = _tract(source, edges, vowels, speaker, rng)
    sound += _consonants(edges, spans - voiced, length, rng)
    lead = int(0.05 * RATE)
    sound = np.concatenate([np.zeros(lead), sound, np.zeros(lead)])
    sound *= 0.06 * speaker.gain * manner.gain / (np.sqrt(np.mean(sound**2)) + 1e-9)
    sound += rng.normal(0, 0.0012, len(sound))  # the room
    return np.round(np.clip(sound, -0.98, 0.98) * 32767).astype(np.int16)


def _syllables(text: str) -> list[str]:
    """The vowel of each syllable, roughly: one for each run of vowel letters outside tags."""
    plain = re.sub(r"\[\w+\]", " ", text.lower())
    return [run[0] for run in re.findall(r"[aeiouy]+", plain)]


def _pitch(edges: NDArray[np.int64], speaker: Speaker, manner: Manner, rng: np.random.Generator) -> NDArray[np.float64]:
    """Fundamental frequency in Hz, `[samples]`: accents on a falling line, with jitter."""
    count, length = len(edges) - 1, int(edges[-1])
    accents = rng.normal(0, manner.swing, count) - np.linspace(-0.06, 0.10, count)
    knots = (edges[:-1] + edges[1:]) / 2
    line = np.interp(np.arange(length), knots, accents)
    steps = rng.normal(0, manner.jitter, length // 100 + 2)  # about one value per period
    jitter = np.interp(np.arange(length), np.arange(len(steps)) * 100, steps)
    return speaker.pitch * manner.pitch * np.exp(line + jitter)


def _loudness(edges: NDArray[np.int64], voiced: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The envelope of the voiced part of each syllable, `[samples]`."""
    envelope = np.zeros(int(edges[-1]))
    for begin, span, level in zip(edges[:-1], voiced, rng.uniform(0.7, 1.0, len(voiced)), strict=True):
        envelope[begin : begin + span] = level * np.sin(np.pi * (np.arange(span) + 0.5) / span) ** 0.6
    return envelope


def _source(pitch: NDArray[np.float64], manner: Manner, rng: np.random.Generator) -> NDArray[np.float64]:
    """Rosenberg (1971) pulses with an open quotient of 0.6, their derivative tilted, and breath, `[samples]`."""
    from scipy.signal import lfilter

    phase = np.cumsum(pitch / RATE) % 1.0
    opening = 0.5 * (1 - np.cos(np.pi * phase / 0.4))
    closing = np.cos(np.pi * (phase - 0.4) / 0.4)
    flow = np.where(phase < 0.4, opening, np.where(phase < 0.6, closing, 0.0))
    pulses = np.diff(flow, prepend=0.0)
    pulses = lfilter([1 - manner.tilt], [1, -manner.tilt], pulses)
    pulses /= np.std(pulses) + 1e-9
    return pulses + manner.breath * 3 * rng.normal(0, 1, len(pitch))


def _tract(
    source: NDArray[np.float64], edges: NDArray[np.int64], vowels: list[str], speaker: Speaker, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The source through three resonators that move from vowel to vowel, `[samples]`."""
    from scipy.signal import sosfilt

    state = np.zeros((len(BANDWIDTHS), 2))
    pieces = []
    for begin, end, vowel in zip(edges[:-1], edges[1:], vowels, strict=True):
        formants = np.array(VOWELS[vowel]) * speaker.tract * rng.normal(1, 0.03, 3)
        radius = np.exp(-np.pi * np.array(BANDWIDTHS) / RATE)
        poles = np.stack([np.ones(3), -2 * radius * np.cos(2 * np.pi * formants / RATE), radius**2], axis=1)
        zeros = np.stack([poles.sum(axis=1), np.zeros(3), np.zeros(3)], axis=1)  # unit gain at 0 Hz
        piece, state = sosfilt(np.concatenate([zeros, poles], axis=1), source[begin:end], zi=state)
        pieces.append(piece)
    return np.concatenate(pieces)


def _consonants(
    edges: NDArray[np.int64], gaps: NDArray[np.int64], length: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Hiss in some of the gaps between syllables, `[samples]`."""
    noise = np.zeros(length)
    for end, gap in zip(edges[1:], gaps, strict=True):
        if gap > 2 and rng.random() < 0.6:
            noise[end - gap : end] = 0.15 * np.diff(rng.normal(0, 1, gap + 1)) * np.hanning(gap)
    return noise
