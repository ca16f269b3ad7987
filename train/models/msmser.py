"""MSMSER (Wang, Ma & Ding, ICASSP 2023).

"Exploring complementary features in multi-modal speech emotion recognition".

Given a_{1:T} (audio frames) and w_{1:N} (words) of one utterance, §2.1 refines each modality, §2.2
lets L emotion query tokens gather from both what tells the emotion, and §2.3 hides one modality of
some training samples.

Everything runs on packed rows: the frames, or tokens, of all n utterances of a batch stand one
after the other in one tensor `[r, d]`, without padding. A hidden modality has no rows in the batch,
which has the effect of an attention mask of zero: nothing that it holds reaches the result or a
gradient. What is used here of `layers`, where the axis letters stand too:

    visible_rows         the rows of one modality that the batch holds, and their layout
    layout               says where each utterance lies among the rows
      .lengths           how many rows each utterance has, `[n]`
      .position          the place of each row in its utterance, from 0, `[r]`
      .longest           how many rows the longest utterance has
      .of_length(L)      the layout of as many utterances, of L rows each
    concatenate          the rows of two modalities, utterance by utterance, and their layout
    EncoderLayer(x, layout)           rows attend to the rows of their utterance
    DecoderLayer(x, layout, memory)   … and then to those of `memory`, a pair (rows, their layout)
    SelfAttentionPooling(x, layout)   one vector for each utterance: rows `[r, d]` → `[n, d]`
"""

import math
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Generator, Tensor, nn

from .batch import Batch, visible_rows
from .fusion import (
    BOTH,
    OURS,
    CommonSettings,
    Count,
    Depth,
    Dims,
    Dropout,
    Fusion,
    Positive,
    Share,
    setting,
)
from .layers.classifier import classifier
from .layers.layout import RaggedLayout, concatenate
from .layers.pooling import SelfAttentionPooling
from .layers.transformer import DecoderLayer, EncoderLayer


@dataclass(frozen=True)
class MsmserSettings(CommonSettings):
    """MSMSER §2.3 and §3.2."""

    epochs: Count = setting(100, "MSMSER §3.2")
    batch_size: Count = setting(8, "MSMSER §3.2")
    lr: Positive = setting(2e-5, "MSMSER §3.2")
    dropout: Dropout = setting(
        0.1, OURS, "dropout after each sub-layer of the transformers and in the classifier"
    )
    d_model: Count = setting(768, "MSMSER §3.2", "d_e, the hidden size")
    heads: Count = setting(8, "MSMSER §3.2", "heads of the transformers")
    encoder_depth: Depth = setting(1, OURS, "layers of each uni-modal encoder")
    decoder_depth: Count = setting(1, OURS, "layers of the modality interaction transformer")
    feed_forward: Count = setting(
        4, OURS, "width of the transformers' feed-forward nets, as a multiple of d_e"
    )
    queries: Count = setting(30, "MSMSER §4.4", "L, the number of emotion query tokens")
    rmm_start: Share = setting(
        0.8, "MSMSER §3.2", "p of random modality masking at the start; 0 trains without it"
    )
    rmm_end: Share = setting(
        0.7, "MSMSER §3.2 (the 70th of 100)", "share of the epochs after which p is 0"
    )
    rmm_text: Share = setting(
        0.6, "MSMSER §2.3", "how often masking hides the text, and else the audio"
    )


class Refinement(nn.Module):
    """§2.1 of one modality: a linear map to d_e, an encoder, and self-attention.

    The encoder is a transformer, and the self-attention scales the frames. `encoder` and
    `self_attention` leave them out where false (§4.2, w/o Encoder and w/o SelfAtt).
    """

    def __init__(
        self, settings: MsmserSettings, dim: int, encoder: bool = True, self_attention: bool = True
    ) -> None:
        super().__init__()
        d = settings.d_model
        self.project = nn.Linear(dim, d)

        self.encoder = nn.ModuleList()
        depth = settings.encoder_depth if encoder else 0
        for _ in range(depth):
            self.encoder.append(
                EncoderLayer(d, settings.heads, settings.feed_forward * d, settings.dropout)
            )

        # "a two-layer Multilayer Perceptron (MLP) and a Sigmoid to obtain the scales for each
        # frame"
        self.scales: nn.Module | None = None
        if self_attention:
            self.scales = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1), nn.Sigmoid())

    def forward(self, x: Tensor, layout: RaggedLayout) -> Tensor:
        """a_{1:T} → a'_{1:T} (or w → w'); rows `[r, dim]` → `[r, d_e]`."""
        x = self.project(x)

        for layer in self.encoder:
            x = layer(x, layout)

        if self.scales is None:
            return x
        return self.scales(x) * x


class ModalityInteraction(nn.Module):
    """§2.2, the modality interaction transformer (MIT), with the pooling behind it.

    The pooling merges its L tokens into one.
    """

    def __init__(self, settings: MsmserSettings) -> None:
        super().__init__()
        d = settings.d_model
        # q, and the type codes of audio and text.
        self.queries = nn.Parameter(torch.randn(settings.queries, d) * 0.02)
        self.types = nn.Parameter(torch.randn(2, d) * 0.02)

        self.decoder = nn.ModuleList()
        for _ in range(settings.decoder_depth):
            self.decoder.append(
                DecoderLayer(d, settings.heads, settings.feed_forward * d, settings.dropout)
            )

        self.pool = SelfAttentionPooling(d)

    def forward(self, a: Tensor, audio: RaggedLayout, w: Tensor, text: RaggedLayout) -> Tensor:
        """Rows a' `[r_a, d_e]` and w' `[r_w, d_e]` of n utterances → `[n, d_e]`."""
        # What the tokens gather from: both modalities, with positions and types.
        a = a + positions(audio, a) + self.types[0]
        w = w + positions(text, w) + self.types[1]
        memory = concatenate(a, audio, w, text)

        # The same L query tokens for each utterance, packed as rows too.
        layout = audio.of_length(len(self.queries))
        q = self.queries.repeat(len(audio.lengths), 1)  # [n L, d_e]
        for layer in self.decoder:
            q = layer(q, layout, memory)

        return self.pool(q, layout)


def positions(layout: RaggedLayout, like: Tensor) -> Tensor:
    """Sinusoidal position encodings (Vaswani et al. 2017, §3.5) of packed rows.

    `[r, d]`, of the width, dtype and device of `like`.
    """
    d = like.shape[1]
    if like.is_cuda:
        # Mostly one table for all batches.
        rows = max(2048, 1 << layout.longest.bit_length())
        table = _cached_sinusoids(rows, d, like.dtype, like.device)
    else:
        table = _sinusoids(layout.longest, d, like.dtype, like.device)
    return table.index_select(0, layout.position)


def _sinusoids(rows: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The encodings of positions from 0; `[rows, d]`.

    Column 2 i is sin(t / 10000^(2 i / d)), column 2 i + 1 its cosine. Computed in float64.
    """
    # Apple's GPU has no float64.
    place = torch.device("cpu") if device.type == "mps" else device
    t = torch.arange(rows, device=place, dtype=torch.float64)[:, None]
    even_columns = torch.arange(0, d, 2, device=place, dtype=torch.float64)

    angle = t * torch.exp(even_columns * (-math.log(10000.0) / d))
    # onnxruntime has a sine of float64, but no cosine before 1.30.
    is_graph = hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()
    cosine = (angle + math.pi / 2).sin() if is_graph else angle.cos()
    table = torch.stack([angle.sin(), cosine], 2).flatten(1)[:, :d]
    return table.to(dtype).to(device)


@cache
@torch.inference_mode(False)
def _cached_sinusoids(rows: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`_sinusoids`, kept: on a GPU a table is a dozen operations.

    Whoever asks first, training must be able to use it: so never in inference mode.
    """
    return _sinusoids(rows, d, dtype, device)


class Msmser(nn.Module):
    """Full (§2), w/o Encoder and w/o SelfAtt (§4.2): `ablation` is what `Refinement` leaves out."""

    def __init__(
        self, settings: MsmserSettings, dims: Dims, classes: int, **ablation: bool
    ) -> None:
        super().__init__()
        d = settings.d_model
        self.dims = dict(dims)
        self.audio = Refinement(settings, dims["audio"], **ablation)
        self.text = Refinement(settings, dims["text"], **ablation)
        self.interaction = ModalityInteraction(settings)
        # "a 2-layer MLP for classification"
        self.classifier = classifier(settings.dropout, d, d, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        a, audio = visible_rows(batch, "audio", self.dims["audio"])
        w, text = visible_rows(batch, "text", self.dims["text"])

        a = self.audio(a, audio)
        w = self.text(w, text)
        z = self.interaction(a, audio, w, text)
        return {"logits": self.classifier(z)}


class Pooled(nn.Module):
    """The models without MIT (§4.2): refined and pooled by self-attention.

    With both modalities w/o MIT, which concatenates the pooled vectors; with one, Text or Audio. A
    hidden modality's vector is zero.
    """

    def __init__(self, settings: MsmserSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d = settings.d_model
        self.dims = {modality: dims[modality] for modality in BOTH if modality in dims}

        self.refine = nn.ModuleDict()
        for modality, dim in self.dims.items():
            self.refine[modality] = Refinement(settings, dim)

        self.pool = nn.ModuleDict()
        for modality in self.dims:
            self.pool[modality] = SelfAttentionPooling(d)

        self.classifier = classifier(settings.dropout, len(dims) * d, d, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        pooled = []
        for modality, dim in self.dims.items():
            x, layout = visible_rows(batch, modality, dim)
            x = self.refine[modality](x, layout)
            pooled.append(self.pool[modality](x, layout))

        z = torch.cat(pooled, 1)
        return {"logits": self.classifier(z)}


def random_modality_masking(
    settings: MsmserSettings, n: int, epoch: int, generator: Generator
) -> dict[str, Tensor]:
    """§2.3: masks each of n training samples with probability p, and then hides its text or audio.

    Never both. p falls linearly to 0, which it reaches after `rmm_end` of the epochs. Modality →
    bool `[n]`, true where hidden.
    """
    last_epoch = settings.rmm_end * settings.epochs
    p = 0.0
    if last_epoch > 0:
        p = settings.rmm_start * max(0.0, 1 - epoch / last_epoch)

    masked = torch.rand(n, generator=generator) < p
    text = torch.rand(n, generator=generator) < settings.rmm_text
    return {"audio": masked & ~text, "text": masked & text}


POOLING = {
    "pooling": ("linear", "score of the self-attention pooling: α = softmax(w · x)"),
    "words": (
        "tokens",
        "rows of the text, <s> and </s> among them; §2.1 has a row for each word",
    ),
}
MIT_FIXED = {
    **POOLING,
    "types": ("added", "codes of the modalities, to each row; §2.2: appended"),
    "positions": (
        "sinusoidal",
        "codes of both modalities before MIT; there are none in the encoders",
    ),
}

# Settings, unused without MIT and without random modality masking.
OF_MIT = ("decoder_depth", "queries")
OF_RMM = ("rmm_start", "rmm_end", "rmm_text")

FUSIONS = [
    Fusion(
        name="mit",
        source="MSMSER §2",
        settings=MsmserSettings,
        inputs=BOTH,
        level="sequence",
        build=Msmser,
        hide=random_modality_masking,
        fixed=MIT_FIXED,
    ),
    Fusion(
        name="mit:no-encoder",
        source="MSMSER §4.2",
        settings=MsmserSettings,
        inputs=BOTH,
        level="sequence",
        build=partial(Msmser, encoder=False),
        hide=random_modality_masking,
        unused=("encoder_depth",),
        fixed=MIT_FIXED,
    ),
    Fusion(
        name="mit:no-selfatt",
        source="MSMSER §4.2",
        settings=MsmserSettings,
        inputs=BOTH,
        level="sequence",
        build=partial(Msmser, self_attention=False),
        hide=random_modality_masking,
        fixed=MIT_FIXED,
    ),
    # §2.3 masks by MIT's attention mask, and does not say whether the model without MIT is trained
    # so: here are both.
    Fusion(
        name="concat",
        source="MSMSER §4.2",
        settings=MsmserSettings,
        inputs=BOTH,
        level="sequence",
        build=Pooled,
        unused=(*OF_MIT, *OF_RMM),
        fixed=POOLING,
    ),
    Fusion(
        name="concat:rmm",
        source="MSMSER §4.2, §2.3",
        settings=MsmserSettings,
        inputs=BOTH,
        level="sequence",
        build=Pooled,
        hide=random_modality_masking,
        unused=OF_MIT,
        fixed=POOLING,
    ),
    Fusion(
        name="audio:frame",
        source="MSMSER §4.2",
        settings=MsmserSettings,
        inputs=("audio",),
        level="sequence",
        build=Pooled,
        unused=(*OF_MIT, *OF_RMM),
        fixed=POOLING,
    ),
    Fusion(
        name="text:token",
        source="MSMSER §4.2",
        settings=MsmserSettings,
        inputs=("text",),
        level="sequence",
        build=Pooled,
        unused=(*OF_MIT, *OF_RMM),
        fixed=POOLING,
    ),
]
