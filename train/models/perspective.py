"""Perspective (Wu, Lu & Dai, ICASSP 2023).

"An empirical study and improvement for speech emotion recognition".

One vector per utterance goes through the unimodal framework of §2.2 (Fig. 1), once for audio and
once for text:

    features → FC to d ① Bi-GRU over the dialogue ② self-attention ③ FC to the classes ④ softmax

and §2.3 fuses a_i and t_i at one of the four positions: ① early (EF), ② middle (MF), ③ late (LF), ④
logits (LGF). What follows the position is there once more for the fused z_i. The two branches run
up to their own logits at every position, so that the perspective loss, L_p = L_a + L_t + L_s (eq.
6), is defined everywhere; with the single loss L_s (eq. 3) what stands behind the fusion in the two
branches stays untrained, and its predictions mean nothing: where only the fused logits are asked
for (`Batch.heads`), it is not computed either.

Where the released code differs from the paper, the paper counts. `released=true` gives what that
code does, which is github.com/Luyizhe/SpeechEmotion at commit 17036b9, for LGF-ADD and LGF-AT, the
two of its fusions that can run: no activation on the reduced features, dropout on the weights of
the attention too, a hidden FC with ReLU before the classes, softmax before a cross-entropy that
applies it again, an AT-Fusion that sums the mapped vectors and never trains its score vector, and
Adam with a constant rate. Heads are four, as in the paper; one head and tanh are an earlier draft's
in the same repository. Its audio features come already reduced to 100 by an affine map outside of
it; here the FC layer, without activation and trained with the rest, stands in that map's place.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ser.errors import WrongUse

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

CODE = "the authors' released code; not stated in the paper"

POSITIONS = ("ef", "mf", "lf", "lgf")
METHODS = ("add", "concat", "at")

# The layers that stand behind the fusion, and so are there for the fused vectors too (Fig. 1). By
# position; "" is that of one modality alone, where nothing is fused.
BEHIND_FUSION: dict[str, tuple[str, ...]] = {
    "": (),
    "ef": ("gru", "attention", "logits"),
    "mf": ("attention", "logits"),
    "lf": ("logits",),
    "lgf": (),
}


@dataclass(frozen=True)
class PerspectiveSettings(CommonSettings):
    """Perspective §3.2 and §3.3."""

    epochs: Count = setting(150, "Perspective §3.3")
    batch_size: Count = setting(20, "Perspective §3.3", "dialogues per batch")
    lr: Positive = setting(1e-3, "Perspective §3.3")
    lr_decay: Weight = setting(
        1e-5, "Perspective §3.3", "update t = 0, 1, … has the rate lr / (1 + lr_decay t)"
    )
    weight_decay: Weight = setting(1e-5, "Perspective §3.3")
    dropout: Dropout = setting(
        0.2, "Perspective §3.3", "dropout after the Bi-GRU and after the self-attention"
    )
    standardise_audio: bool = setting(True, "Perspective §3.2.1")
    standardise_text: bool = setting(False, "Perspective §3.2.2")
    d_model: Count = setting(
        100, "Perspective §3.2", "d, to which the FC layer reduces the features (ReLU: §3.3)"
    )
    gru_hidden: Count = setting(
        50, CODE, "GRU states per direction; the paper says 100 in all or each"
    )
    heads: Count = setting(4, "Perspective §3.3", "heads of the self-attention")
    released: bool = setting(
        False, OURS, "behave as the released code does (lgf-add, lgf-at), which has no lr_decay"
    )

    @property
    def decay(self) -> float:
        """The `lr_decay` that counts."""
        return 0.0 if self.released else self.lr_decay


class Fuse(nn.Module):
    """§2.3: z_i of a_i and t_i, `[n, width]` each, by one of the three methods.

    add     z = a + t (eq. 1)
    concat  z = W_f · [a; t] (eq. 2)
    at      with B = [t; a] as columns, P = tanh(W B), α = softmax(wᵀ P), z = B αᵀ
            (Poria et al., ICDM 2017)
    """

    def __init__(self, method: str, width: int) -> None:
        super().__init__()
        self.method = method
        if method == "concat":
            self.w_f = nn.Linear(2 * width, width, bias=False)
        if method == "at":
            self.w_matrix = nn.Linear(width, width, bias=False)
            self.w_vector = nn.Linear(width, 1, bias=False)

    def forward(self, a: Tensor, t: Tensor) -> Tensor:
        """`[n, width]` twice → `[n, width]`."""
        if self.method == "add":
            return a + t

        if self.method == "concat":
            return self.w_f(torch.cat([a, t], 1))

        b = torch.stack([t, a], 1)  # [n, 2, width]
        p = self.w_matrix(b).tanh()
        alpha = self.w_vector(p).softmax(1)  # [n, 2, 1]
        return (alpha * b).sum(1)


class Perspective(nn.Module):
    """§2.2 for one modality, or §2.2 for both and §2.3 between them.

    The name says which: of one modality, or a position and a method, such as "lgf-add". A stream is
    a modality or, behind an early, middle or late fusion, "fused"; a layer computes its streams
    together. Raises `WrongUse` if the self-attention's width does not split into the heads.
    """

    def __init__(self, settings: PerspectiveSettings, dims: Dims, classes: int, name: str) -> None:
        super().__init__()
        self.dims = {modality: dims[modality] for modality in BOTH if modality in dims}
        self.position, _, method = name.rpartition("-")
        d = settings.d_model
        states = 2 * settings.gru_hidden

        self.features = nn.ModuleDict()
        for modality, dim in self.dims.items():
            self.features[modality] = nn.Linear(dim, d)

        self.gru = nn.ModuleDict()
        for stream in self.streams_of("gru"):
            self.gru[stream] = nn.GRU(d, settings.gru_hidden, bidirectional=True)

        self.attention = nn.ModuleDict()
        for stream in self.streams_of("attention"):
            self.attention[stream] = Attention(states, settings.heads)

        self.logits = nn.ModuleDict()
        for stream in self.streams_of("logits"):
            self.logits[stream] = nn.Linear(states, classes)

        self.dropout = nn.Dropout(settings.dropout)
        if self.position:
            width = {"ef": d, "mf": states, "lf": states, "lgf": classes}[self.position]
            self.fusion: nn.Module = Fuse(method, width)
        self.activation: nn.Module = nn.ReLU()
        self.hidden = nn.ModuleDict()  # of the released code

    def streams_of(self, layer: str) -> list[str]:
        """The streams that pass through a layer, "gru", "attention" or "logits"."""
        streams = [*self.dims]
        if layer in BEHIND_FUSION[self.position]:
            streams.append("fused")
        return streams

    def forward(self, batch: Batch, layout: RaggedLayout | None = None) -> dict[str, Tensor]:
        """Logits `[n, K]` of "logits", "audio" and "text".

        "logits" are those of the fusion, or of the one modality. `layout` says where the turns of
        the dialogues lie, where that is known already.
        """
        if layout is None:
            layout = RaggedLayout(batch.dialogues, batch.device)

        x: dict[str, Tensor] = {}
        for modality, dim in self.dims.items():
            features = self.features[modality]
            reduced = self.activation(features(vectors(batch, modality, dim)))
            # Behind the first FC everything is too small to gain by autocast.
            x[modality] = reduced.to(features.weight.dtype)

        with without_autocast(batch.device.type):
            # ① early fusion, Bi-GRU
            x = self.fuse_at("ef", x, batch)
            x = bigru(self.gru, x, layout)
            x = {stream: self.dropout(rows) for stream, rows in x.items()}

            # ② middle fusion, self-attention
            x = self.fuse_at("mf", x, batch)
            x = {stream: self.attention[stream](rows, layout) for stream, rows in x.items()}
            for stream, hidden in self.hidden.items():
                x[stream] = hidden(x[stream]).relu()
            x = {stream: self.dropout(rows) for stream, rows in x.items()}

            # ③ late fusion, FC to the classes
            x = self.fuse_at("lf", x, batch)
            x = {stream: self.logits[stream](rows) for stream, rows in x.items()}

            # ④ fusion of the logits
            x = self.fuse_at("lgf", x, batch)

        scored = "fused" if self.position else next(iter(self.dims))
        x["logits"] = x.pop(scored)
        return x

    def fuse_at(self, position: str, x: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The streams `[n, width]`, and "fused" where this model fuses at `position`.

        What stands behind the fusion in the two branches is only computed where their logits are
        wanted.
        """
        if position != self.position:
            return x

        fused = self.fusion(x["audio"], x["text"])
        if position != "lgf" and not batch.wants("audio", "text"):
            return {"fused": fused}
        return {**x, "fused": fused}


class ReleasedAtFusion(nn.Module):
    """The released code's AT-Fusion.

    The mapped vectors are summed, and the score vector keeps its random start.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.w_matrix = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("w_vector", torch.randn(width) * 0.01)

    def forward(self, a: Tensor, t: Tensor) -> Tensor:
        """`[n, width]` twice → `[n, width]`."""
        mapped = self.w_matrix(torch.stack([t, a], 1))  # [n, 2, width]
        alpha = (self.dropout(mapped.relu()) @ self.w_vector).softmax(1)  # [n, 2]
        return (alpha[:, :, None] * mapped).sum(1)


class Released(Perspective):
    """LGF as the authors' released code computes it at commit 17036b9.

    Raises `WrongUse` for a rate that falls.
    """

    def __init__(self, settings: PerspectiveSettings, dims: Dims, classes: int, name: str) -> None:
        if settings.lr_decay != PerspectiveSettings.lr_decay:
            raise WrongUse("released=true trains at a constant rate; leave lr_decay out")
        super().__init__(settings, dims, classes, name)
        self.activation = nn.Identity()

        width = 2 * settings.gru_hidden
        for modality in self.dims:
            self.hidden[modality] = nn.Linear(width, width)
            cast(Attention, self.attention[modality]).dropout = settings.dropout

        if name == "lgf-at":
            self.fusion = ReleasedAtFusion(classes, settings.dropout)

    def forward(self, batch: Batch, layout: RaggedLayout | None = None) -> dict[str, Tensor]:
        """Probabilities `[n, K]` in the place of logits.

        The loss that follows applies its softmax to them again.
        """
        heads = super().forward(batch, layout)
        return {head: logits.softmax(1) for head, logits in heads.items()}


def build(settings: PerspectiveSettings, dims: Dims, classes: int, name: str) -> nn.Module:
    """The model of that name.

    Of one modality (§2.2), or a position and a method such as "lgf-add" (§2.3).
    """
    if settings.released:
        return Released(settings, dims, classes, name)
    return Perspective(settings, dims, classes, name)


def can_be_stacked(settings: PerspectiveSettings) -> bool:
    """Whether many runs can be trained at once: the released code drops attention weights."""
    return not settings.released


def describe_fusion(name: str, source: str, inputs: tuple[str, ...]) -> Fusion:
    """The entry of one model."""
    can_run_in_released_code = name in ("lgf-add", "lgf-at")
    return Fusion(
        name=name,
        source=source,
        settings=PerspectiveSettings,
        inputs=inputs,
        level="vector",
        build=partial(build, name=name),
        unit="dialogue",
        stacks=can_be_stacked,
        unused=() if can_run_in_released_code else ("released",),
        fixed={
            "residual": ("none", "around the self-attention"),
            "norm": ("none", "of the self-attention"),
        },
    )


FUSIONS = [
    describe_fusion("audio:utterance", "Perspective §2.2", ("audio",)),
    describe_fusion("text:utterance", "Perspective §2.2", ("text",)),
]
for _position in POSITIONS:
    for _method in METHODS:
        FUSIONS.append(describe_fusion(f"{_position}-{_method}", "Perspective §2.3", BOTH))
