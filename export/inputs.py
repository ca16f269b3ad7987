"""What a graph takes: one waveform, or one input per feature."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ser.cache.spec import Spec
from ser.extract.audio import ENCODER_RATE
from ser.extract.extractor import ResolvedFeature
from ser.predict import Predictor
from ser.predict.trained import InputRecord
from ser.train.records import FeatureRecord

from .features_in_words import feature_in_words, reading_in_words, tokens_in_words

# Extractors whose encoder can stand in a graph, waveform and all.
ON_WAVEFORMS = ("speech", "whisper")

# So many speakers a graph is compared with.
SPEAKERS = 3


@dataclass(frozen=True)
class Spread:
    """How the columns of a feature are spread in training, `[dim]` each.

    A graph is compared on features like these: of what lies a thousand deviations away float32
    leaves no more than three digits, in the graph and in `ser predict` alike.
    """

    means: np.ndarray
    deviations: np.ndarray


@dataclass(frozen=True)
class GraphInput:
    """One input: its name, and its axes, each a size or what is counted."""

    name: str
    shape: tuple[int | str, ...]
    description: str
    """How it is made, in words and numbers."""
    numbers: int | None = None
    """Of an input of int64: so many numbers, from 0, it is compared with. None: float32."""
    spread: Spread | None = None
    """Of a feature that the run z-scores, how the values that it is compared with are spread; those
    of any other are from a standard normal distribution."""

    @property
    def dtype(self) -> Literal["float32", "int64"]:
        """The type of its values."""
        return "float32" if self.numbers is None else "int64"

    def sized(self, counts: dict[str, int]) -> tuple[int, ...]:
        """The shape with the axes of these counts."""
        return tuple(counts[axis] if isinstance(axis, str) else axis for axis in self.shape)

    def random(self, counts: dict[str, int], generator: np.random.Generator) -> np.ndarray:
        """Random values of these counts."""
        shape = self.sized(counts)
        if self.numbers is not None:
            return generator.integers(self.numbers, size=shape)
        values = generator.standard_normal(shape)
        if self.spread is not None:
            values = self.spread.means + self.spread.deviations * values
        return values.astype(np.float32)

    @property
    def record(self) -> InputRecord:
        """What config.json says of it."""
        return InputRecord(
            name=self.name,
            shape=list(self.shape),
            dtype=self.dtype,
            description=self.description,
        )


def is_on_one_encoder(predictor: Predictor) -> bool:
    """Whether all that the run takes is made of the waveform by one pass of one audio encoder."""
    if list(predictor.features) != ["audio"]:
        return False

    specs = [feature.spec for feature in predictor.features["audio"]]
    if any(spec.extractor not in ON_WAVEFORMS for spec in specs):
        return False
    # Autocast to bfloat16 rounds on the way, which a graph in float32 would not.
    if any(spec.config["precision"] != "float32" for spec in specs):
        return False
    return len(predictor.extractors("audio")) == 1


def takes_tokens(predictor: Predictor, modality: str) -> bool:
    """Whether the run takes token ids, since it trained the whole encoder of the feature."""
    return predictor.run.config.features[modality].extra is not None


def waveform_input(predictor: Predictor) -> GraphInput:
    """The waveform, for a run on one audio encoder."""
    steps: list[str] = []
    for feature, record in zip(
        predictor.features["audio"], predictor.records["audio"], strict=True
    ):
        steps.append(f"{feature.spec.name}: {whole_way(predictor, feature, record)}")

    samples = f"samples at {ENCODER_RATE} Hz, mono, from -1 to 1"
    description = f"{samples}; the graph makes of it {'. '.join(steps)}"
    return GraphInput("waveform", (1, "samples"), description)


def feature_inputs(predictor: Predictor) -> list[GraphInput]:
    """One input per feature, in the order of the columns: audio before text.

    Then one for the speakers, if the fusion takes them.
    """
    inputs: list[GraphInput] = []
    for modality, features in predictor.features.items():
        first_column = 0
        for feature, record in zip(features, predictor.records[modality], strict=True):
            name = _unique(feature.spec.name, inputs)
            if takes_tokens(predictor, modality):
                inputs.append(token_input(predictor, modality, name, feature.spec))
                continue

            spread = spread_in_training(predictor, modality, first_column, feature.spec, record)
            first_column += read_columns(predictor, feature.spec, record)
            inputs.append(feature_input(predictor, modality, name, feature.spec, record, spread))

    if predictor.fusion.takes_speakers:
        inputs.append(speaker_input(_unique("speakers", inputs)))
    return inputs


def feature_input(
    predictor: Predictor,
    modality: str,
    name: str,
    spec: Spec,
    record: FeatureRecord,
    spread: Spread | None,
) -> GraphInput:
    """The rows of a feature, its vector, or a vector of each turn."""
    by_turns = predictor.fusion.unit == "dialogue"
    shape: tuple[int | str, ...] = (f"{modality}_rows", spec.dim)
    if by_turns:
        shape = ("turns", read_columns(predictor, spec, record))
    elif spec.level == "utterance":
        shape = (spec.dim,)

    description = feature_in_words(spec)
    reading = reading_in_words(spec, record, predictor.fusion.takes_vectors(modality))
    if reading:
        who = "you give what is" if by_turns else "the graph takes the rows, which are"
        description += f"; {who} {reading}"
    return GraphInput(name, shape, description, spread=spread)


def read_columns(predictor: Predictor, spec: Spec, record: FeatureRecord) -> int:
    """The columns of a feature as the run takes them: twice its own for mean and deviation."""
    by_vectors = predictor.fusion.takes_vectors(spec.modality)
    if by_vectors and spec.level != "utterance" and record.pool == "meanstd":
        return 2 * spec.dim
    return spec.dim


def spread_in_training(
    predictor: Predictor, modality: str, first_column: int, spec: Spec, record: FeatureRecord
) -> Spread | None:
    """How the values of a feature's input are spread, whose columns begin at `first_column`.

    None where the run does not z-score them, and so keeps no statistics.
    """
    standardizer = predictor.fitted.scaling.get(modality)
    if standardizer is None:
        return None

    columns = slice(first_column, first_column + read_columns(predictor, spec, record))
    mean, std = standardizer.of_new_speech
    means = mean[columns].numpy()
    deviations = std[columns].numpy()

    is_pooled_by_graph = predictor.fusion.unit != "dialogue"
    if is_pooled_by_graph and len(means) == 2 * spec.dim:
        # Of the rows, from the means of their means and of their deviations.
        return Spread(means[: spec.dim], means[spec.dim :])
    return Spread(means, deviations)


def token_input(predictor: Predictor, modality: str, name: str, spec: Spec) -> GraphInput:
    """The token ids, for a run that trained the whole encoder of a feature."""
    encoders = predictor.run.config.provenance.encoders or {}
    vocabulary: int = encoders[modality]["vocab_size"]
    return GraphInput(name, (f"{modality}_rows",), tokens_in_words(spec), vocabulary)


def speaker_input(name: str) -> GraphInput:
    """Who speaks each turn of a dialogue."""
    description = (
        "a number for each turn, such as 0 and 1, the same for all turns of one speaker; 0 for all "
        "turns where nobody tells the speakers apart"
    )
    return GraphInput(name, ("turns",), description, SPEAKERS)


def whole_way(predictor: Predictor, feature: ResolvedFeature, record: FeatureRecord) -> str:
    """How a feature is made and read, in words."""
    by_vectors = predictor.fusion.takes_vectors(feature.spec.modality)
    reading = reading_in_words(feature.spec, record, by_vectors)
    return "; ".join(filter(None, [feature_in_words(feature.spec), reading]))


def _unique(name: str, inputs: list[GraphInput]) -> str:
    """The name, with a number where an input before it has the same."""
    same = 0
    for graph_input in inputs:
        if graph_input.name == name or graph_input.name.startswith(f"{name} "):
            same += 1
    return f"{name} {same + 1}" if same else name
