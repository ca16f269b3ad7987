"""USC (Zhou, Sibal, Bernard, Mallikarjuna & Mallick).

"A multi-modal approach to speech emotion recognition".

§5.1 classifies the text by BERT, §5.2 the audio by a VGG-style CNN on log-mel or MFCC, and §5.3
combines the class probabilities of the two trained models and trains the whole again.

§5.1 fine-tunes BERT. Here the encoder stays frozen by default, and the classifier works on cached
token features; the training's setting `finetune_text` trains its top layers, or all of it, from the
cached rows of the layer below (`ser.train.finetune`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch, visible_rows
from .fusion import (
    BOTH,
    OURS,
    CommonSettings,
    Count,
    Dims,
    Dropout,
    Fusion,
    Positive,
    Stage,
    Weight,
    setting,
)
from .layers.classifier import classifier
from .layers.layout import RaggedLayout


@dataclass(frozen=True)
class UscSettings(CommonSettings):
    """USC table 2 and §4."""

    epochs: Count = setting(15, "USC table 2", "epochs, of each stage")
    lr: Positive = setting(1.5e-4, "USC table 2")
    weight_decay: Weight = setting(1e-3, "USC table 2")
    dropout: Dropout = setting(0.6, "USC table 2", "dropout before each linear layer")
    standardise_audio: bool = setting(True, "USC §4", "z-score the spectrogram's bands")
    frames: Count = setting(
        600, OURS, "frames that every clip is padded or cropped to: 6 s at a hop of 10 ms"
    )
    channels: Count = setting(
        16, OURS, "channels of the first convolution; each next has twice as many, up to 8 times"
    )
    hidden: Count = setting(128, OURS, "width between the two linear layers")


class Cnn(nn.Module):
    """§5.2, a VGG-style CNN.

    "5 Convolutional layers with Max Pooling, 2 Linear layers, LeakyReLU activation, Dropout".
    """

    def __init__(self, settings: UscSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.bands = dims["audio"]
        self.frames = settings.frames

        self.convolutions = nn.Sequential()
        channels = 1
        for factor in (1, 2, 4, 8, 8):
            next_channels = factor * settings.channels
            convolution = nn.Conv2d(channels, next_channels, 3, padding=1)
            # Rounded up, so that 13 MFCCs are enough for five.
            pool = nn.MaxPool2d(2, ceil_mode=True)
            self.convolutions.extend([convolution, nn.LeakyReLU(), pool])
            channels = next_channels

        # Five halvings, rounded up.
        places = math.ceil(self.bands / 32) * math.ceil(self.frames / 32)
        linear = classifier(
            settings.dropout,
            channels * places,
            settings.hidden,
            classes,
            activation=nn.LeakyReLU,
        )
        self.linear = nn.Sequential(nn.Dropout(settings.dropout), *linear)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]` of clips of one length.

        They are cropped, or padded with the training part's mean.
        """
        x, layout = visible_rows(batch, "audio", self.bands)
        clips = to_one_length(x, layout, self.frames)  # [n, frames, bands]

        maps = self.convolutions(clips[:, None])  # [n, channels, frames / 32, bands / 32]
        return {"logits": self.linear(maps.flatten(1))}


def to_one_length(x: Tensor, layout: RaggedLayout, frames: int) -> Tensor:
    """Packed rows `[r, dim]` → `[n, frames, dim]`.

    The first frames of each sequence, then zeros (§4).
    """
    n = len(layout.lengths)
    places = layout.owner * frames + layout.position
    # What is cropped goes to one place more, which is dropped.
    places = torch.where(layout.position < frames, places, n * frames)

    clips = x.new_zeros(n * frames + 1, x.shape[1]).index_copy(0, places, x)
    return clips[:-1].unflatten(0, (n, frames))


class Bert(nn.Module):
    """§5.1: text classification from BERT's first token, [CLS]."""

    def __init__(self, settings: UscSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dim = dims["text"]
        self.linear = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(dims["text"], classes))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`; those of zeros where there is no token."""
        x, layout = visible_rows(batch, "text", self.dim)
        first_tokens = to_one_length(x, layout, 1)[:, 0]  # [n, dim]
        return {"logits": self.linear(first_tokens)}


class CnnBert(nn.Module):
    """§5.3: the probabilities of both models.

    "each … through a Linear layer, after which they are summed up".
    """

    def __init__(self, settings: UscSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.audio = Cnn(settings, dims, classes)
        self.text = Bert(settings, dims, classes)
        self.linear = nn.ModuleDict({m: nn.Linear(classes, classes) for m in BOTH})
        # What a target makes of logits; another target puts its own here (`Target.build`).
        self.predictions: Callable[[Tensor], Tensor] = partial(F.softmax, dim=1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]` of the sum, and of the two models."""
        branches = {}
        if batch.wants("logits", "audio"):
            branches["audio"] = self.audio(batch)["logits"]
        if batch.wants("logits", "text"):
            branches["text"] = self.text(batch)["logits"]

        # A stage that trains one branch needs no sum.
        if not batch.wants("logits"):
            return branches

        mapped = []
        for modality, logits in branches.items():
            mapped.append(self.linear[modality](self.predictions(logits)))
        return {"logits": torch.stack(mapped).sum(0), **branches}


STAGES = (
    Stage("cnn", output="audio", trains=("audio.",)),
    Stage("bert", output="text", trains=("text.",)),
    # "This multimodal architecture is trained again"
    Stage("cnn+bert"),
)

CNN_SETTINGS = ("frames", "channels", "hidden")
FIXED_IN_BERT = {
    "pooler": ("not used", "BERT's own pooler: [CLS] is classified as the last layer gives it")
}

FUSIONS = [
    Fusion(
        name="cnn",
        source="USC §5.2",
        settings=UscSettings,
        inputs=("audio",),
        level="sequence",
        build=Cnn,
    ),
    Fusion(
        name="bert",
        source="USC §5.1",
        settings=UscSettings,
        inputs=("text",),
        level="sequence",
        build=Bert,
        unused=CNN_SETTINGS,
        fixed=FIXED_IN_BERT,
    ),
    Fusion(
        name="cnn+bert",
        source="USC §5.3",
        settings=UscSettings,
        inputs=BOTH,
        level="sequence",
        build=CnnBert,
        stages=STAGES,
        fixed=FIXED_IN_BERT,
    ),
]
