"""The demo corpus: what is in it, that it is the same each time, and that the release's parser reads all of it."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser.errors import WrongUse
from ser.extract.corpora.counts import count_all, differences
from ser.extract.corpora.demo import demo_vocabulary, write_demo
from ser.extract.corpora.iemocap import DEMO_MARKER, LABELS
from ser.extract.corpora.scan import Scan, read_corpus


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    write_demo(folder)
    return folder


@pytest.fixture(scope="module")
def scan(root: Path) -> Scan:
    return read_corpus(root)


def test_the_same_bytes_each_time(root: Path, tmp_path: Path) -> None:
    write_demo(tmp_path)
    first = digests(root)
    assert digests(tmp_path) == first
    write_demo(tmp_path)  # over itself
    assert digests(tmp_path) == first


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(WrongUse, match="is not a demo corpus"):
        write_demo(tmp_path)
    with pytest.raises(WrongUse, match="is a file"):
        write_demo(tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / DEMO_MARKER).write_text('{"synthetic": true, "version": 0, "seed": 0}')
    with pytest.raises(WrongUse, match="another version"):
        write_demo(tmp_path / "older")


def test_counts(scan: Scan) -> None:
    assert (scan.format, scan.manifest.corpus, scan.manifest.synthetic) == ("iemocap", "demo", True)
    assert scan.problems == []
    assert differences(scan) == []
    found = count_all(scan.manifest)
    assert found["utterances"] >= 300
    assert found["dialogues"] >= 20
    assert found["speakers"] == 10
    assert list(found["sessions"]) == ["1", "2", "3", "4", "5"]
    assert set(found["labels"]) == set(LABELS)
    assert all(min(classes.values()) >= 5 for classes in found["4class per session"].values())
    assert found["hours"] <= 0.25
    assert 0.6 <= found["durations"]["min"] <= 0.8
    assert 6 <= found["durations"]["max"] <= 8


def test_audio_is_clean_speech_at_16_khz(root: Path, scan: Scan) -> None:
    for row in scan.manifest.table.to_pylist():
        samples, rate = soundfile.read(root / row["audio"], dtype="float32")
        assert (rate, samples.ndim) == (16000, 1)
        assert soundfile.info(root / row["audio"]).subtype == "PCM_16"
        assert abs(len(samples) / rate - (row["end"] - row["start"])) < 2e-4
        assert np.sqrt(np.mean(samples**2)) > 0.005
        assert np.abs(samples).max() < 0.99


def test_the_irregular_lines_are_there(root: Path, scan: Scan) -> None:
    transcripts = b"".join(p.read_bytes() for p in sorted(root.rglob("transcriptions/Ses*.txt")))
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
    evaluations = "".join(p.read_text() for p in sorted(root.rglob("EmoEvaluation/Ses*.txt")))
    for line in (r"C-E2:\t\w+; \w+;", r"dom  \d;", r"dom  ;", r"C-F1:", r"\[5\.5000, "):
        assert re.search(line, evaluations), line
    assert len(list(root.rglob("._*"))) == 75
    texts = scan.manifest.column("text")
    for part in ("\t", ";", '"', "é"):
        assert any(part in text for text in texts), part
    assert {"Ses05M_script01_1", "Ses05M_script01_1b", "Ses03M_impro05a"} <= set(scan.manifest.column("dialogue"))
    prefixes = [id[5] == id.rpartition("_")[2][0] for id in scan.manifest.ids]
    assert 0.3 < np.mean(prefixes) < 0.7


def test_the_emotion_drifts_along_a_dialogue(scan: Scan) -> None:
    rows = scan.manifest.table.to_pylist()
    early = np.mean([r["label"] == "neu" for r in rows if r["turn"] < 4])
    late = np.mean([r["label"] == "neu" for r in rows if r["turn"] > 8])
    assert early > 2 * late


def test_the_vocabulary_covers_every_text(scan: Scan) -> None:
    words = set(demo_vocabulary())
    for text in scan.manifest.column("text"):
        assert set(re.findall(r"\w+|[^\w\s]", text.lower())) <= words
    assert len(words) < 300


def test_voice_and_words_each_tell_something_and_both_tell_more(root: Path, scan: Scan) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = {"ang": 0, "hap": 1, "exc": 1, "neu": 2, "sad": 3}
    rows = [r for r in scan.manifest.table.to_pylist() if r["label"] in classes]
    truth = [classes[r["label"]] for r in rows]

    def bands(audio: str) -> np.ndarray:
        samples = soundfile.read(root / audio)[0]
        frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::160] * np.hanning(512)
        power = np.abs(np.fft.rfft(frames)) ** 2
        logs = np.log(np.add.reduceat(power, np.unique(np.geomspace(1, 250, 40).astype(int)), axis=1) + 1e-6)
        return np.concatenate([logs.mean(0), logs.std(0)])

    def probabilities(x: np.ndarray, c: float) -> np.ndarray:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        groups = [r["session"] for r in rows]
        return cross_val_predict(model, x, truth, groups=groups, cv=LeaveOneGroupOut(), method="predict_proba")

    audio = probabilities(np.stack([bands(r["audio"]) for r in rows]), 0.02)
    counts = CountVectorizer(token_pattern=r"\w+").fit_transform([r["text"] for r in rows])
    text = probabilities(counts.toarray().astype(float), 0.05)

    def ua(p: np.ndarray) -> float:
        return recall_score(truth, p.argmax(1), average="macro")

    assert 0.5 < ua(audio) < 0.8
    assert 0.5 < ua(text) < 0.8
    assert ua(audio * text) > max(ua(audio), ua(text)) + 0.05
