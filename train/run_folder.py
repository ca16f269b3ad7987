"""Run folders: one finished training each, named by the hash of its complete config, readable
without us.

<out>/<16 hex digits>/config.json          all that the name hashes, and `provenance`, which it does not
                      result.json          scores; there only when the run is finished
                      predictions.parquet  id, speaker, dialogue (its number), truth, predicted, probabilities [K];
                                           "truth valence", "predicted valence", … where these are learnt
                                           of several corpora "corpus/id" and "corpus/speaker"
                      dev.parquet          the same of the dev part, if there is one that the model was not trained on
                      model.safetensors    model.<weight>, scaling.<modality>.<mean|std> [dim] or [1 + C, dim]
                      state.safetensors    where an unfinished run stands
                      diverged.json        what went wrong with a run whose loss is no longer a number
                      log                  one line per epoch

They are sealed. JSON and safetensors files name their run (`run`) and carry their own sha256
(`sha256`, last in JSON, first in the metadata of safetensors), reckoned with 64 zeros in its place;
result.json says bytes and sha256 of the other files of a finished run (`files`). Whatever reads a
file checks it. A folder whose config has another name is refused, a link in it is not followed, and
what versions before the seal wrote is read with a warning.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from ser.disk.leftovers import remove_leftovers
from ser.disk.locks import locked
from ser.disk.read import read_small
from ser.disk.records import short_hash
from ser.disk.write import Buffer, write_whole
from ser.errors import CorruptStore, SerError, StoreError, WrongUse

__all__ = ["Run", "find_runs", "load_run"]

CONFIG, RESULT, MODEL, STATE, LOG = (
    "config.json",
    "result.json",
    "model.safetensors",
    "state.safetensors",
    "log",
)
FAULT = "diverged.json"
PREDICTIONS, DEV = "predictions.parquet", "dev.parquet"
SHARED = ".tmp"  # in the folder of the runs: what the processes of a sweep share of the data
Files = dict[str, dict[str, Any]]  # {name: {"bytes": size, "sha256": digest}}
AGAIN = "remove the run folder and train again"
_SEAL = {"run", "sha256"}  # keys
_ZEROS = b"0" * 64  # in the place of a file's own sha256 while that is reckoned
_AT_END = len(_ZEROS) + len(b'"\n}\n')  # of a JSON file, from its end
_AT_START = 8 + len(b'{"__metadata__":{"sha256":"')  # of a safetensors file
log = logging.getLogger("ser.train")
_warn_once = cache(log.warning)
_FAULTS = (
    ValueError,
    TypeError,
    KeyError,
    RecursionError,
    msgspec.MsgspecError,
    SafetensorError,
    pa.ArrowException,
)


def shape(texts: str, **others: Any) -> Any:
    """A type of JSON object with at least these keys: `texts`, and `others` by kind; (kind,
    default) is optional.
    """
    kinds = [(key, *(kind if isinstance(kind, tuple) else (kind,))) for key, kind in others.items()]
    return msgspec.defstruct("Record", [*((key, str) for key in texts.split()), *kinds])


# What tells a run's files from others of these names. All else in them is held to their seal.
_CONFIG = dict.fromkeys(
    ("labels", "features", "settings", "training", "dims", "provenance"), dict[str, Any]
)
CONFIG_SHAPE = shape("corpus manifest fusion loss protocol select fold cut", **_CONFIG)
_RESULT: dict[str, Any] = {
    "seed": int,
    "synthetic": bool,
    "classes": list[str],
    "random_weights": list[str],
}
_RESULT |= {
    "tests": dict[str, dict[str, Any]],
    "left_out": dict[str, int | list[str]],
    "seconds": float,
}
_RESULT |= {
    "epoch": int | None,
    "history": list[dict[str, Any]],
    "corpora": (dict[str, dict[str, Any]], {}),
}
RESULT_SHAPE = shape("corpus protocol select labels fold", **_RESULT)


def column(what: str, test: str) -> str:
    """The column of predictions.parquet with `what` was predicted when the model was given the
    modalities of `test`.
    """
    return what if test == "both" else f"{what} {test}"


def run_name(config: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the sha256 of the config's canonical JSON, provenance left out."""
    return short_hash({key: value for key, value in config.items() if key != "provenance"})


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not. What is read of it raises `CorruptStore` if one bit of it was
    altered.
    """

    path: Path

    @property
    def name(self) -> str:
        """The folder's own name, even if a link leads to it."""
        return self.path.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything that the run was asked for. Raises `CorruptStore` if that is another run than
        the folder names.
        """
        found = self._json(CONFIG, CONFIG_SHAPE)
        if (name := run_name(found)) != self.name:
            raise CorruptStore(
                f"{self.path}: holds run {name}; name the folder so, or, if it was altered, {AGAIN}"
            )
        return found

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / RESULT).exists()

    @property
    def diverged(self) -> bool:
        """Whether its loss ceased to be a number, the last time that it was trained."""
        return (self.path / FAULT).exists()

    @cached_property
    def result(self) -> dict[str, Any]:
        """The scores. Raises `WrongUse` if the run is not finished."""
        if not self.finished:
            raise WrongUse(
                f"{self.path}: this run is not finished; `ser train --resume {self.path}` continues it"
            )
        return self._json(RESULT, RESULT_SHAPE)

    def checked(self) -> "Run":
        """This finished run, after every file was read: before it is taken as done."""
        for name in self.result.get("files", {}):
            with self._content(name):
                pass
        _ = self.config
        return self

    @property
    def dev_predictions(self) -> pa.Table | None:
        """Predictions on the dev part; None without one, and of runs that an earlier ser wrote."""
        return self.predictions(DEV) if DEV in self.result.get("files", {}) else None

    def predictions(self, name: str = PREDICTIONS) -> pa.Table:
        """Predictions on the test part, or those of another file, one row per utterance."""
        with self._content(name) as content:
            # Not read_table, whose threads may outlive the interpreter and abort it.
            return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)

    def tensors(self, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The torch tensors of one of its safetensors files, and the file's metadata."""
        from safetensors.torch import load

        with self._content(name) as content:
            header = content[8 : 8 + int.from_bytes(content[:8], "little")]
            about = msgspec.json.decode(header, type=dict).get("__metadata__", {})
            self._check_seal(name, content, _AT_START, about)
            return load(content), about

    def write_json(self, name: str, value: Mapping[str, Any]) -> Files:
        """Write one JSON file of a run that this process has claimed, whole or not at all, for
        people to read too.
        """
        sealed = {**value, "run": self.name, "sha256": _ZEROS.decode()}
        text = json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False)
        content = text.encode(errors="replace") + b"\n"
        return self._write(name, *_sealed(content, len(content) - _AT_END))

    def write_tensors(self, name: str, content: bytes) -> Files:
        """Write one safetensors file."""
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        about = {"sha256": _ZEROS.decode(), "run": self.name, **header.pop("__metadata__", {})}
        first = json.dumps({"__metadata__": about, **header}, separators=(",", ":")).encode()
        first += b" " * (-len(first) % 8)
        pieces = _sealed(
            len(first).to_bytes(8, "little") + first, _AT_START, memoryview(content)[8 + size :]
        )
        return self._write(name, *pieces)

    def write_predictions(self, columns: Mapping[str, Any], name: str = PREDICTIONS) -> Files:
        """Write `predictions.parquet`, or another such file."""
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(dict(columns)), sink)
        return self._write(name, sink.getvalue().to_pybytes())

    def _write(self, name: str, *pieces: Buffer) -> Files:
        size, digest = write_whole(self.path / name, *pieces)
        return {name: {"bytes": size, "sha256": digest}}

    def _json(self, name: str, expected: type) -> dict[str, Any]:
        with self._content(name) as content:
            found = msgspec.json.decode(content, type=dict)
            self._check_seal(name, content, len(content) - _AT_END, found)
            msgspec.convert(found, expected)
            return {key: value for key, value in found.items() if key not in _SEAL}

    @contextlib.contextmanager
    def _content(self, name: str) -> Iterator[bytes]:
        """A file's bytes, decoded in the context; those of a finished run are the ones that its
        result names.
        """
        content = read_small(self.path / name, AGAIN)
        files = self.result.get("files") if name != RESULT and self.finished else None
        found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if files and files.get(name) != found:
            raise CorruptStore(f"{self.path / name}: is not the file that {RESULT} names; {AGAIN}")
        try:
            yield content
        except SerError:
            raise
        except (OSError, *_FAULTS) as error:
            raise CorruptStore(f"{self.path / name}: cannot be read ({error}); {AGAIN}") from None

    def _check_seal(self, name: str, content: bytes, at: int, about: Mapping[str, Any]) -> None:
        if not about.keys() & {*_SEAL, "files"}:
            config = self.path / CONFIG
            if (
                config.exists()
                and _SEAL & msgspec.json.decode(read_small(config, AGAIN), type=dict).keys()
            ):
                raise CorruptStore(
                    f"{self.path / name}: has no seal, and its {CONFIG} has one; {AGAIN}"
                )
            _warn_once(
                "%s: holds runs that an older ser wrote, without a seal: they are not checked",
                self.path.parent,
            )
        elif content[at : at + len(_ZEROS)] != _sealed(content, at)[1]:
            raise CorruptStore(
                f"{self.path / name}: altered or cut short (its checksum is wrong); {AGAIN}"
            )
        elif about.get("run") != self.name:
            raise CorruptStore(
                f"{self.path / name}: belongs to run {about.get('run')}; name the folder so, or {AGAIN}"
            )


def _sealed(content: bytes, at: int, rest: Buffer = b"") -> tuple[Buffer, bytes, Buffer, Buffer]:
    """A file in pieces, whose second is the sha256 of the whole in hex, reckoned with zeros in its
    place.
    """
    before, after = content[:at], memoryview(content)[at + len(_ZEROS) :]
    found = hashlib.sha256(before + _ZEROS)
    found.update(after)
    found.update(rest)
    return before, found.hexdigest().encode(), after, rest


def load_run(path: Path | str) -> Run:
    """The run in that folder. Raises `WrongUse` if it is none."""
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise WrongUse(
            f"{path}: is not a run folder (no {CONFIG}); `ser train` writes them under runs/"
        )
    return Run(path.resolve())


def find_runs(*paths: Path | str) -> list[Run]:
    """All runs in the given folders, finished or not, each once: of copies the first, or the first
    that is finished.

    Warns of a copy with other predictions. Raises `WrongUse` where there is none.
    """
    found: dict[str, Run] = {}
    for path in map(Path, paths):
        here = (
            [path]
            if (path / CONFIG).is_file()
            else sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
        )
        if not here:
            raise WrongUse(
                f"{path}: is not a run folder (no {CONFIG}) and holds no runs; `ser train` writes them"
            )
        for run in (Run(folder.resolve()) for folder in here):
            first = found.setdefault(run.name, run)
            if run.finished and not first.finished:
                found[run.name] = run
            elif first is not run and run.finished:
                own, other = (one.result.get("files", {}).get(PREDICTIONS) for one in (run, first))
                if own != other:
                    log.warning(
                        "%s: has other predictions than %s, which alone is read",
                        run.path,
                        first.path,
                    )
    return list(found.values())


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Run]:
    """The run folder, made if needed, with nobody else at work in it: a second process waits for
    the first.

    A finished run needs neither a lock nor the right to write. What killed writers left is removed.
    Raises `StoreError` for a link or special file in the folder: no run is written through one.
    """
    if Run(path).finished:
        yield Run(path)
        return
    waiting = "waits for the process that trains this run"
    with contextlib.nullcontext() if path.is_symlink() else locked(path / "lock", waiting):
        remove_leftovers(path.parent / SHARED)
        for entry in (path, *(() if path.is_symlink() else path.iterdir())):
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise StoreError(
                    f"{entry}: is a link or a special file, and no run is written through one; remove it"
                )
            if entry.match(".*.part"):
                entry.unlink()
        yield Run(path)
