"""DANN (Lian, Tao, Liu, Huang, Yang & Li, Interspeech 2020).

"Context-dependent domain adversarial neural network for multimodal emotion recognition". Its
abstract (doi 10.21437/Interspeech.2020-1705) is what is public of it: an encoder takes in both
modalities and the dialogue; an emotion classifier and a speaker classifier read it, and the second
is trained "adversarially", so that what the encoder gives tells the emotion and not who speaks.

Here, for the turns of a dialogue with the vectors a_i and t_i:

    x_i = [ReLU(W_a a_i); ReLU(W_t t_i)]
    z = self-attention(Bi-GRU(x))
    logits = W z
    speakers, in training alone = W_s R(z)

R is gradient reversal (Ganin & Lempitsky, ICML 2015, eq. 10): it gives what it gets, and the
gradient that comes back through it is multiplied by −λ,

    λ = `adversary` (2 / (1 + exp(−10 p)) − 1)

after the share p of all updates (their §4).

**What the text leaves open is assumed**: the encoder's layers, widths and training are
Perspective's, λ ramps as in its source. The paper trains the speaker classifier on utterances
without a usable label too; here on those of the training part.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Batch, vectors
from .fusion import BOTH, Dims, Fusion, Weight, setting
from .layers.attention import Attention
from .layers.device import without_autocast
from .layers.gru import bigru
from .layers.layout import RaggedLayout
from .lian import ContextSettings
from .pooled_vector import PooledVector

GANIN = "Ganin & Lempitsky, ICML 2015, §4"


@dataclass(frozen=True)
class DannSettings(ContextSettings):
    """All assumed."""

    adversary: Weight = setting(
        1.0,
        GANIN,
        "the λ at the end, by which the speakers' gradient is reversed",
    )


class ReversedGradient(torch.autograd.Function):
    """R: its inputs x and λ; gives x, and gets −λ times the gradient."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.factor = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * grad, None


class Dann(nn.Module):
    """The equations above.

    Raises `WrongUse` if the self-attention's width does not split into the heads.
    """

    def __init__(self, settings: DannSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d = settings.d_model
        states = 2 * settings.gru_hidden
        self.dims = {modality: dims[modality] for modality in BOTH}
        self.adversary = settings.adversary

        self.features = nn.ModuleDict({m: nn.Linear(dims[m], d) for m in BOTH})
        self.gru = nn.ModuleDict({"both": nn.GRU(2 * d, settings.gru_hidden, bidirectional=True)})
        self.attention = Attention(states, settings.heads)
        self.dropout = nn.Dropout(settings.dropout)
        self.logits = nn.Linear(states, classes)
        # The speakers' classifier is added to it for the time of a training.
        self.speakers = PooledVector(states)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`, and in training those of the speakers."""
        layout = RaggedLayout(batch.dialogues, batch.device)
        reduced = []
        for modality, dim in self.dims.items():
            features = self.features[modality]
            rows = features(vectors(batch, modality, dim)).relu()
            reduced.append(rows.to(features.weight.dtype))

        with without_autocast(batch.device.type):
            h = bigru(self.gru, {"both": torch.cat(reduced, 1)}, layout)["both"]
            z = self.dropout(self.attention(self.dropout(h), layout))

            speakers: dict[str, Tensor] = {}
            if self.training:
                factor = self.adversary * ramp(batch.progress)
                _, speakers = self.speakers(ReversedGradient.apply(z, factor), batch)
            return {"logits": self.logits(z), **speakers}


def ramp(progress: float) -> float:
    """2 / (1 + exp(−10 p)) − 1: 0 at the start, and near 1 after half of a training."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


FUSIONS = [
    Fusion(
        name="dann",
        source="Lian et al., Interspeech 2020",
        settings=DannSettings,
        inputs=BOTH,
        level="vector",
        build=Dann,
        unit="dialogue",
        adversary="speaker",
    )
]
