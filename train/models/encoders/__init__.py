"""The top layers of pretrained encoders, to be trained from cached rows of the layer below.

They are cut out of Hugging Face's model: its weights and its arithmetic are those of the whole.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ser.errors import WrongUse

from . import speech, text, whisper
from .lora import Adapters, add_adapters, check_peft, merge_adapters
from .top import EncoderTop, TopLayers

__all__ = [
    "ARCHITECTURES",
    "Adapters",
    "EncoderTop",
    "TopLayers",
    "add_adapters",
    "check_peft",
    "cut_top",
    "merge_adapters",
    "untrained_top",
]

# The architectures that are proven to be exact, each by the same test.
ARCHITECTURES = {
    "audio": (*speech.ARCHITECTURES, *whisper.ARCHITECTURES),
    "text": text.ARCHITECTURES,
}


def cut_top(model: Any, layers: TopLayers, window: int | None = None) -> EncoderTop:
    """The top layers of an encoder of transformers, which is taken over.

    `window` is how many rows an encoder of frames attends over at most.
    """
    architecture = model.config.model_type
    if architecture in whisper.ARCHITECTURES:
        return whisper.WhisperTop(model, layers, window)
    if architecture in speech.ARCHITECTURES:
        return speech.SpeechTop(model, layers, window)
    return text.TextTop(model, layers, window)


def untrained_top(
    config: Mapping[str, Any], layers: TopLayers, window: int | None = None
) -> EncoderTop:
    """The top of the encoder that a checkpoint's config.json describes, with any weights.

    They are to be overwritten by those of a trained run. Raises `WrongUse` for an architecture
    whose top cannot be cut.
    """
    import transformers

    architecture = str(config.get("model_type"))
    builders = {}
    for family in (speech, whisper, text):
        for name in family.ARCHITECTURES:
            builders[name] = family.build
    if architecture not in builders:
        raise WrongUse(f"the top of a {architecture} encoder cannot be trained")

    encoder_config = transformers.AutoConfig.for_model(**config)
    if layers != "all":
        # One more than the top: its first layer must not be built as the first of all.
        _shorten(encoder_config, min(layers + 1, encoder_config.num_hidden_layers))

    # The random draws of its initialisation are not the run's.
    with torch.random.fork_rng(devices=[]):
        model = builders[architecture](encoder_config)
    return cut_top(model, layers, window)


def _shorten(config: Any, layers: int) -> None:
    """Let the config describe the last `layers` alone."""
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = layers
    if kinds is not None:
        config.layer_types = kinds[-layers:]
