"""The benchmarks' own arithmetic, and that their made-up data trains."""

import contextlib
import json
import os
import subprocess
import sys
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

from ser.benchmarks import gpu, gpu_numbers, papers, statistics
from ser.benchmarks.__main__ import main, report
from ser.benchmarks.demo import difference
from ser.tests.command_line import ser
from ser.train.scores.ratings import concordance
from ser.train.sweep.recipe import read_recipe, recipe_names


def test_the_interval_of_a_paired_difference() -> None:
    plain, ours = [50.0, 52.0, 51.0, 49.0, 55.0], [53.0, 54.0, 55.0, 50.0, 59.0]
    row = difference("x", plain, ours)
    interval = stats.ttest_rel(ours, plain).confidence_interval(0.95)
    assert row["difference"]["low"] == pytest.approx(interval.low)
    assert row["difference"]["high"] == pytest.approx(interval.high)
    assert row["difference"]["mean"] == pytest.approx(2.8) and row["what"].endswith("holds")
    assert difference("x", ours, plain)["what"].endswith("does not hold")
    assert difference("x", plain, [51.0, 50.0, 52.0, 48.0, 56.0])["what"].endswith(
        "cannot be decided"
    )


def test_intervals_and_tests_keep_what_they_promise() -> None:
    """The simulation in small; what ser printed before, and McNemar's test, fail it."""
    rows = {row["row"]: row for row in statistics.cases(1, n=600, groups=(8,))}
    assert all(abs(row["ours"] - row["plain"]) < 4 for row in rows.values() if row["own"])
    assert rows["coverage of the percentile bootstrap, UA, speakers"]["ours"] < 91
    assert (
        rows["type I, McNemar, dialogues"]["ours"] > 10
        and rows["coverage, RMSE, speakers"]["ours"] < 93
    )
    assert {f"coverage, {name}, speakers" for name in ("UA", "WA", "MACRO_F1", "CCC")} <= {*rows}
    drawn = statistics.draw_ratings(
        np.random.default_rng(0), 30, 2000
    )  # their truth, from very many speakers
    found = {name: float(value) for name, value in concordance(drawn.sum((0, 1))).items()}
    assert found == pytest.approx(statistics.rated_truth(), abs=3e-3)


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


def test_the_page_for_gpus_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "CPU_TIMES", 20)  # as long for a stage, on a machine that is busy too
    assert (
        gpu.main(
            [
                "--device",
                "cpu",
                "--small",
                "--out",
                str(out),
                "--only",
                "float64",
                "--only",
                "waits",
            ]
        )
        == 0
    )
    found, shown = json.loads(out.read_text()), capsys.readouterr().out
    step, wait = found["stages"]["float64"]["rows"][1], found["stages"]["waits"]["rows"][0]
    assert found["holds"] and all(row["what"][:20] in shown for row in (step, wait))
    assert wait["found"] == gpu.UNKNOWN and step["found"] == 0
    assert step["detail"]["each"].keys() == gpu_numbers.FUSIONS.keys()
    assert sum(stage.seconds for stage in gpu.STAGES.values()) <= gpu.ALL


BROKEN = """
import os, signal, subprocess, sys, time
from ser.benchmarks.gpu import most
def raises(asked):
    yield most("not a number", float("nan"), 2.0)
    import no_such_package
def hangs(asked):
    yield most("its child", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, 1e9)
    time.sleep(600)
def dies(asked):
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_stage_that_fails_is_reported_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    for limit in (0.5, 5, 50):  # in which a busy machine may not start it
        limits = {"raises": 50, "hangs": limit, "dies": 50}
        stages = {
            name: gpu.Stage(f"broken:{name}", limit, "cli.py") for name, limit in limits.items()
        }
        assert gpu.main(["--device", "cpu"], stages) == 1
        told = capsys.readouterr().out
        found = {
            name: about["rows"]
            for name, about in json.loads(Path("gpu.json").read_text())["stages"].items()
        }
        if len(found["hangs"]) == 2:
            break
    assert found["raises"][1]["found"] == "ModuleNotFoundError: No module named 'no_such_package'"
    assert found["hangs"][1]["found"] == f"stopped after {4 * limit:.0f} s, its limit"
    assert found["dies"][0]["found"] == "killed by SIGSEGV"
    with contextlib.suppress(
        psutil.NoSuchProcess
    ):  # what a stage started ends with it, whoever waits for it
        assert psutil.Process(found["hangs"][0]["found"]).status() == psutil.STATUS_ZOMBIE
    assert told.count("failed: look at cli.py") == 3


def test_the_checks_of_a_gpu_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, sides = gpu_numbers.update, count()

    def other(*given: Any) -> dict[str, Any]:
        """What a GPU might do: a gradient of the first batch that is none, and others that are a
        little larger.
        """
        done, side = update(*given), next(sides)
        done["gradient"]["classifier.3.bias"] *= 1 + 1e-7 * (side % 2)
        return {
            **done,
            "gradient": done["gradient"] | ({"audio.project.bias": None} if side == 1 else {}),
        }

    monkeypatch.setattr(gpu_numbers, "FUSIONS", {"mit": gpu_numbers.FUSIONS["mit"]})
    monkeypatch.setattr(gpu_numbers, "update", other)
    rows = list(gpu_numbers.float64(gpu.Asked("cpu", True, tmp_path)))
    assert [row["holds"] for row in rows] == [True, False, False]
    assert rows[2]["found"] == "mit, hidden 0: audio.project.bias"
    with gpu_numbers.Halves() as seen:
        torch.ones(2) + torch.ones(2).half()
    assert "aten.add.Tensor" in seen.seen


def test_the_papers_tables_are_written_and_gone_on_with(
    demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, page = demo_store.parent, tmp_path / "page.md"

    def here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """The command in this process, which need not be started."""
        assert command[:3] == [sys.executable, "-m", "ser"]
        done = ser(*command[3:])
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout)

    monkeypatch.setattr(papers, "subprocess", SimpleNamespace(run=here, PIPE=subprocess.PIPE))
    words = [
        str(made / "corpus"),
        "--store",
        str(demo_store),
        "--out",
        str(tmp_path / "runs"),
        "--page",
        str(page),
    ]
    words += [
        "--only",
        "perspective-table1",
        "--model",
        f"bert={made / 'checkpoints' / 'bert-random'}",
    ]
    words += ["--select", "last", "--epochs", "1", "--seeds", "1", "--workers", "1"]
    times = []
    for _ in range(2):
        done = CliRunner().invoke(papers.main, words)
        assert done.exit_code == 0, done.output
        times.append(
            [
                path.stat().st_mtime_ns
                for path in sorted((tmp_path / "runs").glob("*/model.safetensors"))
            ]
        )
    assert len(times[0]) == 2 and times[0] == times[1], "two cells, each trained once"
    text = page.read_text()
    assert (
        text.count("1 of 1") == 2 and "not measured" in text and "synthetic corpus (demo)" in text
    )
    assert "ser sweep perspective-table1 --select last" in text and "ser features" in text
    titles = [read_recipe(name).title for name in recipe_names()]
    assert all(title.replace("-", "\\-") in text or title in text for title in titles)
    assert all(title in papers.PAGE.read_text() for title in titles)
    assert "unknown recipe" in str(CliRunner().invoke(papers.main, ["--only", "nothing"]).exception)
