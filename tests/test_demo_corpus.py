"""The demo corpus: what is in it, that it is the same each time, and that the release's parser reads all of it."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser.cache.manifest import IEMOCAP
from ser.errors import WrongUse
from ser.extract.corpora import demo
from ser.extract.corpora.counts import count_all, summary
from ser.extract.corpora.demo import demo_vocabulary, write_demo
from ser.extract.corpora.iemocap import DEMO_MARKER
from ser.extract.corpora.scan import Scan, read_corpus


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def scan(demo_corpus: Path) -> Scan:
    return read_corpus(demo_corpus)


def test_the_same_bytes_each_time(demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over itself too; of the first scene of each session."""
    monkeypatch.setattr(demo.DATA, "arcs", dict([*demo.DATA.arcs.items()][:1]))
    write_demo(tmp_path)
    next(tmp_path.rglob("*.wav")).write_bytes(b"cut short")
    write_demo(tmp_path)
    found = digests(tmp_path)
    assert found.items() <= digests(demo_corpus).items() and len(list(tmp_path.glob("Session*/sentences/wav/*"))) == 5


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / DEMO_MARKER).write_text('{"synthetic": true, "version": 0, "seed": 0}')
    for folder in (tmp_path, tmp_path / "thesis.txt", tmp_path / "older"):
        with pytest.raises(WrongUse, match="is not the demo corpus of this ser"):
            write_demo(folder)
    assert len(list(tmp_path.rglob("*"))) == 3


def test_counts(scan: Scan) -> None:
    assert (scan.format, scan.manifest.corpus, scan.manifest.synthetic) == ("iemocap", "demo", True)
    assert (scan.problems, summary(scan)["differences"]) == ([], [])
    found = count_all(scan.manifest)
    assert found["utterances"] >= 300 and found["dialogues"] >= 20 and found["speakers"] == 10
    assert list(found["sessions"]) == ["1", "2", "3", "4", "5"] and set(found["labels"]) == set(IEMOCAP["labels"])
    assert all(min(classes.values()) >= 5 for classes in found["4class per session"].values())
    durations = found["durations"]
    assert found["hours"] <= 0.25 and 0.6 <= durations["min"] <= 0.8 and 6 <= durations["max"] <= 8


def test_audio_is_clean_speech_at_16_khz(demo_corpus: Path, scan: Scan) -> None:
    for row in scan.manifest.table.to_pylist():
        samples, rate = soundfile.read(demo_corpus / row["audio"], dtype="float32")
        assert (rate, samples.ndim) == (16000, 1)
        assert soundfile.info(demo_corpus / row["audio"]).subtype == "PCM_16"
        assert abs(len(samples) / rate - (row["end"] - row["start"])) < 2e-4
        assert np.sqrt(np.mean(samples**2)) > 0.005
        assert np.abs(samples).max() < 0.99


def test_the_irregular_lines_are_there(demo_corpus: Path, scan: Scan) -> None:
    transcripts = b"".join(p.read_bytes() for p in sorted(demo_corpus.rglob("transcriptions/Ses*.txt")))
    marked = rb"_FXX0 \[", rb"_MXX1 \[", rb"\nM: ", rb"\nF:\[", rb"\nF : "
    for line in (*marked, rb"\[laughter\]", rb": \[\w+\]\n", rb"caf\xe9"):
        assert re.search(line, transcripts), line
    evaluations = "".join(p.read_text() for p in sorted(demo_corpus.rglob("EmoEvaluation/Ses*.txt")))
    for line in (r"C-E2:\t\w+; \w+;", r"dom  \d;", r"dom  ;", r"C-F1:", r"\[5\.5000, "):
        assert re.search(line, evaluations), line
    assert len(list(demo_corpus.rglob("._*"))) == 75
    texts = scan.manifest.column("text")
    for part in ("\t", ";", '"', "é"):
        assert any(part in text for text in texts), part
    assert {"Ses05M_script01_1", "Ses05M_script01_1b", "Ses03M_impro05a"} <= set(scan.manifest.column("dialogue"))
    prefixes = [id[5] == id.rpartition("_")[2][0] for id in scan.manifest.ids]
    assert 0.3 < np.mean(prefixes) < 0.7


def test_the_emotion_drifts_along_a_dialogue_and_the_vocabulary_covers_it(scan: Scan) -> None:
    rows, words = scan.manifest.table.to_pylist(), set(demo_vocabulary())
    early = np.mean([r["label"] == "neu" for r in rows if r["turn"] < 4])
    assert early > 2 * np.mean([r["label"] == "neu" for r in rows if r["turn"] > 8])
    assert all(set(re.findall(r"\w+|[^\w\s]", row["text"].lower())) <= words for row in rows) and len(words) < 300
