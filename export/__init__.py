"""A trained run as a folder for others: a graph of ONNX, weights, a record and a model card.

A run on one audio encoder becomes a graph from the waveform to the probabilities; any other one
from its features. What is written gives what `ser predict` gives, and was compared with it. A run
that cannot be a graph is written without one, and sentence and card say so.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ser.disk.faults import explain_disk_errors
from ser.disk.read import read_small
from ser.disk.workspace import workspace_beside
from ser.disk.write import make_folder, move_into_place, sync_tree, write_folder
from ser.errors import DISTRIBUTION, SerError, WrongUse
from ser.predict import Predictor
from ser.predict.trained import EXPORTED, ExportRecord
from ser.train.records import RunFile, to_json
from ser.train.run_folder import CONFIG, MODEL
from ser.train.seal import sealed_json

from .card import model_card
from .graph import FromFeatures, FromWaveform
from .inputs import GraphInput, feature_inputs, is_on_one_encoder, waveform_input
from .trace import NoGraph, compare_on_features, compare_on_waveforms, write_graph
from .waveform import EncoderFrames, WhisperStates

__all__ = ["export"]

GRAPH = "model.onnx"
CARD = "README.md"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# Who speaks decides which turns their recurrent layers go over.
WITHOUT_GRAPH = ("icon", "icon:audio", "icon:text")


def export(
    run: str | Path, folder: str | Path, models: Mapping[str, str] | Iterable[str] = ()
) -> str:
    """Write the run to a new or empty `folder`, whole or not at all.

    Returns a sentence: what model.onnx takes, and how near it is to `ser predict`, or why there is
    none.

    `models` says where encoder weights lie now, as for `predict`. Raises `WrongUse` if the run is
    not finished or the folder holds something, and `SerError` if the packages for ONNX are not
    installed.
    """
    # Also of a link to itself.
    path = Path(os.path.realpath(folder))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WrongUse(f"{folder}: is there already and not an empty folder; name another one")
    missing = [name for name in PACKAGES if not find_spec(name)]
    if missing:
        raise SerError(
            f"an export needs {', '.join(missing)}: run `pip install '{DISTRIBUTION}[onnx]'`"
        )

    predictor = Predictor(run, models, "cpu")
    make_folder(path.parent)
    with (
        explain_disk_errors(f"exporting to {folder}", path.parent),
        workspace_beside(path) as temporary,
    ):
        begun = temporary / path.name
        begun.mkdir()
        model = _write_model(predictor, begun)
        _write_others(predictor, begun, model)
        sync_tree(begun)
        if not move_into_place(begun, path):
            raise WrongUse(f"{folder}: another process has written to it; name another folder")
    return model.sentence


@dataclass(frozen=True)
class WrittenModel:
    """What became of model.onnx."""

    inputs: list[GraphInput]
    """What it takes, or without a graph what the run takes."""
    outputs: list[str]
    """What it gives; nothing without a graph."""
    sentence: str
    """What is to be said of it."""
    reason: str | None = None
    """Why there is none."""


def _write_model(predictor: Predictor, folder: Path) -> WrittenModel:
    """Write model.onnx, if the run can be a graph."""
    try:
        _check_fusion(predictor)
        return _write_graph(predictor, folder / GRAPH)
    except NoGraph as fault:
        reason = f"{predictor.fusion.name} cannot be written as ONNX: {fault}"

    # A graph that is not right is none.
    for path in folder.glob(f"{GRAPH}*"):
        path.unlink()
    sentence = f"without {GRAPH}: {reason}; `ser predict` takes the folder"
    return WrittenModel(feature_inputs(predictor), [], sentence, reason)


def _check_fusion(predictor: Predictor) -> None:
    """Raise `NoGraph` for a run that is known not to be one."""
    if predictor.fusion.name in WITHOUT_GRAPH:
        raise NoGraph("who speaks decides what it computes")
    if getattr(predictor.config.settings, "finetune_layers", 0):
        raise NoGraph("with finetune_layers it holds a text encoder of its own")


def _write_graph(predictor: Predictor, path: Path) -> WrittenModel:
    """Write model.onnx and compare it. Raises `NoGraph`."""
    if is_on_one_encoder(predictor):
        extractor: Any
        [extractor] = predictor.extractors("audio")
        kind = WhisperStates if extractor.name == "whisper" else EncoderFrames
        frames = kind(extractor)
        graph = FromWaveform(predictor, frames)
        inputs = [waveform_input(predictor)]
        # Of Whisper several windows, so that one window is no special case.
        counts = {"samples": 80 * 16000 + 123}
        write_graph(graph, predictor, inputs, graph.outputs.names, counts, path, extractor.shortest)
        worst = compare_on_waveforms(path, predictor, frames)
        taken = "a waveform at 16 kHz"
    else:
        graph = FromFeatures(predictor)  # type: ignore[assignment]
        inputs = feature_inputs(predictor)
        axes: list[str] = []
        for each in inputs:
            axes += [axis for axis in each.shape if isinstance(axis, str) and axis not in axes]
        several = [{axis: rows + 7 * i for i, axis in enumerate(axes)} for rows in (30, 53, 9)]
        write_graph(graph, predictor, inputs, graph.outputs.names, several[0], path)
        worst = compare_on_features(path, predictor, inputs, several)
        taken = " and ".join(each.name for each in inputs)

    sentence = f"{GRAPH} takes {taken}, and gives the numbers of `ser predict` within {worst:.1g}"
    return WrittenModel(inputs, graph.outputs.names, sentence)


def _write_others(predictor: Predictor, folder: Path, model: WrittenModel) -> None:
    """Write the weights, config.json and the card beside model.onnx."""
    weights = read_small(predictor.run.path / MODEL)
    files: dict[str, RunFile] = {}
    written = write_folder(folder, {MODEL: [weights]})
    for name, (size, digest) in written.items():
        files[name] = RunFile(bytes=size, sha256=digest)
    for path in sorted(folder.glob(f"{GRAPH}*")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.name] = RunFile(bytes=path.stat().st_size, sha256=digest)

    takes_waveform = model.inputs[0].name == "waveform"
    spec = predictor.features["audio"][0].spec if takes_waveform else None
    record = ExportRecord(
        format=EXPORTED,
        ser=version(DISTRIBUTION),
        classes=list(predictor.classes),
        inputs=[graph_input.record for graph_input in model.inputs],
        outputs=model.outputs,
        no_graph=model.reason,
        longest_seconds=spec.config["window"] if spec and spec.extractor == "speech" else None,
        config=to_json(predictor.run.config),
        result=to_json(predictor.run.result),
        files=files,
    )
    card = model_card(predictor, record)
    write_folder(
        folder,
        {
            CONFIG: sealed_json(to_json(record), predictor.run.name),
            CARD: [card.encode()],
        },
    )
