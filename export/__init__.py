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
from ser.extract.audio import ENCODER_RATE
from ser.predict import Predictor
from ser.predict.trained import EXPORTED, ExportRecord
from ser.train.finetune import keeps_padding
from ser.train.models.encoder_front import merge_all_adapters
from ser.train.records import RunFile, to_json
from ser.train.run_folder import CONFIG, MODEL
from ser.train.seal import sealed_json

from .card import model_card
from .compare import compare_on_features, compare_on_waveforms
from .graph import FromFeatures, FromWaveform
from .inputs import GraphInput, feature_inputs, is_on_one_encoder, waveform_input
from .trace import NoGraph, write_graph
from .waveform import EncoderFrames, WhisperStates

__all__ = ["export"]

GRAPH = "model.onnx"
CARD = "README.md"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")

# So many rows of features a graph is compared with; the first is traced.
COUNTS_TO_COMPARE = (30, 53, 9, 1)


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
    # A graph holds weights, and the file beside it the adapters, as the run.
    merge_all_adapters(predictor.fitted.model)
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
        return _write_graph(predictor, folder / GRAPH)
    except NoGraph as fault:
        reason = f"{predictor.fusion.name} cannot be written as ONNX: {fault}"

    # A graph that is not right is none.
    for path in folder.glob(f"{GRAPH}*"):
        path.unlink()
    sentence = f"without {GRAPH}: {reason}; `ser predict` takes the folder"
    return WrittenModel(feature_inputs(predictor), [], sentence, reason)


def _write_graph(predictor: Predictor, path: Path) -> WrittenModel:
    """Write model.onnx and compare it. Raises `NoGraph`."""
    if predictor.fusion.encoded and predictor.fusion.unit == "dialogue":
        raise NoGraph("the encoder that it trained takes the rows of every turn of a dialogue")
    for features in predictor.features.values():
        if any(keeps_padding(feature.spec) for feature in features):
            raise NoGraph("the layers of Whisper that it trained take whole windows of 30 s")
    if is_on_one_encoder(predictor):
        return _write_graph_of_waveform(predictor, path)
    return _write_graph_of_features(predictor, path)


def _write_graph_of_waveform(predictor: Predictor, path: Path) -> WrittenModel:
    """Write model.onnx from the waveform on, and compare it. Raises `NoGraph`."""
    extractor: Any
    [extractor] = predictor.extractors("audio")
    kind = WhisperStates if extractor.name == "whisper" else EncoderFrames
    frames = kind(extractor)
    graph = FromWaveform(predictor, frames)
    inputs = [waveform_input(predictor)]
    outputs = graph.outputs.names

    # Of Whisper several windows, so that one window is no special case.
    counts = {"samples": 80 * ENCODER_RATE + 123}
    write_graph(graph, inputs, outputs, counts, path)
    difference = compare_on_waveforms(path, predictor, frames)
    return WrittenModel(inputs, outputs, _sentence("a waveform at 16 kHz", difference))


def _write_graph_of_features(predictor: Predictor, path: Path) -> WrittenModel:
    """Write model.onnx from the features on, and compare it. Raises `NoGraph`."""
    graph = FromFeatures(predictor)
    inputs = feature_inputs(predictor)
    outputs = graph.outputs.names

    # Another count for each axis, so that none is taken for another.
    cases: list[dict[str, int]] = []
    for rows in COUNTS_TO_COMPARE:
        counts: dict[str, int] = {}
        for graph_input in inputs:
            for axis in graph_input.shape:
                if isinstance(axis, str) and axis not in counts:
                    counts[axis] = rows + 7 * len(counts)
        cases.append(counts)

    write_graph(graph, inputs, outputs, cases[0], path)
    difference = compare_on_features(path, predictor, inputs, cases)
    names = " and ".join(graph_input.name for graph_input in inputs)
    return WrittenModel(inputs, outputs, _sentence(names, difference))


def _sentence(inputs: str, difference: float) -> str:
    """What model.onnx takes, and how near it is to `ser predict`."""
    return f"{GRAPH} takes {inputs}, and gives the numbers of `ser predict` within {difference:.1g}"


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
