"""An ensemble as a run folder of its own: its members stay where they are.

    runs = make_ensemble(["runs"], by="mean", out="ensembles")

Its config.json names the members' cells and seeds (`members`), and so does the folder's name, with
fold and cut; result.json says each member's folder, what its predictions were, and its weight.
"""

import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs
from safetensors.torch import save

from ser.disk.paths import real_path
from ser.errors import DISTRIBUTION, StoreError, WrongUse, unknown

from ..data.utterances import DIMENSIONS
from ..records import (
    ENSEMBLE,
    Calibration,
    EnsembleRecord,
    MemberRecord,
    Provenance,
    RunConfig,
    RunResult,
    Scores,
)
from ..run_folder import (
    CONFIG,
    DEV,
    MODEL,
    PREDICTIONS,
    RESULT,
    Run,
    RunFiles,
    claimed,
    find_runs,
    run_name,
)
from ..scores.calibration import choose_temperature, ece, reliability, tempered
from ..scores.classes import scores
from ..scores.raters import divergences
from ..scores.ratings import dimension_scores
from .combination import WAYS, Combination
from .members import (
    PartPredictions,
    check_members,
    dev_of_all,
    groups_of_folds,
    member_label,
    needed_dev,
    read_part,
)
from .stacking import fit_stack
from .weights import weights_of_classes, weights_of_ratings

# Raised when the same members give other numbers.
VERSION = 1
# Of the members' selections the one that lifts scores the most counts: the first.
SELECTIONS = ("best-test", "val", "last")

# Probabilities [n, K] and ratings [n, D] of one part.
Predicted = tuple[np.ndarray, np.ndarray]


def make_ensemble(
    paths: Sequence[Path | str], by: str, out: Path | str, weights: str | None = None
) -> list[Run]:
    """Write the ensemble of these runs, or of those in these folders, under `out`: one a fold.

    `by` is one of `WAYS`; `weights` "dev" weighs a mean by what predicts the dev part best. An
    ensemble that is there already is returned as it is. Raises `WrongUse` and `LeakageError`,
    naming the run, for one that cannot join: see `members`; `StoreError` where an ensemble of the
    same name has been made of other predictions.
    """
    _check_way(by, weights)
    runs = find_runs(*paths)
    out = Path(out)
    if not out.exists():
        out.mkdir(parents=True)
    return [_make(group, by, weights, out) for group in groups_of_folds(runs)]


def _check_way(by: str, weights: str | None) -> None:
    if by not in WAYS:
        raise unknown("value of --by", by, WAYS)
    if weights is not None and weights != "dev":
        raise unknown("value of --weights", weights, ["dev"])
    if weights is not None and by != "mean":
        raise WrongUse(f"--weights dev is for --by mean, and {by} has none; leave it out")


def _make(runs: Sequence[Run], by: str, weights: str | None, out: Path) -> Run:
    started = time.perf_counter()
    check_members(runs)
    config = _config(runs, by, weights)
    with claimed(out / run_name(config)) as ensemble:
        if ensemble.finished:
            _check_same_members(ensemble.checked(), runs)
            return ensemble

        test = read_part(runs)
        fitted = _fit(runs, by, weights)
        on_test = _combined(fitted.combination, test)

        files = _write_files(ensemble, runs, config, fitted, (test, on_test))
        scored = _score(runs[0], test, on_test)
        calibration = None
        if fitted.dev is not None:
            calibration = _calibrate(runs[0], (fitted.dev, fitted.on_dev), (test, on_test))
        result = _result(runs, config, fitted.combination, scored, calibration, files)
        seconds = round(time.perf_counter() - started, 3)
        ensemble.write_json(RESULT, structs.replace(result, seconds=seconds))
        return ensemble


@dataclass(frozen=True)
class FittedEnsemble:
    """How the members' predictions become one, and what that is fitted on or calibrated by."""

    combination: Combination
    dev: PartPredictions | None
    """The dev part that all members have, if they have one."""
    on_dev: Predicted
    """What the ensemble predicts of it."""


def _fit(runs: Sequence[Run], by: str, weights: str | None) -> FittedEnsemble:
    """Fit what the way needs. Raises `WrongUse` where there is nothing to fit it on."""
    has_classes = bool(runs[0].result.classes)
    if by in ("stack", "majority") and not has_classes:
        raise WrongUse(f"--by {by} is for classes, and {runs[0].path} learnt none; use --by mean")

    if by == "stack":
        dev = needed_dev(runs, "a stack")
        stack, held_out = fit_stack(dev.probabilities, dev.truth, dev.speakers)
        stacked = Combination(by, stack=stack)
        # Of each utterance what a stack says that was not fitted on its speaker.
        return FittedEnsemble(stacked, dev, (held_out, stacked.ratings(dev.ratings)))

    if weights is not None:
        dev = needed_dev(runs, "a weight")
        weighted = Combination(by, weights=_fit_weights(dev))
        return FittedEnsemble(weighted, dev, _combined(weighted, dev))

    combination = Combination(by)
    any_dev = dev_of_all(runs)
    if any_dev is None:
        return FittedEnsemble(combination, None, (np.empty((0, 0)), np.empty((0, 0))))
    return FittedEnsemble(combination, any_dev, _combined(combination, any_dev))


def _fit_weights(dev: PartPredictions) -> np.ndarray:
    classes = dev.probabilities.shape[2]
    if not classes:
        return weights_of_ratings(dev.ratings, dev.true_ratings)
    shares = np.eye(classes)[dev.truth] if dev.votes is None else dev.votes
    return weights_of_classes(dev.probabilities, shares)


def _write_files(
    ensemble: Run,
    runs: Sequence[Run],
    config: RunConfig,
    fitted: FittedEnsemble,
    on_test: tuple[PartPredictions, Predicted],
) -> RunFiles:
    """Write all files of the ensemble but its result. Returns what the result says of them."""
    files = ensemble.write_json(CONFIG, config)
    files |= ensemble.write_predictions(_columns(runs[0], *on_test))
    if fitted.dev is not None:
        files |= ensemble.write_predictions(_columns(runs[0], fitted.dev, fitted.on_dev), DEV)

    stack = fitted.combination.stack
    if stack is not None:
        tensors = {}
        for name, values in stack.tensors().items():
            tensors[name] = torch.from_numpy(np.ascontiguousarray(values))
        files |= ensemble.write_tensors(MODEL, save(tensors))
    return files


def _combined(combination: Combination, part: PartPredictions) -> Predicted:
    probabilities = part.probabilities[0]
    if probabilities.shape[1]:
        probabilities = combination.probabilities(part.probabilities)
    return probabilities, combination.ratings(part.ratings)


def _config(runs: Sequence[Run], by: str, weights: str | None) -> RunConfig:
    """What config.json holds: of what the members have in common, theirs."""
    first = runs[0].config
    configs = [run.config for run in runs]
    settings: dict[str, Any] = {"runs": len(runs)}
    if weights is not None:
        settings["weights"] = weights

    training = {}
    for name, value in first.training.items():
        if all(config.training.get(name) == value for config in configs):
            training[name] = value

    cuts = list(dict.fromkeys(config.cut for config in configs))
    cut = cuts[0]
    if len(cuts) > 1:
        cut = hashlib.sha256("+".join(cuts).encode()).hexdigest()
    selections = [config.select for config in configs]
    random_weights: set[str] = set()
    for config in configs:
        random_weights.update(config.provenance.random_weights)

    config = RunConfig(
        version=VERSION,
        corpus=first.corpus,
        manifest=first.manifest,
        labels=first.labels,
        features={},
        views=[],
        limit=first.limit,
        only=first.only,
        fusion=f"{ENSEMBLE}{by}",
        settings=settings,
        training=training,
        loss="single",
        protocol=_joined([config.protocol for config in configs]),
        fold=first.fold,
        cut=cut,
        select=next(name for name in SELECTIONS if name in selections),
        seed=0,
        precision="float32",
        dims={},
        members=[member_label(config) for config in configs],
        provenance=Provenance(
            synthetic=any(config.provenance.synthetic for config in configs),
            random_weights=sorted(random_weights),
            specs={},
            left_out=first.provenance.left_out,
            store=first.provenance.store,
            corpora=first.provenance.corpora,
            asked={"members": [str(real_path(run.path)) for run in runs], "by": by},
            device="cpu",
            versions={
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "ser": installed_version(DISTRIBUTION),
            },
        ),
    )
    return with_target(config, first.target)


def with_target(config: RunConfig, target: str) -> RunConfig:
    """The config with that target, which is left out of the file where it is the default."""
    if target == config.target:
        return config
    return structs.replace(config, target=target)


def _joined(values: Sequence[str]) -> str:
    return " + ".join(dict.fromkeys(values))


def _columns(run: Run, part: PartPredictions, predicted: Predicted) -> dict[str, Any]:
    """The columns of predictions.parquet, as those of any run."""
    classes = run.result.classes
    probabilities, ratings = predicted
    columns: dict[str, Any] = {
        "id": part.ids,
        "speaker": part.speakers,
        "dialogue": part.dialogues,
    }
    if classes:
        columns["truth"] = [classes[number] for number in part.truth]
        columns["predicted"] = [classes[number] for number in probabilities.argmax(1)]
        columns["probabilities"] = list(probabilities)
    if part.votes is not None:
        columns["votes"] = list(part.votes)
    for d in range(ratings.shape[1]):
        columns[f"truth {DIMENSIONS[d]}"] = part.true_ratings[:, d]
        columns[f"predicted {DIMENSIONS[d]}"] = ratings[:, d]
    return columns


def _score(run: Run, part: PartPredictions, predicted: Predicted) -> Scores:
    probabilities, ratings = predicted
    values: dict[str, Any] = {}
    if run.result.classes:
        classes = tuple(run.result.classes)
        values.update(scores(part.truth.tolist(), probabilities.argmax(1).tolist(), classes))
    if part.votes is not None:
        for name, by_utterance in divergences(part.votes, probabilities).items():
            values[name] = float(by_utterance.mean())
    if ratings.shape[1]:
        values.update(dimension_scores(part.true_ratings, ratings))
    return Scores(**values)


def _calibrate(
    run: Run,
    on_dev: tuple[PartPredictions, Predicted],
    on_test: tuple[PartPredictions, Predicted],
) -> Calibration | None:
    """As `Target.calibrate`."""
    if not run.result.classes:
        return None
    dev, (dev_probabilities, _) = on_dev
    test, (test_probabilities, _) = on_test
    fitted = choose_temperature(dev.truth, dev_probabilities)
    after = tempered(test_probabilities, fitted.temperature)
    return Calibration(
        temperature=fitted.temperature,
        n_dev=len(dev.ids),
        ece=ece(reliability(test.truth, test_probabilities)),
        ece_tempered=ece(reliability(test.truth, after)),
        unfitted=fitted.fault,
    )


def _result(
    runs: Sequence[Run],
    config: RunConfig,
    combination: Combination,
    scored: Scores,
    calibration: Calibration | None,
    files: RunFiles,
) -> RunResult:
    """What result.json holds: the scores, and of what a member knew before the most of any."""
    results = [run.result for run in runs]
    first = results[0]
    heard = _heard_speakers(results)
    alike: dict[str, str] = {}
    for result in results:
        alike.update(result.alike_speakers)

    members = []
    for number, run in enumerate(runs):
        weight = None if combination.weights is None else float(combination.weights[number])
        members.append(
            MemberRecord(
                run=run.name,
                path=str(real_path(run.path)),
                weight=weight,
                predictions=run.result.files[PREDICTIONS].sha256,
            )
        )
    strength = None if combination.stack is None else combination.stack.strength

    return RunResult(
        **structs.asdict(scored),
        corpus=config.corpus,
        fusion=config.fusion,
        loss=config.loss,
        protocol=config.protocol,
        select=config.select,
        fold=config.fold,
        seed=config.seed,
        labels=config.labels.policy,
        classes=first.classes,
        tests={"both": scored},
        raters=first.raters,
        calibration=calibration,
        speakers=heard,
        speaker_independent=heard is not None and not any(heard.values()),
        repeated_texts=_most([result.repeated_texts for result in results]),
        repeated_audio=_most([result.repeated_audio for result in results]),
        alike_speakers=alike,
        synthetic=config.provenance.synthetic,
        random_weights=config.provenance.random_weights,
        parts=first.parts,
        dev=_joined([result.dev for result in results]),
        refit=any(result.refit for result in results),
        left_out=first.left_out,
        epoch=0,
        seconds=0.0,
        history=[],
        files=files,
        corpora=first.corpora,
        standardise_by=first.standardise_by,
        ensemble=EnsembleRecord(members=members, strength=strength),
    )


def _heard_speakers(results: Sequence[RunResult]) -> dict[str, bool] | None:
    """Whether any member has heard each test speaker; None where that is not known of one."""
    heard: dict[str, bool] = {}
    for result in results:
        if result.speakers is None:
            return None
        for name, is_heard in result.speakers.items():
            heard[name] = heard.get(name, False) or is_heard
    return heard


def _most(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _check_same_members(ensemble: Run, runs: Sequence[Run]) -> None:
    """Raise `StoreError` if a finished ensemble was made of other predictions than now."""
    record = ensemble.result.ensemble
    known = {}
    if record is not None:
        known = {member.run: member.predictions for member in record.members}
    for run in runs:
        if known.get(run.name) != run.result.files[PREDICTIONS].sha256:
            raise StoreError(
                f"{ensemble.path}: was made of other predictions than {run.path} has now; remove "
                "it and run the same command again"
            )
