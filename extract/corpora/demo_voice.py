"""A small source-filter synthesiser: glottal pulses and breath through formant resonators (Fant 1960; Klatt 1980).

It makes no words that anyone could understand, only syllables on a text's vowels, in a voice whose pitch, loudness,
pace, jitter and spectral tilt depend on speaker and emotion.
"""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter, sosfilt

RATE = 16000
SHORTEST, LONGEST = 0.62, 7.9  # seconds
Random = np.random.Generator
Signal = NDArray[np.float64]  # [samples]

# Formants in Hz of a male voice (Peterson & Barney 1952, rounded).
VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (300, 2250, 2950),
    "o": (500, 900, 2400),
    "u": (320, 900, 2240),
    "y": (390, 1990, 2550),
}
BANDWIDTHS = np.array([80, 110, 160])  # Hz


class Speaker(NamedTuple):
    """`pitch` in Hz; `tract` scales the formants; `gain` is the distance to the microphone, as it were."""

    pitch: float
    tract: float
    gain: float


class Manner(NamedTuple):
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


MANNERS = {  # pitch swing gain pace jitter tilt breath
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


def speak(text: str, speaker: Speaker, full: Manner, intensity: float, rng: Random) -> NDArray[np.int16]:
    """Say `text`: int16 `[samples]` at 16 kHz, 0.6 to 8 s long, in a voice `intensity` of the way from neutral to full."""
    manner = Manner(*(n + intensity * (f - n) for n, f in zip(MANNERS["neu"], full, strict=True)))
    # The vowel of each syllable, roughly: one for each run of vowel letters outside tags. A tag alone is a sigh.
    vowels = [run[0] for run in re.findall(r"[aeiouy]+", re.sub(r"\[\w+\]", " ", text.lower()))] or ["a", "a"]
    seconds = np.clip(rng.normal(0.17, 0.03, len(vowels)) / manner.pace, 0.08, 0.4)
    pauses = np.where(rng.random(len(vowels)) < 0.08, 0.12, 0.03) / manner.pace
    total = float(np.sum(seconds + pauses))
    scale = float(np.clip(total, SHORTEST - 0.1, LONGEST - 0.1)) / total
    spans = ((seconds + pauses) * scale * RATE).astype(int)
    voiced = (seconds * scale * RATE).astype(int)
    edges = np.concatenate([[0], np.cumsum(spans)])

    pitch = _pitch(edges, speaker, manner, rng)
    loudness = _loudness(edges, voiced, rng)
    sound = _tract(_source(pitch, manner, rng) * loudness, edges, vowels, speaker, rng)
    sound += _consonants(edges, spans - voiced, rng)
    sound = np.pad(sound, int(0.05 * RATE))
    sound *= 0.06 * speaker.gain * manner.gain / (np.sqrt(np.mean(sound**2)) + 1e-9)
    sound += rng.normal(0, 0.0012, len(sound))  # the room
    return np.round(np.clip(sound, -0.98, 0.98) * 32767).astype(np.int16)


def _pitch(edges: NDArray[np.int64], speaker: Speaker, manner: Manner, rng: Random) -> Signal:
    """Fundamental frequency in Hz: accents on a falling line, with jitter."""
    count, length = len(edges) - 1, int(edges[-1])
    accents = rng.normal(0, manner.swing, count) - np.linspace(-0.06, 0.10, count)
    knots = (edges[:-1] + edges[1:]) / 2
    line = np.interp(np.arange(length), knots, accents)
    steps = rng.normal(0, manner.jitter, length // 100 + 2)  # about one value per period
    jitter = np.interp(np.arange(length), np.arange(len(steps)) * 100, steps)
    return speaker.pitch * manner.pitch * np.exp(line + jitter)


def _loudness(edges: NDArray[np.int64], voiced: NDArray[np.int64], rng: Random) -> Signal:
    """The envelope of the voiced part of each syllable."""
    envelope = np.zeros(int(edges[-1]))
    for begin, span, level in zip(edges[:-1], voiced, rng.uniform(0.7, 1.0, len(voiced)), strict=True):
        envelope[begin : begin + span] = level * np.sin(np.pi * (np.arange(span) + 0.5) / span) ** 0.6
    return envelope


def _source(pitch: Signal, manner: Manner, rng: Random) -> Signal:
    """Rosenberg (1971) pulses with an open quotient of 0.6, their derivative tilted, and breath."""
    phase = np.cumsum(pitch / RATE) % 1.0
    opening = 0.5 * (1 - np.cos(np.pi * phase / 0.4))
    closing = np.cos(np.pi * (phase - 0.4) / 0.4)
    flow = np.where(phase < 0.4, opening, np.where(phase < 0.6, closing, 0.0))
    pulses = np.diff(flow, prepend=0.0)
    pulses = lfilter([1 - manner.tilt], [1, -manner.tilt], pulses)
    pulses /= np.std(pulses) + 1e-9
    return pulses + manner.breath * 3 * rng.normal(0, 1, len(pitch))


def _tract(source: Signal, edges: NDArray[np.int64], vowels: list[str], speaker: Speaker, rng: Random) -> Signal:
    """The source through three resonators that move from vowel to vowel."""
    radius = np.exp(-np.pi * BANDWIDTHS / RATE)
    state = np.zeros((len(BANDWIDTHS), 2))
    pieces = []
    for begin, end, vowel in zip(edges[:-1], edges[1:], vowels, strict=True):
        formants = np.array(VOWELS[vowel]) * speaker.tract * rng.normal(1, 0.03, 3)
        poles = np.stack([np.ones(3), -2 * radius * np.cos(2 * np.pi * formants / RATE), radius**2], axis=1)
        zeros = np.stack([poles.sum(axis=1), np.zeros(3), np.zeros(3)], axis=1)  # unit gain at 0 Hz
        piece, state = sosfilt(np.concatenate([zeros, poles], axis=1), source[begin:end], zi=state)
        pieces.append(piece)
    return np.concatenate(pieces)


def _consonants(edges: NDArray[np.int64], gaps: NDArray[np.int64], rng: Random) -> Signal:
    """Hiss in some of the gaps between syllables."""
    noise = np.zeros(int(edges[-1]))
    for end, gap in zip(edges[1:], gaps, strict=True):
        if gap > 2 and rng.random() < 0.6:
            noise[end - gap : end] = 0.15 * np.diff(rng.normal(0, 1, gap + 1)) * np.hanning(gap)
    return noise
