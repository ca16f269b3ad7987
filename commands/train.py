"""`ser train`: stage 2, from the store to results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ser.train.options import Experiment

from .cache import pulled
from .options import config_options, json_option
from .output import (
    answer,
    duration,
    next_step,
    parameters_text,
    plural,
    progress,
    safe,
    say,
    size_text,
)
from .unknown_options import CommandWithSettings

if TYPE_CHECKING:
    from ser.train.estimate import Estimate
    from ser.train.job import Job
    from ser.train.records import Epoch
    from ser.train.run_folder import Run

# What `--resume` by itself goes on with.
UNFINISHED = "unfinished"
# What may stand beside `--resume RUN`: all else is as that run was asked for.
BESIDE_RESUME = ("resume", "dry_run", "as_json")


@click.command(cls=CommandWithSettings)
@config_options(Experiment)
@click.option("--dry-run", is_flag=True, help="Print parameters, steps and an estimate, and stop.")
@json_option
@click.option(
    "--resume",
    is_flag=False,
    flag_value=UNFINISHED,
    metavar="[RUN]",
    help="Go on with unfinished runs from their last state; with a run's folder, with that run as "
    "it was asked for.",
)
@click.option(
    "--settings",
    is_flag=True,
    help="Print every setting of the fusion with its default and source.",
)
@click.pass_context
def train(
    ctx: click.Context,
    resume: str | None,
    settings: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train one model on cached features, one run per fold and seed.

    \b
    Examples:
      ser train --features hubert+mpnet --fusion mit
      ser train --features is13+bert --fusion lgf-add --loss perspective \
--protocol train1234-test5 --seeds 20
      ser train --fusion mit --settings
      ser train --resume runs/3f2a91c07b5e8d64
    """
    if settings and options["fusion"] is not None:
        from .settings import print_settings

        defaults = {name: value for name, value in (ctx.default_map or {}).items() if value}
        print_settings(options["fusion"], as_json, defaults, file=str(ctx.obj))
        return

    if resume is None or resume == UNFINISHED:
        experiment, jobs = _prepare(options, resume=resume is not None)
    else:
        experiment, jobs = _prepare_one_run(ctx, resume)

    _warn_of_alike_speakers(jobs)
    if dry_run:
        _print_dry_run(experiment, jobs, as_json)
        return

    runs = _run_what_is_left(experiment, jobs)
    _print_scores(runs, as_json)
    if not as_json:
        next_step("report", experiment.out, "--html", "report.html")


def _run_what_is_left(experiment: Experiment, jobs: Sequence["Job"]) -> list["Run"]:
    """Train the jobs whose runs are not finished, after an estimate. Returns the runs of all."""
    from ser.train.estimate import estimate
    from ser.train.experiment import run_jobs
    from ser.train.run_folder import Run

    folder = Path(experiment.out)
    left = [job for job in jobs if not Run(folder / job.name).finished]
    finished = len(jobs) - len(left)
    if finished:
        say(f"{plural(finished, 'run')} of {len(jobs)} finished already", err=True)
    if not left:
        return list(run_jobs(experiment, jobs))

    ahead = estimate(left)
    say(_estimate_in_words(experiment, left[0], ahead), err=True)

    done = _epochs_done(folder, left) if experiment.resume else {}
    for name, epochs in done.items():
        say(f"run {name} goes on after epoch {epochs} of {ahead.epochs}", err=True)

    total = len(jobs) * ahead.epochs
    with progress(total, experiment.fusion, "epoch", initial=sum(done.values())) as bar:
        return list(run_jobs(experiment, jobs, EpochsOnBar(bar, jobs, ahead.epochs, done)))


def _epochs_done(folder: Path, jobs: Sequence["Job"]) -> dict[str, int]:
    """After how many epochs each job goes on that has a state in its run's folder, by name."""
    from ser.train.checkpoint import read_progress
    from ser.train.run_folder import STATE, Run

    done = {}
    for job in jobs:
        run = Run(folder / job.name)
        if (run.path / STATE).exists():
            _, metadata = run.tensors(STATE)
            so_far = read_progress(metadata)
            done[job.name] = len(so_far.chosen) + len(so_far.history)
    return done


def _warn_of_alike_speakers(jobs: Sequence["Job"]) -> None:
    """Say before hours of training that a score may be of people who are known."""
    from ser.train.data.leakage import alike_in_words, alike_speakers

    alike: dict[str, str] = {}
    for job in jobs:
        alike.update(alike_speakers(job.fold, job.data.utterances))
    if alike:
        say(f"warning: {alike_in_words(alike)}; write their names alike if so", err=True)


def _prepare(options: dict[str, Any], resume: bool) -> tuple[Experiment, list["Job"]]:
    """The experiment that the options name, and its jobs."""
    for name, example in (("fusion", "mit"), ("features", "hubert+mpnet")):
        if options[name] is None:
            raise click.UsageError(f"--{name} is missing, such as --{name} {example}")

    from ser.train.experiment import prepare

    experiment = Experiment(**options, resume=resume)
    if "://" in options["store"]:
        [experiment] = pulled([experiment])
    return experiment, prepare(experiment)


def _prepare_one_run(ctx: click.Context, folder: str) -> tuple[Experiment, list["Job"]]:
    """The experiment of a run's folder, to go on with, and that run's job."""
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if source is ParameterSource.COMMANDLINE and option.name not in BESIDE_RESUME:
            raise click.UsageError(
                f"--resume RUN goes on as that run was asked for; leave out {option.opts[0]}"
            )

    from ser.train.experiment import prepare_resumed

    return prepare_resumed(folder)


def _estimate_in_words(experiment: Experiment, job: "Job", ahead: "Estimate") -> str:
    most = "at most " if ahead.at_most else ""
    config = job.config
    if config.fusion.solved:
        work = f"{plural(ahead.runs, 'run')} × {plural(ahead.epochs, 'fit')}"
        if experiment.seeds > 1:
            work += " (every seed is the same: one is trained)"
    else:
        work = (
            f"{plural(ahead.runs, 'run')} × {most}{plural(ahead.epochs, 'epoch')}, "
            f"{plural(ahead.updates, 'update')}"
        )
    parameters = parameters_text(ahead.parameters, ahead.trained)
    words = (
        f"{experiment.fusion} on {experiment.features}: {parameters}, "
        f"{ahead.utterances:,} utterances, {work}, {most}about {duration(ahead.seconds)}"
    )

    if config.device.startswith("cuda"):
        words += f", in {config.precision} on {config.device}"
        if config.precision != "bf16":
            words += "; --precision bf16 is faster, as float32 does without the tensor cores"

    if ahead.activations is not None:
        words += f"; activations of a batch: at most about {size_text(ahead.activations)}"
        if "recompute=true" not in experiment.set:
            words += ", --set recompute=true keeps fewer"

    if ahead.streamed:
        streamed = " and ".join(ahead.streamed)
        words += f"; {streamed} read from the store as needed, the rest in memory"
    return words


def _print_dry_run(experiment: Experiment, jobs: Sequence["Job"], as_json: bool) -> None:
    """The estimate of all jobs, and how much arithmetic they are."""
    from ser.train.estimate import estimate
    from ser.train.flops import count_flops, product_rates

    ahead = estimate(jobs)
    flops = count_flops(jobs, ahead.epochs)
    rates = product_rates(jobs[0].config)
    if as_json:
        answer({**vars(ahead), "flops": flops, "flops_per_second": rates})
        return

    times = []
    for precision, rate in rates.items():
        times.append(f"{duration(flops / rate)} at its {rate / 1e12:.3g} TFLOP/s in {precision}")
    words = _estimate_in_words(experiment, jobs[0], ahead)
    if flops:
        words += f"; {flops:.3g} FLOP in matrix products"
    if flops and times:
        words += f", which alone take this GPU {' or '.join(times)}"
    answer(words)


class EpochsOnBar:
    """Shows on a progress bar which epochs of which runs are done, with the last one's scores.

    Called after each epoch of a job, and with None when its run is finished: perhaps by an earlier
    command, which reported its epochs. `done` says of unfinished runs how many an earlier command
    did.
    """

    def __init__(
        self, bar: Any, jobs: Sequence["Job"], epochs_per_run: int, done: Mapping[str, int]
    ) -> None:
        self.bar = bar
        self.epochs_per_run = epochs_per_run
        self.done = {job.name: done.get(job.name, 0) for job in jobs}

    def __call__(self, job: "Job", epoch: "Epoch | None") -> None:
        if epoch is None:
            self.done[job.name] = self.epochs_per_run
        else:
            self.done[job.name] += 1
            self.bar.set_postfix_str(safe(self._describe(job, epoch)), refresh=False)
        self.bar.update(sum(self.done.values()) - self.bar.n)

    def _describe(self, job: "Job", epoch: "Epoch") -> str:
        number = list(self.done).index(job.name) + 1
        text = f"run {number}/{len(self.done)} fold {job.fold.name} loss {epoch.loss:.3f}"
        scores = {"wa": epoch.wa, "ua": epoch.ua, "f1": epoch.macro_f1, "ccc": epoch.ccc}
        for name, value in scores.items():
            if value is not None:
                text += f" {name} {value:.3f}"
        return text


def _print_scores(runs: Sequence["Run"], as_json: bool) -> None:
    """The scores of all runs together, and where the runs are."""
    from ser.train.records import to_json
    from ser.train.report.as_json import scores_as_json
    from ser.train.report.cell_scores import CellScores

    from .summary import summary_text

    scores = CellScores(runs)
    if as_json:
        results = [{"path": str(run.path), **to_json(run.result)} for run in runs]
        answer({"scores": scores_as_json(scores), "runs": results})
        return

    folders = ", ".join(str(run.path) for run in runs[:3])
    if len(runs) > 3:
        folders += ", …"
    answer(f"{summary_text(scores)}\nruns: {folders}")
