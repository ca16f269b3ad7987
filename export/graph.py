"""What goes into the graph: from a waveform, or from features, to what a run predicts.

x  a feature's rows, as a store holds them     K  classes
r  rows: frames or tokens                      n  utterances: the turns of a dialogue, or 1
"""

from typing import Any

import torch
from torch import Tensor, nn

from ser.cache.spec import Spec
from ser.predict import Predictor
from ser.train.models.batch import Batch, Sequences
from ser.train.rating_scales import scale_of
from ser.train.records import FeatureRecord
from ser.train.targets import TARGETS

from .inputs import takes_tokens
from .one_sequence import OneSequence
from .waveform import EncoderFrames


class Outputs(nn.Module):
    """From each modality's columns to the outputs: z-scores, the trained model, temperature."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = predictor.fitted.model
        self.fusion = predictor.fusion
        self.n_classes = len(predictor.classes)
        self.temperature = predictor.temperature or 1.0

        self.is_rated = TARGETS[predictor.config.target].rated
        self.scale = scale_of(predictor.config.training) if self.is_rated else (-1.0, 1.0)

        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        for modality, standardizer in predictor.fitted.scaling.items():
            self.moments[modality] = standardizer.of_new_speech

    @property
    def names(self) -> list[str]:
        """The outputs' names, in their order."""
        names = ["logits", "probabilities"] if self.n_classes else []
        if self.is_rated:
            names.append("ratings")
        return names

    def forward(
        self, columns: dict[str, Tensor], speakers: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Each modality's rows `[r, dim]`, or vectors `[n, dim]`, to the outputs of `names`.

        Of a model that takes speakers, who speaks each turn; int64 `[n]`.
        Logits and probabilities `[n, K]`, and ratings `[n, 3]` on the corpus's scale, as far as the
        run learnt them.
        """
        inputs: dict[str, Sequences] = {}
        for modality, values in columns.items():
            if modality in self.moments:
                mean, std = self.moments[modality]
                values = (values - mean) / std
            inputs[modality] = self.sequences(values, self.fusion.takes_vectors(modality))

        n = 1
        for modality, values in columns.items():
            if self.fusion.takes_vectors(modality):
                n = values.shape[0]
        # The models make a layout of `dialogues`; it is one already: see `one_sequence.layout_of`.
        dialogue: Any = OneSequence(n)
        batch = Batch(inputs, dialogue, speakers, heads=frozenset({"logits"}))
        predictions = self.model(batch)["logits"]

        outputs: list[Tensor] = []
        if self.n_classes:
            logits = predictions[:, : self.n_classes]
            outputs += [logits, (logits / self.temperature).softmax(1)]
        if self.is_rated:
            low, high = self.scale
            outputs.append(low + (high - low) * (predictions[:, self.n_classes :] + 1) / 2)
        return tuple(outputs)

    def sequences(self, values: Tensor, are_vectors: bool) -> Sequences:
        """Rows of one utterance, or a vector of each of n."""
        rows = values.shape[0]
        layout = OneSequence(rows)
        lengths = torch.ones(rows, dtype=torch.int64) if are_vectors else layout.lengths
        return Sequences(values, lengths, layout=layout)


class FromFeatures(nn.Module):
    """From a run's features to its outputs.

    Takes them in the order of the columns, and then the speakers, if the fusion does.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.outputs = Outputs(predictor)
        self.records = predictor.records
        self.specs = {
            modality: [feature.spec for feature in features]
            for modality, features in predictor.features.items()
        }
        self.fusion = predictor.fusion
        self.by_turns = predictor.fusion.unit == "dialogue"
        self.takes_speakers = predictor.fusion.takes_speakers
        self.of_tokens = [m for m in predictor.features if takes_tokens(predictor, m)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Each feature `[r, dim]`.

        `[dim]` where it is one vector, `[n, dim]` of a model of dialogues, whose speakers are int64
        `[n]`, and int64 `[r]` of token ids.
        """
        remaining = list(inputs)
        speakers = remaining.pop() if self.takes_speakers else None
        columns: dict[str, Tensor] = {}
        for modality, records in self.records.items():
            read: list[Tensor] = []
            for record, spec in zip(records, self.specs[modality], strict=True):
                x = remaining.pop(0)
                if modality in self.of_tokens:
                    x = x[:, None].float()
                elif not self.by_turns:
                    x = x[None] if spec.level == "utterance" else x
                    x = as_read(x, record, spec, self.fusion.takes_vectors(modality))
                read.append(x)
            columns[modality] = torch.cat(read, 1)
        return self.outputs(columns, speakers)


class FromWaveform(nn.Module):
    """From a waveform to the outputs of a run on one audio encoder."""

    def __init__(self, predictor: Predictor, frames: EncoderFrames) -> None:
        super().__init__()
        self.frames = frames
        self.outputs = Outputs(predictor)
        self.records = predictor.records["audio"]
        self.by_vectors = predictor.fusion.takes_vectors("audio")

    def forward(self, *waveforms: Tensor) -> tuple[Tensor, ...]:
        """One, `[1, samples]`: 16 kHz, mono, from -1 to 1."""
        [waveform] = waveforms
        stored = self.frames(waveform)

        read: list[Tensor] = []
        for record, spec, x in zip(self.records, self.frames.extractor.specs, stored, strict=True):
            read.append(as_read(x, record, spec, self.by_vectors))
        return self.outputs({"audio": torch.cat(read, 1)})


def as_read(x: Tensor, record: FeatureRecord, spec: Spec, by_vectors: bool) -> Tensor:
    """A feature's rows `[r, dim]` as the run takes them.

    Averaged to its hop, and `by_vectors` pooled into one vector: the mean `[1, dim]`, or mean and
    standard deviation `[1, 2 dim]`.
    """
    if record.hop is not None and spec.hop:
        x = averaged(x, round(record.hop / spec.hop))
    if not by_vectors or spec.level == "utterance":
        return x

    mean = x.mean(0, keepdim=True)
    if record.pool == "mean":
        return mean
    return torch.cat([mean, x.std(0, correction=0, keepdim=True)], 1)


def averaged(x: Tensor, every: int) -> Tensor:
    """Means of so many rows `[r, dim]` each, the last one over as many as are left."""
    rows = x.shape[0]
    groups = (rows + every - 1) // every
    padded = nn.functional.pad(x, (0, 0, 0, groups * every - rows))
    sums = padded.reshape(groups, every, x.shape[1]).sum(1)
    sizes = (rows - torch.arange(groups) * every).clamp(max=every)
    return sums / sizes[:, None]
