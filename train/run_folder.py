"""Run folders: one finished training each, named by the hash of its complete config, readable without us.

<out>/<16 hex digits>/config.json          all that the name hashes, and `provenance`, which it does not
                      result.json          scores; there only when the run is finished
                      predictions.parquet  id, speaker, truth, predicted, probabilities (one per class)
                      model.safetensors    model.<weight>, scaling.<modality>.<mean|std>
                      state.safetensors    where an unfinished run stands
                      log                  one line per epoch
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from ser.cache.atomic_io import make_folder, open_plain, read_small, sync_folder, write_file
from ser.cache.spec import canonical_json
from ser.errors import CorruptStore, StoreError, WrongUse

CONFIG, RESULT, MODEL, STATE, LOG = "config.json", "result.json", "model.safetensors", "state.safetensors", "log"
PREDICTIONS = "predictions.parquet"
AGAIN = "remove the run folder and train again"


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
        return self._json(CONFIG, ConfigRecord)

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / RESULT).exists()

    @cached_property
    def result(self) -> dict[str, Any]:
        """The scores. Raises `WrongUse` if the run is not finished."""
        if not self.finished:
            raise WrongUse(f"{self.path}: this run is not finished; `ser train --resume {self.path}` continues it")
        return self._json(RESULT, ResultRecord)

    def predictions(self) -> pa.Table:
        """Predictions on the test part, one row per utterance."""
        with self._reading(PREDICTIONS) as path:
            table = pq.read_table(pa.BufferReader(read_small(path, AGAIN)), use_threads=False)
            check_predictions(table, self.result["classes"])
            return table

    def tensors(self, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The torch tensors of one of its safetensors files, and the file's metadata."""
        with self._reading(name) as path:
            os.close(open_plain(path, AGAIN))
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118

    def _json(self, name: str, kind: type) -> Any:
        with self._reading(name) as path:
            found = msgspec.json.decode(read_small(path, AGAIN))
            msgspec.convert(found, kind)
            return found

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        path = self.path / name
        try:
            yield path
        except StoreError:
            raise
        except (OSError, ValueError, KeyError, RecursionError, msgspec.MsgspecError, SafetensorError, pa.ArrowException) as error:
            raise CorruptStore(f"{path}: cannot be read ({error}); {AGAIN}") from None


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
    """The run folder, made if needed, with nobody else at work in it: a second process waits for the first."""
    make_folder(path)
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Run(path)
    finally:
        os.close(lock)


def write(run: Run, name: str, content: bytes) -> None:
    """Write one file of a run that this process has claimed, whole or not at all."""
    part = run.path / f".{name}.part"
    part.unlink(missing_ok=True)  # of a process that was killed
    write_file(part, [content])
    part.replace(run.path / name)
    sync_folder(run.path)


def write_json(run: Run, name: str, value: Mapping[str, Any]) -> None:
    """Write one JSON file of a run, for people to read too."""
    write(run, name, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="replace"))


def write_predictions(run: Run, columns: Mapping[str, Any]) -> None:
    """Write `predictions.parquet`."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink)
    write(run, PREDICTIONS, sink.getvalue().to_pybytes())


# What is read of config.json and result.json, whatever wrote them.
Whole = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class FeatureRecord(msgspec.Struct):
    """A feature that a run was trained on."""

    feature: str
    fingerprint: str
    pool: str
    extra: str | None = None


class LabelsRecord(msgspec.Struct):
    """The label policy of a run."""

    policy: str
    classes: Annotated[list[str], msgspec.Meta(min_length=2)]
    maps: dict[str, str]


class ProvenanceRecord(msgspec.Struct):
    """Where a run came from."""

    store: str = ""
    asked: dict[str, Any] = {}
    specs: dict[str, dict[str, Any]] = {}
    encoders: dict[str, dict[str, Any]] = {}
    versions: dict[str, Any] = {}


class ConfigRecord(msgspec.Struct):
    """config.json. The settings are checked where their fusion is known."""

    version: int
    corpus: str
    manifest: str
    labels: LabelsRecord
    features: dict[Literal["audio", "text"], FeatureRecord]
    fusion: str
    settings: dict[str, str | int | float | bool | None]
    training: dict[str, str | int | float | bool | None]
    loss: str
    protocol: str
    fold: str
    cut: str
    select: Literal["val", "last", "best-test"]
    seed: Whole
    dims: dict[str, Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]]
    limit: int | None
    provenance: ProvenanceRecord
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Raise `ValueError` for what types cannot say."""
        if not self.features or self.dims.keys() != self.features.keys():
            raise ValueError("dims are not those of its features")


class TestRecord(msgspec.Struct):
    """The scores of one way to test."""

    wa: float
    ua: float
    macro_f1: float
    n: Whole
    confusion: list[list[Whole]]


class EpochRecord(msgspec.Struct):
    """A line of a run's history."""

    loss: float | None = None
    wa: float | None = None
    ua: float | None = None


class ResultRecord(TestRecord):
    """result.json."""

    seed: Whole
    fold: str
    classes: Annotated[list[str], msgspec.Meta(min_length=2)]
    tests: dict[str, TestRecord]
    corpus: str
    protocol: str
    select: str
    labels: str
    speaker_independent: bool
    synthetic: bool
    random_weights: list[str]
    left_out: dict[str, Whole | list[str]]
    epoch: Whole | None
    seconds: float
    history: list[EpochRecord]

    def __post_init__(self) -> None:
        """Raise `ValueError` for what types cannot say."""
        square = [len(self.classes)] * len(self.classes)
        if "both" not in self.tests or len(set(self.classes)) < len(self.classes):
            raise ValueError("it lacks the test of both modalities, or a class is there twice")
        if any(list(map(len, test.confusion)) != square for test in self.tests.values()):
            raise ValueError("a confusion matrix has another size than the classes")


def check_predictions(table: pa.Table, classes: Sequence[str]) -> None:
    """Raise `ValueError` or `KeyError` unless a run with these classes can have written the table."""
    for name in ("truth", "predicted"):
        if set(table[name].to_pylist()) - set(classes):
            raise ValueError(f"column {name!r} holds another class")
    for name in ("id", "speaker"):
        if not pa.types.is_string(table[name].type) and not pa.types.is_null(table[name].type):
            raise ValueError(f"column {name!r} is not text")
    for name in [name for name in table.column_names if name.startswith("probabilities")] or ["probabilities"]:
        found = np.array(table[name].to_pylist(), float).reshape(-1, len(classes))
        if len(found) != table.num_rows or not np.isfinite(found).all():
            raise ValueError(f"column {name!r} does not hold {len(classes)} probabilities in each row")
