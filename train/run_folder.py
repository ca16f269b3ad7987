"""Run folders: one finished training each, named by the hash of its complete config, readable without us.

<out>/<16 hex digits>/config.json          all that the name hashes, and `provenance`, which it does not
                      result.json          scores; there only when the run is finished
                      predictions.parquet  id, speaker, truth, predicted, probabilities (one per class)
                      model.safetensors    model.<weight>, scaling.<modality>.<mean|std>
                      state.safetensors    where an unfinished run stands
                      log                  one line per epoch
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from ser.cache.atomic_io import locked, make_folder, remove_leftovers, sync_folder, write_file
from ser.cache.spec import canonical_json
from ser.errors import CorruptStore, WrongUse

CONFIG, RESULT, MODEL, STATE, LOG = "config.json", "result.json", "model.safetensors", "state.safetensors", "log"
PREDICTIONS = "predictions.parquet"
SHARED = ".tmp"  # in the folder of the runs: what the processes of a sweep share of the data
NEEDED = ("seed", "fold", "classes", "tests")  # of a result, whatever wrote it


def run_name(config: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the sha256 of the config's canonical JSON, provenance left out."""
    hashed = {key: value for key, value in config.items() if key != "provenance"}
    return hashlib.sha256(canonical_json(hashed)).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not. What is read of it raises `CorruptStore` if the file is damaged."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything that the run was asked for."""
        return self._json(CONFIG)

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / RESULT).exists()

    @cached_property
    def result(self) -> dict[str, Any]:
        """The scores. Raises `WrongUse` if the run is not finished."""
        if not self.finished:
            raise WrongUse(f"{self.path}: this run is not finished; `ser train --resume {self.path}` continues it")
        found = self._json(RESULT)
        if not isinstance(found, dict) or not found.keys() >= set(NEEDED):
            lacking = f"lacks one of {', '.join(NEEDED)}"
            raise CorruptStore(f"{self.path / RESULT}: {lacking}; remove the file and train again")
        return found

    def predictions(self) -> pa.Table:
        """Predictions on the test part, one row per utterance."""
        with self._reading(PREDICTIONS) as path:
            return pq.read_table(path)

    def tensors(self, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The torch tensors of one of its safetensors files, and the file's metadata."""
        with self._reading(name) as path, safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118

    def _json(self, name: str) -> Any:
        with self._reading(name) as path:
            return json.loads(path.read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        path = self.path / name
        try:
            yield path
        except (OSError, ValueError, SafetensorError) as error:  # of JSON, UTF-8 and Arrow: ValueError
            raise CorruptStore(f"{path}: cannot be read ({error}); remove the run folder and train again") from None


def open_run(path: Path | str) -> Run:
    """The run in that folder. Raises `WrongUse` if it is none."""
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise WrongUse(f"{path}: is not a run folder (no {CONFIG}); `ser train` writes them under runs/")
    return Run(path)


def find_runs(*paths: Path | str) -> list[Run]:
    """All runs in the given folders, finished or not, each once. Raises `WrongUse` where there is none."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        here = [path] if (path / CONFIG).is_file() else sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
        if not here:
            raise WrongUse(f"{path}: holds no runs; `ser train --out {path}` writes them")
        found |= dict.fromkeys(folder.resolve() for folder in here)
    return [Run(folder) for folder in found]


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Run]:
    """The run folder, made if needed, with nobody else at work in it: a second process waits for the first.

    On a finished run nobody works any more: it takes neither a lock nor the right to write.
    """
    if Run(path).finished:
        yield Run(path)
        return
    make_folder(path)
    with locked(path / "lock", "waits for the process that trains this run"):
        remove_leftovers(path.parent / SHARED)
        for part in path.glob(".*.part"):  # of a process that was killed
            part.unlink()
        yield Run(path)


def write(run: Run, name: str, content: bytes) -> None:
    """Write one file of a run that this process has claimed, whole or not at all."""
    part = run.path / f".{name}.part"
    part.unlink(missing_ok=True)  # of a write that failed
    write_file(part, [content])
    part.replace(run.path / name)
    sync_folder(run.path)


def write_json(run: Run, name: str, value: Mapping[str, Any]) -> None:
    """Write one JSON file of a run, for people to read too."""
    write(run, name, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_predictions(run: Run, columns: Mapping[str, Any]) -> None:
    """Write `predictions.parquet`."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink)
    write(run, PREDICTIONS, sink.getvalue().to_pybytes())
