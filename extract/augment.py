"""Augmented copies of an utterance, stored as features of their own: `logmel:view=pitch-1`.

USC (§4) adds noise, pitch, stretch and shift and gives no strengths; those below are ours. A view is drawn anew for
each utterance, by a generator seeded with its samples and the view's name: the same utterance always gives the same
copy, and `pitch-1`, `pitch-2` are two.
"""

import hashlib
import re

import librosa
import numpy as np

from ser.errors import WrongUse, unknown

SNR = (10.0, 30.0)  # dB, signal over white noise
SEMITONES = 2.0  # pitch, up or down, at most
RATES = (0.8, 1.25)  # tempo; drawn evenly in its logarithm
SHIFT = 0.1  # of the length, to either side at most; zeros come in


def noise(samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """White noise at an SNR from `SNR`."""
    level = np.sqrt(np.mean(np.square(samples, dtype=np.float64))) * 10 ** (-rng.uniform(*SNR) / 20)
    return samples + level * rng.standard_normal(len(samples))


def pitch(samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Shifted by up to `SEMITONES`; the length stays."""
    return np.asarray(librosa.effects.pitch_shift(samples, sr=rate, n_steps=rng.uniform(-SEMITONES, SEMITONES)))


def stretch(samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Faster or slower at the same pitch: `n / tempo` samples."""
    tempo = float(np.exp(rng.uniform(np.log(RATES[0]), np.log(RATES[1]))))
    return np.asarray(librosa.effects.time_stretch(samples, rate=tempo))


def shift(samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Moved in time by up to `SHIFT` of the length."""
    by = round(rng.uniform(-SHIFT, SHIFT) * len(samples))
    moved = np.zeros_like(samples)
    moved[max(by, 0) : len(samples) + min(by, 0)] = samples[max(-by, 0) : len(samples) - max(by, 0)]
    return moved


VIEWS = {view.__name__: view for view in (noise, pitch, stretch, shift)}


def check_view(view: str) -> None:
    """Raises `WrongUse` for a view that is not written KIND-NUMBER, such as pitch-1."""
    kind, _, number = view.partition("-")
    if kind not in VIEWS:
        raise unknown("view", kind, VIEWS)
    if not re.fullmatch(r"[1-9][0-9]{0,3}", number):
        raise WrongUse(f"view={view}: write {kind}-1, {kind}-2 …: each number is another copy")


def change(samples: np.ndarray, rate: int, view: str) -> np.ndarray:
    """The `view` of `samples` `[n]`, float32."""
    seed = hashlib.sha256(view.encode() + samples.tobytes()).digest()
    changed = VIEWS[view.partition("-")[0]](samples, rate, np.random.default_rng(list(seed)))
    return np.ascontiguousarray(changed, dtype=np.float32)
