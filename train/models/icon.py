"""ICON: Hazarika, Poria, Mihalcea, Cambria & Zimmermann, "ICON: interactive conversational memory
network for multimodal emotion detection", EMNLP 2018, as in its authors' code
(github.com/declare-lab/conv-emotion, ICON/IEMOCAP).

To classify an utterance u_i of speaker P, with h the features of its modalities, concatenated:

    q = tanh(W h_i + b)                                               the query
    own_k or other_k = GRU over the earlier turns of P, or over those of everybody else      self-influence module
    M¹ = GRU(tanh(own_k or other_k)) over all earlier turns k < i     dynamic global influence module
    q ← tanh(q + Σ_k softmax_k(tanh(q · M_k)) M_k), M ← GRU(M)        one hop: read, then write
    logits = W q + b                                                  after the last hop's read

No state looks ahead, so all turns of P in a dialogue share their histories, which are computed once
per speaker. The code looks back over 40 turns; here the whole dialogue before u_i counts, as far as
it is in the data, which is its labelled turns.
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


class Icon(nn.Module):
    """The equations above, for whole dialogues at once. Where nobody is named, a dialogue is one
    person's.
    """

    def __init__(self, settings: IconSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dims, self.hops, d = (
            {m: dims[m] for m in BOTH if m in dims},
            settings.hops,
            settings.d_model,
        )
        width = sum(self.dims.values())
        self.query, self.logits = nn.Linear(width, d), nn.Linear(d, classes)
        self.own, self.other = nn.GRU(width, d), nn.GRU(width, d)
        self.influence, self.memory = nn.GRU(d, d), nn.GRU(d, d)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        h = torch.cat([vectors(batch, m, dim) for m, dim in self.dims.items()], 1).to(
            self.query.weight.dtype
        )
        rows, mine, lengths = histories(batch)
        layout = RaggedLayout(lengths, batch.device)
        with without_autocast(batch.device.type):
            q, m = self.query(h).tanh(), h.new_zeros(len(rows), self.query.out_features)
            for gru, said in ((self.own, mine), (self.other, ~mine)):
                if (
                    not said.any()
                ):  # nobody else speaks: then nothing is to move the weights of that GRU
                    continue
                turns = torch.stack([part.sum() for part in said.split(lengths.tolist())])
                heard = h.index_select(0, send(rows[said], h.device))
                states = recurrent(gru, heard, RaggedLayout(turns, batch.device))
                m = m.index_copy(0, send(said.nonzero()[:, 0], h.device), self.dropout(states))
            m, q = m.tanh(), q.index_select(0, send(rows, h.device))
            earlier = torch.ones(
                layout.longest, layout.longest, dtype=torch.bool, device=h.device
            ).tril(-1)
            for hop in range(self.hops):
                m = recurrent(self.memory if hop else self.influence, m, layout)
                memory = layout.pad(m)
                scores = (
                    (layout.pad(q) @ memory.transpose(1, 2))
                    .tanh()
                    .masked_fill(~earlier, torch.finfo(m.dtype).min)
                )
                q = (q + layout.unpad((self.dropout(scores.softmax(2)) * earlier) @ memory)).tanh()
            answers = self.logits(q.index_select(0, send(mine.nonzero()[:, 0], h.device)))
            return {
                "logits": torch.empty_like(answers).index_copy(
                    0, send(rows[mine], h.device), answers
                )
            }


def histories(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Each dialogue once per speaker in it: rows of the batch, int64 `[v]`, which are that
    speaker's, and lengths.
    """
    speakers = (
        torch.zeros(len(batch), dtype=torch.int64) if batch.speakers is None else batch.speakers
    )
    groups = torch.arange(len(speakers)).split(batch.dialogues.tolist())
    views = [
        (group, speakers[group] == one) for group in groups for one in speakers[group].unique()
    ]
    rows, mine = (torch.cat(part) for part in zip(*views, strict=True))
    return rows, mine, torch.tensor([len(group) for group, _ in views])


FUSIONS = [
    Fusion(
        name, "Hazarika et al., EMNLP 2018", IconSettings, inputs, "vector", Icon, unit="dialogue"
    )
    for name, inputs in (("icon", BOTH), ("icon:audio", ("audio",)), ("icon:text", ("text",)))
]
