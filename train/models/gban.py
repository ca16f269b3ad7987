"""GBAN (Liu, Li & Meng, Interspeech 2020, arXiv 2201.06309).

"Group gated fusion on attention-based bidirectional alignment for multimodal emotion recognition",
as in its authors' code (github.com/ppfliu/emotion-recognition).

A bi-directional LSTM per modality; states s_1 … s_T of audio and w_1 … w_N of text. With a score of
its own each way,

    audio to text: Σ_j softmax_j(vᵀ tanh(s_i + w_j)) w_j, averaged over i
    text to audio: Σ_i softmax_i(vᵀ tanh(w_j + s_i)) s_i, averaged over j

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

from .batch import Batch, visible_rows
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
        d = 2 * settings.lstm_hidden
        width = settings.dense
        self.dims = {m: dims[m] for m in BOTH}
        self.pool = settings.pool

        self.lstm = nn.ModuleDict(
            {m: nn.LSTM(dims[m], settings.lstm_hidden, bidirectional=True) for m in BOTH}
        )
        self.score = nn.ModuleDict({m: nn.Linear(d, 1, bias=False) for m in BOTH})
        self.maps = nn.ModuleList(nn.Linear(d, width, bias=False) for _ in range(4))
        self.gates = nn.ModuleList(nn.Linear(2 * d, width, bias=False) for _ in range(2))
        self.logits = classifier(settings.dropout, width, width, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`. What is made of a hidden modality is zero."""
        frames, frame_layout = visible_rows(batch, "audio", self.dims["audio"])
        words, text = visible_rows(batch, "text", self.dims["text"])

        frames, audio = pool_windows(frames, frame_layout, self.pool)
        s = recurrent(self.lstm["audio"], frames, audio)  # [r_s, d]
        w = recurrent(self.lstm["text"], words, text)  # [r_w, d]

        x_3 = last_rows(w, text)
        x_4 = last_rows(s, audio)
        x_1 = mean_rows(self._align("audio", s, audio, w, text), audio)
        x_2 = mean_rows(self._align("text", w, text, s, audio), text)

        z = self.gates[0](torch.cat([x_1, x_2], 1)).sigmoid()
        z_ = self.gates[1](torch.cat([x_3, x_4], 1)).sigmoid()
        y_1 = self.maps[0](x_1).tanh()
        y_2 = self.maps[1](x_2).tanh()
        y_3 = self.maps[2](x_3).tanh()
        y_4 = self.maps[3](x_4).tanh()
        h = z * y_1 + (1 - z) * y_2 + z_ * y_3 + (1 - z_) * y_4
        return {"logits": self.logits(h)}

    def _align(
        self, modality: str, q: Tensor, queries: RaggedLayout, k: Tensor, keys: RaggedLayout
    ) -> Tensor:
        """What the states q `[r_q, d]` of a modality attend to of the other's, k `[r_k, d]`.

        `[r_q, d]`.
        """
        memory = keys.pad(k)
        pairs = queries.pad(q)[:, :, None] + memory[:, None]  # [n, t_q, t_k, d]
        scores = self.score[modality](pairs.tanh())[..., 0]  # [n, t_q, t_k]

        alpha = scores.masked_fill(~keys.attended[:, None], -torch.inf).softmax(2)
        return queries.unpad(alpha.to(memory.dtype) @ memory)


def last_rows(x: Tensor, layout: RaggedLayout) -> Tensor:
    """The last of each sequence's rows `[r, d]`; `[n, d]`, zeros for a sequence without rows."""
    # One row more, of zeros, is the last row of a sequence without rows.
    ends = torch.where(layout.lengths > 0, layout.lengths.cumsum(0) - 1, len(x))
    padded = torch.cat([x, x.new_zeros(1, x.shape[1])])
    return padded.index_select(0, send(ends, x.device))


def pool_windows(x: Tensor, layout: RaggedLayout, size: int) -> Rows:
    """The maxima of every `size` rows of a sequence, and their layout.

    The last window has fewer rows where they do not go in.
    """
    windows = RaggedLayout(-(-layout.lengths // size))  # rounded up
    rows_left = layout.lengths[windows.owner] - windows.position * size
    window_rows = RaggedLayout(rows_left.clamp(max=size), layout.device)
    return max_rows(x, window_rows), RaggedLayout(windows.lengths, layout.device)


FUSIONS = [
    Fusion(
        name="gban",
        source="Liu, Li & Meng, Interspeech 2020",
        settings=GbanSettings,
        inputs=BOTH,
        level="sequence",
        build=Gban,
    )
]
