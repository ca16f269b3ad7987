"""Stores and run folders of earlier versions open, and give what they gave; see tests/fixtures.

`runs-v1`: three runs of ser 0.1.0 on the demo corpus (`--limit 60 --epochs 2 --set d_model=8 --set
heads=2 --set queries=2`): two folds of logmel with fusion audio, one of logmel+bert with mit.
`runs-v1-predictions.json` is what that version's `ser predict` said of the noise that is generated
below.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser.extract.corpora.demo import demo_vocabulary
from ser.tests.command_line import printed
from ser.weights.demo import write_demo_checkpoints

FIXTURES = Path(__file__).parent / "fixtures"
PREDICTIONS = json.loads((FIXTURES / "runs-v1-predictions.json").read_text())


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    samples = 0.1 * np.random.default_rng(0).standard_normal(24000)
    sf.write(tmp_path / "noise.wav", samples.astype(np.float32), 16000, subtype="PCM_16")
    return tmp_path / "noise.wav"


@pytest.mark.parametrize("name", PREDICTIONS)
def test_runs_of_version_1_predict_what_they_did(name: str, noise: Path, tmp_path: Path) -> None:
    run = FIXTURES / "runs-v1" / name
    models: list[str] = []  # the weights of BERT are the demo's, wherever that was made
    if "text" in json.loads((run / "config.json").read_text())["features"]:
        checkpoints = write_demo_checkpoints(tmp_path / "checkpoints", demo_vocabulary())
        models = ["--model", f"bert={checkpoints['bert']}"]
    [found] = json.loads(printed("predict", run, noise, "--json", *models))["predictions"]
    assert found["probabilities"] == pytest.approx(PREDICTIONS[name], abs=1e-6)


def test_runs_of_version_1_are_reported_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page, runs = tmp_path / "report.html", shutil.copytree(FIXTURES / "runs-v1", tmp_path / "runs")
    shown = printed("report", runs, "--html", page)
    [told] = [record.getMessage() for record in caplog.records if record.name == "ser.train"]
    assert told.endswith("runs that an older ser wrote, without a seal: they are not checked")
    assert "audio:frame" in shown and "mit" in shown
    assert "audio:frame" in page.read_text()
