"""Views: augmented copies of an utterance, each stored as a feature of its own.

`logmel:view=pitch-1` is one. USC (§4) adds noise, pitch, stretch and shift and gives no strengths;
those below are ours. The generator of each copy is seeded with the samples and the view's name: the
same utterance always gives the same copy, and `pitch-1` and `pitch-2` differ.
"""

import hashlib
import re

import librosa
import numpy as np

from ser.errors import WrongUse, unknown

VIEWS = ("noise", "pitch", "stretch", "shift")
# dB, signal over white noise.
SNR = (10.0, 30.0)
# The largest pitch shift, up or down.
SEMITONES = 2.0
# Tempo; uniform in its logarithm.
TEMPI = (0.8, 1.25)
# The largest shift in time to either side, as a share of the length; zeros come in.
SHIFT = 0.1


def check_view(view: str) -> None:
    """Raises `WrongUse` unless a view is written KIND-NUMBER, such as pitch-1."""
    kind, _, number = view.partition("-")
    if kind not in VIEWS:
        raise unknown("view", kind, VIEWS)
    if not re.fullmatch(r"[1-9][0-9]{0,3}", number):
        raise WrongUse(f"view={view}: write {kind}-1, {kind}-2 …: each number is another copy")


def augment(samples: np.ndarray, rate: int, view: str) -> np.ndarray:
    """The `view` of `samples` `[n]`, float32 `[n]`; where it is faster or slower, `[n / tempo]`."""
    seed = hashlib.sha256(view.encode() + samples.tobytes()).digest()
    rng = np.random.default_rng(list(seed))

    match view.partition("-")[0]:
        case "noise":
            changed = add_noise(samples, rng)
        case "pitch":
            steps = rng.uniform(-SEMITONES, SEMITONES)
            changed = librosa.effects.pitch_shift(samples, sr=rate, n_steps=steps)
        case "stretch":
            # At the same pitch.
            tempo = float(np.exp(rng.uniform(*np.log(TEMPI))))
            changed = librosa.effects.time_stretch(samples, rate=tempo)
        case _:
            changed = shift_in_time(samples, rng)
    return np.ascontiguousarray(changed, dtype=np.float32)


def add_noise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`samples` with white noise, at an SNR that is uniform in `SNR`."""
    rms = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    level = rms * 10 ** (-rng.uniform(*SNR) / 20)
    noisy: np.ndarray = samples + level * rng.standard_normal(len(samples))
    return noisy


def shift_in_time(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`samples` moved by at most `SHIFT` of their length, zeros coming in."""
    shift = round(rng.uniform(-SHIFT, SHIFT) * len(samples))
    padded = np.pad(samples, abs(shift))
    return padded[abs(shift) - shift :][: len(samples)]
