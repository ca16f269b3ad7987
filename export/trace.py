"""How a graph is written as ONNX, and compared with what `ser predict` says."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
from torch import nn

from ser.extract.audio import ENCODER_RATE
from ser.predict import Predictor, Turn
from ser.train.train_jobs import one_thread

from .inputs import GraphInput
from .one_sequence import ONE_SEQUENCE, replaced
from .waveform import EncoderFrames, WhisperStates

# How far probabilities and ratings may be from those of `ser predict`.
TOLERANCE = 1e-4
# A protobuf holds no more; weights beyond it lie beside the graph, in model.onnx.data.
PROTOBUF_BYTES = 1_900_000_000
NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "onnxruntime")


class NoGraph(Exception):
    """Why a run cannot be written as ONNX, in words that follow "because"."""


def write_graph(
    graph: nn.Module,
    predictor: Predictor,
    inputs: Sequence[GraphInput],
    outputs: Sequence[str],
    counts: dict[str, int],
    path: Path,
    shortest: int = 1,
) -> None:
    """Trace the graph with inputs of these counts, and write it; every axis with a name stays free,
    from `shortest` on.

    Raises `NoGraph` if torch's exporter cannot.
    """
    examples = [torch.zeros(each.sized(counts)) for each in inputs]
    # Where an axis has the same name, the graph may rely on the same size.
    dims = {axis: torch.export.Dim(axis, min=shortest) for axis in counts}
    shapes: list[dict[int, Any]] = []
    for each in inputs:
        named = {i: dims[axis] for i, axis in enumerate(each.shape) if isinstance(axis, str)}
        shapes.append(named)

    weights = sum(tensor.nbytes for tensor in graph.state_dict().values())
    try:
        substituted = replaced(ONE_SEQUENCE, predictor.fitted.model)
        with quietly(), substituted, torch.no_grad(), one_thread():
            torch.onnx.export(
                graph,
                tuple(examples),
                path,
                input_names=[each.name for each in inputs],
                output_names=list(outputs),
                dynamic_shapes=(tuple(shapes),),
                dynamo=True,
                external_data=weights > PROTOBUF_BYTES,
                verbose=False,
            )
    except Exception as fault:  # torch's exporter raises nearly every kind
        raise NoGraph(_reason(fault)) from fault


def _reason(fault: BaseException) -> str:
    """The first line of what lies at the bottom of an exporter's error."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    lines = str(fault).strip().splitlines() or [type(fault).__name__]
    return lines[0][:200]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what torch's exporter says on its way."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class OnnxModel:
    """A written graph, as onnxruntime runs it."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, `[n, …]`."""
        return dict(zip(self.names, self.session.run(None, inputs), strict=True))


def compare_on_waveforms(path: Path, predictor: Predictor, frames: EncoderFrames) -> float:
    """The largest difference from `ser predict` on noise of several lengths.

    Raises `NoGraph` above `TOLERANCE`.
    """
    lengths = [frames.extractor.shortest, ENCODER_RATE // 2 + 111, 3 * ENCODER_RATE + 7]
    if isinstance(frames, WhisperStates):
        # Into a second window.
        lengths[-1] += frames.window_samples

    model = OnnxModel(path)
    generator = np.random.default_rng(0)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            waveform = generator.uniform(-0.5, 0.5, length).astype(np.float32)
            file = Path(folder) / "noise.wav"
            sf.write(file, waveform, ENCODER_RATE, subtype="FLOAT")
            [prediction] = predictor([Turn("noise", file)]).predictions
            expected = [*prediction.probabilities.values(), *prediction.ratings.values()]
            worst = max(worst, _difference(model({"waveform": waveform[None]}), [expected]))
    return _within_tolerance(worst)


def compare_on_features(
    path: Path, predictor: Predictor, inputs: Sequence[GraphInput], several: list[dict[str, int]]
) -> float:
    """The same on random features of several counts of rows."""
    model = OnnxModel(path)
    generator = np.random.default_rng(0)
    worst = 0.0
    for counts in several:
        given = {
            each.name: generator.standard_normal(each.sized(counts)).astype(np.float32)
            for each in inputs
        }
        expected = predict_features(predictor, list(given.values()))
        worst = max(worst, _difference(model(given), expected))
    return _within_tolerance(worst)


def predict_features(predictor: Predictor, features: list[np.ndarray]) -> list[list[float]]:
    """What the predictor says of features that were computed elsewhere: probabilities and ratings
    of each utterance.
    """
    remaining = list(features)
    by_modality = {
        modality: [remaining.pop(0) for _ in of_modality]
        for modality, of_modality in predictor.features.items()
    }

    if predictor.fusion.unit == "dialogue":
        n = len(features[0])
        turns = [Turn(str(i), dialogue="dialogue", turn=i, speaker="speaker") for i in range(n)]
        columns = {m: np.concatenate(of_m, 1) for m, of_m in by_modality.items()}
        rows = [
            {m: torch.from_numpy(values[i : i + 1]) for m, values in columns.items()}
            for i in range(n)
        ]
    else:
        turns = [Turn("utterance")]
        stored = {m: [np.atleast_2d(values) for values in of_m] for m, of_m in by_modality.items()}
        rows = [{m: predictor.rows_as_read(m, values) for m, values in stored.items()}]

    with one_thread():
        predicted = predictor.predict_rows(turns, rows)
    answers: list[list[float]] = []
    for values in predicted:
        shares, ratings = predictor.shares_and_ratings(values)
        answers.append([*shares, *ratings])
    return answers


def _difference(outputs: dict[str, np.ndarray], expected: list[list[float]]) -> float:
    """The largest one of probabilities and ratings; infinite where the shapes differ."""
    parts = [outputs[name] for name in ("probabilities", "ratings") if name in outputs]
    values = np.concatenate(parts, 1)
    wanted = np.array(expected)
    if values.shape != wanted.shape or not np.isfinite(values).all():
        return np.inf
    return float(np.abs(values - wanted).max())


def _within_tolerance(worst: float) -> float:
    """The difference. Raises `NoGraph` if it is above `TOLERANCE`."""
    if worst > TOLERANCE:
        raise NoGraph(f"its numbers would be {worst:.1g} from ser's")
    return worst
