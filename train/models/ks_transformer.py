"""KS-Transformer: Chen, Xing, Xu, Yang & Pang, "Key-sparse transformer for multimodal speech
emotion recognition", ICASSP 2022, as its authors' code computes it
(github.com/HappyColor/Key-Sparse-Transformer).

For audio and for text, x and y being the one and the other:

    x = transformer over itself, `encoder_depth` layers
    z = x through `cross_depth` cascaded cross-attention blocks: a key-sparse layer that attends to y, one to itself
    x' = key-sparse transformer over 2 x + z, `last_depth` layers       (z + x behind the blocks, + x once more)

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

from .batch import Batch, visible
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
        x = x + positions(layout, x)
        v, keys = memory or (x, layout)
        k = v + positions(keys, v) if memory else x
        q, k, v = (self.project(rows, slice(i, i + 1))[:, 0] for i, rows in enumerate((x, k, v)))
        return self.attend(q, k, v, layout, keys)


class Stack(nn.Module):
    """A layer norm and `depth` layers, which attend to their own rows or, with `cross`, to those of
    a memory.
    """

    def __init__(self, settings: KsSettings, depth: int, keep: float, cross: bool = False) -> None:
        super().__init__()
        d, heads, dropout = settings.d_model, settings.heads, settings.dropout
        self.norm, self.memory_norm = nn.LayerNorm(d), nn.LayerNorm(d) if cross else nn.Identity()
        sizes = d, heads, max(1, int(settings.feed_forward * d)), dropout
        self.layers = nn.ModuleList(
            EncoderLayer(*sizes, KeySparse(d, heads, dropout, keep)) for _ in range(depth)
        )

    def forward(self, x: Tensor, layout: RaggedLayout, memory: Rows | None = None) -> Tensor:
        """Rows `[r, d]` → `[r, d]`."""
        x, memory = self.norm(x), memory and (self.memory_norm(memory[0]), memory[1])
        for layer in self.layers:
            x = layer(x, layout, memory)
        return x


class KsTransformer(nn.Module):
    """The whole of it."""

    def __init__(self, settings: KsSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        d, keep, self.dims = settings.d_model, settings.keep, {m: dims[m] for m in BOTH}
        self.classifier = classifier(settings.dropout_classifier, 2 * d, d, d // 2, classes)
        self.project = nn.ModuleDict({m: nn.Linear(dims[m], d) for m in BOTH})
        self.own = nn.ModuleDict({m: Stack(settings, settings.encoder_depth, 1.0) for m in BOTH})
        ways = (True, False) * settings.cross_depth
        self.cross = nn.ModuleDict(
            {m: nn.ModuleList(Stack(settings, 1, keep, way) for way in ways) for m in BOTH}
        )
        self.last = nn.ModuleDict({m: Stack(settings, settings.last_depth, keep) for m in BOTH})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`. To a hidden modality nothing attends, and its mean is zero."""
        x = {m: visible(batch, m, dim) for m, dim in self.dims.items()}
        x = {
            m: (self.own[m](self.project[m](rows), layout), layout)
            for m, (rows, layout) in x.items()
        }
        means = []
        for m, other in (BOTH, BOTH[::-1]):
            z, layout = x[m]
            for i, stack in enumerate(cast(nn.ModuleList, self.cross[m])):
                z = stack(z, layout, None if i % 2 else x[other])
            means.append(mean_rows(self.last[m](2 * x[m][0] + z, layout), layout))
        return {"logits": self.classifier(torch.cat(means, 1))}


FUSIONS = [
    Fusion(
        "ks-transformer", "Chen et al., ICASSP 2022", KsSettings, BOTH, "sequence", KsTransformer
    )
]
