"""What a challenge takes: its header, its letters, every id once."""

import csv
from pathlib import Path

import numpy as np
import pytest

from ser.errors import CorpusError, WrongUse
from ser.predict.from_store import RunPredictions, StoredPredictions
from ser.predict.submission import FOLDER, read_format, write_submission
from ser.tests.command_line import ser
from ser.tests.tiny_store import make_manifest
from ser.train.experiment import Experiment, run_experiment

CLASSES = ("angry", "contempt", "disgust", "fearful", "happy", "neutral", "sad", "surprised")
IDS = ["MSP-PODCAST_test3_0002", "MSP-PODCAST_test3_0001", "MSP-PODCAST_test3_0003"]


def predictions(**changes: object) -> StoredPredictions:
    probabilities = np.eye(8, dtype=np.float32)[[1, 7, 3]]
    of_run = {
        "labels": ["contempt", "surprised", "fearful"],
        "probabilities": probabilities,
        "ratings": np.empty((3, 0)),
        "unusable": {},
        "notes": [],
        **changes,
    }
    classes = CLASSES if of_run["labels"][0] else ()
    return StoredPredictions(IDS, classes, {"run": RunPredictions(**of_run)})  # type: ignore[arg-type]


def lines(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("name", ["is25-cat", "odyssey24-cat"])
def test_classes_are_the_letters_of_the_corpus(tmp_path: Path, name: str) -> None:
    write_submission(tmp_path / "s.csv", name, predictions())
    assert lines(tmp_path / "s.csv") == [
        ["FileName", "EmoClass"],
        ["MSP-PODCAST_test3_0001.wav", "U"],
        ["MSP-PODCAST_test3_0002.wav", "C"],
        ["MSP-PODCAST_test3_0003.wav", "F"],
    ]
    assert sorted(read_format(name).words.values()) == list("ACDFHNSU")


@pytest.mark.parametrize("name", ["is25-dim", "odyssey24-dim"])
def test_ratings_are_held_to_the_scale(tmp_path: Path, name: str) -> None:
    """In the order of the challenge's own baseline: arousal, valence, dominance."""
    ratings = np.array([[0.5, 4.0, 7.5], [2.0, 3.0, 4.0], [1.0, 1.5, 2.0]])
    rated = predictions(
        labels=[None] * 3, probabilities=np.empty((3, 0), np.float32), ratings=ratings
    )
    write_submission(tmp_path / "s.csv", name, rated)
    assert lines(tmp_path / "s.csv")[:3] == [
        ["FileName", "EmoAct", "EmoVal", "EmoDom"],
        ["MSP-PODCAST_test3_0001.wav", "3.0", "2.0", "4.0"],
        ["MSP-PODCAST_test3_0002.wav", "4.0", "1.0", "7.0"],
    ]


def test_what_is_not_whole_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    with pytest.raises(CorpusError, match=r"1 of 3 .*such as MSP-PODCAST_test3_0002 \(too short"):
        write_submission(file, "is25-cat", predictions(unusable={IDS[0]: "too short"}))
    with pytest.raises(WrongUse, match="takes valence, arousal, dominance, and these runs learnt"):
        write_submission(file, "is25-dim", predictions())
    with pytest.raises(WrongUse, match="is25-cat"):
        write_submission(file, "is25-cats", predictions())
    assert not file.exists()
    assert len(list(FOLDER.glob("*.toml"))) == 4


def test_the_command_writes_a_format_of_ones_own(store: Path, tmp_path: Path) -> None:
    [run] = run_experiment(Experiment("is13", "linear", store, folds=1, out=tmp_path / "runs"))
    form = tmp_path / "mine.toml"
    form.write_text(
        'columns = { file = "{id}.flac", emotion = "predicted" }\n'
        'words = { ang = "A", hap = "H", neu = "N", sad = "S" }\n'
    )
    file = tmp_path / "s.csv"

    done = ser("predict", run.path, "--store", store, "--part", "2", "--submission", form, file)

    assert done.exit_code == 0, done.output
    header, *rows = lines(file)
    assert header == ["file", "emotion"]
    ids = [id_ for id_ in make_manifest().ids if "Ses02" in id_]
    assert [row[0] for row in rows] == sorted(f"{id_}.flac" for id_ in ids)
    assert {row[1] for row in rows} <= set("AHNS")

    form.write_text('columns = { emotion = "predicted" }\nwords = { ang = "A" }\n')
    refused = ser("predict", run.path, "--store", store, "--submission", form, file)
    assert refused.exit_code == 2
    assert "has no word for class hap" in refused.stderr
