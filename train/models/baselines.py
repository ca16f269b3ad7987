"""What the three papers compare with, as far as descriptions define it on these features.

Each class names its source. What differs from it, and why, stands beside it; sizes that a
description leaves open are settings. None of these are reproductions of the numbers that the papers
quote: those came from other features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch, vectors, visible_rows
from .fusion import (
    BOTH,
    OURS,
    CommonSettings,
    Count,
    Dims,
    Dropout,
    Fusion,
    Positive,
    Stage,
    Weight,
    setting,
)
from .layers.attention import Attention
from .layers.classifier import classifier
from .layers.layout import RaggedLayout, Rows
from .layers.pooling import mean_rows
from .layers.rnn import recurrent


@dataclass(frozen=True)
class HierarchySettings(CommonSettings):
    """Of two levels over the utterances of a dialogue; all ours."""

    epochs: Count = setting(100, OURS, "epochs, of each stage")
    batch_size: Count = setting(20, OURS, "dialogues per batch")
    weight_decay: Weight = setting(1e-5, OURS)
    dropout: Dropout = setting(0.2, OURS, "dropout before each dense layer")
    standardise_audio: bool = setting(True, OURS)
    lstm_hidden: Count = setting(100, OURS, "LSTM states per direction")


@dataclass(frozen=True)
class BcLstmSettings(HierarchySettings):
    """Poria et al., ACL 2017, where it says; else ours."""

    dense: Count = setting(100, OURS, "width of the dense layer, the context-dependent feature")


class ContextualLstm(nn.Module):
    """One contextual bi-LSTM: LSTM over the utterances, z = ReLU(W_z h + b_z), softmax(W z + b)."""

    def __init__(self, settings: BcLstmSettings, dim: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, settings.lstm_hidden, bidirectional=True)
        self.dense = nn.Linear(2 * settings.lstm_hidden, settings.dense)
        self.logits = nn.Linear(settings.dense, classes)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, layout: RaggedLayout) -> tuple[Tensor, Tensor]:
        """Rows `[n, dim]` → features z `[n, dense]` and logits `[n, K]`."""
        h = recurrent(self.lstm, x, layout)  # [n, 2 lstm_hidden]
        z = F.relu(self.dense(self.dropout(h)))
        return z, self.logits(self.dropout(z))


class BcLstm(nn.Module):
    """bc-LSTM, hierarchical framework (Poria et al., ACL 2017, §3.2).

    "Context-dependent sentiment analysis in user-generated videos".

    Level 1: a contextual bi-LSTM per modality, trained alone; level 2: one over their features z.
    """

    def __init__(self, settings: BcLstmSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dims = {m: dims[m] for m in BOTH}
        self.audio: nn.Module = ContextualLstm(settings, dims["audio"], classes)
        self.text: nn.Module = ContextualLstm(settings, dims["text"], classes)
        self.fusion: nn.Module = ContextualLstm(settings, 2 * settings.dense, classes)
        self.fuse: Callable[[Tensor, Tensor], Tensor] = concatenate_features

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]` of level 2, and of the two of level 1."""
        layout = RaggedLayout(batch.dialogues, batch.device)
        features: dict[str, Tensor] = {}
        heads: dict[str, Tensor] = {}
        for modality, dim in self.dims.items():
            if batch.wants("logits", modality):
                level_1 = getattr(self, modality)
                x = vectors(batch, modality, dim)
                features[modality], heads[modality] = level_1(x, layout)

        # A stage that trains one branch needs no level 2.
        if batch.wants("logits"):
            fused = self.fuse(features["audio"], features["text"])
            _, heads["logits"] = self.fusion(fused, layout)
        return heads


def concatenate_features(audio: Tensor, text: Tensor) -> Tensor:
    """Features z `[n, dense]` of both modalities → `[n, 2 dense]`."""
    return torch.cat([audio, text], 1)


@dataclass(frozen=True)
class ConcatSettings(CommonSettings):
    """No paper's: the simplest fusion there is."""

    batch_size: Count = setting(32, OURS)
    weight_decay: Weight = setting(1e-5, OURS)
    dropout: Dropout = setting(0.2, OURS, "dropout before each linear layer")
    standardise_audio: bool = setting(True, OURS)
    standardise_text: bool = setting(True, OURS)
    hidden: Count = setting(100, OURS, "width between the two linear layers")


class Concat(nn.Module):
    """Concatenation baseline: a two-layer perceptron on both vectors of an utterance, side by side.

    The "early fusion" that e.g. Poria et al., ACL 2017, compare with, there with an SVM; no
    context.
    """

    def __init__(self, settings: ConcatSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dims = {m: dims[m] for m in BOTH}
        width = dims["audio"] + dims["text"]
        layers = classifier(settings.dropout, width, settings.hidden, classes)
        self.layers = nn.Sequential(nn.Dropout(settings.dropout), *layers)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        audio = vectors(batch, "audio", self.dims["audio"])
        text = vectors(batch, "text", self.dims["text"])
        return {"logits": self.layers(torch.cat([audio, text], 1))}


@dataclass(frozen=True)
class CmaSettings(CommonSettings):
    """Krishna & Patil, Interspeech 2020, where known; else ours."""

    epochs: Count = setting(50, OURS)
    lr: Positive = setting(1e-4, OURS)
    dropout: Dropout = setting(0.2, OURS, "dropout after the encoders and before the classifier")
    lstm_hidden: Count = setting(128, OURS, "states per direction of the encoders")
    heads: Count = setting(8, OURS, "heads of the cross-modal attention")


class Cma(nn.Module):
    """Cross-modal attention (Krishna & Patil, Interspeech 2020).

    "Multimodal emotion recognition using cross-modal attention and 1D convolutional neural
    networks".

    Audio frames attend to words and words to frames; mean and standard deviation over time of both,
    concatenated, are classified. Their 1-D convolutions over the waveform and over word vectors are
    what makes features; here these are cached, and only the recurrent encoder over them is left.
    """

    def __init__(self, settings: CmaSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dims = {m: dims[m] for m in BOTH}
        d = 2 * settings.lstm_hidden
        self.encoder = nn.ModuleDict(
            {m: nn.LSTM(dims[m], settings.lstm_hidden, bidirectional=True) for m in BOTH}
        )
        self.attention = nn.ModuleDict({m: Attention(d, settings.heads) for m in BOTH})
        self.dropout = nn.Dropout(settings.dropout)
        self.logits = nn.Linear(4 * d, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`.

        Where one modality is hidden nothing is seen: the other has nothing to attend to.
        """
        audio = self._encode(batch, "audio")
        text = self._encode(batch, "text")

        statistics = [
            *self._attend_across("audio", audio, text),
            *self._attend_across("text", text, audio),
        ]
        return {"logits": self.logits(self.dropout(torch.cat(statistics, 1)))}

    def _encode(self, batch: Batch, modality: str) -> Rows:
        """The states of a modality's encoder, `[r, d]`, and their layout."""
        x, layout = visible_rows(batch, modality, self.dims[modality])
        states = recurrent(self.encoder[modality], x, layout)
        return self.dropout(states), layout

    def _attend_across(self, modality: str, states: Rows, memory: Rows) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over time, `[n, d]`, of what a modality sees of the other."""
        x, layout = states
        attended = self.attention[modality](x, layout, memory)

        mean = mean_rows(attended, layout)
        variance = mean_rows((attended - mean[layout.owner]).square(), layout)
        # The root's slope at zero is infinite.
        deviation = (variance + 1e-8).sqrt()
        return mean, deviation


# Level 1 first, each modality alone, and then level 2 on what they have become.
HIERARCHY = (
    Stage("audio", output="audio", trains=("audio.",)),
    Stage("text", output="text", trains=("text.",)),
    Stage("fusion", trains=("fusion.", "fuse.")),
)

FUSIONS = [
    Fusion(
        name="bc-lstm",
        source="Poria et al., ACL 2017",
        settings=BcLstmSettings,
        inputs=BOTH,
        level="vector",
        build=BcLstm,
        unit="dialogue",
        stages=HIERARCHY,
    ),
    Fusion(
        name="concat:utterance",
        source="concatenation baseline",
        settings=ConcatSettings,
        inputs=BOTH,
        level="vector",
        build=Concat,
    ),
    Fusion(
        name="cma",
        source="Krishna & Patil, Interspeech 2020",
        settings=CmaSettings,
        inputs=BOTH,
        level="sequence",
        build=Cma,
    ),
]
