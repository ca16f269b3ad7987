"""Praat's measures against sounds whose measures are known, and through ser's commands.

`make test-praat` installs the package, and runs these.
"""

import csv
import json
from pathlib import Path

import numpy as np
import parselmouth
import pytest
import soundfile as sf
from scipy.signal import lfilter
from ser_praat import NAMES, PraatConfig, measure

from ser.tests.command_line import ser

RATE = 44100

# Frequencies and bandwidths in Hz: five below 5500 Hz, as Praat expects.
FORMANTS = ((700, 80), (1200, 100), (2600, 150), (3500, 200), (4500, 250))


def voiced(periods: np.ndarray, amplitudes: np.ndarray | None = None) -> np.ndarray:
    """Pulses with these periods in seconds, through five formants one after the other."""
    starts = np.concatenate([[0], np.cumsum(periods)])
    amplitudes = np.ones(len(starts)) if amplitudes is None else amplitudes

    # A pulse between samples is a part of the sinc about it.
    count = round(starts[-1] * RATE)
    pulses = np.zeros(count + 64)
    for start, amplitude in zip(starts[:-1], amplitudes, strict=False):
        first = round(start * RATE)
        places = np.arange(max(0, first - 32), first + 33)
        pulses[places] += (
            amplitude * np.sinc(places - start * RATE) * np.hanning(67)[-len(places) - 1 : -1]
        )

    samples = pulses[:count]
    for frequency, width in FORMANTS:
        radius = np.exp(-np.pi * width / RATE)
        poles = [1, -2 * radius * np.cos(2 * np.pi * frequency / RATE), radius**2]
        samples = lfilter([1], poles, samples)
    return 0.2 * samples / np.abs(samples).max()


def test_a_vowel_of_100_hertz() -> None:
    """Its formants lie at harmonics: elsewhere they are found a little beside."""
    measured = measure(voiced(np.full(150, 1 / 100)), RATE, PraatConfig())
    assert measured["F0_mean"] == pytest.approx(100, abs=0.5)
    assert measured["F0_sd"] < 0.5
    assert measured["jitter_local"] < 0.002
    assert measured["shimmer_local"] < 0.02
    assert measured["HNR_mean"] > 25
    assert measured["rate_voiced"] > 0.9
    for number, (frequency, _) in enumerate(FORMANTS[:3], 1):
        assert measured[f"F{number}_mean"] == pytest.approx(frequency, rel=0.06)


def test_jitter_and_shimmer_are_what_was_put_in() -> None:
    """The mean difference of neighbours, as a share of the mean."""
    rng = np.random.default_rng(0)
    periods = (1 + 0.01 * rng.normal(size=300)) / 150
    measured = measure(voiced(periods), RATE, PraatConfig())
    expected = np.abs(np.diff(periods)).mean() / periods.mean()
    # The formants ring on into the next period.
    assert measured["jitter_local"] == pytest.approx(expected, rel=0.2)

    amplitudes = 1 + 0.05 * rng.normal(size=300)
    measured = measure(voiced(np.full(300, 1 / 150), amplitudes), RATE, PraatConfig())
    expected = np.abs(np.diff(amplitudes)).mean() / amplitudes.mean()
    assert measured["shimmer_local"] == pytest.approx(expected, rel=0.15)


def test_intensity_and_harmonicity_of_a_sine() -> None:
    """Decibels over 20 μPa of the root mean square; noise of a tenth of the power is 10 dB."""
    times = np.arange(2 * RATE) / RATE
    sine = 0.1 * np.sin(2 * np.pi * 200 * times)
    measured = measure(sine, RATE, PraatConfig())
    rms = 0.1 / np.sqrt(2)
    assert measured["intensity_mean"] == pytest.approx(20 * np.log10(rms / 2e-5), abs=0.05)

    noise = np.random.default_rng(0).normal(0, rms / np.sqrt(10), len(times))
    measured = measure(sine + noise, RATE, PraatConfig())
    assert measured["HNR_mean"] == pytest.approx(10, abs=0.7)


def test_syllables_are_counted() -> None:
    """Six bursts of a vowel in three seconds."""
    vowel = voiced(np.full(300 * 3 // 2, 1 / 150))
    times = np.arange(len(vowel)) / RATE
    envelope = np.clip(np.sin(2 * np.pi * times) ** 2, 0.01, 1)
    measured = measure(vowel * envelope, RATE, PraatConfig())
    assert measured["rate_syllables"] * times[-1] == pytest.approx(6, abs=0.01)


def test_a_script_of_praat_gives_the_same(tmp_path: Path) -> None:
    """The commands that README.md names, as a phonetician writes them."""
    samples = voiced(np.full(150, 1 / 150)).astype(np.float32)
    sf.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    script = f"""
    Read from file: "{tmp_path / "a.wav"}"
    sound = selected ("Sound")
    pitch = To Pitch: 0, 75, 500
    mean = Get mean: 0, 0, "Hertz"
    selectObject: sound, pitch
    points = To PointProcess (cc)
    jitter = Get jitter (local): 0, 0, 0.0001, 0.02, 1.3
    selectObject: sound, points
    shimmer = Get shimmer (local): 0, 0, 0.0001, 0.02, 1.3, 1.6
    selectObject: sound
    harmonicity = To Harmonicity (cc): 0.01, 75, 0.1, 1
    hnr = Get mean: 0, 0
    selectObject: sound
    intensity = To Intensity: 75, 0, "yes"
    loudness = Get mean: 0, 0, "energy"
    writeInfoLine: mean, " ", jitter, " ", shimmer, " ", hnr, " ", loudness
    """
    _, text = parselmouth.praat.run(script, capture_output=True)
    names = ["F0_mean", "jitter_local", "shimmer_local", "HNR_mean", "intensity_mean"]
    measured = measure(samples, RATE, PraatConfig())
    assert [measured[name] for name in names] == pytest.approx(
        [float(word) for word in text.split()]
    )


def test_segments_are_measured_by_the_commands_of_ser(tmp_path: Path) -> None:
    low = voiced(np.full(100, 1 / 110))
    high = voiced(np.full(200, 1 / 220))
    silence = np.zeros(RATE)
    sf.write(tmp_path / "long.wav", np.concatenate([low, high, silence]), RATE)
    ends = np.cumsum([len(low), len(high), len(silence)]) / RATE
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "file", "start", "end", "speaker", "label"])
        for id_, start, end in zip(("low", "high", "none"), (0, *ends), ends, strict=False):
            writer.writerow([id_, "long.wav", start, end, "s1", id_])

    store = tmp_path / "s"
    words = ["features", tmp_path / "t.csv", "--features", "praat", "--store", store]
    done = ser(*words, "--on-error", "skip", "--json")
    assert done.exit_code == 3, done.output
    counts = json.loads(done.stdout)["praat"]
    assert counts["quarantined"] == 1
    assert counts["rows"] == 2

    exported = ser("cache", "export", "praat", tmp_path / "praat.csv", "--store", store)
    assert exported.exit_code == 3
    assert "left out: none: Praat gives no F0_mean of it" in exported.output
    with (tmp_path / "praat.csv").open(newline="") as file:
        by_id = {row["id"]: row for row in csv.DictReader(file)}
    assert list(by_id["low"])[4:] == list(NAMES)
    assert float(by_id["low"]["F0_mean"]) == pytest.approx(110, abs=1)
    assert float(by_id["high"]["F0_mean"]) == pytest.approx(220, abs=2)

    refused = ser(*words[:3], "praat:floor=600", "--store", store)
    assert refused.exit_code == 2
    assert "from the floor up to the ceiling" in refused.output
