"""Recipes: the papers' numbers, every cell runs, each run once, resumable, split by shards; and
searches.
"""

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

import msgspec
import numpy as np
import pytest
import torch
from msgspec import structs

from ser import engines
from ser.errors import CorruptStore, MissingRows, SerError, StoreError, WrongUse
from ser.tests.command_line import ser
from ser.train.data.memory import DataCache
from ser.train.experiment import Job, prepare
from ser.train.report.cell_scores import CellScores
from ser.train.report.grouping import group_runs
from ser.train.report.page import make_page
from ser.train.report.recipe_table import recipe_rows, recipe_table
from ser.train.report.terminal import report_text
from ser.train.run_folder import Run, find_runs
from ser.train.settings import has_setting
from ser.train.sweep.estimate import estimate_sweep
from ser.train.sweep.other_features import on_features
from ser.train.sweep.recipe import Recipe, list_recipes, read_recipe
from ser.train.sweep.run import run_sweep
from ser.train.sweep.search_record import SearchRecord, find_search_records
from ser.train.sweep.tasks import GPU_WORKERS, plan_sweep

# Cells, and runs that are trained where those of a paper come one after the other into one folder:
# Table 1 of MSMSER trains only what it compares with, Table 3 only models without RMM, Fig. 2 all
# but L = 30, and SUPERB's one encoder.
RECIPES = {
    "msmser-table2": (7, 7),
    "msmser-table1": (5, 4),
    "msmser-table3": (12, 2),
    "msmser-fig2": (6, 5),
    "perspective-table2": (24, 24),
    "perspective-table1": (2, 2),
    "perspective-table3": (8, 0),
    "perspective-table4": (3, 2),
    "superb-er": (3, 1),
    "usc-table3": (19, 17),
}
TABLE_2 = {
    "Text": (66.5, 64.7),
    "Audio": (64.9, 63.2),
    "w/o Encoder": (71.9, 70.9),
    "w/o SelfAtt": (72.5, 71.4),
}
TABLE_2 |= {"w/o MIT": (67.2, 65.1), "Full": (76.4, 75.2)}
TABLE_3 = {
    "w/o RMM": (73.3, 71.7),
    "w/o RMM (only text)": (63.2, 61.2),
    "w/o RMM (only audio)": (55.5, 55.2),
}
TABLE_3 |= {
    "Full": (76.4, 75.2),
    "Full (only text)": (65.8, 64.4),
    "Full (only audio)": (63.4, 62.9),
}
CELL = "[[cell]]\nname = 'a'\nfeatures = 'is13'\n"
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
GRID = {"lr": "[0.003, 1e30, 0.03]", "dropout": "[0, 0.3]"}
TINY = (
    "d_model=16",
    "gru_hidden=8",
    "heads=2",
    "frames=48",
    "channels=2",
    "lstm_hidden=8",
    "batch_size=8",
)
CACHE = DataCache()


def tiny(name: str | Path, store: Path, out: Path, known: tuple[str, ...] = TINY, **options):
    """The recipe at tiny sizes: one epoch, one fold, one seed."""
    asked = {
        "store": store,
        "out": out,
        "epochs": 1,
        "folds": 1,
        "seeds": 1,
        "device": "cpu",
        **options,
    }
    fusions = [
        prepare(cell.experiment, CACHE)[0].plan.fusion for cell in read_recipe(name, **asked).cells
    ]
    used = [
        assignment
        for assignment in known
        if any(has_setting(fusion, assignment) for fusion in fusions)
    ]
    return read_recipe(name, set=tuple(used), **asked)


def test_the_papers_numbers() -> None:
    assert {name: recipe["cells"] for name, recipe in list_recipes().items()} == {
        n: k for n, (k, _) in RECIPES.items()
    }
    paper, quoted = (
        {name: recipe[of] for name, recipe in list_recipes().items()} for of in ("paper", "quoted")
    )
    for table, expected in (("msmser-table2", TABLE_2), ("msmser-table3", TABLE_3)):
        found = {
            cell: (numbers["ua"], numbers["wa"])
            for cell, numbers in paper[table].items()
            if numbers
        }
        assert found == expected
    assert quoted["msmser-table1"]["KS-Transformer [11]"] == {"ua": 75.3, "wa": 74.3}
    assert quoted["msmser-table1"]["CMA [12]"] == {"ua": 72.8}  # no WA is quoted
    assert paper["perspective-table1"] == {"Audio": {"wa": 71.19}, "Text": {"wa": 82.58}}
    two = paper["perspective-table2"]
    assert two["LGF ADD-Fusion, perspective"] == {"wa": 85.4, "wa_std": 0.4}
    assert two["LGF AT-Fusion, single"] == {"wa": 81.79, "wa_std": 1.37}
    assert max(two, key=lambda cell: two[cell]["wa"]) == "LGF ADD-Fusion, perspective"
    assert min(two, key=lambda cell: two[cell]["wa"]) == "LGF AT-Fusion, single"
    # Weighed by session 5's class counts, the paper's audio row of Table 3 gives its WA of Table 1
    # within rounding: its WA is plain accuracy.
    counts = {"ang": 170, "hap": 442, "neu": 384, "sad": 245}
    audio = paper["perspective-table3"]["Unimodality, A"]
    assert sum(audio[name] * n for name, n in counts.items()) / 1241 == pytest.approx(
        71.26, abs=0.01
    )
    assert len(quoted["perspective-table4"]) == 6 and quoted["perspective-table4"][
        "DANN (2020) [21]"
    ] == {"wa": 82.68}
    superb = {**paper["superb-er"], **quoted["superb-er"]}
    assert [one["wa"] for one in superb.values()] == [63.43, 64.92, 68.65, 67.62, 70.62]
    usc = {
        cell: numbers["wa"]
        for cell, numbers in paper["usc-table3"].items()
        if numbers and "built" not in cell
    }
    assert usc == {"Text": 72.4, "Audio": 47.8, "Text + Audio": 76.9}
    assert (
        quoted["usc-table3"]["ICON, Text + Audio"] == {"wa": 63.8}
        and len(quoted["usc-table3"]) == 6
    )
    for (
        table,
        numbers,
    ) in paper.items():  # what is built here stands beside the number that is quoted
        built = {
            cell.partition(", built here")[0]: number
            for cell, number in numbers.items()
            if "built here" in cell
        }
        assert built.items() <= quoted[table].items()


def test_the_papers_protocols() -> None:
    protocols = {
        "msmser": ("session-out", "4class", 1),
        "perspective": ("train1234-test5", "4class", 20),
        "superb": ("session-out", "4class", 1),
        "usc": ("random-70-20-10", "5class", 1),
    }
    for name in RECIPES:
        for asked in (cell.experiment for cell in read_recipe(name).cells):
            labels = asked.labels.replace("8class", "5class")
            assert (asked.protocol, labels, asked.seeds) == protocols[
                name.partition("-")[0]
            ] and asked.select == "val"


@pytest.mark.parametrize("paper", ["msmser", "perspective", "superb", "usc"])
def test_every_cell_runs_and_one_in_several_recipes_trains_once(
    paper: str, demo_store: Path, tmp_path: Path
) -> None:
    one_encoder = {"features": "hubert:layers=all,pool=mean"} if paper == "superb" else {}
    for name in (name for name in RECIPES if name.startswith(paper)):
        recipe = tiny(name, demo_store, tmp_path, **one_encoder)
        sweep = plan_sweep(recipe)
        assert [fault for _, fault in run_sweep(sweep)] == [None] * RECIPES[name][1]
        rows, shown = recipe_rows(recipe, sweep.runs), recipe_table(recipe, sweep.runs)
        assert [row.cell for row in rows] == [cell.name for cell in recipe.cells] + [
            one.name for one in recipe.quoted
        ]
        for row, cell in zip(rows, recipe.cells, strict=False):
            [run] = sweep.runs[cell.name]  # one model's tests, such as "only text", share it
            assert row.done == row.runs == 1
            assert row.scores["ua"].pooled == pytest.approx(100 * run.result.tests[cell.test].ua)
            if run.config.fusion in ("bert", "cnn+bert"):
                assert run.config.settings["finetune_layers"] == "all"
        said = {row.conditions for row in rows}  # once, where it is the same for all
        assert (
            all(shown.count(one) == 1 for one in said) if len(said) == 1 else "protocol\n" in shown
        )
        for row in rows:
            assert row.cell in shown
            for metric in ("ua", "wa"):
                assert metric not in row.paper or f"{row.paper[metric]:.2f}" in shown
        assert all((one.footnote or "") in shown for one in recipe.quoted)
        random = sorted(
            {feature for runs in sweep.runs.values() for feature in runs[0].result.random_weights}
        )
        assert (
            f"random weights ({', '.join(random)}) and synthetic corpus (demo): no comparison"
            in shown
        )
        assert ("(speaker-dependent)" in shown) == (name == "usc-table3")


def test_shards_split_all_runs_without_overlap(store: Path, tmp_path: Path) -> None:
    recipe = read_recipe("perspective-table2", store=store, out=tmp_path, seeds=2)
    whole = [task.name for task in plan_sweep(recipe).tasks]
    assert len(whole) == len(set(whole)) == 24 * 2
    assert [task.name for task in plan_sweep(recipe, "3/7").tasks] == whole[2::7]
    for wrong in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(WrongUse, match="--shard"):
            plan_sweep(recipe, wrong)


def test_an_unfinished_sweep_says_what_is_open(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny("perspective-table1", store, tmp_path, known=("d_model=16",), seeds=2)
    sweep = plan_sweep(recipe)
    running = run_sweep(sweep)
    next(running)
    running.close()
    assert len(sweep.open_tasks) == 3
    table = recipe_table(recipe, sweep.runs)
    assert "1 of 2" in table and "no run finished" in table
    (alone, cells), (halved, _) = (estimate_sweep(sweep, workers) for workers in (1, 2))
    assert alone > 0 and halved > 0 and "Text" in cells
    asked = replace(recipe, cells=tuple(replace(cell, test="head text") for cell in recipe.cells))
    with pytest.raises(
        WrongUse, match="cell 'Audio': its model has no test 'head text', only both"
    ):
        recipe_rows(asked, sweep.runs)
    monkeypatch.setattr(Job, "stacked", True)  # as on a GPU, where one is timed for all
    _, cells = estimate_sweep(plan_sweep(tiny("perspective-table2", store, tmp_path)), 1)
    assert Counter(ahead.timed for ahead in cells.values()) == {True: 1, False: 23}


def test_two_workers_give_the_same_bytes_as_one(store: Path, tmp_path: Path) -> None:
    for out, workers in (("one", 1), ("two", 2)):
        recipe = tiny(
            "perspective-table1", store, tmp_path / out, known=("d_model=16",), seeds=2, epochs=2
        )
        assert len(list(run_sweep(plan_sweep(recipe), workers))) == 4
    one, two = (
        {run.path.name: run.path for run in find_runs(tmp_path / out)} for out in ("one", "two")
    )
    assert one.keys() == two.keys() and len(one) == 4
    for name, path in one.items():
        assert (path / "model.safetensors").read_bytes() == (
            two[name] / "model.safetensors"
        ).read_bytes()


CHILD = """
import sys
from ser.train.sweep.recipe import read_recipe
from ser.train.sweep.tasks import plan_sweep
from ser.train.sweep.run import run_sweep
recipe = read_recipe("perspective-table1", store=sys.argv[1], out=sys.argv[2], epochs=3, seeds=6, set=("d_model=16",))
for task, _ in run_sweep(plan_sweep(recipe)):
    print(task.name, flush=True)
"""


def test_a_killed_sweep_goes_on_where_it_stopped(store: Path, tmp_path: Path) -> None:
    def stamps() -> dict[str, int]:
        return {name: (tmp_path / name / "result.json").stat().st_mtime_ns for name in done}

    command = [sys.executable, "-c", CHILD, str(store), str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    done = [child.stdout.readline().strip() for _ in range(3)]
    os.kill(child.pid, signal.SIGKILL)
    child.wait(60)
    before = stamps()
    recipe = read_recipe(
        "perspective-table1", store=store, out=tmp_path, epochs=3, seeds=6, set=("d_model=16",)
    )
    sweep = plan_sweep(recipe)
    assert len(sweep.tasks) == 12 and len(sweep.open_tasks) <= 9
    rest = [task.name for task, _ in run_sweep(sweep)]
    assert not set(rest) & set(done) and not sweep.open_tasks and stamps() == before


def test_a_bundle_that_kills_its_worker_is_tried_run_by_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(function: Any, tasks: Any, needs: Any, split: Any, lost: Any) -> Any:
        for task in tasks:
            first, *others = split(task)
            assert needs(task) == {"GPU": 1.0} and split(first) is None
            yield from (lost(first, "it dies"), *map(function, others))

    cluster = SimpleNamespace(kinds=[{"GPU": 1.0}], run=run)
    monkeypatch.setattr(engines, "Cluster", lambda *_: nullcontext(cluster))
    recipe = tiny("perspective-table1", store, tmp_path, ("d_model=16",), seeds=3, device="auto")
    outcomes = list(run_sweep(plan_sweep(recipe, elsewhere=True), scheduler="tcp://127.0.0.1:1"))
    assert [fault for _, fault in outcomes] == ["it dies", None, None] * 2
    assert [task.run.finished for task, _ in outcomes] == [False, True, True] * 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CELL, "cell a: .*missing required field `fusion`"),
        (
            CELL + "fusion = 'audio'\nprotokol = 'x'",
            "option for cell 'a' in .* 'protokol' .did you mean protocol",
        ),
        (CELL + "fusion = 'audio'\nalso_set = 'lr=1'", "unknown option for cell 'a'"),
        (CELL + "fusion = 'audio'\ntest = 'only'", "unknown test"),
        (
            CELL + "fusion = 'audio'\nset = ['lr=1']",
            r"Expected `object`, got `array` - at `\$.set`",
        ),
        (CELL + "fusion = 'audio'\nseeds = '3'", "cell 'a': seeds='3': must be int"),
        (
            CELL + "fusion = 'audio'\nselect = 'vla'",
            r"unknown value of --select 'vla' \(did you mean val\?\)",
        ),
        (CELL + "fusion = 'audio'\ntest = 'only text'", "cannot hide a modality"),
        (
            CELL + "fusion = 'audio'\nset = { dev = 'none' }",
            "cell 'a': --select val needs a dev part",
        ),
        (CELL.replace("is13", "egemaps") + "fusion = 'audio'", "cell 'a'.*ser features"),
        ("title = 'x'", "missing required field `cell`"),
        ("cells = 3", "unknown key 'cells'"),
        (CELL + "fusion = 'audio'\npaper = { ua = nan }", "Expected `float`"),
        ("[[cell", "not a TOML file"),
    ],
)
def test_wrong_recipes(store: Path, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SerError, match=says):
        plan_sweep(read_recipe(file, store=store, out=tmp_path))
    with pytest.raises(WrongUse, match="did you mean msmser-table2"):
        read_recipe("msmser-tabel2")
    with pytest.raises(
        WrongUse, match=r"unknown cell of msmser-table2 'Ful' \(did you mean Full\?\)"
    ):
        read_recipe("msmser-table2", ["Ful", "Text"])
    with pytest.raises(WrongUse, match="no fusion of this recipe has that setting"):
        plan_sweep(read_recipe("perspective-table1", store=store, out=tmp_path, set=("queries=3",)))


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({}, ""),
        (
            {"select": "last", "seeds": 3, "epochs": 2, "set": ("dev=0.2", "lr=0.01")},
            "select, seeds, epochs, lr, dev",
        ),
        (
            {"labels": "5class", "limit": 90, "set": ("shuffle_labels=true",)},
            "labels, limit, shuffle_labels",
        ),
        ({"protocol": "session-out", "folds": 2, "features": "hubert"}, "features, protocol"),
    ],
)
def test_only_what_is_alike_is_compared(
    store: Path, tmp_path: Path, options: dict[str, Any], differs: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        f"tested = 'a'\n{CELL}fusion = 'audio:utterance'\nseeds = 2\nepochs = 1\nprotocol = 'train1234-test5'\n"
        "set = { d_model = 16 }\npaper = { wa = 71.0 }\n[[quoted]]\nname = 'b'\npaper = { wa = 70.0 }\n"
    )
    asked = {"store": store, "out": tmp_path, "device": "cpu", **options}
    recipe = on_features(
        read_recipe(file, **asked | {"features": "is13"}), options.get("features", "is13")
    )
    sweep = plan_sweep(recipe)
    list(run_sweep(sweep))
    for run in sweep.runs["a"]:
        # As if it were of people.
        people = structs.replace(run.result, synthetic=False, random_weights=[])
        run.__dict__["result"] = people
    row, quoted = recipe_rows(recipe, sweep.runs)
    barred = row.differs.startswith("not compared: ")
    assert row.differs.removeprefix("not compared: ") == differs and row.paper == (
        {} if barred else {"wa": 71.0}
    )
    assert barred == ("labels" in differs or "features" in differs)
    assert (quoted.compared is None) == bool(differs) and differs in recipe_table(
        recipe, sweep.runs
    )
    if not differs:  # a system built on other features than its paper's says so, whatever is asked
        file.write_text(file.read_text().replace("seeds = 2", "seeds = 2\ndiffers = 'features'"))
        assert recipe_rows(read_recipe(file, **asked), sweep.runs)[0].differs == "features"


def test_a_recipe_on_other_features(store: Path, tmp_path: Path) -> None:
    def features(name: str, asked: str) -> dict[str, str]:
        found = on_features(read_recipe(name, store=store, out=tmp_path, epochs=1), asked)
        return {cell.name: cell.experiment.features for cell in found.cells}

    both = features("msmser-table2", "bert+logmel")
    assert (both["Text"], both["Audio"], both["Full"]) == ("bert", "logmel", "logmel+bert")
    one = features("msmser-table2", "logmel")
    assert (one["Text"], one["Audio"], one["Full"]) == ("mpnet", "logmel", "logmel+mpnet")
    usc = features("usc-table3", "hubert+mpnet")  # of whose own features this store has none
    assert (
        len(usc) == 17
        and usc["Text + Audio, MFCC"] == "hubert+mpnet"
        and "Audio, augmented" not in usc
    )
    with pytest.raises(WrongUse, match="cell 'Audio': --fusion audio:frame takes audio frames"):
        plan_sweep(
            on_features(read_recipe("msmser-table2", store=store, out=tmp_path), "is13+bert")
        )
    where = (
        "--store",
        store,
        "--out",
        tmp_path,
        "--dry-run",
        "--json",
        "--workers",
        1,
        "--epochs",
        1,
    )
    done = ser("sweep", "perspective-table1", "--features", "hubert+mpnet", "--seeds", 1, *where)
    assert (
        done.exit_code == 0
        and json.loads(done.stdout)["runs"] == 2
        and "on hubert+mpnet" in done.stderr
    )


def test_what_is_missing_is_made_by_one_command(store: Path, tmp_path: Path) -> None:
    views = ",".join(
        f"logmel:sampling_rate=22050,view={kind}-1"
        for kind in ("noise", "pitch", "stretch", "shift")
    )
    names = f"bert-cased,logmel:sampling_rate=22050,{views},mfcc:sampling_rate=22050,bert,is13"
    with pytest.raises(
        MissingRows, match=rf"cell 'Text'.*`ser features CORPUS --features {names} --store {store}`"
    ):
        plan_sweep(read_recipe("usc-table3", store=store, out=tmp_path))


def test_a_sweep_for_other_machines_asks_nothing_of_this_one(store: Path, tmp_path: Path) -> None:
    """No device, no estimate, no worker of ours; and no scheduler where everything is finished."""
    file = tmp_path / "mine.toml"
    file.write_text(
        '[[cell]]\nname = "a"\nfeatures = "is13"\nfusion = "audio"\nseeds = 2\nset = { d_model = 16 }\n'
    )
    asked = partial(
        ser,
        "sweep",
        file,
        "--store",
        store,
        "--out",
        tmp_path / "runs",
        "--folds",
        1,
        "--epochs",
        1,
    )
    far = ("--scheduler", "tcp://127.0.0.1:1", "--device", "cuda:7")
    ahead = asked(*far, "--dry-run")
    assert ahead.exit_code == 0 and "about" not in ahead.output
    assert "2 runs to train at tcp://127.0.0.1:1" in ahead.output
    told = json.loads(asked(*far, "--dry-run", "--json").stdout)
    assert told == {"runs": 2, "finished": 0, "workers": None, "seconds": None, "bytes": 0}
    assert "finds no such device here" in asked("--device", "cuda:7", "--dry-run").output
    refused = asked(*far, "--workers", "2")
    assert refused.exit_code == 2 and "--scheduler uses the workers of a cluster" in refused.output
    wrong = asked("--scheduler", "local:0", "--dry-run")
    assert wrong.exit_code == 2 and "write local:N" in wrong.output
    assert asked("--workers", "1", "--device", "cpu").exit_code == 0
    done = asked(*far)
    assert done.exit_code == 0 and "2 finished already" in done.output and "a" in done.stdout


def test_several_gpus_are_used(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    planned = [
        plan_sweep(tiny("perspective-table1", store, tmp_path, device=name))
        for name in ("auto", "cuda:1")
    ]
    assert [sweep.workers(16) for sweep in planned] == [4, GPU_WORKERS] and planned[0].workers(
        3
    ) == 3
    assert [sweep.gpus for sweep in planned] == [4, 1]


@pytest.mark.slow
def test_the_array_trains_every_run_once(store: Path, tmp_path: Path) -> None:
    """The sbatch script of docs/scaling.md does what Slurm would have it do, with its variables and
    without Slurm.
    """
    page = Path(__file__).parent.parent / "docs" / "scaling.md"
    found = re.search(
        r"`sweep\.sbatch`:\n```text\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
    )
    script = tmp_path / "sweep.sbatch"
    script.write_text(found[1])
    assert found[1].startswith("#!/bin/bash\n#SBATCH --array=1-16\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = [
        "perspective-table1",
        "--store",
        str(store),
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--set",
        "d_model=16",
    ]
    trained = []
    for number in (1, 2):
        slurm = {
            "SLURM_ARRAY_TASK_ID": str(number),
            "SLURM_ARRAY_TASK_COUNT": "2",
            "SLURM_SUBMIT_DIR": str(tmp_path),
        }
        subprocess.run(
            ["bash", str(script), *options],
            env={**os.environ, **slurm, "PATH": path},
            check=True,
            cwd="/",
        )
        trained.append({file.parent.name for file in (tmp_path / "runs").glob("*/result.json")})
    assert len(trained[0]) == 2 and trained[0] < trained[1] and len(trained[1]) == 4


# Searches: every candidate of every fold trained, the best on dev counted, no other's test score
# shown ----------------


def written(folder: Path, store: Path, text: str = TWO, more: str = "", **several: str) -> Recipe:
    file = folder / "search.toml"
    file.write_text(more + text.format(**{**GRID, **several}))
    return read_recipe(file, store=store, out=folder / "runs", device="cpu")


def test_each_fold_counts_with_its_best_candidate(store: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, store)
    sweep = plan_sweep(recipe)
    assert len(sweep.tasks) == 2 * 6 * 2 and estimate_sweep(sweep, 1)[0] > 0
    shards = [task.name for i in (1, 2) for task in plan_sweep(recipe, f"{i}/2").tasks]
    assert sorted(shards) == sorted(task.name for task in sweep.tasks)
    running = run_sweep(plan_sweep(recipe, "1/2"))
    next(running)
    running.close()  # killed
    told = recipe_table(recipe, sweep.runs)
    assert any(run.finished for runs in sweep.runs.values() for run in runs)
    assert "no fold has all 6 candidates finished" in told and told.count("0 of 2") == 2
    for shard in ("2/2", "1/2"):
        assert {fault is None for _, fault in run_sweep(plan_sweep(recipe, shard))} == {True, False}
    expected, best = set[str](), list[int]()
    for row in recipe_rows(recipe, sweep.runs):
        chosen = {}
        for number, fold in enumerate(
            ("session 1", "session 2")
        ):  # with the best UA on dev, by the histories alone
            tried = [run for run in sweep.runs[row.cell][number::2] if run.finished]
            dev = [max(line.ua for line in run.result.history) for run in tried]
            assert {run.result.fold for run in tried} == {fold}
            best.append(int(np.argmax(dev)))
            chosen[fold] = tried[best[-1]].name, 100 * max(dev)
        expected |= {run for run, _ in chosen.values()}
        assert {line["fold"]: (line["run"], line["dev UA %"]) for line in row.chosen} == chosen
        assert [Path(folder).name for folder in row.folders] == [run for run, _ in chosen.values()]
        assert all(line["tried"] == 6 and line["lr"] in (0.003, 0.03) for line in row.chosen)
        assert row.scores["ua"] == CellScores([Run(Path(folder)) for folder in row.folders]).score(
            "ua"
        )
        assert row.done == row.runs == 2
    assert any(best), "or the first of equals would do"
    shorter = [
        SearchRecord(one.file, one.over, one.candidates[:2])
        for one in find_search_records(tmp_path / "runs")
    ]
    cells, _ = group_runs(
        find_runs(tmp_path / "runs"), [*shorter, *find_search_records(tmp_path / "runs")]
    )
    assert [len(cell.search.candidates) for cell in cells if cell.search] == [6, 6], (
        "the longer list tried them all"
    )
    assert {run.name for cell in cells for run in cell.runs} == expected
    later = [
        SearchRecord(one.file, [*one.over, "focal_gamma"], one.candidates)
        for one in find_search_records(tmp_path / "runs")
    ]
    searched, _ = group_runs(
        find_runs(tmp_path / "runs"), later
    )  # which is in no config where it is at its default
    assert all(
        cell.settings["focal_gamma"] == cell.settings["lr"] == "searched" for cell in searched
    )
    shown = report_text(cells, [])
    page = [str(table.rows) for table in make_page(cells, []).tables]
    for run in find_runs(tmp_path / "runs"):
        assert (
            (run.name in shown) == any(run.name in rows for rows in page) == (run.name in expected)
        )
    kept = find_search_records(tmp_path / "runs")[0]
    file = tmp_path / "runs" / kept.name
    for text in (
        b"[]",
        msgspec.json.encode(msgspec.structs.replace(kept, candidates=kept.candidates[1:])),
    ):
        file.write_bytes(text)
        with pytest.raises(CorruptStore, match="is not the record of a search"):
            find_search_records(tmp_path / "runs")
    file.rename(tmp_path / "victim")
    file.symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="no record is written through one"):
        kept.write(tmp_path / "runs")


def test_candidates_are_a_grid_or_the_same_draws_each_time(store: Path, tmp_path: Path) -> None:
    grid = tuple(
        (f"lr={lr}", f"dropout={dropout}") for lr in (0.0001, 0.01) for dropout in (0, 0.3)
    )
    assert written(tmp_path, store, lr="[1e-4, 0.01]").cells[0].candidates == grid

    def draws(seed: int) -> tuple[tuple[str, ...], ...]:
        asked = {
            "lr": "{ from = 1e-5, to = 1e-1, log = true }",
            "dropout": "{ from = 0.1, to = 0.3 }",
        }
        one, other = written(
            tmp_path, store, more=f"[search]\ndraws = 200\nseed = {seed}\n", **asked
        ).cells
        assert one.candidates == other.candidates and len(set(one.candidates)) == 200
        return one.candidates

    assert draws(0) == draws(0) != draws(1)
    lr, dropout = (np.array([float(one[i].partition("=")[2]) for one in draws(0)]) for i in (0, 1))
    assert lr.min() >= 1e-5 and lr.max() <= 0.1 and 0.4 < np.mean(lr < 1e-3) < 0.6, (
        "even in the logarithm"
    )
    assert dropout.min() >= 0.1 and dropout.max() <= 0.3 and 0.4 < np.mean(dropout < 0.2) < 0.6


@pytest.mark.parametrize(
    ("more", "several", "says"),
    [
        ("", {"lr": "{ from = 1, to = 2 }"}, r"search\.toml: lr is a range: write `draws = 20`"),
        (
            "[search]\ndraws = 2\n",
            {"lr": "{ from = 0, to = 1, log = true }"},
            "with log from above 0",
        ),
        (
            "[search]\ndraws = 2\n",
            {"lr": "{ from = 1, to = inf }"},
            "from a number to a larger one",
        ),
        (
            "[search]\ndraws = 2\n",
            {"lr": f"{{ from = 1, to = {10**400} }}"},
            "from a number to a larger one",
        ),
        (
            "[search]\ndraws = 7\n",
            {"lr": "[1, 2, 3]"},
            r"search\.toml: \[search\] draws 7 candidates, and there are",
        ),
        (
            "[search]\nat_most = 5\n",
            {},
            r"search\.toml: the search has 6 runs; if they are meant, write `at_most = 6`",
        ),
        ("[search]\nat_most = 23\n", {}, r"search\.toml: the search has 24 runs"),
        ("[search]\nN = 3\n", {}, "unknown field `N`"),
        ("", {"lr": "[0.1, 1e-1]"}, "two candidates are one run"),
        (
            "",
            {"text": TWO + "select = 'last'"},
            "cell 'all speech': a search chooses .*, which needs --select val",
        ),
        (
            "",
            {"text": TWO + "set = {{ lr = 1 }}"},
            "try as many candidates each, .*: 'plain' 6, 'all speech' 2",
        ),
        ("", {"lr": "1, dev = ['0.1', 'next']"}, "not scored alike on dev"),
    ],
)
def test_searches_that_are_refused(
    store: Path, tmp_path: Path, more: str, several: dict[str, str], says: str
) -> None:
    with pytest.raises(WrongUse, match=says):
        plan_sweep(written(tmp_path, store, more=more, **several))
