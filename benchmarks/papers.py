"""`make papers`: every table of the papers, extracted, trained under every selection, and written
beside theirs.

    python -m benchmarks.papers /data/IEMOCAP_full_release --only msmser,perspective-table1

Each step is a `ser` command, which the page names: what the store has is not computed again, a run
that is finished is not trained again, so the same command goes on after a kill. What else is given
goes to every sweep, such as `--device cuda --workers 2`; settings that differ from the paper's are
named beside the numbers.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ser.commands.output import duration
from ser.disk.write import make_folder
from ser.errors import SerError, unknown
from ser.train.options import SELECTIONS
from ser.train.report.cell_scores import CellScores
from ser.train.report.conditions import caveat, conditions
from ser.train.report.formats import (
    COUNT,
    PERCENT_WITH_DEVIATION,
    PERCENT_WITH_INTERVAL,
    TEXT,
)
from ser.train.report.markdown import to_markdown
from ser.train.report.table import Column, Row, Table, columns_of
from ser.train.run_folder import Run
from ser.train.scores.classes import METRICS
from ser.train.sweep.other_features import features_to_extract
from ser.train.sweep.recipe import Recipe, RecipeCell, read_recipe, recipe_names

PAGE = Path(__file__).parent.parent / "docs" / "reproduction.md"
HEAD = """# The papers' tables, reproduced

Written by `make papers IEMOCAP=/path/to/it`, which extracts what the recipes name, runs each of
them with the epoch chosen in every way (`last`, `val`, `best-test`), and goes on where it was
stopped. Ours: pooled over the folds of a seed, then the mean over the seeds, with a 95 % interval.
What has not been run is "not measured".
"""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("corpus", required=False)
@click.argument("sweep_options", nargs=-1, type=click.UNPROCESSED)
@click.option("--store", default="features", show_default=True)
@click.option("--out", default="runs/papers", show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--page", default=PAGE, type=click.Path(path_type=Path), help="By default docs/reproduction.md."
)
@click.option("--only", default="", help="Recipes, or how their names begin, with commas.")
@click.option(
    "--select",
    "selections",
    multiple=True,
    default=tuple(SELECTIONS),
    type=click.Choice(list(SELECTIONS)),
)
@click.option("--model", multiple=True, metavar="NAME=ID_OR_PATH", help="As for `ser features`.")
@click.option("--dry-run", is_flag=True, help="Print what it will take, and stop.")
def main(
    corpus: str | None,
    sweep_options: tuple[str, ...],
    store: str,
    out: Path,
    page: Path,
    only: str,
    selections: tuple[str, ...],
    model: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Extract what the papers' recipes name from CORPUS, run them, write the page; without CORPUS,
    the page alone.
    """
    try:
        recipes = choose(only)
        if corpus is not None:
            reproduce(recipes, corpus, store, out, selections, model, sweep_options, dry_run)
        if not dry_run:
            write_page(out, page)
            print(f"wrote {page}")
    except SerError as fault:
        sys.exit(f"papers: {fault}")


def choose(only: str) -> list[Recipe]:
    """The recipes whose names begin in one of these ways, or all. Raises `WrongUse` for one that
    none does.
    """
    beginnings = [piece.strip() for piece in only.split(",") if piece.strip()] or [""]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in recipe_names()):
            raise unknown("recipe in ONLY", beginning, recipe_names())
    return [read_recipe(name) for name in recipe_names() if name.startswith(tuple(beginnings))]


def features_of(recipes: Sequence[Recipe]) -> list[str]:
    """What the cells train on, as `ser features` asks for it."""
    features: dict[str, None] = {}
    for recipe in recipes:
        features.update(dict.fromkeys(features_to_extract(recipe)))
    return list(features)


@dataclass(frozen=True)
class Sweep:
    """One recipe under one selection, as a command."""

    recipe: Recipe
    select: str
    command: Sequence[str]


def reproduce(
    recipes: Sequence[Recipe],
    corpus: str,
    store: str,
    out: Path,
    selections: Sequence[str],
    models: Sequence[str],
    options: Sequence[str],
    dry_run: bool,
) -> None:
    """Extract, say what training will take, and train. A recipe that cannot be run is named, and
    the others go on.
    """
    features = ",".join(features_of(recipes))
    extract = ["features", corpus, "--store", store, "--features", features]
    for model in models:
        extract += ["--model", model]
    ser([*extract, "--dry-run"] if dry_run else extract)
    if dry_run and not Path(store).is_dir():
        print("training: estimated when the features are there")
        return

    places = ["--store", store, "--out", str(out)]
    sweeps = []
    for recipe in recipes:
        for select in selections:
            command = ["sweep", recipe.name, "--select", select, *places, *options]
            sweeps.append(Sweep(recipe, select, command))

    announce(sweeps, out)
    if not dry_run:
        for sweep in sweeps:
            train(sweep, extract, out)


def announce(sweeps: Sequence[Sweep], out: Path) -> None:
    """Print what each sweep will take, and all of them."""
    seconds = 0.0
    size = 0.0
    for sweep in sweeps:
        ahead = json.loads(ser([*sweep.command, "--dry-run", "--json"], capture=True) or "{}")
        seconds += ahead.get("seconds") or 0
        size += ahead.get("bytes") or 0

        words = "cannot be run, see above"
        if ahead:
            words = f"{ahead['runs']} runs, about {duration(ahead['seconds'] or 0)}"
        print(f"{sweep.recipe.name}, {sweep.select}: {words}", flush=True)
    print(
        f"training: about {duration(seconds)} in all, and {size / 1e6:.0f} MB of models in {out}",
        flush=True,
    )


def train(sweep: Sweep, extract: Sequence[str], out: Path) -> None:
    """Run a sweep, and keep what it prints and by which commands, for the page."""
    answer = ser([*sweep.command, "--json"], capture=True)
    if not answer:
        return
    kept = {
        "command": shlex.join(["ser", *sweep.command]),
        "features": shlex.join(["ser", *extract]),
        **json.loads(answer),
    }
    make_folder(out / "tables")
    table_file(out, sweep.recipe.name, sweep.select).write_text(json.dumps(kept))


def table_file(out: Path, recipe: str, select: str) -> Path:
    """Where the answer of a sweep is kept."""
    return out / "tables" / f"{recipe}.{select}.json"


def ser(words: Sequence[str], capture: bool = False) -> str:
    """Run one command. Its standard output if asked for, which is empty if it failed; else a
    failure ends all.
    """
    command = [sys.executable, "-m", "ser", *words]
    output = subprocess.PIPE if capture else None
    done = subprocess.run(command, stdout=output, text=True, check=False)
    if done.returncode in (0, 3) or (capture and done.returncode == 1):
        return done.stdout or ""
    if capture:
        return ""
    raise SerError(f"`{shlex.join(['ser', *words])}` failed; what it did is kept")


def write_page(out: Path, page: Path) -> None:
    """The page, from what each sweep printed when it was last run, and "not measured" for all
    others.
    """
    pieces = []
    all_warnings: set[str] = set()
    for name in recipe_names():
        recipe = read_recipe(name)
        kept = read_tables(out, name)
        table, warnings = recipe_table(recipe, kept)
        all_warnings |= warnings
        pieces.append(to_markdown(table).replace("### ", "## ", 1))

        commands: dict[str, None] = {}
        for answer in kept.values():
            commands.update(dict.fromkeys([answer["features"], answer["command"]]))
        if commands:
            pieces += ["```text", *commands, "```", ""]

    head = HEAD
    if all_warnings:
        head += f"\n**{'; '.join(sorted(all_warnings))}.**\n"
    page.write_text("\n".join([head, *pieces]), encoding="utf-8")


def read_tables(out: Path, recipe: str) -> dict[str, Any]:
    """What the sweeps of a recipe printed, by selection, as far as they were run."""
    kept = {}
    for select in SELECTIONS:
        path = table_file(out, recipe, select)
        if path.is_file():
            kept[select] = json.loads(path.read_text())
    return kept


def recipe_table(recipe: Recipe, kept: Mapping[str, Any]) -> tuple[Table, set[str]]:
    """A line for each cell and selection, and one for each quoted system; and what keeps the
    numbers from counting.
    """
    names = metric_names(recipe)
    rows: list[Row] = []
    warnings: set[str] = set()
    for cell in recipe.cells:
        for select in SELECTIONS:
            row: Row = {"cell": cell.name, **papers_numbers(cell.paper or {}, names)}
            row["epoch"] = select
            answered = answered_row(kept.get(select, {}), cell.name)
            runs = [Run(Path(path)) for path in answered.get("folders", [])]
            finished = [run for run in runs if run.finished]
            if finished:
                row |= our_numbers(cell, finished, len(runs), names)
                row["differs in"] = answered["differs"] or None
                row |= run_names(finished)
                unreal = caveat(run.result for run in finished)
                if unreal:
                    warnings.add(unreal)
            else:
                row |= dict.fromkeys(f"{name} %" for name in names.values())
                row["runs"] = "not measured"
            rows.append(row)

    for quoted in recipe.quoted:
        words = "; ".join(filter(None, ["quoted by the paper", quoted.footnote]))
        numbers = papers_numbers(quoted.paper, names)
        rows.append({"cell": quoted.name, **numbers, "protocol": words})

    note = " ".join(filter(None, [recipe.note, *sorted(warnings)]))
    return Table(recipe.name, recipe.title, columns(names), rows, note), warnings


def metric_names(recipe: Recipe) -> dict[str, str]:
    """What the paper gives, and UA and WA, by their headings."""
    papers = [cell.paper or {} for cell in recipe.cells]
    papers += [quoted.paper for quoted in recipe.quoted]
    metrics = [metric for paper in papers for metric in paper if not metric.endswith("_std")]

    names = {}
    for metric in [*metrics, "ua", "wa"]:
        names[metric] = metric.upper() if metric in ("ua", "wa") else f"recall {metric}"
    return names


def columns(names: Mapping[str, str]) -> list[Column]:
    """The columns of a recipe's table, with these names of metrics."""
    return [
        Column("cell", TEXT),
        *columns_of(PERCENT_WITH_DEVIATION, [f"paper {name} %" for name in names.values()]),
        Column("epoch", TEXT),
        *columns_of(PERCENT_WITH_INTERVAL, [f"{name} %" for name in names.values()]),
        *columns_of(TEXT, ["interval", "runs"]),
        Column("n", COUNT),
        *columns_of(TEXT, ["protocol", "differs in", "first run", "all runs"]),
    ]


def papers_numbers(paper: Mapping[str, float], names: Mapping[str, str]) -> Row:
    """A paper's numbers with their deviations, as far as it gives them."""
    row: Row = {}
    for metric, name in names.items():
        row[f"paper {name} %"] = None
        if metric in paper:
            row[f"paper {name} %"] = (paper[metric], paper.get(f"{metric}_std"))
    return row


def answered_row(answer: Mapping[str, Any], cell: str) -> dict[str, Any]:
    """A cell's row in what a sweep printed; empty where it was not run."""
    for row in answer.get("rows", []):
        if row["cell"] == cell:
            return row
    return {}


def our_numbers(
    cell: RecipeCell, finished: Sequence[Run], runs: int, names: Mapping[str, str]
) -> Row:
    """The scores of the finished runs, of so many."""
    scores = CellScores(finished)
    row: Row = {}
    for metric, name in names.items():
        known = metric in METRICS or metric in scores.classes
        row[f"{name} %"] = scores.with_interval(metric, cell.test) if known else None
    row["interval"] = scores.interval_over
    row["runs"] = f"{len(finished)} of {runs}"
    row["n"] = int(scores.confusion(cell.test).sum())
    row["protocol"] = conditions(finished)
    return row


def run_names(finished: Sequence[Run]) -> Row:
    """The name of the first run, and a digest of all names."""
    names = sorted(run.path.name for run in finished)
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()
    return {"first run": names[0], "all runs": digest[:8]}


if __name__ == "__main__":
    main()
