"""Log-mel and MFCC against librosa."""

import librosa
import numpy as np
import pytest

from ser.errors import UtteranceError, WrongUse
from ser.extract.audio import Clip
from ser.extract.check import relative
from ser.extract.mel import MelExtractor
from ser.extract.registry import load_extractors, resolve

CASES = ["mfcc", "logmel", "logmel:sampling_rate=22050", "logmel:bands=128,hop=0.0125,window=0.05,low=20,high=7600"]


def signal(seconds: float, rate: int = 16000) -> np.ndarray:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.1, int(seconds * rate)) * np.linspace(0, 1, int(seconds * rate)) ** 4  # from silence
    return samples.astype(np.float32)


def run(name: str, clip: Clip) -> np.ndarray:
    [wanted] = resolve([name], {}, "float32")
    [one] = load_extractors([wanted], "cpu")
    [outcome] = one.run([clip])
    assert not isinstance(outcome, UtteranceError)
    values = outcome[wanted.spec.fingerprint].values
    assert values.shape[1] == wanted.spec.dim
    return values


@pytest.mark.parametrize(("name", "seconds"), [*((name, 3.21) for name in CASES), ("logmel", 60.0)])
def test_equals_librosa(name: str, seconds: float) -> None:
    """A minute has 6001 frames: they are computed in two stretches."""
    [wanted] = resolve([name], {}, "float32")
    c, clip = wanted.config, Clip(signal(seconds), 16000)
    sizes = {"n_fft": c.window_samples, "hop_length": c.hop_samples, "n_mels": c.bands, "pad_mode": "constant"}
    power = librosa.feature.melspectrogram(
        y=clip.at(c.sampling_rate), sr=c.sampling_rate, fmin=c.low, fmax=c.high or None, **sizes
    )
    plain = np.log(np.maximum(power, c.floor))
    plain = librosa.feature.mfcc(S=plain, n_mfcc=c.coefficients) if c.coefficients else plain
    assert relative(run(name, clip), plain.T) < 1e-6


def test_log_mel_and_mfcc_share_one_spectrogram(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = resolve(["logmel", "mfcc", "mfcc:coefficients=13", "logmel:bands=40"], {}, "float32")
    shared, other = load_extractors(wanted, "cpu")
    assert [len(shared.specs), len(other.specs)] == [3, 1]
    calls, spectrogram = [], MelExtractor.spectrogram
    monkeypatch.setattr(MelExtractor, "spectrogram", lambda self, x: calls.append(len(x)) or spectrogram(self, x))
    clip = Clip(signal(1.0), 16000)
    [outcome] = shared.run([clip])
    assert calls == [16000] and not isinstance(outcome, UtteranceError)
    for spec in shared.specs:
        assert np.array_equal(outcome[spec.fingerprint].values, run(spec.name, clip)), "the same bits as alone"


def test_silence_is_at_the_floor() -> None:
    assert np.allclose(run("logmel", Clip(np.zeros(8000, np.float32), 16000)), np.log(1e-10))
    assert np.allclose(run("logmel:floor=1e-5", Clip(np.zeros(8000, np.float32), 16000)), np.log(1e-5))


def test_shorter_than_a_window() -> None:
    [one] = load_extractors(resolve(["logmel"], {}, "float32"))
    short, least = one.run([Clip(signal(0.02499), 16000), Clip(signal(0.025), 16000)])
    assert isinstance(short, UtteranceError) and "too short" in str(short)
    assert not isinstance(least, UtteranceError)


def test_hop_is_in_the_spec() -> None:
    [usual, usc] = resolve(["logmel", "logmel:sampling_rate=22050"], {}, "float32")
    assert usual.spec.hop == 0.01 and usc.spec.hop == 220 / 22050
    assert usual.spec.fingerprint != usc.spec.fingerprint


@pytest.mark.parametrize("name", ["logmel:floor=0", "logmel:bands=0", "logmel:high=9000", "mfcc:coefficients=81"])
def test_settings_that_cannot_be(name: str) -> None:
    with pytest.raises(WrongUse):
        resolve([name], {}, "float32")
