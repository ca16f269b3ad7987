"""CATF-LSTM, multi-level framework (Poria et al., ICDM 2017).

Poria, Cambria, Hazarika, Mazumder, Zadeh & Morency, "Multi-level multiple attentions for contextual
multimodal sentiment analysis".

CAT-LSTM, over the N utterances of a dialogue, h_t the states of an LSTM and H = [h_1 … h_N], turn t
with weights of its own:

    P_t = tanh(W_h[t] H)
    α_t = softmax(w[t]ᵀ P_t)
    r_t = H α_tᵀ
    h*_t = tanh(W_p[t] r_t + W_x[t] h_t)

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
        turns = settings.turns
        bound = d**-0.5

        self.lstm = nn.LSTM(dim, d)
        self.w_h = nn.Parameter(torch.empty(turns, d, d).uniform_(-bound, bound))
        self.w_p = nn.Parameter(torch.empty(turns, d, d).uniform_(-bound, bound))
        self.w_x = nn.Parameter(torch.empty(turns, d, d).uniform_(-bound, bound))
        self.w = nn.Parameter(torch.empty(turns, d).uniform_(-bound, bound))
        self.dropout = nn.Dropout(settings.dropout)
        self.logits = nn.Linear(d, classes)

    def forward(self, x: Tensor, layout: RaggedLayout) -> tuple[Tensor, Tensor]:
        """Rows `[n, dim]` → h* `[n, d]` and logits `[n, K]`."""
        states = self.dropout(recurrent(self.lstm, x, layout))
        h = layout.pad(states)  # [m, t, d]
        turn = torch.arange(layout.longest, device=h.device).clamp(max=len(self.w) - 1)

        # For each turn t, over all turns s.
        p = torch.einsum("tde,mse->mtsd", self.w_h[turn], h).tanh()
        scores = torch.einsum("td,mtsd->mts", self.w[turn], p)
        alpha = scores.masked_fill(~layout.attended[:, None], -torch.inf).softmax(2)
        r = alpha.to(h.dtype) @ h

        mapped_r = torch.einsum("tde,mte->mtd", self.w_p[turn], r)
        mapped_h = torch.einsum("tde,mte->mtd", self.w_x[turn], h)
        star = layout.unpad((mapped_r + mapped_h).tanh())
        return star, self.logits(self.dropout(star))


class CatfLstm(BcLstm):
    """The two levels; their order of training is that of bc-LSTM."""

    def __init__(self, settings: CatfLstmSettings, dims: Dims, classes: int) -> None:
        # Not that of bc-LSTM: the levels are other modules.
        nn.Module.__init__(self)
        self.dims = {m: dims[m] for m in BOTH}
        self.audio = CatLstm(settings, dims["audio"], classes)
        self.text = CatLstm(settings, dims["text"], classes)
        self.fuse = Fuse("at", settings.lstm_hidden)
        self.fusion = CatLstm(settings, settings.lstm_hidden, classes)


FUSIONS = [
    Fusion(
        name="catf-lstm",
        source="Poria et al., ICDM 2017",
        settings=CatfLstmSettings,
        inputs=BOTH,
        level="vector",
        build=CatfLstm,
        unit="dialogue",
        stages=HIERARCHY,
    )
]
