"""Scanning: audio files that lie, ids and paths that do, wrong paths, other transcripts, tables of
any corpus.
"""

import hashlib
import json
import os
from collections.abc import Callable
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
from ser.extract.corpora.probe import probe
from ser.extract.corpora.scan import scan_corpus
from ser.extract.corpora.table import read_manifest
from ser.tests.command_line import printed, ser
from ser.tests.named_commands import next_command

TONE = 0.3 * np.sin(np.arange(1600) / 5)


def write(path: Path, samples: np.ndarray = TONE, rate: int = 16000, **format_options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **format_options)
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
    # Which soundfile does not mind.
    assert soundfile.read(cut)[0].size == 1599


def large_chunk_before_the_data(wav: bytes) -> bytes:
    """The WAV file with 5 MiB of metadata in front of its samples."""
    length = 5 << 20
    chunk = b"LIST" + length.to_bytes(4, "little") + bytes(length)
    size = (len(wav) + length).to_bytes(4, "little")
    return wav[:4] + size + wav[8:36] + chunk + wav[36:]


ODD_WAVS: dict[str, Callable[[bytes], bytes]] = {
    "a chunk behind the data": lambda wav: wav + b"LIST\x04\x00\x00\x00abcd",
    # As written into a pipe; as is the next one.
    "a data size of all ones": lambda wav: wav[:40] + b"\xff\xff\xff\xff" + wav[44:],
    "a data size of zero": lambda wav: wav[:40] + bytes(4) + wav[44:],
    "a chunk of odd length": lambda wav: wav[:36] + b"LIST\x03\x00\x00\x00abc\x00" + wav[36:],
    "a large chunk before the data": large_chunk_before_the_data,
}


@pytest.mark.parametrize("kind", ODD_WAVS)
def test_odd_but_whole_wav_files(tmp_path: Path, kind: str) -> None:
    plain = write(tmp_path / "a.wav", subtype="PCM_16").read_bytes()
    odd = tmp_path / "odd.wav"
    odd.write_bytes(ODD_WAVS[kind](plain))

    probed = probe(odd)

    if probed.fault is not None:
        # A libsndfile that reads nothing then: never half a file in silence.
        assert kind == "a data size of zero"
        assert "no samples" in str(probed.fault)
        return
    assert probed.duration == 0.1
    assert len(decode(odd).samples) == 1600
    assert decode(odd).warnings == []


WRONG_ROWS = {
    "a path above the corpus": ("evil", "../a.wav", "leaves the corpus with '..'"),
    "a path above, behind a folder": ("evil", "x/../../a.wav", "leaves the corpus with '..'"),
    "a path above, with backslashes": ("evil", "..\\a.wav", "leaves the corpus with '..'"),
    "an absolute path": ("evil", "/etc/passwd", "is absolute"),
    "a drive": ("evil", "C:/a.wav", "is absolute"),
    "a link out of the corpus": ("evil", "link.wav", "is a link that leaves the corpus"),
    "a linked folder": ("evil", "linked/a.wav", "is a link that leaves the corpus"),
    "NUL in a path": ("evil", "a\0.wav", "control character"),
    "an escape in a path": ("evil", "a\x1b[31m.wav", "control character"),
    "an id twice": ("good", "a.wav", "the id good is there twice"),
    "an id in two spellings": (
        "ne\u0301e",
        "a.wav",
        "the id ne\u0301e is there twice, in two Unicode spellings (NFC and NFD)",
    ),
    "NUL in an id": ("a\0b", "a.wav", "holds a control character"),
    "an id that turns writing around": ("a\u202egpj", "a.wav", "holds a control character"),
    "a blank id": (" ", "a.wav", "has no id"),
}


@pytest.mark.parametrize("kind", WRONG_ROWS)
def test_ids_and_audio_paths_of_a_table_that_cannot_be_are_refused(folder: Path, kind: str) -> None:
    id_, audio, reason = WRONG_ROWS[kind]
    inside = folder / "inside"
    write(inside / "a.wav")
    (inside / "link.wav").symlink_to(folder / "a.wav")
    (inside / "linked").symlink_to(folder)
    lines = ["id,audio", "good,a.wav", "n\u00e9e,a.wav", f"{id_},{audio}"]

    scan = scan_corpus(table(inside, *lines))

    assert scan.manifest.ids == ["good", "n\u00e9e"]
    [problem] = scan.problems
    assert problem.reason.startswith("line 4: ")
    assert reason in problem.reason
    assert str(problem).isprintable()


def test_a_linked_corpus_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "03a01Fa.wav")
    (tmp_path / "disk" / "03a02Fa.wav").symlink_to("03a01Fa.wav")
    (tmp_path / "emodb").mkdir()
    (tmp_path / "emodb" / "wav").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(tmp_path / "emodb")

    for folder in ("emodb", "link"):
        scan = scan_corpus(tmp_path / folder)
        assert scan.manifest.ids == ["03a01Fa", "03a02Fa"]
        assert scan.problems == []

    table(tmp_path / "disk", "audio", "03a01Fa.wav", "03a02Fa.wav")
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    assert scan_corpus(tmp_path / "linked" / "corpus.csv").problems == []

    printed("features", tmp_path / "link", "--features", "logmel", "--store", tmp_path / "store")


CODED_STARTS = {
    "MPEG-4 audio": b"\0\0\0\x1cftypM4A ",
    "Matroska": b"\x1aE\xdf\xa3",
    "AVI": b"RIFF\0\1\0\0AVI LIST",
    "ASF": b"0&\xb2u\x8ef\xcf\x11",
    "AMR": b"#!AMR\n",
    "AAC": b"\xff\xf1P\x80",
    "WAV of G.723": (
        b"RIFF\xe0\0\0\0WAVEfmt \x10\0\0\0\x42\0\1\0\x40\x1f\0\0\0\0\0\0\1\0\0\0data\x40\0\0\0"
    ),
    "QuickTime": b"\0\0\0\x08wide\0\0\1\0mdat",
    "MPEG transport stream": b"G@\0\x10",
    "RealMedia": b".RMF",
}


@pytest.mark.parametrize("kind", CODED_STARTS)
def test_video_and_coded_audio_come_with_the_line_that_converts_them(
    tmp_path: Path, kind: str
) -> None:
    write(tmp_path / "good.wav")
    content = CODED_STARTS[kind] + bytes(200)
    (tmp_path / "a b.mp4").write_bytes(content)
    (tmp_path / "c.wav").write_bytes(content)

    scan = scan_corpus(table(tmp_path, "audio", "good.wav", "a b.mp4", "c.wav"))

    commands = [problem.reason.partition("`")[2] for problem in scan.problems]
    assert commands == [
        "ffmpeg -i 'a b.mp4' -vn 'a b.wav'`",
        "ffmpeg -i c.wav -vn c.wav.wav && mv c.wav.wav c.wav`",
    ]


FILES = {
    "notes.txt": b"hello",
    "no.jsonl": b"hello",
    "no.parquet": b"PAR1 not really",
    "empty.csv": b"",
    "silent.csv": b"speaker,emotion\ns1,anger\n",
    "open.csv": b'audio,text\na.wav,"never closed\n',
    "long.csv": b"audio,text\na.wav," + b"x" * 200_000 + b"\n",
}


def test_a_corpus_of_videos_alone_fails_with_the_line_that_converts_them(tmp_path: Path) -> None:
    (tmp_path / "a b.mp4").write_bytes(CODED_STARTS["RealMedia"] + bytes(200))
    corpus = table(tmp_path, "audio", "a b.mp4")

    done = ser("features", corpus, "--features", "logmel", "--store", tmp_path / "store")

    assert done.exit_code == 1
    assert "ffmpeg -i 'a b.mp4' -vn 'a b.wav'" in done.output


NO_CORPORA = {
    "nothing": ("gone", None, "does not exist"),
    "an empty folder": ("empty", None, "is not a corpus that ser knows"),
    "a folder of music": ("music", None, "is not a corpus that ser knows"),
    "a folder with a table": (".", None, "it holds empty.csv: give that file"),
    "a text file": ("notes.txt", None, "is not a table that ser can read"),
    "an empty folder as EmoDB": ("empty", "emodb", "holds no utterance"),
    "an empty folder as a table": ("empty", "table", "is not a table"),
    "a text file as IEMOCAP": ("notes.txt", "iemocap", "holds no utterance"),
    "a text file as EmoDB": ("notes.txt", "emodb", "holds no utterance"),
    "a misspelt format": ("empty", "iemocup", "did you mean iemocap?"),
    "a pipe": ("pipe.csv", None, "is not a file; give a CSV"),
    "JSON lines that are none": ("no.jsonl", None, "line 1: is not JSON"),
    "parquet that is none": ("no.parquet", None, "cannot be read as parquet"),
    "an empty table": ("empty.csv", None, "has no audio column"),
    "a table without audio": ("silent.csv", None, "has no audio column (speaker, emotion)"),
    "an open quote": ("open.csv", None, "cannot be read as csv: line 2: "),
    "a field too long": ("long.csv", None, "cannot be read as csv: line 2: "),
}


@pytest.mark.parametrize("kind", NO_CORPORA)
def test_what_is_no_corpus_is_refused_in_one_sentence(folder: Path, kind: str) -> None:
    path, format_, sentence = NO_CORPORA[kind]
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe.csv")
    write(folder / "music" / "song.wav")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)

    with pytest.raises((WrongUse, CorpusError)) as caught:
        scan_corpus(folder / path, format_)

    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_corpora(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(folder, "audio", "a.wav", name="my corpus.csv")
    assert scan_corpus(path).manifest.corpus == "my-corpus"
    assert scan_corpus(path, name="mine").manifest.corpus == "mine"

    # A wrong name is refused before any file is read.
    monkeypatch.setattr("ser.extract.corpora.measure.probe", None)
    for name in ("../x", "", ".hidden", "a/b", "a\0", "x" * 80):
        with pytest.raises(WrongUse, match="cannot be called"):
            scan_corpus(path, name=name)

    store = folder / "store"
    options = ["--features", "logmel", "--corpus-name", "x" * 80, "--store", store]
    done = ser("features", path, *options)
    assert done.exit_code == 2
    assert not store.exists()


def test_limit_spreads_over_the_corpus(folder: Path) -> None:
    path = table(folder, "audio", "a.wav", "b.wav", "c.wav", "gone.wav")

    scan = scan_corpus(path, limit=2)

    assert scan.manifest.ids == ["a", "c"]
    assert scan.problems == []
    assert scan.manifest.digest == scan_corpus(path, limit=2).manifest.digest
    assert scan.manifest.digest != scan_corpus(path).manifest.digest
    with pytest.raises(WrongUse, match="leaves no utterance"):
        scan_corpus(path, limit=0)


def test_other_transcripts_are_another_corpus(folder: Path) -> None:
    path = table(folder, "audio,text", "a.wav,one", "b.wav,two", "c.wav,three")
    heard = [("b", "too"), ("a", 'w\t"n'), ("x", "?"), ("a", ""), (7, "x"), ("c", "\ud800")]
    lines = [json.dumps({"id": id_, "text": text}) for id_, text in heard]
    asr = table(folder, *lines, name="asr.jsonl")

    plain = scan_corpus(path).manifest
    scan = scan_corpus(path, text=asr)

    other = scan.manifest
    assert other.corpus == "corpus-asr"
    assert other.column("text") == ['w\t"n', "too", None]
    assert other.column("audio_sha256") == plain.column("audio_sha256")
    assert other.digest != plain.digest
    assert [problem.reason for problem in scan.problems] == [
        "line 6: the text '\\ud800' is not valid Unicode",
        "line 4: the id a is there twice",
        "line 3: the id 'x' is not in the corpus",
        "line 5: the id '7' is not in the corpus",
        "no transcript of this utterance",
    ]
    assert list(scan.unusable("text")) == ["c"]
    assert scan_corpus(path, text=asr, name="named").manifest.corpus == "named"


def test_other_transcripts_that_cannot_be_read_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(folder, "audio,text", "a.wav,one", "b.wav,two", "c.wav,three")
    with pytest.raises(WrongUse, match="is not a file"):
        scan_corpus(path, text=folder / "gone.csv")

    nameless = table(folder, "name,words", "a,hello", name="asr.csv")
    with pytest.raises(WrongUse, match="has no id column"):
        scan_corpus(path, text=nameless)

    # A name is refused before any audio is read.
    monkeypatch.setattr("ser.extract.corpora.measure.probe", None)
    long_name = table(folder, "id,text", "a,hello", name=f"{'a' * 64}.csv")
    with pytest.raises(WrongUse, match=r"cannot be called 'corpus-a{64}'"):
        scan_corpus(path, text=long_name)


def test_summary_is_json_with_the_contract_keys(folder: Path) -> None:
    lines = ["a.wav,F,1,exc", "b.wav,M,1,neu", "c.wav,F,2,xxx", "d.wav,F,2,fru"]
    scan = scan_corpus(table(folder, "file,gender,session,emotion", *lines))

    told = json.loads(json.dumps(summary(scan)))

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
    assert {name: told[name] for name in expected} == expected


# Tables
# ----------------------------------------

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


SEPARATORS = {"csv": ",", "semicolon": ";"}


def write_row(path: Path, kind: str, row: dict[str, object]) -> None:
    """A table of one row as this kind of file."""
    match kind:
        case "parquet":
            pq.write_table(pa.Table.from_pylist([row]), path)
        case "jsonl":
            path.write_text(json.dumps(row) + "\n\n")
        case "tsv":
            # It has no quotation: what holds a tab or a line end cannot be written.
            cells = [
                json.dumps(row["votes"]) if name == "votes" else str(row[name]) for name in row
            ]
            path.write_text("\t".join(row) + "\n" + "\t".join(cells) + "\n")
        case _:
            # A cell holds the votes as JSON.
            frame = pd.DataFrame([{**row, "votes": json.dumps(row["votes"])}])
            frame.to_csv(path, sep=SEPARATORS[kind], index=False)


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "jsonl", "parquet"])
def test_every_column_in_every_kind_of_file(folder: Path, kind: str) -> None:
    suffix = "csv" if kind == "semicolon" else kind
    path = folder / f"t.{suffix}"
    values = dict(FULL)
    if kind == "tsv":
        values["text"] = 'He said "no"; then, here.'
    write_row(path, kind, values)

    scan = scan_corpus(path)

    assert scan.problems == []
    [row] = scan.manifest.table.to_pylist()
    assert {name: row[name] for name in FULL} == {**values, "gender": "F"}
    assert row["duration"] == 0.1


def test_other_toolkits_columns(folder: Path) -> None:
    write(folder / "wav" / "a.wav")
    lines = ["file,speaker,gender,emotion", "./wav/a.wav,s1,w,anger", "b.wav,s2,male,neutral"]

    scan = scan_corpus(table(folder, *lines))

    assert scan.problems == []
    first, second = scan.manifest.table.to_pylist()
    assert first["id"] == "wav/a"
    assert first["audio"] == "wav/a.wav"
    assert first["label"] == "anger"
    assert first["gender"] == "F"
    assert second["gender"] == "M"
    assert first["dialogue"] == "wav/a"
    assert first["turn"] == 0


def test_emoboxs_columns(folder: Path) -> None:
    line = '{"key": "k-1", "wav": "a.wav", "length": 99.0, "emo": "ang"}'

    scan = scan_corpus(table(folder, line, name="emobox.jsonl"))

    [row] = scan.manifest.table.to_pylist()
    assert row["id"] == "k-1"
    assert row["audio"] == "a.wav"
    assert row["label"] == "ang"
    # From the file, not from the table.
    assert row["duration"] == 0.1


def test_turns_follow_the_file_and_odd_line_ends_stay_in_a_row(folder: Path) -> None:
    lines = [
        "id,audio,dialogue,text",
        "1,a.wav,x,one\u2028two\x85three",
        "2,b.wav,y,",
        "3,c.wav,x,",
    ]

    manifest = scan_corpus(table(folder, *lines)).manifest

    assert manifest.column("turn") == [0, 0, 1]
    assert manifest.column("text") == ["one\u2028two\x85three", None, None]


def test_every_bad_row_is_named_by_its_line(folder: Path) -> None:
    lines = [
        "id,audio,text,turn,valence,votes",
        "a,a.wav,hello,0,2.5,",
        "b,,no audio,0,2.5,",
        "c,c.wav,too,many,columns,here,see",
        "d,b.wav,bad turn,first,2.5,",
        "e,b.wav,bad valence,0,many,",
        "f,b.wav,bad votes,0,2.5," + "[" * 5000,
        "f,b.wav,bad votes,0,2.5,[1]",
        'g,b.wav,"two',
        'lines",0,inf,',
        "",
        "h,c.wav,last,0,1,",
    ]

    scan = scan_corpus(table(folder, *lines))

    assert scan.manifest.ids == ["a", "h"]
    assert [problem.reason for problem in scan.problems] == [
        "line 3: has no audio",
        "line 4: has 7 columns where the header has 6",
        "line 5: the turn 'first' is not a whole number from 0",
        "line 6: the valence 'many' is not a number",
        f'line 7: the votes \'{"[" * 59} is not JSON such as [["ang"], ["neu", "sad"]]',
        'line 8: the votes \'[1]\' is not JSON such as [["ang"], ["neu", "sad"]]',
        "lines 9 to 10: the valence 'inf' is not a number",
    ]


def test_two_columns_for_one_thing_and_bytes_for_text_are_refused(folder: Path) -> None:
    for lines in (("file,audio", "a.wav,b.wav"), ("audio,text,text ", "a.wav,one,two")):
        with pytest.raises(
            CorpusError, match=r"t\.csv .*: two columns stand for the (audio|text) \(.*, .*\): keep"
        ):
            scan_corpus(table(folder, *lines, name="t.csv"))
    twice = table(folder, "audio,note,note", "a.wav,one,two")
    assert len(scan_corpus(twice).manifest) == 1, "what is not read may stand there twice"
    lines = ('{"audio": "a.wav", "emo": "x", "label": "y"}', '{"audio": "b.wav"}')
    [problem] = scan_corpus(table(folder, *lines, name="t.jsonl")).problems
    assert problem.reason.startswith("line 1: two columns stand for the label (emo, label)")
    columns = pa.table({"audio": ["a.wav"], "label": [b"\xff"]})
    pq.write_table(columns, folder / "t.parquet")
    with pytest.raises(WrongUse, match=r"row 1: the label b'\\xff' is not valid Unicode"):
        scan_corpus(folder / "t.parquet")
    pq.write_table(columns.append_column("file", [["b.wav"]]), folder / "t.parquet")
    with pytest.raises(CorpusError, match="two columns stand for the audio"):
        scan_corpus(folder / "t.parquet")


def test_two_columns_for_one_thing_are_refused(folder: Path) -> None:
    fault = r"t\.csv .*: two columns stand for the (audio|text) \(.*, .*\): keep"
    for lines in (["file,audio", "a.wav,b.wav"], ["audio,text,text ", "a.wav,one,two"]):
        with pytest.raises(CorpusError, match=fault):
            scan_corpus(table(folder, *lines, name="t.csv"))

    twice = table(folder, "audio,note,note", "a.wav,one,two")
    assert len(scan_corpus(twice).manifest) == 1, "what is not read may stand there twice"

    lines = ['{"audio": "a.wav", "emo": "x", "label": "y"}', '{"audio": "b.wav"}']
    [problem] = scan_corpus(table(folder, *lines, name="t.jsonl")).problems
    assert problem.reason.startswith("line 1: two columns stand for the label (emo, label)")

    columns = pa.table({"audio": ["a.wav"], "label": [b"\xff"], "file": ["b.wav"]})
    pq.write_table(columns, folder / "t.parquet")
    with pytest.raises(CorpusError, match="two columns stand for the audio"):
        scan_corpus(folder / "t.parquet")


def test_bytes_for_text_are_refused(folder: Path) -> None:
    columns = pa.table({"audio": ["a.wav"], "label": [b"\xff"]})
    pq.write_table(columns, folder / "t.parquet")

    with pytest.raises(WrongUse, match=r"row 1: the label b'\\xff' is not valid Unicode"):
        scan_corpus(folder / "t.parquet")


def test_the_next_step_goes_with_these_labels(folder: Path) -> None:
    """Labels of no policy, and a recording that cannot be used.

    `ser train` would refuse the plain command.
    """
    rows = ["bad;none.wav;Freude"]
    for number in range(12):
        rows.append(f"a{number};a.wav;Freude")
        rows.append(f"b{number};b.wav;Trauer")
    path = table(folder, "id;audio;label", *rows)
    options = ["--features", "logmel,mfcc", "--store", folder / "s", "--on-error", "skip"]

    done = ser("features", path, *options)

    assert done.output.count("bad") == 1
    assert "quarantined in logmel, mfcc: bad: " in done.output
    assert done.exit_code == 3
    options = " --labels all --protocol random-70-20-10 --allow-missing\n"
    assert options in done.stderr

    # All of these recordings are the same one, of which nothing can be learnt.
    trained = ser(*next_command(done))
    assert trained.exit_code == 2
    assert "all have the same features" in trained.stderr


def test_bad_json_lines(folder: Path) -> None:
    lines = [
        '{"wav": "a.wav"}',
        '{"wav": ',
        "[1]",
        '{"wav": "\\ud800.wav"}',
        '{"emo": "ang"}',
        "[" * 100000,
    ]
    path = folder / "t.jsonl"
    path.write_text("\n".join(lines))

    scan = scan_corpus(path)

    assert scan.manifest.ids == ["a"]
    assert [problem.reason for problem in scan.problems] == [
        "line 2: is not JSON",
        "line 3: is not a JSON object",
        "line 4: the audio '\\ud800.wav' is not valid Unicode",
        "line 5: has no audio",
        "line 6: is not JSON",
    ]


IMPORTED = [
    "id,session,speaker,dialogue,turn,label,duration",
    "b,1,s1,d,1,ang,2.5",
    "a,1,s1,d,0,neu,1.5",
]


def test_a_manifest_without_audio(tmp_path: Path) -> None:
    manifest = read_manifest(table(tmp_path, *IMPORTED), "imported").manifest

    assert manifest.corpus == "imported"
    assert manifest.ids == ["b", "a"]
    assert manifest.column("audio") == [None, None]
    assert manifest.column("duration") == [2.5, 1.5]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        pytest.param("a,1,s1,d,2,sad,1", "there twice", id="an id twice"),
        pytest.param("c,1,s1,d,x,sad,1", "turn 'x' is not a whole number", id="a turn of letters"),
    ],
)
def test_a_bad_row_of_a_manifest_without_audio_is_refused(
    tmp_path: Path, line: str, fault: str
) -> None:
    path = table(tmp_path, *IMPORTED, line)

    with pytest.raises(CorpusError, match=f"line 4: .*{fault}"):
        read_manifest(path, "imported")
