"""Run folders: one training each, named by the hash of its complete config.

<out>/<16 hex digits>/
    config.json          `records.RunConfig`: all that the name hashes, and `provenance`
    result.json          `records.RunResult`; there only when the run is finished
    predictions.parquet  id, speaker, dialogue (its number), truth, predicted, probabilities [K];
                         "truth valence", "predicted valence", … where these are learnt;
                         of several corpora "corpus/id" and "corpus/speaker"
    dev.parquet          the same of the dev part, if there is one that the model was not
                         trained on
    model.safetensors    model.<weight>; scaling.<modality>.<mean|std> [dim] or [1 + C, dim]
    state.safetensors    where an unfinished run stands
    diverged.json        what went wrong with a run whose loss is no longer a number
    log                  one line per epoch

They can be read without ser. They are sealed, see `seal`; result.json says bytes and sha256 of the
other files of a finished run (`files`). Whatever reads a file checks it. A folder whose config has
another name is refused, and a link in it is not followed.
"""

import contextlib
import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from ser.disk.leftovers import remove_leftovers
from ser.disk.locks import locked
from ser.disk.parquet import open_parquet
from ser.disk.paths import real_path
from ser.disk.read import read_small
from ser.disk.records import short_hash
from ser.disk.unfinished import is_unfinished
from ser.disk.write import Buffer, write_whole
from ser.errors import CorruptStore, SerError, StoreError, WrongUse, ser_command

from .records import ConfigOrResult, RunConfig, RunFile, RunResult, from_json, to_json
from .seal import AGAIN, SEAL, check_json, check_tensors, sealed_json, sealed_tensors

__all__ = ["Run", "find_runs", "load_run"]

CONFIG = "config.json"
RESULT = "result.json"
PREDICTIONS = "predictions.parquet"
DEV = "dev.parquet"
MODEL = "model.safetensors"
STATE = "state.safetensors"
FAULT = "diverged.json"
LOG = "log"
# In the folder of the runs: what the processes of a sweep share of the data.
SHARED = ".tmp"

# What a run's result says of its files, by name.
RunFiles = dict[str, RunFile]

log = logging.getLogger("ser.train")

# What a reader raises for bytes that are no such file.
_READING_FAULTS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RecursionError,
    msgspec.MsgspecError,
    SafetensorError,
    pa.ArrowException,
)


def column(quantity: str, test: str) -> str:
    """The column of predictions.parquet with a `quantity` as one way of testing predicted it."""
    if test == "both":
        return quantity
    return f"{quantity} {test}"


def run_name(config: RunConfig, without: Collection[str] = ()) -> str:
    """The first 16 hex digits of the sha256 of the config's canonical JSON, provenance left out.

    `without` leaves out more keys: so runs that differ in these alone have the same name.
    """
    hashed = to_json(config)
    for key in ("provenance", *without):
        hashed.pop(key, None)
    return short_hash(hashed)


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not.

    What is read of it raises `CorruptStore` if one bit of it was altered.
    """

    path: Path

    @property
    def name(self) -> str:
        """The folder's own name, even if a link leads to it."""
        return real_path(self.path).name

    @cached_property
    def config(self) -> RunConfig:
        """Everything that the run was asked for.

        Raises `CorruptStore` if that is another run than the folder names.
        """
        values = self._json(CONFIG)
        config = self._record(CONFIG, RunConfig, values)

        values.pop("provenance", None)
        name = short_hash(values)
        if name != self.name:
            raise CorruptStore(
                f"{self.path}: holds run {name}; name the folder so, or, if it was altered, {AGAIN}"
            )
        return config

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / RESULT).exists()

    @property
    def diverged(self) -> bool:
        """Whether its loss ceased to be a number, the last time that it was trained."""
        return (self.path / FAULT).exists()

    @cached_property
    def result(self) -> RunResult:
        """The scores. Raises `WrongUse` if the run is not finished."""
        if not self.finished:
            raise WrongUse(
                f"{self.path}: this run is not finished; "
                f"{ser_command('train', '--resume', self.path)} continues it"
            )
        return self._record(RESULT, RunResult, self._json(RESULT))

    def checked(self) -> "Run":
        """This finished run, after every file was read: before it is taken as done."""
        for name in self.result.files:
            with self._content(name):
                pass
        _ = self.config
        return self

    @property
    def dev_predictions(self) -> pa.Table | None:
        """Predictions on the dev part; None without one."""
        if DEV not in self.result.files:
            return None
        return self.predictions(DEV)

    def predictions(self, name: str = PREDICTIONS) -> pa.Table:
        """Predictions on the test part, or those of another file, one row per utterance."""
        with self._content(name) as content:
            # Not read_table, whose threads may outlive the interpreter and abort it.
            return open_parquet(content).read(use_threads=False)

    def tensors(self, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The torch tensors of one of its safetensors files, and the file's metadata."""
        from safetensors.torch import load

        with self._content(name) as content:
            size = int.from_bytes(content[:8], "little")
            header = content[8 : 8 + size]
            metadata = msgspec.json.decode(header, type=dict).get("__metadata__", {})
            check_tensors(content, metadata, self.name, self.path / name)
            return load(content), metadata

    def write_json(self, name: str, value: RunConfig | RunResult | Mapping[str, Any]) -> RunFiles:
        """Write one JSON file, whole or not at all, for people to read too.

        This process has claimed the run.
        """
        if not isinstance(value, Mapping):
            value = to_json(value)
        return self._write(name, *sealed_json(value, self.name))

    def write_tensors(self, name: str, content: bytes) -> RunFiles:
        """Write one safetensors file."""
        return self._write(name, *sealed_tensors(content, self.name))

    def write_predictions(self, columns: Mapping[str, Any], name: str = PREDICTIONS) -> RunFiles:
        """Write `predictions.parquet`, or another such file."""
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(dict(columns)), sink)
        return self._write(name, sink.getvalue().to_pybytes())

    def _write(self, name: str, *pieces: Buffer) -> RunFiles:
        """Write a file of these pieces, whole or not at all. Returns its entry of `RunFiles`."""
        size, digest = write_whole(self.path / name, *pieces)
        return {name: RunFile(bytes=size, sha256=digest)}

    def _json(self, name: str) -> dict[str, Any]:
        """What a sealed JSON file holds."""
        with self._content(name) as content:
            values = msgspec.json.decode(content, type=dict)
            check_json(content, values, self.name, self.path / name)

            for key in SEAL:
                values.pop(key, None)
            return values

    def _record(
        self, name: str, kind: type[ConfigOrResult], values: Mapping[str, Any]
    ) -> ConfigOrResult:
        """The values of a JSON file as its record."""
        with self._as_corrupt(name):
            return from_json(kind, values)

    @contextlib.contextmanager
    def _content(self, name: str) -> Iterator[bytes]:
        """A file's bytes, to be decoded in the context.

        Those of a finished run are the ones that its result names.
        """
        content = read_small(self.path / name, AGAIN)

        if name != RESULT and self.finished:
            file = RunFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            if self.result.files.get(name) != file:
                raise CorruptStore(
                    f"{self.path / name}: is not the file that {RESULT} names; {AGAIN}"
                )

        with self._as_corrupt(name):
            yield content

    @contextlib.contextmanager
    def _as_corrupt(self, name: str) -> Iterator[None]:
        """Raise `CorruptStore` for what a file's bytes make a reader raise."""
        try:
            yield
        except SerError:
            raise
        except _READING_FAULTS as error:
            raise CorruptStore(f"{self.path / name}: cannot be read ({error}); {AGAIN}") from None


def load_run(path: Path | str) -> Run:
    """The run in that folder. Raises `WrongUse` if it is none."""
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise WrongUse(
            f"{path}: is not a run folder (no {CONFIG}); `ser train` writes them under runs/"
        )
    return Run(real_path(path))


def find_runs(*paths: Path | str) -> list[Run]:
    """All runs in these folders, finished or not, each once.

    Of copies the first, or the first that is finished. Warns of a copy with other predictions.
    Raises `WrongUse` where there is none.
    """
    runs: dict[str, Run] = {}
    for path in paths:
        for folder in _run_folders(Path(path)):
            run = Run(real_path(folder))
            known = runs.setdefault(run.name, run)
            if known is run or not run.finished:
                continue
            if known.finished:
                _warn_of_other_predictions(run, known)
            else:
                runs[run.name] = run
    return list(runs.values())


def _run_folders(path: Path) -> list[Path]:
    """The run folders in that folder, or itself. Raises `WrongUse` where there is none."""
    if (path / CONFIG).is_file():
        return [path]

    folders = sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
    if not folders:
        raise WrongUse(
            f"{path}: is not a run folder (no {CONFIG}) and holds no runs; `ser train` writes them"
        )
    return folders


def _warn_of_other_predictions(copy: Run, known: Run) -> None:
    """Warn if a finished copy of a run has other predictions than the one that is read."""
    if copy.result.files.get(PREDICTIONS) != known.result.files.get(PREDICTIONS):
        log.warning("%s: has other predictions than %s, which alone is read", copy.path, known.path)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Run]:
    """The run folder, made if needed, with nobody else at work in it.

    A second process waits for the first. A finished run needs neither a lock nor the right to
    write. What killed writers left is removed. Raises `StoreError` for a link or special file in
    the folder: no run is written through one.
    """
    run = Run(path)
    if run.finished:
        yield run
        return

    # Before anything is written: the lock would be, behind a link.
    if path.is_symlink():
        remove_leftovers(path.parent / SHARED)
        raise _not_written_through(path)

    with locked(path / "lock", "waits for the process that trains this run"):
        remove_leftovers(path.parent / SHARED)
        for entry in (path, *path.iterdir()):
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise _not_written_through(entry)
            if is_unfinished(entry.name):
                entry.unlink()
        yield run


def _not_written_through(entry: Path) -> StoreError:
    return StoreError(
        f"{entry}: is a link or a special file, and no run is written through one; remove it"
    )
