"""The benchmarks' own arithmetic, and that their made-up data trains."""

import contextlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from ser.benchmarks import finetune, gpu, gpu_numbers, papers, statistics
from ser.benchmarks.__main__ import main, report
from ser.benchmarks.demo import difference
from ser.tests.command_line import ser
from ser.train.scores.ratings import concordance
from ser.train.sweep.recipe import read_recipe, recipe_names


def test_the_interval_of_a_paired_difference() -> None:
    plain = [50.0, 52.0, 51.0, 49.0, 55.0]
    ours = [53.0, 54.0, 55.0, 50.0, 59.0]
    row = difference("x", plain, ours)

    interval = stats.ttest_rel(ours, plain).confidence_interval(0.95)
    assert row["difference"]["low"] == pytest.approx(interval.low)
    assert row["difference"]["high"] == pytest.approx(interval.high)
    assert row["difference"]["mean"] == pytest.approx(2.8)
    assert row["what"].endswith("holds")

    assert difference("x", ours, plain)["what"].endswith("does not hold")
    near = [51.0, 50.0, 52.0, 48.0, 56.0]
    assert difference("x", plain, near)["what"].endswith("cannot be decided")


def test_intervals_and_tests_keep_what_they_promise() -> None:
    """The simulation in small; what ser printed before, and McNemar's test, fail it."""
    rows = {row["row"]: row for row in statistics.cases(1, n=600, groups=(8,))}
    for row in rows.values():
        assert not row["own"] or abs(row["ours"] - row["plain"]) < 4

    assert rows["coverage of the percentile bootstrap, UA, speakers"]["ours"] < 91
    assert rows["type I, McNemar, dialogues"]["ours"] > 10
    assert rows["coverage, RMSE, speakers"]["ours"] < 93
    for name in ("UA", "WA", "MACRO_F1", "CCC"):
        assert f"coverage, {name}, speakers" in rows


def test_the_truth_of_ratings_is_that_of_very_many_speakers() -> None:
    ratings = statistics.draw_ratings(np.random.default_rng(0), 30, 2000)
    scores = {name: float(value) for name, value in concordance(ratings.sum((0, 1))).items()}
    assert scores == pytest.approx(statistics.rated_truth(), abs=3e-3)


def test_the_table_ends_with_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"what": "x", "plain": 1.0, "ours": 2.0, "unit": "s", "ratio": 0.5, "target": 0.5}
    assert report([row, {**row, "target": None}]) == 0
    assert report([row, {**row, "what": "slow", "target": 0.51}]) == 1
    assert "below target: slow" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text())[0] == row
    assert main(["nothing"]) == 2


@pytest.mark.slow
def test_the_page_for_gpus_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As long for a stage, on a machine that is busy too.
    monkeypatch.setattr(gpu, "CPU_TIMES", 20)
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--small", "--out", str(out)]
    assert gpu.main([*words, "--only", "float64", "--only", "waits"]) == 0

    found = json.loads(out.read_text())
    shown = capsys.readouterr().out
    step = found["stages"]["float64"]["rows"][1]
    wait = found["stages"]["waits"]["rows"][0]
    assert found["holds"]
    assert step["what"][:20] in shown
    assert wait["what"][:20] in shown
    assert wait["found"] == gpu.UNKNOWN
    assert step["found"] == 0
    assert step["detail"]["each"].keys() == gpu_numbers.FUSIONS.keys()


def test_all_stages_together_fit_the_time_of_the_page() -> None:
    assert sum(stage.seconds for stage in gpu.STAGES.values()) <= gpu.ALL


BROKEN = """
import os, signal, subprocess, sys, time
from ser.benchmarks.gpu import at_most

def raises(request):
    yield at_most("not a number", float("nan"), 2.0)
    import no_such_package

def hangs(request):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield at_most("its child", child.pid, 1e9)
    time.sleep(600)

def dies(request):
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_stage_that_fails_is_reported_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)

    # A busy machine may not start the stage that hangs within the shorter limits.
    for limit in (0.5, 5, 50):
        stages = {
            "raises": gpu.Stage("broken:raises", 50, "cli.py"),
            "hangs": gpu.Stage("broken:hangs", limit, "cli.py"),
            "dies": gpu.Stage("broken:dies", 50, "cli.py"),
        }
        assert gpu.main(["--device", "cpu"], stages) == 1
        shown = capsys.readouterr().out
        found = json.loads(Path("gpu.json").read_text())["stages"]
        rows = {name: stage["rows"] for name, stage in found.items()}
        if len(rows["hangs"]) == 2:
            break

    assert rows["raises"][1]["found"] == "ModuleNotFoundError: No module named 'no_such_package'"
    assert rows["hangs"][1]["found"] == f"stopped after {4 * limit:.0f} s, its limit"
    assert rows["dies"][0]["found"] == "killed by SIGSEGV"
    assert shown.count("failed: look at cli.py") == 3

    # What a stage started ends with it, whoever waits for it.
    with contextlib.suppress(psutil.NoSuchProcess):
        child = psutil.Process(rows["hangs"][0]["found"])
        assert child.status() == psutil.STATUS_ZOMBIE


def test_the_checks_of_a_gpu_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = gpu_numbers.update
    calls = count()

    def as_a_gpu_might(*arguments: Any) -> dict[str, Any]:
        """A gradient of the first batch is None, and others are a little larger.

        Every second call is the GPU's.
        """
        done = update(*arguments)
        call = next(calls)
        if call % 2:
            done["gradient"]["classifier.3.bias"] *= 1 + 1e-7
        if call == 1:
            done["gradient"]["audio.project.bias"] = None
        return done

    monkeypatch.setattr(gpu_numbers, "FUSIONS", {"mit": gpu_numbers.FUSIONS["mit"]})
    monkeypatch.setattr(gpu_numbers, "update", as_a_gpu_might)
    rows = list(gpu_numbers.float64(gpu.Request("cpu", True, tmp_path)))
    assert [row["holds"] for row in rows] == [True, False, False]
    assert rows[2]["found"] == "mit, hidden 0: audio.project.bias"


def test_operations_in_float16_are_noted() -> None:
    with gpu_numbers.Halves() as halves:
        torch.ones(2) + torch.ones(2).half()
    assert "aten.add.Tensor" in halves.seen


def test_nan_is_the_largest_difference() -> None:
    ours = {"a": torch.tensor([1.0]), "b": torch.tensor([torch.nan]), "c": None}
    theirs = {"a": torch.tensor([2.0]), "b": torch.tensor([1.0]), "c": None}
    distance = gpu_numbers.distance(ours, theirs)
    assert np.isnan(distance)
    assert np.isnan(gpu_numbers.larger(0.0, distance))
    assert not gpu_numbers.worst("an update", {"x": 0.5, "y": distance}, 1.0)["holds"]


def test_the_papers_tables_are_written_and_gone_on_with(
    demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo_store.parent
    page = tmp_path / "page.md"

    def run_here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """The command in this process, which need not be started."""
        assert command[:3] == [sys.executable, "-m", "ser"]
        done = ser(*command[3:])
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout)

    monkeypatch.setattr(papers, "subprocess", SimpleNamespace(run=run_here, PIPE=subprocess.PIPE))
    words = [str(made / "corpus"), "--store", str(demo_store), "--out", str(tmp_path / "runs")]
    words += ["--page", str(page), "--only", "perspective-table1"]
    words += ["--model", f"bert={made / 'checkpoints' / 'bert-random'}"]
    words += ["--select", "last", "--epochs", "1", "--seeds", "1", "--workers", "1"]

    times = []
    for _ in range(2):
        done = CliRunner().invoke(papers.main, words)
        assert done.exit_code == 0, done.output
        weights = sorted((tmp_path / "runs").glob("*/model.safetensors"))
        times.append([path.stat().st_mtime_ns for path in weights])
    # Two cells, and the linear models on the same features.
    assert len(times[0]) == 4 and times[0] == times[1], "each cell is trained once"

    text = page.read_text()
    assert text.count("1 of 1") == 4
    assert "not measured" in text
    assert "synthetic corpus (demo)" in text
    assert "ser sweep perspective-table1 --select last" in text
    assert "ser features" in text
    for name in recipe_names():
        title = read_recipe(name).title
        assert title.replace("-", "\\-") in text or title in text


def test_the_page_of_the_papers_has_every_recipe() -> None:
    page = papers.PAGE.read_text()
    for name in recipe_names():
        assert read_recipe(name).title in page


def test_an_unknown_recipe_is_refused() -> None:
    done = CliRunner().invoke(papers.main, ["--only", "nothing"])
    assert "unknown recipe" in str(done.exception)


def test_the_top_from_the_cache_makes_the_updates_of_the_whole_model(tmp_path: Path) -> None:
    """With norms over channels: those over time would see the padding in the plain way."""
    config = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8] * 7,
        "feat_extract_norm": "layer",
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    steps = finetune.Steps(config, np.array([0.3, 0.5, 0.2, 0.4, 0.6]), tmp_path)
    frozen_below = steps.plain_epoch(finetune.TOP)
    assert steps.our_epoch() == pytest.approx(frozen_below, abs=1e-4)
    assert steps.plain_epoch(None) != pytest.approx(frozen_below, abs=1e-6)
    assert steps.our_bytes() < steps.plain_bytes(finetune.TOP) < steps.plain_bytes(None)
    if find_spec("peft") is not None:
        # Before the first update they are the layers.
        assert steps.adapted_epoch()[0] == pytest.approx(frozen_below[0], abs=1e-4)
