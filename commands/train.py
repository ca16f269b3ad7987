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
    from ser.train.report.cell_scores import CellScores
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
    from ser.train.report.cell_scores import CellScores

    scores = CellScores(runs)
    if as_json:
        answer(
            {
                "scores": scores.to_json(),
                "runs": [{"path": str(run.path), **to_json(run.result)} for run in runs],
            }
        )
    else:
        shown = ", ".join(str(run.path) for run in runs[:3])
        answer(f"{summary_text(scores)}\nruns: {shown}{', …' if len(runs) > 3 else ''}")
        next_step("report", experiment.out, "--html", "report.html")


def summary_text(cell: "CellScores") -> str:
    """The scores of one cell for the terminal: what `ser train` ends with."""
    from ser.train.report.cell_scores import caveat, named
    from ser.train.report.tables import Table, tabulated
    from ser.train.run_folder import column
    from ser.train.scores.calibration import BINS, LEVEL
    from ser.train.scores.measures import SHOWN

    scores = [(name, metric, "both") for name, metric in SHOWN.items() if cell.classes]
    scores += [(f"recall {name}", name, "both") for name in cell.classes if cell.score(name).folds]
    scores += [
        (f"UA, {test}", "ua", test) for test in cell.tests if cell.classes and test != "both"
    ]
    scores += [(named(metric), metric, "both") for metric in cell.rated]
    scores += [(column("mean CCC", test), "ccc", test) for test in cell.tests if cell.dimensions]
    digits = {metric: 3 if metric in cell.of_ratings else 2 for metric in cell.metrics}
    rows = []
    for name, metric, test in scores:
        score = cell.score(metric, test)
        over_seeds, over_folds = (
            _spread(values, digits[metric]) for values in (score.over_seeds, score.over_folds)
        )
        rows.append([name, over_seeds, str(score.seeds), over_folds, str(score.folds)])
    unit = "% (CCC, RMSE: not)" if cell.dimensions else "%"
    headings = [unit, "pooled over folds, over seeds", "seeds", "over folds", "folds"]
    found = cell.intervals.items()
    intervals = [
        f"{metric} over {cell.over}: {_spread(ends, digits[metric])}" for metric, ends in found
    ]
    notes = [cell.conditions, cell.interval_over]
    if intervals:
        notes[1] = f"95 % interval of {'; '.join(intervals)} ({cell.interval_over})"
    if cell.classes:
        calibration = f"ECE {cell.reliability()[0]:.2f} ({BINS} bins)"
        if cell.temperatures:
            calibration += (
                f", with a temperature fitted on dev {cell.reliability(after=True)[0]:.2f}"
            )
        if cell.conformal:
            (coverage, *_), size = cell.conformal
            calibration += (
                f"; sets for {100 * LEVEL:.0f} % hold the true class in {coverage:.2f} %, "
            )
            calibration += f"mean size {size:.2f} (no guarantee across speakers)"
        notes.append(calibration)
    if divergences := cell.divergences():
        shown = ", ".join(
            f"{name.upper()} {_spread(ends, 3)}" for name, ends in divergences.items()
        )
        notes.append(f"from the raters' votes, in nats: {shown}")
    if cell.raters:
        shown = ", ".join(
            f"{name} {100 * cell.raters[metric]:.2f}" for name, metric in SHOWN.items()
        )
        notes.append(
            f"the raters' own: {shown} ({cell.raters['n']:,} votes, each against the majority of the others; "
            f"{cell.raters['left_out']:,} left out)"
        )
    if cell.left_out:
        notes.append(
            "left out: "
            + ", ".join(f"{count} ({reason})" for reason, count in cell.left_out.items())
        )
    if cell.corpora:
        notes.append(tabulated(Table("corpora", "", cell.corpora)))
    return "\n".join(
        [
            table(rows, headings, disable_numparse=True),
            *notes,
            *filter(None, [caveat(cell.results)]),
        ]
    )


def _spread(values: tuple[float | None, ...], digits: int) -> str:
    """A score with its deviation, or with the low and high end of its interval; alone where these
    are None.
    """
    score, *ends = (f"{x:.{digits}f}" for x in values if x is not None)
    return f"{score} [{', '.join(ends)}]" if len(ends) == 2 else " ± ".join([score, *ends])


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
