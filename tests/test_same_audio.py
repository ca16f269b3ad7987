"""The same sound under two names: named by the scan, counted in a result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from ser.corpus.manifest import Manifest
from ser.corpus.same_audio import rows_by_sound, sounds_of, warn_of_copies
from ser.extract.corpora.scan import scan_corpus
from ser.train.data.folds import Fold
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import get_policy
from ser.train.data.leakage import known_before

ABSENT: dict[str, Any] = {"audio": None, "audio_sha256": None}


def corpus(*rows: dict[str, Any]) -> Manifest:
    """A corpus of utterances u0, u1 …, each with audio of its own and label ang unless said."""
    filled = []
    for number, row in enumerate(rows):
        plain = {"audio": f"{number}.wav", "audio_sha256": f"{number:064x}", "label": "ang"}
        filled.append({"id": f"u{number}", **plain, **row})
    return Manifest.from_rows("toy", filled)


SAME = {"audio_sha256": "a" * 64}
SPAN = {"audio": "long.wav", "audio_sha256": "b" * 64}


@pytest.mark.parametrize(
    ("rows", "copies"),
    [
        pytest.param([{}, {}, {}], [], id="none"),
        pytest.param([SAME, {}, SAME], [[0, 2]], id="two"),
        pytest.param([SAME, SAME, SAME], [[0, 1, 2]], id="three"),
        pytest.param([ABSENT, ABSENT], [], id="without audio"),
        pytest.param([{**SAME, "start": 1.0}, {**SAME, "start": 9.0}], [[0, 1]], id="in dialogues"),
        pytest.param(
            [{**SPAN, "start": 0.0, "end": 1.0}, {**SPAN, "start": 1.0, "end": 2.0}],
            [],
            id="spans",
        ),
        pytest.param(
            [{**SPAN, "start": 0.0, "end": 1.0}, {**SPAN, "start": 0.0, "end": 1.0}],
            [[0, 1]],
            id="a span twice",
        ),
        pytest.param([SPAN, SPAN], [[0, 1]], id="a file twice"),
    ],
)
def test_copies_are_found(rows: list[dict[str, Any]], copies: list[list[int]]) -> None:
    manifest = corpus(*rows)
    assert rows_by_sound(sounds_of(manifest)) == copies
    assert bool(warn_of_copies(manifest)) == bool(copies)


def test_label_conflicts_are_named() -> None:
    [copies] = warn_of_copies(corpus(SAME, SAME))
    assert "1 recordings stand under several ids (u0 = u1)" in copies

    [_, conflict] = warn_of_copies(corpus(SAME, {**SAME, "label": "sad"}))
    assert "different labels under several ids (u0 ang = u1 sad)" in conflict
    assert len(warn_of_copies(corpus(SAME, {**SAME, "label": None}))) == 1, "none is no conflict"


def test_many_copies_are_counted_not_listed() -> None:
    rows = []
    for number in range(100):
        rows += [{"audio_sha256": f"{number:064x}"}] * 2
    [warning] = warn_of_copies(corpus(*rows))
    assert "100 recordings" in warning
    assert "and 97 more" in warning
    assert len(warning) < 300


def test_a_result_counts_test_utterances_that_training_has_under_another_id() -> None:
    manifest = corpus(SAME, {"label": "sad"}, {}, SAME, SAME, {})
    utterances = apply_policy(get_policy("4class"), manifest)
    train = np.array([0, 1])
    dev = np.array([2])

    fold = Fold("a", train, dev, np.array([3, 4, 5]))
    assert known_before(fold, utterances)["repeated_audio"] == 2
    fold = Fold("b", np.array([1]), dev, np.array([3, 4, 5]))
    assert known_before(fold, utterances)["repeated_audio"] == 0

    silent = apply_policy(get_policy("4class"), corpus(ABSENT, {**ABSENT, "label": "sad"}, ABSENT))
    fold = Fold("c", np.array([0]), np.array([1]), np.array([2]))
    assert known_before(fold, silent)["repeated_audio"] is None


# Whole steps of 16 bits, which all lossless files below hold exactly.
STEPS = np.random.default_rng(0).integers(-(2**15), 2**15, 6000).astype(np.int16)


def written(path: Path, steps: np.ndarray, rate: int = 16000, **how: Any) -> Path:
    sf.write(path, steps, rate, **how)
    return path


def with_notes(path: Path, steps: np.ndarray) -> Path:
    """A WAV with a title in its header, and one behind its samples."""
    with sf.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
        file.title = "before"
        file.write(steps)
        file.comment = "after"
    return path


def without_length(path: Path, steps: np.ndarray) -> Path:
    """A WAV as it comes through a pipe: its header counts nothing."""
    content = bytearray(written(path, steps).read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    return path


OTHER_BYTES: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "a title": with_notes,
    "no length": without_length,
    "24 bits": lambda path, steps: written(path, steps.astype(np.int32) << 16, subtype="PCM_24"),
    "32 bits": lambda path, steps: written(path, steps.astype(np.int32) << 16, subtype="PCM_32"),
    "floats": lambda path, steps: written(path, steps / 2**15, subtype="FLOAT"),
    "doubles": lambda path, steps: written(path, steps / 2**15, subtype="DOUBLE"),
    "WAVEX": lambda path, steps: written(path, steps, format="WAVEX"),
    "RF64": lambda path, steps: written(path, steps, format="RF64"),
    "W64": lambda path, steps: written(path, steps, format="W64"),
    "big-endian": lambda path, steps: written(path, steps, format="WAV", endian="BIG"),
    "two channels": lambda path, steps: written(path, np.stack([steps, steps], 1)),
    "FLAC": lambda path, steps: written(path.with_suffix(".flac"), steps),
    "FLAC of 24 bits": lambda path, steps: written(
        path.with_suffix(".flac"), steps.astype(np.int32) << 16, subtype="PCM_24"
    ),
    "AIFF": lambda path, steps: written(path.with_suffix(".aiff"), steps),
    "AU": lambda path, steps: written(path.with_suffix(".au"), steps),
}


def listed(folder: Path, *paths: Path) -> Manifest:
    """The manifest of a table of these files."""
    lines = ["audio,label"]
    for number, path in enumerate(paths):
        lines.append(f"{path.name},{('ang', 'sad')[number % 2]}")
    (folder / "t.csv").write_text("\n".join(lines))
    scan = scan_corpus(folder / "t.csv")
    assert not scan.problems, scan.problems
    return scan.manifest


@pytest.mark.parametrize("kind", OTHER_BYTES)
def test_the_same_samples_in_other_bytes(tmp_path: Path, kind: str) -> None:
    plain = written(tmp_path / "plain.wav", STEPS)
    other = OTHER_BYTES[kind](tmp_path / "other.wav", STEPS)
    almost = STEPS.copy()
    almost[-1] ^= 1
    different = OTHER_BYTES[kind](tmp_path / "different.wav", almost)
    assert plain.read_bytes() != other.read_bytes()

    manifest = listed(tmp_path, plain, other, different)
    assert rows_by_sound(sounds_of(manifest)) == [[0, 1]]
    [_, conflict] = warn_of_copies(manifest)
    assert "(plain ang = other sad)" in conflict

    # As a store keeps it.
    kept = Manifest.from_content(manifest.content, manifest.digest, "kept")
    assert kept.same(manifest)
    assert rows_by_sound(sounds_of(kept)) == [[0, 1]]


def test_the_same_samples_at_another_rate_are_another_sound(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.wav", STEPS)
    fast = written(tmp_path / "fast.flac", STEPS, rate=22050)
    # Each has a copy, so that both are decoded.
    copies = [written(tmp_path / "p.flac", STEPS), written(tmp_path / "f.wav", STEPS, rate=22050)]
    manifest = listed(tmp_path, plain, fast, *copies)
    assert rows_by_sound(sounds_of(manifest)) == [[0, 2], [1, 3]]


def test_spans_of_the_same_samples_in_other_bytes(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.wav", STEPS)
    other = written(tmp_path / "other.flac", STEPS)
    (tmp_path / "t.csv").write_text(
        "id,audio,start,end\n"
        "a,plain.wav,0.1,0.2\nb,plain.wav,0.2,\nc,other.flac,0.2,0.375\nd,other.flac,0,\n"
    )
    manifest = scan_corpus(tmp_path / "t.csv").manifest
    assert manifest.is_segmented
    assert plain.stat().st_size != other.stat().st_size
    assert rows_by_sound(sounds_of(manifest)) == [[1, 2]]


def test_a_corpus_without_copies_says_nothing_of_sounds(tmp_path: Path) -> None:
    manifest = listed(
        tmp_path, written(tmp_path / "a.wav", STEPS), written(tmp_path / "b.wav", -STEPS)
    )
    assert manifest.sounds == {}
    assert b"sounds" not in manifest.content


def test_copies_in_two_corpora(tmp_path: Path) -> None:
    manifests = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        paths = [written(folder / "a.wav", STEPS)]
        if name == "one":
            paths.append(written(folder / "b.flac", STEPS))
        manifests.append(listed(folder, *paths))
    joined = Manifest.joined(manifests)
    assert rows_by_sound(sounds_of(joined)) == [[0, 1, 2]]
