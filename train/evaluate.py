"""A trained model is tested, and its run's files are written."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import structs
from torch import Tensor

from .checkpoint import snapshot
from .data.feature_range import FeatureRange
from .data.leakage import known_before
from .data.protocols import UNDECIDED
from .fit import NO_NUMBERS, Fitted
from .job import Job
from .model_file import write_model
from .models.encoder_front import state_of
from .models.layer_sums import layer_shares
from .records import (
    Calibration,
    CorpusRecord,
    RaterScores,
    RunResult,
    Scores,
    SplitCorpus,
    UndecidedScores,
)
from .run_folder import CONFIG, DEV, RESULT, STATE, Run, RunFiles
from .scores.raters import divergences, multilabel_macro_f1
from .selection import count_tied
from .targets import TARGETS

Predictions = Mapping[str, np.ndarray]  # by the way of testing, `[n, …]` each


def predict_all_ways(model: Fitted, job: Job) -> dict[str, np.ndarray]:
    """The test part's predictions in every way that this fusion can be tested, `[n, …]` each.

    "both": as it is, whatever its inputs. "only audio", "only text": the other modality hidden,
    where the fusion can hide one (MSMSER §4.3). "head audio", "head text": its unimodal heads
    (Perspective, Table 3).
    """
    by_head = model.predict(job.data, job.fold.test, job.config)
    predictions = {"both": by_head.pop("logits")}

    if job.config.fusion.hide is not None:
        for shown, hidden in (("audio", "text"), ("text", "audio")):
            by_head_of_shown = model.predict(job.data, job.fold.test, job.config, hide=hidden)
            predictions[f"only {shown}"] = by_head_of_shown["logits"]

    for head, values in by_head.items():
        predictions[f"head {head}"] = values

    return predictions


def predict_dev(model: Fitted, job: Job) -> dict[str, np.ndarray]:
    """The dev part's predictions as "both"; none without a dev part, or after `refit`.

    How sure a model is of its own training utterances says nothing.
    """
    if job.config.training.refit or not len(job.fold.dev):
        return {}
    logits = frozenset({"logits"})
    return {"both": model.predict(job.data, job.fold.dev, job.config, heads=logits)["logits"]}


def score_undecided(model: Fitted, job: Job) -> UndecidedScores | None:
    """KL and JS of the test speakers' utterances without a majority; None if there are none."""
    rows = job.fold.left_out.get(f"{UNDECIDED} (test)", job.fold.test[:0])
    if not len(rows):
        return None

    predicted = model.predict(job.data, rows, job.config)["logits"]
    distances = divergences(job.data.utterances.votes[rows], predicted)
    return UndecidedScores(
        n=len(rows),
        kl=float(distances["kl"].mean()),
        js=float(distances["js"].mean()),
        multilabel_f1=multilabel_macro_f1(job.data.utterances.votes[rows], predicted),
    )


def finish(run: Run, job: Job, model: Fitted, seconds: float) -> str | None:
    """Test the model and write the run's files; `result.json` comes last.

    Returns the fault if predictions are NaN: then nothing is written.
    """
    on_test = predict_all_ways(model, job)
    on_dev = predict_dev(model, job)
    no_majority = score_undecided(model, job)
    for predicted in (*on_test.values(), *on_dev.values()):
        if not np.isfinite(predicted).all():
            return NO_NUMBERS

    weights = snapshot(state_of(model.model))
    files = write_files(run, job, model, weights, on_test, on_dev)
    result = make_result(job, model, weights, on_test, on_dev, no_majority, seconds, files)
    run.write_json(RESULT, result)
    (run.path / STATE).unlink(missing_ok=True)
    return None


def write_files(
    run: Run,
    job: Job,
    model: Fitted,
    weights: Mapping[str, Tensor],
    on_test: Predictions,
    on_dev: Predictions,
) -> RunFiles:
    """Write all files of the run but its result. Returns what the result says of them."""
    target = TARGETS[job.config.target]
    utterances = job.data.utterances

    files = run.write_json(CONFIG, job.record)
    files |= write_model(run, weights, model.scaling, find_ranges(job))
    files |= run.write_predictions(target.columns(utterances, job.fold.test, on_test, job.config))
    if on_dev:
        columns = target.columns(utterances, job.fold.dev, on_dev, job.config)
        files |= run.write_predictions(columns, DEV)
    return files


def find_ranges(job: Job) -> dict[str, FeatureRange]:
    """Where the audio features of the training part lie, as `ser predict` compares new ones."""
    audio = job.data.inputs.get("audio")
    if audio is None or not len(job.fold.train):
        return {}
    return {"audio": FeatureRange.of(audio, job.fold.train)}


def make_result(
    job: Job,
    model: Fitted,
    weights: Mapping[str, Tensor],
    on_test: Predictions,
    on_dev: Predictions,
    no_majority: UndecidedScores | None,
    seconds: float,
    files: RunFiles,
) -> RunResult:
    """What result.json holds."""
    data = job.data
    fold = job.fold
    record = job.record
    refit = job.config.training.refit
    tests = {way: score_test(job, predicted) for way, predicted in on_test.items()}
    corpora = split_corpora(job)
    has_sums = any(feature.sums is not None for feature in record.features.values())

    left_out = dict(data.origin.left_out)
    for reason, rows in fold.left_out.items():
        left_out[reason] = len(rows)

    return RunResult(
        **structs.asdict(tests["both"]),
        corpus=record.corpus,
        fusion=record.fusion,
        loss=record.loss,
        protocol=record.protocol,
        select=record.select,
        fold=record.fold,
        seed=record.seed,
        labels=record.labels.policy,
        classes=list(data.utterances.classes),
        tests=tests,
        raters=score_raters(job),
        no_majority=no_majority,
        calibration=calibrate(job, on_dev, on_test),
        **known_before(fold.refitted if refit else fold, data.utterances),
        synthetic=record.provenance.synthetic,
        random_weights=record.provenance.random_weights,
        parts={part: len(rows) for part, rows in fold.parts.items()},
        dev=fold.dev_by,
        refit=refit,
        left_out=left_out,
        epoch=model.epoch,
        tied=count_tied(model.history, record.select, job.config.training.select_score),
        seconds=round(seconds, 3),
        history=model.history,
        layers=layer_shares(weights, record.features) if has_sums else None,
        files=files,
        corpora=corpora,
        standardise_by=job.config.training.standardise_by if corpora else None,
    )


def score_test(job: Job, predicted: np.ndarray) -> Scores:
    """All scores of one way of testing."""
    target = TARGETS[job.config.target]
    return target.score(job.data.utterances, job.fold.test, predicted, job.config)


def score_raters(job: Job) -> RaterScores | None:
    """What the raters of the test part score themselves; None without votes."""
    scores = job.data.raters(job.fold.test)
    if scores is None:
        return None
    return RaterScores(**scores)


def calibrate(job: Job, on_dev: Predictions, on_test: Predictions) -> Calibration | None:
    """The temperature that is fitted on dev; None without a dev part or without classes."""
    if not on_dev:
        return None
    target = TARGETS[job.config.target]
    dev = (job.fold.dev, on_dev["both"])
    test = (job.fold.test, on_test["both"])
    return target.calibrate(job.data.utterances, dev, test)


def split_corpora(job: Job) -> dict[str, SplitCorpus] | None:
    """Of several corpora, how many utterances of each stand in each part; None of one alone."""
    corpora: Mapping[str, CorpusRecord] | None = job.record.provenance.corpora
    if corpora is None:
        return None

    names = np.array(job.data.utterances.corpora)
    split = {}
    for name, corpus in corpora.items():
        sizes: dict[str, Any] = {}
        for part, rows in job.fold.parts.items():
            sizes[part] = int(np.sum(names[rows] == name))
        split[name] = SplitCorpus(synthetic=corpus.synthetic, classes=corpus.classes, **sizes)
    return split
