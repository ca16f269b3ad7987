"""Segments where features are imported and exported, transcribed and predicted."""

import csv
import json
from pathlib import Path

import audformat
import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from ser.cache.store import open_store
from ser.extract.corpora.scan import scan_corpus
from ser.predict import Predictor, Turn
from ser.predict.importance import importances
from ser.tests.command_line import printed, ser
from ser.train.run_folder import find_runs

RATE = 44100
COUNT = 12
SECONDS = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noises of two colours, in one recording with a table of segments, and as files of their own.

    Beside them a store with the features of the segments, and a run that was trained on them.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    rng = np.random.default_rng(0)
    (folder / "cut").mkdir()
    pieces = []
    rows = []
    for number in range(COUNT):
        noise = rng.normal(0, 2000, round(SECONDS * RATE))
        if number % 2:
            noise = np.convolve(noise, np.ones(8) / 8, "same")
        pieces.append(noise.astype(np.int16))
        sf.write(folder / "cut" / f"{number:02d}.wav", pieces[-1], RATE)
        label = ("ang", "sad")[number % 2]
        start = number * SECONDS
        rows.append(["wav/long.wav", start, start + SECONDS, f"s{number // 4}", label])
    (folder / "wav").mkdir()
    sf.write(folder / "wav" / "long.wav", np.concatenate(pieces), RATE)

    write_csv(folder / "t.csv", ["file", "start", "end", "speaker", "label"], rows)
    store = folder / "s"
    printed("features", folder / "t.csv", "--features", "egemaps", "--store", store)
    options = ["--fusion", "linear", "--protocol", "speaker-out", "--folds", "1"]
    words = ["train", "--features", "egemaps", "--store", store, "--out", folder / "runs"]
    printed(*words, "--labels", "all", *options)
    return folder


def write_csv(path: Path, headings: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([headings, *rows])
    return path


def run_of(folder: Path) -> Path:
    [config] = (folder / "runs").glob("*/config.json")
    return config.parent


# Exported and imported
# ----------------------------------------


def test_a_table_begins_with_file_start_and_end(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    printed("cache", "export", "egemaps", path, "--with", "label", "--store", folder / "s")
    frame = pd.read_csv(path)
    assert list(frame.columns[:5]) == ["file", "start", "end", "id", "label"]
    assert frame["start"].tolist() == [number * SECONDS for number in range(COUNT)]
    assert set(frame["file"]) == {"wav/long.wav"}

    # What is exported can be imported, and has the same values.
    path = tmp_path / "values.csv"
    printed("cache", "export", "egemaps", path, "--store", folder / "s")
    printed("cache", "import", "again", path, "--modality", "audio", "--store", folder / "s")
    store = open_store(folder / "s")
    for id_ in store.manifest().ids:
        assert np.array_equal(store["again"][id_], store["egemaps"][id_])


def test_a_table_of_audformat_joins_its_index(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    options = ["--format", "audformat", "--store", folder / "s"]
    printed("cache", "export", "egemaps", path, *options)
    frame = audformat.utils.read_csv(str(path))
    starts = [pd.Timedelta(number * SECONDS, "s") for number in range(COUNT)]
    index = audformat.segmented_index(
        ["wav/long.wav"] * COUNT, starts, [start + pd.Timedelta(SECONDS, "s") for start in starts]
    )
    assert frame.index.equals(index)
    store = open_store(folder / "s")
    values = np.stack([store["egemaps"][id_] for id_ in store.manifest().ids])
    assert np.array_equal(frame.to_numpy(np.float32), values)

    refused = ser("cache", "export", "egemaps", tmp_path / "e.npz", *options)
    assert refused.exit_code == 2
    assert "is a .csv file" in refused.output


def test_features_of_opensmile_are_joined_by_place(folder: Path, tmp_path: Path) -> None:
    """As openSMILE in Python writes them, in another order and with a path of another machine."""
    order = np.random.default_rng(1).permutation(COUNT)
    rows: list[list[object]] = []
    for number in order:
        start = pd.Timedelta(number * SECONDS, "s")
        end = start + pd.Timedelta(SECONDS, "s")
        rows.append(["/home/me/wav/long.wav", start, end, number / 8, -number])
    path = write_csv(tmp_path / "o.csv", ["file", "start", "end", "a", "b"], rows)
    printed("cache", "import", "mine", path, "--modality", "audio", "--store", folder / "s")

    store = open_store(folder / "s")
    for number, id_ in enumerate(store.manifest().ids):
        assert store["mine"][id_].tolist() == [number / 8, -number]

    rows[0][1] = pd.Timedelta(0.2, "s")
    write_csv(path, ["file", "start", "end", "a", "b"], rows)
    words = ["cache", "import", "mine", path, "--modality", "audio", "--store", folder / "s"]
    refused = ser(*words)
    assert refused.exit_code == 1
    assert "no utterances of corpus t are the part of /home/me/wav/long from 0.2 to" in (
        refused.output
    )


def test_a_table_of_segments_without_its_audio(tmp_path: Path) -> None:
    """Features of others, whose recordings are not here."""
    rows: list[list[object]] = [["a.wav", 0, 1, "ang"], ["a.wav", 1, 2, "sad"]]
    table = write_csv(tmp_path / "t.csv", ["file", "start", "end", "label"], rows)
    features = write_csv(
        tmp_path / "f.csv", ["file", "start", "end", "x"], [["a.wav", 1, 2, 5], ["a.wav", 0, 1, 4]]
    )
    store = tmp_path / "s"
    words = ["cache", "import", "mine", features, "--modality", "audio", "--manifest", table]
    printed(*words, "--store", store)
    assert open_store(store)["mine"]["a_0.000_1.000"].tolist() == [4.0]
    printed("cache", "export", "mine", tmp_path / "e.csv", "--store", store)
    assert (tmp_path / "e.csv").read_text().startswith("file,start,end,id,mine")


# Predicted
# ----------------------------------------


def test_segments_are_predicted_as_files_of_their_own(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder)
    out = tmp_path / "p.csv"
    printed("predict", run, "--table", folder / "t.csv", "--csv", out)
    printed("predict", run, folder / "cut", "--csv", tmp_path / "files.csv")
    segments = pd.read_csv(out)
    files = pd.read_csv(tmp_path / "files.csv")

    assert list(segments.columns[:4]) == ["file", "start", "end", "predicted"]
    assert segments["start"].tolist() == [number * SECONDS for number in range(COUNT)]
    assert segments["predicted"].tolist() == files["predicted"].tolist()
    assert np.array_equal(segments["p_ang"], files["p_ang"])
    assert segments["p_ang"].nunique() == COUNT
    assert "start" not in files.columns


def test_segments_of_a_store_are_predicted_with_their_places(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder)
    path = tmp_path / "p.csv"
    printed("predict", run, "--store", folder / "s", "--csv", path)
    frame = pd.read_csv(path)

    assert list(frame.columns[:5]) == ["file", "start", "end", "id", "predicted"]
    manifest = open_store(folder / "s").manifest()
    assert frame["id"].tolist() == manifest.ids
    assert frame["start"].tolist() == [number * SECONDS for number in range(COUNT)]
    assert frame["end"].tolist() == [(number + 1) * SECONDS for number in range(COUNT)]
    assert set(frame["file"]) == {"wav/long.wav"}


def test_a_place_that_is_none_is_named(folder: Path, tmp_path: Path) -> None:
    rows: list[list[object]] = [["long.wav", 0, 0.5], ["long.wav", 5, 900]]
    table = write_csv(folder / "wav" / "few.csv", ["file", "start", "end"], rows)
    answer = ser("predict", run_of(folder), "--table", table, "--json")
    assert answer.exit_code == 3
    unusable = json.loads(answer.stdout)["unusable"]
    assert "ends after the file, which has 6.000 s" in unusable["long_5.000_900.000"]


def test_turns_in_python(folder: Path) -> None:
    predictor = Predictor(run_of(folder))
    audio = folder / "wav" / "long.wav"
    turns = [Turn("x", audio, start=1.0, end=1.5), Turn("y", folder / "cut" / "02.wav")]
    first, second = predictor(turns).predictions
    assert first.probabilities == second.probabilities
    answer = predictor.answer([Turn("z", audio, start=2.0, end=1.0), *turns])
    assert "is reversed" in answer.unusable["z"]


def test_places_in_a_dialogue_are_whole_files(folder: Path) -> None:
    rows: list[list[object]] = [["00.wav", 7, 7.5], ["01.wav", 7.5, 8]]
    table = write_csv(folder / "cut" / "turns.csv", ["file", "start", "end"], rows)
    answer = json.loads(printed("predict", run_of(folder), "--table", table, "--json"))
    alone = json.loads(printed("predict", run_of(folder), folder / "cut" / "00.wav", "--json"))
    assert answer["predictions"][0]["probabilities"] == alone["predictions"][0]["probabilities"]


# What the run needs
# ----------------------------------------


def test_importance_is_by_families_of_measures(folder: Path) -> None:
    """The two noises differ in their spectra alone."""
    [run] = find_runs(folder / "runs")
    found = importances([run], permutations=3)
    groups = {each.group.removeprefix("egemaps: "): each for each in found}
    assert sum(each.columns for each in found) == 88
    assert groups["pitch"].columns == 10
    assert groups["formants"].columns == 18
    assert groups["rate and pauses"].columns == 6


# Audited, and transcribed
# ----------------------------------------


def test_segments_of_one_recording_are_audited_as_utterances(tmp_path: Path) -> None:
    """As nkululeko and audformat name them: of one file, and none of them twice."""
    rows: list[list[object]] = []
    for number in range(20):
        times = [f"0 days 00:00:{number:02d}", f"0 days 00:00:{number + 1:02d}"]
        part = "test" if number % 2 else "train"
        rows.append(["long.wav", *times, ("ang", "sad")[number // 2 % 2], part])
    path = write_csv(tmp_path / "split.csv", ["file", "start", "end", "emotion", "split"], rows)
    audited = json.loads(ser("audit", path, "--json").stdout)
    assert audited["findings"] == []


def test_other_transcripts_are_joined_by_place(folder: Path, tmp_path: Path) -> None:
    rows: list[list[object]] = []
    for number in reversed(range(COUNT)):
        times = [number * SECONDS, (number + 1) * SECONDS]
        rows.append(["wav/long.wav", *times, f"word {number}"])
    texts = write_csv(tmp_path / "asr.csv", ["file", "start", "end", "text"], rows)
    manifest = scan_corpus(folder / "t.csv", text=texts).manifest
    assert manifest.column("text") == [f"word {number}" for number in range(COUNT)]
    assert manifest.is_segmented
