"""CATF-LSTM: Poria, Cambria, Hazarika, Mazumder, Zadeh & Morency, "Multi-level multiple attentions
for contextual multimodal sentiment analysis", ICDM 2017, multi-level framework.

CAT-LSTM, over the N utterances of a dialogue, h_t the states of an LSTM and H = [h_1 … h_N], turn t
with weights of its own:

    P_t = tanh(W_h[t] H)    α_t = softmax(w[t]ᵀ P_t)    r_t = H α_tᵀ    h*_t = tanh(W_p[t] r_t + W_x[t] h_t)

Level 1: a CAT-LSTM per modality, each trained alone. Level 2: AT-Fusion of their h*, the same as
Perspective's at a position, and a CAT-LSTM over its result. Ours: one softmax layer for all turns,
and the turns beyond `turns` share the last one's weights.

**These equations are the paper's as we know it; they were not checked against its text.** The
authors' public code (github.com/soujanyaporia/multimodal-sentiment-analysis, model.py) bears out
the fusion alone, with weights of each turn's own; it has bi-directional GRUs without this attention
in the place of the LSTMs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .baselines import HIERARCHY, BcLstm, HierarchySettings
from .fusion import BOTH, OURS, Count, Dims, Fusion, setting
from .layers.layout import RaggedLayout
from .layers.rnn import recurrent
from .perspective import Fuse


@dataclass(frozen=True)
class CatfLstmSettings(HierarchySettings):
    """All ours, and so is that the LSTM has one direction."""

    turns: Count = setting(110, OURS, "turns with weights of their own")


class CatLstm(nn.Module):
    """One CAT-LSTM with its softmax layer."""

    def __init__(self, settings: CatfLstmSettings, dim: int, classes: int) -> None:
        super().__init__()
        d = settings.lstm_hidden
        self.lstm = nn.LSTM(dim, d)
        self.w_h, self.w_p, self.w_x = (
            nn.Parameter(torch.empty(settings.turns, d, d).uniform_(-(d**-0.5), d**-0.5))
            for _ in range(3)
        )
        self.w = nn.Parameter(torch.empty(settings.turns, d).uniform_(-(d**-0.5), d**-0.5))
        self.dropout = nn.Dropout(settings.dropout)
        self.logits = nn.Linear(d, classes)

    def forward(self, x: Tensor, layout: RaggedLayout) -> tuple[Tensor, Tensor]:
        """Rows `[n, dim]` → h* `[n, d]` and logits `[n, K]`."""
        h = layout.pad(self.dropout(recurrent(self.lstm, x, layout)))  # [m, t, d]
        turn = torch.arange(layout.longest, device=h.device).clamp(max=len(self.w) - 1)
        p = torch.einsum("tde,mse->mtsd", self.w_h[turn], h).tanh()
        scores = torch.einsum("td,mtsd->mts", self.w[turn], p)
        alpha = scores.masked_fill(~layout.attended[:, None], -torch.inf).softmax(2)
        r = alpha.to(h.dtype) @ h
        mapped = [
            torch.einsum("tde,mte->mtd", w[turn], y) for w, y in ((self.w_p, r), (self.w_x, h))
        ]
        star = layout.unpad((mapped[0] + mapped[1]).tanh())
        return star, self.logits(self.dropout(star))


class CatfLstm(BcLstm):
    """The two levels; their order of training is that of bc-LSTM."""

    def __init__(self, settings: CatfLstmSettings, dims: Dims, classes: int) -> None:
        nn.Module.__init__(self)
        self.dims = {m: dims[m] for m in BOTH}
        self.audio, self.text = (CatLstm(settings, dims[m], classes) for m in BOTH)
        self.fuse = Fuse("at", settings.lstm_hidden)
        self.fusion = CatLstm(settings, settings.lstm_hidden, classes)


FUSIONS = [
    Fusion(
        "catf-lstm",
        "Poria et al., ICDM 2017",
        CatfLstmSettings,
        BOTH,
        "vector",
        CatfLstm,
        "dialogue",
        stages=HIERARCHY,
    )
]
