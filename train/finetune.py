"""Train the encoder of a text feature itself: where it starts from, and with which weights.

USC §5.1 fine-tunes BERT. With `finetune_layers=n` its top n layers start from the cached rows of
the layer below, with `all` the whole encoder from the cached token ids; their first weights are
those of the feature's own checkpoint.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from msgspec import structs

from ser.cache.spec import Spec
from ser.disk.records import to_record
from ser.errors import CorruptStore, WrongUse
from ser.weights.digest import INCIDENTAL
from ser.weights.find import parse_models, recorded_checkpoint
from ser.weights.load import load_encoder

from .data.dataset import Dataset
from .models import Fusion
from .models.transformer_encoder import TopLayers, TransformerEncoder, untrained
from .records import RunConfig

TOKENS = "token"  # the extra of a text feature that holds token ids


def with_encoder(
    fusion: Fusion, settings: Any, data: Dataset, models: Sequence[str] = ()
) -> tuple[Fusion, Dataset]:
    """The fusion with the encoder inside, of which `settings.finetune_layers` train, and the data
    that it starts from.

    `models` says where checkpoints lie now ("bert=PATH"); by default where extraction found them.
    Raises `WrongUse` for a feature that these layers cannot start from, naming the one that they
    can.
    """
    layers: TopLayers = settings.finetune_layers
    if settings.standardise_text:
        raise WrongUse(
            "finetune_layers needs the text features as the encoder gave them; use standardise_text=false"
        )
    if "text" in data.views:
        raise WrongUse(
            "finetune_layers trains on one text feature, and --views names another; name audio views alone"
        )
    if "joined" in data.notes["specs"]["text"]:
        raise WrongUse(
            "finetune_layers trains the encoder of one text feature; name one, and no layers=…"
        )
    spec = to_record(data.notes["specs"]["text"], Spec, str(data.notes["store"]))
    whole = spec.extractor == "text" and spec.checkpoint and spec.config["special"]
    checkpoint = recorded_checkpoint(spec, parse_models(models)) if whole else None
    if checkpoint is None or checkpoint.architecture not in ("bert", "mpnet"):
        needed = "finetune_layers trains bert or mpnet, on special tokens too"
        raise WrongUse(
            f"{needed}, and {spec.name} is none of these; extract it without special=false"
        )
    depth, layer = checkpoint.setting("num_hidden_layers"), spec.config["layer"]
    if layers == "all":
        features = data.record["features"]
        tokens = structs.replace(features["text"], extra=TOKENS)
        record = {**data.record, "features": {**features, "text": tokens}}
        data = replace(data, read=partial(data.read, text=TOKENS), record=record)
    elif not 1 <= layers <= depth:
        raise WrongUse(
            f"finetune_layers={layers}: the encoder of {spec.name} has layers 1 to {depth}, or all"
        )
    elif layer != (below := depth - layers):
        options = [
            option
            for option in spec.variant.split(",")
            if option and not option.startswith("layer=")
        ]
        name = f"{spec.feature}:{','.join(sorted([*options, f'layer={below}']))}"
        raise WrongUse(
            f"finetune_layers={layers} starts from layer {below} of {spec.feature}'s {depth}, and {spec.name} is layer "
            f"{layer}; run `ser features CORPUS --features {name}`, and train on {name}"
        )
    config = {key: value for key, value in checkpoint.config.items() if key not in INCIDENTAL}
    data = replace(data, notes={**data.notes, "encoders": {"text": config}})
    return replace(
        fusion,
        build=lambda *asked: fusion.build(
            *asked, TransformerEncoder(load_encoder(checkpoint), layers)
        ),
    ), data


def reopened(fusion: Fusion, settings: Any, config: RunConfig) -> Fusion:
    """The fusion of a run's config, whose encoder comes without the checkpoint: its weights are in
    the run.
    """
    layers: TopLayers = getattr(settings, "finetune_layers", 0)
    if layers == 0:
        return fusion
    encoders = config.provenance.encoders or {}
    if "text" not in encoders:
        raise CorruptStore(
            "the run's config.json does not describe the encoder that it trained; train the run again"
        )
    return replace(
        fusion, build=lambda *asked: fusion.build(*asked, untrained(encoders["text"], layers))
    )
