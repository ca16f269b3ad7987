"""The benchmarks' own arithmetic, and that their made-up data trains."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ser.benchmarks.costs import SEQUENCES, VECTORS, grow, made_up, write_store
from ser.benchmarks.demo import difference
from ser.benchmarks.gpu import msmser, parity, perspective
from ser.train.experiment import Experiment, run_experiment
from ser.train.fit import fit


def test_the_interval_of_a_paired_difference() -> None:
    plain, ours = [50.0, 52.0, 51.0, 49.0, 55.0], [53.0, 54.0, 55.0, 50.0, 59.0]
    row = difference("x", plain, ours)
    interval = stats.ttest_rel(ours, plain).confidence_interval(0.95)
    assert row["difference"]["low"] == pytest.approx(interval.low)
    assert row["difference"]["high"] == pytest.approx(interval.high)
    assert row["difference"]["mean"] == pytest.approx(2.8) and row["what"].endswith("holds")
    assert difference("x", ours, plain)["what"].endswith("does not hold")
    assert difference("x", plain, [51.0, 50.0, 52.0, 48.0, 56.0])["what"].endswith("cannot be told")


def test_growth_is_measured_against_the_smaller_work() -> None:
    def squares(n: int) -> None:
        for _ in range(n * n):
            sum(range(200))

    assert grow("x", squares, 50, 200, rounds=3)["ratio"] == pytest.approx(0.25, rel=0.4)  # 16 times the cost, not 4


def test_made_up_data_trains(tmp_path: Path) -> None:
    fitted = fit(*made_up("lgf-add", {m: (5, np.ones(60, int)) for m in ("audio", "text")}, "epochs=2"))
    assert len(fitted.history) == 2
    for features, fusion, asked, rows in (
        ("is13+bert", "lgf-add", VECTORS, 1),
        ("hubert+mpnet", "concat", SEQUENCES, 3),
    ):
        store = write_store(tmp_path / fusion, asked, {name: np.full(400, rows) for name in asked}, rows_per_part=500)
        settings = ("d_model=8",)
        runs = run_experiment(
            Experiment(features, fusion, store, folds=1, epochs=1, device="cpu", out=tmp_path / "runs", set=settings)
        )
        assert runs[0].result["parts"] == {"train": 240, "dev": 80, "test": 80}


def test_the_page_for_gpus_on_the_cpu() -> None:
    tiny = ("d_model=16", "heads=2")
    assert parity("mit", "cpu", "float32", *tiny)[1] == 0  # the same bytes
    assert 0 < parity("lgf-add", "cpu", "float32", *tiny)[1] < 1e-4  # two seeds at once: other sums
    for fusion in ("mit", "lgf-add"):
        _, difference, tolerance, holds = parity(fusion, "cpu", "bf16", *tiny)
        assert 0 < difference <= tolerance and holds
    for work in (perspective, msmser):
        _, seconds, target, holds = work("cpu", "float32", True, *tiny)
        assert seconds > 0 and holds == (seconds <= target)
