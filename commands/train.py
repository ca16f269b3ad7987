"""`ser train`: stage 2, from the store to results."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ser.train.options import Experiment

from .cache import pulled
from .options import config_options, json_option
from .output import answer, duration, next_step, plural, progress, safe, say, table

if TYPE_CHECKING:
    from ser.train.records import Epoch
    from ser.train.run import Job

UNFINISHED = "unfinished"  # what `--resume` by itself goes on with


@click.command()
@config_options(Experiment)
@click.option("--dry-run", is_flag=True, help="Print parameters, steps and an estimate, and stop.")
@json_option
@click.option(
    "--resume",
    is_flag=False,
    flag_value=UNFINISHED,
    metavar="[RUN]",
    help="Go on with unfinished runs from their last state; with a run's folder, with that run as it was asked for.",
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
      ser train --features is13+bert --fusion lgf-add --loss perspective --protocol train1234-test5 --seeds 20
      ser train --fusion mit --settings
      ser train --resume runs/3f2a91c07b5e8d64
    """
    one_run = None if resume == UNFINISHED else resume
    if settings and options["fusion"] is not None:
        own = {name: value for name, value in (ctx.default_map or {}).items() if value}
        _print_settings(options["fusion"], as_json, own, str(ctx.obj))
        return
    for name, example in (("fusion", "mit"), ("features", "hubert+mpnet")):
        if options[name] is None and one_run is None:
            raise click.UsageError(f"--{name} is missing, such as --{name} {example}")
    from ser.train.experiment import count_flops, estimate, iterate, prepare, product_rates, resumed

    if one_run is not None:
        for option in ctx.command.params:
            given = ctx.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
            if given and option.name not in ("resume", "dry_run", "as_json"):
                raise click.UsageError(
                    f"--resume RUN goes on as that run was asked for; leave out {option.opts[0]}"
                )
        experiment, jobs = resumed(one_run)
    else:
        experiment = Experiment(**options, resume=resume is not None)
        if "://" in options["store"]:
            [experiment] = pulled([experiment])
        jobs = prepare(experiment)
    ahead = estimate(jobs)
    most = "at most " if ahead.at_most else ""
    words = (
        f"{experiment.fusion} on {experiment.features}: {ahead.parameters:,} parameters, "
        f"{ahead.utterances:,} utterances, {plural(ahead.runs, 'run')} × {most}{plural(ahead.epochs, 'epoch')}, "
        f"{plural(ahead.updates, 'update')}, {most}about {duration(ahead.seconds)}"
    )
    config = jobs[0].plan
    if config.device.startswith("cuda"):
        words += f", in {config.precision} on {config.device}"
        if config.precision != "bf16":
            words += "; --precision bf16 is faster, as float32 does without the tensor cores"
    if ahead.streamed:
        words += (
            f"; {' and '.join(ahead.streamed)} read from the store as needed, the rest in memory"
        )
    if dry_run:
        flops, rates = count_flops(jobs, ahead.epochs), product_rates(config)
        words += f"; {flops:.3g} FLOP in matrix products"
        each = [
            f"{duration(flops / rate)} at its {rate / 1e12:.3g} TFLOP/s in {name}"
            for name, rate in rates.items()
        ]
        if each:
            words += f", which alone take this GPU {' or '.join(each)}"
        answer({**vars(ahead), "flops": flops, "flops_per_second": rates} if as_json else words)
        return
    say(words, err=True)
    epochs = dict.fromkeys([job.name for job in jobs], 0)  # that each run has finished
    with progress(ahead.runs * ahead.epochs, experiment.fusion, "epoch") as bar:

        def show(job: "Job", epoch: "Epoch | None") -> None:
            if (
                epoch is None
            ):  # the run is finished, perhaps by an earlier command that reported its epochs
                epochs[job.name] = ahead.epochs
            else:
                epochs[job.name] += 1
                scores = {"wa": epoch.wa, "ua": epoch.ua, "f1": epoch.macro_f1, "ccc": epoch.ccc}
                dev = "".join(
                    f" {name} {value:.3f}" for name, value in scores.items() if value is not None
                )
                place = f"run {list(epochs).index(job.name) + 1}/{ahead.runs} fold {job.fold.name}"
                bar.set_postfix_str(safe(f"{place} loss {epoch.loss:.3f}{dev}"), refresh=False)
            bar.update(sum(epochs.values()) - bar.n)

        runs = list(iterate(experiment, jobs, show))
    from ser.train.records import to_json
    from ser.train.report.as_json import scores_as_json
    from ser.train.report.cell_scores import CellScores

    from .summary import summary_text

    scores = CellScores(runs)
    if as_json:
        answer(
            {
                "scores": scores_as_json(scores),
                "runs": [{"path": str(run.path), **to_json(run.result)} for run in runs],
            }
        )
    else:
        shown = ", ".join(str(run.path) for run in runs[:3])
        answer(f"{summary_text(scores)}\nruns: {shown}{', …' if len(runs) > 3 else ''}")
        next_step("report", experiment.out, "--html", "report.html")


def _print_settings(name: str, as_json: bool, own: Mapping[str, Any], file: str) -> None:
    """All settings of a fusion, or of both that `audio` or `text` is, and the `own` defaults of
    options in a `file`.
    """
    from ser.errors import unknown
    from ser.train.listed_settings import list_settings
    from ser.train.models import FUSIONS

    alone = name in ("audio", "text")
    fusions = [
        fusion for fusion in FUSIONS if fusion == name or (alone and fusion.startswith(f"{name}:"))
    ]
    if not fusions:
        raise unknown("fusion", name, [*FUSIONS, "audio", "text"])
    described = []
    for fusion in fusions:
        source, listed = FUSIONS[fusion].source, list_settings(FUSIONS[fusion])
        described.append(
            {"fusion": fusion, "source": source, "settings": [*map(vars, listed)], "defaults": own}
        )
        rows = [
            [one.name, one.default, one.source, f"{one.help} ({one.range})".removesuffix(" ()")]
            for one in listed
        ]
        if not as_json:
            answer(f"{fusion}: {source}")
            answer(
                table(
                    rows,
                    ["setting", "default", "source", "what"],
                    maxcolwidths=[None, None, 32, 56],
                )
            )
    if as_json:
        answer(described if alone else described[0])
        return
    for option, value in own.items():
        for one in value if isinstance(value, list) else [value]:
            given = "" if one is True else f" {one}"  # a flag has no value
            answer(f"--{option.replace('_', '-')}{given} (default of {file})")
