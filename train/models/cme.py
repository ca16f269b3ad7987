"""CME (Li, Ding, Wu & Liu, arXiv 2010.12733).

"Learning fine-grained cross modality excitement for speech emotion recognition", as its authors'
code computes it (github.com/tal-ai/FG_CME, NeoMeanMaxExcite_v2), but for the alignment.

For each word with its vector w, and the frames a_1 … a_T that are spoken during it:

    temporal alignment mean-max pooling:
        a = [mean_i W_a a_i; max_i W_a a_i]
        s = W_s w
    cross modality excitement:
        s' = s + s ⊙ σ(W a + b)
        a' = a + a ⊙ σ(W' w + b')

then a bi-directional LSTM over the [s'; a'] of the words, the maxima over the words, and the
classes.

**Which frames belong to a word is ours.** The code takes it from a forced alignment, which a store
does not hold: here token j of N gets the frames from ⌊j T / N⌋ to ⌊(j + 1) T / N⌋, an even share,
and zeros where that is none. Also ours: W_a is a linear map of a cached frame, where the code has
three convolutions without activation over filterbanks; and what excites the audio is the token's
vector, where the code looks a vector up by the word.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import Batch, visible_rows
from .fusion import (
    BOTH,
    CommonSettings,
    Count,
    Dims,
    Dropout,
    Even,
    Fusion,
    Positive,
    Weight,
    setting,
)
from .layers.device import send
from .layers.layout import RaggedLayout
from .layers.pooling import max_rows, mean_rows
from .layers.rnn import recurrent

CODE = "the authors' code, tal-ai/FG_CME"


@dataclass(frozen=True)
class CmeSettings(CommonSettings):
    """The settings of the authors' code, else ours.

    run_iemocap-ours.py; sizes of config/ravdess-ours.yaml, the only one there.
    """

    epochs: Count = setting(20, CODE)
    batch_size: Count = setting(32, CODE)
    lr: Positive = setting(5e-4, CODE)
    weight_decay: Weight = setting(0.0, CODE)
    dropout: Dropout = setting(
        0.0, CODE, "dropout before the classes (the code's has no effect: one LSTM layer)"
    )
    d_model: Even = setting(256, CODE, "width of s and of a, in which mean and maximum share")
    lstm_hidden: Count = setting(256, CODE, "LSTM states per direction")


class Cme(nn.Module):
    """The equations above."""

    def __init__(self, settings: CmeSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d = settings.d_model
        self.dims = {m: dims[m] for m in BOTH}

        self.audio = nn.Linear(dims["audio"], d // 2)
        self.text = nn.Linear(dims["text"], d)
        self.excite_audio = nn.Linear(dims["text"], d)
        self.excite_text = nn.Linear(d, d)
        self.lstm = nn.LSTM(2 * d, settings.lstm_hidden, bidirectional=True)
        self.dropout = nn.Dropout(settings.dropout)
        self.logits = nn.Linear(2 * settings.lstm_hidden, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`.

        Where the text is hidden nothing is seen: no token is there to have frames.
        """
        frames, audio = visible_rows(batch, "audio", self.dims["audio"])
        w, text = visible_rows(batch, "text", self.dims["text"])

        frames = self.audio(spoken_frames(frames, audio, text))
        a = mean_max_by_token(frames, audio, text)  # [r_w, d]
        s = self.text(w)  # [r_w, d]

        excited_s = s + s * self.excite_text(a).sigmoid()
        excited_a = a + a * self.excite_audio(w).sigmoid()

        words = torch.cat([excited_s, excited_a], 1)
        z = max_rows(recurrent(self.lstm, words, text), text)
        return {"logits": self.logits(self.dropout(z))}


def spoken_frames(frames: Tensor, audio: RaggedLayout, text: RaggedLayout) -> Tensor:
    """The frames `[r, d]` of the utterances that have tokens: the others' are no token's."""
    has_tokens = text.lengths > 0
    rows = has_tokens[RaggedLayout(audio.lengths).owner].nonzero()[:, 0]
    return frames.index_select(0, send(rows, frames.device))


def mean_max_by_token(frames: Tensor, audio: RaggedLayout, text: RaggedLayout) -> Tensor:
    """Temporal alignment mean-max pooling of the spoken frames `[r, d / 2]`.

    `[r_w, d]`; zeros for a token without frames.
    """
    shares = frames_of_tokens(audio, text)
    return torch.cat([mean_rows(frames, shares), max_rows(frames, shares)], 1)


def frames_of_tokens(audio: RaggedLayout, text: RaggedLayout) -> RaggedLayout:
    """The layout of the frames by token: how many each of the r_w tokens has.

    Token j of N has an even share of the T frames, from ⌊j T / N⌋ to ⌊(j + 1) T / N⌋.
    """
    tokens = RaggedLayout(text.lengths)
    j = tokens.position
    t = audio.lengths[tokens.owner]
    n = text.lengths[tokens.owner]
    return RaggedLayout((j + 1) * t // n - j * t // n, text.device)


FUSIONS = [
    Fusion(
        name="cme",
        source="Li et al., arXiv 2010.12733",
        settings=CmeSettings,
        inputs=BOTH,
        level="sequence",
        build=Cme,
    )
]
