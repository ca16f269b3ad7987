"""The run folders of an experiment as a person keeps them: listed, filtered, compared, removed."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from ser.cache.atomic_io import explain_disk_errors, extent, open_lock, remove_folder
from ser.errors import WrongUse, unknown

from .run_folder import CONFIG, SHARED, Run, find_runs
from .scores import SHOWN


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was asked for in one level: its options by name, and every setting by its own."""
    features = "+".join(f"{one['feature']}@{one['fingerprint'][:4]}" for one in config["features"].values())
    also = {"labels": config["labels"]["policy"], "features": features, "store": config["provenance"].get("store")}
    plain = {key: value for key, value in config.items() if key != "cut" and not isinstance(value, dict | list)}
    kept = {"target": "class", **plain, **also, "code": config.get("code", "none")[:8]}
    return {**kept, **config["settings"], **config["training"]}


def select(folders: Sequence[Path], conditions: Sequence[str] = ()) -> list[Run]:
    """The runs in these folders, or folders of them, for which every `key=value` holds: keys as of `flat`.

    Of `features`, each one named is among them. Raises `WrongUse` for a condition of another form, or a key that no
    run has.
    """
    kept = runs = find_runs(*folders)
    for condition in conditions:
        key, equals, value = (piece.strip() for piece in condition.partition("="))
        known = {name for run in runs for name in flat(run.config)}
        if not equals:
            raise WrongUse(f"--where {condition}: must be key=value, such as fusion=mit")
        if key not in known:
            raise unknown("key of --where", key, known)
        kept = [run for run in kept if _holds(flat(run.config).get(key), key, value)]
    return kept


def _holds(found: Any, key: str, value: str) -> bool:
    if key == "features":
        names = {form for one in str(found).split("+") for form in (one, one.partition("@")[0])}
        return {*value.split("+")} <= names
    if isinstance(found, float | int):
        with contextlib.suppress(ValueError):
            return found == float(value)
    return str(found).casefold() == value.casefold()


def facts(run: Run) -> dict[str, Any]:
    """One line of a list: the run, what tells it from others, its scores, date, bytes and store.

    WA, UA and macro-F1 are in percent; `ccc` is the mean over valence, arousal and dominance.
    """
    asked = flat(run.config)
    shown = {key: asked.get(key) for key in ("features", "fusion", "corpus", "labels", "protocol", "fold", "seed")}
    result = run.result if run.finished else {}
    size, changed = extent(run.path)
    scores = {name: 100 * result[name] if name in result else None for name in SHOWN.values()}
    scores["ccc"] = fmean(result["ccc"].values()) if "ccc" in result else None
    return {
        "run": os.path.relpath(run.path),
        **shown,
        **scores,
        "finished": run.finished,
        "date": datetime.fromtimestamp(changed, UTC).isoformat(timespec="minutes"),
        "bytes": size,
        "store": asked["store"],
    }


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """What the runs were asked for differently, by key, a value for each run; None where a run has no such key."""
    asked = [flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for one in asked for key in one))
    table = {key: [one.get(key) for one in asked] for key in keys}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def unfinished(runs: Sequence[Run], days: float) -> Iterator[Run]:
    """The runs without a result that nobody trains now and in which nothing has changed for so many days."""
    for run in runs:
        if not run.finished and time.time() - extent(run.path)[1] > days * 86_400 and not in_use(run):
            yield run


def in_use(run: Run, lock: contextlib.ExitStack | None = None) -> bool:
    """Whether a process of this machine trains it just now; if not, none begins to before `lock` is closed.

    Without a lock file, as in a copy, there is nothing to hold.
    """
    with contextlib.ExitStack() as own, contextlib.suppress(FileNotFoundError):
        _, held = (lock or own).enter_context(open_lock(run.path / "lock"))
        return held is False
    return False


def remove(run: Run) -> int:
    """Remove a run's folder in one step: it is moved aside first. Returns its bytes.

    Raises `WrongUse` for one that is trained or removed just now, `StoreError` if the disk does not let it go.
    """
    (freed, _), runs = extent(run.path), run.path.parent
    with explain_disk_errors(f"removing {run.path}", runs), contextlib.ExitStack() as lock:
        if in_use(run, lock):
            raise WrongUse(f"{run.path}: is trained or removed just now; stop that process first")
        remove_folder(run.path, runs / SHARED, lock.close)
    return freed


def check(path: Path) -> Run:
    """The run in a folder that is to be removed. Raises `WrongUse` for any other folder, and for a link to one."""
    if path.is_symlink() or not (path / CONFIG).is_file():
        raise WrongUse(f"{path}: is not a run folder (no {CONFIG}, or a link); name the folders that `ser runs` lists")
    return Run(path.resolve())
