"""Run folders as a person keeps them: listed, filtered, compared, removed."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from ser.disk.faults import explain_disk_errors
from ser.disk.folders import extent, remove_folder
from ser.disk.locks import open_lock
from ser.errors import WrongUse, unknown

from .records import RunConfig, to_json
from .run_folder import CONFIG, SHARED, Run, find_runs
from .scores.measures import SHOWN


def options_of(config: RunConfig, defaults: bool = True) -> dict[str, Any]:
    """The options and settings of a run in one table.

    With `defaults` also the settings that its config leaves out, as they are at their default; that
    imports torch.
    """
    features = [
        f"{feature.feature}@{feature.fingerprint[:4]}" for feature in config.features.values()
    ]
    options: dict[str, Any] = {"target": config.target}
    for key, value in to_json(config).items():
        if key != "cut" and not isinstance(value, dict | list):
            options[key] = value

    options["labels"] = config.labels.policy
    options["features"] = "+".join(features)
    options["store"] = config.provenance.store
    options["code"] = (config.code or "none")[:8]

    if defaults:
        from .models import FUSIONS
        from .settings import TrainingSettings

        known = [FUSIONS[config.fusion].settings] if config.fusion in FUSIONS else []
        for kind in [*known, TrainingSettings]:
            options |= asdict(kind())
    return {**options, **config.settings, **config.training}


def select(folders: Sequence[Path], conditions: Sequence[str] = ()) -> list[Run]:
    """The runs in these folders, or folders of them, for which every `key=value` holds: keys as of
    `options_of`.

    Of `features`, each one named is among them. Raises `WrongUse` for a condition of another form,
    or a key that no run has.
    """
    runs = find_runs(*folders)
    options = {run.name: options_of(run.config) for run in runs} if conditions else {}
    known = {key for each in options.values() for key in each}
    for condition in conditions:
        key, equals, value = (piece.strip() for piece in condition.partition("="))
        if not equals:
            raise WrongUse(f"--where {condition}: must be key=value, such as fusion=mit")
        if key not in known:
            raise unknown("key of --where", key, known)
        runs = [run for run in runs if _holds(options[run.name].get(key), key, value)]
    return runs


def _holds(option: Any, key: str, value: str) -> bool:
    if key == "features":
        names = str(option).split("+")
        return {*value.split("+")} <= {*names, *(name.partition("@")[0] for name in names)}
    if isinstance(option, float | int):
        with contextlib.suppress(ValueError):
            return option == float(value)
    return str(option).casefold() == value.casefold()


def facts(run: Run) -> dict[str, Any]:
    """One line of a list: the run, what tells it from others, its scores, date, bytes and store.

    WA, UA and macro-F1 are in percent; `ccc` is the mean over valence, arousal and dominance.
    """
    options = options_of(run.config, defaults=False)
    shown = {
        key: options.get(key)
        for key in ("features", "fusion", "corpus", "labels", "protocol", "fold", "seed")
    }
    size, changed = extent(run.path)

    scores: dict[str, float | None] = dict.fromkeys([*SHOWN.values(), "ccc"])
    if run.finished:
        for metric in SHOWN.values():
            score = run.result.score(metric)
            scores[metric] = None if score is None else 100 * score
        if run.result.ccc is not None:
            scores["ccc"] = fmean(run.result.ccc.values())

    return {
        "run": os.path.relpath(run.path),
        **shown,
        **scores,
        "finished": run.finished,
        "date": datetime.fromtimestamp(changed, UTC).isoformat(timespec="minutes"),
        "bytes": size,
        "store": options["store"],
    }


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The options in which the runs differ, by key, a value for each run; None where a run has no
    such key.
    """
    options = [options_of(run.config) for run in runs]
    keys = dict.fromkeys(key for each in options for key in each)
    table = {key: [each.get(key) for each in options] for key in keys}
    return {
        key: values for key, values in table.items() if any(value != values[0] for value in values)
    }


def unfinished(runs: Sequence[Run], days: float) -> Iterator[Run]:
    """The runs without a result that no process trains now and in which nothing has changed for so
    many days.
    """
    for run in runs:
        if (
            not run.finished
            and time.time() - extent(run.path)[1] > days * 86_400
            and not in_use(run)
        ):
            yield run


def in_use(run: Run, lock: contextlib.ExitStack | None = None) -> bool:
    """Whether a process of this machine trains it now; if not, none starts to before `lock` is
    closed.

    Without a lock file, as in a copy, there is nothing to hold.
    """
    with contextlib.ExitStack() as own, contextlib.suppress(FileNotFoundError):
        _, held = (lock or own).enter_context(open_lock(run.path / "lock"))
        return held is False
    return False


def remove(run: Run) -> int:
    """Remove a run's folder in one step: it is moved aside first. Returns its bytes.

    Raises `WrongUse` for one that is being trained or removed, `StoreError` if the disk refuses.
    """
    (freed, _), runs = extent(run.path), run.path.parent
    with explain_disk_errors(f"removing {run.path}", runs), contextlib.ExitStack() as lock:
        if in_use(run, lock):
            raise WrongUse(f"{run.path}: is being trained or removed; stop that process first")
        remove_folder(run.path, runs / SHARED, lock.close)
    return freed


def check(path: Path) -> Run:
    """The run in a folder that is to be removed. Raises `WrongUse` for any other folder, and for a
    link to one.
    """
    if path.is_symlink() or not (path / CONFIG).is_file():
        raise WrongUse(
            f"{path}: is not a run folder (no {CONFIG}, or a link); name the folders that `ser runs` lists"
        )
    return Run(path.resolve())
