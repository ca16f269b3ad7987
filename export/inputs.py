"""What a graph takes: one waveform, or one input per feature."""

from dataclasses import dataclass

from ser.extract.audio import ENCODER_RATE
from ser.extract.extractor import ResolvedFeature
from ser.predict import Predictor
from ser.predict.trained import InputRecord
from ser.train.records import FeatureRecord

from .features_in_words import feature_in_words, reading_in_words

# Extractors whose encoder can stand in a graph, waveform and all.
ON_WAVEFORMS = ("speech", "whisper")


@dataclass(frozen=True)
class GraphInput:
    """One input: its name, and its axes, each a size or what is counted."""

    name: str
    shape: tuple[int | str, ...]
    made: str

    def sized(self, counts: dict[str, int]) -> tuple[int, ...]:
        """The shape with the axes of these counts."""
        return tuple(counts[axis] if isinstance(axis, str) else axis for axis in self.shape)

    @property
    def record(self) -> InputRecord:
        """What config.json says of it."""
        return InputRecord(name=self.name, shape=list(self.shape), made=self.made)


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


def waveform_input(predictor: Predictor) -> GraphInput:
    """The waveform, for a run on one audio encoder."""
    steps: list[str] = []
    for feature, record in zip(
        predictor.features["audio"], predictor.records["audio"], strict=True
    ):
        steps.append(f"{feature.spec.name}: {whole_way(predictor, feature, record)}")
    made = f"samples at {ENCODER_RATE} Hz, mono, from -1 to 1; the graph makes of it " + ". ".join(
        steps
    )
    return GraphInput("waveform", (1, "samples"), made)


def feature_inputs(predictor: Predictor) -> list[GraphInput]:
    """One input per feature, in the order of the columns: audio before text."""
    by_vectors = predictor.fusion.level == "vector"
    by_turns = predictor.fusion.unit == "dialogue"

    inputs: list[GraphInput] = []
    for modality, features in predictor.features.items():
        for feature, record in zip(features, predictor.records[modality], strict=True):
            spec = feature.spec
            dim = spec.dim
            shape: tuple[int | str, ...] = (f"{modality}_rows", dim)
            if by_turns:
                if record.pool == "meanstd" and spec.level != "utterance":
                    dim *= 2
                shape = ("turns", dim)
            elif spec.level == "utterance":
                shape = (dim,)

            made = feature_in_words(spec)
            reading = reading_in_words(spec, record, by_vectors)
            if reading:
                who = "you give what is" if by_turns else "the graph takes the rows, which are"
                made += f"; {who} {reading}"
            inputs.append(GraphInput(_unique(spec.name, inputs), shape, made))
    return inputs


def whole_way(predictor: Predictor, feature: ResolvedFeature, record: FeatureRecord) -> str:
    """How a feature is made and read, in words."""
    reading = reading_in_words(feature.spec, record, predictor.fusion.level == "vector")
    return "; ".join(filter(None, [feature_in_words(feature.spec), reading]))


def _unique(name: str, before: list[GraphInput]) -> str:
    """The name, with a number where an input before it has the same."""
    same = sum(each.name == name or each.name.startswith(f"{name} ") for each in before)
    return f"{name} {same + 1}" if same else name
