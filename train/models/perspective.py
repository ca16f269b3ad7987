"""Perspective: Wu, Lu & Dai, "An empirical study and improvement for speech emotion recognition", ICASSP 2023."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from ser.train.batch import Batch

from .fusion import OURS, Fusion, setting


@dataclass(frozen=True)
class PerspectiveSettings:
    """Perspective §3.2 and §3.3."""

    epochs: int = setting(150, "Perspective §3.3", "epochs")
    batch_size: int = setting(20, "Perspective §3.3", "dialogues per batch")
    lr: float = setting(1e-3, "Perspective §3.3", "Adam's learning rate")
    lr_decay: float = setting(1e-5, "Perspective §3.3", "update t has the rate lr / (1 + lr_decay t)")
    weight_decay: float = setting(1e-5, "Perspective §3.3", "weight of the L2 term, added to the gradient by Adam")
    dropout: float = setting(0.2, "Perspective §3.3", "dropout probability")
    standardise_audio: bool = setting(True, "Perspective §3.2.1", "z-score the audio features")
    standardise_text: bool = setting(False, "Perspective §3.2.2", "z-score the text features")
    d_model: int = setting(100, "Perspective §3.2", "d: width of the features, the self-attention and the fusion")
    gru_hidden: int = setting(50, OURS + " (the authors' code)", "GRU states per direction")
    heads: int = setting(4, "Perspective §3.3", "heads of the self-attention")


class Unimodal(nn.Module):
    """§2.2, one modality: features → FC to d → Bi-GRU over the dialogue → self-attention → FC → logits."""

    def __init__(self, settings: PerspectiveSettings, dims: Mapping[str, int], classes: int, modality: str) -> None:
        super().__init__()
        d, hidden = settings.d_model, settings.gru_hidden
        self.modality = modality
        self.features = nn.Sequential(nn.Linear(dims[modality], d), nn.ReLU(), nn.Dropout(settings.dropout))
        self.gru = nn.GRU(d, hidden, bidirectional=True, batch_first=True)
        self.attention = nn.MultiheadAttention(2 * hidden, settings.heads, batch_first=True)
        self.logits = nn.Linear(2 * hidden, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        lengths = batch.dialogues
        x = pad_sequence(list(self.features(batch.inputs[self.modality].values).split(lengths.tolist())), True)
        x = self.gru(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))[0]
        x = pad_packed_sequence(x, batch_first=True)[0]
        real = lengths.new_ones(x.shape[:2]).cumsum(1) <= lengths[:, None]
        x = self.attention(x, x, x, key_padding_mask=~real, need_weights=False)[0]
        return {"logits": self.logits(x[real])}


FUSIONS = {
    f"{modality}:utterance": Fusion(
        f"{modality}:utterance",
        "Perspective §2.2",
        PerspectiveSettings,
        (modality,),
        "vector",
        partial(Unimodal, modality=modality),
        unit="dialogue",
    )
    for modality in ("audio", "text")
}
