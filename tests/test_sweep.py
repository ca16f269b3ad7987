"""Sweeps: every cell runs, each run once, resumable, split by shards, compared where alike."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from msgspec import structs

from ser import engines
from ser.errors import WrongUse
from ser.tests.command_line import ser
from ser.tests.made_recipes import tiny
from ser.train.experiment import Job
from ser.train.report.recipe_table import RecipeRow, recipe_rows, recipe_table
from ser.train.run_folder import find_runs
from ser.train.sweep.estimate import estimate_sweep
from ser.train.sweep.other_features import on_features
from ser.train.sweep.recipe import Recipe, read_recipe
from ser.train.sweep.run import run_sweep
from ser.train.sweep.tasks import GPU_WORKERS, Sweep, plan_sweep

# Runs that are trained where the recipes of a paper come one after the other into one folder:
# Table 1 of MSMSER trains only what it compares with, Table 3 only models without RMM, Fig. 2 all
# but L = 30, and SUPERB's one encoder. A paper's linear rows are on the same features.
TRAINED = {
    "msmser": {"msmser-table2": 10, "msmser-table1": 4, "msmser-table3": 2, "msmser-fig2": 5},
    "perspective": {
        "perspective-table2": 25,
        "perspective-table1": 4,
        "perspective-table3": 0,
        "perspective-table4": 6,
    },
    "superb": {"superb-er": 2},
    "usc": {"usc-table3": 20},
}

TWO_CELLS = ("Audio", "Text")


@pytest.mark.parametrize("paper", TRAINED)
def test_every_cell_runs_and_one_in_several_recipes_trains_once(
    paper: str, demo_store: Path, tmp_path: Path
) -> None:
    one_encoder = {"features": "hubert:layers=all,pool=mean"} if paper == "superb" else {}
    for name, trained in TRAINED[paper].items():
        recipe = tiny(name, demo_store, tmp_path, **one_encoder)
        sweep = plan_sweep(recipe)
        assert [fault for _, fault in run_sweep(sweep)] == [None] * trained

        rows = recipe_rows(recipe, sweep.runs)
        quoted = [system.name for system in recipe.quoted]
        assert [row.cell for row in rows] == [cell.name for cell in recipe.cells] + quoted
        check_scores(recipe, sweep, rows)
        check_table(recipe, sweep, rows)


def check_scores(recipe: Recipe, sweep: Sweep, rows: list[RecipeRow]) -> None:
    """Each row has the score of its run, tested in the cell's way."""
    for row, cell in zip(rows, recipe.cells, strict=False):
        # One model's tests, such as "only text", share it.
        [run] = sweep.runs[cell.name]
        assert row.done == row.runs == 1
        assert row.scores["ua"].pooled == pytest.approx(100 * run.result.tests[cell.test].ua)
        if run.config.fusion in ("bert", "cnn+bert"):
            assert run.config.training["finetune_text"] == "all"


def check_table(recipe: Recipe, sweep: Sweep, rows: list[RecipeRow]) -> None:
    """The table shows every cell, the paper's numbers, and why nothing is compared."""
    table = recipe_table(recipe, sweep.runs)
    for row in rows:
        assert row.cell in table
        for metric in ("ua", "wa"):
            if metric in row.paper:
                assert f"{row.paper[metric]:.2f}" in table
    for system in recipe.quoted:
        assert (system.footnote or "") in table

    conditions = {row.conditions for row in rows}
    if len(conditions) == 1:
        # Once, as it is the same for all.
        assert table.count(conditions.pop()) == 1
    else:
        assert "protocol\n" in table
    assert ("(speaker-dependent)" in table) == (recipe.name == "usc-table3")

    random = set()
    for [run, *_] in sweep.runs.values():
        random |= set(run.result.random_weights)
    shown = ", ".join(sorted(random))
    assert f"random weights ({shown}) and synthetic corpus (demo): no comparison" in table


def test_shards_split_all_runs_without_overlap(store: Path, tmp_path: Path) -> None:
    recipe = read_recipe("perspective-table2", store=store, out=tmp_path, seeds=2)
    whole = [task.name for task in plan_sweep(recipe).tasks]
    # Each cell with two seeds, and the linear one, which no seed changes.
    assert len(whole) == len(set(whole)) == 24 * 2 + 1
    assert [task.name for task in plan_sweep(recipe, "3/7").tasks] == whole[2::7]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b"])
def test_wrong_shards(store: Path, tmp_path: Path, shard: str) -> None:
    recipe = read_recipe("perspective-table1", store=store, out=tmp_path)
    with pytest.raises(WrongUse, match="--shard"):
        plan_sweep(recipe, shard)


def test_an_unfinished_sweep_says_what_is_open(store: Path, tmp_path: Path) -> None:
    recipe = tiny("perspective-table1", store, tmp_path, ("d_model=16",), seeds=2, named=TWO_CELLS)
    sweep = plan_sweep(recipe)
    running = run_sweep(sweep)
    next(running)
    running.close()

    assert len(sweep.open_tasks) == 3
    table = recipe_table(recipe, sweep.runs)
    assert "1 of 2" in table
    assert "no run finished" in table

    for workers in (1, 2):
        seconds, cells = estimate_sweep(sweep, workers)
        assert seconds > 0
        assert "Text" in cells

    cells_of_heads = [replace(cell, test="head text") for cell in recipe.cells]
    other = replace(recipe, cells=tuple(cells_of_heads))
    with pytest.raises(
        WrongUse, match="cell 'Audio': its model has no test 'head text', only both"
    ):
        recipe_rows(other, sweep.runs)


def test_on_a_gpu_one_cell_is_timed_for_all(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "stacked", True)
    recipe = tiny("perspective-table2", store, tmp_path)
    # The linear one is not trained on a GPU.
    gpu_cells = [cell.name for cell in recipe.cells if cell.experiment.fusion != "linear"]
    sweep = plan_sweep(tiny("perspective-table2", store, tmp_path, named=gpu_cells))
    _, cells = estimate_sweep(sweep, 1)
    assert Counter(cell.timed for cell in cells.values()) == {True: 1, False: 23}


def test_two_workers_give_the_same_bytes_as_one(store: Path, tmp_path: Path) -> None:
    weights = {}
    for workers in (1, 2):
        out = tmp_path / f"{workers} workers"
        options = {"seeds": 2, "epochs": 2, "named": TWO_CELLS}
        recipe = tiny("perspective-table1", store, out, ("d_model=16",), **options)
        assert len(list(run_sweep(plan_sweep(recipe), workers))) == 4
        weights[workers] = {}
        for run in find_runs(out):
            weights[workers][run.name] = (run.path / "model.safetensors").read_bytes()

    assert len(weights[1]) == 4
    assert weights[1] == weights[2]


CHILD = """
import sys
from ser.train.sweep.recipe import read_recipe
from ser.train.sweep.run import run_sweep
from ser.train.sweep.tasks import plan_sweep
options = {"epochs": 3, "seeds": 6, "set": ("d_model=16",), "named": ("Audio", "Text")}
recipe = read_recipe("perspective-table1", store=sys.argv[1], out=sys.argv[2], **options)
for task, _ in run_sweep(plan_sweep(recipe)):
    print(task.name, flush=True)
"""


def test_a_killed_sweep_goes_on_where_it_stopped(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(store), str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    done = [child.stdout.readline().strip() for _ in range(3)]
    os.kill(child.pid, signal.SIGKILL)
    child.wait(60)

    def changes() -> dict[str, int]:
        return {name: (tmp_path / name / "result.json").stat().st_mtime_ns for name in done}

    before = changes()
    options = {"epochs": 3, "seeds": 6, "set": ("d_model=16",), "named": ("Audio", "Text")}
    sweep = plan_sweep(read_recipe("perspective-table1", store=store, out=tmp_path, **options))
    assert len(sweep.tasks) == 12
    assert len(sweep.open_tasks) <= 9

    rest = [task.name for task, _ in run_sweep(sweep)]
    assert not set(rest) & set(done)
    assert not sweep.open_tasks
    assert changes() == before


def test_a_bundle_that_kills_its_worker_is_tried_run_by_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(function: Any, tasks: Any, needs: Any, split: Any, lost: Any) -> Any:
        for task in tasks:
            first, *others = split(task)
            assert needs(task) == {"GPU": 1.0}
            assert split(first) is None
            yield from (lost(first, "it dies"), *map(function, others))

    cluster = SimpleNamespace(kinds=[{"GPU": 1.0}], run=run)
    monkeypatch.setattr(engines, "Cluster", lambda *_: nullcontext(cluster))
    options = {"seeds": 3, "device": "auto", "named": TWO_CELLS}
    recipe = tiny("perspective-table1", store, tmp_path, ("d_model=16",), **options)
    sweep = plan_sweep(recipe, elsewhere=True)
    ended = list(run_sweep(sweep, scheduler="tcp://127.0.0.1:1"))
    assert [fault for _, fault in ended] == ["it dies", None, None] * 2
    assert [task.run.finished for task, _ in ended] == [False, True, True] * 2


PAPERS_CELL = """
tested = 'a'

[[cell]]
name = 'a'
features = 'is13'
fusion = 'audio:utterance'
seeds = 2
epochs = 1
protocol = 'train1234-test5'
set = { d_model = 16 }
paper = { wa = 71.0 }

[[quoted]]
name = 'b'
paper = { wa = 70.0 }
"""


def run_as_of_people(sweep: Sweep) -> None:
    """Run the sweep, and take its cell's results as if they were of people's speech."""
    list(run_sweep(sweep))
    for run in sweep.runs["a"]:
        people = structs.replace(run.result, synthetic=False, random_weights=[])
        run.__dict__["result"] = people


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        pytest.param({}, "", id="alike"),
        pytest.param(
            {"select": "last", "seeds": 3, "epochs": 2, "set": ("dev=0.2", "lr=0.01")},
            "select, seeds, epochs, lr, dev",
            id="named alone",
        ),
        pytest.param(
            {"labels": "5class", "limit": 90, "set": ("shuffle_labels=true",)},
            "labels, limit, shuffle_labels",
            id="other data",
        ),
        pytest.param(
            {"protocol": "session-out", "folds": 2, "features": "hubert"},
            "features, protocol",
            id="other features",
        ),
    ],
)
def test_only_what_is_alike_is_compared(
    store: Path, tmp_path: Path, options: dict[str, Any], differs: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(PAPERS_CELL)
    options = {"store": store, "out": tmp_path, "device": "cpu", "features": "is13", **options}
    recipe = on_features(read_recipe(file, **{**options, "features": "is13"}), options["features"])
    sweep = plan_sweep(recipe)
    run_as_of_people(sweep)

    row, quoted = recipe_rows(recipe, sweep.runs)
    barred = row.differs.startswith("not compared: ")
    assert row.differs.removeprefix("not compared: ") == differs
    assert row.paper == ({} if barred else {"wa": 71.0})
    assert barred == ("labels" in differs or "features" in differs)
    assert (quoted.compared is None) == bool(differs)
    assert differs in recipe_table(recipe, sweep.runs)


def test_a_system_on_other_features_than_its_papers_says_so(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(PAPERS_CELL.replace("seeds = 2", "seeds = 2\ndiffers = 'features'"))
    recipe = read_recipe(file, store=store, out=tmp_path, device="cpu")
    sweep = plan_sweep(recipe)
    run_as_of_people(sweep)
    row, _ = recipe_rows(recipe, sweep.runs)
    assert row.differs == "features"


# On a machine that has no such device.
FAR = ("--scheduler", "tcp://127.0.0.1:1", "--device", "cuda:7")


@pytest.fixture
def sweep_mine(store: Path, tmp_path: Path) -> partial[Result]:
    """`ser sweep` of two short runs."""
    file = tmp_path / "mine.toml"
    file.write_text(
        '[[cell]]\nname = "a"\nfeatures = "is13"\nfusion = "audio"\nseeds = 2\n'
        "set = { d_model = 16 }\n"
    )
    options = ("--store", store, "--out", tmp_path / "runs", "--folds", 1, "--epochs", 1)
    return partial(ser, "sweep", file, *options)


def test_a_sweep_for_other_machines_asks_nothing_of_this_one(sweep_mine: partial[Result]) -> None:
    """No device, no estimate, no worker of ours."""
    ahead = sweep_mine(*FAR, "--dry-run")
    assert ahead.exit_code == 0
    assert "about" not in ahead.output
    assert "2 runs to train at tcp://127.0.0.1:1" in ahead.output

    as_json = json.loads(sweep_mine(*FAR, "--dry-run", "--json").stdout)
    nothing = {"workers": None, "seconds": None, "bytes": 0}
    assert as_json == {"runs": 2, "finished": 0, **nothing}

    here = sweep_mine("--device", "cuda:7", "--dry-run")
    assert "finds no such device here" in here.output


def test_wrong_schedulers(sweep_mine: partial[Result]) -> None:
    refused = sweep_mine(*FAR, "--workers", "2")
    assert refused.exit_code == 2
    assert "--scheduler uses the workers of a cluster" in refused.output

    wrong = sweep_mine("--scheduler", "local:0", "--dry-run")
    assert wrong.exit_code == 2
    assert "write local:N" in wrong.output


def test_a_finished_sweep_needs_no_scheduler(sweep_mine: partial[Result]) -> None:
    assert sweep_mine("--workers", "1", "--device", "cpu").exit_code == 0
    done = sweep_mine(*FAR)
    assert done.exit_code == 0
    assert "2 finished already" in done.output
    assert "a" in done.stdout


@pytest.mark.parametrize(
    ("device", "gpus", "workers"),
    [
        pytest.param("auto", 4, 4, id="all of them"),
        pytest.param("cuda:1", 1, GPU_WORKERS, id="one by name"),
    ],
)
def test_several_gpus_are_used(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    gpus: int,
    workers: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    sweep = plan_sweep(tiny("perspective-table1", store, tmp_path, device=device))
    assert sweep.gpus == gpus
    assert sweep.workers(16) == workers
    assert sweep.workers(3) == 3


@pytest.mark.slow
def test_the_array_trains_every_run_once(store: Path, tmp_path: Path) -> None:
    """The sbatch script of docs/scaling.md does what Slurm would have it do.

    It is run with Slurm's variables, and without Slurm.
    """
    page = Path(__file__).parent.parent / "docs" / "scaling.md"
    text = page.read_text(encoding="utf-8")
    listing = re.search(r"`sweep\.sbatch`:\n```text\n(.*?)```", text, re.DOTALL)
    assert listing is not None
    assert listing[1].startswith("#!/bin/bash\n#SBATCH --array=1-16\n")
    script = tmp_path / "sweep.sbatch"
    script.write_text(listing[1])

    command = ["bash", str(script), "perspective-table1", "--store", str(store)]
    command += ["--seeds", "2", "--epochs", "1", "--set", "d_model=16"]
    trained = []
    for number in ("1", "2"):
        environment = {
            **os.environ,
            "SLURM_ARRAY_TASK_ID": number,
            "SLURM_ARRAY_TASK_COUNT": "2",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        subprocess.run(command, env=environment, check=True, cwd="/")
        results = (tmp_path / "runs").glob("*/result.json")
        trained.append({file.parent.name for file in results})

    assert len(trained[0]) == 3
    assert trained[0] < trained[1]
    assert len(trained[1]) == 6
