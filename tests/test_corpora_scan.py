"""Scanning: audio files that lie, ids and paths that do, wrong paths, other transcripts, tables of
any corpus.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from ser.errors import CorpusError, WrongUse
from ser.extract.audio import decode
from ser.extract.corpora.counts import summary
from ser.extract.corpora.measure import probe
from ser.extract.corpora.scan import read_corpus
from ser.extract.corpora.table import read_manifest
from ser.tests.command_line import printed, ser

TONE = 0.3 * np.sin(np.arange(1600) / 5)


def write(path: Path, samples: np.ndarray = TONE, rate: int = 16000, **how: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **how)
    return path


def table(folder: Path, *lines: str, name: str = "corpus.csv") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with recordings a, b and c."""
    for name in "abc":
        write(tmp_path / f"{name}.wav")
    return tmp_path


def test_a_cut_wav_is_noticed_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.wav", subtype="PCM_16").read_bytes()
    cut = tmp_path / "cut.wav"
    for length in [*range(1, 60), 100, 1000, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        probed = probe(cut)
        assert probed.fault, length
        assert probed.sha256 == hashlib.sha256(whole[:length]).hexdigest()
        assert probed.duration is None
    assert "its data chunk says 3200 bytes, the file holds 3199" in str(probed.fault)
    assert soundfile.read(cut)[0].size == 1599  # which soundfile does not mind


def test_odd_but_whole_wav_files(tmp_path: Path) -> None:
    raw = write(tmp_path / "a.wav", subtype="PCM_16").read_bytes()
    size = (len(raw) + (5 << 20)).to_bytes(4, "little")
    large, odd = b"LIST" + (5 << 20).to_bytes(4, "little") + bytes(5 << 20), tmp_path / "odd.wav"
    for content in (
        raw + b"LIST\x04\x00\x00\x00abcd",
        raw[:40] + b"\xff\xff\xff\xff" + raw[44:],  # as written into a pipe; as is this
        raw[:40] + b"\x00\x00\x00\x00" + raw[44:],
        raw[:36] + b"LIST\x03\x00\x00\x00abc\x00" + raw[36:],
        raw[:4] + size + raw[8:36] + large + raw[36:],
    ):
        odd.write_bytes(content)
        probed = probe(odd)
        if probed.fault is None:
            assert probed.duration == 0.1
            assert len(decode(odd).samples) == 1600
            assert decode(odd).warnings == []
        else:  # a libsndfile that reads nothing then: never half a file in silence
            assert content[40:44] == bytes(4) and "no samples" in str(probed.fault)


@pytest.mark.parametrize(
    ("id", "audio", "reason"),
    [
        ("evil", "../a.wav", "leaves the corpus with '..'"),
        ("evil", "x/../../a.wav", "leaves the corpus with '..'"),
        ("evil", "..\\a.wav", "leaves the corpus with '..'"),
        ("evil", "/etc/passwd", "is absolute"),
        ("evil", "C:/a.wav", "is absolute"),
        ("evil", "link.wav", "is a link that leaves the corpus"),
        ("evil", "linked/a.wav", "is a link that leaves the corpus"),
        ("evil", "a\0.wav", "control character"),
        ("evil", "a\x1b[31m.wav", "control character"),
        ("good", "a.wav", "the id good is there twice"),
        (
            "ne\u0301e",
            "a.wav",
            "the id ne\u0301e is there twice, in two Unicode spellings (NFC and NFD)",
        ),
        ("a\0b", "a.wav", "holds a control character"),
        ("a\u202egpj", "a.wav", "holds a control character"),
        (" ", "a.wav", "the id is empty"),
    ],
)
def test_ids_and_audio_paths_of_a_table_that_cannot_be_are_refused(
    folder: Path, id: str, audio: str, reason: str
) -> None:
    inside = folder / "inside"
    write(inside / "a.wav")
    (inside / "link.wav").symlink_to(folder / "a.wav")
    (inside / "linked").symlink_to(folder)
    scan = read_corpus(table(inside, "id,audio", "good,a.wav", "n\u00e9e,a.wav", f"{id},{audio}"))
    assert scan.manifest.ids == ["good", "n\u00e9e"]
    [problem] = scan.problems
    assert (
        problem.reason.startswith("line 4: ")
        and reason in problem.reason
        and str(problem).isprintable()
    )


def test_a_linked_corpus_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "03a01Fa.wav")
    (tmp_path / "emodb").mkdir()
    (tmp_path / "emodb" / "wav").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "03a02Fa.wav").symlink_to("03a01Fa.wav")
    (tmp_path / "link").symlink_to(tmp_path / "emodb")
    for folder in ("emodb", "link"):
        scan = read_corpus(tmp_path / folder)
        assert (scan.manifest.ids, scan.problems) == (["03a01Fa", "03a02Fa"], [])
    table(tmp_path / "disk", "audio", "03a01Fa.wav", "03a02Fa.wav")
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    assert read_corpus(tmp_path / "linked" / "corpus.csv").problems == []
    printed("features", tmp_path / "link", "--features", "logmel", "--store", tmp_path / "store")


def test_video_and_coded_audio_come_with_the_line_that_converts_them(tmp_path: Path) -> None:
    write(tmp_path / "good.wav")
    starts = (
        b"\0\0\0\x1cftypM4A ",
        b"\x1aE\xdf\xa3",
        b"RIFF\0\1\0\0AVI LIST",
        b"0&\xb2u\x8ef\xcf\x11",
    )
    g723 = b"RIFF\xe0\0\0\0WAVEfmt \x10\0\0\0\x42\0\1\0\x40\x1f\0\0\0\0\0\0\1\0\0\0data\x40\0\0\0"
    for start in (
        *starts,
        b"#!AMR\n",
        b"\xff\xf1P\x80",
        g723,
        b"\0\0\0\x08wide\0\0\1\0mdat",
        b"G@\0\x10",
        b".RMF",
    ):
        (tmp_path / "a b.mp4").write_bytes(start + bytes(200))
        (tmp_path / "c.wav").write_bytes(start + bytes(200))
        scan = read_corpus(table(tmp_path, "audio", "good.wav", "a b.mp4", "c.wav"))
        found = [problem.reason.partition("`")[2] for problem in scan.problems]
        assert found == [
            "ffmpeg -i 'a b.mp4' -vn 'a b.wav'`",
            "ffmpeg -i c.wav -vn c.wav.wav && mv c.wav.wav c.wav`",
        ]
    done = ser(
        "features",
        table(tmp_path, "audio", "a b.mp4"),
        "--features",
        "logmel",
        "--store",
        tmp_path / "store",
    )
    assert done.exit_code == 1 and "ffmpeg -i 'a b.mp4' -vn 'a b.wav'" in done.output


FILES = {
    "notes.txt": b"hello",
    "no.jsonl": b"hello",
    "no.parquet": b"PAR1 not really",
    "empty.csv": b"",
    "silent.csv": b"speaker,emotion\ns1,anger\n",
    "open.csv": b'audio,text\na.wav,"never closed\n',
    "long.csv": b"audio,text\na.wav," + b"x" * 200_000 + b"\n",
}


@pytest.mark.parametrize(
    ("path", "format", "expected"),
    [
        ("gone", None, "does not exist"),
        ("empty", None, "is not a corpus that ser knows"),
        ("music", None, "is not a corpus that ser knows"),
        (".", None, "it holds empty.csv: give that file"),
        ("notes.txt", None, "is not a table that ser can read"),
        ("empty", "emodb", "holds no utterance"),
        ("empty", "table", "is not a table"),
        ("notes.txt", "iemocap", "holds no utterance"),
        ("notes.txt", "emodb", "holds no utterance"),
        ("empty", "iemocup", "did you mean iemocap?"),
        ("pipe.csv", None, "is not a file; give a CSV"),
        ("no.jsonl", None, "line 1: is not JSON"),
        ("no.parquet", None, "cannot be read as parquet"),
        ("empty.csv", None, "has no audio column"),
        ("silent.csv", None, "has no audio column (speaker, emotion)"),
        ("open.csv", None, "cannot be read as csv: line 2: "),
        ("long.csv", None, "cannot be read as csv: line 2: "),
    ],
)
def test_what_is_no_corpus_is_refused_in_one_sentence(
    folder: Path, path: str, format: str | None, expected: str
) -> None:
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe.csv")
    write(folder / "music" / "song.wav")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    with pytest.raises((WrongUse, CorpusError)) as caught:
        read_corpus(folder / path, format)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_names_of_corpora(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(folder, "audio", "a.wav", name="my corpus.csv")
    assert read_corpus(path).manifest.corpus == "my-corpus"
    assert read_corpus(path, name="mine").manifest.corpus == "mine"
    monkeypatch.setattr(
        "ser.extract.corpora.measure.probe", None
    )  # a wrong name is refused before any file is read
    for name in ("../x", "", ".hidden", "a/b", "a\0", "x" * 80):
        with pytest.raises(WrongUse, match="cannot be called"):
            read_corpus(path, name=name)
    done = ser(
        "features",
        path,
        "--features",
        "logmel",
        "--corpus-name",
        "x" * 80,
        "--store",
        folder / "store",
    )
    assert done.exit_code == 2 and not (folder / "store").exists()


def test_limit_keeps_the_first(folder: Path) -> None:
    path = table(folder, "audio", "a.wav", "b.wav", "c.wav", "gone.wav")
    scan = read_corpus(path, limit=2)
    assert (scan.manifest.ids, scan.problems) == (["a", "b"], [])
    assert (
        scan.manifest.digest
        == read_corpus(path, limit=2).manifest.digest
        != read_corpus(path).manifest.digest
    )
    with pytest.raises(WrongUse, match="leaves no utterance"):
        read_corpus(path, limit=0)


def test_other_transcripts_are_another_corpus(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(folder, "audio,text", "a.wav,one", "b.wav,two", "c.wav,three")
    heard = [("b", "too"), ("a", 'w\t"n'), ("x", "?"), ("a", ""), (7, "x"), ("c", "\ud800")]
    asr = table(
        folder, *(json.dumps({"id": id, "text": text}) for id, text in heard), name="asr.jsonl"
    )
    own, other = read_corpus(path), read_corpus(path, text=asr)
    assert other.manifest.corpus == "corpus-asr"
    assert other.manifest.column("text") == ['w\t"n', "too", None]
    assert other.manifest.column("audio_sha256") == own.manifest.column("audio_sha256")
    assert other.manifest.digest != own.manifest.digest
    assert [problem.reason for problem in other.problems] == [
        "line 6: the text '\\ud800' is not valid Unicode",
        "line 4: the id a is there twice",
        "line 3: the id 'x' is not in the corpus",
        "line 5: the id '7' is not in the corpus",
        "no transcript of this utterance",
    ]
    assert list(other.unusable("text")) == ["c"]
    assert read_corpus(path, text=asr, name="named").manifest.corpus == "named"
    with pytest.raises(WrongUse, match="is not a file"):
        read_corpus(path, text=folder / "gone.csv")
    with pytest.raises(WrongUse, match="has no id column"):
        read_corpus(path, text=table(folder, "name,words", "a,hello", name="asr.csv"))
    monkeypatch.setattr(
        "ser.extract.corpora.measure.probe", None
    )  # a name is refused before any audio is read
    with pytest.raises(WrongUse, match=r"cannot be called 'corpus-a{64}'"):
        read_corpus(path, text=table(folder, "id,text", "a,hello", name=f"{'a' * 64}.csv"))


def test_summary_is_json_with_the_contract_keys(folder: Path) -> None:
    lines = ["a.wav,F,1,exc", "b.wav,M,1,neu", "c.wav,F,2,xxx", "d.wav,F,2,fru"]
    found = json.loads(
        json.dumps(summary(read_corpus(table(folder, "file,gender,session,emotion", *lines))))
    )
    reason = "cannot be opened (No such file or directory)"
    expected = {
        "utterances": 4,
        "dialogues": 4,
        "speakers": 0,
        "differences": [],
        "hours": pytest.approx(0.3 / 3600, abs=1e-4),
        "genders": {"F": 3, "M": 1},
        "sessions": {"1": 2, "2": 2},
        "labels": {"exc": 1, "fru": 1, "neu": 1, "xxx": 1},
        "policies": {"4class": 2, "5class": 3, "6class": 3, "8class": 3},
        "durations": dict.fromkeys(("min", "median", "p95", "p99", "max"), 0.1),
        "problems": [{"id": "d", "path": "d.wav", "reason": reason, "kind": "audio"}],
    }
    assert {name: found[name] for name in expected} == expected


# Tables
# -----------------------------------------------------------------------------------------------------------

FULL = {
    "id": "u1",
    "audio": "a.wav",
    "text": 'He said "no";\nthen, tab\there.',
    "session": "1",
    "dialogue": "d1",
    "turn": 3,
    "speaker": "s1",
    "gender": "female",
    "start": 1.5,
    "end": 2.5,
    "label": "ang",
    "votes": [["ang"], ["ang", "neu"]],
    "valence": 5.5,
    "arousal": 3.0,
    "dominance": 2.0,
}


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "jsonl", "parquet"])
def test_every_column_in_every_kind_of_file(folder: Path, kind: str) -> None:
    path = folder / {"semicolon": "t.csv"}.get(kind, f"t.{kind}")
    match kind:
        case "parquet":
            pq.write_table(pa.Table.from_pylist([FULL]), path)
        case "jsonl":
            path.write_text(json.dumps(FULL) + "\n\n")
        case _:
            delimiter = {"csv": ",", "semicolon": ";", "tsv": "\t"}[kind]
            pd.DataFrame([FULL | {"votes": json.dumps(FULL["votes"])}]).to_csv(
                path, sep=delimiter, index=False
            )
    scan = read_corpus(path)
    assert scan.problems == []
    row = scan.manifest.table.to_pylist()[0]
    assert {k: row[k] for k in FULL} == {**FULL, "gender": "F"}
    assert row["duration"] == 0.1


def test_other_toolkits_columns(folder: Path) -> None:
    write(folder / "wav" / "a.wav")
    scan = read_corpus(
        table(
            folder, "file,speaker,gender,emotion", "./wav/a.wav,s1,w,anger", "b.wav,s2,male,neutral"
        )
    )
    first, second = scan.manifest.table.to_pylist()
    assert scan.problems == []
    assert (first["id"], first["audio"], first["label"]) == ("wav/a", "wav/a.wav", "anger")
    assert (first["gender"], second["gender"], first["dialogue"], first["turn"]) == (
        "F",
        "M",
        "wav/a",
        0,
    )
    path = table(
        folder, '{"key": "k-1", "wav": "a.wav", "length": 99.0, "emo": "ang"}', name="emobox.jsonl"
    )
    row = read_corpus(path).manifest.table.to_pylist()[0]
    assert (row["id"], row["audio"], row["label"]) == ("k-1", "a.wav", "ang")
    assert row["duration"] == 0.1  # from the file, not from the table


def test_turns_follow_the_file_and_odd_line_ends_stay_in_a_row(folder: Path) -> None:
    lines = [
        "id,audio,dialogue,text",
        "1,a.wav,x,one\u2028two\x85three",
        "2,b.wav,y,",
        "3,c.wav,x,",
    ]
    manifest = read_corpus(table(folder, *lines)).manifest
    assert manifest.column("turn") == [0, 0, 1]
    assert manifest.column("text") == ["one\u2028two\x85three", None, None]


def test_every_bad_row_is_named_by_its_line(folder: Path) -> None:
    lines = [
        "id,audio,text,turn,valence,votes",
        "a,a.wav,hello,0,2.5,",
        "b,,no audio,0,2.5,",
        "c,c.wav,too,many,columns,here,see",
        "d,b.wav,bad turn,first,2.5,",
        "e,b.wav,bad valence,0,nan,",
        "f,b.wav,bad votes,0,2.5," + "[" * 5000,
        "f,b.wav,bad votes,0,2.5,[1]",
        'g,b.wav,"two',
        'lines",0,inf,',
        "",
        "h,c.wav,last,0,1,",
    ]
    scan = read_corpus(table(folder, *lines))
    assert scan.manifest.ids == ["a", "h"]
    assert [p.reason for p in scan.problems] == [
        "line 3: has no audio",
        "line 4: has 7 columns where the header has 6",
        "line 5: the turn 'first' is not a number from 0",
        "line 6: the valence 'nan' is not a number",
        f'line 7: the votes \'{"[" * 59} is not JSON such as [["ang"], ["neu", "sad"]]',
        'line 8: the votes \'[1]\' is not JSON such as [["ang"], ["neu", "sad"]]',
        "line 10: the valence 'inf' is not a number",
    ]


def test_two_columns_for_one_thing_and_bytes_for_text_are_refused(folder: Path) -> None:
    for lines in (("file,audio", "a.wav,b.wav"), ("audio,text,text ", "a.wav,one,two")):
        with pytest.raises(
            CorpusError, match=r"t\.csv .*: two columns stand for the (audio|text) \(.*, .*\): keep"
        ):
            read_corpus(table(folder, *lines, name="t.csv"))
    twice = table(folder, "audio,note,note", "a.wav,one,two")
    assert len(read_corpus(twice).manifest) == 1, "what is not read may stand there twice"
    lines = ('{"audio": "a.wav", "emo": "x", "label": "y"}', '{"audio": "b.wav"}')
    [problem] = read_corpus(table(folder, *lines, name="t.jsonl")).problems
    assert problem.reason.startswith("line 1: two columns stand for the label (emo, label)")
    columns = pa.table({"audio": ["a.wav"], "label": [b"\xff"]})
    pq.write_table(columns, folder / "t.parquet")
    with pytest.raises(WrongUse, match=r"row 1: the label b'\\xff' is not valid Unicode"):
        read_corpus(folder / "t.parquet")
    pq.write_table(columns.append_column("file", [["b.wav"]]), folder / "t.parquet")
    with pytest.raises(CorpusError, match="two columns stand for the audio"):
        read_corpus(folder / "t.parquet")


def test_the_next_step_goes_with_these_labels(folder: Path) -> None:
    """Labels of no policy, and a recording that cannot be used: `ser train` would refuse the plain
    command.
    """
    path = table(folder, "audio;label", "a.wav;Freude", "b.wav;Trauer", "none.wav;Freude")
    done = ser(
        "features", path, "--features", "logmel,mfcc", "--store", folder / "s", "--on-error", "skip"
    )
    assert done.output.count("none") == 1 and "quarantined in logmel, mfcc: none: " in done.output
    assert done.exit_code == 3 and done.stderr.endswith(" --labels all --allow-missing\n")


def test_bad_json_lines(folder: Path) -> None:
    path = folder / "t.jsonl"
    path.write_text(
        '{"wav": "a.wav"}\n{"wav": \n[1]\n{"wav": "\\ud800.wav"}\n{"emo": "ang"}\n' + "[" * 100000
    )
    scan = read_corpus(path)
    assert scan.manifest.ids == ["a"]
    assert [p.reason for p in scan.problems] == [
        "line 2: is not JSON",
        "line 3: is not a JSON object",
        "line 4: the audio '\\ud800.wav' is not valid Unicode",
        "line 5: has no audio",
        "line 6: is not JSON",
    ]


def test_a_manifest_without_audio(tmp_path: Path) -> None:
    path = tmp_path / "imported.csv"
    path.write_text(
        "id,session,speaker,dialogue,turn,label,duration\nb,1,s1,d,1,ang,2.5\na,1,s1,d,0,neu,1.5\n"
    )
    manifest = read_manifest(path, "imported")
    assert (manifest.corpus, manifest.ids) == ("imported", ["b", "a"])
    assert manifest.column("audio") == [None, None]
    assert manifest.column("duration") == [2.5, 1.5]
    for line, expected in [
        ("a,1,s1,d,2,sad,1", "there twice"),
        ("c,1,s1,d,x,sad,1", "the turn 'x' is not a number"),
    ]:
        (tmp_path / "bad.csv").write_text(path.read_text() + line)
        with pytest.raises(CorpusError, match=f"line 4: .*{expected}"):
            read_manifest(tmp_path / "bad.csv", "imported")
