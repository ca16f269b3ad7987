"""Layouts described in TOML files, those that ser ships and a user's own, on trees of the corpora's
real names.
"""

import hashlib
import itertools
import json
import os
import shutil
import string
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import audformat
import pytest
import soundfile

from ser.errors import CorpusError, WrongUse
from ser.extract.corpora.counts import summary
from ser.extract.corpora.scan import Scan, scan_corpus
from ser.tests.command_line import ser
from ser.tests.shared_data import emodb
from ser.train.data.dev_part import Cut
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import get_policy
from ser.train.data.protocols import make_folds


def tree(root: Path, *names: str) -> Path:
    """A recording for each name: the same one, since a corpus of 7,442 is slow to write."""
    root.mkdir(exist_ok=True)
    recording = root / ".one"

    if not recording.exists():
        soundfile.write(recording, [0.1] * 160, 16000, subtype="PCM_16", format="WAV")

    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(recording, root / name)

    return root


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def but_for_copies(warnings: list[str]) -> list[str]:
    """These without those of equal audio: all are one recording here, see `tree`."""
    return [warning for warning in warnings if "under several ids" not in warning]


def row(scan: Scan, id: str) -> dict:
    """The columns that this row has, but for digests."""
    position = scan.manifest.ids.index(id)
    columns = {}

    for name, value in scan.manifest.table.to_pylist()[position].items():
        if value is not None and "sha256" not in name:
            columns[name] = value

    return columns


def ravdess() -> Iterator[str]:
    for actor, emotion, intensity, text, take in itertools.product(
        range(1, 25), range(1, 9), (1, 2), (1, 2), (1, 2)
    ):
        # There is no strong neutral.
        if (emotion, intensity) != (1, 2):
            numbers = (3, 1, emotion, intensity, text, take, actor)
            stem = "-".join(f"{number:02d}" for number in numbers)
            yield f"Actor_{actor:02d}/{stem}.wav"


def crema() -> Iterator[str]:
    sentences = ["TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI"]
    for actor in range(1001, 1092):
        for emotion in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
            for sentence in sentences:
                yield f"AudioWAV/{actor}_{sentence}_{emotion}_XX.wav"

            levels = ("XX",) if emotion == "NEU" else ("LO", "MD", "HI")
            for level in levels:
                yield f"AudioWAV/{actor}_IEO_{emotion}_{level}.wav"


def published_crema() -> Iterator[str]:
    """As many as the release has."""
    return itertools.islice(crema(), 7442)


def savee() -> Iterator[str]:
    speakers = ("DC", "JE", "JK", "KL")
    emotions = ("a", "d", "f", "h", "n", "sa", "su")
    for speaker, emotion in itertools.product(speakers, emotions):
        count = 30 if emotion == "n" else 15
        for number in range(1, count + 1):
            yield f"AudioData/{speaker}/{emotion}{number:02d}.wav"


EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")


def tess() -> Iterator[str]:
    words = ["".join(pair) for pair in itertools.product(string.ascii_lowercase[:20], "abcdefghij")]
    for speaker, emotion in itertools.product(("OAF", "YAF"), EMOTIONS):
        for word in words:
            name = f"{speaker}_{emotion}/{speaker}_{word}_{emotion}.wav"
            # As the release misspells it.
            yield name.replace("/OAF_ab_neutral", "/OA_ab_neutral")


@dataclass(frozen=True)
class Release:
    """The files of a release, and one of its utterances."""

    names: Callable[[], Iterator[str]]
    id: str
    speaker: str
    label: str
    text: str | None
    gender: str | None


RELEASES = {
    "ravdess": Release(
        ravdess,
        "03-01-06-01-02-01-12",
        "12",
        "fearful",
        "Dogs are sitting by the door.",
        "F",
    ),
    # Its genders stand in a table.
    "crema-d": Release(
        published_crema, "1001_IEO_HAP_HI", "1001", "happy", "It's eleven o'clock.", None
    ),
    "savee": Release(savee, "DC_sa03", "DC", "sad", None, "M"),
    "tess": Release(tess, "OAF_ab_neutral", "OAF", "neutral", "Say the word ab.", "F"),
}


@pytest.mark.parametrize("format", RELEASES)
def test_a_whole_release_has_its_published_counts(tmp_path: Path, format: str) -> None:
    release = RELEASES[format]

    scan = scan_corpus(tree(tmp_path / "release", *release.names()))

    assert scan.format == format
    assert scan.manifest.corpus == format
    assert scan.problems == []
    assert summary(scan)["differences"] == []
    assert scan.known["utterances"] == len(scan.manifest)

    utterance = row(scan, release.id)
    assert utterance["speaker"] == release.speaker
    assert utterance["label"] == release.label
    assert utterance.get("text") == release.text
    assert utterance["session"] == release.speaker
    assert utterance["dialogue"] == release.id
    assert utterance["turn"] == 0
    if release.gender is not None:
        assert utterance["gender"] == release.gender


def test_counts_that_are_not_met_and_files_that_are_left_out(tmp_path: Path) -> None:
    for name in ("03-01-06", "03-02-06", "03-01-09"):
        tree(tmp_path, f"{name}-01-02-01-12.wav")
    tree(tmp_path, "01-01-06-01-02-01-12.mp4")

    shown = ser("corpus", "show", tmp_path, "--format", "ravdess")

    assert shown.exit_code == 1
    for sentence in (
        "utterances: 1 here, 1440 in the release (-1439)",
        "warnings     1 files are left out: video, with the same sound; 1 files are left out: song",
        "4class 0",
        "03-01-09-01-02-01-12.wav: the name does not follow the convention of RAVDESS "
        "(modality-channel-",
    ):
        assert sentence in shown.output, sentence


def test_raters_and_people_are_read_from_tables(tmp_path: Path) -> None:
    tree(tmp_path, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_DFA_SAD_XX.wav")
    # Before all others.
    for actor in range(1001, 1602):
        tree(tmp_path, f"AudioMP3/{actor}_DFA_ANG_XX.mp3")
    responses = [
        '"","localid","queryType","clipName","respEmo"',
        '"0","7","1","1001_DFA_ANG_XX","A"',
        '"1","7","1","1001_DFA_ANG_XX","N"',
        # Of another kind of question.
        '"2","7","3","1001_DFA_ANG_XX","H"',
    ]
    write(tmp_path / "finishedResponses.csv", "\n".join(responses) + "\n")

    scan = scan_corpus(tmp_path)

    assert but_for_copies(scan.warnings) == [
        "VideoDemographics.csv is not here, and nothing is taken from it",
        "nothing gives {Sex}, which a column names",
        "601 files are left out: copies as MP3",
    ]
    assert scan.manifest.column("votes") == [[["angry"], ["neutral"]], None]

    people = "ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,,\n1002,21,Female,,\n"
    write(tmp_path / "VideoDemographics.csv", people)
    assert scan_corpus(tmp_path).manifest.column("gender") == ["M", "F"]


def test_texts_in_any_encoding(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "0001/Neutral/0001_000001.wav",
        "0011/Angry/train/0011_000351.wav",
        "0011/Sad/test/0011_001051.wav",
    )
    chinese = "0001_000001  打远一看，它们的确很是美丽， 中立\r\n"
    write(tmp_path / "0001" / "0001.txt", chinese, "gb18030")
    english = "\ufeff0011_000351\tThe nine the eggs, I keep.\tAngry\r\n"
    write(tmp_path / "0011" / "0011.txt", english, "utf-16-le")

    scan = scan_corpus(tmp_path)

    assert scan.format == "esd"
    assert scan.manifest.column("label") == ["neutral", "angry", "sad"]
    assert scan.manifest.column("text") == [
        "打远一看，它们的确很是美丽，",
        "The nine the eggs, I keep.",
        None,
    ]


def test_the_official_split_of_podcasts(tmp_path: Path) -> None:
    lines = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"]
    for number, part in enumerate(["Train", "Train", "Development", "Test1", "Test2"]):
        file = f"MSP-PODCAST_0001_{number:04d}.wav"
        emotion = "AH"[number % 2]
        speaker = "Unknown" if number == 0 else number
        lines.append(f"{file},{emotion},2.2,6.5,2.6,{speaker},Male,{part}")
    write(tmp_path / "Labels" / "labels_consensus.csv", "\n".join(lines))

    lines = ["FileName,Workers,EmoClass_Major"]
    for number, vote in enumerate(("Happy", "Neutral", "Other-hm")):
        lines.append(f"MSP-PODCAST_0001_0003.wav,WORKER{number},{vote}")
    write(tmp_path / "Labels" / "labels_detailed.csv", "\n".join(lines) + "\n")

    write(tmp_path / "Transcripts" / "MSP-PODCAST_0001_0003.txt", 'So, "you" know.\n')
    tree(tmp_path, *(f"Audios/MSP-PODCAST_0001_{number:04d}.wav" for number in range(6)))
    tree(tmp_path, "Audios/MSP-PODCAST_test3_0001.wav", "Audios/MSP-PODCAST_test3_0002.wav")

    scan = scan_corpus(tmp_path)

    assert scan.format == "msp-podcast"
    assert len(scan.manifest) == 7
    assert scan.problems == []
    without_label = row(scan, "MSP-PODCAST_test3_0002")
    assert without_label["session"] == "test3"
    assert "label" not in without_label
    facts = summary(scan)
    assert facts["unlabelled"] == {"test3": 2}
    assert facts["sessions"]["test3"] == 2
    assert any("1 files are left out: in no row of" in warning for warning in scan.warnings)
    assert scan.manifest.column("speaker")[:2] == [None, "1"]
    utterance = row(scan, "MSP-PODCAST_0001_0003")
    assert utterance["valence"] == 6.5
    assert utterance["arousal"] == 2.2
    assert utterance["dominance"] == 2.6
    assert utterance["gender"] == "M"
    assert utterance["votes"] == [["Happy"], ["Neutral"], ["Other-hm"]]
    assert utterance["text"] == 'So, "you" know.'

    utterances = apply_policy(get_policy("all", scan.manifest.column("label")), scan.manifest)
    assert utterances.classes == ("ang", "hap")
    assert len(utterances) == 5
    assert utterances.left_out == {"none": 2}
    folds = make_folds("official", utterances)
    assert [fold.name for fold in folds] == ["test1", "test2"]
    for fold in folds:
        assert [len(rows) for rows in fold.parts.values()] == [2, 1, 1]
        assert list(fold.left_out) == ["in another part of the split"]

    [fold] = make_folds("official", utterances.take([0, 1, 3]), Cut("none"))
    assert len(fold.dev) == 0
    assert fold.dev_by == "none"
    with pytest.raises(WrongUse, match="needs sessions called train and test"):
        make_folds("official", utterances.take([0, 1, 2]))


@pytest.mark.parametrize("storage", ["csv", "parquet"])
def test_a_database_of_audformat(tmp_path: Path, storage: str) -> None:
    files = ["audio/001.wav", "audio/002.wav", "audio/003.wav"]
    tree(tmp_path, *files)
    db = audformat.Database("mine")
    db.schemes["emotion"] = audformat.Scheme(labels=["anger", "neutral"])
    db.schemes["speaker"] = audformat.Scheme(
        labels={"anna": {"gender": "female"}, "bob": {"gender": "male"}}
    )
    db.schemes["transcription"] = audformat.Scheme(labels={"t1": "Good morning."})

    for split, held in (("train", files[:2]), ("test", files[2:])):
        db.splits[split] = audformat.Split(split)
        table = db[f"emotion.{split}"] = audformat.Table(
            audformat.filewise_index(held), split_id=split
        )
        table["emotion"] = audformat.Column(scheme_id="emotion")
        table["emotion"].set(["anger", "neutral"][: len(held)])

    files_table = db["files"] = audformat.Table(audformat.filewise_index(files))
    # Which is measured.
    db.schemes["duration"] = audformat.Scheme("time")
    given = {
        "speaker": ["anna", "bob", "anna"],
        "transcription": ["t1", "t1", None],
        "duration": ["10ms"] * 3,
    }

    for name, values in given.items():
        files_table[name] = audformat.Column(scheme_id=name)
        files_table[name].set(values)

    db["parts"] = audformat.Table(audformat.segmented_index(files[:1], ["0s"], ["1s"]))
    db.save(str(tmp_path), storage_format=storage)
    scan = scan_corpus(tmp_path)
    assert (scan.format, scan.manifest.corpus, scan.problems) == ("audformat", "mine", [])
    assert but_for_copies(scan.warnings) == [
        "the segmented tables say nothing of their 1 segments: the files are the utterances"
    ]
    assert not scan.manifest.is_segmented

    columns = ("label", "speaker", "gender", "session", "text")
    assert [[one[name] for name in columns] for one in scan.manifest.table.to_pylist()] == [
        ["anger", "anna", "F", "train", "Good morning."],
        ["neutral", "bob", "M", "train", "Good morning."],
        ["anger", "anna", "F", "test", None],
    ]

    (tmp_path / "db.yaml").write_text("name: [\n")

    with pytest.raises(WrongUse, match=r"db\.yaml is not the header of an audformat database"):
        scan_corpus(tmp_path)


MELD_HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,"
    "StartTime,EndTime\n"
)


# By part, dialogue and number of each utterance that the tables list.
MELD_TURNS = {
    "train": ((0, 0), (0, 1), (125, 3)),
    "dev": ((0, 0), (110, 7)),
    "test": ((0, 0),),
}


@pytest.fixture
def meld(tmp_path: Path) -> Path:
    """MELD's tables, and clips of which two are missing and some are in no table."""
    for part, turns in MELD_TURNS.items():
        lines = [MELD_HEADER]
        for number, (dialogue, turn) in enumerate(turns):
            emotion = "joy" if number else "anger"
            words = f'"Well, {part}!",Joey,{emotion},x'
            lines.append(f"{number},{words},{dialogue},{turn},4,7,a,b\n")
        write(tmp_path / f"{part}_sent_emo.csv", "".join(lines))

    return tree(
        tmp_path,
        "train_splits/dia0_utt0.wav",
        "train_splits/dia0_utt0.mp4",
        "train_splits/dia0_utt1.wav",
        "dev_splits_complete/dia0_utt0.wav",
        "dev_splits_complete/dia66_utt9.wav",
        "output_repeated_splits_test/dia0_utt0.wav",
        "output_repeated_splits_test/final_videos_testdia0_utt0.wav",
    )


def test_dialogues_whose_clips_are_broken(meld: Path) -> None:
    scan = scan_corpus(meld)

    assert scan.manifest.corpus == "meld"
    missing = [problem.id for problem in scan.problems]
    assert missing == ["dev/dia110_utt7", "train/dia125_utt3"], scan.problems
    for problem in scan.problems:
        assert problem.kind == "audio", "their words can be learnt from"
    assert "1 files are left out: in no row of {split}_sent_emo.csv" in scan.warnings
    assert "1 files are left out: other cuts of test clips" in scan.warnings
    assert "known defect: dev/dia110_utt7: the release lacks the clip (issue 27)" in scan.warnings

    utterance = row(scan, "train/dia0_utt1")
    assert utterance["dialogue"] == "0"
    assert utterance["turn"] == 1
    assert utterance["session"] == "train"
    assert utterance["text"] == "Well, train!"

    (meld / "dev_sent_emo.csv").unlink()
    fault = r"has no dev_sent_emo\.csv, which lists the utterances of MELD"
    with pytest.raises(WrongUse, match=fault):
        scan_corpus(meld)


def test_dialogues_have_an_official_split(meld: Path) -> None:
    utterances = apply_policy(get_policy("4class"), scan_corpus(meld).manifest)
    with pytest.raises(WrongUse, match="use --protocol official"):
        make_folds("session-out", utterances)

    [fold] = make_folds("official", utterances)

    assert fold.dev_by == "the corpus's own"
    for part, rows in fold.parts.items():
        ids = [utterances.ids[number] for number in rows]
        turns = MELD_TURNS[part]
        assert ids == [f"{part}/dia{dialogue}_utt{turn}" for dialogue, turn in turns]
    assert fold.parts.keys() == MELD_TURNS.keys()


def test_dialogues_whose_clips_are_still_videos(meld: Path) -> None:
    video = b"\0\0\0\x20ftypisom" + bytes(99)
    for wav in list(meld.rglob("*.wav")):
        wav.unlink()
        mp4 = wav.with_suffix(".mp4")
        mp4.unlink(missing_ok=True)
        mp4.write_bytes(video)
    shutil.move(meld / "dev_splits_complete", meld.with_suffix(".disk"))
    (meld / "dev_splits_complete").symlink_to(meld.with_suffix(".disk"))
    (meld / "train_splits" / "dia125_utt3.wav").write_bytes(video)

    first, *others = scan_corpus(meld).problems

    assert first.reason.startswith("no file here can be decoded as it is: convert them with `find ")
    assert "convert it with `ffmpeg -i dia0_utt0.mp4 -vn dia0_utt0.wav`" in others[0].reason

    # The command does it, with a program in ffmpeg's place that writes a recording.
    program = f'#!/bin/sh\ncmp -s "$2" "$4" && exit 1\ncp "{meld}/.one" "$4"\n'
    write(meld / "bin" / "ffmpeg", program)
    (meld / "bin" / "ffmpeg").chmod(0o755)
    path = f"PATH={meld}/bin:{os.environ['PATH']}"
    subprocess.run(["env", path, "sh", "-c", first.reason.split("`")[1]], check=True)
    assert [problem.id for problem in scan_corpus(meld).problems] == ["dev/dia110_utt7"]


def test_emodb_is_read_as_ever(tmp_path: Path) -> None:
    # The download has them in wav/.
    tree(tmp_path, "wav/16b10Lb.wav", "wav/03a01Fa.wav", "wav/03a99Fa.wav")
    (tmp_path / "wav" / "._03a01Fa.wav").write_bytes(b"Mac OS X")

    scan = scan_corpus(tmp_path)

    assert scan.format == "emodb"
    assert scan.manifest.ids == ["03a01Fa", "16b10Lb"]
    assert row(scan, "03a01Fa") == {
        "id": "03a01Fa",
        "audio": "wav/03a01Fa.wav",
        "text": "Der Lappen liegt auf dem Eisschrank.",
        "label": "hap",
        "dialogue": "03a01Fa",
        "turn": 0,
        "speaker": "03",
        "session": "03",
        "gender": "M",
        "duration": 0.01,
    }
    [problem] = scan.problems
    assert problem.path == "wav/03a99Fa.wav"
    assert problem.reason == "the text 'a99' is not among maps.text"


MINE = """\
name = "Mine"
pattern = '(?P<speaker>[a-z]+)-(?P<emotion>[a-z]+)-\\d+'
[columns]
speaker = "{speaker}"
label = "{emotion}"
"""


def test_the_real_emodb_is_read_as_ever() -> None:
    scan = scan_corpus(emodb()[0].parent)

    # Of the rows: the manifest's own bytes are Parquet, which each pyarrow writes differently.
    rows = json.dumps(scan.manifest.table.to_pylist(), sort_keys=True)
    digest = "dd247d3da3b7998d103cdd8a16379105bde5a0d22fe4ff6591395db4ef8be572"
    assert hashlib.sha256(rows.encode()).hexdigest() == digest
    assert scan.problems == []
    assert scan.warnings == ["339 of EmoDB's 535 utterances are here"]
    assert Counter(scan.manifest.column("label")) == {"ang": 127, "neu": 79, "hap": 71, "sad": 62}


def test_a_layout_of_ones_own(tmp_path: Path) -> None:
    corpus = tree(tmp_path / "corpus", "anna-joy-1.flac", "sub/bob-rage-1.wav")
    layout = tmp_path / "mine.toml"
    # As some editors of Windows do.
    write(layout, MINE, "utf-8-sig")

    shown = ser("corpus", "show", corpus, "--format", layout)
    assert shown.exit_code == 0
    assert "joy 1 · rage 1" in shown.output
    assert "4class 1" in shown.output

    scan = scan_corpus(corpus, str(layout))
    assert scan.manifest.corpus == "mine"
    assert scan.manifest.column("speaker") == ["anna", "bob"]
    policy = get_policy("all", scan.manifest.column("label"))
    assert apply_policy(policy, scan.manifest).classes == ("hap", "rage")

    # Of 992 characters.
    write(layout, MINE.replace("[a-z]+", f"(?:[a-z]+|{'a' * 945})", 1))
    assert scan_corpus(corpus, str(layout)).problems == []
    (corpus / "sub" / "loop").symlink_to(corpus)
    assert scan_corpus(corpus, str(layout)).manifest.ids == scan.manifest.ids


def test_votes_of_a_layout_of_ones_own(tmp_path: Path) -> None:
    corpus = tree(tmp_path / "corpus", "anna-joy-1.flac", "sub/bob-rage-1.wav")
    layout = tmp_path / "mine.toml"
    votes = "[[tables]]\nfile = 'said.csv'\nof = '{stem}'\nkey = '{of}'\nvotes = '{said}'\n"
    maps = "[maps.votes]\n1 = 'joy'\n'*' = 'other'\n"
    write(layout, MINE + "text = '{votes}'\n" + votes + maps)
    write(corpus / "said.csv", "of,said\nanna-joy-1,1\nanna-joy-1,7\n")

    scan = scan_corpus(corpus, str(layout))

    assert scan.manifest.column("votes") == [[["joy"], ["other"]], None]
    # As for a field that no pattern has.
    assert but_for_copies(scan.warnings) == ["nothing gives {votes}, which a column names"]


def test_a_format_that_is_not_known_names_those_that_are(tmp_path: Path) -> None:
    listed = ser("corpus", "show", tmp_path, "--format", "mien")

    assert listed.exit_code == 2
    known = "known: FILE.toml, audacity, audformat, crema-d, elan:TIER, emodb, esd, folder, iemocap"
    assert known in listed.output


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("(?P<emotion>", "(?P<emotion", "is not a regular expression"),
        ("(?P<emotion>[a-z]+)-", "(?P<emotion>([a-z]|[a-z][a-z])+)", "takes over 1 s to match"),
        ("[a-z]+", "((a{99}){99}){99}", "is too large"),
        ("[a-z]+", "a" * 1001, "is too large"),
        ("label =", "emotion =", "unknown column under [columns] of "),
        ("label =", "audio =", "'audio'; known: arousal, dialogue,"),
        ("label =", "speaker =", "not a TOML file"),
        ('"{emotion}"', "7", "Expected `str`, got `int`"),
        ("name =", "nmae =", "unknown field `nmae`"),
        (
            "[columns]",
            "counts.labels = 3\n[columns]",
            "Expected `object`, got `int` - at `$.counts.labels`",
        ),
        ("[columns]", "maps.text = {}\n[columns]", "under [maps] of "),
        (
            "[columns]",
            "tables = [{file = 'a.csv', line = '('}]\n[columns]",
            "is not a regular expression",
        ),
        (
            "[columns]",
            "tables = [{file = 'a.csv', encoding = 'zip'}]\n[columns]",
            "Invalid enum value 'zip'",
        ),
        (
            "[columns]",
            "tables = [{file = 'a.csv', audio = 'x'}]\n[columns]",
            "has no a.csv, which lists",
        ),
    ],
)
def test_a_wrong_description_is_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    tree(tmp_path / "corpus", f"anna-{'e' * 60}-1.wav")
    assert old in MINE

    write(tmp_path / "mine.toml", MINE.replace(old, new))

    with pytest.raises((WrongUse, CorpusError)) as caught:
        scan_corpus(tmp_path / "corpus", str(tmp_path / "mine.toml"))

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
