"""The same sound under two names: named by the scan, counted in a result."""

from typing import Any

import numpy as np
import pytest

from ser.corpus.manifest import Manifest
from ser.corpus.same_audio import rows_by_sound, sounds_of, warn_of_copies
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
