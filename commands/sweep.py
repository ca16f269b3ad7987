"""`ser sweep`: a paper's table, or one's own set of cells, each run trained once."""

from dataclasses import asdict, replace
from typing import Any

import click

from ser.extract.config import ExtractionConfig
from ser.options import options_of
from ser.train.options import Experiment

from .cache import pulled
from .options import COUNT, config_options, json_option
from .output import answer, duration, next_step, plural, progress, safe, say

# Those of every cell; the recipe has the rest.
OPTIONS = [name for name in options_of(Experiment) if name not in ("features", "fusion")]


@click.command()
@click.argument("recipe", required=False)
@click.option("--list", "list_", is_flag=True, help="List the recipes with the papers' numbers.")
@click.option(
    "--features",
    metavar="A+B",
    help="Others, each in the place of the recipe's of the same modality.",
)
@click.option(
    "--cell",
    "named",
    multiple=True,
    metavar="NAME",
    help="Only this cell, as --list names it. Repeatable.",
)
@config_options(Experiment, *OPTIONS, defaults=False)  # they are the recipe's
@click.option("--dry-run", is_flag=True, help="Print parameters, runs and an estimate, and stop.")
@json_option
@click.option("--resume", is_flag=True, help="As a sweep does anyhow: go on with unfinished runs.")
@click.option(
    "--shard",
    metavar="I/N",
    help="Run every N-th run from the I-th, such as 3/16: for a Slurm array.",
)
@click.option(
    "--workers",
    type=COUNT,
    metavar="N",
    help="Processes: one per core; five on a GPU, one each on several.",
)
@config_options(ExtractionConfig, "scheduler", "insecure")
@click.pass_context
def sweep(
    ctx: click.Context,
    recipe: str | None,
    list_: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train every cell of RECIPE, a paper's table or a TOML file of one's own, and print it beside
    the paper's numbers.

    A run that is finished is never trained again, in whatever recipe it stands; after a kill the
    same command goes on.

    \b
    Examples:
      ser sweep --list
      ser sweep perspective-table2 --seeds 20 --cell "LGF ADD-Fusion, perspective"
      ser sweep msmser-table2 --features wavlm+mpnet:layer=9
      ser sweep mine.toml --shard 3/16
    """
    if list_:
        from ser.train.sweep.recipe import list_recipes

        recipes = list_recipes()
        if as_json:
            answer(recipes)
            return
        for name, facts in recipes.items():
            answer(f"{name}: {facts['title']} ({plural(facts['cells'], 'cell')})")
            for cell, paper in facts["paper"].items():
                scores = ", ".join(f"{metric} {value}" for metric, value in paper.items())
                answer(f"    {cell}: {scores}".rstrip(": "))
        return
    if recipe is None:
        raise click.UsageError("name a recipe, or a TOML file; --list shows the recipes")
    features, workers, scheduler = (options[name] for name in ("features", "workers", "scheduler"))
    from ser import engines
    from ser.engines.fork_server import start_fork_server
    from ser.engines.scheduler import check_scheduler

    at_once = workers or engines.cores()
    if scheduler is not None:
        check_scheduler(scheduler, options["insecure"], workers)
    elif at_once > 1 and not dry_run:
        start_fork_server("ser.train.sweep.run")  # it imports torch while this process does
    from ser.train.sweep.estimate import estimate_sweep
    from ser.train.sweep.other_features import on_features
    from ser.train.sweep.recipe import read_recipe
    from ser.train.sweep.run import run_sweep
    from ser.train.sweep.tasks import plan_sweep

    chosen = {name: options[name] for name in OPTIONS if options[name] not in (None, (), False)}
    table = read_recipe(recipe, options["named"], **chosen)
    experiments = [cell.experiment for cell in table.cells]
    if features and any("://" in str(one.store) for one in experiments):
        raise click.UsageError(
            "--features takes a store on this machine; bring it there by `ser cache pull`"
        )
    local = zip(table.cells, pulled(experiments), strict=True)
    table = replace(table, cells=tuple(replace(cell, experiment=one) for cell, one in local))
    table = on_features(table, features) if features else table
    planned = plan_sweep(table, options["shard"], elsewhere=scheduler is not None)
    tasks = planned.open_tasks
    finished = len(planned.tasks) - len(tasks)
    say(
        f"{planned.recipe.title}: {plural(len(planned.tasks), 'run')}, {finished} finished already",
        err=True,
    )
    if scheduler is None:
        workers = workers or planned.workers(at_once)
        seconds, cells = estimate_sweep(planned, workers)
        most = "at most " if any(cell.at_most for cell in cells.values()) else ""
        how = f"with {plural(workers, 'worker')}, {most}about {duration(seconds)}"
        if planned.precisions:
            how += f", in {' and '.join(planned.precisions)} on the GPU"
    else:  # the speed of other machines cannot be measured here
        seconds, cells, how = None, {}, f"at {scheduler}"
    if tasks:
        say(f"{plural(len(tasks), 'run')} to train {how}", err=not dry_run or as_json)
    if dry_run and as_json:
        size = 4 * sum(cells[task.cell].parameters for task in tasks if task.cell in cells)
        answer(
            {
                "runs": len(tasks),
                "finished": finished,
                "workers": workers,
                "seconds": seconds,
                "bytes": size,
            }
        )
    elif dry_run:
        for name, cell in cells.items():
            timed = (
                "" if cell.timed else " (not timed: from another cell's time by rows × parameters)"
            )
            each = duration(cell.seconds / cell.runs)
            answer(f"  {name}: {cell.parameters:,} parameters, about {each} a run{timed}")
    if dry_run:
        return
    faults = 0
    with progress(len(tasks), planned.recipe.name, "run") as bar:
        for task, fault in run_sweep(
            planned, workers or 1, scheduler, insecure=options["insecure"]
        ):
            bar.update()
            if fault:
                faults += 1
                bar.write(safe(f"{task.cell}: {fault}"), file=bar.fp)
    from ser.train.report.recipe_table import recipe_rows, recipe_table

    if as_json:
        rows = [asdict(row) for row in recipe_rows(planned.recipe, planned.runs)]
        answer({"recipe": planned.recipe.name, "rows": rows})
    else:
        answer(recipe_table(planned.recipe, planned.runs))
        if planned.tasks:
            next_step(
                "report", planned.tasks[0].experiment.out, "--html", "report.html", "--paired"
            )
    ctx.exit(1 if faults else 0)
