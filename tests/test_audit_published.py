"""`ser audit` on splits as public projects publish them: sound ones are sound, and faults are seen.

EmoBox        keys with the corpus before them, a folder for each fold, no dev part
s3prl         the letter of a dialogue as the speaker of all of its utterances
nkululeko     a table for each part, and the whole corpus beside them
autrainer     an index without a name before the file
MSP-Podcast   `labels_consensus.csv`, and `Partitions.txt` before it
X-ARES        tars of parts or folds
"""

import io
import json
import tarfile
from pathlib import Path

import pytest

from ser.audit.audit import audit

EMOTIONS = ("ang", "hap", "neu", "sad")


def utterances(session: int) -> list[str]:
    """Ids of one session, as IEMOCAP's: two dialogues, two speakers."""
    ids = []
    for dialogue in ("impro01", "script01_1"):
        for turn in range(4):
            ids.append(f"Ses0{session}F_{dialogue}_{'FM'[turn % 2]}{turn:03d}")
    return ids


def emobox_line(corpus: str, id_: str, emotion: str) -> str:
    path = f"downloads/{corpus}/{id_}.wav"
    return json.dumps(
        {"key": f"{corpus}-{id_}", "dataset": corpus, "wav": path, "length": 1.5, "emo": emotion}
    )


def write_emobox(folder: Path, tested: dict[int, list[str]], corpus: str = "iemocap") -> Path:
    """A fold for each number; whatever it does not test trains."""
    everything = [id_ for ids in tested.values() for id_ in ids]
    root = folder / corpus
    for fold, ids in tested.items():
        (root / f"fold_{fold}").mkdir(parents=True)
        parts = {"test": ids, "train": [id_ for id_ in everything if id_ not in ids]}
        for part, members in parts.items():
            lines = []
            for place, id_ in enumerate(members):
                lines.append(emobox_line(corpus, id_, EMOTIONS[place % 4]))
            path = root / f"fold_{fold}" / f"{corpus}_{part}_fold_{fold}.jsonl"
            path.write_text("\n".join(lines) + "\n")

    lines = [emobox_line(corpus, id_, "neu") for id_ in everything]
    (root / f"{corpus}.jsonl").write_text("\n".join(lines))
    (root / "label_map.json").write_text('{"neu": "neutral"}')
    return root


def test_emobox(tmp_path: Path) -> None:
    root = write_emobox(tmp_path, {session: utterances(session) for session in range(1, 6)})
    done = audit([root])
    assert done.findings == []
    assert done.verdict == "sound"
    assert done.evidence.about("iemocap-Ses03F_impro01_M001").speaker == "Ses03M"

    # Predictions by the ids of the corpus, and by EmoBox's keys, are of the same utterances.
    for prefix in ("", "iemocap-"):
        rows = [f"{prefix}{id_},neu,neu" for session in range(1, 6) for id_ in utterances(session)]
        table = tmp_path / f"predictions{prefix}.csv"
        table.write_text("\n".join(["id,truth,predicted", *rows]))
        assert set(audit([root, table]).evidence.keys.values()) == {
            id_ for session in range(1, 6) for id_ in utterances(session)
        }


def test_emobox_with_a_voice_on_both_sides(tmp_path: Path) -> None:
    ids = utterances(1) + utterances(2)
    root = write_emobox(tmp_path, {1: ids[::3], 2: ids[1::3] + ids[2::3]})
    assert "same speaker" in {finding.check for finding in audit([root]).faults}


def test_emobox_with_parts_as_objects_beside_the_lines(tmp_path: Path) -> None:
    root = write_emobox(tmp_path, {1: utterances(1), 2: utterances(2)})
    for path in list(root.rglob("*fold_*.jsonl")):
        objects = {}
        for line in path.read_text().splitlines():
            values = json.loads(line)
            objects[values.pop("key")] = values
        path.with_suffix(".json").write_text(json.dumps(objects))
    assert audit([root]).findings == []


def write_s3prl(folder: Path, mixed: bool) -> Path:
    root = folder / "meta_data"
    for tested in range(1, 6):
        (root / f"Session{tested}").mkdir(parents=True)
        parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
        for session in range(1, 6):
            for place, id_ in enumerate(utterances(session)):
                dialogue = id_.rpartition("_")[0]
                row = {
                    "path": f"Session{session}/sentences/wav/{dialogue}/{id_}.wav",
                    "label": EMOTIONS[place % 4],
                    # Who wears the markers, whoever speaks.
                    "speaker": id_[:6],
                }
                is_tested = place % 5 + 1 == tested if mixed else session == tested
                parts["test" if is_tested else "train"].append(row)
        for part, rows in parts.items():
            path = root / f"Session{tested}" / f"{part}_meta_data.json"
            path.write_text(json.dumps({"labels": {"neu": 0}, "meta_data": rows}))
    return root


@pytest.mark.parametrize("mixed", [False, True], ids=["by session", "by utterance"])
def test_s3prl(tmp_path: Path, mixed: bool) -> None:
    done = audit([write_s3prl(tmp_path, mixed)])
    if mixed:
        assert "same speaker" in {finding.check for finding in done.faults}
    else:
        assert done.findings == []
        assert done.verdict == "sound"


def write_tables(folder: Path, headings: str, row: str, parts: dict[str, str]) -> list[Path]:
    """A table for each part, named so, of these speakers."""
    paths = []
    for part, speakers in parts.items():
        lines = [headings]
        for speaker in speakers:
            for number in range(4):
                emotion = EMOTIONS[number]
                lines.append(row.format(number=number, speaker=speaker, emotion=emotion))
        path = folder / f"toy_{part}.csv" if part else folder / "toy.csv"
        path.write_text("\n".join(lines))
        paths.append(path)
    return paths


TABLES = {
    "nkululeko": (
        "file,speaker,gender,emotion",
        "./data/toy/{speaker}_{number}.wav,{speaker},male,{emotion}",
    ),
    "autrainer": (
        ",filename,speaker,emotion,emotion_encoded",
        "{number},{speaker}/{speaker}_{number}.wav,{speaker},{emotion},{number}",
    ),
}


@pytest.mark.parametrize("toolkit", TABLES)
def test_tables_of_parts(tmp_path: Path, toolkit: str) -> None:
    headings, row = TABLES[toolkit]
    write_tables(tmp_path, headings, row, {"train": "abc", "dev": "d", "test": "e", "": "abcde"})
    done = audit([tmp_path])
    assert done.findings == []
    assert done.verdict == "sound"

    write_tables(tmp_path, headings, row, {"dev": "c"})
    assert {finding.check for finding in audit([tmp_path]).faults} >= {"same speaker"}


# Podcast, segment, speaker and part: speakers are in one part each, podcasts are not.
PODCAST = [
    (1, 8, "127", "Train"),
    (1, 9, "127", "Train"),
    (1, 12, "15", "Development"),
    (2, 3, "127", "Train"),
    (2, 4, "33", "Test1"),
    (2, 7, "33", "Test1"),
    (3, 1, "Unknown", "Test2"),
    (3, 2, "Unknown", "Train"),
]


def test_msp_podcast(tmp_path: Path) -> None:
    """Its own parts are cut by speaker: that a podcast is cut through is said, and no fault."""
    rows = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"]
    lines = []
    for podcast, segment, speaker, part in PODCAST:
        file = f"MSP-PODCAST_{podcast:04d}_{segment:04d}.wav"
        rows.append(f"{file},N,4.2,5.0,4.4,{speaker},Female,{part}")
        lines.append(f"{part}; {file}")
    labels = tmp_path / "labels_consensus.csv"
    labels.write_text("\n".join(rows))
    done = audit([labels])
    assert done.faults == []
    assert {finding.check for finding in done.notes} == {"same dialogue"}
    assert "podcasts stand in train and test" in " ".join(note.sentence for note in done.notes)
    assert done.verdict == "sound"

    # The list of parts alone does not say who speaks.
    partitions = tmp_path / "Partitions.txt"
    partitions.write_text("\n".join(lines))
    assert audit([partitions]).verdict == "unclear"
    speakers = tmp_path / "Speaker_ids.csv"
    speakers.write_text("\n".join(row.rpartition(",")[0] for row in rows))
    assert audit([partitions, speakers]).faults == []

    moved = [row.replace(",33,", ",127,") if "_0004.wav" in row else row for row in rows]
    labels.write_text("\n".join(moved))
    assert {finding.check for finding in audit([labels]).faults} == {"same speaker"}


def test_msp_improv(tmp_path: Path) -> None:
    """Ids say who speaks, and the number that the two of a session have."""
    rows = ["file,fold"]
    for session in range(1, 4):
        for scene in ("S01A", "S02H"):
            for speaker, pair in (("F", "FM"), ("M", "MF")):
                name = f"MSP-IMPROV-{scene}-{speaker}{session:02d}-R-{pair}01"
                rows.append(f"{name}.wav,{session}")
    path = tmp_path / "folds.csv"
    path.write_text("\n".join(rows))
    done = audit([path])
    assert done.findings == []
    assert done.verdict == "sound"

    # The two of a scene in two folds: no speaker is cut through, but the dialogue is.
    mixed = [row.replace(",1", ",2") if "-M01-" in row else row for row in rows]
    path.write_text("\n".join(mixed))
    assert {finding.check for finding in audit([path]).faults} == {"same dialogue"}


def write_keys(path: Path, corpus: str, keys: dict[str, str]) -> None:
    """EmoBox's lines of these keys, with the files of their recordings."""
    lines = []
    for key, file in keys.items():
        lines.append(json.dumps({"key": f"{corpus}-{key}", "dataset": corpus, "wav": file}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def test_emobox_spells_the_names_of_recordings_anew(tmp_path: Path) -> None:
    """Its keys of CREMA-D have dashes: who speaks, and other files' ids, follow from the files."""
    for part, actors in (("train", (1001, 1002)), ("test", (1003, 1004))):
        keys = {}
        for actor in actors:
            for emotion in ("ANG", "HAP", "NEU"):
                name = f"{actor}_DFA_{emotion}_XX"
                keys[name.replace("_", "-")] = f"downloads/cremad/AudioWAV/{name}.wav"
        write_keys(tmp_path / "cremad" / "fold_1" / f"cremad_{part}_fold_1.jsonl", "cremad", keys)
    done = audit([tmp_path / "cremad"])
    assert done.verdict == "sound"
    assert done.evidence.about("cremad-1003-DFA-ANG-XX").speaker == "1003"

    table = tmp_path / "p.csv"
    table.write_text("id,truth,predicted\n1003_DFA_ANG_XX,ang,ang\n1004_DFA_HAP_XX,hap,ang\n")
    assert set(audit([tmp_path / "cremad", table]).evidence.speakers) == {
        f"{actor}_DFA_{emotion}_XX"
        for actor in (1001, 1002, 1003, 1004)
        for emotion in ("ANG", "HAP", "NEU")
    }


def test_emobox_has_the_folds_of_emodb_under_two_names(tmp_path: Path) -> None:
    speakers = {1: "03", 2: "08"}
    for fold in speakers:
        for part in ("train", "test"):
            of_part = speakers[fold] if part == "test" else speakers[3 - fold]
            keys = {f"{of_part}a0{n}Fa": f"wav/{of_part}a0{n}Fa.wav" for n in (1, 2, 4)}
            for name in (f"emodb_{part}_fold{fold}", f"emodb_{part}_fold_{fold}"):
                write_keys(tmp_path / f"fold_{fold}" / f"{name}.jsonl", "emodb", keys)
    done = audit([tmp_path])
    assert done.findings == []
    assert done.verdict == "sound"


def test_names_that_are_made_as_those_of_emodb(tmp_path: Path) -> None:
    """Oréau's have other letters for other emotions: nothing is known of them."""
    names = [f"{speaker}c01{letter}a" for speaker in (21, 22) for letter in "CTJPDSN"]
    for part, of_part in (("train", names[::2]), ("test", names[1::2])):
        keys = {name: f"wav/{name}.wav" for name in of_part}
        write_keys(tmp_path / "fold_1" / f"oreau_{part}_fold_1.jsonl", "oreau", keys)
    done = audit([tmp_path])
    assert done.verdict == "unclear"
    assert done.evidence.utterances == {}


def test_two_test_parts(tmp_path: Path) -> None:
    """MER2023 of EmoBox has one of its test parts under two names; half of one is a fault."""
    members = {"train": ["a", "b"], "test": ["c", "d"], "test1": ["c", "d"], "test2": ["e"]}
    path = tmp_path / "parts.json"
    path.write_text(json.dumps(members))
    done = audit([path])
    assert [finding.severity for finding in done.findings] == ["note"]
    assert "test and test1 are the same 2 utterances" in done.notes[0].sentence

    path.write_text(json.dumps({**members, "test2": ["e", "d"]}))
    assert {finding.check for finding in audit([path]).faults} == {"same utterance"}


def write_tar(path: Path, speakers: dict[str, str], sounds: dict[str, bytes]) -> None:
    """Utterances with their speakers, as X-ARES writes them: a sound and an object each."""
    with tarfile.open(path, "w") as archive:
        for id_, speaker in speakers.items():
            known = json.dumps({"emotion": "happy", "speaker": speaker}).encode()
            for ending, content in (("wav", sounds.get(id_, id_.encode())), ("json", known)):
                member = tarfile.TarInfo(f"{id_}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_objects_and_sounds_in_tars(tmp_path: Path) -> None:
    """X-ARES's folds say of each utterance who speaks, and hold its sound."""
    for fold, names in enumerate(("ab", "cd", "ef")):
        speakers = {f"{name}{n}": f"speaker {name}" for name in names for n in range(3)}
        write_tar(tmp_path / f"ravdess_fold_{fold}_0000000.tar", speakers, {})
    done = audit([tmp_path])
    assert done.findings == []
    assert done.verdict == "sound"

    copied = {"e0": b"a0"}
    write_tar(tmp_path / "ravdess_fold_2_0000000.tar", {"e0": "e", "a9": "speaker a"}, copied)
    assert {finding.check for finding in audit([tmp_path]).faults} == {"same speaker", "same audio"}
