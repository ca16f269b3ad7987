"""Corpora as tables: the manifest's own columns, nkululeko's and EmoBox's, and every bad row by its line."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from ser.errors import CorpusError, WrongUse
from ser.extract.corpora.scan import read_corpus
from ser.extract.corpora.table import read_manifest
from ser.tests.command_line import ser
from ser.tests.test_corpora_scan import table

FULL = {
    "id": "u1",
    "audio": "wav/a.wav",
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wav").mkdir()
    for name in "abc":
        soundfile.write(tmp_path / "wav" / f"{name}.wav", [0.1] * 800, 16000, subtype="PCM_16")
    return tmp_path


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
            pd.DataFrame([FULL | {"votes": json.dumps(FULL["votes"])}]).to_csv(path, sep=delimiter, index=False)
    scan = read_corpus(path)
    assert scan.problems == []
    row = scan.manifest.table.to_pylist()[0]
    assert {k: row[k] for k in FULL} == {**FULL, "gender": "F"}
    assert row["duration"] == 0.05


def test_other_toolkits_columns(folder: Path) -> None:
    scan = read_corpus(
        table(folder, "file,speaker,gender,emotion", "./wav/a.wav,s1,w,anger", "wav/b.wav,s2,male,neutral")
    )
    first, second = scan.manifest.table.to_pylist()
    assert scan.problems == []
    assert (first["id"], first["audio"], first["label"]) == ("wav/a", "wav/a.wav", "anger")
    assert (first["gender"], second["gender"], first["dialogue"], first["turn"]) == ("F", "M", "wav/a", 0)
    path = table(folder, '{"key": "k-1", "wav": "wav/a.wav", "length": 99.0, "emo": "ang"}', name="emobox.jsonl")
    row = read_corpus(path).manifest.table.to_pylist()[0]
    assert (row["id"], row["audio"], row["label"]) == ("k-1", "wav/a.wav", "ang")
    assert row["duration"] == 0.05  # from the file, not from the table


def test_turns_follow_the_file_and_odd_line_ends_stay_in_a_row(folder: Path) -> None:
    lines = ["id,audio,dialogue,text", "1,wav/a.wav,x,one\u2028two\x85three", "2,wav/b.wav,y,", "3,wav/c.wav,x,"]
    manifest = read_corpus(table(folder, *lines)).manifest
    assert manifest.column("turn") == [0, 0, 1]
    assert manifest.column("text") == ["one\u2028two\x85three", None, None]


def test_every_bad_row_is_named_by_its_line(folder: Path) -> None:
    lines = [
        "id,audio,text,turn,valence,votes",
        "a,wav/a.wav,hello,0,2.5,",
        "b,,no audio,0,2.5,",
        "c,wav/c.wav,too,many,columns,here,see",
        "d,wav/b.wav,bad turn,first,2.5,",
        "e,wav/b.wav,bad valence,0,nan,",
        "f,wav/b.wav,bad votes,0,2.5," + "[" * 5000,
        "f,wav/b.wav,bad votes,0,2.5,[1]",
        'g,wav/b.wav,"two',
        'lines",0,inf,',
        "",
        "h,wav/c.wav,last,0,1,",
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
    for lines in (("file,audio", "wav/a.wav,wav/b.wav"), ("audio,text,text ", "wav/a.wav,one,two")):
        with pytest.raises(CorpusError, match=r"t\.csv .*: two columns stand for the (audio|text) \(.*, .*\): keep"):
            read_corpus(table(folder, *lines, name="t.csv"))
    twice = table(folder, "audio,note,note", "wav/a.wav,one,two")
    assert len(read_corpus(twice).manifest) == 1, "what is not read may stand there twice"
    lines = ('{"audio": "wav/a.wav", "emo": "x", "label": "y"}', '{"audio": "wav/b.wav"}')
    [problem] = read_corpus(table(folder, *lines, name="t.jsonl")).problems
    assert problem.reason.startswith("line 1: two columns stand for the label (emo, label)")
    columns = pa.table({"audio": ["wav/a.wav"], "label": [b"\xff"]})
    pq.write_table(columns, folder / "t.parquet")
    with pytest.raises(WrongUse, match=r"row 1: the label b'\\xff' is not valid Unicode"):
        read_corpus(folder / "t.parquet")
    pq.write_table(columns.append_column("file", [["wav/b.wav"]]), folder / "t.parquet")
    with pytest.raises(CorpusError, match="two columns stand for the audio"):
        read_corpus(folder / "t.parquet")


def test_the_next_step_goes_with_these_labels(folder: Path) -> None:
    """Labels of no policy, and a recording that cannot be used: `ser train` would refuse the plain command."""
    path = table(folder, "audio;label", "wav/a.wav;Freude", "wav/b.wav;Trauer", "wav/none.wav;Freude")
    done = ser("features", path, "--features", "logmel,mfcc", "--store", folder / "s", "--on-error", "skip")
    assert done.output.count("wav/none") == 1 and "quarantined in logmel, mfcc: wav/none: " in done.output
    assert done.exit_code == 3 and done.stderr.endswith(" --labels all --allow-missing\n")


def test_bad_json_lines(folder: Path) -> None:
    path = folder / "t.jsonl"
    path.write_text('{"wav": "wav/a.wav"}\n{"wav": \n[1]\n{"wav": "\\ud800.wav"}\n{"emo": "ang"}\n' + "[" * 100000)
    scan = read_corpus(path)
    assert scan.manifest.ids == ["wav/a"]
    assert [p.reason for p in scan.problems] == [
        "line 2: is not JSON",
        "line 3: is not a JSON object",
        "line 4: the audio '\\ud800.wav' is not valid Unicode",
        "line 5: has no audio",
        "line 6: is not JSON",
    ]


def test_a_manifest_without_audio(tmp_path: Path) -> None:
    path = tmp_path / "imported.csv"
    path.write_text("id,session,speaker,dialogue,turn,label,duration\nb,1,s1,d,1,ang,2.5\na,1,s1,d,0,neu,1.5\n")
    manifest = read_manifest(path, "imported")
    assert (manifest.corpus, manifest.ids) == ("imported", ["b", "a"])
    assert manifest.column("audio") == [None, None]
    assert manifest.column("duration") == [2.5, 1.5]
    for line, expected in [("a,1,s1,d,2,sad,1", "there twice"), ("c,1,s1,d,x,sad,1", "the turn 'x' is not a number")]:
        (tmp_path / "bad.csv").write_text(path.read_text() + line)
        with pytest.raises(CorpusError, match=f"line 4: .*{expected}"):
            read_manifest(tmp_path / "bad.csv", "imported")
