"""The top of a text encoder, or all of it: Hugging Face's own model without its embeddings."""

from typing import Any

import torch
from torch import Tensor, nn

from ..layers.layout import RaggedLayout, Rows
from .top import EncoderTop, PassedOn, TopLayers, drop_layers_below

# Not ALBERT, whose layers share their weights.
ARCHITECTURES = (
    "bert",
    "camembert",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "megatron-bert",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
)

# Where an encoder ends in a norm after its last layer.
FINAL_NORMS = {
    "eurobert": "norm",
    "megatron-bert": "encoder.ln",
    "modernbert": "final_norm",
    "roberta-prelayernorm": "LayerNorm",
    "xlm-roberta-xl": "encoder.LayerNorm",
}

# What maps narrower embeddings to the hidden size.
PROJECTIONS = {
    "electra": "embeddings_project",
    "rembert": "encoder.embedding_hidden_mapping_in",
}


class TextTop(EncoderTop):
    """Takes over `model`, a `BertModel` or its like.

    What all layers share, such as relative positions, trains only if all of the model does.
    """

    def __init__(self, model: Any, layers: TopLayers, window: int | None = None) -> None:
        super().__init__()
        self.takes_tokens = layers == "all"
        self.columns = 1 if self.takes_tokens else model.config.hidden_size
        # No feature comes from it.
        model.pooler = None
        self.model = model
        self.stack = name_of_layers(model)
        final_norm = FINAL_NORMS.get(model.config.model_type)
        self.behind = (f"model.{final_norm}",) if final_norm else ()
        if self.takes_tokens:
            self.train_only(model)
            return

        stack = self.layers_of_stack
        below = drop_layers_below(stack, layers)
        self._take_out_embeddings()
        # DeBERTa's convolution belongs to its first layer.
        convolution = getattr(getattr(model, "encoder", None), "conv", None)
        if below and convolution is not None:
            model.encoder.conv = None
            convolution = None

        norm = model.get_submodule(final_norm) if final_norm else None
        self.train_only(stack, norm, convolution)

    def _take_out_embeddings(self) -> None:
        model = self.model
        if hasattr(model, "embed_tokens"):
            del model.embed_tokens
        else:
            model.embeddings = HiddenStates()

        projection = PROJECTIONS.get(model.config.model_type, "")
        holder, _, name = projection.rpartition(".")
        if projection and hasattr(model.get_submodule(holder), name):
            setattr(model.get_submodule(holder), name, PassedOn())

    def forward(self, x: Tensor, layout: RaggedLayout) -> Rows:
        """Tokens of layer k `[r, d]`, or token ids `[r, 1]` → tokens of layer L `[r, d]`."""
        if self.takes_tokens:
            tokens = x[:, 0].long()
            inputs = {"input_ids": layout.pad(tokens, self.model.config.pad_token_id)}
        else:
            inputs = {"inputs_embeds": layout.pad(x)}

        output = self.model(**inputs, attention_mask=layout.attended.long())
        return layout.unpad(output.last_hidden_state), layout


class HiddenStates(nn.Module):
    """In place of the embeddings: the hidden states of the layer below, as they are."""

    def forward(
        self, input_ids: None = None, inputs_embeds: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor | None:
        return inputs_embeds


def name_of_layers(model: Any) -> str:
    """The name of the list of the model's layers, wherever it holds it, in a `TextTop`."""
    depth = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return f"model.{name}"
    raise ValueError(f"{type(model).__name__} has no list of {depth} layers")


def build(config: Any) -> Any:
    """The model of this config, with any weights."""
    import transformers

    return transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
