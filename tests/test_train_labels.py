"""Label policies, IEMOCAP's counts, and soft labels."""

from pathlib import Path

import numpy as np
import pytest

from ser.corpus.manifest import Manifest
from ser.errors import CorpusError, WrongUse
from ser.tests.tiny_store import make_manifest
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import get_policy
from ser.train.data.protocols import make_folds
from ser.train.data.votes import soft_labels

# The release's counts per session of ang, hap + exc, neu, sad (papers/IEMOCAP.md). How hap + exc
# and the 1,849 fru are spread over sessions does not matter to the policies.
SESSIONS = {"1": (229, 278, 384, 194), "2": (137, 327, 362, 197), "3": (240, 286, 320, 305)}
SESSIONS |= {"4": (327, 303, 258, 143), "5": (170, 442, 384, 245)}


def release(change: int = 0) -> Manifest:
    """A manifest with IEMOCAP's ids and label counts.

    `change` turns that many of session 5's sad into xxx.
    """
    labels = [("1", "fru")] * 1849 + [("2", "fea")] * 40 + [("2", "sur")] * 107
    for session, (ang, hap, neu, sad) in SESSIONS.items():
        moved = change if session == "5" else 0
        counts = {
            "ang": ang,
            "exc": hap - 119,
            "hap": 119,
            "neu": neu,
            "sad": sad - moved,
            "xxx": moved,
        }
        labels += [(session, name) for name, n in counts.items() for _ in range(n)]
    labels += [("2", "xxx")] * (10_039 - len(labels))
    rows = []
    for i, (session, label) in enumerate(labels):
        dialogue = f"Ses0{session}F_impro{i // 1000 + 1:02d}{'abcd'[i % 4]}"
        rows.append(
            {
                "id": f"{dialogue}_F{i % 1000:03d}",
                "dialogue": dialogue,
                "session": session,
                "label": label,
            }
        )
    return Manifest.from_rows("iemocap", rows)


@pytest.mark.parametrize(
    ("policy", "n", "classes"),
    [("4class", 5531, 4), ("5class", 7380, 5), ("6class", 7380, 6), ("8class", 7527, 8)],
)
def test_iemocap_gives_its_known_counts(policy: str, n: int, classes: int) -> None:
    found = apply_policy(get_policy(policy), release())
    assert len(found.rows) == n and len(found.classes) == classes
    assert sum(found.left_out.values()) == 10_039 - n
    counts = dict(zip(found.classes, np.bincount(found.labels).tolist(), strict=True))
    # Not swapped, as one paper has it.
    assert (counts["neu"], counts["sad"]) == (1708, 1084)
    assert counts["hap"] == (595 if policy in ("6class", "8class") else 1636)


def test_sessions_1_to_4_of_iemocap_train_but_for_a_tenth() -> None:
    found = apply_policy(get_policy("4class"), release())
    [fold] = make_folds("train1234-test5", found)
    assert len(fold.train) + len(fold.dev) == 4290 and len(fold.test) == 1241
    assert len(fold.dev) == pytest.approx(429, abs=100)

    trained = {found.dialogues[row] for row in fold.train}
    assert trained.isdisjoint(found.dialogues[row] for row in fold.dev)


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "beside another corpus"])
def test_iemocap_with_other_counts_is_refused(joined: bool) -> None:
    manifest = release(change=1)
    if joined:
        manifest = Manifest.joined([manifest, make_manifest()])
    says = "all 5530 instead of 5531, session 5 sad 244 instead of 245"
    with pytest.raises(CorpusError, match=says):
        apply_policy(get_policy("4class"), manifest)


def test_a_map_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text('negative = ["ang", "sad", "fru"]\npositive = ["hap", "exc"]\n')
    found = apply_policy(get_policy(str(file)), release())
    assert found.classes == ("negative", "positive")
    assert np.bincount(found.labels).tolist() == [1103 + 1084 + 1849, 1636]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('a = ["ang"]\nb = ["anger"]', "'anger' stands in two classes"),
        ("a = 3\nb = []", "must be a list"),
        ("a = [", "not a TOML file"),
        (None, "map.toml: cannot be read"),
    ],
    ids=["a label in two classes", "no list", "no TOML", "no file"],
)
def test_policies_that_are_wrong(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "map.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(WrongUse, match=says):
        get_policy(str(file))


def test_a_corpus_with_other_labels_says_which() -> None:
    for name, labels, says in (
        ("4class", ["bor", "dis", "bor"], r"bor \(2\), dis \(1\)"),
        ("all", [None], "corpus other has no labels, and nothing can be trained on it"),
    ):
        rows = [{"id": f"u{i}", "label": label} for i, label in enumerate(labels)]
        with pytest.raises(WrongUse, match=says):
            apply_policy(get_policy(name, labels), Manifest.from_rows("other", rows))

    own = get_policy("all", ["Calm", "bor", "xxx", "X", "", None, "Fear"])
    assert own.classes == ("bor", "calm", "fea")


def test_soft_labels_are_the_annotators_percentages() -> None:
    policy = get_policy("5class")
    votes = [
        # USC §3.2's example.
        [["Anger"], ["Frustration"], ["Anger"]],
        # One annotator gave two; Other is left out.
        [["Anger", "Neutral"], ["Neutral"], ["Other"]],
        # Nothing is left: the consensus counts.
        [["Other"], ["Surprise"]],
        None,
    ]
    found = soft_labels(policy, votes, np.array([0, 3, 4, 2]))
    assert policy.classes == ("ang", "fru", "hap", "neu", "sad")
    wanted = [
        [2 / 3, 1 / 3, 0, 0, 0],
        [0.5 / 2, 0, 0, 1.5 / 2, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 1, 0, 0],
    ]
    assert found == pytest.approx(np.array(wanted))
