"""A run on new speech gives what it gave when it was tested, or says why it cannot."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from msgspec import structs

from ser.cache.store import open_store
from ser.errors import CorpusError, CorruptStore, SerError, WrongUse
from ser.predict import Prediction, Predictor, Turn, predict
from ser.tests.command_line import printed, ser
from ser.tests.newcomer import RUNS, run_of
from ser.train.data.utterances import DIMENSIONS
from ser.train.report.attention import attend
from ser.train.run_folder import CONFIG, RESULT, Run
from ser.train.scores.calibration import tempered
from ser.weights.demo import write_random_checkpoint


def turns_of(folder: Path, run: Run) -> list[Turn]:
    """The utterances of the run's test part, as somebody would bring them."""
    rows = {row["id"]: row for row in open_store(folder / "features").manifest().table.to_pylist()}
    tested = [rows[i] for i in run.predictions().column("id").to_pylist()]
    return [
        Turn(
            row["id"],
            folder / "corpus" / row["audio"],
            row["text"],
            row["dialogue"],
            row["turn"],
            row["speaker"],
        )
        for row in tested
    ]


def far_from(predictions: list[Prediction], run: Run, column: str = "probabilities") -> np.ndarray:
    """How far the probabilities of each are from those that the run was tested with, after its
    temperature.
    """
    found = np.array([list(one.probabilities.values()) for one in predictions])
    return np.abs(found - told(run, column)).max(axis=1)


def told(run: Run, column: str = "probabilities") -> np.ndarray:
    """The probabilities that a run was tested with, after its temperature."""
    return tempered(
        np.array(run.predictions().column(column).to_pylist()),
        run.result.calibration.temperature,
    )


@pytest.mark.parametrize("name", RUNS)
def test_round_trip_equals_what_the_run_was_tested_with(newcomer: Path, name: str) -> None:
    """Ratings are on the scale of the corpus."""
    run = run_of(newcomer, name)
    tested = run.predictions()
    answer = Predictor(run.path)(turns_of(newcomer, run))
    assert [one.id for one in answer.predictions] == tested.column("id").to_pylist()
    for which in DIMENSIONS if "vad" in name else ():
        rated = [one.ratings[which] for one in answer.predictions]
        assert (
            np.abs(np.subtract(rated, tested.column(f"predicted {which}").to_pylist())).max() < 1e-5
        )
    if name == "vad":
        assert {(one.label, *one.probabilities) for one in answer.predictions} == {(None,)}
    else:
        assert [one.label for one in answer.predictions] == tested.column("predicted").to_pylist()
        assert far_from(answer.predictions, run).max() < 2e-6
        assert list(answer.predictions[0].probabilities) == run.result.classes
    assert any("synthetic" in note for note in answer.notes)
    assert any("random weights" in note for note in answer.notes)


def test_attention_is_over_the_averaged_frames(newcomer: Path) -> None:
    run, store = run_of(newcomer, "mit-no-rmm"), open_store(newcomer / "features")
    predicted = run.predictions()
    [one] = attend(run, store, store.manifest(), [predicted["id"][0].as_py()])
    assert one.hop == 0.1 and one.frames.shape[1] == -(-len(store["hubert"][one.utterance]) // 5)
    assert np.allclose(one.probabilities, predicted["probabilities"][0].as_py(), atol=1e-6)


def test_without_a_modality_equals_the_test_with_the_other_alone(newcomer: Path) -> None:
    run = run_of(newcomer, "mit")
    predictor, turns = Predictor(run.path), turns_of(newcomer, run)
    bare = [replace(turn, text=None) if number % 2 else turn for number, turn in enumerate(turns)]
    bare[1] = replace(bare[1], text="  \n")
    found = predictor(bare).predictions
    assert far_from(found, run, "probabilities only audio")[1::2].max() < 1e-5
    assert far_from(found, run)[::2].max() < 1e-5
    assert [one.without for one in found[:2]] == [(), ("text",)]
    mute = predictor([replace(turn, audio=None) for turn in turns]).predictions
    assert far_from(mute, run, "probabilities only text").max() < 1e-5


@pytest.mark.parametrize("name", ["mit-no-rmm", "lgf-add"])
def test_missing_text_is_refused_where_the_model_never_saw_it_missing(
    newcomer: Path, name: str
) -> None:
    run = run_of(newcomer, name)
    turn = replace(turns_of(newcomer, run)[0], text=None)
    with pytest.raises(WrongUse, match=r"has no text.*without random modality masking.*--text"):
        Predictor(run.path)([turn])


@pytest.mark.parametrize("name", ["lgf-add", "icon"])
def test_dialogues_come_from_a_table_in_any_order(
    newcomer: Path, tmp_path: Path, name: str
) -> None:
    run = run_of(newcomer, name)
    shutil.copytree(newcomer / "corpus", tmp_path / "corpus")
    turns, table = pandas.DataFrame(turns_of(newcomer, run)[::-1]), tmp_path / "corpus/turns.csv"
    turns["audio"] = [audio.relative_to(newcomer / "corpus") for audio in turns["audio"]]
    turns.to_csv(table, index=False)
    answer = json.loads(printed("predict", run.path, "--table", table, "--json"))
    tested = run.predictions()
    assert [one["id"] for one in answer["predictions"]] == tested.column("id").to_pylist()[::-1]
    found = np.array([list(one["probabilities"].values()) for one in answer["predictions"]])
    assert np.abs(found - told(run)[::-1]).max() < 1e-5


def test_a_file_on_the_command_line(newcomer: Path) -> None:
    run = run_of(newcomer, "mit")
    turn = turns_of(newcomer, run)[0]
    done = ser("predict", run.path, turn.audio, "--text", turn.text)
    assert done.exit_code == 0 and run.predictions().column("predicted")[0].as_py() in done.stdout
    assert "note: trained on synthetic speech" in done.stderr
    silent = json.loads(ser("predict", run.path, turn.audio, turn.audio, "--json").stdout)[
        "predictions"
    ]
    assert [one["without"] for one in silent] == [["text"], ["text"]]
    assert abs(sum(silent[0]["probabilities"].values()) - 1) < 1e-5
    assert printed("predict", run_of(newcomer, "text").path, "--text", "I am so happy for you")
    long = ser("predict", run_of(newcomer, "text").path, "--text", "so happy " * 600)
    assert long.exit_code == 0 and "is cut to 512" in long.stderr, long.output
    assert (
        ser(
            "predict", run_of(newcomer, "lgf-add").path, turn.audio, "--text", "hello there"
        ).exit_code
        == 0
    )
    rated = ("predict", run_of(newcomer, "vad").path, turn.audio, "--text", turn.text)
    assert "dominance" in printed(*rated) and "emotion" not in printed(*rated)
    [line] = json.loads(printed(*rated, "--json"))["predictions"]
    assert line["label"] is None and len(line["ratings"]) == 3


def test_unusable_audio_is_named_and_the_rest_is_told(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "mit")
    turn = turns_of(newcomer, run)[0]
    (tmp_path / "cut.wav").write_bytes(turn.audio.read_bytes()[:3000])
    done = ser("predict", run.path, turn.audio, tmp_path / "cut.wav")
    assert (
        done.exit_code == 3
        and "cut.wav: is cut short" in done.stderr
        and str(turn.audio) in done.stdout
    )
    alone = ser("predict", run.path, tmp_path / "cut.wav")
    assert alone.exit_code == 1 and "is cut short" in alone.output
    assert "cannot be opened" in ser("predict", run.path, tmp_path / "none.wav").output


def test_other_weights_are_refused(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "mit")
    other = write_random_checkpoint(tmp_path / "other", "hubert", seed=7)
    with pytest.raises(
        WrongUse, match=r"is not the checkpoint that hubert was computed with.*--model hubert=PATH"
    ):
        Predictor(run.path, {"hubert": str(other)})
    same = tmp_path / "moved"
    shutil.copytree(newcomer / "checkpoints" / "hubert-random", same)
    Predictor(run.path, {"hubert": str(same)})
    with pytest.raises(WrongUse, match=r"did you mean hubert\?"):
        Predictor(run.path, {"huber": str(same)})


@pytest.mark.parametrize(
    ("modality", "change", "message"),
    [
        (
            "audio",
            {"provenance": {"folder": "/nowhere/hubert"}},
            r"/nowhere/hubert: no such folder.*--model hubert=",
        ),
        ("text", {"dim": 17}, "mpnet was altered"),
    ],
)
def test_weights_that_are_gone_and_an_altered_spec_are_refused(
    newcomer: Path, tmp_path: Path, modality: str, change: dict[str, Any], message: str
) -> None:
    whole = run_of(newcomer, "mit")
    run = Run(Path(shutil.copytree(whole.path, tmp_path / whole.name)))
    run.config.provenance.specs[modality].update(change)
    files = run.result.files | run.write_json(CONFIG, run.config)  # sealed again
    run.write_json(RESULT, structs.replace(run.result, files=files))
    with pytest.raises(WrongUse if modality == "audio" else CorruptStore, match=message):
        Predictor(run.path)


def test_contradictions_are_refused(newcomer: Path) -> None:
    two, table = {"audio": ["a.wav", "b.wav"]}, {"table": "t.csv"}
    says = r"give audio files .*, or a table of turns with a column text, and not both"
    for arguments in ({}, {**two, "text": "x"}, {**table, "text": "x"}, {**table, **two}):
        with pytest.raises(WrongUse, match=says):
            predict(run_of(newcomer, "mit").path, **arguments)


def test_wrong_paths(newcomer: Path, tmp_path: Path) -> None:
    assert (
        Predictor(newcomer / "runs" / "mit").run.path == run_of(newcomer, "mit").path
    )  # the only one inside
    for name in ("mit", "text"):
        shutil.copytree(run_of(newcomer, name).path, tmp_path / "both" / name)
    with pytest.raises(WrongUse, match=r"both: holds 2 runs; name one of them, such as .*both/mit"):
        predict(tmp_path / "both", ["a.wav"])
    with pytest.raises(WrongUse, match="is not a run folder"):
        predict(tmp_path, ["a.wav"])
    with pytest.raises(CorpusError, match=r"both: cannot be opened \(is a directory"):
        predict(run_of(newcomer, "mit").path, [tmp_path / "both"])
    (tmp_path / "turns.csv").write_text("audio,text\n../../etc/passwd,hello\na.wav,there\n")
    with pytest.raises(SerError, match=r"line 2.*leaves the corpus"):
        predict(run_of(newcomer, "mit").path, table=tmp_path / "turns.csv")


@pytest.mark.parametrize(
    "words", ["--device foo: must be auto, cpu,", "--model hubert: write --model NAME="]
)
def test_a_wrong_device_or_model_is_one_sentence(newcomer: Path, words: str) -> None:
    done = ser("predict", run_of(newcomer, "mit").path, "a.wav", *words.partition(":")[0].split())
    assert done.exit_code == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_probabilities_that_are_no_numbers_are_no_answer(newcomer: Path) -> None:
    predictor = Predictor(run_of(newcomer, "text").path)
    for weight in predictor.fitted.model.parameters():
        weight.data.fill_(torch.inf)
    with pytest.raises(SerError, match="1: the model's predictions of it became nan"):
        predictor([Turn("1", text="hello there")])
