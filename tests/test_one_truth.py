"""A score is the same number wherever it is read: training, sweep, report, its exports and its page."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from ser.tests.command_line import printed
from ser.tests.tiny_store import make_store

RECIPE = """
title = "One cell"
[experiment]
features = "is13"
fusion = "audio"
folds = 2
seeds = 3
epochs = 3
[[cell]]
name = "mine"
paper = { ua = 50.0, wa = 50.0 }
"""


def table_line(text: str, start: str) -> list[str]:
    """The cells of the first line that begins with that name, split where the table has two spaces."""
    return re.split(r"\s{2,}", next(line for line in text.splitlines() if line.startswith(start)).strip())


def test_every_table_shows_the_same_digits(tmp_path: Path) -> None:
    """Two folds and three seeds, so that pooled scores and means over folds differ."""
    make_store(tmp_path / "store")
    (tmp_path / "mine.toml").write_text(RECIPE)
    places = ("--store", tmp_path / "store", "--out", tmp_path / "runs", "--device", "cpu")
    asked = ("--features", "is13", "--fusion", "audio", "--folds", 2, "--seeds", 3, "--epochs", 3, *places)
    runs = json.loads(printed("train", *asked, "--json"))["runs"]
    trained = printed("train", *asked)
    sweep = ("sweep", tmp_path / "mine.toml", "--workers", 1, *places)
    swept, as_json = printed(*sweep), json.loads(printed(*sweep, "--json"))["rows"][0]["scores"]
    files = [word for form in ("csv", "html", "markdown", "latex") for word in (f"--{form}", tmp_path / form)]
    reported = printed("report", tmp_path / "runs", *files)
    lines = list(csv.reader((tmp_path / "csv").open(encoding="utf-8")))
    place = next(n for n, line in enumerate(lines) if line and line[0] == "cell" and "macro-F1 %" in line)
    exact = dict(zip(lines[place], lines[place + 1], strict=True))

    assert len(runs) == 6
    for metric in ("ua", "wa"):
        name, own = metric.upper(), [100 * run[metric] for run in runs]
        by_seed = [np.sum([run["confusion"] for run in runs if run["seed"] == seed], axis=0) for seed in range(3)]
        right = [np.diag(matrix) / (matrix.sum(1) if metric == "ua" else matrix.sum()) for matrix in by_seed]
        pooled = 100 * np.mean([np.mean(one) if metric == "ua" else np.sum(one) for one in right])
        by_seed = [100 * (np.mean(one) if metric == "ua" else np.sum(one)) for one in right]
        by_fold = [
            np.mean([100 * run[metric] for run in runs if run["fold"] == fold])
            for fold in {run["fold"] for run in runs}
        ]
        over = {  # the deviation over the runs is neither
            "seeds": (pooled, np.std(by_seed, ddof=1)),
            "folds": (np.mean(own), np.std(by_fold, ddof=1)),
        }
        seeds, folds = (f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in over.values())
        assert f"{pooled:.2f}" != f"{np.mean(own):.2f}", "the two must differ"

        assert table_line(trained, name)[1:5] == [seeds, "3", folds, "2"]
        [low, high] = re.search(rf"{metric} over speakers: {pooled:.2f} \[([\d.]+), ([\d.]+)\]", trained).groups()
        assert seeds in table_line(swept, "mine") and folds in table_line(swept, "mine")
        assert as_json[metric]["pooled"] == pytest.approx(pooled)
        interval = f"{pooled:.2f} [{low}, {high}]"
        line = table_line(reported, "audio")
        assert interval in line and seeds in line and folds in line and "4 speakers" in line
        assert float(exact[f"{name} %"]) == pytest.approx(pooled, abs=1e-4)
        for what, spread in over.items():
            assert as_json[metric][f"over_{what}"] == pytest.approx(spread)
            found = [float(exact[f"{name} over {what} %{end}"]) for end in ("", " deviation")]
            assert found == pytest.approx(spread, abs=1e-4)
        for form in ("html", "markdown", "latex"):
            text = (tmp_path / form).read_text(encoding="utf-8").replace("\\", "").replace("$pm$", "±")
            assert interval in text and seeds in text and folds in text, form
        assert f"{pooled:.2f} %" in (tmp_path / "html").read_text(encoding="utf-8")
