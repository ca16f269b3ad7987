"""The trained run that a folder holds: a run folder, one with a single run, or an exported one.

`ser export` writes a folder with the run's model.safetensors, byte by byte, and a config.json of
its own, whose record is here because both who writes it and who reads it need it.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa

from ser.disk.paths import real_path
from ser.disk.read import read_small
from ser.errors import CorruptStore, WrongUse
from ser.train.records import RunConfig, RunFile, RunResult, from_json
from ser.train.run_folder import CONFIG, MODEL, PREDICTIONS, Run, find_runs
from ser.train.seal import check_json

EXPORTED = "ser-export-1"
AGAIN = "export the run again"


class InputRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An input of model.onnx."""

    name: str
    """`waveform`, the name of a feature, or `speakers`."""

    shape: list[int | str]
    """Its axes: a size, or what is counted."""

    dtype: Literal["float32", "int64"]
    """The type of its values: int64 of token ids and of speakers."""

    description: str
    """How it is made, in words and numbers."""


class ExportRecord(msgspec.Struct, frozen=True, kw_only=True):
    """config.json of an exported folder, which ends with the seal of a run's files."""

    format: str
    """`EXPORTED`: what tells this file from the config.json of a run or an encoder."""

    ser: str
    """The version that wrote it."""

    classes: list[str]
    """The K classes, in the order of the outputs; none for a run that learnt ratings alone."""

    inputs: list[InputRecord]
    """What model.onnx takes, or, where there is none, the run."""

    outputs: list[str]
    """What model.onnx gives: logits, probabilities, ratings; nothing where there is none."""

    longest_seconds: float | None
    """Above so many seconds ser cuts audio into windows, and model.onnx does not."""

    config: dict[str, Any]
    """The run's `RunConfig`."""

    result: dict[str, Any]
    """The run's `RunResult`."""

    files: dict[str, RunFile]
    """The files that are not meant to be edited."""

    no_graph: str | None = None
    """Why there is no model.onnx."""


class ExportedRun(Run):
    """A run as `ser export` wrote it: its config, result and model, without its predictions."""

    finished = True

    @cached_property
    def record(self) -> ExportRecord:
        """What config.json says. Raises `CorruptStore` if one bit of it was altered."""
        path = self.path / CONFIG
        content = read_small(path, AGAIN)
        try:
            values = msgspec.json.decode(content, type=dict)
            check_json(content, values, str(values.get("run")), path)
            return msgspec.convert(values, ExportRecord)
        except msgspec.MsgspecError as error:
            raise CorruptStore(f"{path}: cannot be read ({error}); {AGAIN}") from None
        except CorruptStore:
            # Not the seal's own words, which say to train again.
            raise CorruptStore(f"{path}: altered or cut short; {AGAIN}") from None

    @cached_property
    def name(self) -> str:
        """The name of the run that was exported, whatever the folder is called."""
        return str(msgspec.json.decode(read_small(self.path / CONFIG, AGAIN), type=dict)["run"])

    @cached_property
    def config(self) -> RunConfig:
        """Everything that the run was asked for."""
        return from_json(RunConfig, self.record.config)

    @cached_property
    def result(self) -> RunResult:
        """The scores."""
        return from_json(RunResult, self.record.result)

    def tensors(self, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The torch tensors of model.safetensors, and its metadata."""
        content = read_small(self.path / name, AGAIN)
        digest = hashlib.sha256(content).hexdigest()
        if self.record.files.get(name) != RunFile(bytes=len(content), sha256=digest):
            raise CorruptStore(f"{self.path / name}: is not the file that {CONFIG} names; {AGAIN}")
        return super().tensors(name)

    def predictions(self, name: str = PREDICTIONS) -> pa.Table:
        """None are exported."""
        raise WrongUse(f"{self.path}: an exported run has no predictions; name its run folder")


def open_trained(path: str | Path) -> Run:
    """The run in that folder, or the only finished one among those that it holds.

    Raises `WrongUse` where there is none, or several.
    """
    if is_exported(Path(path)):
        return ExportedRun(real_path(path))

    runs = find_runs(path)
    candidates = [run for run in runs if run.finished] or runs
    if len(candidates) > 1:
        raise WrongUse(
            f"{path}: holds {len(candidates)} runs; name one of them, such as {candidates[0].path}"
        )
    return candidates[0]


def is_exported(folder: Path) -> bool:
    """Whether `ser export` wrote the folder: its config.json says so."""
    if not (folder / CONFIG).is_file() or not (folder / MODEL).is_file():
        return False
    try:
        values = msgspec.json.decode(read_small(folder / CONFIG, AGAIN), type=dict)
    except (msgspec.MsgspecError, CorruptStore):
        return False
    return values.get("format") == EXPORTED
