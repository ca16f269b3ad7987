"""Train the encoder of a text feature itself: where it starts from, and with which weights.

USC §5.1 fine-tunes BERT. With `finetune_layers=n` its top n layers start from the cached rows of
the layer below, with `all` the whole encoder from the cached token ids; their first weights are
those of the feature's own checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from msgspec import structs
from torch import nn

from ser.cache.spec import Spec
from ser.disk.records import to_record
from ser.errors import CorruptStore, WrongUse, ser_command
from ser.weights.checkpoint import Checkpoint
from ser.weights.digest import INCIDENTAL
from ser.weights.find import parse_models, recorded_checkpoint
from ser.weights.load import load_encoder

from .data.dataset import Dataset
from .models import Fusion
from .models.transformer_encoder import TopLayers, TransformerEncoder, untrained
from .records import RunConfig

# The extra of a text feature that holds token ids.
TOKENS = "token"

# The architectures that can be trained.
ARCHITECTURES = ("bert", "mpnet")


def with_encoder(
    fusion: Fusion, settings: Any, data: Dataset, models: Sequence[str] = ()
) -> tuple[Fusion, Dataset]:
    """The fusion with the encoder inside, and the data that it starts from.

    Of the encoder, `settings.finetune_layers` train. `models` says where checkpoints lie now
    ("bert=PATH"); by default where extraction found them. Raises `WrongUse` for a feature that
    these layers cannot start from, naming the one that they can.
    """
    layers: TopLayers = settings.finetune_layers
    _check_text_inputs(settings, data)
    spec = to_record(data.origin.specs["text"], Spec, data.origin.store)
    checkpoint = _find_checkpoint(spec, models)

    if layers == "all":
        data = _from_tokens(data)
    else:
        _check_layer(spec, layers, checkpoint.setting("num_hidden_layers"))

    encoder_config = {}
    for key, value in checkpoint.config.items():
        if key not in INCIDENTAL:
            encoder_config[key] = value
    origin = structs.replace(data.origin, encoders={"text": encoder_config})

    def build(settings: Any, dims: Mapping[str, int], classes: int) -> nn.Module:
        encoder = TransformerEncoder(load_encoder(checkpoint), layers)
        return fusion.build(settings, dims, classes, encoder)

    return replace(fusion, build=build), replace(data, origin=origin)


def with_recorded_encoder(fusion: Fusion, settings: Any, record: RunConfig) -> Fusion:
    """The fusion of a run's config, whose encoder comes without a checkpoint.

    Its weights are in the run.
    """
    layers: TopLayers = getattr(settings, "finetune_layers", 0)
    if layers == 0:
        return fusion

    encoders = record.provenance.encoders or {}
    if "text" not in encoders:
        raise CorruptStore(
            "the run's config.json does not describe the encoder that it trained; "
            "train the run again"
        )

    def build(settings: Any, dims: Mapping[str, int], classes: int) -> nn.Module:
        return fusion.build(settings, dims, classes, untrained(encoders["text"], layers))

    return replace(fusion, build=build)


def _check_text_inputs(settings: Any, data: Dataset) -> None:
    """Raise `WrongUse` unless the text inputs are one feature, as its encoder gave it."""
    if settings.standardise_text:
        raise WrongUse(
            "finetune_layers needs the text features as the encoder gave them; "
            "use standardise_text=false"
        )
    if "text" in data.views:
        raise WrongUse(
            "finetune_layers trains on one text feature, and --views names another; "
            "name audio views alone"
        )
    if "joined" in data.origin.specs["text"]:
        raise WrongUse(
            "finetune_layers trains the encoder of one text feature; name one, and no layers=…"
        )


def _find_checkpoint(spec: Spec, models: Sequence[str]) -> Checkpoint:
    """The checkpoint that made the feature. Raises `WrongUse` if its encoder cannot be trained."""
    checkpoint = None
    if spec.extractor == "text" and spec.checkpoint and spec.config["special"]:
        checkpoint = recorded_checkpoint(spec, parse_models(models))
    if checkpoint is None or checkpoint.architecture not in ARCHITECTURES:
        raise WrongUse(
            f"finetune_layers trains bert or mpnet, on special tokens too, and {spec.name} is none "
            "of these; extract it without special=false"
        )
    return checkpoint


def _from_tokens(data: Dataset) -> Dataset:
    """The data with token ids as its text inputs."""
    features = dict(data.record.features)
    features["text"] = structs.replace(features["text"], extra=TOKENS)
    record = structs.replace(data.record, features=features)
    return replace(data, read=partial(data.read, text=TOKENS), record=record)


def _check_layer(spec: Spec, layers: int, depth: int) -> None:
    """Raise `WrongUse` unless the feature is the layer below the top `layers` of `depth`."""
    if not 1 <= layers <= depth:
        raise WrongUse(
            f"finetune_layers={layers}: the encoder of {spec.name} has layers 1 to {depth}, or all"
        )

    layer = spec.config["layer"]
    layer_below = depth - layers
    if layer == layer_below:
        return

    options = [f"layer={layer_below}"]
    for option in spec.variant.split(","):
        if option and not option.startswith("layer="):
            options.append(option)
    name = f"{spec.feature}:{','.join(sorted(options))}"
    extract = ser_command("features", "CORPUS", "--features", name, "--store", "STORE")
    raise WrongUse(
        f"finetune_layers={layers} starts from layer {layer_below} of {spec.feature}'s {depth}, "
        f"and {spec.name} is layer {layer}; run {extract}, "
        f"and train on {name}"
    )
