"""A small source-filter synthesiser: pulses and breath through formant resonators.

Fant 1960; Klatt 1980. It makes no words that anyone could understand, only syllables on a text's
vowels, in a voice whose pitch, loudness, pace, jitter and spectral tilt depend on speaker and
emotion.
"""

import re
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter, sosfilt

from .draws import Random

# Hz.
DEMO_RATE = 16000
# Seconds.
MIN_SECONDS = 0.62
# Seconds.
MAX_SECONDS = 7.9

# Formants in Hz of a male voice (Peterson & Barney 1952, rounded).
VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (300, 2250, 2950),
    "o": (500, 900, 2400),
    "u": (320, 900, 2240),
    "y": (390, 1990, 2550),
}
# Hz, of the formants.
BANDWIDTHS = np.array([80, 110, 160])


@dataclass(frozen=True)
class Voice:
    """A voice as it says one text."""

    pitch: float
    """Fundamental frequency in Hz."""
    swing: float
    """Deviation of the pitch's logarithm from syllable to syllable."""
    jitter: float
    """Deviation of the pitch's logarithm from period to period."""
    tract: float
    """Scale of the formants."""
    pace: float
    """Factor: above 1 is faster."""
    gain: float
    """Root mean square of the sound."""
    tilt: float
    """In [0, 1): darkens the source."""
    breath: float
    """Noise beside the pulses."""


def speak(text: str, voice: Voice, rng: Random) -> np.ndarray:
    """Say `text`: int16 `[samples]` at 16 kHz, 0.6 to 8 s long."""
    vowels = _vowels(text)
    seconds = np.clip(rng.normal(0.17, 0.03, len(vowels)) / voice.pace, 0.08, 0.4)
    pauses = np.where(rng.random(len(vowels)) < 0.08, 0.12, 0.03) / voice.pace
    total = float(np.sum(seconds + pauses))
    scale = float(np.clip(total, MIN_SECONDS - 0.1, MAX_SECONDS - 0.1)) / total

    voiced = (seconds * scale * DEMO_RATE).astype(int)
    spans = ((seconds + pauses) * scale * DEMO_RATE).astype(int)
    # Of syllables, in samples.
    edges = np.concatenate([[0], np.cumsum(spans)])

    source = _source(edges, voiced, voice, rng)
    sound = _tract(source, edges, vowels, voice.tract, rng)
    _add_consonants(sound, edges, spans - voiced, rng)

    sound = np.pad(sound, int(0.05 * DEMO_RATE))
    sound *= voice.gain / (np.sqrt(np.mean(sound**2)) + 1e-9)
    # The room.
    sound += rng.normal(0, 0.0012, len(sound))
    return np.round(np.clip(sound, -0.98, 0.98) * 32767).astype(np.int16)


def _vowels(text: str) -> list[str]:
    """The vowel of each syllable, roughly: one for each run of vowel letters outside tags.

    A tag alone is a sigh.
    """
    runs = re.findall(r"[aeiouy]+", re.sub(r"\[\w+\]", " ", text.lower()))
    return [run[0] for run in runs] or ["a", "a"]


def _source(edges: np.ndarray, voiced: np.ndarray, voice: Voice, rng: Random) -> np.ndarray:
    """Pulses, their derivative tilted, and breath: float64 `[samples]`.

    The pulses are Rosenberg's (1971), with an open quotient of 0.6.
    """
    count = len(edges) - 1
    time = np.arange(edges[-1])

    # Fundamental frequency in Hz: accents on a falling line, with jitter.
    accents = rng.normal(0, voice.swing, count) - np.linspace(-0.06, 0.10, count)
    # About one value per period.
    steps = rng.normal(0, voice.jitter, len(time) // 100 + 2)
    line = np.interp(time, (edges[:-1] + edges[1:]) / 2, accents)
    frequency = voice.pitch * np.exp(line + np.interp(time, np.arange(len(steps)) * 100, steps))

    loudness = np.zeros(len(time))
    levels = rng.uniform(0.7, 1.0, count)
    for begin, span, level in zip(edges[:-1], voiced, levels, strict=True):
        arch = np.sin(np.pi * (np.arange(span) + 0.5) / span) ** 0.6
        loudness[begin : begin + span] = level * arch

    phase = np.cumsum(frequency / DEMO_RATE) % 1.0
    opening = 0.5 * (1 - np.cos(np.pi * phase / 0.4))
    closing = np.cos(np.pi * (phase - 0.4) / 0.4)
    flow = np.where(phase < 0.4, opening, np.where(phase < 0.6, closing, 0.0))

    pulses = lfilter([1 - voice.tilt], [1, -voice.tilt], np.diff(flow, prepend=0.0))
    pulses /= np.std(pulses) + 1e-9
    return (pulses + voice.breath * 3 * rng.normal(0, 1, len(time))) * loudness


def _tract(
    source: np.ndarray, edges: np.ndarray, vowels: list[str], scale: float, rng: Random
) -> np.ndarray:
    """The source through three resonators that move from vowel to vowel.

    `scale` is that of the formants.
    """
    radius = np.exp(-np.pi * BANDWIDTHS / DEMO_RATE)
    state = np.zeros((len(BANDWIDTHS), 2))
    pieces = []
    for begin, end, vowel in zip(edges[:-1], edges[1:], vowels, strict=True):
        formants = np.array(VOWELS[vowel]) * scale * rng.normal(1, 0.03, 3)
        middle = -2 * radius * np.cos(2 * np.pi * formants / DEMO_RATE)
        poles = np.stack([np.ones(3), middle, radius**2], axis=1)
        # Unit gain at 0 Hz.
        zeros = np.stack([poles.sum(axis=1), np.zeros(3), np.zeros(3)], axis=1)

        sections = np.concatenate([zeros, poles], axis=1)
        piece, state = sosfilt(sections, source[begin:end], zi=state)
        pieces.append(piece)
    return np.concatenate(pieces)


def _add_consonants(sound: np.ndarray, edges: np.ndarray, gaps: np.ndarray, rng: Random) -> None:
    """Add hiss in some of the gaps between syllables, in place."""
    for end, gap in zip(edges[1:], gaps, strict=True):
        if gap > 2 and rng.random() < 0.6:
            hiss = np.diff(rng.normal(0, 1, gap + 1))
            sound[end - gap : end] += 0.15 * hiss * np.hanning(gap)
