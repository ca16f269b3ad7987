"""The IEMOCAP parser on a hand-written miniature of the release, with every irregularity that the
release has.

And counts of a corpus against the published ones: each agrees with the others, each difference is
named.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser.corpus.labels import IEMOCAP as KNOWN
from ser.corpus.manifest import Manifest
from ser.errors import WrongUse
from ser.extract.corpora.counts import compare, count_all, summary
from ser.extract.corpora.demo import demo_vocabulary, dialogues, write_demo
from ser.extract.corpora.iemocap import DEMO_MARKER
from ser.extract.corpora.scan import Scan, read_corpus

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
    for name, content in (
        ("EmoEvaluation", evaluation.encode()),
        ("transcriptions", transcription),
    ):
        folder = session / "dialog" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{dialogue}.txt").write_bytes(content)
        (folder / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    for line in evaluation.split("\n"):
        if line.startswith("["):
            write_wav(session / "sentences" / "wav" / dialogue / f"{line.split(chr(9))[1]}.wav")


@pytest.fixture
def release(tmp_path: Path) -> Path:
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
    scan = read_corpus(release)
    assert scan.problems == []
    assert (scan.format, scan.manifest.corpus, scan.manifest.synthetic) == (
        "iemocap",
        "iemocap",
        False,
    )
    assert len(scan.manifest) == 4 + 10
    for id, row in rows(scan).items():
        assert row["audio"] == f"Session{id[4]}/sentences/wav/{row['dialogue']}/{id}.wav"
        assert (scan.root / row["audio"]).is_file()
        assert (row["session"], row["speaker"]) == (id[4], f"{id[:5]}{id[-4]}")  # not id[5]


def test_a_row_is_what_the_release_says(release: Path) -> None:
    found = rows(read_corpus(release))
    row = found["Ses01F_impro01_M000"]
    assert (row["speaker"], row["gender"], row["dialogue"]) == ("Ses01M", "M", "Ses01F_impro01")
    assert (row["valence"], row["arousal"], row["dominance"]) == (
        2.0,
        5.5,
        3.5,
    )  # outside the scale, and not clamped
    assert (row["start"], row["end"], row["duration"]) == (14.8872, 18.0175, 0.1)
    assert row["votes"] == [
        ["fru"],
        ["fru", "ang"],
        ["ang", "fru"],
    ]  # of external raters, with all their categories
    assert found["Ses01F_impro01_F002"]["votes"] == [["hap"], ["hap", "exc"], ["oth"]]
    turns = sorted((row["turn"], id[-4:]) for id, row in found.items() if "Ses01F_impro01" in id)
    assert turns == [(0, "F002"), (1, "F000"), (2, "F001"), (3, "M000")]  # by start, end and id
    assert {id: row["text"] for id, row in found.items() if id[4] in "15"} == {
        "Ses01F_impro01_F000": "Excuse me.",
        "Ses01F_impro01_M000": 'Do you\thave your "forms"; café?',
        "Ses01F_impro01_F001": "Let's: go [LAUGHTER].",
        "Ses01F_impro01_F002": "[laughter]",
        **{
            f"Ses0{n}M_{s}_F000": f"No from {s}."
            for n in (1, 5)
            for s in ("script01_1", "script01_1b")
        },
    }


LABELS = "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
TEXTS = "Session1/dialog/transcriptions/Ses01F_impro01.txt"
SCRIPT = "Session5/dialog/EmoEvaluation/Ses05M_script01_1.txt"
AUDIO = "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
F000, F001, F002, M000 = (f"Ses01F_impro01_{turn}" for turn in ("F000", "F001", "F002", "M000"))
OURS, OTHERS = "Ses05M_script01_1_F000", "Ses05M_script01_1b_F000"
UNREADABLE = "line 19: not readable as [start - end], id, label, [V, A, D]: [6.2901"
UNLABELLED, UNSPOKEN = "this utterance has no label line", "its transcript is missing"


@pytest.mark.parametrize(
    ("file", "damage", "kind", "problems"),
    [
        (LABELS, (r"\[.*_F001\txxx.*\n", ""), "corpus", {F001: UNLABELLED}),
        (LABELS, (r"xxx\t.0.5000", "xxx\t[zero"), "corpus", {None: UNREADABLE, F001: UNLABELLED}),
        (TEXTS, (r".*_F000.*\n", ""), "text", {F000: UNSPOKEN}),
        (TEXTS, None, "text", dict.fromkeys((M000, F000, F001, F002), UNSPOKEN)),
        (SCRIPT, None, "corpus", {None: "the labels of dialogue Ses05M_script01_1 are missing"}),
        (
            *(SCRIPT, (OURS, OTHERS), "corpus"),
            {OTHERS: "line 3: no utterance id of Ses05M_script01_1 in Session5", OURS: UNLABELLED},
        ),
        (AUDIO, None, "audio", {F000: "cannot be opened (No such file or directory)"}),
    ],
)
def test_whatever_is_wrong_is_named(
    release: Path,
    file: str,
    damage: tuple[str, str] | None,
    kind: str,
    problems: dict[str | None, str],
) -> None:
    whole = rows(read_corpus(release))
    if damage is None:
        (release / file).unlink()
    else:
        content = (release / file).read_text("latin-1")
        (release / file).write_text(re.sub(*damage, content), "latin-1")
    scan = read_corpus(release)
    assert [(p.id, p.path, p.kind) for p in scan.problems] == [(id, file, kind) for id in problems]
    assert all(p.reason.startswith(problems[p.id]) for p in scan.problems)
    found = rows(scan)
    assert scan.refused == (scan.problems if kind == "corpus" else [])
    lost = {F001, OURS} & problems.keys() or {OURS} if kind == "corpus" else set()
    assert found.keys() == whole.keys() - lost
    for modality in ("audio", "text"):  # what cannot be used keeps its row, without a digest
        unusable = scan.unusable(modality)
        assert set(unusable) == (set(problems) if kind == modality else set())
        assert all(found[id][f"{modality}_sha256"] is None for id in unusable)
    assert found[OTHERS] == whole[OTHERS] and found[F000]["votes"] == whole[F000]["votes"]


def test_a_missing_session_is_named(release: Path) -> None:
    (release / "Session3").rename(release / "elsewhere")
    scan = read_corpus(release)
    assert [str(p) for p in scan.problems] == [
        "Session3: Session3 is missing from this copy of the corpus"
    ]
    assert scan.refused == scan.problems
    assert "sessions: 3: 0 here, 2136 in the release (-2136)" in summary(scan)["differences"]


def test_what_is_not_a_release_is_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=f"give {release}$"):
        read_corpus(release.parent)
    with pytest.raises(
        WrongUse, match="read as iemocap; first problem: Session1: Session1 is missing"
    ):
        read_corpus(tmp_path, format="iemocap")
    (release / "ser-demo.json").write_text("{")
    assert read_corpus(release).manifest.synthetic


# Published counts
# -----------------------------------------------------------------------------------------------------

POINTS = KNOWN["durations"]
FOUR = ("ang", "hap", "exc", "neu", "sad")


def test_as_many_of_each_kind_are_counted_as_were_published() -> None:
    """Labels by session, as in the release; every other utterance is scripted and lasts 2 s, the
    others 1 s.
    """
    happy = KNOWN["labels"]["hap"]
    rest = [
        label
        for label in ("xxx", "fru", "sur", "fea", "oth", "dis")
        for _ in range(KNOWN["labels"][label])
    ]
    rows = []
    for session, size in KNOWN["sessions"].items():
        labels = [
            label
            for label, count in KNOWN["4class per session"][session].items()
            for _ in range(count)
        ]
        labels += [rest.pop() for _ in range(size - len(labels))]
        for number, label in enumerate(
            labels
        ):  # of the happy, some are called so, and the others excited
            excited = label == "hap" and happy <= 0
            happy -= label == "hap"
            speaker, scene = f"{session}{'FM'[number % 2]}", ("impro01", "script01")[number % 2]
            row = {"id": f"{session}-{number}", "session": session, "speaker": speaker}
            row |= {"dialogue": f"{session}_{scene}", "label": "exc" if excited else label}
            rows.append({**row, "duration": 1.0 + number % 2})
    found = count_all(Manifest.from_rows("iemocap", rows))
    for name in ("utterances", "speakers", "sessions", "labels", "policies", "4class per session"):
        assert found[name] == KNOWN[name], name
    sizes = KNOWN["sessions"].values()
    assert found["scripted"] == sum(size // 2 for size in sizes) == 10039 - found["improvised"]
    assert found["utterances per dialogue"] == {
        "fewest": min(sizes) // 2,
        "most": (max(sizes) + 1) // 2,
    }
    assert found["hours"] == (10039 + found["scripted"]) / 3600 and found["dialogues"] == 10
    assert (
        found["4class hours"] == sum(row["duration"] for row in rows if row["label"] in FOUR) / 3600
    )
    sessions = [sum(classes.values()) for classes in KNOWN["4class per session"].values()]
    assert (
        sessions == [1085, 1023, 1151, 1031, 1241]
        and sum(KNOWN["genders"].values()) == KNOWN["utterances"]
    )
    assert KNOWN["improvised"] + KNOWN["scripted"] == KNOWN["utterances"] == 10039


def test_each_difference_is_named() -> None:
    labels, table = KNOWN["labels"], KNOWN["4class per session"]
    moved = {**table, "3": {"ang": 240, "hap": 286, "neu": 321, "sad": 304}}
    neutral, sad = (
        "3: neu: 321 here, 320 in the release (+1)",
        "3: sad: 304 here, 305 in the release (-1)",
    )
    for changed, said in (
        ({}, []),
        ({"dialogues": 150}, ["dialogues: 150 here, 151 in the release (-1)"]),
        ({"hours": 12.40}, ["hours: 12.4 here, 12.44 in the release (-0.04)"]),
        ({"labels": {**labels, "bor": 1}}, ["labels: bor: 1 here, 0 in the release (+1)"]),
        (
            {"durations": {**POINTS, "max": 34.10}},
            ["durations: max: 34.1 here, 34.14 in the release (-0.04)"],
        ),
        ({"4class per session": moved}, [f"4class per session: {said}" for said in (neutral, sad)]),
    ):
        assert compare({**KNOWN, **changed}) == said


# The demo corpus, in the same layout
# ----------------------------------------------------------------------------------


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


@pytest.fixture(scope="module")
def scan(demo_corpus: Path) -> Scan:
    return read_corpus(demo_corpus)


def test_the_demo_is_the_same_bytes_each_time(
    demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over itself too; of the first scene of each session."""
    monkeypatch.setattr(dialogues, "ARCS", {"impro01": dialogues.ARCS["impro01"]})
    write_demo(tmp_path)
    next(tmp_path.rglob("*.wav")).write_bytes(b"cut short")
    write_demo(tmp_path)
    found = digests(tmp_path)
    assert (
        found.items() <= digests(demo_corpus).items()
        and len(list(tmp_path.glob("Session*/sentences/wav/*"))) == 5
    )


def test_the_demo_leaves_a_folder_with_something_else_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / DEMO_MARKER).write_text('{"synthetic": true, "version": 0, "seed": 0}')
    for folder in (tmp_path, tmp_path / "thesis.txt", tmp_path / "older"):
        with pytest.raises(WrongUse, match="is not the demo corpus of this ser"):
            write_demo(folder)
    assert len(list(tmp_path.rglob("*"))) == 3


def test_the_demo_has_its_counts(scan: Scan) -> None:
    assert (scan.format, scan.manifest.corpus, scan.manifest.synthetic) == ("iemocap", "demo", True)
    assert (scan.problems, summary(scan)["differences"]) == ([], [])
    found = count_all(scan.manifest)
    assert found["utterances"] >= 300 and found["dialogues"] >= 20 and found["speakers"] == 10
    assert list(found["sessions"]) == ["1", "2", "3", "4", "5"] and set(found["labels"]) == set(
        KNOWN["labels"]
    )
    assert all(min(classes.values()) >= 5 for classes in found["4class per session"].values())
    durations = found["durations"]
    assert found["hours"] <= 0.25 and 0.6 <= durations["min"] <= 0.8 and 6 <= durations["max"] <= 8


def test_the_demo_is_clean_speech_at_16_khz(demo_corpus: Path, scan: Scan) -> None:
    for row in scan.manifest.table.to_pylist():
        samples, rate = soundfile.read(demo_corpus / row["audio"], dtype="float32")
        assert (rate, samples.ndim) == (16000, 1)
        assert soundfile.info(demo_corpus / row["audio"]).subtype == "PCM_16"
        assert abs(len(samples) / rate - (row["end"] - row["start"])) < 2e-4
        assert np.sqrt(np.mean(samples**2)) > 0.005
        assert np.abs(samples).max() < 0.99


def test_the_demo_has_the_irregular_lines(demo_corpus: Path, scan: Scan) -> None:
    transcripts = b"".join(
        p.read_bytes() for p in sorted(demo_corpus.rglob("transcriptions/Ses*.txt"))
    )
    marked = rb"_FXX0 \[", rb"_MXX1 \[", rb"\nM: ", rb"\nF:\[", rb"\nF : "
    for line in (*marked, rb"\[laughter\]", rb": \[\w+\]\n", rb"caf\xe9"):
        assert re.search(line, transcripts), line
    evaluations = "".join(
        p.read_text() for p in sorted(demo_corpus.rglob("EmoEvaluation/Ses*.txt"))
    )
    for line in (r"C-E2:\t\w+; \w+;", r"dom  \d;", r"dom  ;", r"C-F1:", r"\[5\.5000, "):
        assert re.search(line, evaluations), line
    assert len(list(demo_corpus.rglob("._*"))) == 75
    texts = scan.manifest.column("text")
    for part in ("\t", ";", '"', "é"):
        assert any(part in text for text in texts), part
    assert {"Ses05M_script01_1", "Ses05M_script01_1b", "Ses03M_impro05a"} <= set(
        scan.manifest.column("dialogue")
    )
    prefixes = [id[5] == id.rpartition("_")[2][0] for id in scan.manifest.ids]
    assert 0.3 < np.mean(prefixes) < 0.7


def test_the_demo_drifts_along_a_dialogue_and_its_vocabulary_covers_it(scan: Scan) -> None:
    rows, words = scan.manifest.table.to_pylist(), set(demo_vocabulary())
    early = np.mean([r["label"] == "neu" for r in rows if r["turn"] < 4])
    assert early > 2 * np.mean([r["label"] == "neu" for r in rows if r["turn"] > 8])
    assert (
        all(set(re.findall(r"\w+|[^\w\s]", row["text"].lower())) <= words for row in rows)
        and len(words) < 300
    )
