"""The top of Whisper's encoder, which attends to the silence that fills a window of 30 s.

So it takes all states of each window, and gives those that the audio reaches.
"""

from typing import Any

import torch
from torch import Tensor

from ..layers.layout import RaggedLayout, Rows
from .top import EncoderTop, TopLayers, drop_layers_below

ARCHITECTURES = ("whisper",)


class WhisperTop(EncoderTop):
    """Takes over `model`, a `WhisperEncoder`.

    The last column of a row says whether the audio reaches its state (1), or it is of the padding
    (0).
    """

    def __init__(self, model: Any, layers: TopLayers, window: int | None = None) -> None:
        super().__init__()
        self.stack = "layers"
        self.behind = ("layer_norm",)
        self.columns = model.config.d_model + 1
        self.window = model.config.max_source_positions

        drop_layers_below(model.layers, layers)
        self.layers = model.layers
        self.layer_norm = model.layer_norm
        self.train_only(self.layers, self.layer_norm)

    def forward(self, x: Tensor, layout: RaggedLayout) -> Rows:
        """All states of layer k `[r, d + 1]` → those of layer L that the audio reaches."""
        of_audio = x[:, -1] > 0.5
        windows = x[:, :-1].unflatten(0, (-1, self.window))  # [windows, 1500, d]
        for layer in self.layers:
            windows = layer(windows, None)
        states = self.layer_norm(windows).flatten(0, 1)

        # Here a GPU is waited for: what follows has to know the lengths.
        lengths = layout.total(of_audio[:, None].float())[:, 0].long().cpu()
        return states[of_audio], RaggedLayout(lengths, layout.device)


def build(config: Any) -> Any:
    """The encoder of this config, with any weights."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    encoder: Any = WhisperEncoder(config)
    return encoder.to(torch.float32)
