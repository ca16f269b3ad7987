"""Run folders as a person looks at them: listed, filtered and compared."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from ser.disk.folders import extent
from ser.errors import WrongUse, unknown

from .records import RunConfig, to_json
from .run_folder import Run, find_runs
from .scores.measures import SHOWN

# What tells a run from others in a list.
LISTED_OPTIONS = ("features", "fusion", "corpus", "labels", "protocol", "fold", "seed")


def run_options(config: RunConfig, defaults: bool = True) -> dict[str, Any]:
    """The options and settings of a run in one table.

    With `defaults` also the settings that its config leaves out, as they are at their default; that
    imports torch.
    """
    options: dict[str, Any] = {"target": config.target}
    for name, value in to_json(config).items():
        if name != "cut" and not isinstance(value, dict | list):
            options[name] = value

    features = []
    for feature in config.features.values():
        features.append(f"{feature.feature}@{feature.fingerprint[:4]}")

    options["labels"] = config.labels.policy
    options["features"] = "+".join(features)
    options["store"] = config.provenance.store
    options["code"] = (config.code or "none")[:8]
    if defaults:
        options.update(_default_settings(config.fusion))
    return {**options, **config.settings, **config.training}


def _default_settings(fusion: str) -> dict[str, Any]:
    """The defaults of the fusion's and of training's settings; of an unknown fusion, training's."""
    from .models import FUSIONS
    from .settings import TrainingSettings

    settings: dict[str, Any] = {}
    if fusion in FUSIONS:
        settings.update(asdict(FUSIONS[fusion].settings()))
    settings.update(asdict(TrainingSettings()))
    return settings


def select_runs(folders: Sequence[Path], conditions: Sequence[str] = ()) -> list[Run]:
    """The runs in these folders, or folders of them, for which every condition "key=value" holds.

    Keys are those of `run_options`. Of `features`, each one named is among a run's. Raises
    `WrongUse` for a condition of another form, or a key that no run has.
    """
    runs = find_runs(*folders)
    if not conditions:
        return runs

    options = {run.name: run_options(run.config) for run in runs}
    known: set[str] = set()
    for options_of_run in options.values():
        known.update(options_of_run)

    for condition in conditions:
        key, value = _parse_condition(condition)
        if key not in known:
            raise unknown("key of --where", key, known)
        runs = [run for run in runs if _holds(options[run.name], key, value)]
    return runs


def _parse_condition(condition: str) -> tuple[str, str]:
    key, equals, value = condition.partition("=")
    if not equals:
        raise WrongUse(f"--where {condition}: must be key=value, such as fusion=mit")
    return key.strip(), value.strip()


def _holds(options: Mapping[str, Any], key: str, value: str) -> bool:
    """Whether a run has this value, as a person writes it: "1e-3" is 0.001, and case is ignored."""
    option = options.get(key)
    if key == "features":
        names = set(str(option).split("+"))
        without_fingerprints = {name.partition("@")[0] for name in names}
        return set(value.split("+")) <= names | without_fingerprints

    if isinstance(option, float | int):
        with contextlib.suppress(ValueError):
            return option == float(value)
    return str(option).casefold() == value.casefold()


def run_facts(run: Run) -> dict[str, Any]:
    """One line of a list: the run, what tells it from others, its scores, date, bytes and store.

    WA, UA and macro-F1 are in percent; `ccc` is the mean over valence, arousal and dominance. A
    score is None where the run is not finished or has no such score.
    """
    options = run_options(run.config, defaults=False)
    size, changed = extent(run.path)
    return {
        "run": os.path.relpath(run.path),
        **{name: options.get(name) for name in LISTED_OPTIONS},
        **_scores(run),
        "finished": run.finished,
        "date": datetime.fromtimestamp(changed, UTC).isoformat(timespec="minutes"),
        "bytes": size,
        "store": options["store"],
    }


def _scores(run: Run) -> dict[str, float | None]:
    scores: dict[str, float | None] = dict.fromkeys([*SHOWN.values(), "ccc"])
    if not run.finished:
        return scores

    for metric in SHOWN.values():
        score = run.result.score(metric)
        if score is not None:
            scores[metric] = 100 * score
    if run.result.ccc is not None:
        scores["ccc"] = fmean(run.result.ccc.values())
    return scores


def option_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The options in which the runs differ: by key a value for each run, None where it has none."""
    options = [run_options(run.config) for run in runs]
    # In the order in which they first come.
    keys: dict[str, None] = {}
    for options_of_run in options:
        keys.update(dict.fromkeys(options_of_run))

    different = {}
    for key in keys:
        values = [options_of_run.get(key) for options_of_run in options]
        if any(value != values[0] for value in values):
            different[key] = values
    return different
