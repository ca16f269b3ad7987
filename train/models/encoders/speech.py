"""The top of an encoder of speech frames: HuBERT, wav2vec 2.0 and their like, and the conformer.

Hugging Face's own encoder runs, with its mask and its final LayerNorm, where it has one. What it
does before its first layer (a convolution of positions, a LayerNorm, dropout) is in the rows
already, and is taken out.
"""

import warnings
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.layout import RaggedLayout, Rows
from .top import (
    EncoderTop,
    PassedOn,
    TopLayers,
    attention_mask,
    cut_into_windows,
    drop_layers_below,
)

# WavLM passes torch a boolean mask beside a float one, on purpose.
warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)

ARCHITECTURES = (
    "hubert",
    "wav2vec2",
    "wavlm",
    "data2vec-audio",
    "unispeech-sat",
    "wav2vec2-bert",
)


class NoPositions(nn.Module):
    """In place of the convolution that adds positions: zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class SpeechTop(EncoderTop):
    """Takes over `model`, a `HubertModel` or its like.

    WavLM's first layer holds the relative positions of all: they come along, and train only with
    that layer. No layer is dropped at random in training (`layerdrop`): of a few layers at the top
    that would often be all.
    """

    def __init__(self, model: Any, layers: TopLayers, window: int | None = None) -> None:
        super().__init__()
        self.stack = "encoder.layers"
        self.behind = ("encoder.layer_norm",)
        encoder = model.encoder
        self.columns = model.config.hidden_size
        self.window = window
        ends_in_norm = bool(getattr(model.config, "do_stable_layer_norm", False))

        first_of_all = encoder.layers[0]
        below = drop_layers_below(encoder.layers, layers)
        encoder.config.layerdrop = 0.0
        encoder.dropout = nn.Identity()
        if hasattr(encoder, "pos_conv_embed"):
            encoder.pos_conv_embed = NoPositions()
            if not ends_in_norm:
                encoder.layer_norm = PassedOn()

        self.encoder = encoder
        self.train_only(encoder.layers, encoder.layer_norm if ends_in_norm else None)

        positions = getattr(getattr(first_of_all, "attention", None), "rel_attn_embed", None)
        if below and positions is not None:
            encoder.layers[0].attention.rel_attn_embed = positions.requires_grad_(False)

    def call_projections(self) -> None:
        """WavLM hands the weights of its projections to a function of torch, past any adapter."""
        for layer in self.layers_of_stack:
            attention: Any = getattr(layer, "attention", None)
            if hasattr(attention, "torch_multi_head_self_attention"):
                attention.torch_multi_head_self_attention = partial(attend_by_calls, attention)

    def forward(self, x: Tensor, layout: RaggedLayout) -> Rows:
        """Frames of layer k `[r, d]` → of layer L `[r, d]`."""
        # In a graph of ONNX the number of rows is not known.
        if not layout.fixed and not len(x):
            return x, layout

        pieces = cut_into_windows(layout, self.window)
        output = self.encoder(pieces.pad(x), attention_mask=attention_mask(pieces))
        return pieces.unpad(output.last_hidden_state), layout


def attend_by_calls(
    attention: Any, x: Tensor, mask: Tensor | None, position_bias: Tensor
) -> tuple[Tensor, None]:
    """What `torch_multi_head_self_attention` of WavLM computes, by calls of its projections.

    x `[n, t, d]`, mask `[n, t]`, where 1 holds a frame, position_bias `[n h, t, t]` of h heads.
    """
    n, t, _ = x.shape
    by_head = (n, t, attention.num_heads, attention.head_dim)
    query = attention.q_proj(x).view(by_head).transpose(1, 2)
    key = attention.k_proj(x).view(by_head).transpose(1, 2)
    value = attention.v_proj(x).view(by_head).transpose(1, 2)

    bias = position_bias.view(n, attention.num_heads, t, t)
    if mask is not None:
        bias = bias.masked_fill(mask.ne(1)[:, None, None], -torch.inf)

    dropout = attention.dropout if attention.training else 0.0
    heads = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropout
    )
    output: Tensor = attention.out_proj(heads.transpose(1, 2).reshape(n, t, -1))
    return output, None


def build(config: Any) -> Any:
    """The model of this config, with any weights."""
    import transformers

    return transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
