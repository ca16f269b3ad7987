"""KS-Transformer (Chen, Xing, Xu, Yang & Pang, ICASSP 2022).

"Key-sparse transformer for multimodal speech emotion recognition", as its authors' code computes it
(github.com/HappyColor/Key-Sparse-Transformer).

For audio and for text, x and y being the one and the other:

    x = transformer over itself, `encoder_depth` layers
    z = x through `cross_depth` cascaded cross-attention blocks,
        each a key-sparse layer that attends to y, and one that attends to itself
    x' = key-sparse transformer over 2 x + z, `last_depth` layers
        (z + x behind the blocks, + x once more)

and the means of both x' over time, concatenated, through a perceptron of three layers. In a
key-sparse layer each head keeps the share `keep` of the keys that all queries together give most
weight, and does not normalise anew. Every stack starts with a layer norm; positions are added to
queries and keys in every layer, not to the values of another modality. The code counts padding as
keys where no mask is given; here there is none. Ours: both modalities are mapped to one width (the
code works in each feature's own, 512 and 1,024), and Adam (the code: SGD with cosine annealing).
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .batch import Batch, visible_rows
from .fusion import (
    BOTH,
    OURS,
    CommonSettings,
    Count,
    Dims,
    Dropout,
    Even,
    Factor,
    Fusion,
    Positive,
    Share,
    setting,
)
from .layers.attention import Attention
from .layers.classifier import classifier
from .layers.layout import RaggedLayout, Rows
from .layers.pooling import mean_rows
from .layers.transformer import EncoderLayer
from .msmser import positions

CODE = "the authors' code, HappyColor/Key-Sparse-Transformer"


@dataclass(frozen=True)
class KsSettings(CommonSettings):
    """The authors' code (config/, model/), where it fits; else ours."""

    epochs: Count = setting(120, CODE)
    batch_size: Count = setting(16, CODE)
    lr: Positive = setting(5e-5, OURS)
    dropout: Dropout = setting(
        0.1, CODE, "dropout of attention weights and after sub-layers (theirs: in them too)"
    )
    d_model: Even = setting(512, OURS, "width of both modalities")
    heads: Count = setting(8, CODE, "heads of the attention")
    feed_forward: Factor = setting(
        0.5, CODE, "width of the feed-forward nets, as a multiple of d_model"
    )
    keep: Share = setting(0.5, CODE, "share of the keys that a key-sparse layer keeps")
    encoder_depth: Count = setting(5, CODE, "layers of each modality's transformer")
    cross_depth: Count = setting(3, CODE, "cascaded cross-attention blocks")
    last_depth: Count = setting(2, CODE, "layers of the last key-sparse transformers")
    dropout_classifier: Dropout = setting(0.5, CODE, "dropout in the classifier")


class KeySparse(Attention):
    """Attention with positions in queries and keys."""

    def forward(self, x: Tensor, layout: RaggedLayout, memory: Rows | None = None) -> Tensor:
        """Rows `[r, d]` attend to the rows `[r_k, d]` of a `memory`, or to each other; `[r, d]`."""
        queries = x + positions(layout, x)
        if memory is None:
            values = queries
            keys = queries
            key_layout = layout
        else:
            values, key_layout = memory
            keys = values + positions(key_layout, values)

        q = self.project(queries, slice(0, 1))[:, 0]
        k = self.project(keys, slice(1, 2))[:, 0]
        v = self.project(values, slice(2, 3))[:, 0]
        return self.attend(q, k, v, layout, key_layout)


class CrossModalStack(nn.Module):
    """A layer norm and `depth` layers.

    They attend to their own rows or, with `cross`, to those of a memory. `keep` is the share of the
    keys that they keep.
    """

    def __init__(self, settings: KsSettings, depth: int, keep: float, cross: bool = False) -> None:
        super().__init__()
        d = settings.d_model
        feed_forward = max(1, int(settings.feed_forward * d))

        self.norm = nn.LayerNorm(d)
        self.memory_norm = nn.LayerNorm(d) if cross else nn.Identity()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = KeySparse(d, settings.heads, settings.dropout, keep)
            layer = EncoderLayer(d, settings.heads, feed_forward, settings.dropout, attention)
            self.layers.append(layer)

    def forward(self, x: Tensor, layout: RaggedLayout, memory: Rows | None = None) -> Tensor:
        """Rows `[r, d]`, and those of a memory `[r_k, d]` → `[r, d]`."""
        x = self.norm(x)
        if memory is not None:
            memory_rows, memory_layout = memory
            memory = (self.memory_norm(memory_rows), memory_layout)

        for layer in self.layers:
            x = layer(x, layout, memory)
        return x


class KsTransformer(nn.Module):
    """The whole of it."""

    def __init__(self, settings: KsSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d = settings.d_model
        self.dims = {m: dims[m] for m in BOTH}

        self.classifier = classifier(settings.dropout_classifier, 2 * d, d, d // 2, classes)
        self.project = nn.ModuleDict({m: nn.Linear(dims[m], d) for m in BOTH})
        self.own = nn.ModuleDict(
            {m: CrossModalStack(settings, settings.encoder_depth, keep=1.0) for m in BOTH}
        )
        self.cross = nn.ModuleDict({m: cross_blocks(settings) for m in BOTH})
        self.last = nn.ModuleDict(
            {m: CrossModalStack(settings, settings.last_depth, settings.keep) for m in BOTH}
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`. To a hidden modality nothing attends, and its mean is zero."""
        audio = self._encode(batch, "audio")
        text = self._encode(batch, "text")

        audio_mean = self._attend_across("audio", audio, text)
        text_mean = self._attend_across("text", text, audio)
        return {"logits": self.classifier(torch.cat([audio_mean, text_mean], 1))}

    def _encode(self, batch: Batch, modality: str) -> Rows:
        """The x of a modality, `[r, d]`, and its layout."""
        rows, layout = visible_rows(batch, modality, self.dims[modality])
        x = self.own[modality](self.project[modality](rows), layout)
        return x, layout

    def _attend_across(self, modality: str, x_rows: Rows, other_rows: Rows) -> Tensor:
        """The mean over time of the x' of a modality, `[n, d]`."""
        x, layout = x_rows
        z = x
        blocks = cast(nn.ModuleList, self.cross[modality])
        for number, stack in enumerate(blocks):
            attends_to_other = number % 2 == 0
            z = stack(z, layout, other_rows if attends_to_other else None)

        x_last = self.last[modality](2 * x + z, layout)
        return mean_rows(x_last, layout)


def cross_blocks(settings: KsSettings) -> nn.ModuleList:
    """The cross-attention blocks of a modality, two stacks of one layer each.

    The first of a block attends to the other modality, the second to its own rows.
    """
    stacks = nn.ModuleList()
    for _ in range(settings.cross_depth):
        stacks.append(CrossModalStack(settings, 1, settings.keep, cross=True))
        stacks.append(CrossModalStack(settings, 1, settings.keep))
    return stacks


FUSIONS = [
    Fusion(
        name="ks-transformer",
        source="Chen et al., ICASSP 2022",
        settings=KsSettings,
        inputs=BOTH,
        level="sequence",
        build=KsTransformer,
    )
]
