"""A score is the same number wherever it is read: training, sweep, report, its exports and its page."""

import csv
import json
import re
from pathlib import Path

import pytest

from ser.tests.command_line import printed
from ser.tests.tiny_store import make_store
from ser.train.report.cell_scores import CellScores
from ser.train.run_folder import Run

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

    cell = CellScores([Run(Path(run["path"])) for run in runs])
    assert len(runs) == 6
    for metric in ("ua", "wa"):
        name, score = metric.upper(), cell.score(metric)  # which tests/test_metrics.py holds to the formulas
        pooled, over = score.pooled, {"seeds": score.over_seeds, "folds": score.over_folds}
        seeds, folds = (f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in over.values())
        assert f"{pooled:.2f}" != f"{score.over_folds[0]:.2f}", "the two must differ"

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
