"""A written graph beside `ser predict`: how far its numbers are from those."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from ser.extract.audio import ENCODER_RATE
from ser.predict import Predictor, Turn
from ser.train.train_jobs import one_thread

from .inputs import GraphInput, takes_tokens
from .trace import NoGraph
from .waveform import EncoderFrames, WhisperStates

# How far probabilities and ratings may be from those of `ser predict`.
TOLERANCE = 1e-4


class OnnxModel:
    """A written graph, as onnxruntime runs it."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Of what it has to say, what ends the process alone.
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
    largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            waveform = generator.uniform(-0.5, 0.5, length).astype(np.float32)
            file = Path(folder) / "noise.wav"
            sf.write(file, waveform, ENCODER_RATE, subtype="FLOAT")

            [prediction] = predictor([Turn("noise", file)]).predictions
            expected = [*prediction.probabilities.values(), *prediction.ratings.values()]
            difference = _difference(model({"waveform": waveform[None]}), [expected])
            largest = max(largest, difference)
    return _within_tolerance(largest)


def compare_on_features(
    path: Path, predictor: Predictor, inputs: Sequence[GraphInput], cases: list[dict[str, int]]
) -> float:
    """The largest difference from `ser predict` on random features of several counts of rows.

    Raises `NoGraph` above `TOLERANCE`.
    """
    model = OnnxModel(path)
    generator = np.random.default_rng(0)
    largest = 0.0
    for counts in cases:
        values: dict[str, np.ndarray] = {}
        for graph_input in inputs:
            values[graph_input.name] = graph_input.random(counts, generator)

        expected = predict_features(predictor, list(values.values()))
        largest = max(largest, _difference(model(values), expected))
    return _within_tolerance(largest)


def predict_features(predictor: Predictor, inputs: list[np.ndarray]) -> list[list[float]]:
    """What the predictor says of features that were computed elsewhere.

    They stand in the order of the graph's inputs. Probabilities and ratings of each utterance.
    """
    if predictor.fusion.unit == "dialogue":
        turns, rows = _turns_of_dialogue(predictor, inputs)
    else:
        turns = [Turn("utterance")]
        rows = [_rows_of_utterance(predictor, inputs)]

    with one_thread():
        predicted = predictor.predict_rows(turns, rows)

    expected: list[list[float]] = []
    for values in predicted:
        shares, ratings = predictor.shares_and_ratings(values)
        expected.append([*shares, *ratings])
    return expected


def _turns_of_dialogue(
    predictor: Predictor, inputs: list[np.ndarray]
) -> tuple[list[Turn], list[dict[str, torch.Tensor]]]:
    """The turns of one dialogue, and of each the vector of each modality, `[1, dim]`.

    Two speakers take turns where the graph is not told who speaks: if the fusion minds, its numbers
    differ.
    """
    remaining = list(inputs)
    n = len(inputs[0])
    speakers = remaining.pop() if predictor.fusion.takes_speakers else np.arange(n) % 2

    columns: dict[str, np.ndarray] = {}
    for modality, features in predictor.features.items():
        vectors = [remaining.pop(0) for _ in features]
        columns[modality] = np.concatenate(vectors, 1)

    turns: list[Turn] = []
    rows: list[dict[str, torch.Tensor]] = []
    for i in range(n):
        speaker = f"speaker {speakers[i]}"
        turns.append(Turn(f"turn {i}", dialogue="dialogue", turn=i, speaker=speaker))

        row: dict[str, torch.Tensor] = {}
        for modality, vectors_of_turns in columns.items():
            row[modality] = torch.from_numpy(vectors_of_turns[i : i + 1])
        rows.append(row)
    return turns, rows


def _rows_of_utterance(predictor: Predictor, inputs: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """The rows of each modality of one utterance, as the run reads them."""
    remaining = list(inputs)
    rows: dict[str, torch.Tensor] = {}
    for modality, features in predictor.features.items():
        stored: list[np.ndarray] = []
        for _ in features:
            values = remaining.pop(0)
            if takes_tokens(predictor, modality):
                stored.append(values[:, None])
            else:
                stored.append(np.atleast_2d(values))
        rows[modality] = predictor.rows_as_read(modality, stored)
    return rows


def _difference(outputs: dict[str, np.ndarray], expected: list[list[float]]) -> float:
    """The largest one of probabilities and ratings; infinite where the shapes differ."""
    parts = [outputs[name] for name in ("probabilities", "ratings") if name in outputs]
    values = np.concatenate(parts, 1)
    wanted = np.array(expected)
    if values.shape != wanted.shape or not np.isfinite(values).all():
        return np.inf
    return float(np.abs(values - wanted).max())


def _within_tolerance(difference: float) -> float:
    """The difference. Raises `NoGraph` if it is above `TOLERANCE`."""
    if difference > TOLERANCE:
        raise NoGraph(f"its numbers would be {difference:.1g} from ser's")
    return difference
