"""Several runs on the same speech: each as alone, their mean, and each feature computed once."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ser.errors import CorpusError, WrongUse
from ser.predict import Predictor, Predictors, Turn, several, shared
from ser.tests.command_line import ser
from ser.tests.newcomer import run_of, turns_of_test_part

# Of the same classes, two of them on the same HuBERT.
NAMES = ("mit", "mit-no-rmm", "lgf-add")


@pytest.fixture(scope="module")
def runs(newcomer: Path) -> list[Path]:
    return [run_of(newcomer, name).path for name in NAMES]


@pytest.fixture(scope="module")
def turns(newcomer: Path) -> list[Turn]:
    return turns_of_test_part(newcomer, run_of(newcomer, "mit"))[:6]


@pytest.fixture
def recordings(tmp_path: Path, turns: list[Turn]) -> Path:
    """A folder with a link to a folder of recordings, and one to another above both."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "recordings").mkdir()
    for number, turn in enumerate(turns[:3]):
        (tmp_path / "elsewhere" / f"{number}.wav").symlink_to(Path(str(turn.audio)).resolve())
    (tmp_path / "elsewhere" / "notes.txt").write_text("no audio")
    (tmp_path / "recordings" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "recordings" / "loop").symlink_to(tmp_path / "recordings")
    return tmp_path / "recordings"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_run_says_what_it_says_alone_and_the_mean_is_their_mean(
    runs: list[Path], turns: list[Turn]
) -> None:
    answers = Predictors(runs)(turns)
    assert list(answers.by_run) == [run.name for run in runs]

    probabilities = []
    for run in runs:
        alone = Predictor(run)(turns)
        together = answers.by_run[run.name]
        assert together.notes == alone.notes
        assert [each.label for each in together.predictions] == [
            each.label for each in alone.predictions
        ]
        of_run = [list(each.probabilities.values()) for each in together.predictions]
        of_run_alone = [list(each.probabilities.values()) for each in alone.predictions]
        np.testing.assert_allclose(of_run, of_run_alone, atol=1e-6)
        probabilities.append(of_run)

    means = np.mean(probabilities, axis=0)
    classes = list(answers.mean[0].probabilities)
    for prediction, expected in zip(answers.mean, means, strict=True):
        assert list(prediction.probabilities.values()) == pytest.approx(expected)
        assert prediction.label == classes[expected.argmax()]


def test_each_feature_of_an_utterance_is_computed_once(
    runs: list[Path], turns: list[Turn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs, of which two take HuBERT and MPNet, over audio and text."""
    sources: Counter[Any] = Counter()
    original = shared.extract_utterance

    def counting(extractors: Any, source: Any, *more: Any) -> Any:
        sources[source] += 1
        return original(extractors, source, *more)

    monkeypatch.setattr(shared, "extract_utterance", counting)
    predictors = Predictors(runs)
    predictors(turns)
    assert set(sources.values()) == {1}
    assert len(sources) == len({turn.audio for turn in turns} | {turn.text for turn in turns})

    names = sorted(feature.spec.feature for feature in predictors.source.features["audio"].values())
    assert names == ["hubert", "logmel"]


def test_dialogues_stay_whole_and_in_order_where_there_are_many_turns(
    newcomer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an utterance at a time; the progress counts all."""
    run = run_of(newcomer, "lgf-add")
    turns = turns_of_test_part(newcomer, run)
    monkeypatch.setattr(several, "AT_ONCE", 1)
    steps: list[tuple[int, int]] = []

    answers = Predictors([run.path])(turns, on_progress=lambda *step: steps.append(step))

    alone = Predictor(run.path)(turns)
    assert [each.id for each in answers.mean] == [each.id for each in alone.predictions]
    for prediction, expected in zip(answers.mean, alone.predictions, strict=True):
        assert prediction.label == expected.label
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert steps[-1] == (len(turns), len(turns))
    assert len(steps) == len({turn.dialogue for turn in turns})


def test_a_csv_has_a_row_for_each_utterance_with_the_columns_of_each_run(
    runs: list[Path], recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files below a folder are called as the folder is given."""
    monkeypatch.chdir(recordings.parent)
    run = runs[0]
    done = ser("predict", run, "recordings", "--csv", "out.csv")
    assert done.exit_code == 0, done.output
    assert "wrote out.csv: 3 utterances" in done.stdout
    assert "predict: " in done.stderr
    assert "3/3" in done.stderr

    rows = read_csv(Path("out.csv"))
    assert [row["file"] for row in rows] == [f"recordings/linked/{n}.wav" for n in range(3)]
    classes = Predictor(run).classes
    means = ["predicted", *(f"p_{name}" for name in classes)]
    of_run = [f"{column}@{run.name}" for column in means]
    assert list(rows[0]) == ["file", *means, *of_run]

    answer = Predictor(run)([Turn(audio=recordings / "linked" / "1.wav")])
    [prediction] = answer.predictions
    assert rows[1]["predicted"] == prediction.label
    for name in classes:
        assert float(rows[1][f"p_{name}"]) == pytest.approx(prediction.probabilities[name])


def test_a_csv_of_several_runs_and_a_table(
    runs: list[Path], turns: list[Turn], tmp_path: Path
) -> None:
    """`file` is as the table has it."""
    (tmp_path / "wav").mkdir()
    lines = ["id,audio,text"]
    for turn in turns:
        shutil.copy(str(turn.audio), tmp_path / "wav" / f"{turn.id}.wav")
        lines.append(f'{turn.id},wav/{turn.id}.wav,"{turn.text}"')
    table = tmp_path / "turns.csv"
    table.write_text("\n".join(lines))

    out = tmp_path / "out.csv"
    done = ser("predict", *runs, "--table", table, "--csv", out)
    assert done.exit_code == 0, done.output

    rows = read_csv(out)
    assert [row["file"] for row in rows] == [f"wav/{turn.id}.wav" for turn in turns]
    classes = Predictor(runs[0]).classes
    for row in rows:
        for name in classes:
            of_runs = [float(row[f"p_{name}@{run.name}"]) for run in runs]
            assert float(row[f"p_{name}"]) == pytest.approx(np.mean(of_runs))
        best = max(classes, key=lambda name: float(row[f"p_{name}"]))
        assert row["predicted"] == best
        assert {row[f"predicted@{run.name}"] for run in runs} <= set(classes)


def test_several_runs_are_printed_beside_their_mean(runs: list[Path], turns: list[Turn]) -> None:
    words = ["predict", runs[0], runs[2], str(turns[0].audio), "--text", str(turns[0].text)]
    shown = ser(*words)
    assert shown.exit_code == 0, shown.output
    heading = shown.stdout.splitlines()[0]
    assert runs[0].name in heading
    assert runs[2].name in heading

    answer = json.loads(ser(*words, "--json").stdout)
    assert list(answer["runs"]) == [runs[0].name, runs[2].name]
    [mean] = answer["predictions"]
    assert mean["label"] in shown.stdout


def test_what_no_run_can_use_is_named_and_the_rest_is_written(
    runs: list[Path], recordings: Path, tmp_path: Path
) -> None:
    (recordings / "broken.wav").write_bytes(b"RIFF")
    out = tmp_path / "out.csv"
    done = ser("predict", runs[0], recordings, "--csv", out)
    assert done.exit_code == 3, done.output
    assert "cannot be used: " in done.stderr
    assert "broken.wav" in done.stderr
    assert len(read_csv(out)) == 3

    with pytest.raises(CorpusError, match=r"broken\.wav"):
        Predictors([runs[0]])([Turn(audio=recordings / "broken.wav")])


def test_runs_that_do_not_go_together_are_refused(newcomer: Path, runs: list[Path]) -> None:
    ratings = run_of(newcomer, "vad").path
    with pytest.raises(WrongUse, match=r"predicts ratings, and .* give runs that predict the same"):
        Predictors([runs[0], ratings])
    with pytest.raises(WrongUse, match="again; name each run once"):
        Predictors([runs[0], runs[0]])
    with pytest.raises(WrongUse, match=r"unknown feature of these runs in --model 'huber'"):
        Predictors(runs, {"huber": "/models"})


def test_what_a_run_cannot_take_is_refused_before_anything_is_computed(
    runs: list[Path], turns: list[Turn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last turn has no text, which a run never did without; or an id stands for two turns."""
    monkeypatch.setattr(several, "AT_ONCE", 1)
    monkeypatch.setattr(shared, "extract_utterance", None)
    no_text = Turn(audio=turns[0].audio)
    with pytest.raises(WrongUse, match="has no text"):
        Predictors(runs)([*turns, no_text])
    other = Turn(turns[0].id, audio=turns[1].audio, text=turns[1].text)
    with pytest.raises(WrongUse, match="stands for two utterances"):
        Predictors(runs)([*turns, other])


def test_the_table_that_is_read_is_not_written_over(runs: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "turns.csv"
    table.write_text("audio,text\na.wav,hello\n")
    done = ser("predict", runs[0], "--table", table, "--csv", table)
    assert done.exit_code == 2
    assert "is what is to be read" in done.stderr
    assert table.read_text() == "audio,text\na.wav,hello\n"


def test_a_csv_in_a_folder_that_is_not_there_is_refused_before_anything_is_computed(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "extract_utterance", None)
    done = ser("predict", runs[0], "a.wav", "--csv", tmp_path / "no" / "out.csv")
    assert done.exit_code == 2
    assert "no such folder" in done.stderr
