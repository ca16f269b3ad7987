"""`ser features`: stage 1, from a corpus to features in the store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from ser.errors import SerError
from ser.extract.corpora import FORMATS

from .progress import Stages

if TYPE_CHECKING:
    from ser.extract.run import ExtractionPlan, Summary


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option(
    "--features",
    default="hubert,mpnet,bert,is13,logmel",
    show_default=True,
    help="What to compute, with variants such as hubert:layer=9.",
)
@click.option("--format", type=click.Choice(FORMATS), help="Layout of the corpus; detected by default.")
@click.option("--corpus-name", metavar="N", help="Name of the corpus in the store; by default its format's.")
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Other transcripts (CSV with id, text), such as an ASR's; give them their own --corpus-name.",
)
@click.option("--store", type=click.Path(path_type=Path), default=Path("features"), show_default=True)
@click.option("--backend", type=click.Choice(["zarr", "hdf5"]), default="zarr", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Of frames and tokens; utterance vectors are float32.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=ID_OR_PATH",
    help="Weights of an encoder: a Hugging Face id or a local folder. Repeatable.",
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes; by default one per device.")
@click.option(
    "--batch-seconds", type=float, metavar="S", help="Padded seconds of audio a batch; on a CPU one by one by default."
)
@click.option(
    "--part-seconds",
    type=float,
    default=600.0,
    show_default=True,
    metavar="S",
    help="Audio per part of the store: what a killed run loses at most.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the corpus's first N utterances.")
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="Stop at an utterance that cannot be read, or quarantine it and go on.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run on dask: tcp://127.0.0.1:8786, a scheduler file, or local:4 for four processes here.",
)
@click.option("--insecure", is_flag=True, help="Allow a plain --scheduler on another machine.")
@click.option("--retry", is_flag=True, help="Try quarantined utterances again.")
@click.option(
    "--check",
    type=click.IntRange(1),
    metavar="N",
    help="Compare N utterances with one-by-one extraction and record the deviation.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be computed, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def features(ctx: click.Context, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Extract features of CORPUS into a store; what is there already is not computed again.

    \b
    Examples:
      ser features /data/IEMOCAP_full_release
      ser features my.csv --format table --features is13,logmel --backend hdf5
      ser features corpus --features hubert:layer=9 --model hubert=/models/hubert-base-ls960
    """
    from ser.extract.run import ExtractionConfig, ExtractionRun, plan, stop_if_unusable

    planned = plan(ExtractionConfig(**options))
    with ExtractionRun(planned) as run:
        if dry_run:
            about = run.estimate()
            click.echo(json.dumps(_ahead(planned, about)) if as_json else _ahead_text(planned) + _about(about))
            _stop_if_unavailable(planned)
            return
        stop_if_unusable(planned)
        click.echo(_ahead_text(planned), err=True, nl=False)
        click.echo(_about(run.estimate()), err=True)
        with Stages("utt") as stages:
            summary = run.extract(stages.update)
    if as_json:
        click.echo(json.dumps(summary.features))
    else:
        click.echo(_table(summary))
    for line in _told(summary):
        click.echo(line, err=as_json)
    _stop_if_unavailable(planned)
    ctx.exit(0 if summary.whole else 3)


def _stop_if_unavailable(plan: "ExtractionPlan") -> None:
    """Raises `SerError` for the features that were left out because their weights are not here."""
    if plan.unavailable:
        faults = "; ".join(f"{feature} is left out: {fault}" for feature, fault in plan.unavailable.items())
        raise SerError(faults)


def _ahead(plan: "ExtractionPlan", about: float | None) -> dict[str, Any]:
    missing = {f.wanted.spec.name: {"rows": f.rows, "missing": len(f.missing), "bytes": f.bytes} for f in plan.features}
    return {
        "features": missing,
        "bytes": plan.bytes,
        "free": plan.free,
        "seconds": about,
        "corpus": plan.manifest.corpus,
        "refused": [str(problem) for problem in plan.scan.refused],
    }


def _about(seconds: float | None) -> str:
    from ser.extract.run import duration

    return f"; about {duration(float(f'{seconds:.2g}'))}, going by a few utterances" if seconds is not None else ""


def _ahead_text(plan: "ExtractionPlan") -> str:
    lines = [f"{plan.manifest.corpus}: {len(plan.manifest)} utterances → {plan.config.store}"]
    for feature in plan.features:
        spec = feature.wanted.spec
        random = " (random weights)" if spec.random_weights else ""
        lines.append(
            f"  {spec.name}@{spec.fingerprint}{random}: {len(feature.missing)} to compute, {feature.there} there, "
            f"about {feature.bytes / 1e6:.1f} MB"
        )
    lines += [f"  {feature}: left out, its weights are not here" for feature in plan.unavailable]
    lines += [f"  not in the corpus as read: {problem}" for problem in plan.scan.refused]
    lines.append(f"  {plan.bytes / 1e6:.1f} MB in all, {plan.free / 1e9:.1f} GB free")
    return "\n".join(lines)


def _table(summary: "Summary") -> str:
    rows = [
        [name, *(facts[key] for key in ("rows", "computed", "reused", "quarantined", "seconds"))]
        for name, facts in summary.features.items()
    ]
    return tabulate(rows, headers=["feature", "rows", "computed", "reused", "quarantined", "s"])


def _told(summary: "Summary") -> Iterator[str]:
    """What stands under the table: with --json on standard error, so that nothing is left out in silence."""
    yield from (f"warning: {text}" for text in summary.warnings)
    yield from (f"left out of the corpus: {problem}" for problem in summary.refused)
    for feature, reasons in summary.quarantined.items():
        yield from (f"quarantined in {feature}: {id_}: {reason}" for id_, reason in reasons.items())
    for name, value in summary.check.items():
        yield f"check {name}: max |Δ| / max |ref| {value:.2e} against one by one"
    if random := [name for name, facts in summary.features.items() if facts["random_weights"]]:
        yield f"random weights ({', '.join(random)}): these features show that the pipeline works, no more"
    yield f"{summary.sentence}; store: {summary.store}"
