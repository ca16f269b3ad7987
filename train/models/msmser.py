"""MSMSER: Wang, Ma & Ding, "Exploring complementary features in multi-modal speech emotion
recognition", ICASSP 2023.

Given a_{1:T} (audio frames) and w_{1:N} (words) of one utterance, §2.1 refines each modality, §2.2
lets L emotion query tokens gather from both what tells the emotion, and §2.3 hides one modality of
some training samples.

Everything runs on packed rows (`layers`). A hidden modality has no rows in the batch, which has
the effect of an attention mask of zero: nothing that it holds reaches the result or a gradient.
"""

import math
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Generator, Tensor, nn

from .batch import Batch, visible
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
    """§2.1 of one modality: a linear map to d_e, a transformer encoder, and self-attention, which
    scales the frames.

    `encoder` and `self_attention` leave them out where false (§4.2, w/o Encoder and w/o SelfAtt).
    """

    def __init__(
        self, settings: MsmserSettings, dim: int, encoder: bool = True, self_attention: bool = True
    ) -> None:
        super().__init__()
        d = settings.d_model
        depth = settings.encoder_depth if encoder else 0
        self.project = nn.Linear(dim, d)
        self.encoder = nn.ModuleList(
            EncoderLayer(d, settings.heads, settings.feed_forward * d, settings.dropout)
            for _ in range(depth)
        )
        # "a two-layer Multilayer Perceptron (MLP) and a Sigmoid to obtain the scales for each
        # frame"
        mlp = (
            nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1), nn.Sigmoid())
            if self_attention
            else None
        )
        self.scales = mlp

    def forward(self, x: Tensor, layout: RaggedLayout) -> Tensor:
        """a_{1:T} → a'_{1:T} (or w → w'); rows `[r, dim]` → `[r, d_e]`."""
        x = self.project(x)
        for layer in self.encoder:
            x = layer(x, layout)
        return x if self.scales is None else self.scales(x) * x


class ModalityInteraction(nn.Module):
    """§2.2, the modality interaction transformer (MIT), with the pooling that merges its L tokens
    into one.
    """

    def __init__(self, settings: MsmserSettings) -> None:
        super().__init__()
        d = settings.d_model
        self.queries = nn.Parameter(torch.randn(settings.queries, d) * 0.02)  # q
        self.types = nn.Parameter(torch.randn(2, d) * 0.02)  # the type codes of audio and text
        self.decoder = nn.ModuleList(
            DecoderLayer(d, settings.heads, settings.feed_forward * d, settings.dropout)
            for _ in range(settings.decoder_depth)
        )
        self.pool = SelfAttentionPooling(d)

    def forward(self, a: Tensor, audio: RaggedLayout, w: Tensor, text: RaggedLayout) -> Tensor:
        """Rows a' `[r_a, d_e]` and w' `[r_w, d_e]` of n utterances → `[n, d_e]`."""
        a = a + positions(audio, a) + self.types[0]
        w = w + positions(text, w) + self.types[1]
        memory = concatenate(a, audio, w, text)
        n, tokens = len(audio.lengths), len(self.queries)
        layout = audio.of_length(tokens)
        q = self.queries.repeat(n, 1)  # [n L, d_e]
        for layer in self.decoder:
            q = layer(q, layout, memory)
        return self.pool(q, layout)


def positions(layout: RaggedLayout, like: Tensor) -> Tensor:
    """Sinusoidal position encodings (Vaswani et al. 2017, §3.5) of packed rows, `[r, d]` as `like`."""
    kind = like.shape[1], like.dtype, like.device
    if like.is_cuda:  # mostly one table for all batches
        table = _cached_sinusoids(max(2048, 1 << layout.longest.bit_length()), *kind)
    else:
        table = _sinusoids(layout.longest, *kind)
    return table.index_select(0, layout.position)


def _sinusoids(rows: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    place = device if device.type != "mps" else "cpu"  # Apple's GPU has no float64
    t = torch.arange(rows, device=place, dtype=torch.float64)[:, None]
    angle = t * torch.exp(
        torch.arange(0, d, 2, device=place, dtype=torch.float64) * (-math.log(10000.0) / d)
    )
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :d].to(dtype).to(device)


_cached_sinusoids = cache(
    torch.inference_mode(False)(_sinusoids)
)  # on GPUs, where a table is a dozen operations


class Msmser(nn.Module):
    """Full (§2), w/o Encoder and w/o SelfAtt (§4.2): `ablation` is what `Refinement` leaves out."""

    def __init__(
        self, settings: MsmserSettings, dims: Dims, classes: int, **ablation: bool
    ) -> None:
        super().__init__()
        d = settings.d_model
        self.dims = dict(dims)
        self.audio, self.text = (Refinement(settings, dims[m], **ablation) for m in BOTH)
        self.interaction = ModalityInteraction(settings)
        self.classifier = classifier(
            settings.dropout, d, d, classes
        )  # "a 2-layer MLP for classification"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        (a, audio), (w, text) = (visible(batch, m, self.dims[m]) for m in BOTH)
        z = self.interaction(self.audio(a, audio), audio, self.text(w, text), text)
        return {"logits": self.classifier(z)}


class Pooled(nn.Module):
    """The models without MIT (§4.2): refined, pooled by self-attention, and the pooled vectors
    concatenated.

    With both modalities w/o MIT; with one, Text or Audio. A hidden modality's vector is zero.
    """

    def __init__(self, settings: MsmserSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d = settings.d_model
        self.dims = {m: dims[m] for m in BOTH if m in dims}
        self.refine = nn.ModuleDict({m: Refinement(settings, dim) for m, dim in self.dims.items()})
        self.pool = nn.ModuleDict({m: SelfAttentionPooling(d) for m in self.dims})
        self.classifier = classifier(settings.dropout, len(dims) * d, d, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        x = {m: visible(batch, m, dim) for m, dim in self.dims.items()}
        pooled = [
            self.pool[m](self.refine[m](rows, layout), layout) for m, (rows, layout) in x.items()
        ]
        return {"logits": self.classifier(torch.cat(pooled, 1))}


def random_modality_masking(
    settings: MsmserSettings, n: int, epoch: int, generator: Generator
) -> dict[str, Tensor]:
    """§2.3: masks each of n training samples with probability p, and then hides its text or its
    audio, never both.

    p falls linearly to 0, which it reaches after `rmm_end` of the epochs. Modality → bool `[n]`,
    true where hidden.
    """
    end = settings.rmm_end * settings.epochs
    p = settings.rmm_start * max(0.0, 1 - epoch / end) if end > 0 else 0.0
    masked = torch.rand(n, generator=generator) < p
    text = torch.rand(n, generator=generator) < settings.rmm_text
    return {"audio": masked & ~text, "text": masked & text}


POOLING = {"pooling": ("linear", "score of the self-attention pooling: α = softmax(w · x)")}
POSITIONS = {
    "positions": (
        "sinusoidal",
        "codes of both modalities before MIT; there are none in the encoders",
    )
}
OF_MIT = ("decoder_depth", "queries")  # settings, unused without it
OF_RMM = ("rmm_start", "rmm_end", "rmm_text")
_with = partial(Fusion, settings=MsmserSettings, level="sequence")
_mit = partial(_with, inputs=BOTH, hide=random_modality_masking, fixed=POOLING | POSITIONS)
_pooled = partial(_with, build=Pooled, fixed=POOLING)
FUSIONS = [
    _mit("mit", "MSMSER §2", build=Msmser),
    _mit(
        "mit:no-encoder",
        "MSMSER §4.2",
        build=partial(Msmser, encoder=False),
        unused=("encoder_depth",),
    ),
    _mit("mit:no-selfatt", "MSMSER §4.2", build=partial(Msmser, self_attention=False)),
    # §2.3 masks by MIT's attention mask, and does not say whether the model without MIT is trained
    # so.
    _pooled("concat", "MSMSER §4.2", inputs=BOTH, unused=(*OF_MIT, *OF_RMM)),
    _pooled(
        "concat:rmm", "MSMSER §4.2, §2.3", inputs=BOTH, unused=OF_MIT, hide=random_modality_masking
    ),
    _pooled("audio:frame", "MSMSER §4.2", inputs=("audio",), unused=(*OF_MIT, *OF_RMM)),
    _pooled("text:token", "MSMSER §4.2", inputs=("text",), unused=(*OF_MIT, *OF_RMM)),
]
