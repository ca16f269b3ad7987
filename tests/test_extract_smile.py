"""Rows of every set and level against openSMILE called directly."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import opensmile
import pytest

from ser.errors import UtteranceError, WrongUse
from ser.extract.audio import Clip, decode
from ser.extract.registry import load_extractors, resolve
from ser.extract.smile import SETS
from ser.tests.shared_data import emodb

LEVELS = {"functionals": "Functionals", "lld": "LowLevelDescriptors", "deltas": "LowLevelDescriptors_Deltas"}


def direct(samples: np.ndarray, of: str = "IS13", level: str = "Functionals") -> np.ndarray:
    smile = opensmile.Smile(opensmile.FeatureSet[of], opensmile.FeatureLevel[level])
    return smile.process_signal(samples, 16000).to_numpy()


def run(clip: Clip, name: str = "is13") -> np.ndarray | UtteranceError:
    [wanted] = resolve([name], {}, "float16")
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
    assert wanted.spec.fingerprint == "7419e4770da63437"  # as when it was openSMILE's only set here
    clip = Clip(noise(2.0), 16000)
    ours, other = run(clip), run(clip, "compare")
    assert isinstance(ours, np.ndarray) and isinstance(other, np.ndarray)
    assert np.array_equal(other, direct(clip.samples, "ComParE_2016")) and (ours != other).sum() > 500


@pytest.mark.parametrize("level", LEVELS)
def test_every_set_equals_the_library_in_threads_too(level: str) -> None:
    clip, sets = Clip(noise(1.0), 16000), [name for name in SETS if level != "deltas" or "eMAPS" not in name]
    assert len(sets) == (7 if level == "deltas" else 12)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: run(clip, f"smile:set={name},level={level}"), sets))
    for name, ours in zip(sets, found, strict=True):
        assert isinstance(ours, np.ndarray)
        assert np.array_equal(ours, direct(clip.samples, SETS[name].name, LEVELS[level])), name
        [by_member] = resolve([f"smile:set={SETS[name].name},level={level}"], {}, "float16")
        spec = by_member.spec
        assert (spec.dim, spec.config["feature_set"], spec.dtype) == (ours.shape[1], name, "float32")
        assert (spec.level, spec.hop) == (("utterance", None) if level == "functionals" else ("frame", 0.01))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smile", "smile needs a set, as in smile:set=eGeMAPSv02; known: ComParE_2016"),
        ("smile:set=eGeMAPSv2", "did you mean eGeMAPSv02"),
        ("egemaps:set=IS09", "unknown setting of egemaps"),
        ("egemaps:level=deltas", "eGeMAPSv02 gives no deltas apart; ask for level=lld"),
        ("compare:level=frames", "level is functionals or lld or deltas"),
    ],
)
def test_sets_and_levels_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(WrongUse, match=message):
        resolve([name], {}, "float32")


NAMED = {"is13": ("IS13", "Functionals"), "egemaps:level=lld": ("eGeMAPSv02", "LowLevelDescriptors")}


@pytest.mark.parametrize("name", NAMED)
def test_full_scale_is_clipped_and_does_not_wrap(name: str) -> None:
    samples = np.clip(noise(2.0, 0.5), -1, 1)
    assert (samples == 1).any()
    clip = Clip(samples, 16000)
    ours = run(clip, name)
    assert isinstance(ours, np.ndarray) and any("clipped" in warning for warning in clip.warnings)
    assert np.array_equal(ours, direct(np.minimum(samples, 32767 / 32768), *NAMED[name]))
    assert not np.array_equal(ours, direct(samples, *NAMED[name]))  # openSMILE wraps 1.0 to -1.0


@pytest.mark.parametrize("name", NAMED)
def test_too_short_is_a_reason_and_not_a_row_of_nan(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(direct(noise(0.01), *NAMED[name])).all()
    fault = run(Clip(noise(0.01), 16000), name)
    assert isinstance(fault, UtteranceError) and f"too short for {name.partition(':')[0]} (10 ms)" in str(fault)
    assert isinstance(run(Clip(noise(0.01)[:1], 16000), name), UtteranceError)


@pytest.mark.parametrize("samples", [np.zeros(16000, np.float32), np.full(16000, 0.5, np.float32)])
def test_silence_and_dc_are_finite(samples: np.ndarray) -> None:
    ours = run(Clip(samples, 16000))
    assert isinstance(ours, np.ndarray) and np.isfinite(ours).all()
