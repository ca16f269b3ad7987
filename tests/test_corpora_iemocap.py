"""The IEMOCAP parser on a hand-written miniature of the release, with every irregularity that the
release has.

And counts of a corpus against the published ones: each agrees with the others, each difference is
named.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ser.corpus.labels import IEMOCAP as KNOWN
from ser.corpus.manifest import Manifest
from ser.errors import WrongUse
from ser.extract.corpora.counts import compare_counts, count_all, summary
from ser.extract.corpora.demo import demo_vocabulary, dialogues, write_demo
from ser.extract.corpora.iemocap import DEMO_MARKER
from ser.extract.corpora.scan import Scan, scan_corpus

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"

EVALUATION = (
    HEADER
    + """\
[14.8872 - 18.0175]\tSes01F_impro01_M000\tfru\t[2.0000, 5.5000, 3.5000]
C-E2:\tFrustration;\t()
C-E3:\tFrustration; Anger;\t()
C-E4:\tAnger; Frustration;\t(is it; really?)
C-M1:\tAnger;\t()
A-E3:\tval 2; act 3; dom  3;\t()
A-E4:\tval 2; act 3; dom  ;\t()
A-M1:\tval 2; act 3; dom  2;\t()

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
C-E3:\tNeutral;\t()
C-E4:\tNeutral;\t()
C-F1:\tNeutral; Anger;\t()
A-E3:\tval 3; act 2; dom  2;\t()

[6.2901 - 8.2357]\tSes01F_impro01_F001\txxx\t[0.5000, 2.5000, 2.5000]
C-E2:\tNeutral; Anger;\t()
C-E3:\tAnger; Neutral;\t()
C-E4:\tSadness;\t()
C-F1:\tAnger;\t()

[6.2901 - 7.0000]\tSes01F_impro01_F002\thap\t[4.0000, 2.5000, 2.5000]
C-E1:\tHappiness;\t()
C-E2:\tHappiness; Excited;\t()
C-E4:\tOther;\t()
"""
)

TRANSCRIPTION = b"""\
Ses01F_impro01_F000 [006.2901-008.2358]: Excuse me.
Ses01F_impro01_M000 [014.8872-018.0175]: Do you\thave your "forms"; caf\xe9?
M: Yeah.
F:[BREATHING]
F : Okay.
Ses01F_impro01_FXX0 [019.0000-020.0000]: Not an utterance.
Ses01F_impro01_MXX1 [019.0000-020.0000]: Neither is this.
Ses01F_impro01_F002 [006.2901-007.0000]: [laughter]\r
Ses01F_impro01_F001 [006.2901-008.2357]: Let's: go [LAUGHTER].
"""


def write_wav(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(1600, 0.1), 16000)


def write_dialogue(root: Path, dialogue: str, evaluation: str, transcription: bytes) -> None:
    session = root / f"Session{int(dialogue[3:5])}"
    contents = {"EmoEvaluation": evaluation.encode(), "transcriptions": transcription}
    for name, content in contents.items():
        folder = session / "dialog" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{dialogue}.txt").write_bytes(content)
        (folder / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07Mac OS X")

    for line in evaluation.split("\n"):
        if line.startswith("["):
            id_ = line.split("\t")[1]
            write_wav(session / "sentences" / "wav" / dialogue / f"{id_}.wav")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Five sessions of two scripts each, and an improvisation in the first with what is odd."""
    root = tmp_path / "IEMOCAP_full_release"
    write_dialogue(root, "Ses01F_impro01", EVALUATION, TRANSCRIPTION)
    for number in range(1, 6):
        for scene in ("script01_1", "script01_1b"):
            dialogue = f"Ses{number:02d}M_{scene}"
            line = f"[1.0000 - 2.0000]\t{dialogue}_F000\tang\t[2.0000, 3.0000, 4.0000]\n"
            votes = "C-E2:\tAnger;\t()\nC-E4:\tAnger;\t()\nC-E6:\tNeutral;\t()\n"
            text = f"{dialogue}_F000 [001.0000-002.0000]: No from {scene}."
            write_dialogue(root, dialogue, HEADER + line + votes, text.encode())

    session = root / "Session1"
    write_wav(session / "sentences/wav/Ses01F_impro01/._Ses01F_impro01_F000.wav")
    write_wav(session / "sentences/wav/Ses01F_impro01/Ses01F_impro01_FXX0.wav")
    for folder in ("Categorical", "Attribute", "Self-evaluation"):
        rated = session / "dialog/EmoEvaluation" / folder / "Ses01F_impro01_e1_cat.txt"
        rated.parent.mkdir()
        rated.write_text(
            "Ses01F_impro01_F000 :Anger; ()\n[1 - 2]\tSes01F_impro01_F009\tang\t[1, 1, 1]\n"
        )
    return root


def rows(scan: Scan) -> dict[str, dict]:
    return {row["id"]: row for row in scan.manifest.table.to_pylist()}


def test_every_utterance_and_nothing_else(release: Path) -> None:
    scan = scan_corpus(release)

    assert scan.problems == []
    assert scan.format == "iemocap"
    assert scan.manifest.corpus == "iemocap"
    assert scan.manifest.synthetic is False
    assert len(scan.manifest) == 4 + 10
    for id_, row in rows(scan).items():
        assert row["audio"] == f"Session{id_[4]}/sentences/wav/{row['dialogue']}/{id_}.wav"
        assert (scan.root / row["audio"]).is_file()
        assert row["session"] == id_[4]
        # The speaker's letter is that of the turn, not id_[5].
        assert row["speaker"] == f"{id_[:5]}{id_[-4]}"


def test_a_row_is_what_the_release_says(release: Path) -> None:
    row = rows(scan_corpus(release))["Ses01F_impro01_M000"]

    assert row["speaker"] == "Ses01M"
    assert row["gender"] == "M"
    assert row["dialogue"] == "Ses01F_impro01"
    assert row["start"] == 14.8872
    assert row["end"] == 18.0175
    assert row["duration"] == 0.1
    # Outside the scale, and not clamped.
    assert row["valence"] == 2.0
    assert row["arousal"] == 5.5
    assert row["dominance"] == 3.5


LABELS = "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
TEXTS = "Session1/dialog/transcriptions/Ses01F_impro01.txt"
SCRIPT = "Session5/dialog/EmoEvaluation/Ses05M_script01_1.txt"
AUDIO = "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"


def test_votes_are_of_external_raters_with_all_their_categories(release: Path) -> None:
    by_id = rows(scan_corpus(release))

    assert by_id["Ses01F_impro01_M000"]["votes"] == [["fru"], ["fru", "ang"], ["ang", "fru"]]
    assert by_id["Ses01F_impro01_F002"]["votes"] == [["hap"], ["hap", "exc"], ["oth"]]


def test_turns_are_by_start_end_and_id(release: Path) -> None:
    turns = []
    for id_, row in rows(scan_corpus(release)).items():
        if "Ses01F_impro01" in id_:
            turns.append((row["turn"], id_[-4:]))

    assert sorted(turns) == [(0, "F002"), (1, "F000"), (2, "F001"), (3, "M000")]


def test_a_text_is_what_the_transcription_says(release: Path) -> None:
    texts = {}
    for id_, row in rows(scan_corpus(release)).items():
        if id_[4] in "15":
            texts[id_] = row["text"]

    assert texts == {
        "Ses01F_impro01_F000": "Excuse me.",
        "Ses01F_impro01_M000": 'Do you\thave your "forms"; café?',
        "Ses01F_impro01_F001": "Let's: go [LAUGHTER].",
        "Ses01F_impro01_F002": "[laughter]",
        "Ses01M_script01_1_F000": "No from script01_1.",
        "Ses01M_script01_1b_F000": "No from script01_1b.",
        "Ses05M_script01_1_F000": "No from script01_1.",
        "Ses05M_script01_1b_F000": "No from script01_1b.",
    }


F000 = "Ses01F_impro01_F000"
F001 = "Ses01F_impro01_F001"
F002 = "Ses01F_impro01_F002"
M000 = "Ses01F_impro01_M000"
OURS = "Ses05M_script01_1_F000"
OTHERS = "Ses05M_script01_1b_F000"
UNREADABLE = "line 19: not readable as [start - end], id, label, [V, A, D]: [6.2901"
UNLABELLED = "this utterance has no label line"
UNSPOKEN = "its transcript is missing"


@dataclass(frozen=True)
class Damage:
    """What is wrong with a file of the release, and what is said of it."""

    file: str
    kind: str
    problems: dict[str | None, str]
    """By id, how the reason begins; None of a whole file."""

    replaced: tuple[str, str] | None = None
    """A pattern, and what takes its place; None: the file is gone."""

    lost: frozenset[str] = frozenset()
    """Utterances that have no row."""


DAMAGES = {
    "no label line": Damage(
        LABELS, "corpus", {F001: UNLABELLED}, (r"\[.*_F001\txxx.*\n", ""), frozenset({F001})
    ),
    "a label line that cannot be read": Damage(
        LABELS,
        "corpus",
        {None: UNREADABLE, F001: UNLABELLED},
        (r"xxx\t.0.5000", "xxx\t[zero"),
        frozenset({F001}),
    ),
    "no line of a transcript": Damage(TEXTS, "text", {F000: UNSPOKEN}, (r".*_F000.*\n", "")),
    "no transcripts": Damage(TEXTS, "text", dict.fromkeys((M000, F000, F001, F002), UNSPOKEN)),
    "no labels of a dialogue": Damage(
        SCRIPT,
        "corpus",
        {None: "the labels of dialogue Ses05M_script01_1 are missing"},
        lost=frozenset({OURS}),
    ),
    "another dialogue's id": Damage(
        SCRIPT,
        "corpus",
        {
            OTHERS: "line 3: no utterance id of Ses05M_script01_1 in Session5",
            OURS: UNLABELLED,
        },
        (OURS, OTHERS),
        frozenset({OURS}),
    ),
    "no audio": Damage(AUDIO, "audio", {F000: "cannot be opened (No such file or directory)"}),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_whatever_is_wrong_is_named(release: Path, kind: str) -> None:
    damage = DAMAGES[kind]
    whole = rows(scan_corpus(release))
    path = release / damage.file
    if damage.replaced is None:
        path.unlink()
    else:
        pattern, replacement = damage.replaced
        path.write_text(re.sub(pattern, replacement, path.read_text("latin-1")), "latin-1")

    scan = scan_corpus(release)

    assert [problem.id for problem in scan.problems] == list(damage.problems)
    for problem in scan.problems:
        assert problem.path == damage.file
        assert problem.kind == damage.kind
        assert problem.reason.startswith(damage.problems[problem.id])
    assert scan.refused == (scan.problems if damage.kind == "corpus" else [])

    by_id = rows(scan)
    assert by_id.keys() == whole.keys() - damage.lost
    # What cannot be used keeps its row, without a digest.
    for modality in ("audio", "text"):
        unusable = set(scan.unusable(modality))
        assert unusable == (set(damage.problems) if damage.kind == modality else set())
        for id_ in unusable:
            assert by_id[id_][f"{modality}_sha256"] is None
    assert by_id[OTHERS] == whole[OTHERS]
    assert by_id[F000]["votes"] == whole[F000]["votes"]


def test_a_missing_session_is_named(release: Path) -> None:
    (release / "Session3").rename(release / "elsewhere")

    scan = scan_corpus(release)

    [problem] = scan.problems
    assert str(problem) == "Session3: Session3 is missing from this copy of the corpus"
    assert scan.refused == scan.problems
    assert "sessions: 3: 0 here, 2136 in the release (-2136)" in summary(scan)["differences"]


def test_what_is_not_a_release_is_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=f"give {release}$"):
        scan_corpus(release.parent)

    fault = "read as iemocap; first problem: Session1: Session1 is missing"
    with pytest.raises(WrongUse, match=fault):
        scan_corpus(tmp_path, format="iemocap")

    (release / "ser-demo.json").write_text("{")
    assert scan_corpus(release).manifest.synthetic


# Published counts
# ------------------------------------------------------------

POINTS = KNOWN["durations"]
FOUR = ("ang", "hap", "exc", "neu", "sad")


def repeated(counts: dict[str, int]) -> list[str]:
    """Each label as often as it is counted."""
    labels = []
    for label, count in counts.items():
        labels += [label] * count
    return labels


def rows_of_the_release() -> list[dict[str, Any]]:
    """Labels by session, as in the release; every other utterance is scripted and lasts 2 s, the
    others 1 s.
    """
    happy = KNOWN["labels"]["hap"]
    no_class = ("xxx", "fru", "sur", "fea", "oth", "dis")
    rest = repeated({label: KNOWN["labels"][label] for label in no_class})

    rows = []
    for session, size in KNOWN["sessions"].items():
        labels = repeated(KNOWN["4class per session"][session])
        while len(labels) < size:
            labels.append(rest.pop())
        for number, label in enumerate(labels):
            # Of the happy, some are called so, and the others excited.
            if label == "hap":
                label = "hap" if happy > 0 else "exc"
                happy -= 1
            scripted = number % 2
            row = {
                "id": f"{session}-{number}",
                "session": session,
                "speaker": f"{session}{'FM'[number % 2]}",
                "dialogue": f"{session}_{'script01' if scripted else 'impro01'}",
                "label": label,
                "duration": 1.0 + scripted,
            }
            rows.append(row)
    return rows


def test_as_many_of_each_kind_are_counted_as_were_published() -> None:
    rows = rows_of_the_release()

    counts = count_all(Manifest.from_rows("iemocap", rows))

    for name in ("utterances", "speakers", "sessions", "labels", "policies", "4class per session"):
        assert counts[name] == KNOWN[name], name
    sizes = KNOWN["sessions"].values()
    assert counts["scripted"] == sum(size // 2 for size in sizes)
    assert counts["improvised"] == 10039 - counts["scripted"]
    assert counts["dialogues"] == 10
    assert counts["utterances per dialogue"] == {
        "fewest": min(sizes) // 2,
        "most": (max(sizes) + 1) // 2,
    }
    assert counts["hours"] == (10039 + counts["scripted"]) / 3600
    of_four = sum(row["duration"] for row in rows if row["label"] in FOUR)
    assert counts["4class hours"] == of_four / 3600


def test_the_published_counts_agree_with_each_other() -> None:
    sessions = [sum(classes.values()) for classes in KNOWN["4class per session"].values()]

    assert sessions == [1085, 1023, 1151, 1031, 1241]
    assert sum(KNOWN["genders"].values()) == KNOWN["utterances"]
    assert KNOWN["improvised"] + KNOWN["scripted"] == KNOWN["utterances"]
    assert KNOWN["utterances"] == 10039


MOVED = {**KNOWN["4class per session"], "3": {"ang": 240, "hap": 286, "neu": 321, "sad": 304}}


DIFFERENCES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "none": ({}, []),
    "a dialogue fewer": ({"dialogues": 150}, ["dialogues: 150 here, 151 in the release (-1)"]),
    "less time": ({"hours": 12.40}, ["hours: 12.4 here, 12.44 in the release (-0.04)"]),
    "another label": (
        {"labels": {**KNOWN["labels"], "bor": 1}},
        ["labels: bor: 1 here, 0 in the release (+1)"],
    ),
    "a shorter longest one": (
        {"durations": {**POINTS, "max": 34.10}},
        ["durations: max: 34.1 here, 34.14 in the release (-0.04)"],
    ),
    "a sad one that is neutral": (
        {"4class per session": MOVED},
        [
            "4class per session: 3: neu: 321 here, 320 in the release (+1)",
            "4class per session: 3: sad: 304 here, 305 in the release (-1)",
        ],
    ),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_each_difference_is_named(kind: str) -> None:
    changes, sentences = DIFFERENCES[kind]

    assert compare_counts({**KNOWN, **changes}) == sentences


# The demo corpus, in the same layout
# ----------------------------------------------------------------------------------


def digests(root: Path) -> dict[str, str]:
    """The sha256 of each file under a folder."""
    by_name = {}
    for path in root.rglob("*"):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            by_name[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return by_name


@pytest.fixture(scope="module")
def scan(demo_corpus: Path) -> Scan:
    return scan_corpus(demo_corpus)


def test_the_demo_is_the_same_bytes_each_time(
    demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over itself too; of the first scene of each session."""
    monkeypatch.setattr(dialogues, "ARCS", {"impro01": dialogues.ARCS["impro01"]})
    write_demo(tmp_path)
    next(tmp_path.rglob("*.wav")).write_bytes(b"cut short")

    write_demo(tmp_path)

    assert digests(tmp_path).items() <= digests(demo_corpus).items()
    assert len(list(tmp_path.glob("Session*/sentences/wav/*"))) == 5


def test_the_demo_leaves_a_folder_with_something_else_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / DEMO_MARKER).write_text('{"synthetic": true, "version": 0, "seed": 0}')

    for folder in (tmp_path, tmp_path / "thesis.txt", tmp_path / "older"):
        with pytest.raises(WrongUse, match="is not the demo corpus of this ser"):
            write_demo(folder)

    assert len(list(tmp_path.rglob("*"))) == 3


def test_the_demo_has_its_counts(scan: Scan) -> None:
    assert scan.format == "iemocap"
    assert scan.manifest.corpus == "demo"
    assert scan.manifest.synthetic is True
    assert scan.problems == []
    assert summary(scan)["differences"] == []

    counts = count_all(scan.manifest)
    assert counts["utterances"] >= 300
    assert counts["dialogues"] >= 20
    assert counts["speakers"] == 10
    assert list(counts["sessions"]) == ["1", "2", "3", "4", "5"]
    assert set(counts["labels"]) == set(KNOWN["labels"])
    for classes in counts["4class per session"].values():
        assert min(classes.values()) >= 5
    assert counts["hours"] <= 0.25
    assert 0.6 <= counts["durations"]["min"] <= 0.8
    assert 6 <= counts["durations"]["max"] <= 8


def test_the_demo_is_clean_speech_at_16_khz(demo_corpus: Path, scan: Scan) -> None:
    for row in scan.manifest.table.to_pylist():
        samples, rate = soundfile.read(demo_corpus / row["audio"], dtype="float32")
        assert (rate, samples.ndim) == (16000, 1)
        assert soundfile.info(demo_corpus / row["audio"]).subtype == "PCM_16"
        assert abs(len(samples) / rate - (row["end"] - row["start"])) < 2e-4
        assert np.sqrt(np.mean(samples**2)) > 0.005
        assert np.abs(samples).max() < 0.99


def test_the_demo_has_the_irregular_lines(demo_corpus: Path, scan: Scan) -> None:
    paths = sorted(demo_corpus.rglob("transcriptions/Ses*.txt"))
    transcripts = b"".join(path.read_bytes() for path in paths)
    for line in (
        rb"_FXX0 \[",
        rb"_MXX1 \[",
        rb"\nM: ",
        rb"\nF:\[",
        rb"\nF : ",
        rb"\[laughter\]",
        rb": \[\w+\]\n",
        rb"caf\xe9",
    ):
        assert re.search(line, transcripts), line

    paths = sorted(demo_corpus.rglob("EmoEvaluation/Ses*.txt"))
    evaluations = "".join(path.read_text() for path in paths)
    for line in (r"C-E2:\t\w+; \w+;", r"dom  \d;", r"dom  ;", r"C-F1:", r"\[5\.5000, "):
        assert re.search(line, evaluations), line

    assert len(list(demo_corpus.rglob("._*"))) == 75
    texts = scan.manifest.column("text")
    for part in ("\t", ";", '"', "é"):
        assert any(part in text for text in texts), part
    scenes = {"Ses05M_script01_1", "Ses05M_script01_1b", "Ses03M_impro05a"}
    assert scenes <= set(scan.manifest.column("dialogue"))

    # Whether the dialogue's letter is the speaker's.
    prefixes = [id_[5] == id_.rpartition("_")[2][0] for id_ in scan.manifest.ids]
    assert 0.3 < np.mean(prefixes) < 0.7


def test_the_demo_drifts_along_a_dialogue(scan: Scan) -> None:
    rows = scan.manifest.table.to_pylist()

    early = np.mean([row["label"] == "neu" for row in rows if row["turn"] < 4])
    late = np.mean([row["label"] == "neu" for row in rows if row["turn"] > 8])
    assert early > 2 * late


def test_the_demos_vocabulary_covers_it(scan: Scan) -> None:
    words = set(demo_vocabulary())

    assert len(words) < 300
    for text in scan.manifest.column("text"):
        assert set(re.findall(r"\w+|[^\w\s]", text.lower())) <= words


def test_the_demo_drifts_along_a_dialogue_and_its_vocabulary_covers_it(scan: Scan) -> None:
    rows, words = scan.manifest.table.to_pylist(), set(demo_vocabulary())
    early = np.mean([r["label"] == "neu" for r in rows if r["turn"] < 4])
    assert early > 2 * np.mean([r["label"] == "neu" for r in rows if r["turn"] > 8])
    assert (
        all(set(re.findall(r"\w+|[^\w\s]", row["text"].lower())) <= words for row in rows)
        and len(words) < 300
    )
