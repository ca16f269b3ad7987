"""Train the encoder of a feature itself: where it starts from, and with which weights.

With `finetune_audio=n` or `finetune_text=n` the encoder's top n layers start from the cached rows
of the layer below, with `finetune_text=all` the whole encoder from the cached token ids. Their
first weights are those of the feature's own checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from msgspec import structs

from ser.cache.extract_command import extract_command
from ser.cache.spec import Spec
from ser.disk.records import to_record
from ser.errors import CorruptStore, WrongUse
from ser.weights.checkpoint import Checkpoint
from ser.weights.digest import INCIDENTAL
from ser.weights.find import parse_models, recorded_checkpoint
from ser.weights.load import load_encoder

from .data.dataset import Dataset
from .data.select import ModalitySelection
from .models import Fusion
from .models.encoder_front import unfrozen_step_by_step, with_encoders
from .models.encoders import (
    ARCHITECTURES,
    Adapters,
    EncoderTop,
    TopLayers,
    add_adapters,
    check_peft,
    cut_top,
    untrained_top,
)
from .models.fusion import BOTH
from .records import RunConfig
from .settings import TrainingSettings

# The extra of a text feature that holds token ids.
TOKENS = "token"

# The extra of Whisper's states that says which the audio reaches, and the variant that has it.
OF_AUDIO = "audio"
ALL_STATES = "pad=keep"

# Settings that say how trained encoders learn.
OF_ENCODERS = (
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "encoder_lr",
    "encoder_lr_decay",
    "encoder_mask",
    "unfreeze",
    "recompute",
)

# Those of them that say how adapters learn.
OF_ADAPTERS = ("lora_alpha", "lora_dropout")

# Whose they are, and what there would have to be set.
ENCODER = "an encoder that is trained too"
FINETUNE = "finetune_audio or finetune_text"

# Of every encoder of speech here.
FRAMES_A_SECOND = 50


@dataclass(frozen=True)
class TrainedEncoder:
    """The encoder of one modality's feature, of which some layers are trained."""

    setting: str
    """As the user set it, such as "finetune_audio=2"."""
    layers: TopLayers
    spec: Spec
    """Of the feature that it starts from."""
    checkpoint: Checkpoint

    @property
    def depth(self) -> int:
        """How many layers the encoder has."""
        depth: int = self.checkpoint.setting("num_hidden_layers")
        return depth

    @property
    def config(self) -> dict[str, Any]:
        """What the run records of it: its config.json, without what changes no number."""
        config = {}
        for key, value in self.checkpoint.config.items():
            if key not in INCIDENTAL:
                config[key] = value
        return config

    def top(self, adapters: Adapters | None = None, recompute: bool = False) -> EncoderTop:
        """Its top layers, with the weights of the checkpoint."""
        top = cut_top(load_encoder(self.checkpoint), self.layers, window_of(self.spec))
        if adapters is not None:
            add_adapters(top, adapters)
        if recompute:
            top.recompute()
        return top


def layers_by_modality(training: TrainingSettings) -> dict[str, TopLayers]:
    """How many layers of an encoder train, of each modality of which any do."""
    layers: dict[str, TopLayers] = {}
    for modality in BOTH:
        of_modality = getattr(training, f"finetune_{modality}")
        if of_modality != 0:
            layers[modality] = of_modality
    return layers


def adapters_of(training: TrainingSettings) -> Adapters | None:
    """The adapters that train in place of the encoders' weights, if any do.

    Raises `SerError` where peft is not installed.
    """
    if not training.lora_rank:
        return None
    check_peft()
    return Adapters(training.lora_rank, training.lora_alpha, training.lora_dropout)


def with_trained_encoders(
    fusion: Fusion,
    settings: Any,
    training: TrainingSettings,
    data: Dataset,
    models: Sequence[str] = (),
) -> tuple[Fusion, Dataset]:
    """The fusion with the encoders inside that are trained with it, and the data they start from.

    `models` says where checkpoints lie now ("bert=PATH"); by default where extraction found them.
    Raises `WrongUse` for a feature that these layers cannot start from, naming the one that they
    can, and for rows that only a trained encoder can use where none is trained.
    """
    layers = layers_by_modality(training)
    _check_no_padding(data, layers)
    if not layers:
        _check_unused(training, OF_ENCODERS, ENCODER, FINETUNE)
        return fusion, data
    if not training.lora_rank:
        _check_unused(training, OF_ADAPTERS, "adapters of an encoder", "lora_rank")
    adapters = adapters_of(training)

    encoders = {}
    for modality, of_modality in layers.items():
        _check_inputs(modality, data)
        encoders[modality] = _find_encoder(modality, of_modality, data, models)
        # Last, since it names a setting: where no encoder is, that would not help.
        _check_unscaled(modality, settings)

    tops = {}
    for modality, encoder in encoders.items():
        tops[modality] = partial(encoder.top, adapters, training.recompute)
    pools = {modality: feature.pool for modality, feature in data.record.features.items()}
    fusion = with_encoders(fusion, tops, pools, training.encoder_mask)
    if training.unfreeze:
        most_layers = max(_count(encoder) for encoder in encoders.values())
        fusion = unfrozen_step_by_step(fusion, most_layers)

    configs = {modality: encoder.config for modality, encoder in encoders.items()}
    origin = structs.replace(data.origin, encoders=configs)
    data = replace(_starting_below(data, encoders), origin=origin)
    return fusion, data


def with_recorded_encoders(
    fusion: Fusion,
    training: TrainingSettings,
    record: RunConfig,
    models: Mapping[str, str] | None = None,
) -> Fusion:
    """The fusion of a run's config, whose encoders come without their checkpoints.

    Their weights are in the run. Of encoders with adapters it holds these alone, and the rest comes
    from the checkpoint, which `models` finds by feature, or where extraction found it. Raises
    `WrongUse` for another checkpoint, and `SerError` where peft is not installed.
    """
    layers = layers_by_modality(training)
    if not layers:
        return fusion

    configs = record.provenance.encoders or {}
    adapters = adapters_of(training)
    tops: dict[str, Callable[[], EncoderTop]] = {}
    for modality, of_modality in layers.items():
        if modality not in configs:
            raise CorruptStore(
                "the run's config.json does not describe the encoder that it trained; "
                "train the run again"
            )
        [written] = record.provenance.feature_specs(modality)
        spec = to_record(written, Spec, "config.json")
        if adapters is None:
            window = window_of(spec)
            tops[modality] = partial(untrained_top, configs[modality], of_modality, window)
            continue

        setting = f"finetune_{modality}={of_modality}"
        checkpoint = recorded_checkpoint(spec, models or {})
        encoder = TrainedEncoder(setting, of_modality, spec, checkpoint)
        tops[modality] = partial(encoder.top, adapters)

    pools = {modality: feature.pool for modality, feature in record.features.items()}
    return with_encoders(fusion, tops, pools)


def window_of(spec: Spec) -> int | None:
    """Rows of the windows that a feature's encoder attends over; None where it has none."""
    if "window" not in spec.config or not spec.hop:
        return None
    return int(spec.config["window"] / spec.hop)


def column_beside(spec: Spec) -> str | None:
    """The extra that stands as one more column beside a feature's rows, where there is one."""
    return OF_AUDIO if keeps_padding(spec) else None


def keeps_padding(spec: Spec) -> bool:
    """Whether the feature holds the states of the padding of each window too."""
    return spec.config.get("pad") == "keep"


def _count(encoder: TrainedEncoder) -> int:
    """How many layers train."""
    return encoder.depth if encoder.layers == "all" else encoder.layers


def _check_unused(
    training: TrainingSettings, names: Sequence[str], whose: str, remedy: str
) -> None:
    """Raise `WrongUse` for a setting of those names, which is of what this training has not."""
    defaults = TrainingSettings()
    for name in names:
        if getattr(training, name) != getattr(defaults, name):
            raise WrongUse(f"--set {name}: is for {whose}; set {remedy}, or leave it out")


def _check_no_padding(data: Dataset, layers: Mapping[str, TopLayers]) -> None:
    """Raise `WrongUse` for states of padding that no trained encoder takes."""
    for modality in data.dims:
        for spec in _specs(data, modality):
            if modality not in layers and keeps_padding(spec):
                plain = spec.name.replace(f",{ALL_STATES}", "").replace(f":{ALL_STATES}", "")
                raise WrongUse(
                    f"{spec.name} holds the states of each window's padding, for "
                    f"finetune_{modality} alone; train on {plain}, or set finetune_{modality}"
                )


def _specs(data: Dataset, modality: str) -> list[Spec]:
    """The specs of a modality's features."""
    recorded = data.origin.specs.get(modality)
    if recorded is None:
        return []
    written = recorded.get("joined", [recorded])
    return [to_record(spec, Spec, data.origin.store) for spec in written]


def _check_unscaled(modality: str, settings: Any) -> None:
    """Raise `WrongUse` unless a modality's inputs stay as its encoder gave them."""
    if getattr(settings, f"standardise_{modality}", False):
        raise WrongUse(
            f"finetune_{modality} needs the {modality} features as the encoder gave them; "
            f"use --set standardise_{modality}=false"
        )


def _check_inputs(modality: str, data: Dataset) -> None:
    """Raise `WrongUse` unless a modality's inputs are one feature."""
    name = f"finetune_{modality}"
    if modality in data.views:
        raise WrongUse(
            f"{name} trains on one {modality} feature, and --views names another; "
            "leave those views out"
        )
    if len(_specs(data, modality)) != 1:
        raise WrongUse(
            f"{name} trains the encoder of one {modality} feature; name one, and no layers=…"
        )
    if data.record.features[modality].hop is not None:
        raise WrongUse(f"{name} needs every row of the {modality} feature; leave hop=… out")


def _find_encoder(
    modality: str, layers: TopLayers, data: Dataset, models: Sequence[str]
) -> TrainedEncoder:
    """The encoder of a modality's feature. Raises `WrongUse` unless these layers can train."""
    setting = f"finetune_{modality}={layers}"
    [spec] = _specs(data, modality)
    if not spec.checkpoint:
        raise WrongUse(f"{setting}: {spec.name} comes from no encoder; name a feature of one")

    checkpoint = recorded_checkpoint(spec, parse_models(models))
    proven = ARCHITECTURES[modality]
    if checkpoint.architecture not in proven:
        raise WrongUse(
            f"{setting}: {spec.name} is of a {checkpoint.architecture} encoder; proven to be exact "
            f"are {', '.join(proven)}"
        )
    if not spec.config.get("special", True):
        raise WrongUse(
            f"{setting}: {spec.name} has no rows of the special tokens, which the encoder sees; "
            "extract it without special=false"
        )

    encoder = TrainedEncoder(setting, layers, spec, checkpoint)
    if layers != "all":
        _check_layer(encoder, layers, data)
    return encoder


def _check_layer(encoder: TrainedEncoder, layers: int, data: Dataset) -> None:
    """Raise `WrongUse` unless the feature is the layer below the top `layers`, with all rows."""
    spec = encoder.spec
    or_all = ", or all" if spec.modality == "text" else ""
    if not 1 <= layers <= encoder.depth:
        raise WrongUse(
            f"{encoder.setting}: the encoder of {spec.name} has layers 1 to {encoder.depth}{or_all}"
        )

    layer_below = encoder.depth - layers
    is_whisper = encoder.checkpoint.architecture == "whisper"
    has_all_rows = spec.level != "utterance" and (keeps_padding(spec) or not is_whisper)
    if spec.config["layer"] == layer_below and has_all_rows:
        return

    reason = f"{spec.name} is layer {spec.config['layer']}"
    if spec.config["layer"] == layer_below and spec.level == "utterance":
        reason = f"{spec.name} is the mean of its frames"
    elif spec.config["layer"] == layer_below:
        reason = f"{spec.name} lacks the states of each window's padding"

    name = _name_below(spec, layer_below, is_whisper)
    command = extract_command(data.origin.store, name, data.record.corpus)
    raise WrongUse(
        f"{encoder.setting} starts from layer {layer_below} of {spec.feature}'s {encoder.depth}, "
        f"and {reason}; run {command} ({_size_in_words(encoder)}), and train on {name}"
    )


def _name_below(spec: Spec, layer: int, is_whisper: bool) -> str:
    """The name of the feature that holds all rows of a layer, computed as `spec` otherwise."""
    options = [f"layer={layer}"]
    if is_whisper:
        options.append(ALL_STATES)
    for option in spec.variant.split(","):
        if option and option.partition("=")[0] not in ("layer", "norm", "pool", "pad"):
            options.append(option)
    return f"{spec.feature}:{','.join(sorted(options))}"


def _size_in_words(encoder: TrainedEncoder) -> str:
    """What a layer takes on disk, in float16."""
    row = 2 * encoder.checkpoint.setting("hidden_size")
    if encoder.checkpoint.architecture == "whisper":
        states = encoder.checkpoint.setting("max_source_positions")
        seconds = states / FRAMES_A_SECOND
        return f"{row * states / 1e6:.2g} MB for each {seconds:g} s or less in float16"
    if encoder.spec.modality == "text":
        return f"{row / 1e3:.2g} kB a token in float16"
    return f"{row * FRAMES_A_SECOND / 1e3:.3g} kB a second in float16"


def _starting_below(data: Dataset, encoders: Mapping[str, TrainedEncoder]) -> Dataset:
    """The data with what the encoders start from: rows, also for a fusion of vectors, or tokens."""
    changes: dict[str, Callable[[ModalitySelection], ModalitySelection]] = {}
    features = dict(data.record.features)
    for modality, encoder in encoders.items():
        changes[modality] = partial(_as_read, encoder=encoder)
        if encoder.layers == "all":
            features[modality] = structs.replace(features[modality], extra=TOKENS)

    record = structs.replace(data.record, features=features)
    return replace(data, read=partial(data.read, **changes), record=record)


def _as_read(selection: ModalitySelection, encoder: TrainedEncoder) -> ModalitySelection:
    """The selection of an encoder's feature as the encoder takes it."""
    if encoder.layers == "all":
        return selection.with_extra(TOKENS)
    return selection.as_rows(column_beside(encoder.spec))
