"""The IEMOCAP parser on a hand-written miniature of the release, with every irregularity that the release has."""

import wave
from pathlib import Path

import pytest

from ser.errors import CorpusError, WrongUse
from ser.extract.corpora.counts import differences
from ser.extract.corpora.iemocap import consensus
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


def write_wav(path: Path, samples: int = 1600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(b"\x01\x02" * samples)


def write_dialogue(root: Path, dialogue: str, evaluation: str, transcription: bytes) -> None:
    session = root / f"Session{int(dialogue[3:5])}"
    for name, content in (("EmoEvaluation", evaluation.encode()), ("transcriptions", transcription)):
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
        rated.write_text("Ses01F_impro01_F000 :Anger; ()\n[1 - 2]\tSes01F_impro01_F009\tang\t[1, 1, 1]\n")
    return root


def rows(scan: Scan) -> dict[str, dict]:
    return {row["id"]: row for row in scan.manifest.table.to_pylist()}


def only_problem(root: Path) -> tuple[str | None, str, str]:
    scan = read_corpus(root)
    assert len(scan.problems) == 1, scan.problems
    return scan.problems[0].id, scan.problems[0].path, scan.problems[0].reason


def test_every_utterance_and_nothing_else(release: Path) -> None:
    scan = read_corpus(release)
    assert scan.problems == []
    assert (scan.format, scan.manifest.corpus, scan.manifest.synthetic) == ("iemocap", "iemocap", False)
    assert len(scan.manifest) == 4 + 10
    for id, row in rows(scan).items():
        assert row["audio"] == f"Session{id[4]}/sentences/wav/{row['dialogue']}/{id}.wav"
        assert (scan.root / row["audio"]).is_file()
        assert row["session"] == id[4]


def test_speaker_is_the_last_letter(release: Path) -> None:
    row = rows(read_corpus(release))["Ses01F_impro01_M000"]
    assert (row["speaker"], row["gender"], row["dialogue"]) == ("Ses01M", "M", "Ses01F_impro01")
    assert rows(read_corpus(release))["Ses03M_script01_1_F000"]["speaker"] == "Ses03F"


def test_turns_rank_by_start_end_and_id(release: Path) -> None:
    found = {id: row["turn"] for id, row in rows(read_corpus(release)).items() if "Ses01F_impro01" in id}
    assert found == {
        "Ses01F_impro01_F002": 0,
        "Ses01F_impro01_F000": 1,
        "Ses01F_impro01_F001": 2,
        "Ses01F_impro01_M000": 3,
    }


def test_texts_are_joined_on_the_id_and_kept_as_they_are(release: Path) -> None:
    texts = {id: row["text"] for id, row in rows(read_corpus(release)).items()}
    assert texts["Ses01F_impro01_F000"] == "Excuse me."
    assert texts["Ses01F_impro01_M000"] == 'Do you\thave your "forms"; café?'
    assert texts["Ses01F_impro01_F001"] == "Let's: go [LAUGHTER]."
    assert texts["Ses01F_impro01_F002"] == "[laughter]"
    assert texts["Ses05M_script01_1_F000"] == "No from script01_1."
    assert texts["Ses05M_script01_1b_F000"] == "No from script01_1b."


def test_votes_are_those_of_external_raters_with_all_their_categories(release: Path) -> None:
    found = rows(read_corpus(release))
    assert found["Ses01F_impro01_F000"]["votes"] == [["neu"], ["neu"], ["neu"]]
    assert found["Ses01F_impro01_M000"]["votes"] == [["fru"], ["fru", "ang"], ["ang", "fru"]]
    assert found["Ses01F_impro01_F002"]["votes"] == [["hap"], ["hap", "exc"], ["oth"]]


def test_attributes_outside_the_scale_are_not_clamped(release: Path) -> None:
    found = rows(read_corpus(release))
    row = found["Ses01F_impro01_M000"]
    assert (row["valence"], row["arousal"], row["dominance"]) == (2.0, 5.5, 3.5)
    assert found["Ses01F_impro01_F001"]["valence"] == 0.5
    assert (row["start"], row["end"], row["duration"]) == (14.8872, 18.0175, 0.1)


@pytest.mark.parametrize(
    ("votes", "label"),
    [
        ([["neu"], ["neu"], ["ang"]], "neu"),
        ([["neu"], ["ang"], ["sad"]], "xxx"),
        ([["neu", "ang"], ["ang", "neu"], ["sad"]], "xxx"),
        ([["neu", "ang"], ["ang"], ["neu", "ang"]], "ang"),
        ([["neu"], ["ang", "neu"], ["ang", "sad"], ["neu"]], "neu"),
        ([], "xxx"),
    ],
)
def test_consensus(votes: list[list[str]], label: str) -> None:
    assert consensus(votes) == label


def test_a_label_that_the_votes_do_not_make_is_named(release: Path) -> None:
    path = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(path.read_text().replace("F000\tneu", "F000\tsad"))
    id, _, reason = only_problem(release)
    assert id == "Ses01F_impro01_F000"
    assert reason == "the label is sad, but the raters' votes make it neu"
    assert rows(read_corpus(release))[id]["label"] == "sad"


def test_a_missing_session_is_named(release: Path) -> None:
    (release / "Session3").rename(release / "elsewhere")
    scan = read_corpus(release)
    assert [str(p) for p in scan.problems] == ["Session3: Session3 is missing from this copy of the corpus"]
    assert scan.refused == scan.problems
    assert "sessions: 3: 0 here, 2136 in the release (-2136)" in differences(scan)


def test_a_missing_wav_keeps_its_row(release: Path) -> None:
    audio = "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    (release / audio).unlink()
    assert only_problem(release) == ("Ses01F_impro01_F000", audio, "the audio file is missing")
    scan = read_corpus(release)
    assert rows(scan)["Ses01F_impro01_F000"]["audio_sha256"] is None
    assert list(scan.unusable("audio")) == ["Ses01F_impro01_F000"]
    assert scan.unusable("text") == {}
    assert scan.refused == []


def test_a_missing_transcript_keeps_its_row(release: Path) -> None:
    path = release / "Session1/dialog/transcriptions/Ses01F_impro01.txt"
    path.write_bytes(b"\n".join(line for line in path.read_bytes().split(b"\n") if b"_F000" not in line))
    assert only_problem(release)[::2] == ("Ses01F_impro01_F000", "its transcript is missing")
    row = rows(read_corpus(release))["Ses01F_impro01_F000"]
    assert (row["text"], row["text_sha256"]) == (None, None)
    assert row["audio_sha256"] is not None


def test_a_missing_transcription_file_names_every_utterance(release: Path) -> None:
    (release / "Session1/dialog/transcriptions/Ses01F_impro01.txt").unlink()
    found = {p.id for p in read_corpus(release).problems}
    assert found == {f"Ses01F_impro01_{turn}" for turn in ("F000", "F001", "F002", "M000")}


def test_a_missing_label_line_is_named(release: Path) -> None:
    path = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    lines = path.read_text().split("\n")
    path.write_text("\n".join(line for line in lines if "F001" not in line))
    id, where, reason = only_problem(release)
    assert (id, reason) == ("Ses01F_impro01_F001", "this utterance has no label line")
    assert where.endswith("EmoEvaluation/Ses01F_impro01.txt")


def test_votes_of_an_unreadable_block_do_not_go_to_the_block_before(release: Path) -> None:
    path = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(path.read_text().replace("F001\txxx\t[0.5000, 2.5000", "F001\txxx\t[0.5000, zwei"))
    scan = read_corpus(release)
    assert rows(scan)["Ses01F_impro01_F000"]["votes"] == [["neu"], ["neu"], ["neu"]]
    assert [p.reason.split(":")[0] for p in scan.problems] == ["line 19", "this utterance has no label line"]


def test_a_dialogue_without_labels_is_named(release: Path) -> None:
    (release / "Session5/dialog/EmoEvaluation/Ses05M_script01_1.txt").unlink()
    reason = only_problem(release)[2]
    assert reason == "the labels of dialogue Ses05M_script01_1 are missing"


def test_an_utterance_of_another_dialogue_is_refused(release: Path) -> None:
    path = release / "Session5/dialog/EmoEvaluation/Ses05M_script01_1.txt"
    path.write_text(path.read_text().replace("Ses05M_script01_1_F000", "Ses05M_script01_1b_F000"))
    scan = read_corpus(release)
    assert "line 3: no utterance id of Ses05M_script01_1 in Session5" in [p.reason for p in scan.problems]
    assert rows(scan)["Ses05M_script01_1b_F000"]["text"] == "No from script01_1b."


def test_the_folder_above_is_refused_with_the_right_one(release: Path) -> None:
    with pytest.raises(WrongUse, match=f"give {release}$"):
        read_corpus(release.parent)


def test_a_folder_that_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="is no IEMOCAP release"):
        read_corpus(tmp_path, format="iemocap")


def test_a_damaged_demo_marker_is_refused(release: Path) -> None:
    (release / "ser-demo.json").write_text("{")
    with pytest.raises(CorpusError, match=r"ser-demo\.json is damaged"):
        read_corpus(release)
