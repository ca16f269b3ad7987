"""Extractors without weights against librosa and openSMILE called directly, and what each augmented
view changes.
"""

from concurrent.futures import ThreadPoolExecutor

import librosa
import numpy as np
import opensmile
import pytest

from ser.errors import UtteranceError
from ser.extract.audio import Clip, decode
from ser.extract.augment import VIEWS, augment
from ser.extract.check import relative_deviation
from ser.extract.mel import MelExtractor
from ser.extract.resolve import load_extractors, resolve
from ser.extract.smile import SETS
from ser.options import options_of
from ser.tests.shared_data import emodb
from ser.train.options import Experiment

RATE = 16000
MEL = [
    "mfcc",
    "logmel",
    "logmel:sampling_rate=22050",
    "logmel:bands=128,hop=0.0125,window=0.05,low=20,high=7600",
]
LEVELS = {
    "functionals": "Functionals",
    "lld": "LowLevelDescriptors",
    "deltas": "LowLevelDescriptors_Deltas",
}
NAMED = {
    "is13": ("IS13", "Functionals"),
    "egemaps:level=lld": ("eGeMAPSv02", "LowLevelDescriptors"),
}


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, int(seconds * RATE)).astype(np.float32)


def tone(level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def run(clip: Clip, name: str = "is13") -> np.ndarray:
    [wanted] = resolve([name], {}, "float32")[0]
    [one] = load_extractors([wanted], "cpu")
    [outcome] = one.run([clip])
    assert not isinstance(outcome, UtteranceError)
    return outcome[wanted.spec.fingerprint].values


@pytest.mark.parametrize(("name", "seconds"), [*((name, 3.21) for name in MEL), ("logmel", 60.0)])
def test_mel_equals_librosa(name: str, seconds: float) -> None:
    """From silence on. A minute has 6001 frames: they are computed in two stretches."""
    [wanted] = resolve([name], {}, "float32")[0]
    samples = noise(seconds)
    clip = Clip(samples * np.linspace(0, 1, len(samples), dtype=np.float32) ** 4, RATE)
    ours, c = run(clip, name), wanted.config
    sizes = {
        "n_fft": c.window_samples,
        "hop_length": c.hop_samples,
        "n_mels": c.bands,
        "pad_mode": "constant",
    }
    sizes |= {"sr": c.sampling_rate, "fmin": c.low, "fmax": c.high or None}
    power = librosa.feature.melspectrogram(y=clip.at(c.sampling_rate), **sizes)
    plain = np.log(np.maximum(power, c.floor))
    plain = librosa.feature.mfcc(S=plain, n_mfcc=c.coefficients) if c.coefficients else plain
    assert ours.shape[1] == wanted.spec.dim and relative_deviation(ours, plain.T) < 1e-6


def test_log_mel_and_mfcc_share_one_spectrogram(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = resolve(["logmel", "mfcc", "mfcc:coefficients=13", "logmel:bands=40"], {}, "float32")[
        0
    ]
    shared, other = load_extractors(wanted, "cpu")
    assert [len(shared.specs), len(other.specs)] == [3, 1]
    calls, spectrogram = [], MelExtractor.spectrogram
    monkeypatch.setattr(
        MelExtractor, "spectrogram", lambda self, x: calls.append(len(x)) or spectrogram(self, x)
    )
    clip = Clip(noise(1.0), RATE)
    [outcome] = shared.run([clip])
    assert calls == [RATE] and not isinstance(outcome, UtteranceError)
    for spec in shared.specs:
        assert np.array_equal(outcome[spec.fingerprint].values, run(clip, spec.name)), (
            "the same bits as alone"
        )


def test_silence_is_at_the_floor() -> None:
    silence = Clip(np.zeros(8000, np.float32), RATE)
    assert np.allclose(run(silence, "logmel"), np.log(1e-10))
    assert (
        np.allclose(run(silence, "logmel:floor=1e-5"), np.log(1e-5))
        and np.isfinite(run(silence)).all()
    )


def direct(samples: np.ndarray, of: str = "IS13", level: str = "Functionals") -> np.ndarray:
    smile = opensmile.Smile(opensmile.FeatureSet[of], opensmile.FeatureLevel[level])
    return smile.process_signal(samples, RATE).to_numpy()


def test_is13_is_bit_for_bit_opensmiles_on_real_speech_and_in_threads() -> None:
    clips = [decode(path) for path in emodb()[:6]]
    with ThreadPoolExecutor(4) as pool:
        for clip, ours in zip(clips, pool.map(run, clips), strict=True):
            assert ours.dtype == np.float32 and np.array_equal(ours, direct(clip.samples))
    [wanted] = resolve(["is13"], {}, "float16")[0]
    assert (wanted.spec.dim, wanted.spec.dtype, wanted.spec.level) == (6373, "float32", "utterance")
    assert wanted.spec.fingerprint == "7419e4770da63437"  # as when it was openSMILE's only set here
    assert (run(clips[0]) != run(clips[0], "compare")).sum() > 500, (
        "ComParE 2016 has as many, and others"
    )


@pytest.mark.parametrize("level", LEVELS)
def test_every_set_equals_the_library_in_threads_too(level: str) -> None:
    clip, sets = (
        Clip(noise(1.0), RATE),
        [name for name in SETS if level != "deltas" or "eMAPS" not in name],
    )
    assert len(sets) == (7 if level == "deltas" else 12)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: run(clip, f"smile:set={name},level={level}"), sets))
    for name, ours in zip(sets, found, strict=True):
        assert np.array_equal(ours, direct(clip.samples, SETS[name].name, LEVELS[level])), name
        [by_member] = resolve([f"smile:set={SETS[name].name},level={level}"], {}, "float16")[0]
        spec = by_member.spec
        assert (spec.dim, spec.config["feature_set"], spec.dtype) == (
            ours.shape[1],
            name,
            "float32",
        )
        assert (spec.level, spec.hop) == (
            ("utterance", None) if level == "functionals" else ("frame", 0.01)
        )


@pytest.mark.parametrize("name", NAMED)
def test_full_scale_is_clipped_and_does_not_wrap(name: str) -> None:
    samples = np.clip(noise(2.0, 0.5), -1, 1)
    assert (samples == 1).any()
    clip = Clip(samples, RATE)
    ours = run(clip, name)
    assert any("clipped" in warning for warning in clip.warnings)
    assert np.array_equal(ours, direct(np.minimum(samples, 32767 / 32768), *NAMED[name]))
    assert not np.array_equal(ours, direct(samples, *NAMED[name]))  # openSMILE wraps 1.0 to -1.0


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_is_the_same_every_time_and_another_for_each_number(kind: str) -> None:
    once, again, other = (
        augment(tone(), RATE, view) for view in (f"{kind}-1", f"{kind}-1", f"{kind}-2")
    )
    assert once.dtype == np.float32 and np.array_equal(once, again)
    assert len(once) != len(other) or not np.array_equal(once, other)
    # Another utterance draws another copy: the same strength on all would be a filter, not an
    # augmentation.
    other = augment(tone(level=0.2), RATE, f"{kind}-1") / 2 * 3
    assert len(other) != len(once) or not np.allclose(other, once, atol=1e-3)


def test_noise_is_between_10_and_30_db() -> None:
    for number in range(1, 20):
        added = augment(tone(), RATE, f"noise-{number}") - tone()
        assert 9.9 < 10 * np.log10(np.mean(tone() ** 2) / np.mean(added**2)) < 30.1


def test_pitch_moves_the_tone_and_stretch_the_length() -> None:
    def peak(samples: np.ndarray) -> float:
        return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))

    moved, longer = (
        [augment(tone(), RATE, f"{kind}-{n}") for n in range(1, 8)] for kind in ("pitch", "stretch")
    )
    found = [peak(samples) for samples in moved]
    assert (
        all(abs(12 * np.log2(frequency / 440)) < 2.1 for frequency in found) and np.std(found) > 5
    )
    assert all(
        abs(peak(samples) - 440) < 4 and RATE / 1.26 < len(samples) < RATE / 0.79
        for samples in longer
    )
    assert {len(samples) for samples in moved} == {RATE} and len(
        {len(samples) for samples in longer}
    ) > 3


def test_shift_moves_and_fills_with_zeros() -> None:
    samples = tone() + 1
    for number in range(1, 12):
        moved = augment(samples, RATE, f"shift-{number}")
        zeros = int((moved == 0).sum())
        assert zeros <= 0.1 * RATE + 1
        kept = samples[: RATE - zeros] if moved[0] == 0 and zeros else samples[zeros:]
        assert np.array_equal(moved[moved != 0], kept)


def test_the_views_that_the_help_names_can_be_made() -> None:
    told = options_of(Experiment)["views"].help
    names = told.rpartition("such as ")[2].rstrip(".").split("+")
    assert [one.spec.name for one in resolve(names, {}, "float32")[0]] == names
