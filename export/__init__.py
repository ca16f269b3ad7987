"""A trained run as a folder for others: a graph of ONNX, weights, a record and a model card.

A run on one audio encoder becomes a graph from the waveform to the probabilities; any other one
from its features. What is written gives what `ser predict` gives, and was compared with it.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
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
from ser.train.models import FUSIONS
from ser.train.records import RunFile, to_json
from ser.train.run_folder import CONFIG, MODEL
from ser.train.seal import sealed_json

from .card import model_card
from .graph import FromFeatures, FromWaveform
from .inputs import GraphInput, feature_inputs, is_on_one_encoder, waveform_input
from .trace import compare_on_features, compare_on_waveforms, write_graph
from .waveform import EncoderFrames, WhisperStates

__all__ = ["export"]

GRAPH = "model.onnx"
CARD = "README.md"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# Their layouts depend on numbers that a graph does not have: pooling by windows, the alignment of
# words, who speaks.
WITHOUT_GRAPH = ("gban", "cme", "icon", "icon:audio", "icon:text")


def export(
    run: str | Path, folder: str | Path, models: Mapping[str, str] | Iterable[str] = ()
) -> str:
    """Write the run to a new or empty `folder`, whole or not at all. Returns a sentence: what
    model.onnx takes, and how near it is to `ser predict`.

    `models` says where encoder weights lie now, as for `predict`. Raises `WrongUse` if the run is
    not finished, the folder holds something, or the fusion cannot be written as ONNX, and
    `SerError` if the packages for it are not installed.
    """
    # Also of a link to itself.
    path = Path(os.path.realpath(folder))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WrongUse(f"{folder}: is there already and not an empty folder; name another one")
    missing = [name for name in PACKAGES if not find_spec(name)]
    if missing:
        raise SerError(f"ser export needs {', '.join(missing)}: pip install '{DISTRIBUTION}[onnx]'")

    predictor = Predictor(run, models, "cpu")
    _check_fusion(predictor)

    make_folder(path.parent)
    with (
        explain_disk_errors(f"exporting to {folder}", path.parent),
        workspace_beside(path) as temporary,
    ):
        begun = temporary / path.name
        begun.mkdir()
        inputs, outputs, sentence = _write_model(predictor, begun)
        _write_others(predictor, begun, inputs, outputs)
        sync_tree(begun)
        if not move_into_place(begun, path):
            raise WrongUse(f"{folder}: another process has written to it; name another folder")
    return sentence


def _check_fusion(predictor: Predictor) -> None:
    """Raise `WrongUse` for a fusion that cannot be written as ONNX."""
    name = predictor.fusion.name
    if name in WITHOUT_GRAPH:
        possible = ", ".join(fusion for fusion in FUSIONS if fusion not in WITHOUT_GRAPH)
        raise WrongUse(f"{name} cannot be written as ONNX; these can: {possible}")
    if getattr(predictor.config.settings, "finetune_layers", 0):
        raise WrongUse(
            f"{name} with finetune_layers holds a text encoder of its own, and cannot be written "
            "as ONNX; export a run with finetune_layers=0"
        )


def _write_model(predictor: Predictor, folder: Path) -> tuple[list[GraphInput], list[str], str]:
    """Write model.onnx. Returns its inputs, the names of its outputs, and what is to be said."""
    path = folder / GRAPH
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
    return inputs, graph.outputs.names, sentence


def _write_others(
    predictor: Predictor, folder: Path, inputs: list[GraphInput], outputs: list[str]
) -> None:
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

    takes_waveform = inputs[0].name == "waveform"
    spec = predictor.features["audio"][0].spec if takes_waveform else None
    record = ExportRecord(
        format=EXPORTED,
        ser=version(DISTRIBUTION),
        classes=list(predictor.classes),
        inputs=[each.record for each in inputs],
        outputs=outputs,
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
