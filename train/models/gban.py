"""GBAN: Liu, Li & Meng, "Group gated fusion on attention-based bidirectional alignment for
multimodal emotion recognition", Interspeech 2020 (arXiv 2201.06309), as in its authors' code
(github.com/ppfliu/emotion-recognition).

A bi-directional LSTM per modality; states s_1 … s_T of audio and w_1 … w_N of text. With a score of
its own each way,

    audio to text: Σ_j softmax_j(vᵀ tanh(s_i + w_j)) w_j, averaged over i; and text to audio likewise

and group gated fusion of these two, x_1 and x_2, and of the two last states w_N and s_T, x_3 and
x_4, without biases:

    z = σ(W_z [x_1; x_2])   z' = σ(W_z' [x_3; x_4])
    h = z tanh(W_1 x_1) + (1 − z) tanh(W_2 x_2) + z' tanh(W_3 x_3) + (1 − z') tanh(W_4 x_4)

then a dense layer with ReLU, dropout and the classes. The code's convolutions over MFCCs and over
word vectors, which make features, are left out: here these are cached. Of its four max-poolings
over the frames, one is left.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch, visible
from .fusion import BOTH, OURS, CommonSettings, Count, Dims, Dropout, Fusion, Positive, setting
from .layers.classifier import classifier
from .layers.device import send
from .layers.layout import RaggedLayout, Rows
from .layers.pooling import max_rows, mean_rows
from .layers.rnn import recurrent

CODE = "the authors' code, ppfliu/emotion-recognition"


@dataclass(frozen=True)
class GbanSettings(CommonSettings):
    """The authors' code (model.py, batch.sh), where it fits; else ours."""

    epochs: Count = setting(50, OURS)
    batch_size: Count = setting(32, CODE)
    lr: Positive = setting(1e-4, CODE)
    dropout: Dropout = setting(0.5, CODE, "dropout before the classes")
    pool: Count = setting(8, OURS, "frames that max-pooling makes one of (the code: 16 of 10 ms)")
    lstm_hidden: Count = setting(128, CODE, "LSTM states per direction")
    dense: Count = setting(128, CODE, "width of the fusion and of the dense layer")


class Gban(nn.Module):
    """The equations above."""

    def __init__(self, settings: GbanSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dims, self.pool = {m: dims[m] for m in BOTH}, settings.pool
        d, width = 2 * settings.lstm_hidden, settings.dense
        self.lstm = nn.ModuleDict(
            {m: nn.LSTM(dims[m], settings.lstm_hidden, bidirectional=True) for m in BOTH}
        )
        self.score = nn.ModuleDict({m: nn.Linear(d, 1, bias=False) for m in BOTH})
        self.maps = nn.ModuleList(nn.Linear(d, width, bias=False) for _ in range(4))
        self.gates = nn.ModuleList(nn.Linear(2 * d, width, bias=False) for _ in range(2))
        self.logits = classifier(settings.dropout, width, width, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`. What is made of a hidden modality is zero."""
        x = {m: visible(batch, m, dim) for m, dim in self.dims.items()}
        x["audio"] = pooled(*x["audio"], self.pool)
        x = {m: (recurrent(self.lstm[m], *rows), rows[1]) for m, rows in x.items()}
        x_3, x_4 = last_rows(*x["text"]), last_rows(*x["audio"])
        x_1, x_2 = (
            mean_rows(self._aligned(m, *x[m], *x[other]), x[m][1])
            for m, other in (BOTH, BOTH[::-1])
        )
        z = self.gates[0](torch.cat([x_1, x_2], 1)).sigmoid()
        z_ = self.gates[1](torch.cat([x_3, x_4], 1)).sigmoid()
        y = [w(one).tanh() for w, one in zip(self.maps, (x_1, x_2, x_3, x_4), strict=True)]
        h = z * y[0] + (1 - z) * y[1] + z_ * y[2] + (1 - z_) * y[3]
        return {"logits": self.logits(h)}

    def _aligned(
        self, m: str, q: Tensor, queries: RaggedLayout, k: Tensor, keys: RaggedLayout
    ) -> Tensor:
        memory = keys.pad(k)
        scores = self.score[m]((queries.pad(q)[:, :, None] + memory[:, None]).tanh())[
            ..., 0
        ]  # [n, t_q, t_k]
        alpha = scores.masked_fill(~keys.attended[:, None], -torch.inf).softmax(2)
        return queries.unpad(alpha.to(memory.dtype) @ memory)


def last_rows(x: Tensor, layout: RaggedLayout) -> Tensor:
    """The last of each sequence's rows `[r, d]`; `[n, d]`, zeros for a sequence without rows."""
    ends = torch.where(layout.lengths > 0, layout.lengths.cumsum(0) - 1, len(x))
    return torch.cat([x, x.new_zeros(1, x.shape[1])]).index_select(0, send(ends, x.device))


def pooled(x: Tensor, layout: RaggedLayout, size: int) -> Rows:
    """The maxima of every `size` rows of a sequence, the last of fewer where they do not go in; and
    their layout.
    """
    windows = RaggedLayout(-(-layout.lengths // size))
    sizes = (layout.lengths[windows.owner] - windows.position * size).clamp(max=size)
    return max_rows(x, RaggedLayout(sizes, layout.device)), RaggedLayout(
        windows.lengths, layout.device
    )


FUSIONS = [Fusion("gban", "Liu, Li & Meng, Interspeech 2020", GbanSettings, BOTH, "sequence", Gban)]
