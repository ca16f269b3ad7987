"""USC: Zhou, Sibal, Bernard, Mallikarjuna & Mallick, "A multi-modal approach to speech emotion
recognition".

§5.1 classifies the text by BERT, §5.2 the audio by a VGG-style CNN on log-mel or MFCC, and §5.3
combines the class probabilities of the two trained models and trains the whole again.

§5.1 fine-tunes BERT. Here the encoder stays frozen by default, and the classifier works on cached
token features; `finetune_layers` trains its top layers, or all of it, from the cached rows of the
layer below (`ser.train.finetune`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.errors import WrongUse

from .batch import Batch, visible
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

Layers = int | Literal["all"]  # of an encoder: so many at its top


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
    finetune_layers: Layers = setting(
        0,
        "ours: frozen; USC §5.1 fine-tunes BERT",
        "top layers of the text encoder to train, from tokens of the layer below; all: the embeddings too",
    )


class Cnn(nn.Module):
    """§5.2: "5 Convolutional layers with Max Pooling, 2 Linear layers, LeakyReLU activation,
    Dropout".
    """

    def __init__(self, settings: UscSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.bands, self.frames = dims["audio"], settings.frames
        channels = [1, *(settings.channels * times for times in (1, 2, 4, 8, 8))]
        self.convolutions = nn.Sequential()
        for pair in pairwise(channels):
            pool = nn.MaxPool2d(2, ceil_mode=True)  # so that 13 MFCCs are enough for five
            self.convolutions.extend([nn.Conv2d(*pair, 3, padding=1), nn.LeakyReLU(), pool])
        flat = (
            channels[-1] * -(-self.bands // 32) * -(-self.frames // 32)
        )  # five halvings, rounded up
        linear = classifier(
            settings.dropout, flat, settings.hidden, classes, activation=nn.LeakyReLU
        )
        self.linear = nn.Sequential(nn.Dropout(settings.dropout), *linear)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]` of clips that are cropped, or padded with the training part's mean, to
        one length.
        """
        x, layout = visible(batch, "audio", self.bands)
        clips = to_one_length(x, layout, self.frames)  # [n, frames, bands]
        return {"logits": self.linear(self.convolutions(clips[:, None]).flatten(1))}


def to_one_length(x: Tensor, layout: RaggedLayout, frames: int) -> Tensor:
    """Packed rows `[r, dim]` → `[n, frames, dim]`: the first frames of each sequence, then zeros
    (§4).
    """
    n, cells = len(layout.lengths), layout.owner * frames + layout.position
    cells = torch.where(
        layout.position < frames, cells, n * frames
    )  # one more, for what is cropped
    return (
        x.new_zeros(n * frames + 1, x.shape[1])
        .index_copy(0, cells, x)[:-1]
        .unflatten(0, (n, frames))
    )


class Encoder(nn.Module):
    """The top layers of BERT or MPNet, or all of it, which compute what they compute within the
    whole model.

    Takes over `model`, a `BertModel` or `MPNetModel` without a pooler. Only what stays of it has
    gradients, and MPNet's relative positions, which all layers share, only if all of them are
    trained.
    """

    def __init__(self, model: Any, layers: Layers) -> None:
        super().__init__()
        self.takes_tokens = layers == "all"
        if layers != "all":
            model.embeddings = _Given()
            model.encoder.layer = model.encoder.layer[len(model.encoder.layer) - layers :]
        self.model = model.requires_grad_(False)
        (model if self.takes_tokens else model.encoder.layer).requires_grad_(True)

    def forward(self, x: Tensor, layout: RaggedLayout) -> Tensor:
        """Rows of the layer below `[r, d]`, or token ids `[r, 1]`, → rows of the last layer `[r,
        d]`.
        """
        if self.takes_tokens:
            given = {"input_ids": layout.pad(x[:, 0].long(), self.model.config.pad_token_id)}
        else:
            given = {"inputs_embeds": layout.pad(x)}
        return layout.unpad(
            self.model(**given, attention_mask=layout.attended.long()).last_hidden_state
        )


class _Given(nn.Module):
    """In place of the embeddings: the hidden states of the layer below, as they are."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


def untrained(config: Mapping[str, Any], layers: Layers) -> Encoder:
    """The encoder of a checkpoint's config.json with any weights, to be overwritten by those of a
    trained run.
    """
    import transformers

    made = transformers.AutoConfig.for_model(**config)
    if layers != "all":
        made.num_hidden_layers = layers
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModel.from_config(
            made, trust_remote_code=False, add_pooling_layer=False
        )
    return Encoder(model, layers)


class Bert(nn.Module):
    """§5.1: text classification from BERT's first token, [CLS].

    Raises `WrongUse` if BERT itself is to be trained and is not there.
    """

    def __init__(
        self, settings: UscSettings, dims: Dims, classes: int, encoder: Encoder | None = None
    ) -> None:
        super().__init__()
        if settings.finetune_layers and encoder is None:
            raise WrongUse(
                f"finetune_layers={settings.finetune_layers} trains an encoder, and none was given; "
                "get the fusion from ser.train.finetune.with_encoder"
            )
        self.dim = 1 if encoder is not None and encoder.takes_tokens else dims["text"]
        self.encoder = encoder
        self.linear = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(dims["text"], classes))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`; those of zeros where there is no token."""
        x, layout = visible(batch, "text", self.dim)
        if self.encoder is not None:
            x = self.encoder(x, layout)
        first = to_one_length(x, layout, 1)[:, 0]
        return {"logits": self.linear(first)}


class CnnBert(nn.Module):
    """§5.3: the probabilities of both models, "each … through a Linear layer, after which they are
    summed up".
    """

    def __init__(
        self, settings: UscSettings, dims: Dims, classes: int, encoder: Encoder | None = None
    ) -> None:
        super().__init__()
        self.audio, self.text = Cnn(settings, dims, classes), Bert(settings, dims, classes, encoder)
        self.linear = nn.ModuleDict({m: nn.Linear(classes, classes) for m in BOTH})
        # Of another target: see `Target.build`.
        self.predictions: Callable[[Tensor], Tensor] = partial(F.softmax, dim=1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]` of the sum, and of the two models."""
        found = {m: getattr(self, m)(batch)["logits"] for m in BOTH if batch.wants("logits", m)}
        if not batch.wants("logits"):  # but the stages that train one branch
            return found
        summed = [self.linear[modality](self.predictions(own)) for modality, own in found.items()]
        return {"logits": torch.stack(summed).sum(0), **found}


STAGES = (
    Stage("cnn", output="audio", trains=("audio.",)),
    Stage("bert", output="text", trains=("text.",)),
    Stage("cnn+bert"),  # "This multimodal architecture is trained again"
)
_CNN = ("frames", "channels", "hidden")
_BERT = {
    "pooler": ("not used", "BERT's own pooler: [CLS] is classified as the last layer gives it")
}
FUSIONS = [
    Fusion(
        "cnn", "USC §5.2", UscSettings, ("audio",), "sequence", Cnn, unused=("finetune_layers",)
    ),
    Fusion("bert", "USC §5.1", UscSettings, ("text",), "sequence", Bert, unused=_CNN, fixed=_BERT),
    Fusion(
        "cnn+bert", "USC §5.3", UscSettings, BOTH, "sequence", CnnBert, stages=STAGES, fixed=_BERT
    ),
]
