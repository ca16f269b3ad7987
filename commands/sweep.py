"""`ser sweep`: a paper's table, or one's own set of cells, each run trained once."""

import json
from typing import Any

import click
from click.core import ParameterSource

from .progress import progress
from .train import duration, training_options


@click.command()
@click.argument("recipe", required=False)
@click.option("--list", "list_", is_flag=True, help="List the recipes with the papers' numbers.")
@training_options
@click.option("--resume", is_flag=True, help="As a sweep does anyhow: go on with unfinished runs.")
@click.option("--shard", metavar="I/N", help="Run every N-th run from the I-th, such as 3/16: for a Slurm array.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Processes of one thread here; one per core by default, two on a GPU.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Run on dask: tcp://127.0.0.1:8786, a scheduler file, or local:4.")
@click.option("--insecure", is_flag=True, help="Allow a plain --scheduler on another machine.")
@click.pass_context
def sweep(
    ctx: click.Context,
    recipe: str | None,
    list_: bool,
    shard: str | None,
    workers: int | None,
    scheduler: str | None,
    insecure: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train every cell of RECIPE, a paper's table or a TOML file of one's own, and print it beside the paper's numbers.

    A run that is finished is never trained again, in whatever recipe it stands; after a kill the same command goes on.

    \b
    Examples:
      ser sweep --list
      ser sweep perspective-table2 --seeds 20
      ser sweep mine.toml --shard 3/16
    """
    if list_:
        _list(as_json)
        return
    if recipe is None:
        raise click.UsageError("name a recipe, or a TOML file; --list shows the recipes")
    if workers and scheduler:
        raise click.UsageError(
            "--workers starts processes here, and --scheduler uses the workers of a cluster: give one"
        )
    from ser import engines
    from ser.engines.cluster import check_scheduler
    from ser.engines.processes import started_early

    most = workers or engines.cores()
    if most > 1 and scheduler is None and not dry_run:
        ctx.with_resource(started_early("ser.train.sweep", most))  # they import torch while this process does
    if scheduler is not None:
        check_scheduler(scheduler, insecure)
    from ser.train.recipe import read_recipe
    from ser.train.sweep import estimate_sweep, plan_sweep, run_sweep

    # What is not said here is for the recipe to say: a default of ours must not override its store.
    given = {k: v for k, v in options.items() if ctx.get_parameter_source(k) is not ParameterSource.DEFAULT}
    given["set"] = given.pop("set_", ())
    given.pop("resume", None)  # a sweep always goes on
    planned = plan_sweep(read_recipe(recipe, **given), shard, elsewhere=scheduler is not None)
    tasks = planned.open_tasks
    there = len(planned.tasks) - len(tasks)
    click.echo(f"{planned.recipe.title}: {len(planned.tasks)} runs, {there} finished already", err=True)
    if scheduler is None:
        workers = workers or planned.workers(most)
        seconds, cells = estimate_sweep(planned, workers)
        told = f"{len(tasks)} runs to train with {workers} workers, about {duration(seconds)}"
    else:  # how fast others are cannot be measured here
        seconds, cells, told = None, {}, f"{len(tasks)} runs to train at {scheduler}"
    if tasks:
        click.echo(told, err=not dry_run or as_json)
    if dry_run:
        if as_json:
            click.echo(json.dumps({"runs": len(tasks), "finished": there, "workers": workers, "seconds": seconds}))
        for cell, ahead in cells.items() if not as_json else ():
            click.echo(f"  {cell}: {ahead.parameters:,} parameters, about {duration(ahead.seconds_per_run)} a run")
        return
    faults = []
    with progress(len(tasks), planned.recipe.name, "run") as bar:
        for outcome in run_sweep(planned, workers or 1, scheduler, insecure=insecure):
            bar.update()
            if outcome.fault:
                faults.append(outcome)
                bar.write(f"{outcome.task.cell}: {outcome.fault}", file=bar.fp)
    _print(planned, as_json)
    ctx.exit(1 if faults else 0)


def _print(planned: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from ser.train.report.terminal import recipe_rows, recipe_table

    if as_json:
        rows = [asdict(row) for row in recipe_rows(planned.recipe, planned.runs)]
        click.echo(json.dumps({"recipe": planned.recipe.name, "rows": rows}))
    else:
        click.echo(recipe_table(planned.recipe, planned.runs))


def _list(as_json: bool) -> None:
    from ser.train.recipe import list_recipes

    recipes = list_recipes()
    if as_json:
        click.echo(json.dumps(recipes))
        return
    for name, facts in recipes.items():
        click.echo(f"{name}: {facts['title']} ({facts['cells']} cells)")
        for cell, paper in facts["paper"].items():
            numbers = ", ".join(f"{metric} {value}" for metric, value in paper.items())
            click.echo(f"    {cell}{': ' if numbers else ''}{numbers}")
