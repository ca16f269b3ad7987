"""Searches: every candidate of every fold is trained, the best on dev counts, and no other's test
score is shown.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ser.errors import CorruptStore, StoreError, WrongUse
from ser.train.report.cell_scores import CellScores
from ser.train.report.grouping import group_runs
from ser.train.report.page import make_page
from ser.train.report.recipe_table import RecipeRow, recipe_rows, recipe_table
from ser.train.report.terminal import report_text
from ser.train.run_folder import Run, find_runs
from ser.train.sweep.estimate import estimate_sweep
from ser.train.sweep.recipe import Recipe, read_recipe
from ser.train.sweep.run import run_sweep
from ser.train.sweep.search_record import SearchRecord, find_search_records
from ser.train.sweep.tasks import Sweep, plan_sweep

# Two cells whose `lr` and `dropout` are searched, on two folds.
TWO = """
[experiment]
features = 'is13'
fusion = 'audio'
epochs = 4
folds = 2
set = {{ d_model = 16, gru_hidden = 8, batch_size = 2, lr = {lr}, dropout = {dropout} }}
[[cell]]
name = 'plain'
[[cell]]
name = 'all speech'
labels = '5class'
"""
# Six candidates, of which those with the second rate diverge.
GRID = {"lr": "[0.003, 1e30, 0.03]", "dropout": "[0, 0.3]"}
FOLDS = ("session 1", "session 2")


def written(folder: Path, store: Path, text: str = TWO, more: str = "", **several: str) -> Recipe:
    """A recipe with a search over `several` settings; `more` stands above the rest."""
    file = folder / "search.toml"
    file.write_text(more + text.format(**{**GRID, **several}))
    return read_recipe(file, store=store, out=folder / "runs", device="cpu")


@pytest.fixture(scope="module")
def searched(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Sweep]:
    """A search whose runs are all trained, after it was killed and in two shards."""
    recipe = written(tmp_path_factory.mktemp("search"), store)
    sweep = plan_sweep(recipe)
    running = run_sweep(plan_sweep(recipe, "1/2"))
    next(running)
    running.close()

    table = recipe_table(recipe, sweep.runs)
    assert any(run.finished for runs in sweep.runs.values() for run in runs)
    assert "no fold has all 6 candidates finished" in table
    assert table.count("0 of 2") == 2

    for shard in ("2/2", "1/2"):
        faults = [fault for _, fault in run_sweep(plan_sweep(recipe, shard))]
        assert None in faults, "some are finished"
        assert any(faults), "some diverge"
    return recipe, sweep


def out_of(recipe: Recipe) -> Path:
    """The folder of its runs."""
    return Path(recipe.cells[0].experiment.out)


def best_on_dev(sweep: Sweep, cell: str) -> dict[str, tuple[int, Run, float]]:
    """By fold the best candidate: its number, its run and its UA on dev in percent."""
    best = {}
    for number, fold in enumerate(FOLDS):
        tried = [run for run in sweep.runs[cell][number::2] if run.finished]
        assert {run.result.fold for run in tried} == {fold}
        # By the histories alone.
        scores = [max(epoch.ua for epoch in run.result.history) for run in tried]
        first = int(np.argmax(scores))
        best[fold] = first, tried[first], 100 * scores[first]
    return best


def test_shards_split_a_search(store: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, store)
    sweep = plan_sweep(recipe)
    assert len(sweep.tasks) == 2 * 6 * 2
    seconds, _ = estimate_sweep(sweep, 1)
    assert seconds > 0

    shards = []
    for number in (1, 2):
        shards += [task.name for task in plan_sweep(recipe, f"{number}/2").tasks]
    assert sorted(shards) == sorted(task.name for task in sweep.tasks)


def test_each_fold_counts_with_its_best_candidate(searched: tuple[Recipe, Sweep]) -> None:
    recipe, sweep = searched
    numbers = []
    for row in recipe_rows(recipe, sweep.runs):
        best = best_on_dev(sweep, row.cell)
        numbers += [number for number, _, _ in best.values()]
        check_row(row, best)
    assert any(numbers), "or the first of equals would do"


def check_row(row: RecipeRow, best: dict[str, tuple[int, Run, float]]) -> None:
    """The row shows the best candidate of each fold, and scores those alone."""
    assert row.done == row.runs == 2
    names = [run.name for _, run, _ in best.values()]
    assert [Path(folder).name for folder in row.folders] == names

    for line in row.chosen:
        _, run, score = best[line["fold"]]
        assert (line["run"], line["dev UA %"]) == (run.name, score)
        assert line["tried"] == 6
        assert line["lr"] in (0.003, 0.03)
    assert len(row.chosen) == len(best)

    runs = [Run(Path(folder)) for folder in row.folders]
    assert row.scores["ua"] == CellScores(runs).score("ua")


def test_a_report_shows_the_best_candidates_alone(searched: tuple[Recipe, Sweep]) -> None:
    recipe, sweep = searched
    expected = set()
    for cell in recipe.cells:
        expected |= {run.name for _, run, _ in best_on_dev(sweep, cell.name).values()}

    runs = find_runs(out_of(recipe))
    cells, _ = group_runs(runs, find_search_records(out_of(recipe)))
    assert {run.name for cell in cells for run in cell.runs} == expected

    text = report_text(cells, [], tables=["chosen"], width=400)
    tables = [str(table.rows) for table in make_page(cells, []).tables]
    for run in runs:
        assert (run.name in text) == (run.name in expected)
        assert any(run.name in rows for rows in tables) == (run.name in expected)


def test_the_longer_list_of_candidates_takes_the_place_of_the_shorter(
    searched: tuple[Recipe, Sweep],
) -> None:
    recipe, _ = searched
    records = find_search_records(out_of(recipe))
    shorter = []
    for record in records:
        shorter.append(SearchRecord(record.file, record.searched, record.candidates[:2]))

    cells, _ = group_runs(find_runs(out_of(recipe)), [*shorter, *records])
    tried = [len(cell.search.candidates) for cell in cells if cell.search]
    assert tried == [6, 6]


def test_a_searched_setting_is_named_so_even_where_it_is_at_its_default(
    searched: tuple[Recipe, Sweep],
) -> None:
    recipe, _ = searched
    records = []
    for record in find_search_records(out_of(recipe)):
        # In no config where it is at its default.
        over = [*record.searched, "focal_gamma"]
        records.append(SearchRecord(record.file, over, record.candidates))

    cells, _ = group_runs(find_runs(out_of(recipe)), records)
    for cell in cells:
        assert cell.settings["focal_gamma"] == "searched"
        assert cell.settings["lr"] == "searched"


RECORD = SearchRecord("recipe.toml", ["lr"], ["0" * 16, "1" * 16])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[]", id="another type"),
        pytest.param(
            msgspec.json.encode(msgspec.structs.replace(RECORD, candidates=["1" * 16])),
            id="other candidates",
        ),
    ],
)
def test_an_altered_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD.name).write_bytes(content)
    with pytest.raises(CorruptStore, match="is not the record of a search"):
        find_search_records(tmp_path)


def test_no_record_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / RECORD.name).symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="no record is written through one"):
        RECORD.write(tmp_path)


def test_lists_are_a_grid(store: Path, tmp_path: Path) -> None:
    grid = []
    for lr in (0.0001, 0.01):
        for dropout in (0, 0.3):
            grid.append((f"lr={lr}", f"dropout={dropout}"))
    recipe = written(tmp_path, store, lr="[1e-4, 0.01]")
    assert recipe.cells[0].candidates == tuple(grid)


def draws(folder: Path, store: Path, seed: int) -> tuple[tuple[str, ...], ...]:
    """200 draws of two ranges, which are the same for both cells."""
    recipe = written(
        folder,
        store,
        more=f"[search]\ndraws = 200\nseed = {seed}\n",
        lr="{ from = 1e-5, to = 1e-1, log = true }",
        dropout="{ from = 0.1, to = 0.3 }",
    )
    first, second = recipe.cells
    assert first.candidates == second.candidates
    assert len(set(first.candidates)) == 200
    return first.candidates


def test_ranges_give_the_same_draws_each_time(store: Path, tmp_path: Path) -> None:
    assert draws(tmp_path, store, 0) == draws(tmp_path, store, 0)
    assert draws(tmp_path, store, 0) != draws(tmp_path, store, 1)


def test_draws_are_even_in_their_range(store: Path, tmp_path: Path) -> None:
    rates = []
    dropouts = []
    for lr, dropout in draws(tmp_path, store, 0):
        rates.append(float(lr.removeprefix("lr=")))
        dropouts.append(float(dropout.removeprefix("dropout=")))

    assert min(rates) >= 1e-5 and max(rates) <= 0.1
    assert 0.4 < np.mean(np.array(rates) < 1e-3) < 0.6, "even in the logarithm"
    assert min(dropouts) >= 0.1 and max(dropouts) <= 0.3
    assert 0.4 < np.mean(np.array(dropouts) < 0.2) < 0.6


TWO_DRAWS = "[search]\ndraws = 2\n"


@pytest.mark.parametrize(
    ("more", "several", "says"),
    [
        pytest.param(
            "",
            {"lr": "{ from = 1, to = 2 }"},
            r"search\.toml: lr is a range: write `draws = 20`",
            id="a range without draws",
        ),
        pytest.param(
            TWO_DRAWS,
            {"lr": "{ from = 0, to = 1, log = true }"},
            "with log from above 0",
            id="a logarithm from 0",
        ),
        pytest.param(
            TWO_DRAWS,
            {"lr": "{ from = 1, to = inf }"},
            "from a number to a larger one",
            id="a range to infinity",
        ),
        pytest.param(
            TWO_DRAWS,
            {"lr": f"{{ from = 1, to = {10**400} }}"},
            "from a number to a larger one",
            id="a range to no float",
        ),
        pytest.param(
            "[search]\ndraws = 7\n",
            {"lr": "[1, 2, 3]"},
            r"search\.toml: \[search\] draws 7 candidates, and there are",
            id="more draws than candidates",
        ),
        pytest.param(
            "[search]\nat_most = 5\n",
            {},
            r"search\.toml: the search has 6 runs; if they are meant, write `at_most = 6`",
            id="more candidates than meant",
        ),
        pytest.param(
            "[search]\nat_most = 23\n",
            {},
            r"search\.toml: the search has 24 runs",
            id="more runs than meant",
        ),
        pytest.param("[search]\nN = 3\n", {}, "unknown field `N`", id="an unknown key"),
        pytest.param("", {"lr": "[0.1, 1e-1]"}, "two candidates are one run", id="a value twice"),
        pytest.param(
            "",
            {"text": TWO + "select = 'last'"},
            "cell 'all speech': a search chooses .*, which needs --select val",
            id="no score on dev",
        ),
        pytest.param(
            "",
            {"text": TWO + "set = {{ lr = 1 }}"},
            "try as many candidates each, .*: 'plain' 6, 'all speech' 2",
            id="cells of different sizes",
        ),
        pytest.param(
            "",
            {"lr": "1, dev = ['0.1', 'next']"},
            "not scored alike on dev",
            id="dev searched",
        ),
    ],
)
def test_searches_that_are_refused(
    store: Path, tmp_path: Path, more: str, several: dict[str, Any], says: str
) -> None:
    with pytest.raises(WrongUse, match=says):
        plan_sweep(written(tmp_path, store, more=more, **several))
