"""Extractors without weights: equal to librosa and openSMILE called directly.

And what each augmented view changes.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import librosa
import numpy as np
import opensmile
import pytest

from ser.errors import UtteranceError
from ser.extract.audio import Clip, decode
from ser.extract.augment import VIEWS, augment
from ser.extract.check import relative_deviation
from ser.extract.extractor import ResolvedFeature
from ser.extract.mel import MelConfig, MelExtractor
from ser.extract.resolve import load_extractors, resolve
from ser.extract.smile import SETS
from ser.options import options_of
from ser.tests.shared_data import emodb
from ser.train.options import Experiment

RATE = 16000

MEL_FEATURES = [
    "mfcc",
    "logmel",
    "logmel:sampling_rate=22050",
    "logmel:bands=128,hop=0.0125,window=0.05,low=20,high=7600",
]

# openSMILE's name of each level.
LEVELS = {
    "functionals": "Functionals",
    "lld": "LowLevelDescriptors",
    "deltas": "LowLevelDescriptors_Deltas",
}

# openSMILE's set and level of features with a name of their own.
NAMED_SETS = {
    "is13": ("IS13", "Functionals"),
    "egemaps:level=lld": ("eGeMAPSv02", "LowLevelDescriptors"),
}


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, int(seconds * RATE)).astype(np.float32)


def tone(level: float = 0.3) -> np.ndarray:
    """A second of 440 Hz."""
    return (level * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def resolve_one(name: str, dtype: str = "float32") -> ResolvedFeature:
    [feature] = resolve([name], {}, dtype)[0]
    return feature


def extract_values(clip: Clip, name: str = "is13") -> np.ndarray:
    feature = resolve_one(name)
    [extractor] = load_extractors([feature], "cpu")
    [extracted] = extractor.run([clip])
    assert not isinstance(extracted, UtteranceError)
    return extracted[feature.spec.fingerprint].values


def librosa_values(clip: Clip, config: MelConfig) -> np.ndarray:
    """Log-mel or MFCC frames [frames, dim] as librosa computes them."""
    power = librosa.feature.melspectrogram(
        y=clip.at(config.sampling_rate),
        sr=config.sampling_rate,
        n_fft=config.window_samples,
        hop_length=config.hop_samples,
        n_mels=config.bands,
        fmin=config.low,
        fmax=config.high or None,
        pad_mode="constant",
    )
    log_mel = np.log(np.maximum(power, config.floor))
    if not config.coefficients:
        return log_mel.T
    return librosa.feature.mfcc(S=log_mel, n_mfcc=config.coefficients).T


# A minute has 6001 frames: they are computed in two stretches.
@pytest.mark.parametrize(
    ("name", "seconds"), [*((name, 3.21) for name in MEL_FEATURES), ("logmel", 60.0)]
)
def test_mel_equals_librosa(name: str, seconds: float) -> None:
    feature = resolve_one(name)
    samples = noise(seconds)
    from_silence_on = np.linspace(0, 1, len(samples), dtype=np.float32) ** 4
    clip = Clip(samples * from_silence_on, RATE)

    values = extract_values(clip, name)
    assert values.shape[1] == feature.spec.dim
    assert relative_deviation(values, librosa_values(clip, feature.config)) < 1e-6


def test_log_mel_and_mfcc_share_one_spectrogram(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["logmel", "mfcc", "mfcc:coefficients=13", "logmel:bands=40"]
    shared, other = load_extractors(resolve(names, {}, "float32")[0], "cpu")
    assert len(shared.specs) == 3
    assert len(other.specs) == 1

    compute_spectrogram = MelExtractor.spectrogram
    lengths = []

    def count_spectrogram(extractor: MelExtractor, samples: np.ndarray) -> object:
        lengths.append(len(samples))
        return compute_spectrogram(extractor, samples)

    monkeypatch.setattr(MelExtractor, "spectrogram", count_spectrogram)
    clip = Clip(noise(1.0), RATE)
    [extracted] = shared.run([clip])
    assert lengths == [RATE]
    assert not isinstance(extracted, UtteranceError)

    for spec in shared.specs:
        alone = extract_values(clip, spec.name)
        assert np.array_equal(extracted[spec.fingerprint].values, alone), spec.name


def test_silence_is_at_the_floor() -> None:
    silence = Clip(np.zeros(8000, np.float32), RATE)
    assert np.allclose(extract_values(silence, "logmel"), np.log(1e-10))
    assert np.allclose(extract_values(silence, "logmel:floor=1e-5"), np.log(1e-5))
    assert np.isfinite(extract_values(silence, "is13")).all()


def opensmile_values(
    samples: np.ndarray, feature_set: str = "IS13", level: str = "Functionals"
) -> np.ndarray:
    smile = opensmile.Smile(opensmile.FeatureSet[feature_set], opensmile.FeatureLevel[level])
    return smile.process_signal(samples, RATE).to_numpy()


def test_is13_is_bit_for_bit_opensmiles_on_real_speech_and_in_threads() -> None:
    clips = [decode(path) for path in emodb()[:6]]
    with ThreadPoolExecutor(4) as pool:
        for clip, values in zip(clips, pool.map(extract_values, clips), strict=True):
            assert values.dtype == np.float32
            assert np.array_equal(values, opensmile_values(clip.samples))

    # ComParE 2016 has as many values, and others.
    compare = extract_values(clips[0], "compare")
    assert (extract_values(clips[0], "is13") != compare).sum() > 500


def test_the_spec_of_is13() -> None:
    spec = resolve_one("is13", "float16").spec
    assert spec.dim == 6373
    assert spec.dtype == "float32"
    assert spec.level == "utterance"
    # As when it was openSMILE's only set here.
    assert spec.fingerprint == "7419e4770da63437"


@pytest.mark.parametrize("level", LEVELS)
def test_every_set_equals_the_library_in_threads_too(level: str) -> None:
    clip = Clip(noise(1.0), RATE)
    if level == "deltas":
        sets = [name for name in SETS if "eMAPS" not in name]
        assert len(sets) == 7
    else:
        sets = list(SETS)
        assert len(sets) == 12

    features = [f"smile:set={name},level={level}" for name in sets]
    with ThreadPoolExecutor(2) as pool:
        values_of_sets = list(pool.map(partial(extract_values, clip), features))

    for name, values in zip(sets, values_of_sets, strict=True):
        member = SETS[name].name
        assert np.array_equal(values, opensmile_values(clip.samples, member, LEVELS[level])), name

        spec = resolve_one(f"smile:set={member},level={level}", "float16").spec
        assert spec.config["feature_set"] == name
        assert spec.dim == values.shape[1]
        assert spec.dtype == "float32"
        if level == "functionals":
            assert (spec.level, spec.hop) == ("utterance", None)
        else:
            assert (spec.level, spec.hop) == ("frame", 0.01)


@pytest.mark.parametrize("name", NAMED_SETS)
def test_full_scale_is_clipped_and_does_not_wrap(name: str) -> None:
    samples = np.clip(noise(2.0, 0.5), -1, 1)
    assert (samples == 1).any()

    clip = Clip(samples, RATE)
    values = extract_values(clip, name)
    assert any("clipped" in warning for warning in clip.warnings)

    clipped = np.minimum(samples, 32767 / 32768)
    assert np.array_equal(values, opensmile_values(clipped, *NAMED_SETS[name]))
    # openSMILE wraps 1.0 to -1.0.
    assert not np.array_equal(values, opensmile_values(samples, *NAMED_SETS[name]))


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_is_the_same_every_time_and_another_for_each_number(kind: str) -> None:
    first = augment(tone(), RATE, f"{kind}-1")
    assert first.dtype == np.float32
    assert np.array_equal(first, augment(tone(), RATE, f"{kind}-1"))

    second = augment(tone(), RATE, f"{kind}-2")
    assert len(first) != len(second) or not np.array_equal(first, second)

    # Another utterance draws another copy: the same strength on all would be a filter, not an
    # augmentation.
    of_another = augment(tone(level=0.2), RATE, f"{kind}-1") / 2 * 3
    assert len(of_another) != len(first) or not np.allclose(of_another, first, atol=1e-3)


def test_noise_is_between_10_and_30_db() -> None:
    for number in range(1, 20):
        added = augment(tone(), RATE, f"noise-{number}") - tone()
        ratio = 10 * np.log10(np.mean(tone() ** 2) / np.mean(added**2))
        assert 9.9 < ratio < 30.1


def peak_frequency(samples: np.ndarray) -> float:
    """The loudest frequency, in Hz."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))


def test_pitch_moves_the_tone_by_two_semitones_at_most() -> None:
    moved = [augment(tone(), RATE, f"pitch-{number}") for number in range(1, 8)]
    assert {len(samples) for samples in moved} == {RATE}

    frequencies = [peak_frequency(samples) for samples in moved]
    for frequency in frequencies:
        assert abs(12 * np.log2(frequency / 440)) < 2.1
    assert np.std(frequencies) > 5


def test_stretch_changes_the_length_and_keeps_the_tone() -> None:
    stretched = [augment(tone(), RATE, f"stretch-{number}") for number in range(1, 8)]
    for samples in stretched:
        assert abs(peak_frequency(samples) - 440) < 4
        assert RATE / 1.26 < len(samples) < RATE / 0.79
    assert len({len(samples) for samples in stretched}) > 3


def test_shift_moves_and_fills_with_zeros() -> None:
    samples = tone() + 1
    for number in range(1, 12):
        moved = augment(samples, RATE, f"shift-{number}")
        zeros = int((moved == 0).sum())
        assert zeros <= 0.1 * RATE + 1

        is_later = zeros > 0 and moved[0] == 0
        kept = samples[: RATE - zeros] if is_later else samples[zeros:]
        assert np.array_equal(moved[moved != 0], kept)


def test_the_views_that_the_help_names_can_be_made() -> None:
    text = options_of(Experiment)["views"].help
    names = text.rpartition("such as ")[2].rstrip(".").split("+")
    resolved = resolve(names, {}, "float32")[0]
    assert [feature.spec.name for feature in resolved] == names
