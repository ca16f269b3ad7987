"""Scanning: audio files that lie, ids and paths that do, wrong paths, other transcripts."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser.errors import WrongUse
from ser.extract.audio import decode
from ser.extract.corpora.counts import summary
from ser.extract.corpora.scan import Scan, probe, read_corpus
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


def reasons(scan: Scan) -> list[str]:
    return [p.reason for p in scan.problems]


def test_a_cut_wav_is_noticed_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.wav", subtype="PCM_16").read_bytes()
    cut = tmp_path / "cut.wav"
    for length in [*range(1, 60), 100, 1000, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        found, fault = probe(cut)
        assert fault and found == {"audio_sha256": hashlib.sha256(whole[:length]).hexdigest(), "duration": None}, length
    assert "its data chunk says 3200 bytes, the file holds 3199" in str(fault)
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
        found, fault = probe(odd)
        if fault is None:
            assert found["duration"] == 0.1 and len(decode(odd).samples) == 1600 and decode(odd).warnings == []
        else:  # a libsndfile that reads nothing then: never half a file in silence
            assert content[40:44] == bytes(4) and "no samples" in str(fault)


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        ("../a.wav", "leaves the corpus with '..'"),
        ("x/../../a.wav", "leaves the corpus with '..'"),
        ("..\\a.wav", "leaves the corpus with '..'"),
        ("/etc/passwd", "is absolute"),
        ("C:/a.wav", "is absolute"),
        ("link.wav", "is a link that leaves the corpus"),
        ("linked/a.wav", "is a link that leaves the corpus"),
        ("a\0.wav", "control character"),
        ("a\x1b[31m.wav", "control character"),
    ],
)
def test_audio_paths_of_a_table_stay_under_its_folder(tmp_path: Path, audio: str, reason: str) -> None:
    write(tmp_path / "a.wav")
    folder = tmp_path / "corpus"
    write(folder / "good.wav")
    (folder / "link.wav").symlink_to(tmp_path / "a.wav")
    (folder / "linked").symlink_to(tmp_path)
    scan = read_corpus(table(folder, "id,audio", f"evil,{audio}", "good,good.wav"))
    assert scan.manifest.ids == ["good"]
    [problem] = scan.problems
    assert reason in problem.reason and problem.reason.startswith("line 2: ")


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("good", "line 3: the id good is there twice"),
        ("ne\u0301e", "line 4: the id ne\u0301e is there twice, in two Unicode spellings (NFC and NFD)"),
        ("a\0b", "holds a control character"),
        ("a\u202egpj", "holds a control character"),
        (" ", "the id is empty"),
    ],
)
def test_ids_that_cannot_be_keys_are_refused(tmp_path: Path, id: str, reason: str) -> None:
    write(tmp_path / "a.wav")
    lines = ["id,audio", "good,a.wav", f"{id},a.wav"]
    if "\u0301" in id:
        lines.insert(2, "n\u00e9e,a.wav")
    scan = read_corpus(table(tmp_path, *lines))
    assert scan.manifest.ids == [line.split(",")[0] for line in lines[1:-1]]
    [problem] = scan.problems
    assert reason in problem.reason and str(problem).isprintable()


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
    starts = b"\0\0\0\x1cftypM4A ", b"\x1aE\xdf\xa3", b"RIFF\0\1\0\0AVI LIST", b"0&\xb2u\x8ef\xcf\x11"
    g723 = b"RIFF\xe0\0\0\0WAVEfmt \x10\0\0\0\x42\0\1\0\x40\x1f\0\0\0\0\0\0\1\0\0\0data\x40\0\0\0"
    for start in (*starts, b"#!AMR\n", b"\xff\xf1P\x80", g723, b"\0\0\0\x08wide\0\0\1\0mdat", b"G@\0\x10", b".RMF"):
        (tmp_path / "a b.mp4").write_bytes(start + bytes(200))
        (tmp_path / "c.wav").write_bytes(start + bytes(200))
        scan = read_corpus(table(tmp_path, "audio", "good.wav", "a b.mp4", "c.wav"))
        found = [problem.reason.partition("`")[2] for problem in scan.problems]
        assert found == ["ffmpeg -i 'a b.mp4' -vn 'a b.wav'`", "ffmpeg -i c.wav -vn c.wav.wav && mv c.wav.wav c.wav`"]
    done = ser("features", table(tmp_path, "audio", "a b.mp4"), "--features", "logmel", "--store", tmp_path / "store")
    assert done.exit_code == 1 and "ffmpeg -i 'a b.mp4' -vn 'a b.wav'" in done.output


def test_wrong_paths_are_one_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "no.jsonl").write_text("hello")
    os.mkfifo(tmp_path / "pipe.csv")
    write(tmp_path / "music" / "song.wav")
    write(tmp_path / "tables" / "a.wav")
    table(tmp_path / "tables", "audio", "a.wav")
    for path, format, expected in [
        (tmp_path / "gone", None, "does not exist"),
        (empty, None, "is not a corpus that ser knows"),
        (tmp_path / "music", None, "is not a corpus that ser knows"),
        (tmp_path / "tables", None, "it holds corpus.csv: give that file"),
        (tmp_path / "notes.txt", None, "is not a table that ser can read"),
        (empty, "emodb", "holds no utterance"),
        (empty, "table", "is not a table"),
        (tmp_path / "no.jsonl", None, "line 1: is not JSON"),
        (tmp_path / "pipe.csv", None, "is not a file; give a CSV"),
        (tmp_path / "notes.txt", "iemocap", "holds no utterance"),
        (tmp_path / "notes.txt", "emodb", "holds no utterance"),
        (empty, "iemocup", "did you mean iemocap?"),
    ]:
        with pytest.raises(WrongUse) as caught:
            read_corpus(path, format)
        assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_names_of_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.wav")
    path = table(tmp_path, "audio", "a.wav", name="my corpus.csv")
    assert read_corpus(path).manifest.corpus == "my-corpus"
    assert read_corpus(path, name="mine").manifest.corpus == "mine"
    monkeypatch.setattr("ser.extract.corpora.scan.probe", None)  # a wrong name is refused before any file is read
    for name in ("../x", "", ".hidden", "a/b", "a\0", "x" * 80):
        with pytest.raises(WrongUse, match="cannot be called"):
            read_corpus(path, name=name)
    done = ser("features", path, "--features", "logmel", "--corpus-name", "x" * 80, "--store", tmp_path / "store")
    assert done.exit_code == 2 and not (tmp_path / "store").exists()


def test_limit_keeps_the_first(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.wav")
    path = table(tmp_path, "audio", "a.wav", "b.wav", "c.wav", "gone.wav")
    scan = read_corpus(path, limit=2)
    assert (scan.manifest.ids, scan.problems) == (["a", "b"], [])
    assert scan.manifest.digest == read_corpus(path, limit=2).manifest.digest != read_corpus(path).manifest.digest
    with pytest.raises(WrongUse, match="leaves no utterance"):
        read_corpus(path, limit=0)


def test_other_transcripts_are_another_corpus(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.wav")
    path = table(tmp_path, "audio,text", "a.wav,one", "b.wav,two", "c.wav,three")
    asr = tmp_path / "asr.jsonl"
    lines = [("b", "too"), ("a", 'w\t"n'), ("x", "?"), ("a", "")]
    asr.write_text("\n".join(json.dumps({"id": i, "text": t}) for i, t in lines))
    own, other = read_corpus(path), read_corpus(path, text=asr)
    assert other.manifest.corpus == "corpus-asr"
    assert other.manifest.column("text") == ['w\t"n', "too", None]
    assert other.manifest.column("audio_sha256") == own.manifest.column("audio_sha256")
    assert other.manifest.digest != own.manifest.digest
    assert reasons(other) == [
        "line 4: the id a is there twice",
        "line 3: the id 'x' is not in the corpus",
        "no transcript of this utterance",
    ]
    assert list(other.unusable("text")) == ["c"]
    assert read_corpus(path, text=asr, name="named").manifest.corpus == "named"


def test_transcripts_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    path = table(tmp_path, "audio", "a.wav")
    with pytest.raises(WrongUse, match="is not a file"):
        read_corpus(path, text=tmp_path / "gone.csv")
    with pytest.raises(WrongUse, match="has no id column"):
        read_corpus(path, text=table(tmp_path, "name,words", "a,hello", name="asr.csv"))
    (tmp_path / "asr.jsonl").write_text('{"id": "a", "text": "\\ud800"}\n{"id": 7, "text": "x"}\n')
    assert reasons(read_corpus(path, text=tmp_path / "asr.jsonl"))[:2] == [
        "line 1: the text '\\ud800' is not valid Unicode",
        "line 2: the id '7' is not in the corpus",
    ]


def test_summary_is_json_with_the_contract_keys(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.wav")
    lines = ["a.wav,F,1,exc", "b.wav,M,1,neu", "c.wav,F,2,xxx", "d.wav,F,2,fru"]
    scan = read_corpus(table(tmp_path, "file,gender,session,emotion", *lines))
    found = json.loads(json.dumps(summary(scan)))
    assert (found["utterances"], found["dialogues"], found["speakers"]) == (4, 4, 0)
    assert found["hours"] == pytest.approx(0.3 / 3600, abs=1e-4)
    assert (found["genders"], found["sessions"]) == ({"F": 3, "M": 1}, {"1": 2, "2": 2})
    assert found["labels"] == {"exc": 1, "fru": 1, "neu": 1, "xxx": 1}
    assert found["policies"] == {"4class": 2, "5class": 3, "6class": 3, "8class": 3}
    assert found["durations"] == dict.fromkeys(("min", "median", "p95", "p99", "max"), 0.1)
    reason = "cannot be opened (No such file or directory)"
    assert found["problems"] == [{"id": "d", "path": "d.wav", "reason": reason, "kind": "audio"}]
    assert found["differences"] == []
