"""Lian, Tao, Liu & Huang (Interspeech 2019, arXiv 1910.11263), "Zheng. (2019)" in Perspective.

"Conversational emotion analysis via attention mechanisms". Its abstract and opening are what is
public of it:

    "The attention mechanism is applied to the fusion of the acoustic and lexical features. Then
    these fusion representations are fed into the self-attention based bi-directional gated
    recurrent unit (GRU) layer to capture long-term contextual information. To imitate real
    interaction patterns of different speakers, speaker embeddings are also utilized as additional
    inputs to distinguish the speaker identities during conversational dialogs."

Here, for the turns of a dialogue with the vectors a_i and t_i and the speaker's embedding s_i:

    z_i = AT-Fusion(ReLU(W_a a_i), ReLU(W_t t_i))
    h = Bi-GRU([z_1; s_1] … [z_N; s_N])
    logits = W self-attention(h)

**What the text leaves open is assumed.** The fusion by attention is taken to be AT-Fusion (Poria et
al., ICDM 2017), the self-attention multi-head; widths and training are Perspective's. A speaker is
known by its role in the dialogue, the first to speak or the second: those of a test part are nobody
that the model has seen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch, vectors
from .fusion import (
    BOTH,
    OURS,
    CommonSettings,
    Count,
    Dims,
    Dropout,
    Fusion,
    Positive,
    Weight,
    setting,
)
from .layers.attention import Attention
from .layers.device import without_autocast
from .layers.gru import bigru
from .layers.layout import RaggedLayout
from .layers.roles import speaker_roles
from .perspective import Fuse

AS_PERSPECTIVE = "ours: as Perspective has it"


@dataclass(frozen=True)
class ContextSettings(CommonSettings):
    """Of a model over the turns of a dialogue whose paper is not public: as Perspective's."""

    epochs: Count = setting(150, AS_PERSPECTIVE)
    batch_size: Count = setting(20, AS_PERSPECTIVE, "dialogues per batch")
    lr: Positive = setting(1e-3, AS_PERSPECTIVE)
    weight_decay: Weight = setting(1e-5, AS_PERSPECTIVE)
    dropout: Dropout = setting(
        0.2, AS_PERSPECTIVE, "dropout after the Bi-GRU and after the self-attention"
    )
    standardise_audio: bool = setting(True, AS_PERSPECTIVE)
    d_model: Count = setting(100, AS_PERSPECTIVE, "width that the features are reduced to")
    gru_hidden: Count = setting(50, AS_PERSPECTIVE, "GRU states per direction")
    heads: Count = setting(4, AS_PERSPECTIVE, "heads of the self-attention")


@dataclass(frozen=True)
class LianSettings(ContextSettings):
    """All assumed."""

    roles: Count = setting(
        2, OURS, "speakers of a dialogue that are told apart, in the order in which they speak"
    )
    speaker_width: Count = setting(10, OURS, "width of a speaker's embedding")


class Lian(nn.Module):
    """The equations above.

    Raises `WrongUse` if the self-attention's width does not split into the heads.
    """

    def __init__(self, settings: LianSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d = settings.d_model
        states = 2 * settings.gru_hidden
        self.dims = {modality: dims[modality] for modality in BOTH}
        self.roles = settings.roles

        self.features = nn.ModuleDict({m: nn.Linear(dims[m], d) for m in BOTH})
        self.fuse = Fuse("at", d)
        self.speakers = nn.Embedding(settings.roles, settings.speaker_width)
        self.gru = nn.ModuleDict(
            {"fused": nn.GRU(d + settings.speaker_width, settings.gru_hidden, bidirectional=True)}
        )
        self.attention = Attention(states, settings.heads)
        self.dropout = nn.Dropout(settings.dropout)
        self.logits = nn.Linear(states, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        layout = RaggedLayout(batch.dialogues, batch.device)
        reduced = {}
        for modality, dim in self.dims.items():
            features = self.features[modality]
            rows = features(vectors(batch, modality, dim)).relu()
            reduced[modality] = rows.to(features.weight.dtype)

        with without_autocast(batch.device.type):
            z = self.fuse(reduced["audio"], reduced["text"])  # [n, d]
            s = self.speakers(speaker_roles(batch, layout, self.roles))

            h = bigru(self.gru, {"fused": torch.cat([z, s], 1)}, layout)["fused"]
            attended = self.attention(self.dropout(h), layout)
            return {"logits": self.logits(self.dropout(attended))}


FUSIONS = [
    Fusion(
        name="lian",
        source="Lian et al., Interspeech 2019",
        settings=LianSettings,
        inputs=BOTH,
        level="vector",
        build=Lian,
        unit="dialogue",
        takes_speakers=True,
    )
]
