"""A small source-filter synthesiser: glottal pulses and breath through formant resonators (Fant
1960; Klatt 1980).

It makes no words that anyone could understand, only syllables on a text's vowels, in a voice whose
pitch, loudness, pace, jitter and spectral tilt depend on speaker and emotion.
"""

import re
from collections.abc import Mapping

import numpy as np
from scipy.signal import lfilter, sosfilt

RATE = 16000
SHORTEST, LONGEST = 0.62, 7.9  # seconds
Random = np.random.Generator
Voice = Mapping[str, float]

# Formants in Hz of a male voice (Peterson & Barney 1952, rounded).
VOWELS = {"a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (300, 2250, 2950)}
VOWELS |= {"o": (500, 900, 2400), "u": (320, 900, 2240), "y": (390, 1990, 2550)}
BANDWIDTHS = np.array([80, 110, 160])  # Hz


def speak(text: str, voice: Voice, rng: Random) -> np.ndarray:
    """Say `text`: int16 `[samples]` at 16 kHz, 0.6 to 8 s long.

    Of the voice, `pitch` is in Hz, `swing` its logarithm's deviation from syllable to syllable and
    `jitter` that from period to period; `tract` scales the formants, `pace` is a factor; `gain` is
    the root mean square; `tilt` in [0, 1) darkens the source; `breath` is the noise beside the
    pulses.
    """
    # The vowel of each syllable, roughly: one for each run of vowel letters outside tags. A tag
    # alone is a sigh.
    vowels = [
        run[0] for run in re.findall(r"[aeiouy]+", re.sub(r"\[\w+\]", " ", text.lower()))
    ] or ["a", "a"]
    seconds = np.clip(rng.normal(0.17, 0.03, len(vowels)) / voice["pace"], 0.08, 0.4)
    pauses = np.where(rng.random(len(vowels)) < 0.08, 0.12, 0.03) / voice["pace"]
    total = float(np.sum(seconds + pauses))
    scale = float(np.clip(total, SHORTEST - 0.1, LONGEST - 0.1)) / total
    voiced = (seconds * scale * RATE).astype(int)
    spans = ((seconds + pauses) * scale * RATE).astype(int)
    edges = np.concatenate([[0], np.cumsum(spans)])  # of syllables, in samples

    sound = _tract(_source(edges, voiced, voice, rng), edges, vowels, voice["tract"], rng)
    for end, gap in zip(edges[1:], spans - voiced, strict=True):
        if gap > 2 and rng.random() < 0.6:  # a consonant: hiss between syllables
            sound[end - gap : end] += 0.15 * np.diff(rng.normal(0, 1, gap + 1)) * np.hanning(gap)
    sound = np.pad(sound, int(0.05 * RATE))
    sound *= voice["gain"] / (np.sqrt(np.mean(sound**2)) + 1e-9)
    sound += rng.normal(0, 0.0012, len(sound))  # the room
    return np.round(np.clip(sound, -0.98, 0.98) * 32767).astype(np.int16)


def _source(edges: np.ndarray, voiced: np.ndarray, voice: Voice, rng: Random) -> np.ndarray:
    """Rosenberg (1971) pulses with an open quotient of 0.6, their derivative tilted, and breath."""
    count, time = len(edges) - 1, np.arange(edges[-1])
    # Fundamental frequency in Hz: accents on a falling line, with jitter.
    accents = rng.normal(0, voice["swing"], count) - np.linspace(-0.06, 0.10, count)
    steps = rng.normal(0, voice["jitter"], len(time) // 100 + 2)  # about one value per period
    line = np.interp(time, (edges[:-1] + edges[1:]) / 2, accents)
    frequency = voice["pitch"] * np.exp(line + np.interp(time, np.arange(len(steps)) * 100, steps))
    loudness = np.zeros(len(time))
    for begin, span, level in zip(edges[:-1], voiced, rng.uniform(0.7, 1.0, count), strict=True):
        loudness[begin : begin + span] = (
            level * np.sin(np.pi * (np.arange(span) + 0.5) / span) ** 0.6
        )

    phase = np.cumsum(frequency / RATE) % 1.0
    opening = 0.5 * (1 - np.cos(np.pi * phase / 0.4))
    closing = np.cos(np.pi * (phase - 0.4) / 0.4)
    flow = np.where(phase < 0.4, opening, np.where(phase < 0.6, closing, 0.0))
    pulses = lfilter([1 - voice["tilt"]], [1, -voice["tilt"]], np.diff(flow, prepend=0.0))
    pulses /= np.std(pulses) + 1e-9
    return (pulses + voice["breath"] * 3 * rng.normal(0, 1, len(time))) * loudness


def _tract(
    source: np.ndarray, edges: np.ndarray, vowels: list[str], scale: float, rng: Random
) -> np.ndarray:
    """The source through three resonators that move from vowel to vowel; `scale` is that of the
    formants.
    """
    radius = np.exp(-np.pi * BANDWIDTHS / RATE)
    state = np.zeros((len(BANDWIDTHS), 2))
    pieces = []
    for begin, end, vowel in zip(edges[:-1], edges[1:], vowels, strict=True):
        formants = np.array(VOWELS[vowel]) * scale * rng.normal(1, 0.03, 3)
        poles = np.stack(
            [np.ones(3), -2 * radius * np.cos(2 * np.pi * formants / RATE), radius**2], axis=1
        )
        zeros = np.stack([poles.sum(axis=1), np.zeros(3), np.zeros(3)], axis=1)  # unit gain at 0 Hz
        piece, state = sosfilt(np.concatenate([zeros, poles], axis=1), source[begin:end], zi=state)
        pieces.append(piece)
    return np.concatenate(pieces)
