"""Searches: every candidate of every fold trained, the best on dev counted, no other's test score shown."""

import json
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ser.errors import CorruptStore, StoreError, WrongUse
from ser.train.recipe import Recipe, read_recipe
from ser.train.report.cell_scores import CellScores
from ser.train.report.cells import group_runs
from ser.train.report.sections import make_page, report_text
from ser.train.report.terminal import recipe_rows, recipe_table
from ser.train.run_folder import Run, find_runs
from ser.train.search import Record, find_records
from ser.train.sweep import estimate_sweep, plan_sweep, run_sweep

TWO = """
[experiment]
features = 'is13'
fusion = 'audio'
epochs = 4
folds = 2
set = {{ d_model = 16, batch_size = 2, lr = {lr}, dropout = {dropout} }}
[[cell]]
name = 'plain'
[[cell]]
name = 'all speech'
labels = '5class'
"""
GRID = {"lr": "[0.003, 1e30, 0.03]", "dropout": "[0, 0.3]"}


def written(folder: Path, store: Path, text: str = TWO, out: str = "runs", more: str = "", **several: str) -> Recipe:
    file = folder / "search.toml"
    file.write_text(more + text.format(**{**GRID, **several}))
    return read_recipe(file, store=store, out=folder / out, device="cpu")


def best(recipe: Recipe, folder: Path) -> dict[tuple[str, str], tuple[str, float]]:
    """By cell and fold the run with the best dev UA, and that: from the histories alone."""
    found = {}
    for cell, (number, fold) in product(recipe.cells, enumerate(("session 1", "session 2"))):
        names = [run.path.name for run in plan_sweep(recipe).runs[cell.name][number::2]]
        results = [json.loads(f.read_text()) if (f := folder / n / "result.json").exists() else None for n in names]
        dev = [max(line["ua"] for line in result["history"]) if result else -1 for result in results]
        assert [result is None or result["fold"] == fold for result in results] == [True] * len(cell.candidates)
        found[cell.name, fold] = names[int(np.argmax(dev))], 100 * max(dev)
    return found


def test_each_fold_counts_with_its_best_candidate(store: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, store)
    sweep = plan_sweep(recipe)
    assert len(sweep.tasks) == 2 * 6 * 2 and estimate_sweep(sweep, 1)[0] > 0
    shards = [{task.name for task in plan_sweep(recipe, f"{i}/2").tasks} for i in (1, 2)]
    assert not shards[0] & shards[1] and shards[0] | shards[1] == {task.name for task in sweep.tasks}
    running = run_sweep(plan_sweep(recipe, "1/2"))
    next(running)
    running.close()  # killed
    told = recipe_table(recipe, sweep.runs)
    assert "no fold has all 6 candidates finished" in told and "paper UA" not in told
    for shard in ("2/2", "1/2"):
        assert {fault is None for _, fault in run_sweep(plan_sweep(recipe, shard))} == {True, False}
    expected = best(recipe, tmp_path / "runs")
    for row in recipe_rows(recipe, sweep.runs):
        chosen = {fold: expected[row.cell, fold] for fold in ("session 1", "session 2")}
        assert {line["fold"]: (line["run"], line["dev UA %"]) for line in row.chosen} == chosen
        assert [Path(folder).name for folder in row.folders] == [run for run, _ in chosen.values()]
        assert all(line["tried"] == 6 and line["lr"] in (0.003, 0.03) for line in row.chosen)
        assert row.scores["ua"] == CellScores([Run(Path(folder)) for folder in row.folders]).score("ua")
        assert row.done == row.runs == 2
    shorter = [Record(one.file, one.over, one.candidates[:2]) for one in find_records(tmp_path / "runs")]
    cells, _ = group_runs(find_runs(tmp_path / "runs"), [*shorter, *find_records(tmp_path / "runs")])
    assert [len(cell.search.candidates) for cell in cells if cell.search] == [6, 6], "the longer list tried them all"
    assert {run.name for cell in cells for run in cell.runs} == {run for run, _ in expected.values()}
    later = [Record(one.file, [*one.over, "focal_gamma"], one.candidates) for one in find_records(tmp_path / "runs")]
    searched, _ = group_runs(find_runs(tmp_path / "runs"), later)  # which is in no config where it is at its default
    assert all(cell.settings["focal_gamma"] == cell.settings["lr"] == "searched" for cell in searched)
    shown = report_text(cells, [])
    page = [str(table.rows) for table in make_page(cells, []).tables]
    for run in find_runs(tmp_path / "runs"):
        is_chosen = run.name in {name for name, _ in expected.values()}
        assert (run.name in shown) == any(run.name in rows for rows in page) == is_chosen
    again = written(tmp_path, store, out="whole")
    list(run_sweep(plan_sweep(again)))
    assert best(again, tmp_path / "whole") == expected, "killed, in shards or at once: the same are chosen"
    kept = find_records(tmp_path / "runs")[0]
    file = tmp_path / "runs" / kept.name
    for text in (b"[]", msgspec.json.encode(msgspec.structs.replace(kept, candidates=kept.candidates[1:]))):
        file.write_bytes(text)
        with pytest.raises(CorruptStore, match="is not the record of a search"):
            find_records(tmp_path / "runs")
    file.rename(tmp_path / "victim")
    file.symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="no record is written through one"):
        kept.write(tmp_path / "runs")


def test_candidates_are_a_grid_or_the_same_draws_each_time(store: Path, tmp_path: Path) -> None:
    grid = tuple((f"lr={lr}", f"dropout={dropout}") for lr in (0.0001, 0.01) for dropout in (0, 0.3))
    assert written(tmp_path, store, lr="[1e-4, 0.01]").cells[0].candidates == grid

    def draws(seed: int) -> tuple[tuple[str, ...], ...]:
        asked = {"lr": "{ from = 1e-5, to = 1e-1, log = true }", "dropout": "{ from = 0.1, to = 0.3 }"}
        one, other = written(tmp_path, store, more=f"[search]\ndraws = 200\nseed = {seed}\n", **asked).cells
        assert one.candidates == other.candidates and len(set(one.candidates)) == 200
        return one.candidates

    assert draws(0) == draws(0) != draws(1)
    lr, dropout = (np.array([float(one[i].partition("=")[2]) for one in draws(0)]) for i in (0, 1))
    assert lr.min() >= 1e-5 and lr.max() <= 0.1 and 0.4 < np.mean(lr < 1e-3) < 0.6, "even in the logarithm"
    assert dropout.min() >= 0.1 and dropout.max() <= 0.3 and 0.4 < np.mean(dropout < 0.2) < 0.6


@pytest.mark.parametrize(
    ("more", "several", "says"),
    [
        ("", {"lr": "{ from = 1, to = 2 }"}, "lr is a range: write `draws = 20`"),
        ("[search]\ndraws = 2\n", {"lr": "{ from = 0, to = 1, log = true }"}, "with log from above 0"),
        ("[search]\ndraws = 2\n", {"lr": "{ from = 1, to = inf }"}, "from a number to a larger one"),
        ("[search]\ndraws = 2\n", {"lr": f"{{ from = 1, to = {10**400} }}"}, "from a number to a larger one"),
        ("[search]\ndraws = 7\n", {"lr": "[1, 2, 3]"}, "draws 7 candidates, and there are not so many"),
        ("[search]\nat_most = 5\n", {}, "the search has 6 runs; if they are meant, write `at_most = 6`"),
        ("[search]\nat_most = 23\n", {}, "the search has 24 runs"),
        ("[search]\nN = 3\n", {}, "unknown field `N`"),
        ("", {"lr": "[0.1, 1e-1]"}, "two candidates are one run"),
        ("", {"text": TWO + "select = 'last'"}, "cell 'all speech': a search chooses .*, which takes --select val"),
        ("", {"text": TWO + "set = {{ lr = 1 }}"}, "try as many candidates each, .*: 'plain' 6, 'all speech' 2"),
        ("", {"lr": "1, dev = ['0.1', 'next']"}, "not scored alike on dev"),
    ],
)
def test_searches_that_are_refused(store: Path, tmp_path: Path, more: str, several: dict[str, str], says: str) -> None:
    with pytest.raises(WrongUse, match=says):
        plan_sweep(written(tmp_path, store, more=more, **several))
