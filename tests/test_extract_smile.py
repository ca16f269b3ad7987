"""IS13 rows against openSMILE called directly."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import opensmile
import pytest

from ser.errors import UtteranceError
from ser.extract.audio import Clip, decode
from ser.extract.registry import load_extractors, resolve
from ser.tests.shared_data import emodb


def direct(samples: np.ndarray) -> np.ndarray:
    smile = opensmile.Smile(opensmile.FeatureSet.IS13, opensmile.FeatureLevel.Functionals)
    return smile.process_signal(samples, 16000).to_numpy()


def run(clip: Clip) -> np.ndarray | UtteranceError:
    [wanted] = resolve(["is13"], {}, "float16")
    [one] = load_extractors([wanted], "cpu")
    [outcome] = one.run([clip])
    return outcome if isinstance(outcome, UtteranceError) else outcome[wanted.spec.fingerprint].values


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, int(seconds * 16000)).astype(np.float32)


def test_bit_for_bit_on_real_speech_and_in_threads() -> None:
    clips = [decode(path) for path in emodb()[:6]]
    with ThreadPoolExecutor(4) as pool:
        for clip, ours in zip(clips, pool.map(run, clips), strict=True):
            assert isinstance(ours, np.ndarray) and ours.dtype == np.float32
            assert np.array_equal(ours, direct(clip.samples))


def test_is13_is_not_compare_2016() -> None:
    [wanted] = resolve(["is13"], {}, "float16")
    assert (wanted.spec.dim, wanted.spec.dtype, wanted.spec.level) == (6373, "float32", "utterance")
    samples = noise(2.0)
    other = opensmile.Smile(opensmile.FeatureSet.ComParE_2016, opensmile.FeatureLevel.Functionals)
    ours = run(Clip(samples, 16000))
    assert isinstance(ours, np.ndarray)
    assert (ours != other.process_signal(samples, 16000).to_numpy()).sum() > 500


def test_full_scale_is_clipped_and_does_not_wrap() -> None:
    samples = np.clip(noise(2.0, 0.5), -1, 1)
    assert (samples == 1).any()
    clip = Clip(samples, 16000)
    ours = run(clip)
    assert isinstance(ours, np.ndarray) and any("clipped" in warning for warning in clip.warnings)
    assert np.array_equal(ours, direct(np.minimum(samples, 32767 / 32768)))
    assert not np.array_equal(ours, direct(samples))  # openSMILE wraps 1.0 to -1.0


def test_too_short_is_a_reason_and_not_a_row_of_nan() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(direct(noise(0.01))).all()
    fault = run(Clip(noise(0.01), 16000))
    assert isinstance(fault, UtteranceError) and "too short for is13 (10 ms)" in str(fault)
    assert isinstance(run(Clip(noise(0.01)[:1], 16000)), UtteranceError)


@pytest.mark.parametrize("samples", [np.zeros(16000, np.float32), np.full(16000, 0.5, np.float32)])
def test_silence_and_dc_are_finite(samples: np.ndarray) -> None:
    ours = run(Clip(samples, 16000))
    assert isinstance(ours, np.ndarray) and np.isfinite(ours).all()
