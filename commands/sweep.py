"""`ser sweep`: a paper's table, or one's own set of cells, each run trained once."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from ser.extract.config import ExtractionConfig
from ser.options import options_of
from ser.train.options import Experiment

from .cache import pulled
from .options import COUNT, config_options, json_option
from .output import answer, duration, next_step, parameters_text, plural, progress, safe, say
from .unknown_options import CommandWithSettings

if TYPE_CHECKING:
    from ser.train.estimate import Estimate
    from ser.train.sweep.recipe import Recipe
    from ser.train.sweep.tasks import Sweep

# Those of every cell; the recipe has the rest.
OPTIONS = [name for name in options_of(Experiment) if name not in ("features", "fusion")]


@click.command(cls=CommandWithSettings)
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
# Their defaults are the recipe's.
@config_options(Experiment, *OPTIONS, defaults=False)
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
@config_options(ExtractionConfig, "scheduler", "insecure", "timeout")
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
      ser sweep layers --features whisper:layers=all,pool=mean --protocol speaker-out
      ser sweep mine.toml --shard 3/16
    """
    if list_:
        _print_recipes(as_json)
        return
    if recipe is None:
        raise click.UsageError("name a recipe, or a TOML file; --list shows the recipes")

    from ser import engines
    from ser.engines.fork_server import start_fork_server
    from ser.engines.scheduler import check_scheduler

    workers = options["workers"]
    scheduler = options["scheduler"]
    at_once = workers or engines.cores()
    if scheduler is not None:
        check_scheduler(scheduler, options["insecure"], workers)
    elif at_once > 1 and not dry_run:
        # It imports torch while this process does.
        start_fork_server("ser.train.sweep.run")

    from ser.train.sweep.run import run_sweep
    from ser.train.sweep.tasks import plan_sweep

    planned = plan_sweep(
        _read_recipe(recipe, options), options["shard"], elsewhere=scheduler is not None
    )
    runs = plural(len(planned.tasks), "run")
    finished = len(planned.tasks) - len(planned.open_tasks)
    say(f"{planned.recipe.title}: {runs}, {finished} finished already", err=True)

    # The speed of a cluster's machines cannot be measured here.
    seconds = None
    estimates: dict[str, Estimate] = {}
    how = f"at {scheduler}"
    if scheduler is None:
        from ser.train.sweep.estimate import estimate_sweep

        workers = workers or planned.workers(at_once)
        seconds, estimates = estimate_sweep(planned, workers)
        how = _estimate_in_words(planned, workers, seconds, estimates)
    if planned.open_tasks:
        open_runs = plural(len(planned.open_tasks), "run")
        say(f"{open_runs} to train {how}", err=not dry_run or as_json)

    if dry_run and as_json:
        answer(
            {
                "runs": len(planned.open_tasks),
                "finished": finished,
                "workers": workers,
                "seconds": seconds,
                "bytes": _bytes_of_weights(planned, estimates),
            }
        )
        return
    if dry_run:
        _print_estimates(estimates)
        return

    faults = 0
    with progress(len(planned.open_tasks), planned.recipe.name, "run") as bar:
        for task, fault in run_sweep(
            planned, workers or 1, scheduler, options["insecure"], options["timeout"]
        ):
            bar.update()
            if fault:
                faults += 1
                bar.write(safe(f"{task.cell}: {fault}"), file=bar.fp)

    _print_results(planned, as_json)
    ctx.exit(1 if faults else 0)


def _print_recipes(as_json: bool) -> None:
    """The recipes that come with ser, their cells and the papers' numbers."""
    from ser.train.sweep.recipe import list_recipes, own_recipe_names, read_recipe

    recipes = list_recipes()
    if as_json:
        answer(recipes)
        return

    for name, recipe in recipes.items():
        answer(f"{name}: {recipe['title']} ({plural(recipe['cells'], 'cell')})")
        for cell, paper in recipe["paper"].items():
            scores = ", ".join(f"{metric} {value}" for metric, value in paper.items())
            answer(f"    {cell}: {scores}" if scores else f"    {cell}")
    for name in own_recipe_names():
        answer(f"{name}: {read_recipe(name).title}")


def _read_recipe(name: str, options: Mapping[str, Any]) -> "Recipe":
    """The recipe with what the command line says, its stores at URLs pulled onto this machine."""
    from ser.train.sweep.each_layer import with_each_layer
    from ser.train.sweep.other_features import on_features
    from ser.train.sweep.recipe import read_recipe

    chosen = {}
    for option in OPTIONS:
        value = options[option]
        # Not given, see `config_options`.
        if value not in (None, (), False):
            chosen[option] = value
    recipe = read_recipe(name, options["named"], **chosen)

    features = options["features"]
    experiments = [cell.experiment for cell in recipe.cells]
    if features and any("://" in str(experiment.store) for experiment in experiments):
        raise click.UsageError(
            "--features takes a store on this machine; bring it there by `ser cache pull`"
        )

    cells = []
    for cell, experiment in zip(recipe.cells, pulled(experiments), strict=True):
        cells.append(replace(cell, experiment=experiment))
    recipe = replace(recipe, cells=tuple(cells))
    if features:
        recipe = on_features(recipe, features)
    return with_each_layer(recipe)


def _estimate_in_words(
    planned: "Sweep", workers: int, seconds: float, estimates: Mapping[str, "Estimate"]
) -> str:
    most = "at most " if any(cell.at_most for cell in estimates.values()) else ""
    words = f"with {plural(workers, 'worker')}, {most}about {duration(seconds)}"
    if planned.precisions:
        words += f", in {' and '.join(planned.precisions)} on the GPU"
    return words


def _bytes_of_weights(planned: "Sweep", estimates: Mapping[str, "Estimate"]) -> int:
    """What the models of the open tasks take on disk: four bytes a parameter that trains."""
    trained = 0
    for task in planned.open_tasks:
        if task.cell in estimates:
            trained += estimates[task.cell].trained
    return 4 * trained


def _print_estimates(estimates: Mapping[str, "Estimate"]) -> None:
    for name, cell in estimates.items():
        line = f"  {name}: {parameters_text(cell.parameters, cell.trained)}, "
        line += f"about {duration(cell.seconds / cell.runs)} a run"
        if not cell.timed:
            line += " (not timed: from another cell's time by rows × parameters)"
        answer(line)


def _print_results(planned: "Sweep", as_json: bool) -> None:
    """The recipe's table."""
    from ser.train.report.recipe_table import recipe_rows, recipe_table

    if as_json:
        rows = [asdict(row) for row in recipe_rows(planned.recipe, planned.runs)]
        answer({"recipe": planned.recipe.name, "rows": rows})
        return

    answer(recipe_table(planned.recipe, planned.runs))
    if any(task.run.finished for task in planned.tasks):
        paired = ["--paired"] if _cells_to_compare(planned) > 1 else []
        out = planned.tasks[0].experiment.out
        next_step("report", out, "--html", "report.html", *paired)


def _cells_to_compare(planned: "Sweep") -> int:
    """How many cells have finished runs of classes, which paired tests compare.

    Cells that are the same runs count once.
    """
    first_runs = set()
    for runs in planned.runs.values():
        finished = [run for run in runs if run.finished and run.result.classes]
        if finished:
            first_runs.add(finished[0].name)
    return len(first_runs)
