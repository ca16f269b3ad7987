"""`ser train`: stage 2, from the store to results."""

import json
from pathlib import Path
from typing import Any

import click

from .progress import progress

UNFINISHED = "unfinished"  # what `--resume` by itself goes on with
PROTOCOLS = "session-out, speaker-out, train1234-test5, random-70-20-10 or folds:FILE"


def training_options(command: Any) -> Any:
    """The options that `train` and `sweep` share."""
    folder = click.Path(path_type=Path)
    options = [
        click.option("--store", type=folder, default=Path("features"), show_default=True),
        click.option("--corpus", metavar="N", help="The store's only corpus by default."),
        click.option("--labels", metavar="POLICY", help="4class, 5class, 6class or a TOML file."),
        click.option("--protocol", metavar="NAME", help=f"How train, dev and test are cut: {PROTOCOLS}."),
        click.option("--select", metavar="EPOCH", help="Which epoch counts: val, last or best-test."),
        click.option("--loss", metavar="LOSS", help="single or perspective."),
        click.option("--seeds", type=click.IntRange(1), metavar="N", help="How many seeds: 0, 1, … N-1."),
        click.option("--folds", metavar="all|K", help="All folds, or the first K."),
        click.option("--epochs", type=click.IntRange(1), help="The fusion's own by default."),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="N utterances, spread over the corpus."),
        click.option("--device", default="auto", show_default=True),
        click.option(
            "--precision",
            type=click.Choice(["float32", "bf16"]),
            help="Of the model; bf16 where the CPU or GPU has it.",
        ),
        click.option(
            "--views",
            metavar="A+B",
            help="Augmented views to train on too, such as logmel:view=noise+logmel:view=pitch-1.",
        ),
        click.option(
            "--set", "set_", multiple=True, metavar="KEY=VALUE", help="A setting; see --settings. Repeatable."
        ),
        click.option(
            "--model",
            multiple=True,
            metavar="NAME=ID_OR_PATH",
            callback=lambda _context, _option, given: given or None,
            help="Where the weights of an encoder lie that finetune_layers trains. Repeatable.",
        ),
        click.option("--allow-missing", is_flag=True, help="Leave quarantined utterances out, and say which."),
        click.option("--dry-run", is_flag=True, help="Print parameters, steps and an estimate, and stop."),
        click.option("--log", type=click.Choice(["tensorboard"]), help="Curves of each run, in its folder."),
        click.option("--out", type=folder, default=Path("runs"), show_default=True),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option("--features", metavar="A+B", help="Features in the store, joined with +, such as hubert+mpnet.")
@click.option("--fusion", help="The model, such as mit, lgf-add, cnn, audio or text.")
@training_options
@click.option(
    "--resume",
    is_flag=False,
    flag_value=UNFINISHED,
    metavar="[RUN]",
    help="Go on with unfinished runs from their last state; with a run's folder, with that run as it was asked for.",
)
@click.option(
    "--settings", "show_settings", is_flag=True, help="Print every setting of the fusion with its default and source."
)
@click.pass_context
def train(
    ctx: click.Context,
    features: str | None,
    fusion: str | None,
    resume: str | None,
    show_settings: bool,
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
    of_one_run = resume is not None and resume != UNFINISHED
    if fusion is None and not of_one_run:
        raise click.UsageError("--fusion is missing, such as --fusion mit")
    if show_settings and fusion is not None:
        _print_settings(fusion, as_json)
        return
    if features is None and not of_one_run:
        raise click.UsageError("--features is missing, such as --features hubert+mpnet")
    from ser.train.experiment import Experiment, estimate, iterate, prepare, resumed

    if resume is not None and of_one_run:
        _refuse_others(ctx)
        experiment, jobs = resumed(resume)
    else:
        options["set"] = options.pop("set_")
        given = {name: value for name, value in options.items() if value is not None}
        experiment = Experiment(features=features, fusion=fusion, resume=resume is not None, **given)  # type: ignore[arg-type]
        jobs = prepare(experiment)
    ahead = estimate(jobs)
    words = (
        f"{experiment.fusion} on {experiment.features}: {ahead.parameters:,} parameters, "
        f"{ahead.utterances:,} utterances, {ahead.runs} runs × {ahead.epochs} epochs, {ahead.updates:,} updates, "
        f"about {duration(ahead.seconds)}"
    )
    if dry_run:
        click.echo(json.dumps(vars(ahead)) if as_json else words)
        return
    click.echo(words, err=True)
    done: dict[int, int] = {}  # epochs of each run
    with progress(ahead.runs * ahead.epochs, experiment.fusion, "epoch") as bar:

        def show(step: Any) -> None:
            if step.epoch is None:
                done[step.run] = ahead.epochs  # finished before, it told of none
            else:
                done[step.run] = done.get(step.run, 0) + 1
                e = step.epoch
                dev = f" wa {e.wa:.3f} ua {e.ua:.3f}" if e.wa is not None else ""
                bar.set_postfix_str(
                    f"run {step.run}/{step.runs} fold {step.fold} loss {e.loss:.3f}{dev}", refresh=False
                )
            bar.update(sum(done.values()) - bar.n)

        runs = list(iterate(experiment, jobs, show))
    if as_json:
        click.echo(json.dumps({"runs": [{"path": str(run.path), **run.result} for run in runs]}))
        return
    from ser.train.scores import CellScores, summary_text

    click.echo(summary_text(CellScores(runs)))
    click.echo(f"runs: {', '.join(str(run.path) for run in runs[:3])}{', …' if len(runs) > 3 else ''}")


def _refuse_others(ctx: click.Context) -> None:
    """A run that is gone on with is as it was asked for; only how that is told may be said anew."""
    given = [
        option
        for option in ctx.command.params
        if option.name not in ("resume", "dry_run", "as_json")
        and ctx.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--resume RUN goes on with the run as it was asked for; leave out {given[0].opts[0]}")


def _print_settings(name: str, as_json: bool) -> None:
    from tabulate import tabulate

    from ser.errors import unknown
    from ser.train.models import FUSIONS
    from ser.train.settings import settings

    found = [
        fusion for fusion in FUSIONS if fusion == name or (fusion.startswith(f"{name}:") and name in ("audio", "text"))
    ]
    if not found:
        raise unknown("fusion", name, [*FUSIONS, "audio", "text"])
    for fusion in found:
        rows = [vars(one) for one in settings(FUSIONS[fusion])]
        if as_json:
            click.echo(json.dumps({"fusion": fusion, "source": FUSIONS[fusion].source, "settings": rows}))
            continue
        click.echo(f"{fusion}: {FUSIONS[fusion].source}")
        lines = [[row["name"], row["default"], row["source"], row["help"]] for row in rows]
        click.echo(tabulate(lines, ["setting", "default", "source", "what"], maxcolwidths=[None, None, 32, 56]))


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
