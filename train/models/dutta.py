"""Dutta & Ganapathy (ICASSP 2022), "Soumya. (2022)" in Perspective.

"Multimodal transformer with learnable frontend and self attention for emotion recognition", as in
its authors' code (github.com/iiscleap/multimodal_emotion_recognition). Of its three stages the
first makes the vectors of utterances, out of waveforms and words; here they are cached features.

Stage 2, of each modality alone, over the turns of a dialogue. Of both directions of a Bi-GRU, with
weights of each one's own,

    S = W h + b
    A = softmax(S Sᵀ), over the queries
    r = A S
    logits = W [r forwards; r backwards]

Stage 3, on what stage 2, which is trained no more, makes of both modalities:

    x = the turns' W_t r of the text, and behind them their W_a r of the audio
    y = BERT's encoder(x), without positions
    logits = W [y of the turn's text; y of its audio]

The code's softmax takes in the padding behind short dialogues; here there is none. Its loss is the
mean over dialogues of their turns' mean, here of all turns.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
    Stage,
    setting,
)
from .layers.attention import Attention
from .layers.layout import RaggedLayout, concatenate
from .layers.rnn import recurrent
from .layers.transformer import EncoderLayer

CODE = "the authors' code, iiscleap/multimodal_emotion_recognition"

# BERT's layer norms divide by this at least.
EPSILON = 1e-12


@dataclass(frozen=True)
class DuttaSettings(CommonSettings):
    """The authors' code, config.py and bigru_audio.ipynb."""

    epochs: Count = setting(10, CODE, "epochs of stage 3, the transformer")
    batch_size: Count = setting(32, CODE, "dialogues per batch")
    lr: Positive = setting(1e-4, CODE, "Adam's learning rate in stage 3")
    dropout: Dropout = setting(0.2, CODE, "dropout before and after the transformer")
    standardise_audio: bool = setting(True, OURS)
    gru_epochs: Count = setting(20, CODE, "epochs of stage 2, of each modality's Bi-GRU")
    gru_lr: Positive = setting(1e-3, CODE, "Adam's learning rate in stage 2")
    gru_hidden: Count = setting(
        200, CODE, "GRU states per direction (audio; 50 for text, and 100 in config.py)"
    )
    gru_depth: Count = setting(2, CODE, "layers of the Bi-GRU")
    d_model: Count = setting(120, CODE, "width of the transformer")
    heads: Count = setting(12, CODE, "heads of the transformer")
    encoder_depth: Count = setting(3, CODE, "layers of the transformer")
    encoder_width: Count = setting(
        3072, CODE, "width of its feed-forward nets, which is BERT base's"
    )
    encoder_dropout: Dropout = setting(
        0.1, CODE, "dropout in the transformer, of its attention's weights too"
    )


class AttendedStates(nn.Module):
    """Stage 2's attention within the states of one direction: r = softmax(S Sᵀ) S, S = W h + b."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, h: Tensor, layout: RaggedLayout) -> Tensor:
        """Rows `[n, H]` → `[n, H]`, dialogue by dialogue."""
        s = layout.pad(self.map(h))  # [m, t, H]
        scores = s @ s.mT  # [m, t, t]
        # Over the queries: what all turns take of a turn sums to one.
        weights = scores.masked_fill(~layout.attended[:, :, None], -torch.inf).softmax(1)
        return layout.unpad(weights @ s)


class DialogueGru(nn.Module):
    """Stage 2 of one modality."""

    def __init__(self, settings: DuttaSettings, dim: int, classes: int) -> None:
        super().__init__()
        hidden = settings.gru_hidden

        self.gru = nn.ModuleList()
        for layer in range(settings.gru_depth):
            width = dim if layer == 0 else 2 * hidden
            self.gru.append(nn.GRU(width, hidden, bidirectional=True))

        self.forwards = AttendedStates(hidden)
        self.backwards = AttendedStates(hidden)
        self.logits = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor, layout: RaggedLayout) -> tuple[Tensor, Tensor]:
        """Rows `[n, dim]` → states `[n, 2 H]` and logits `[n, K]`."""
        for layer in self.gru:
            x = recurrent(layer, x, layout)

        forwards, backwards = x.chunk(2, 1)
        r = torch.cat([self.forwards(forwards, layout), self.backwards(backwards, layout)], 1)
        return r, self.logits(r)


class BertLayer(EncoderLayer):
    """A layer of BERT's encoder (Devlin et al., NAACL 2019, §3), which has GELU."""

    def __init__(self, settings: DuttaSettings) -> None:
        d = settings.d_model
        attention = Attention(d, settings.heads, settings.encoder_dropout)
        super().__init__(
            d, settings.heads, settings.encoder_width, settings.encoder_dropout, attention
        )
        self.norm1.eps = EPSILON
        self.norm2.eps = EPSILON

    def feed_forward(self, x: Tensor) -> Tensor:
        """W₂ GELU(W₁ x + b₁) + b₂, row by row; `[r, d]` → `[r, d]`."""
        return self.linear2(F.gelu(self.linear1(x)))


class Dutta(nn.Module):
    """Stages 2 and 3.

    Raises `WrongUse` if the transformer's width does not split into the heads.
    """

    def __init__(self, settings: DuttaSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d = settings.d_model
        self.dims = {modality: dims[modality] for modality in BOTH}

        self.audio = DialogueGru(settings, dims["audio"], classes)
        self.text = DialogueGru(settings, dims["text"], classes)

        self.project = nn.ModuleDict({m: nn.Linear(2 * settings.gru_hidden, d) for m in BOTH})
        self.encoder = nn.ModuleList(BertLayer(settings) for _ in range(settings.encoder_depth))
        self.dropout = nn.Dropout(settings.dropout)
        self.logits = nn.Linear(2 * d, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]` of stage 3, and of the two of stage 2."""
        layout = RaggedLayout(batch.dialogues, batch.device)
        states: dict[str, Tensor] = {}
        heads: dict[str, Tensor] = {}
        for modality, dim in self.dims.items():
            if batch.wants("logits", modality):
                stage_2 = getattr(self, modality)
                x = vectors(batch, modality, dim)
                states[modality], heads[modality] = stage_2(x, layout)

        # What trains one modality's Bi-GRU needs no transformer.
        if batch.wants("logits"):
            text = self.dropout(self.project["text"](states["text"]))
            audio = self.dropout(self.project["audio"](states["audio"]))
            turns = self._encode(text, audio, layout)
            heads["logits"] = self.logits(self.dropout(turns))
        return heads

    def _encode(self, text: Tensor, audio: Tensor, layout: RaggedLayout) -> Tensor:
        """Both modalities' rows `[n, d]` as one sequence per dialogue; `[n, 2 d]` by turn."""
        x, joined = concatenate(text, layout, audio, layout)
        for layer in self.encoder:
            x = layer(x, joined)

        # Where the turns' text stands in that sequence, and behind it their audio.
        row = torch.arange(text.shape[0], device=x.device)
        of_text = 2 * row - layout.position
        of_audio = of_text + layout.device_lengths[layout.owner]
        return torch.cat([x.index_select(0, of_text), x.index_select(0, of_audio)], 1)


# Each modality alone, and then the transformer on what they have become.
STAGES = (
    Stage("audio", output="audio", trains=("audio.",), epochs="gru_epochs", lr="gru_lr"),
    Stage("text", output="text", trains=("text.",), epochs="gru_epochs", lr="gru_lr"),
    Stage("fusion", trains=("project.", "encoder.", "logits.")),
)

FUSIONS = [
    Fusion(
        name="dutta",
        source="Dutta & Ganapathy, ICASSP 2022",
        settings=DuttaSettings,
        inputs=BOTH,
        level="vector",
        build=Dutta,
        unit="dialogue",
        stages=STAGES,
    )
]
