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
from pathlib import Path
from typing import Any

import click

from ser.commands.output import duration
from ser.disk.write import make_folder
from ser.errors import SerError, unknown
from ser.train.options import SELECTIONS
from ser.train.report.cell_scores import CellScores, caveat
from ser.train.report.tables import Row, Table, to_markdown
from ser.train.run_folder import Run
from ser.train.scores.classes import METRICS
from ser.train.sweep.other_features import features_to_extract
from ser.train.sweep.recipe import Recipe, read_recipe, recipe_names

PAGE = Path(__file__).parent.parent / "docs" / "reproduction.md"
HEAD = """# The papers' tables, reproduced

Written by `make papers IEMOCAP=/path/to/it`, which extracts what the recipes name, runs each of them with the epoch
chosen in every way (`last`, `val`, `best-test`), and goes on where it was stopped. Ours: pooled over the folds of a
seed, then the mean over the seeds, with a 95 % interval. What has not been run is "not measured".
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
    return list(dict.fromkeys(name for recipe in recipes for name in features_to_extract(recipe)))


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
    given = [word for model in models for word in ("--model", model)]
    extract = [
        "features",
        corpus,
        "--store",
        store,
        "--features",
        ",".join(features_of(recipes)),
        *given,
    ]
    ser([*extract, *(["--dry-run"] if dry_run else [])])
    sweeps = [
        (
            recipe,
            select,
            [
                "sweep",
                recipe.name,
                "--select",
                select,
                "--store",
                store,
                "--out",
                str(out),
                *options,
            ],
        )
        for recipe in recipes
        for select in selections
    ]
    if dry_run and not Path(store).is_dir():
        print("training: estimated when the features are there")
        return
    seconds = size = 0.0
    for recipe, select, command in sweeps:
        ahead = json.loads(ser([*command, "--dry-run", "--json"], capture=True) or "{}")
        seconds, size = seconds + (ahead.get("seconds") or 0), size + (ahead.get("bytes") or 0)
        about = (
            f"{ahead['runs']} runs, about {duration(ahead['seconds'] or 0)}"
            if ahead
            else "cannot be run, see above"
        )
        print(f"{recipe.name}, {select}: {about}", flush=True)
    print(
        f"training: about {duration(seconds)} in all, and {size / 1e6:.0f} MB of models in {out}",
        flush=True,
    )
    for recipe, select, command in [] if dry_run else sweeps:
        if answer := ser([*command, "--json"], capture=True):
            kept = {
                "command": shlex.join(["ser", *command]),
                "features": shlex.join(["ser", *extract]),
            }
            make_folder(out / "tables")
            (out / "tables" / f"{recipe.name}.{select}.json").write_text(
                json.dumps({**kept, **json.loads(answer)})
            )


def ser(words: Sequence[str], capture: bool = False) -> str:
    """Run one command. Its standard output if asked for, which is empty if it failed; else a
    failure ends all.
    """
    command = [sys.executable, "-m", "ser", *words]
    done = subprocess.run(
        command, stdout=subprocess.PIPE if capture else None, text=True, check=False
    )
    if done.returncode in (0, 3) or (capture and done.returncode == 1):
        return done.stdout or ""
    if capture:
        return ""
    raise SerError(f"`{shlex.join(['ser', *words])}` failed; what it did is kept")


def write_page(out: Path, page: Path) -> None:
    """The page, from what each sweep printed when it was last run, and "not measured" for all
    others.
    """
    text, marked = [HEAD], set()
    for name in recipe_names():
        recipe = read_recipe(name)
        kept = {
            select: json.loads(path.read_text())
            for select in SELECTIONS
            if (path := out / "tables" / f"{name}.{select}.json").is_file()
        }
        rows, warnings = table_rows(recipe, kept)
        marked |= warnings
        note = " ".join(filter(None, [recipe.note, *sorted(warnings)]))
        text.append(to_markdown(Table(name, recipe.title, rows, note)).replace("### ", "## ", 1))
        commands = dict.fromkeys(
            table[key] for table in kept.values() for key in ("features", "command")
        )
        text += ["```text", *commands, "```", ""] if commands else []
    if marked:
        text[0] += f"\n**{'; '.join(sorted(marked))}.**\n"
    page.write_text("\n".join(text), encoding="utf-8")


def table_rows(recipe: Recipe, kept: dict[str, Any]) -> tuple[list[Row], set[str]]:
    """A line for each cell and selection, and one for each quoted system; and what keeps the
    numbers from counting.
    """
    rows: list[Row] = []
    warnings: set[str] = set()
    quoted = [
        *(cell.paper or {} for cell in recipe.cells),
        *(other.paper for other in recipe.quoted),
    ]
    metrics = list(
        dict.fromkeys(
            [*(m for paper in quoted for m in paper if not m.endswith("_std")), "ua", "wa"]
        )
    )
    names = {
        metric: metric.upper() if metric in ("ua", "wa") else f"recall {metric}"
        for metric in metrics
    }

    def theirs(paper: Mapping[str, float]) -> Row:
        known = {
            metric: (paper[metric], paper.get(f"{metric}_std"))
            for metric in metrics
            if metric in paper
        }
        return {f"paper {name} %": known.get(metric) for metric, name in names.items()}

    for cell in recipe.cells:
        for select in SELECTIONS:
            row: Row = {"cell": cell.name, **theirs(cell.paper or {}), "epoch": select}
            found: dict[str, Any] = next(
                (one for one in kept.get(select, {}).get("rows", []) if one["cell"] == cell.name),
                {},
            )
            folders = [Run(Path(path)) for path in found.get("folders", [])]
            if not (finished := [run for run in folders if run.finished]):
                rows.append(
                    {
                        **row,
                        **{f"{name} %": None for name in names.values()},
                        "runs": "not measured",
                    }
                )
                continue
            ours = CellScores(finished)
            warnings |= {*filter(None, [caveat(ours.results)])}
            known = {*METRICS, *ours.classes}
            done = sorted(run.path.name for run in ours.runs)
            row |= {
                f"{name} %": ours.with_interval(metric, cell.test) if metric in known else None
                for metric, name in names.items()
            }
            row |= {"interval": ours.interval_over, "runs": f"{len(done)} of {len(folders)}"}
            row |= {"n": int(ours.confusion(cell.test).sum()), "protocol": ours.conditions}
            row |= {"differs in": found["differs"] or None, "first run": done[0]}
            rows.append(
                {**row, "all runs": hashlib.sha256(" ".join(done).encode()).hexdigest()[:8]}
            )
    for other in recipe.quoted:
        about = "; ".join(filter(None, ["quoted by the paper", other.footnote]))
        rows.append({"cell": other.name, **theirs(other.paper), "protocol": about})
    return rows, warnings


if __name__ == "__main__":
    main()
