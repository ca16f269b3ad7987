"""The top of a text encoder, to be trained on: Hugging Face's own layers on packed rows."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .ragged import RaggedLayout

Layers = int | Literal["all"]


class Encoder(nn.Module):
    """The top layers of BERT or MPNet, or all of it, which compute what they compute within the whole model.

    Takes over `model`, a `BertModel` or `MPNetModel` without a pooler. Only what stays of it has gradients, and
    MPNet's relative positions, which all layers share, only if all of them are trained.
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
        """Rows of the layer below `[r, d]`, or token ids `[r, 1]`, → rows of the last layer `[r, d]`."""
        real = layout.attended
        if self.takes_tokens:
            tokens = layout.pad(x[:, 0].long(), self.model.config.pad_token_id)
            states = self.model(input_ids=tokens, attention_mask=real.long())
        else:
            states = self.model(inputs_embeds=layout.pad(x), attention_mask=real.long())
        return layout.unpad(states.last_hidden_state)


class _Given(nn.Module):
    """In place of the embeddings: the hidden states of the layer below, as they are."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


def untrained(config: Mapping[str, Any], layers: Layers) -> Encoder:
    """The encoder of a checkpoint's config.json with any weights, to be overwritten by those of a trained run."""
    import transformers

    settings = dict(config)
    made = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    if layers != "all":
        made.num_hidden_layers = layers
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModel.from_config(made, trust_remote_code=False, add_pooling_layer=False)
    return Encoder(model, layers)
