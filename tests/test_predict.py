"""A run on new speech gives what it gave when it was tested, or says why it cannot."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import soundfile as sf
import torch
from msgspec import structs

from ser.cache.store import open_store
from ser.errors import CorruptStore, SerError, WrongUse
from ser.predict import Prediction, Predictor, Turn, predict
from ser.tests.command_line import printed, ser
from ser.tests.newcomer import RUNS, run_of, turns_of_test_part
from ser.train.data.utterances import DIMENSIONS
from ser.train.report.attention import attend
from ser.train.run_folder import CONFIG, RESULT, Run
from ser.train.scores.calibration import tempered
from ser.weights.demo import write_random_checkpoint


def expected_probabilities(run: Run, column: str = "probabilities") -> np.ndarray:
    """The probabilities [turns, classes] that a run was tested with, after its temperature."""
    untempered = np.array(run.predictions().column(column).to_pylist())
    return tempered(untempered, run.result.calibration.temperature)


def deviations(
    predictions: Sequence[Prediction], run: Run, column: str = "probabilities"
) -> np.ndarray:
    """How far each prediction's probabilities are from those that the run was tested with."""
    probabilities = np.array(
        [list(prediction.probabilities.values()) for prediction in predictions]
    )
    return np.abs(probabilities - expected_probabilities(run, column)).max(axis=1)


@pytest.mark.parametrize("name", RUNS)
def test_round_trip_equals_what_the_run_was_tested_with(newcomer: Path, name: str) -> None:
    run = run_of(newcomer, name)
    tested = run.predictions()
    answer = Predictor(run.path)(turns_of_test_part(newcomer, run))
    predictions = answer.predictions
    assert [prediction.id for prediction in predictions] == tested.column("id").to_pylist()

    if name == "vad":
        for prediction in predictions:
            assert prediction.label is None
            assert not prediction.probabilities
    else:
        labels = [prediction.label for prediction in predictions]
        assert labels == tested.column("predicted").to_pylist()
        assert deviations(predictions, run).max() < 2e-6
        assert list(predictions[0].probabilities) == run.result.classes

    assert any("synthetic" in note for note in answer.notes)
    assert any("random weights" in note for note in answer.notes)


@pytest.mark.parametrize("name", [name for name in RUNS if "vad" in name])
def test_ratings_are_on_the_scale_of_the_corpus(newcomer: Path, name: str) -> None:
    run = run_of(newcomer, name)
    tested = run.predictions()
    predictions = Predictor(run.path)(turns_of_test_part(newcomer, run)).predictions
    for dimension in DIMENSIONS:
        ratings = [prediction.ratings[dimension] for prediction in predictions]
        expected = tested.column(f"predicted {dimension}").to_pylist()
        assert np.abs(np.subtract(ratings, expected)).max() < 1e-5


def test_attention_is_over_the_averaged_frames(newcomer: Path) -> None:
    run = run_of(newcomer, "mit-no-rmm")
    store = open_store(newcomer / "features")
    tested = run.predictions()
    [attended] = attend(run, store, store.manifest(), [tested["id"][0].as_py()])

    assert attended.hop == 0.1
    frames_of_20_ms = len(store["hubert"][attended.utterance])
    assert attended.frames.shape[1] == -(-frames_of_20_ms // 5)
    expected = tested["probabilities"][0].as_py()
    assert np.allclose(attended.probabilities, expected, atol=1e-6)


def test_without_text_equals_the_test_with_audio_alone(newcomer: Path) -> None:
    run = run_of(newcomer, "mit")
    turns = turns_of_test_part(newcomer, run)
    for number in range(1, len(turns), 2):
        turns[number] = replace(turns[number], text=None)
    # Blank text is none.
    turns[1] = replace(turns[1], text="  \n")

    predictions = Predictor(run.path)(turns).predictions
    assert predictions[0].without == ()
    assert predictions[1].without == ("text",)
    assert deviations(predictions, run)[::2].max() < 1e-5
    assert deviations(predictions, run, "probabilities only audio")[1::2].max() < 1e-5


def test_without_audio_equals_the_test_with_text_alone(newcomer: Path) -> None:
    run = run_of(newcomer, "mit")
    turns = [replace(turn, audio=None) for turn in turns_of_test_part(newcomer, run)]
    predictions = Predictor(run.path)(turns).predictions
    assert deviations(predictions, run, "probabilities only text").max() < 1e-5


@pytest.mark.parametrize("name", ["mit-no-rmm", "lgf-add"])
def test_missing_text_is_refused_where_the_model_never_saw_it_missing(
    newcomer: Path, name: str
) -> None:
    run = run_of(newcomer, name)
    turn = replace(turns_of_test_part(newcomer, run)[0], text=None)
    with pytest.raises(WrongUse, match=r"has no text.*without random modality masking.*--text"):
        Predictor(run.path)([turn])


@pytest.mark.parametrize("name", ["lgf-add", "icon"])
def test_dialogues_come_from_a_table_in_any_order(
    newcomer: Path, tmp_path: Path, name: str
) -> None:
    run = run_of(newcomer, name)
    shutil.copytree(newcomer / "corpus", tmp_path / "corpus")
    table = tmp_path / "corpus" / "turns.csv"
    backwards = pandas.DataFrame(turns_of_test_part(newcomer, run)[::-1])
    backwards["audio"] = [path.relative_to(newcomer / "corpus") for path in backwards["audio"]]
    backwards.to_csv(table, index=False)

    answer = json.loads(printed("predict", run.path, "--table", table, "--json"))
    predictions = answer["predictions"]
    ids = [prediction["id"] for prediction in predictions]
    assert ids == run.predictions().column("id").to_pylist()[::-1]

    probabilities = [list(prediction["probabilities"].values()) for prediction in predictions]
    assert np.abs(np.array(probabilities) - expected_probabilities(run)[::-1]).max() < 1e-5


def test_a_file_on_the_command_line(newcomer: Path) -> None:
    run = run_of(newcomer, "mit")
    turn = turns_of_test_part(newcomer, run)[0]
    done = ser("predict", run.path, turn.audio, "--text", turn.text)
    assert done.exit_code == 0
    assert run.predictions().column("predicted")[0].as_py() in done.stdout
    assert "note: trained on synthetic speech" in done.stderr


def test_files_without_text_on_the_command_line(newcomer: Path) -> None:
    run = run_of(newcomer, "mit")
    audio = turns_of_test_part(newcomer, run)[0].audio
    done = ser("predict", run.path, audio, audio, "--json")
    predictions = json.loads(done.stdout)["predictions"]
    assert [prediction["without"] for prediction in predictions] == [["text"], ["text"]]
    assert abs(sum(predictions[0]["probabilities"].values()) - 1) < 1e-5


def test_a_turn_needs_no_name(newcomer: Path) -> None:
    """It is called as its audio is given."""
    run = run_of(newcomer, "mit")
    recording = str(turns_of_test_part(newcomer, run)[0].audio)
    predictor = Predictor(run.path)

    [unnamed] = predictor([Turn(audio=recording, text="hello there")]).predictions
    [named] = predictor([Turn("1", Path(recording), "hello there")]).predictions

    assert unnamed.id == recording
    assert unnamed.probabilities == named.probabilities
    assert Turn(text="hello there").id == "text"
    with pytest.raises(WrongUse, match=r"'1.wav' is not a turn; give ser.Turn\(audio="):
        predictor(["1.wav"])


def test_text_alone_on_the_command_line(newcomer: Path) -> None:
    path = run_of(newcomer, "text").path
    assert printed("predict", path, "--text", "I am so happy for you")

    long = ser("predict", path, "--text", "so happy " * 600)
    assert long.exit_code == 0
    assert "is cut to 512" in long.stderr, long.output


def test_a_file_alone_for_a_model_of_dialogues(newcomer: Path) -> None:
    run = run_of(newcomer, "lgf-add")
    audio = turns_of_test_part(newcomer, run)[0].audio
    assert ser("predict", run.path, audio, "--text", "hello there").exit_code == 0


def test_ratings_on_the_command_line(newcomer: Path) -> None:
    run = run_of(newcomer, "vad")
    turn = turns_of_test_part(newcomer, run)[0]
    words = ("predict", run.path, turn.audio, "--text", turn.text)
    text = printed(*words)
    assert "dominance" in text
    assert "emotion" not in text

    [prediction] = json.loads(printed(*words, "--json"))["predictions"]
    assert prediction["label"] is None
    assert len(prediction["ratings"]) == 3


def test_audio_that_is_far_from_the_training_part_is_named(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "mit")
    near, *_ = turns_of_test_part(newcomer, run)
    samples = np.random.default_rng(0).choice([-1.0, 1.0], 16000)
    sf.write(tmp_path / "clipped.wav", samples, 16000)
    far = Turn(audio=tmp_path / "clipped.wav", text="a noise", id="clipped")

    [note] = [note for note in Predictor(run.path)([near, far]).notes if "farther" in note]
    assert note.startswith("1 of 2 lie farther from the training part's audio")
    assert "(clipped than 100.0 %)" in note


def test_unusable_audio_is_named_and_the_rest_is_told(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "mit")
    whole = turns_of_test_part(newcomer, run)[0].audio
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[:3000])

    both = ser("predict", run.path, whole, cut)
    assert both.exit_code == 3
    assert "cut.wav: is cut short" in both.stderr
    assert str(whole) in both.stdout

    alone = ser("predict", run.path, cut)
    assert alone.exit_code == 1
    assert "is cut short" in alone.output

    missing = ser("predict", run.path, tmp_path / "none.wav")
    assert "cannot be opened" in missing.output


def test_other_weights_are_refused(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "mit")
    other = write_random_checkpoint(tmp_path / "other", "hubert", seed=7)
    says = r"is not the checkpoint that hubert was computed with.*--model hubert=PATH"
    with pytest.raises(WrongUse, match=says):
        Predictor(run.path, {"hubert": str(other)})


def test_weights_may_be_elsewhere(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "mit")
    moved = str(tmp_path / "moved")
    shutil.copytree(newcomer / "checkpoints" / "hubert-random", moved)
    Predictor(run.path, {"hubert": moved})

    with pytest.raises(WrongUse, match=r"did you mean hubert\?"):
        Predictor(run.path, {"huber": moved})


def altered_run(newcomer: Path, folder: Path, modality: str, change: dict[str, Any]) -> Run:
    """A copy of a run in which a feature's spec is altered, and which is sealed again."""
    original = run_of(newcomer, "mit")
    run = Run(Path(shutil.copytree(original.path, folder / original.name)))
    run.config.provenance.specs[modality].update(change)
    files = run.result.files | run.write_json(CONFIG, run.config)
    run.write_json(RESULT, structs.replace(run.result, files=files))
    return Run(run.path)


def test_weights_that_are_gone_are_refused(newcomer: Path, tmp_path: Path) -> None:
    nowhere = {"provenance": {"folder": "/nowhere/hubert"}}
    run = altered_run(newcomer, tmp_path, "audio", nowhere)
    with pytest.raises(WrongUse, match=r"/nowhere/hubert: no such folder.*--model hubert="):
        Predictor(run.path)


def test_an_altered_spec_is_refused(newcomer: Path, tmp_path: Path) -> None:
    run = altered_run(newcomer, tmp_path, "text", {"dim": 17})
    with pytest.raises(CorruptStore, match="mpnet was altered"):
        Predictor(run.path)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"audio": ["a.wav", "b.wav"], "text": "x"}, id="two files and a text"),
        pytest.param({"table": "t.csv", "text": "x"}, id="a table and a text"),
        pytest.param({"table": "t.csv", "audio": ["a.wav", "b.wav"]}, id="a table and files"),
    ],
)
def test_contradictions_are_refused(newcomer: Path, arguments: dict[str, Any]) -> None:
    says = r"give audio files .*, or a table of turns with a column text, and not both"
    with pytest.raises(WrongUse, match=says):
        predict(run_of(newcomer, "mit").path, **arguments)


def test_a_folder_that_holds_one_run_is_that_run(newcomer: Path, tmp_path: Path) -> None:
    assert Predictor(newcomer / "runs" / "mit").run.path == run_of(newcomer, "mit").path

    for name in ("mit", "text"):
        shutil.copytree(run_of(newcomer, name).path, tmp_path / "both" / name)
    with pytest.raises(WrongUse, match=r"both: holds 2 runs; name one of them, such as .*both/mit"):
        predict(tmp_path / "both", ["a.wav"])


def test_wrong_paths(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "mit").path
    with pytest.raises(WrongUse, match="is not a run folder"):
        predict(tmp_path, ["a.wav"])

    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(WrongUse, match=r"folder: holds no audio file \(\.aif, .*another folder"):
        predict(run, [folder])

    table = tmp_path / "turns.csv"
    table.write_text("audio,text\n../../etc/passwd,hello\na.wav,there\n")
    with pytest.raises(SerError, match=r"line 2.*leaves the corpus"):
        predict(run, table=table)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        pytest.param("--device", "foo", "--device foo: must be auto, cpu,", id="device"),
        pytest.param(
            "--model", "hubert", "--model hubert: write --model NAME=", id="model without a path"
        ),
    ],
)
def test_a_wrong_device_or_model_is_one_sentence(
    newcomer: Path, option: str, value: str, says: str
) -> None:
    done = ser("predict", run_of(newcomer, "mit").path, "a.wav", option, value)
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_probabilities_that_are_no_numbers_are_no_answer(newcomer: Path) -> None:
    predictor = Predictor(run_of(newcomer, "text").path)
    for weight in predictor.fitted.model.parameters():
        weight.data.fill_(torch.inf)
    with pytest.raises(SerError, match="1: the model's predictions of it became nan"):
        predictor([Turn("1", text="hello there")])
