"""ICON (Hazarika, Poria, Mihalcea, Cambria & Zimmermann, EMNLP 2018).

"ICON: interactive conversational memory network for multimodal emotion detection", as in its
authors' code (github.com/declare-lab/conv-emotion, ICON/IEMOCAP).

To classify an utterance u_i of speaker P, with h the features of its modalities, concatenated:

    the query:
        q = tanh(W h_i + b)
    self-influence module:
        own_k = GRU over the earlier turns of P
        other_k = GRU over the earlier turns of everybody else
    dynamic global influence module, over all earlier turns k < i:
        M = GRU(tanh(own_k or other_k))
    one hop, which reads and then writes:
        q ← tanh(q + Σ_k softmax_k(tanh(q · M_k)) M_k)
        M ← GRU(M)
    after the last hop's read:
        logits = W q + b

No state looks ahead, so all turns of P in a dialogue share their histories, which are computed once
per speaker. The code looks back over 40 turns; here the whole dialogue before u_i counts, as far as
it is in the data, which is its labelled turns.
"""

from dataclasses import dataclass
from typing import NamedTuple

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
from .layers.device import send, without_autocast
from .layers.layout import RaggedLayout
from .layers.rnn import recurrent

CODE = "the authors' code, declare-lab/conv-emotion"


@dataclass(frozen=True)
class IconSettings(CommonSettings):
    """The authors' code, ICON/train_iemocap.py, where it fits; else ours."""

    epochs: Count = setting(10, CODE)
    batch_size: Count = setting(
        16, OURS, "dialogues per batch (the code: 512 utterances, each with its history)"
    )
    lr: Positive = setting(1e-3, CODE)
    weight_decay: Weight = setting(1e-5, OURS)
    dropout: Dropout = setting(
        0.7, CODE, "dropout of the self-influence states and of the attention's weights"
    )
    standardise_audio: bool = setting(True, OURS)
    d_model: Count = setting(100, CODE, "width of the query and of all states")
    hops: Count = setting(3, CODE, "reads of the memory")


class Histories(NamedTuple):
    """Each dialogue once per speaker in it, v rows in all."""

    turns: Tensor
    """int64 `[v]`: the turn's row in the batch."""
    is_own: Tensor
    """bool `[v]`: whether the speaker whose history this is speaks the turn."""
    lengths: Tensor
    """int64 `[histories]`: the turns of each."""


class Icon(nn.Module):
    """The equations above, for whole dialogues at once.

    Where nobody is named, a dialogue is one person's.
    """

    def __init__(self, settings: IconSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d = settings.d_model
        self.dims = {m: dims[m] for m in BOTH if m in dims}
        self.hops = settings.hops

        width = sum(self.dims.values())
        self.query = nn.Linear(width, d)
        self.logits = nn.Linear(d, classes)
        self.own = nn.GRU(width, d)
        self.other = nn.GRU(width, d)
        self.influence = nn.GRU(d, d)
        self.memory = nn.GRU(d, d)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        modalities = [vectors(batch, m, dim) for m, dim in self.dims.items()]
        h = torch.cat(modalities, 1).to(self.query.weight.dtype)  # [n, Σ dim]
        histories = speaker_histories(batch)
        layout = RaggedLayout(histories.lengths, batch.device)

        with without_autocast(batch.device.type):
            q = self.query(h).tanh()
            m = self._self_influence(h, histories).tanh()
            q = q.index_select(0, send(histories.turns, h.device))  # [v, d]

            square = torch.ones(layout.longest, layout.longest, dtype=torch.bool, device=h.device)
            is_earlier = square.tril(-1)  # [t, t]
            for hop in range(self.hops):
                # The first memory comes from the global influence module, each later one from the
                # write of the hop before.
                gru = self.influence if hop == 0 else self.memory
                m = recurrent(gru, m, layout)
                q = self._read(q, m, layout, is_earlier)

            # Each turn's answer is the one in the history of whoever speaks it.
            own_rows, own_turns = rows_of_speakers(histories)
            answers = self.logits(q.index_select(0, send(own_rows, h.device)))
            logits = torch.empty_like(answers).index_copy(0, send(own_turns, h.device), answers)
        return {"logits": logits}

    def _self_influence(self, h: Tensor, histories: Histories) -> Tensor:
        """own_k or other_k of every turn in every history; `[n, Σ dim]` → `[v, d]`."""
        states = h.new_zeros(histories.turns.shape[0], self.query.out_features)

        for gru, is_spoken in ((self.own, histories.is_own), (self.other, ~histories.is_own)):
            states = with_influence(states, gru, h, histories, is_spoken, self.dropout)
        return states

    def _read(self, q: Tensor, m: Tensor, layout: RaggedLayout, is_earlier: Tensor) -> Tensor:
        """The query of every turn in every history, after it has read the memory.

        Of that, the turns before: `is_earlier` is bool `[t, t]`. `[v, d]` twice → `[v, d]`.
        """
        memory = layout.pad(m)  # [histories, t, d]
        scores = (layout.pad(q) @ memory.transpose(1, 2)).tanh()
        scores = scores.masked_fill(~is_earlier, torch.finfo(m.dtype).min)
        # The first turn has no earlier one, and a softmax is never zero.
        weights = self.dropout(scores.softmax(2)) * is_earlier
        return (q + layout.unpad(weights @ memory)).tanh()


def speaker_histories(batch: Batch) -> Histories:
    """The histories that the turns of a batch share, on the CPU."""
    speakers = batch.speakers
    if speakers is None:
        speakers = torch.zeros(len(batch), dtype=torch.int64)

    turns = []
    is_own = []
    for dialogue in torch.arange(len(speakers)).split(batch.dialogues.tolist()):
        for speaker in speakers[dialogue].unique():
            turns.append(dialogue)
            is_own.append(speakers[dialogue] == speaker)

    lengths = torch.tensor([len(dialogue) for dialogue in turns])
    return Histories(torch.cat(turns), torch.cat(is_own), lengths)


def rows_of_speakers(histories: Histories) -> tuple[Tensor, Tensor]:
    """The rows that stand in the history of whoever speaks them, and which turn each is.

    int64 `[n]` each, on the CPU.
    """
    return histories.is_own.nonzero()[:, 0], histories.turns[histories.is_own]


def with_influence(
    states: Tensor,
    gru: nn.GRU,
    h: Tensor,
    histories: Histories,
    is_spoken: Tensor,
    dropout: nn.Dropout,
) -> Tensor:
    """The states `[v, d]`, with those of `gru` in the rows that `is_spoken`, bool `[v]`.

    In each history it goes over these turns of `h`, `[n, Σ dim]`, alone.
    """
    # Where nobody else speaks, nothing is to move the weights of that GRU.
    if not is_spoken.any():
        return states

    parts = is_spoken.split(histories.lengths.tolist())
    lengths = torch.stack([part.sum() for part in parts])
    turns = h.index_select(0, send(histories.turns[is_spoken], h.device))
    influence = recurrent(gru, turns, RaggedLayout(lengths, h.device))

    rows = is_spoken.nonzero()[:, 0]
    return states.index_copy(0, send(rows, h.device), dropout(influence))


PAPER = "Hazarika et al., EMNLP 2018"
FUSIONS = [
    Fusion(
        name="icon",
        source=PAPER,
        settings=IconSettings,
        inputs=BOTH,
        level="vector",
        build=Icon,
        unit="dialogue",
        takes_speakers=True,
    ),
    Fusion(
        name="icon:audio",
        source=PAPER,
        settings=IconSettings,
        inputs=("audio",),
        level="vector",
        build=Icon,
        unit="dialogue",
        takes_speakers=True,
    ),
    Fusion(
        name="icon:text",
        source=PAPER,
        settings=IconSettings,
        inputs=("text",),
        level="vector",
        build=Icon,
        unit="dialogue",
        takes_speakers=True,
    ),
]
