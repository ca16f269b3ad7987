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
from collections.abc import Iterator, Mapping
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
UNREADABLE = (ValueError, TypeError, KeyError, RecursionError, msgspec.MsgspecError, SafetensorError, pa.ArrowException)


def shape(texts: str, **others: Any) -> Any:
    """What a JSON object holds at least: the keys that are text, and those of other kinds; (kind, default) may lack."""
    kinds = [(key, *(kind if isinstance(kind, tuple) else (kind,))) for key, kind in others.items()]
    return msgspec.defstruct("Record", [*((key, str) for key in texts.split()), *kinds])


Scalar = str | int | float | bool
WHOLE = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
CLASSES = Annotated[list[str], msgspec.Meta(min_length=2)]
ANY: Any = (dict[str, Any], {})
TABLES: Any = (dict[str, dict[str, Any]], {})
SCORES: dict[str, Any] = {"wa": float, "ua": float, "macro_f1": float, "n": WHOLE, "confusion": list[list[WHOLE]]}
CONFIG_SHAPE = shape(
    "corpus manifest fusion loss protocol fold cut",
    version=int,
    labels=shape("policy", classes=CLASSES, maps=dict[str, str]),
    features=dict[Literal["audio", "text"], shape("feature fingerprint pool")],  # type: ignore[misc]
    settings=dict[str, Scalar],
    training=dict[str, Scalar],
    select=Literal["val", "last", "best-test"],
    seed=WHOLE,
    dims=dict[str, WHOLE],
    limit=int | None,
    provenance=shape("", store=(str, ""), asked=ANY, versions=ANY, specs=TABLES, encoders=TABLES),
)
RESULT_SHAPE = shape(
    "fold corpus protocol select labels",
    **SCORES,
    seed=WHOLE,
    classes=CLASSES,
    tests=dict[str, shape("", **SCORES)],  # type: ignore[misc]
    speaker_independent=bool,
    synthetic=bool,
    random_weights=list[str],
    left_out=dict[str, WHOLE | list[str]],
    epoch=WHOLE | None,
    seconds=float,
    history=list[shape("", loss=float | None, wa=float | None, ua=float | None)],  # type: ignore[misc]
)


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
        found = self._json(CONFIG, CONFIG_SHAPE)
        if found["dims"].keys() != found["features"].keys():
            raise CorruptStore(f"{self.path / CONFIG}: its dims are not those of its features; {AGAIN}")
        return found

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / RESULT).exists()

    @cached_property
    def result(self) -> dict[str, Any]:
        """The scores. Raises `WrongUse` if the run is not finished."""
        if not self.finished:
            raise WrongUse(f"{self.path}: this run is not finished; `ser train --resume {self.path}` continues it")
        found = self._json(RESULT, RESULT_SHAPE)
        square = [len(found["classes"])] * len(found["classes"])
        if "both" not in found["tests"] or any([*map(len, t["confusion"])] != square for t in found["tests"].values()):
            raise CorruptStore(f"{self.path / RESULT}: its tests do not fit its classes; {AGAIN}")
        return found

    def predictions(self) -> pa.Table:
        """Predictions on the test part, one row per utterance."""
        with self._reading(PREDICTIONS) as path:
            table = pq.read_table(pa.BufferReader(read_small(path, AGAIN)), use_threads=False)
            _ = table.select(["id", "speaker"]).cast(pa.schema([("id", pa.string()), ("speaker", pa.string())]))
            table.validate(full=True)
            classes = self.result["classes"]
            if {*table["truth"].to_pylist(), *table["predicted"].to_pylist()} - {*classes}:
                raise ValueError("it names other classes than the result")
            for test in self.result["tests"]:
                found = np.array(table[f"probabilities {test}".removesuffix(" both")].to_pylist(), float)
                if found.shape != (len(table), len(classes)) or not np.isfinite(found).all():
                    raise ValueError("its probabilities are not one for each class")
            return table

    def tensors(self, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The torch tensors of one of its safetensors files, and the file's metadata."""
        with self._reading(name) as path:
            os.close(open_plain(path, AGAIN))
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118

    def _json(self, name: str, expected: type) -> Any:
        with self._reading(name) as path:
            found = msgspec.json.decode(read_small(path, AGAIN))
            msgspec.convert(found, expected)
            return found

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        path = self.path / name
        try:
            yield path
        except StoreError:
            raise
        except (OSError, *UNREADABLE) as error:
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
