"""Augmented views: what each changes, and that each is the same every time."""

import numpy as np
import pytest

from ser.errors import UtteranceError, WrongUse
from ser.extract.audio import Clip
from ser.extract.augment import VIEWS, change
from ser.extract.registry import load_extractors, resolve
from ser.train.options import Experiment

RATE = 16000


def tone(frequency: float = 440.0, seconds: float = 1.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def peak(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))


@pytest.mark.parametrize("kind", VIEWS)
def test_the_same_every_time_and_another_for_each_number(kind: str) -> None:
    once, again, other = (change(tone(), RATE, view) for view in (f"{kind}-1", f"{kind}-1", f"{kind}-2"))
    assert once.dtype == np.float32 and np.array_equal(once, again)
    assert len(once) != len(other) or not np.array_equal(once, other)
    # Another utterance draws another copy: the same strength on all would be a filter, not an augmentation.
    assert not np.array_equal(change(tone(level=0.2), RATE, f"{kind}-1") / 2 * 3, once)


def test_noise_is_between_10_and_30_db() -> None:
    for number in range(1, 20):
        added = change(tone(), RATE, f"noise-{number}") - tone()
        ratio = 10 * np.log10(np.mean(tone() ** 2) / np.mean(added**2))
        assert 9.9 < ratio < 30.1


def test_pitch_moves_the_tone_and_keeps_the_length() -> None:
    found = [peak(change(tone(), RATE, f"pitch-{number}")) for number in range(1, 8)]
    assert all(abs(12 * np.log2(frequency / 440)) < 2.1 for frequency in found) and np.std(found) > 5
    assert len(change(tone(), RATE, "pitch-1")) == RATE


def test_stretch_keeps_the_tone_and_changes_the_length() -> None:
    found = [change(tone(), RATE, f"stretch-{number}") for number in range(1, 8)]
    assert all(abs(peak(samples) - 440) < 4 and RATE / 1.26 < len(samples) < RATE / 0.79 for samples in found)
    assert len({len(samples) for samples in found}) > 3


def test_shift_moves_and_fills_with_zeros() -> None:
    samples = tone() + 1
    for number in range(1, 12):
        moved = change(samples, RATE, f"shift-{number}")
        zeros = int((moved == 0).sum())
        assert zeros <= 0.1 * RATE + 1
        kept = samples[: RATE - zeros] if moved[0] == 0 and zeros else samples[zeros:]
        assert np.array_equal(moved[moved != 0], kept)


def test_the_views_that_the_help_names_can_be_made() -> None:
    told = Experiment.__dataclass_fields__["views"].metadata["help"]
    names = told.rpartition("such as ")[2].rstrip(".").split("+")
    assert [one.spec.name for one in resolve(names, {}, "float32")] == names


def test_a_view_is_a_feature_of_its_own() -> None:
    plain, pitched = wanted = resolve(["logmel", "logmel:view=pitch-1"], {}, "float32")
    assert pitched.spec.name == "logmel:view=pitch-1" and plain.spec.fingerprint != pitched.spec.fingerprint
    rows = []
    for one in load_extractors(wanted, "cpu"):
        [outcome] = one.run([Clip(tone(), RATE)])
        assert not isinstance(outcome, UtteranceError)
        rows.append(outcome[one.specs[0].fingerprint].values)
    assert rows[0].shape == rows[1].shape and not np.allclose(*rows)


@pytest.mark.parametrize("view", ["pich-1", "pitch", "pitch-0", "pitch-x"])
def test_unknown_views(view: str) -> None:
    with pytest.raises(WrongUse, match="pitch"):
        resolve([f"logmel:view={view}"], {}, "float32")
