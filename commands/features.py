"""`ser features`: stage 1, from a corpus to features in the store."""

import shlex
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ser.extract.config import ExtractionConfig

from .next_training import export_words, richer_fusion, seconds_of_training, train_options
from .options import FILE, config_options, json_option
from .output import answer, duration, next_step, plural, say, size_text, stage_bars, table
from .weights_in_words import fetching_lines, left_out_lines

if TYPE_CHECKING:
    from ser.extract.corpora.scan import Scan
    from ser.extract.corpora.transcribe import Transcription
    from ser.extract.preparation import Preparation
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
    from ser.extract.preparation import prepare

    scan = None
    whole = True
    if options["transcribe"]:
        if ctx.get_parameter_source("features") is ParameterSource.DEFAULT:
            # The transcripts alone.
            options["features"] = ""
        scan = _transcribe(ExtractionConfig(**options), dry_run, as_json)
        if scan is None:
            return
        whole = not scan.unusable("text")

    preparation = prepare(ExtractionConfig(**options), scan)
    if dry_run:
        planned = _answer_plan(preparation, as_json)
        whole = whole and not planned.unavailable
    else:
        planned = _fetch_weights(preparation)
        summary = _extract(planned, scan is not None, as_json)
        whole = whole and summary.whole

    # Of a dry run the plan, just above, names the reasons.
    for line in left_out_lines(planned, with_reasons=not dry_run or as_json):
        say(line, err=True)
    ctx.exit(0 if whole else 3)


def _transcribe(config: ExtractionConfig, dry_run: bool, as_json: bool) -> "Scan | None":
    """The corpus with a recogniser's transcripts.

    With `dry_run` None, and only what is missing is printed.
    """
    from ser.extract.corpora.alike import problem_lines
    from ser.extract.corpora.recogniser import find_recogniser
    from ser.extract.corpora.transcribe import Transcription

    source = find_recogniser(config)
    if not source.is_ready:
        for line in fetching_lines({"whisper": source}):
            say(line, err=True)
    with stage_bars("B", unit_scale=True) as update:
        job = Transcription(config, update)

    missing = len(job.left)
    rows = len(job.utterances)
    if dry_run:
        seconds = job.estimate()
        if as_json:
            transcripts = {"rows": rows, "missing": missing, "seconds": seconds}
            answer({"corpus": job.name, "transcripts": transcripts})
        else:
            words = f"{job.name}: {missing} of {rows} utterances to transcribe"
            answer(words + _estimate_text(seconds))
        return None

    with stage_bars() as update:
        scan = job.run(update)

    transcription = job.summary
    rate = "not known" if transcription.wer is None else f"{100 * transcription.wer:.1f} %"
    say(
        f"{job.name}: {missing} of {rows} utterances transcribed now, "
        f"{transcription.empty} have no word; "
        f"word error rate {rate} over {transcription.words} words of "
        f"{transcription.utterances} transcripts, "
        "without case and punctuation",
        as_json,
    )
    for warning in _warnings_of_transcripts(job):
        say(f"warning: {warning}", err=True)
    for line in problem_lines(scan.unusable("text").values()):
        say(f"left out: {line}", err=True)
    return scan


def _warnings_of_transcripts(job: "Transcription") -> list[str]:
    """What cannot be right in the transcripts of a job that has run."""
    warnings = []
    if job.runaway:
        named = ", ".join(job.runaway[:3])
        if len(job.runaway) > 3:
            named += ", …"
        warnings.append(
            f"{plural(len(job.runaway), 'transcript')} cannot be what was said, as the recogniser "
            f"repeats itself or says too much ({named}); hear them, and correct them by --text"
        )
    rate = job.summary.wer
    if rate is not None and rate > 1:
        warnings.append(
            f"the word error rate is {100 * rate:.0f} %: more words are wrong than were said; name "
            "the language with --language, or take another model"
        )
    return warnings


def _answer_plan(preparation: "Preparation", as_json: bool) -> "ExtractionPlan":
    """Print what would be fetched and computed, and how long it would take, where that is known."""
    from ser.extract.plan import complete_plan, plan_without_fetching
    from ser.extract.run import ExtractionRun

    seconds = None
    if preparation.to_fetch:
        plan = plan_without_fetching(preparation)
    else:
        plan = complete_plan(preparation)
        with ExtractionRun(plan) as run:
            seconds = run.estimate()

    if as_json:
        answer(_plan_json(preparation, plan, seconds))
        return plan
    for line in fetching_lines(preparation.to_fetch):
        answer(line)
    answer(_plan_text(plan) + _estimate_text(seconds))
    return plan


def _fetch_weights(preparation: "Preparation") -> "ExtractionPlan":
    """The plan, once weights that are not here are downloaded and converted: that is said first."""
    from ser.extract.plan import complete_plan, plan_without_fetching
    from ser.extract.unusable import stop_if_unusable

    if preparation.to_fetch:
        known = plan_without_fetching(preparation)
        # Before gigabytes are downloaded for a corpus that cannot be used.
        stop_if_unusable(known)
        for line in fetching_lines(preparation.to_fetch):
            say(line, err=True)
        say(_plan_text(known), err=True)

    with stage_bars("B", unit_scale=True) as update:
        return complete_plan(preparation, update)


def _extract(plan: "ExtractionPlan", transcribed: bool, as_json: bool) -> "Summary":
    """Compute what is missing, and print what was done."""
    from ser.extract.run import ExtractionRun
    from ser.extract.unusable import stop_if_unusable

    with ExtractionRun(plan) as run:
        stop_if_unusable(plan)
        say(_plan_text(plan), err=True, nl=False)
        say(_estimate_text(run.estimate()), err=True)
        with stage_bars() as update:
            summary = run.extract(update)

    if as_json:
        transcripts = {}
        if transcribed and plan.manifest.parent:
            transcripts = {"transcripts": plan.manifest.parent.transcripts}
        answer({**transcripts, **summary.features})
    elif summary.features:
        rows = []
        for name, counts in summary.features.items():
            rows.append([name, *(counts[column] for column in COLUMNS)])
        answer(table(rows, ["feature", *COLUMNS[:-1], "s"]))

    for line in _notes(summary, plan):
        say(line, err=as_json)

    if plan.features and not as_json and not plan.unavailable:
        _suggest_next(plan, summary)
    return summary


def _suggest_next(plan: "ExtractionPlan", summary: "Summary") -> None:
    """To train, or where there is nothing to train on to take the first feature elsewhere."""
    options = train_options(plan)
    if options is not None:
        left_out = [] if summary.whole else ["--allow-missing"]
        next_step("train", *options, *left_out)
        _say_how_long(plan, options)
    elif plan.config.limit is not None and any(plan.manifest.column("label")):
        say(
            "too few labelled utterances to train on: extract more, with a larger --limit", err=True
        )
    else:
        next_step("cache", "export", *export_words(plan))


def _say_how_long(plan: "ExtractionPlan", options: list[str]) -> None:
    """How long the training takes that is named, and which model may follow it."""
    words = []
    # Not where nothing is computed, which is told at once.
    if any(plan.missing.values()):
        seconds = seconds_of_training(options)
        if seconds is not None:
            words.append(f"about {duration(float(f'{seconds:.2g}'))}, going by a few utterances")
    fusion = richer_fusion(plan)
    if fusion is not None:
        words.append(
            f"any other model has to beat it, such as --fusion {fusion}, whose time --dry-run says"
        )
    if words:
        say(f"      {'; '.join(words)}", err=True)


def _plan_json(
    preparation: "Preparation", plan: "ExtractionPlan", seconds: float | None
) -> dict[str, Any]:
    """What `--dry-run --json` prints."""
    rows = len(plan.manifest)
    features = {}
    for feature in plan.features:
        fingerprint = feature.spec.fingerprint
        features[feature.spec.name] = {
            "rows": rows,
            "missing": len(plan.missing[fingerprint]),
            "bytes": plan.sizes[fingerprint],
        }
    for name, size in plan.pending.items():
        features[name] = {"rows": rows, "missing": rows, "bytes": size}

    weights = {}
    for name, source in preparation.to_fetch.items():
        weights[name] = {"download": source.download, "convert": source.pickle}
    return {
        "features": features,
        "weights": weights,
        "left_out": {name: str(fault) for name, fault in plan.unavailable.items()},
        "bytes": plan.bytes,
        "free": plan.free,
        "seconds": seconds,
        "corpus": plan.manifest.corpus,
        "refused": [str(problem) for problem in plan.scan.refused],
    }


def _plan_text(plan: "ExtractionPlan") -> str:
    """What will be computed, a line for each feature."""
    from ser.extract.corpora.alike import problem_lines
    from ser.extract.resolve import PackageMissing

    rows = len(plan.manifest)
    lines = [f"{plan.manifest.corpus}: {plural(rows, 'utterance')} → {plan.config.store}"]

    for feature in plan.features:
        spec = feature.spec
        fingerprint = spec.fingerprint
        missing = len(plan.missing[fingerprint])
        random = " (random weights)" if spec.random_weights else ""
        lines.append(
            f"  {spec.name}@{fingerprint}{random}: {missing} to compute, {rows - missing} there, "
            f"about {size_text(plan.sizes[fingerprint])}"
        )
    if _is_first_use(plan, "smile"):
        lines.append(
            "  openSMILE and its features are for research and non-commercial use; see README, "
            "Licences"
        )
    for name, size in plan.pending.items():
        lines.append(f"  {name}: {rows} to compute once its weights are here, {size_text(size)}")
    for name, fault in plan.unavailable.items():
        if isinstance(fault, PackageMissing):
            lines.append(f"  {name}: left out: {fault}")
        else:
            lines.append(f"  {name}: left out, its weights are not here: {fault}")
    for problem in problem_lines(plan.scan.refused):
        lines.append(f"  not in the corpus as read: {problem}")

    lines.append(f"  {size_text(plan.bytes)} in all, {plan.free / 1e9:.1f} GB free")
    return "\n".join(lines)


def _is_first_use(plan: "ExtractionPlan", extractor: str) -> bool:
    """Whether the store has no row of a feature of that extractor yet."""
    of_extractor = [feature for feature in plan.features if feature.spec.extractor == extractor]
    rows = len(plan.manifest)
    return bool(of_extractor) and all(
        len(plan.missing[feature.spec.fingerprint]) == rows for feature in of_extractor
    )


def _estimate_text(seconds: float | None) -> str:
    """The estimate, in two digits: it is no more precise."""
    if seconds is None:
        return ""
    return f"; about {duration(float(f'{seconds:.2g}'))}, going by a few utterances"


def _notes(summary: "Summary", plan: "ExtractionPlan") -> list[str]:
    """What is printed below the table.

    With --json on standard error, so that nothing is left out in silence.
    """
    from ser.extract.corpora.alike import problem_lines

    lines = [f"warning: {text}" for text in summary.warnings]
    lines += [f"left out of the corpus: {line}" for line in problem_lines(plan.scan.refused)]
    lines += _quarantine_lines(summary)

    for name, value in summary.check.items():
        lines.append(f"check {name}: max |Δ| / max |ref| {value:.2e} against one by one")

    random = [name for name, counts in summary.features.items() if counts["random_weights"]]
    if random:
        lines.append(
            f"random weights ({', '.join(random)}): "
            "these features show that the pipeline works, no more"
        )
    lines.append(f"{summary.sentence}; store: {summary.store}")
    return lines


def _quarantine_lines(summary: "Summary") -> list[str]:
    """A line for each utterance and reason, with the features that quarantine it.

    Many of one kind share a line; `ser cache info` names each.
    """
    from ser.extract.corpora.alike import grouped, kind_of_reason

    features: dict[tuple[str, str], list[str]] = {}
    for name, reasons in summary.quarantined.items():
        for id_, reason in reasons.items():
            features.setdefault((id_, reason), []).append(name)

    by_features: dict[str, list[tuple[str, str]]] = {}
    for (id_, reason), names in features.items():
        sentence = (kind_of_reason(reason, id_), f"{id_}: {reason}")
        by_features.setdefault(", ".join(names), []).append(sentence)

    lines = []
    for joined, sentences in by_features.items():
        shown = grouped(sentences)
        lines += [f"quarantined in {joined}: {line}" for line in shown]
        if len(shown) < len(sentences):
            name = joined.split(", ")[0]
            command = shlex.join(["ser", "cache", "info", name, "--store", summary.store])
            lines.append(f"each of the {len(sentences):,} is named by `{command}`")
    return lines
