"""Perspective: Wu, Lu & Dai, "An empirical study and improvement for speech emotion recognition",
ICASSP 2023.

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
    at      with B = [t; a] as columns, P = tanh(W B), α = softmax(wᵀ P), z = B αᵀ (Poria et al., ICDM 2017)
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
        b = torch.stack([t, a], 1)
        alpha = self.w_vector(self.w_matrix(b).tanh()).softmax(1)  # [n, 2, 1]
        return (alpha * b).sum(1)


class Perspective(nn.Module):
    """§2.2 for one modality, or §2.2 for both and §2.3 between them.

    The name says which: of one modality, or a position and a method, such as "lgf-add". A stream is
    a modality or, behind an early, middle or late fusion, "fused"; a layer computes its streams
    together. Raises `WrongUse` if the self-attention's width does not split into the heads.
    """

    def __init__(self, settings: PerspectiveSettings, dims: Dims, classes: int, name: str) -> None:
        super().__init__()
        d, states = settings.d_model, 2 * settings.gru_hidden
        self.dims = {m: dims[m] for m in BOTH if m in dims}
        self.position, _, method = name.rpartition("-")

        def streams(*positions: str) -> tuple[str, ...]:
            return (*self.dims, "fused") if self.position in positions else (*self.dims,)

        self.features = nn.ModuleDict({m: nn.Linear(dim, d) for m, dim in self.dims.items()})
        self.gru = nn.ModuleDict(
            {s: nn.GRU(d, settings.gru_hidden, bidirectional=True) for s in streams("ef")}
        )
        self.attention = nn.ModuleDict(
            {s: Attention(states, settings.heads) for s in streams("ef", "mf")}
        )
        self.logits = nn.ModuleDict(
            {s: nn.Linear(states, classes) for s in streams("ef", "mf", "lf")}
        )
        self.dropout = nn.Dropout(settings.dropout)
        if self.position:
            width = {"ef": d, "mf": states, "lf": states, "lgf": classes}[self.position]
            self.fusion: nn.Module = Fuse(method, width)
        self.activation: nn.Module = nn.ReLU()
        self.hidden = nn.ModuleDict()  # of the released code

    def forward(self, batch: Batch, layout: RaggedLayout | None = None) -> dict[str, Tensor]:
        """Logits `[n, K]`: "logits" of the fusion (or of the one modality), and those of "audio"
        and "text".

        `layout` says where the turns of the dialogues lie, where that is known already.
        """
        layout = layout or RaggedLayout(batch.dialogues, batch.device)
        alone = self.position != "lgf" and not batch.wants("audio", "text")

        def fuse(position: str, x: dict[str, Tensor]) -> dict[str, Tensor]:
            if position != self.position:
                return x
            return ({} if alone else x) | {"fused": self.fusion(x["audio"], x["text"])}

        x = {
            m: self.activation(self.features[m](vectors(batch, m, dim)))
            for m, dim in self.dims.items()
        }
        # Behind the first FC everything is too small to gain by autocast.
        x = {m: rows.to(self.features[m].weight.dtype) for m, rows in x.items()}
        with without_autocast(batch.device.type):
            x = bigru(self.gru, fuse("ef", x), layout)
            x = fuse("mf", {s: self.dropout(rows) for s, rows in x.items()})
            x = {s: self.attention[s](rows, layout) for s, rows in x.items()}
            x |= {s: hidden(x[s]).relu() for s, hidden in self.hidden.items()}
            x = fuse("lf", {s: self.dropout(rows) for s, rows in x.items()})
            x = fuse("lgf", {s: self.logits[s](rows) for s, rows in x.items()})
        x["logits"] = x.pop("fused" if self.position else next(iter(self.dims)))
        return x


class ReleasedAtFusion(nn.Module):
    """The released code's AT-Fusion: the mapped vectors are summed, and the score vector keeps its
    random start.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.w_matrix = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("w_vector", torch.randn(width) * 0.01)

    def forward(self, a: Tensor, t: Tensor) -> Tensor:
        """`[n, width]` twice → `[n, width]`."""
        mapped = self.w_matrix(torch.stack([t, a], 1))
        alpha = (self.dropout(mapped.relu()) @ self.w_vector).softmax(1)
        return (alpha[:, :, None] * mapped).sum(1)


class Released(Perspective):
    """LGF as the authors' released code computes it at commit 17036b9. Raises `WrongUse` for a rate
    that falls.
    """

    def __init__(self, settings: PerspectiveSettings, dims: Dims, classes: int, name: str) -> None:
        if settings.lr_decay != PerspectiveSettings.lr_decay:
            raise WrongUse("released=true trains at a constant rate; leave lr_decay out")
        super().__init__(settings, dims, classes, name)
        self.activation = nn.Identity()
        width = 2 * settings.gru_hidden
        self.hidden.update({m: nn.Linear(width, width) for m in self.dims})
        for m in self.dims:
            cast(Attention, self.attention[m]).dropout = settings.dropout
        if name == "lgf-at":
            self.fusion = ReleasedAtFusion(classes, settings.dropout)

    def forward(self, batch: Batch, layout: RaggedLayout | None = None) -> dict[str, Tensor]:
        """Probabilities `[n, K]` in the place of logits: the loss that follows applies its softmax
        to them again.
        """
        return {head: logits.softmax(1) for head, logits in super().forward(batch, layout).items()}


def build(settings: PerspectiveSettings, dims: Dims, classes: int, name: str) -> nn.Module:
    """The model of that name: of one modality (§2.2), or a position and a method such as "lgf-add"
    (§2.3).
    """
    return (Released if settings.released else Perspective)(settings, dims, classes, name)


FUSIONS = [
    Fusion(
        name=name,
        source="Perspective §2.3" if len(inputs) > 1 else "Perspective §2.2",
        settings=PerspectiveSettings,
        inputs=inputs,
        level="vector",
        build=partial(build, name=name),
        unit="dialogue",
        stacks=lambda settings: not settings.released,  # the released code drops attention weights
        unused=() if name in ("lgf-add", "lgf-at") else ("released",),
        fixed={
            "residual": ("none", "around the self-attention"),
            "norm": ("none", "of the self-attention"),
        },
    )
    for name, inputs in (
        ("audio:utterance", ("audio",)),
        ("text:utterance", ("text",)),
        *(
            (f"{p}-{method}", BOTH)
            for p in ("ef", "mf", "lf", "lgf")
            for method in ("add", "concat", "at")
        ),
    )
]
