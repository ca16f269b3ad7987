"""Protocols: what stands in which part, and a guard that lets nothing through."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from ser.corpus.manifest import Manifest
from ser.errors import LeakageError, WrongUse
from ser.tests.tiny_store import make_manifest
from ser.train.data.dev_part import Cut
from ser.train.data.folds import Fold
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import get_policy
from ser.train.data.leakage import alike_in_words, check_leakage, known_before
from ser.train.data.protocols import PROTOCOLS, find_protocol, make_folds
from ser.train.data.utterances import Utterances


@pytest.fixture(scope="module")
def utterances() -> Utterances:
    return apply_policy(get_policy("4class"), make_manifest(turns=24))


def alone(n: int = 40, speakers: int = 4) -> Utterances:
    """Read sentences: no sessions, and no dialogue joins two utterances."""
    return Utterances(
        ids=[f"u{i}" for i in range(n)],
        labels=np.arange(n) % 2,
        classes=("ang", "neu"),
        sessions=[None] * n,
        speakers=[f"{i % speakers:02d}" for i in range(n)],
        dialogues=np.arange(n),
        turns=np.zeros(n, dtype=np.int64),
    )


def values(column, rows) -> set:
    return {column[row] for row in rows}


def test_session_out_tests_each_session_once(utterances: Utterances) -> None:
    folds = make_folds("session-out", utterances, Cut("next"))
    assert [fold.name for fold in folds] == [f"session {s}" for s in "12345"]
    for fold, test, dev in zip(folds, "12345", "23451", strict=True):
        assert values(utterances.sessions, fold.test) == {test}
        assert values(utterances.sessions, fold.dev) == {dev}
        assert values(utterances.sessions, fold.train) == set("12345") - {test, dev}
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == list(range(len(utterances)))
    (last,) = make_folds("train1234-test5", utterances, Cut("none"))
    assert np.array_equal(last.test, folds[-1].test) and not len(last.dev)
    assert values(utterances.sessions, last.train) == set("1234")


def test_folds_have_one_order_whatever_the_hash_seed() -> None:
    # All count as 1, or as 2.
    names = [f"{'0' * zeros}{n}" for n in (1, 2) for zeros in range(6, -1, -1)]
    folds = make_folds("speaker-out", replace(alone(56), speakers=names * 4))
    assert [fold.name for fold in folds] == [f"speaker {name}" for name in names]


def test_a_dev_share_is_cut_in_whole_dialogues_of_the_training_part(utterances: Utterances) -> None:
    quarters = make_folds("session-out", utterances, Cut(dev="0.25"))
    tenths = make_folds("session-out", utterances)
    for fold in quarters + tenths:
        assert fold.dev_by in ("0.25 in whole dialogues", "0.1 in whole dialogues")
        dialogues = [
            values(utterances.dialogues, rows) for rows in (fold.train, fold.dev, fold.test)
        ]
        assert not dialogues[0] & dialogues[1] and not dialogues[1] & dialogues[2]
        assert 0.1 < len(fold.dev) / (len(fold.dev) + len(fold.train)) < 0.4
        assert len(values(utterances.sessions, fold.test)) == 1

    half = make_folds("session-out", utterances, Cut(dev="0.4"))[0]
    assert half.dev_by == "0.5 in whole dialogues"


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_a_dev_share_is_that_of_scikit_learn_row_by_row() -> None:
    """It is hashed into the names of runs, so it must stay what it was."""
    rng = np.random.default_rng(0)
    for trial in range(20):
        n = int(rng.integers(60, 400))
        classes = int(rng.integers(2, 11))
        labels = rng.integers(0, classes, n)
        groups = rng.integers(0, n // int(rng.integers(2, 9)), n)
        sessions = [str(group % 3) for group in groups]
        made = replace(
            alone(n), labels=labels, dialogues=groups, sessions=sessions, speakers=sessions
        )
        for fold in make_folds("session-out", made, Cut("0.2", trial)):
            rest = np.union1d(fold.train, fold.dev)
            theirs = StratifiedGroupKFold(5, shuffle=True, random_state=trial)
            first = next(
                dev for _, dev in theirs.split(rest, labels[rest], groups[rest]) if len(dev)
            )
            assert fold.dev.tolist() == rest[first].tolist()


def test_speaker_out_leaves_out_who_shares_dialogues_with_the_test_speaker(
    utterances: Utterances,
) -> None:
    folds = make_folds("speaker-out", utterances, Cut("next"))
    assert len(folds) == 10
    for fold in folds:
        (speaker,) = values(utterances.speakers, fold.test)
        partner = speaker[0] + {"F": "M", "M": "F"}[speaker[1]]
        following = str(int(speaker[0]) % 5 + 1)
        assert values(utterances.speakers, fold.dev) == {following + "F", following + "M"}
        ((why, left_out),) = fold.left_out.items()
        assert speaker in why and values(utterances.speakers, left_out) == {partner}
        assert len(fold.train) + len(fold.dev) + len(fold.test) + len(left_out) == len(utterances)


def test_speaker_out_without_dialogues_is_plain() -> None:
    folds = make_folds("speaker-out", alone())
    assert [fold.name for fold in folds] == ["speaker 00", "speaker 01", "speaker 02", "speaker 03"]
    assert not folds[0].left_out
    # One of three speakers is more than a tenth, and no less can be cut.
    for fold in folds:
        assert [len(rows) for rows in fold.parts.values()] == [20, 10, 10]
        assert len(values(alone().speakers, fold.dev)) == 1
        assert fold.dev_by == "0.1 in whole speakers"

    nobody = replace(alone(), speakers=[None] * 40, sessions=["1"] * 20 + ["2"] * 20)
    fold = make_folds("session-out", nobody)[0]
    assert len(fold.dev) == 2
    assert fold.dev_by == "0.1 in single utterances (no dialogues or speakers known)"
    known = known_before(fold, nobody)
    assert known == {
        "speakers": None,
        "speaker_independent": False,
        "repeated_texts": None,
        "repeated_audio": None,
        "alike_speakers": {},
    }


def scenes(*names: str) -> Utterances:
    """IEMOCAP's dialogues of those names, of six labelled turns each, in all five sessions.

    Scripts are in equal words in each session.
    """
    rows = []
    for session, name, turn in product("12345", names, range(6)):
        dialogue = f"Ses0{session}F_{name}"
        gender = "FM"[turn % 2]
        text = f"{session} {name} {turn}"
        if name.startswith("script"):
            text = f"Line, {turn} of {name[:8]}!"
        rows.append(
            {
                "id": f"{dialogue}_{gender}{turn:03d}",
                "label": ("ang", "neu", "sad")[turn % 3],
                "text": text,
                "session": session,
                "dialogue": dialogue,
                "turn": turn,
                "speaker": session + gender,
            }
        )
    return apply_policy(get_policy("4class"), Manifest.from_rows("scenes", rows))


@pytest.mark.parametrize("dev", ["auto", "none", "next"])
def test_script_out_holds_out_a_session_and_a_script(dev: str) -> None:
    acted = scenes("impro01", "script01_1", "script01_1b", "script02_2")
    folds = make_folds("script-out", acted, Cut(dev))
    assert [fold.name for fold in folds] == [
        f"session {s} script {k}" for s in "12345" for k in ("01", "02")
    ]
    for fold in folds:
        train, dev_part, test = ([acted.ids[row] for row in rows] for rows in fold.parts.values())
        session, script = fold.name[8], f"script{fold.name[-2:]}"
        assert test == [i for i in acted.ids if i[4] == session and script in i]
        assert not [i for i in train + dev_part if i[4] == session or script in i]
        assert len(train + dev_part + test) + sum(map(len, fold.left_out.values())) == len(acted)
        assert known_before(fold, acted)["repeated_texts"] == 0
        if dev == "next":
            # By the same rule: another session, the other script.
            [dev_session] = {i[4] for i in dev_part}
            assert all("script" in i for i in dev_part)
            assert {i[7:12] for i in train} == {"impro"}
            assert not [i for i in train if i[4] == dev_session]
        else:
            assert len([i for i in train + dev_part if "impro" in i]) == 4 * 6

    # Of 24 transcripts in all, the improvised six occur once.
    by_session = make_folds("session-out", acted)[0]
    assert known_before(by_session, acted)["repeated_texts"] == 18
    assert len(make_folds("script-out", scenes("impro01", "script01_1"))) == 5
    with pytest.raises(WrongUse, match="has no script in IEMOCAP's ids"):
        make_folds("script-out", scenes("impro01"))


def test_script_out_takes_recurring_transcripts_where_no_script_is_named() -> None:
    texts = ["abcd"[row // 4 % 4] if row < 36 else f"{row}" for row in range(40)]
    read = replace(alone(), sessions=alone().speakers, texts=texts)
    folds = make_folds("script-out", read)
    assert len(folds) == 4 * 3
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(36))
    for fold in folds:
        trained = np.append(fold.train, fold.dev)
        for column in (read.texts, read.speakers):
            assert not values(column, fold.test) & values(column, trained)


def test_random_split_is_stratified_and_seeded(utterances: Utterances) -> None:
    (fold,) = make_folds("random-70-20-10", utterances)
    n = len(utterances)
    assert [len(rows) / n for rows in fold.parts.values()] == pytest.approx(
        [0.7, 0.2, 0.1], abs=0.01
    )
    for rows in fold.parts.values():
        shares = np.bincount(utterances.labels[rows]) / len(rows)
        assert shares == pytest.approx(np.bincount(utterances.labels) / n, abs=0.06)

    [again] = make_folds("random-70-20-10", utterances, Cut(seed=0))
    [other] = make_folds("random-70-20-10", utterances, Cut(seed=1))
    assert again.test.tolist() == fold.test.tolist() != other.test.tolist()
    assert all(known_before(fold, utterances)["speakers"].values())
    known = known_before(make_folds("session-out", utterances)[0], utterances)
    assert known == {
        "speakers": {"1F": False, "1M": False},
        "speaker_independent": True,
        "repeated_texts": 0,
        "repeated_audio": 0,
        "alike_speakers": {},
    }


@pytest.mark.parametrize(
    ("protocol", "dev", "says"),
    [
        ("sessions-out", "auto", "did you mean session-out"),
        ("session-out:x", "auto", "session-out:x"),
        ("speaker-out", "some", "auto, next, none, or a share"),
        ("speaker-out", "0.9", r"at most 0\.5"),
        # The utterances name no session.
        ("session-out", "auto", "--protocol speaker-out"),
        ("train1234-test5", "auto", "--protocol speaker-out"),
        ("script-out", "auto", "--protocol speaker-out"),
    ],
)
def test_wrong_words_and_corpora(protocol: str, dev: str, says: str) -> None:
    with pytest.raises(WrongUse, match=says):
        make_folds(protocol, alone(), Cut(dev))


@pytest.mark.parametrize("name", [*PROTOCOLS, "cross:a:b", "folds:folds.csv"])
def test_a_protocol_says_in_a_whole_line_how_it_cuts(name: str) -> None:
    """A report prints it with what follows behind a semicolon."""
    protocol = find_protocol(name)
    assert protocol is not None
    assert protocol.summary[-1] not in " .,;(" and "\n" not in protocol.summary
    assert protocol.summary.count("(") == protocol.summary.count(")")


def test_guard_finds_what_stands_in_two_parts(utterances: Utterances) -> None:
    fold = make_folds("session-out", utterances)[0]
    dialogues = utterances.dialogues
    a = np.flatnonzero(dialogues == 0)
    b = np.flatnonzero(dialogues == 1)
    rest = np.flatnonzero(dialogues > 3)
    twice = replace(fold, train=np.append(fold.train, fold.test[0]))
    for wrong, apart, says in (
        (twice, (), r"1 utterance\(s\) stand in both train and test"),
        (
            Fold("bad", rest, a[:3], a[3:]),
            ("dialogue",),
            r"dialogue\(s\) stand in both dev and test",
        ),
        (
            Fold("bad", b, rest, a),
            ("dialogue", "speaker"),
            r"speaker\(s\) stand in both train and test",
        ),
        (Fold("bad", b, a, rest), ("speaker",), r"speaker\(s\) stand in both train and dev"),
    ):
        with pytest.raises(LeakageError, match=says):
            check_leakage(wrong, utterances, apart)
    check_leakage(Fold("good", b, rest, a), utterances, ("dialogue",))
    check_leakage(Fold("share", b, a, rest), utterances, ("speaker",), shared_dev=True)
    # The same id under two rows.
    alike = replace(alone(), ids=["u39", *alone().ids[1:]])
    with pytest.raises(LeakageError, match="u39"):
        check_leakage(Fold("bad", np.array([0, 1]), np.array([2]), np.array([39])), alike, ())


def test_speakers_that_differ_by_case_or_zeros_are_said() -> None:
    names = [*["anna", "ben", "01"] * 10, *["Anna", "eve", "1"] * 10]
    utterances = replace(alone(60), speakers=names, sessions=["1"] * 30 + ["2"] * 30)
    folds = make_folds("session-out", utterances)

    # Either way round; what stands apart in the test part itself is no leak.
    assert known_before(folds[0], utterances)["alike_speakers"] == {"01": "1", "anna": "Anna"}
    assert known_before(folds[1], utterances)["alike_speakers"] == {"1": "01", "Anna": "anna"}
    together = replace(utterances, speakers=["anna"] * 15 + ["Anna"] * 15 + ["ben"] * 30)
    for fold in make_folds("session-out", together):
        assert known_before(fold, together)["alike_speakers"] == {}

    words = alike_in_words({"1": "01", "Anna": "anna"})
    assert words.startswith("2 test speakers are spelled as ones in training but for case or zeros")
    assert alike_in_words({}) == ""


# Folds from files.


def test_folds_of_a_table(tmp_path: Path, utterances: Utterances) -> None:
    file = tmp_path / "folds.csv"
    lines = [f"{i},{s}" for i, s in zip(utterances.ids, utterances.sessions, strict=True)]
    # One of them stands there twice, which counts once.
    file.write_text("\n".join(["id,fold", *lines, lines[0]]))
    for dev in ("auto", "next", "none"):
        ours = make_folds("session-out", utterances, Cut(dev))
        theirs = make_folds(f"folds:{file}", utterances, Cut(dev))
        for one, other in zip(ours, theirs, strict=True):
            assert all(np.array_equal(rows, other.parts[part]) for part, rows in one.parts.items())
            assert one.dev_by == other.dev_by


def test_folds_with_named_parts_and_what_they_leave_out(
    tmp_path: Path, utterances: Utterances
) -> None:
    a, b, c, d = utterances.ids[:4]
    file = tmp_path / "folds.tsv"
    twice = f"{c}\t1\ttest\n{a}\t1\ttrain\n"
    file.write_text(
        f"id\tfold\tpart\n{a}\t1\ttrain\n{b}\t1\tdev\n{c}\t1\ttest\n{d}\t1\ttest\n{twice}"
    )
    (fold,) = make_folds(f"folds:{file}", utterances)
    assert [rows.tolist() for rows in fold.parts.values()] == [[0], [1], [2, 3]]
    assert fold.dev_by == "named by folds.tsv"
    assert [len(rows) for rows in fold.left_out.values()] == [len(utterances) - 4]
    file.write_text(f"id\tfold\tpart\n{a}\t1\ttrain\n{a}\t1\ttest\n{b}\t1\tdev\n")
    with pytest.raises(LeakageError, match="utterance"):
        make_folds(f"folds:{file}", utterances)


def test_emobox_folds(tmp_path: Path, utterances: Utterances) -> None:
    for number in (1, 2, 3):
        folder = tmp_path / f"fold_{number}"
        folder.mkdir()
        for part in ("train", "test"):
            chosen = [i for i in range(30) if (i % 3 == number - 1) == (part == "test")]
            lines = [
                f'{{"key": "{utterances.ids[i]}", "wav": "x.wav", "text": "a\u2028line"}}'
                for i in chosen
            ]
            (folder / f"tiny_{part}_fold_{number}.jsonl").write_text(
                "\n".join(lines), encoding="utf-8"
            )
    folds = make_folds(f"folds:{tmp_path}", utterances, Cut("next"))
    assert [fold.name for fold in folds] == ["fold 1", "fold 2", "fold 3"]
    assert folds[0].test.tolist() == list(range(0, 30, 3))
    assert folds[0].dev.tolist() == list(range(1, 30, 3))


def test_fold_files_that_are_none(tmp_path: Path, utterances: Utterances) -> None:
    for name, content, says in [
        ("a.csv", "name\nx\n", "columns id and fold"),
        ("c.csv", 'id,fold\n"x', "not a list of folds"),
        ("a.json", "", "is no file of folds; give a .csv"),
        ("b.csv", "id,fold\nstranger,1\n", "tests no labelled utterance"),
        ("d.csv", "id,fold\na,1\nb,\n", "b names no fold"),
        ("e.csv", "id,fold\na,1\nb\n", "line 3 has 1 columns where the header has 2"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(WrongUse, match=says):
            make_folds(f"folds:{tmp_path / name}", utterances)
    with pytest.raises(WrongUse, match="no such file"):
        make_folds("folds:missing.csv", utterances)
