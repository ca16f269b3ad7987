"""How sure a model is: errors and temperatures against slow formulas, sets against their promise, what runs keep."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from ser.commands.train import summary_text
from ser.errors import CorruptStore
from ser.predict import Predictor, Turn
from ser.tests.command_line import ser
from ser.tests.newcomer import run_of
from ser.train.experiment import Experiment, run_experiment
from ser.train.report.calibration import calibration_table
from ser.train.report.cell_scores import CellScores
from ser.train.report.cells import group_runs
from ser.train.run_folder import RESULT, Run
from ser.train.scores import conformal_threshold, ece, fit_temperature, reliability, tempered

SMALL = ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2", "lr=0.01")


def drawn(n: int, seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Classes drawn from softmax(z), and the probabilities softmax(scale · z) of a model that is too sure of them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4)) * 2
    truth = (softmax(logits, 1).cumsum(1) < rng.random((n, 1))).sum(1)
    return truth, softmax(scale * logits, 1)


def test_the_error_is_that_of_its_bins_and_a_temperature_mends_it() -> None:
    truth, sure = drawn(4000, 0, 2.5)
    right, confidence = sure.argmax(1) == truth, sure.max(1)
    theirs = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            theirs += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    bins = reliability(truth, sure)
    assert ece(bins) == pytest.approx(theirs) and theirs > 0.1
    share, mean = calibration_curve(right, confidence, n_bins=15)
    filled = bins[bins[:, 0] > 0]
    assert filled[:, 2] / filled[:, 0] == pytest.approx(share) and filled[:, 1] / filled[:, 0] == pytest.approx(mean)
    temperature = fit_temperature(truth, sure)
    assert temperature == pytest.approx(2.5, rel=0.06)
    after = tempered(sure, temperature)
    assert ece(reliability(truth, after)) < 0.03 and (after.argmax(1) == sure.argmax(1)).all()
    assert after == pytest.approx(softmax(np.log(sure) / temperature, 1))
    losses = [-np.log(tempered(sure, t)[np.arange(4000), truth]).mean() for t in (temperature, 2, 3)]
    assert losses[0] == min(losses)
    assert 0.05 < fit_temperature(np.array([0, 1]), np.array([[0.6, 0.4], [0.4, 0.6]])) < 0.06, "as sure as may be"


@pytest.mark.parametrize("n", [5, 9, 29, 100])
def test_conformal_sets_keep_their_promise_to_those_who_are_alike(n: int) -> None:
    """Of exchangeable utterances from 90 % to 90 % + 1 / (n + 1) are covered; all, with too few to calibrate on."""
    held = []
    for seed in range(400):
        truth, sure = drawn(n + 50, seed, 2.5)
        threshold = conformal_threshold(truth[:n], sure[:n])
        scores = 1 - sure[np.arange(n), truth[:n]]
        if (level := math.ceil((n + 1) * 0.9 - 1e-9) / n) <= 1:
            assert threshold == pytest.approx(1 - np.quantile(scores, level, method="inverted_cdf"))
        held.append((sure[n:] >= threshold)[np.arange(50), truth[n:]].mean())
    assert 0.89 < np.mean(held) <= 1 if n < 9 else 0.89 < np.mean(held) < 0.91 + 1 / (n + 1)


def test_a_run_keeps_its_dev_predictions_sealed(store: Path, tmp_path: Path) -> None:
    options = {"features": "is13+bert", "fusion": "lgf-add", "epochs": 4, "set": SMALL, "store": store, "folds": 2}
    runs = run_experiment(Experiment(**options, out=tmp_path / "runs"))
    cell = CellScores(runs)
    for run in runs:
        dev, told = run.dev_predictions, run.result["calibration"]
        truth = np.array([run.result["classes"].index(name) for name in dev["truth"].to_pylist()])
        sure = np.array(dev["probabilities"].to_pylist())
        assert len(dev) == run.result["parts"]["dev"] == told["n_dev"]
        assert told["temperature"] == pytest.approx(fit_temperature(truth, sure), rel=1e-6)
        assert set(dev["id"].to_pylist()).isdisjoint(run.predictions()["id"].to_pylist())
    ours = cell.to_json()
    assert cell.temperatures == ours["calibration"]["temperatures"] and 0 <= ours["calibration"]["ece_tempered"] <= 100
    assert cell.abstaining(0.0)[1] == pytest.approx(cell.with_interval("wa")) and cell.abstaining(1.1)[1] is None
    assert "no guarantee across speakers" in summary_text(cell)
    cell.results[0]["calibration"]["temperature"] = 19.9999
    assert " of 2 at a bound" in calibration_table(group_runs(runs)[0]).rows[0]["temperatures"]
    content = (runs[0].path / "dev.parquet").read_bytes()
    (runs[0].path / "dev.parquet").write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(CorruptStore, match="is not the file that"):
        CellScores([Run(runs[0].path)]).to_json()
    for more in ({"select": "last"}, {"set": (*SMALL, "refit=true")}):
        [bare] = run_experiment(Experiment(**{**options, "folds": 1, **more}, out=tmp_path / "bare"))
        assert bare.dev_predictions is bare.result["calibration"] is CellScores([bare]).conformal is None
    [row, *_] = calibration_table(group_runs([bare])[0]).rows
    assert row["temperatures"] == "not recorded" and row["coverage of the sets %"] is None and row["ECE %"] > 0


def test_what_is_below_the_threshold_is_no_answer(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "text")
    turns = [Turn(str(n), text=text) for n, text in enumerate(("hello there", "I am so happy", "leave me alone now"))]
    predictor = Predictor(run.path)
    assert predictor.temperature == run.result["calibration"]["temperature"]
    sure = [max(one.probabilities.values()) for one in predictor(turns).predictions]
    middle = sorted(sure)[1]
    answer = predictor(turns, middle)
    assert [one.abstained for one in answer.predictions] == [p < middle for p in sure]
    (covered, *_), right = CellScores([run]).abstaining(middle)
    assert right is None or f"answered {covered:.1f} %, and {right[0]:.1f} %" in " ".join(answer.notes)
    asked = ("predict", run.path, "--text", "hello there", "--abstain-below")
    wrong, done = ser(*asked, "nan"), ser(*asked, 1)
    assert wrong.exit_code == 2 and "must be a probability" in wrong.output
    assert done.exit_code == 0 and "abstained" in done.stdout
    [one] = json.loads(ser(*asked, 1, "--json").stdout)["predictions"]
    assert one["abstained"] and sum(one["probabilities"].values()) == pytest.approx(1)
    before = Run(Path(shutil.copytree(run.path, tmp_path / run.name)))  # as an earlier ser wrote it
    result = {key: value for key, value in before.result.items() if key != "calibration"}
    before.write_json(RESULT, {**result, "files": {k: v for k, v in result["files"].items() if k != "dev.parquet"}})
    plain = Predictor(before.path)
    assert plain.temperature is None and [one.label for one in plain(turns).predictions] == [
        one.label for one in answer.predictions
    ]
