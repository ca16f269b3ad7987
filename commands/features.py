"""`ser features`: stage 1, from a corpus to features in the store."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ser.errors import SerError
from ser.extract.config import ExtractionConfig

from .options import FILE, config_options, json_option
from .output import answer, duration, next_step, plural, say, stage_bars, table

if TYPE_CHECKING:
    from ser.extract.corpora.scan import Scan
    from ser.extract.run import ExtractionPlan, Summary

COLUMNS = ("rows", "computed", "reused", "quarantined", "seconds")


@click.command()
@click.argument("corpus", type=FILE)
@config_options(ExtractionConfig)
@click.option("--dry-run", is_flag=True, help="Say what would be computed, and stop.")
@json_option
@click.pass_context
def features(ctx: click.Context, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Extract features of CORPUS into a store; what is there already is not computed again.

    \b
    Examples:
      ser features /data/IEMOCAP_full_release
      ser features my.csv --format table --features is13,logmel --backend hdf5
      ser features corpus --features hubert:layer=9 --model hubert=/models/hubert-base-ls960
      ser features corpus --transcribe whisper --model whisper=/models/whisper-base.en
    """
    from ser.extract.run import ExtractionRun, plan, stop_if_unusable

    scan, whole = None, True
    if options["transcribe"]:
        if ctx.get_parameter_source("features") is ParameterSource.DEFAULT:
            options["features"] = ""  # the transcripts alone
        scan = _transcribe(ExtractionConfig(**options), dry_run, as_json)
        if scan is None:
            return
        whole = not scan.unusable("text")
    planned = plan(ExtractionConfig(**options), scan)
    with ExtractionRun(planned) as run:
        if dry_run:
            seconds = run.estimate()
            answer(
                _plan_json(planned, seconds) if as_json else _plan_text(planned) + _about(seconds)
            )
        else:
            stop_if_unusable(planned)
            say(_plan_text(planned), err=True, nl=False)
            say(_about(run.estimate()), err=True)
            with stage_bars() as update:
                summary = run.extract(update)
            rows = [
                [name, *(facts[column] for column in COLUMNS)]
                for name, facts in summary.features.items()
            ]
            parent = planned.manifest.parent
            if as_json:
                transcripts = {"transcripts": parent.transcripts} if scan and parent else {}
                answer({**transcripts, **summary.features})
            elif rows:
                answer(table(rows, ["feature", *COLUMNS[:-1], "s"]))
            for line in _notes(summary):
                say(line, err=as_json)
            if planned.features and not (as_json or planned.unavailable):
                next_step(
                    "train", *_training(planned), *([] if summary.whole else ["--allow-missing"])
                )
            whole = whole and summary.whole
    if planned.unavailable:
        raise SerError(
            "; ".join(
                f"{feature} is left out: {fault}" for feature, fault in planned.unavailable.items()
            )
        )
    ctx.exit(0 if whole else 3)


def _transcribe(config: ExtractionConfig, dry_run: bool, as_json: bool) -> "Scan | None":
    """The corpus with a recogniser's transcripts; with `dry_run` None, and only what is missing is
    printed.
    """
    from ser.extract.corpora.transcribe import Transcription

    job = Transcription(config)
    missing, rows = len(job.left), len(job.utterances)
    if dry_run:
        facts = {"corpus": job.name, "transcripts": {"rows": rows, "missing": missing}}
        answer(facts if as_json else f"{job.name}: {missing} of {rows} utterances to transcribe")
        return None
    with stage_bars() as update:
        scan = job.run(update)
    rate = f"{100 * job.summary.wer:.1f} %" if job.summary.wer is not None else "not known"
    done = f"{job.name}: {missing} of {rows} utterances transcribed now, {job.summary.empty} have no word"
    compared = f"{job.summary.words} words of {job.summary.utterances} transcripts, without case and punctuation"
    say(f"{done}; word error rate {rate} over {compared}", as_json)
    for problem in scan.unusable("text").values():
        say(f"left out: {problem}", err=True)
    return scan


def _training(plan: "ExtractionPlan") -> list[str]:
    """Options of `ser train` that fit what was extracted: the first feature of each modality, and a
    model of both.
    """
    from ser.corpus.labels import LABEL_POLICIES, code
    from ser.extract.registry import FEATURES, split_names

    names = {
        FEATURES[name.partition(":")[0]].modality: name
        for name in reversed(split_names(plan.config.features))
    }
    specs = {
        feature.resolved.spec.modality: feature.resolved.spec for feature in reversed(plan.features)
    }
    modalities = sorted(specs)  # audio first
    both = "mit" if specs[modalities[0]].level == "frame" else "lgf-add"
    options = ["--features", "+".join(names[modality] for modality in modalities)]
    options += ["--fusion", both if len(modalities) > 1 else modalities[0]]
    options += ["--corpus", plan.manifest.corpus, "--store", str(plan.config.store)]
    sessions = set(plan.manifest.column("session"))
    if "train" in sessions:
        options += ["--protocol", "official"]
    elif sessions == {None}:
        options += ["--protocol", "speaker-out"]
    labels = {code(label) for label in plan.manifest.column("label") if label}
    classes = [name for name, raw in LABEL_POLICIES["4class"].items() if not labels.isdisjoint(raw)]
    if len(classes) < 2 <= len(labels):
        options += ["--labels", "all"]
    return options


def _plan_json(plan: "ExtractionPlan", seconds: float | None) -> dict[str, Any]:
    rows = len(plan.manifest)
    missing = {
        f.resolved.spec.name: {"rows": rows, "missing": len(f.missing), "bytes": f.bytes}
        for f in plan.features
    }
    sizes = {"bytes": plan.bytes, "free": plan.free, "seconds": seconds}
    refused = [str(problem) for problem in plan.scan.refused]
    return {"features": missing, **sizes, "corpus": plan.manifest.corpus, "refused": refused}


def _plan_text(plan: "ExtractionPlan") -> str:
    rows = len(plan.manifest)
    lines = [f"{plan.manifest.corpus}: {plural(rows, 'utterance')} → {plan.config.store}"]
    for feature in plan.features:
        spec, missing = feature.resolved.spec, len(feature.missing)
        name = f"{spec.name}@{spec.fingerprint}{' (random weights)' if spec.random_weights else ''}"
        size = f"about {feature.bytes / 1e6:.1f} MB"
        lines.append(f"  {name}: {missing} to compute, {rows - missing} there, {size}")
    lines += [f"  {feature}: left out, its weights are not here" for feature in plan.unavailable]
    lines += [f"  not in the corpus as read: {problem}" for problem in plan.scan.refused]
    lines.append(f"  {plan.bytes / 1e6:.1f} MB in all, {plan.free / 1e9:.1f} GB free")
    return "\n".join(lines)


def _about(seconds: float | None) -> str:
    """The estimate, in two digits: it is no more precise."""
    return (
        f"; about {duration(float(f'{seconds:.2g}'))}, going by a few utterances"
        if seconds is not None
        else ""
    )


def _notes(summary: "Summary") -> Iterator[str]:
    """What is printed below the table: with --json on standard error, so that nothing is left out
    in silence.
    """
    yield from (f"warning: {text}" for text in summary.warnings)
    yield from (f"left out of the corpus: {problem}" for problem in summary.refused)
    features: dict[
        tuple[str, str], list[str]
    ] = {}  # that quarantine an utterance, by its id and the reason
    for name, reasons in summary.quarantined.items():
        for id_and_reason in reasons.items():
            features.setdefault(id_and_reason, []).append(name)
    yield from (
        f"quarantined in {', '.join(names)}: {id_}: {why}" for (id_, why), names in features.items()
    )
    for name, value in summary.check.items():
        yield f"check {name}: max |Δ| / max |ref| {value:.2e} against one by one"
    random = [name for name, facts in summary.features.items() if facts["random_weights"]]
    if random:
        yield f"random weights ({', '.join(random)}): these features show that the pipeline works, no more"
    yield f"{summary.sentence}; store: {summary.store}"
