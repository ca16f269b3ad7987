"""The settings of a run: from texts such as `lr=1e-4`, as `--set` takes them, to what Adam reads.

A run has two records of settings: those of its fusion's model, `fusion.settings`, and those of any
training, `TrainingSettings`. A setting stands in one of them, as a field made by
`setting(default, source, help)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from ser.errors import CorruptStore, WrongUse, unknown

from .models import Fusion
from .models.encoders import TopLayers
from .models.fusion import (
    Beta,
    Count,
    Decay,
    Depth,
    Dropout,
    Gamma,
    Positive,
    Seed,
    Share,
    Weight,
    setting,
)

# What settings were called before.
RENAMED = {"finetune_layers": "finetune_text"}


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of the training of any fusion.

    Those with `recorded_at_default=False` came after the first runs were trained. A run's config
    names them only where they are not at their default, so that the runs from before keep their
    names.
    """

    dev: str = setting(
        "auto",
        "ours: 0.1 with --select val, else none",
        "dev part: next (the session or speaker cyclically after the test one), none, or a share "
        "such as 0.1 of the training part, in whole dialogues (speakers where no dialogue is "
        "named); auto keeps a protocol's own",
    )
    cut_seed: Seed = setting(
        0,
        "ours",
        "seed of random cuts (random-70-20-10, dev shares); the same for all --seeds",
    )
    refit: bool = setting(
        False,
        "ours; true for what a solver fits",
        "with --select val: train a new model on train + dev, for as many epochs as dev chose, or "
        "with the strength and layer that it chose",
        recorded_at_default=False,
    )
    patience: Depth = setting(
        0,
        "ours",
        "with --select val or best-test: stop a stage after so many epochs without a better score",
        recorded_at_default=False,
    )
    standardise_by: Literal["all", "corpus"] = setting(
        "all",
        "ours",
        "z-score all corpora alike, or each by itself: one not in training by its test part",
        recorded_at_default=False,
    )
    select_score: Literal["ua", "wa", "macro_f1", "ccc"] = setting(
        "ua",
        "ours",
        "score whose best epoch counts with val and best-test; ccc, the mean CCC, with "
        "--target vad",
    )
    reduction: Literal["auto", "sum", "mean"] = setting(
        "auto",
        "Perspective eq. 3: sum; others: mean",
        "of the loss over a batch: auto sums where a batch counts dialogues, and averages "
        "elsewhere",
    )
    soft_labels: bool = setting(
        False,
        "USC §3.2",
        "train on the annotators' percentages in place of the consensus",
    )
    rater_dropout: Dropout = setting(
        0.0,
        "Feng et al. 2025, annotation dropout",
        "share of the raters' votes that an epoch's soft labels leave out",
        recorded_at_default=False,
    )
    class_weights: Literal["none", "inverse", "effective"] = setting(
        "none",
        "inverse: scikit-learn's balanced; effective: Cui et al. 2019",
        "weights of the classes in the loss, by their sizes n in the training part: 1 / n, or "
        "(1 - b) / (1 - b^n); scaled so that their mean over that part is 1",
        recorded_at_default=False,
    )
    effective_beta: Beta = setting(
        0.999,
        "Cui et al. 2019",
        "b of class_weights=effective",
        recorded_at_default=False,
    )
    focal_gamma: Gamma = setting(
        0.0,
        "Lin et al. 2017",
        "focal loss: (1 - p)^gamma weighs down what is classified well; 0 is off",
        recorded_at_default=False,
    )
    sampler: Literal["shuffle", "balanced"] = setting(
        "shuffle",
        "ours",
        "shuffle: every utterance once an epoch; balanced: as many draws with replacement, all "
        "classes as likely (not where a batch counts dialogues)",
        recorded_at_default=False,
    )
    clip_norm: Weight = setting(
        0.0,
        "ours",
        "largest norm of the gradient; 0 leaves it alone",
    )
    schedule: Literal["constant", "cosine", "linear"] = setting(
        "constant",
        "cosine: Loshchilov and Hutter 2017, without restarts; linear: Devlin et al. 2019",
        "learning rate over the updates of a stage: as it is, or down to 0 along a half cosine or "
        "a line",
        recorded_at_default=False,
    )
    warmup: Share = setting(
        0.0,
        "Goyal et al. 2017",
        "share of a stage's updates in which the learning rate rises from 0",
        recorded_at_default=False,
    )
    ema: Dropout = setting(
        0.0,
        "Polyak and Juditsky 1992",
        "decay of the moving average of the weights, which is evaluated and kept; 0 is off",
        recorded_at_default=False,
    )
    mixup: Gamma = setting(
        0.0,
        "Verma et al. 2019, on the pooled vectors",
        "alpha of Beta(alpha, alpha), which mixes the vectors of two utterances; 0 is off",
        recorded_at_default=False,
    )
    layer_dropout: Dropout = setting(
        0.0,
        "Kondratyuk and Straka 2019",
        "share of the layers that a learned sum leaves out of a batch",
        recorded_at_default=False,
    )
    aux: Literal["none", "gender", "speaker"] = setting(
        "none",
        "ours",
        "what a second head on the pooled vector learns, in training alone",
        recorded_at_default=False,
    )
    aux_weight: Weight = setting(
        0.1,
        "ours",
        "of the loss of aux beside that of what is learnt",
        recorded_at_default=False,
    )
    shuffle_labels: bool = setting(
        False,
        "ours",
        "train on labels in random order: the scores must fall to chance",
    )
    vad_loss: Literal["ccc", "mse"] = setting(
        "ccc",
        "Wagner et al. 2023",
        "of valence, arousal and dominance: the mean of 1 - CCC over a batch, or mean squared "
        "error on [-1, 1]",
        recorded_at_default=False,
    )
    vad_weight: Weight = setting(
        1.0,
        "ours",
        "of vad_loss beside the cross-entropy, with --target class+vad",
        recorded_at_default=False,
    )
    vad_scale: str = setting(
        "auto",
        "ours",
        "lowest and highest rating, such as 1..7, which training maps to -1 and 1; auto knows "
        "IEMOCAP and MSP by ids",
        recorded_at_default=False,
    )
    finetune_audio: Depth = setting(
        0,
        "ours: frozen",
        "top layers of the audio encoder to train, from the cached frames of the layer below",
        recorded_at_default=False,
    )
    finetune_text: TopLayers = setting(
        0,
        "ours: frozen; USC §5.1 fine-tunes BERT",
        "top layers of the text encoder to train, from cached tokens of the layer below; "
        "all: from token ids, the embeddings too",
        recorded_at_default=False,
    )
    lora_rank: Depth = setting(
        0,
        "Hu et al. 2022",
        "rank of adapters in the encoders' layers, which train in place of their weights; 0: none",
        recorded_at_default=False,
    )
    lora_alpha: Positive = setting(
        16.0,
        "ours",
        "what the adapters give counts alpha / rank times (Hu et al. 2022, §4.1)",
        recorded_at_default=False,
    )
    lora_dropout: Dropout = setting(
        0.0,
        "Hu et al. 2022",
        "dropout of what the adapters take",
        recorded_at_default=False,
    )
    encoder_lr: Weight = setting(
        0.0,
        "ours",
        "learning rate of the encoders' layers that train; 0: lr, as for the rest",
        recorded_at_default=False,
    )
    encoder_lr_decay: Decay = setting(
        1.0,
        "Howard & Ruder 2018: 1/2.6",
        "each layer of an encoder learns at so much of the rate of the layer above it",
        recorded_at_default=False,
    )
    encoder_mask: Dropout = setting(
        0.0,
        "Park et al. 2019, on cached rows",
        "share of an encoder's rows that training masks, in spans of 10",
        recorded_at_default=False,
    )
    unfreeze: bool = setting(
        False,
        "Howard & Ruder 2018, §3.3",
        "train the model on frozen encoders first, then one more layer of theirs in each stage",
        recorded_at_default=False,
    )
    recompute: bool = setting(
        False,
        "Chen et al. 2016",
        "compute the encoders' activations again in the backward pass, in place of keeping them",
        recorded_at_default=False,
    )
    accumulate: Count = setting(
        1,
        "ours",
        "batches whose gradients add up to one update",
        recorded_at_default=False,
    )


def parse_settings(
    fusion: Fusion, texts: Sequence[str], epochs: int | None = None
) -> tuple[Any, TrainingSettings]:
    """The fusion's settings and the training's: what the `texts` say, and else the defaults.

    A text is a setting as `--set` takes it, such as "lr=1e-4"; of two of one name the last counts.
    `epochs` is the setting of that name, which has an option of its own.

    Raises `WrongUse` for a name that is unknown (naming the nearest) or not used, and for a value
    of the wrong type or out of its range.
    """
    kinds_of_fusion = get_type_hints(fusion.settings, include_extras=True)
    kinds_of_training = get_type_hints(TrainingSettings, include_extras=True)
    kinds = {**kinds_of_fusion, **kinds_of_training}

    if epochs is not None:
        texts = [*texts, f"epochs={epochs}"]

    values: dict[str, Any] = {}
    for text in texts:
        name = setting_name(text)
        _check_name(fusion, name, text, known=kinds.keys() - fusion.unused)
        values[name] = _parse_value(text, kinds[name])

    for_fusion = {name: value for name, value in values.items() if name in kinds_of_fusion}
    for_training = {name: value for name, value in values.items() if name in kinds_of_training}
    return fusion.settings(**for_fusion), TrainingSettings(**for_training)


def has_setting(fusion: Fusion, text: str) -> bool:
    """Whether a text such as "lr=1e-4" names a setting that the fusion uses, or one of training."""
    name = setting_name(text)
    if name in fusion.unused:
        return False
    return name in get_type_hints(fusion.settings) or name in get_type_hints(TrainingSettings)


def setting_name(text: str) -> str:
    """The name in a setting such as "lr=1e-4": "lr"."""
    return text.partition("=")[0].strip()


def _check_name(fusion: Fusion, name: str, text: str, known: set[str]) -> None:
    """Raise `WrongUse` unless the text has the form name=value, and its name can be set."""
    if "=" not in text:
        raise WrongUse(f"--set {text}: must be key=value")

    if name in RENAMED and name not in known:
        new_text = text.replace(name, RENAMED[name], 1)
        raise WrongUse(f"--set {text}: is called {RENAMED[name]} now; use --set {new_text}")

    if name in fusion.unused:
        remedy = "leave it out"
        if fusion.solved and len(fusion.inputs) == 1:
            remedy += (
                f", or take a model with a training loop: --fusion {fusion.inputs[0]}:utterance"
            )
        raise WrongUse(f"--set {text}: fusion {fusion.name} has no use for it; {remedy}")

    if name in fusion.fixed:
        value, _ = fusion.fixed[name]
        raise WrongUse(f"--set {text}: fusion {fusion.name} has it fixed at {value}; leave it out")

    if name not in known:
        raise unknown(f"setting of fusion {fusion.name}", name, known)


def _parse_value(text: str, kind: Any) -> Any:
    """The value in a setting such as "lr=1e-4", of the type and in the range of its field."""
    value: Any = text.partition("=")[2].strip()
    plain = plain_kind(kind)
    try:
        if plain in (int, float):
            value = plain(value)
        return msgspec.convert(value, kind, strict=False)
    except (ValueError, msgspec.ValidationError):
        expected = f"{_KINDS_IN_WORDS.get(plain) or kind_name(plain)} {bounds_in_words(kind)}"
        raise WrongUse(f"--set {text[:200]}: must be {expected.strip()}") from None


_KINDS_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}
_BOUNDS_IN_WORDS = {
    "ge": "at least",
    "gt": "above",
    "le": "at most",
    "lt": "below",
    "multiple_of": "a multiple of",
}


def plain_kind(kind: Any) -> Any:
    """The type of a setting without its bounds: `int` of `Annotated[int, Meta(ge=1)]`."""
    if hasattr(kind, "__metadata__"):
        return get_args(kind)[0]
    return kind


def kind_name(kind: Any) -> str:
    """The type of a setting for a reader, such as "int", "sum|mean" or "int|all"."""
    kind = plain_kind(kind)
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))

    alternatives = get_args(kind)
    if alternatives:
        return "|".join(kind_name(alternative) for alternative in alternatives)
    return str(kind.__name__)


def bounds_in_words(kind: Any) -> str:
    """The bounds of a setting, such as "at least 0 and below 1"; "" if it has none."""
    bounds = []
    for meta in getattr(kind, "__metadata__", ()):
        for name, words in _BOUNDS_IN_WORDS.items():
            bound = getattr(meta, name, None)
            if bound is not None:
                bounds.append(f"{words} {bound:,}")
    return " and ".join(bounds)


def settings_to_record(settings: Any) -> dict[str, Any]:
    """The fusion's or the training's settings as a run's config names them, and so its folder.

    All of them, but for those at their default whose field says `recorded_at_default=False`.
    """
    record = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != field.default or field.metadata.get("recorded_at_default", True):
            record[field.name] = value
    return record


def settings_from_record(kind: type, record: Mapping[str, Any], file: str) -> Any:
    """The settings of that `kind` that a run's config names; what it does not name is at default.

    Raises `CorruptStore`, which names the `file`, for a setting that is unknown here, or of another
    type or range.
    """
    names = {field.name for field in fields(kind)}
    # At 0 a setting of another name changed nothing.
    record = {
        name: value
        for name, value in record.items()
        if name in names or name not in RENAMED or value != 0
    }
    try:
        strange = record.keys() - names
        if strange:
            raise ValueError(f"no setting of this ser is called {min(strange)!r}")
        return msgspec.convert(record, kind)
    except (ValueError, msgspec.ValidationError) as fault:
        raise CorruptStore(
            f"{file}: its settings cannot be used ({fault}); train the run again"
        ) from None
