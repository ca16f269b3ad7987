"""The encoder of a text feature inside a model, so that it is trained with the model."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .layers.layout import RaggedLayout

# Of an encoder: so many layers at its top; all: its embeddings too.
TopLayers = int | Literal["all"]


class TransformerEncoder(nn.Module):
    """The top layers of BERT or MPNet, or all of it.

    They compute what they compute within the whole model. Takes over `model`, a `BertModel` or
    `MPNetModel` without a pooler. Only what stays of it has gradients, and MPNet's relative
    positions, which all layers share, only if all of them are trained.
    """

    def __init__(self, model: Any, layers: TopLayers) -> None:
        super().__init__()
        self.takes_tokens = layers == "all"
        if layers != "all":
            model.embeddings = _HiddenStates()
            lower_layers = len(model.encoder.layer) - layers
            model.encoder.layer = model.encoder.layer[lower_layers:]

        self.model = model.requires_grad_(False)
        trained = model if self.takes_tokens else model.encoder.layer
        trained.requires_grad_(True)

    def forward(self, x: Tensor, layout: RaggedLayout) -> Tensor:
        """Rows of the layer below `[r, d]`, or token ids `[r, 1]` → rows of the last layer.

        `[r, d]`.
        """
        if self.takes_tokens:
            tokens = x[:, 0].long()
            inputs = {"input_ids": layout.pad(tokens, self.model.config.pad_token_id)}
        else:
            inputs = {"inputs_embeds": layout.pad(x)}

        output = self.model(**inputs, attention_mask=layout.attended.long())
        return layout.unpad(output.last_hidden_state)


class _HiddenStates(nn.Module):
    """In place of the embeddings: the hidden states of the layer below, as they are."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


def untrained(config: Mapping[str, Any], layers: TopLayers) -> TransformerEncoder:
    """The encoder of a checkpoint's `config`, its config.json, with any weights.

    They are to be overwritten by those of a trained run.
    """
    import transformers

    encoder_config = transformers.AutoConfig.for_model(**config)
    if layers != "all":
        encoder_config.num_hidden_layers = layers

    # The random draws of its initialisation are not the run's.
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModel.from_config(
            encoder_config, trust_remote_code=False, add_pooling_layer=False
        )
    return TransformerEncoder(model, layers)
