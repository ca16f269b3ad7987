"""How one run trains: every setting of a fusion and of its training, with default, source and help."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import torch

from ser.errors import CorruptStore, WrongUse, unknown

from .models import CommonSettings, Fusion, Stage
from .models.fusion import Beta, Depth, Gamma, Seed, Weight
from .models.ragged import Heads

TEXTS = tomllib.loads(
    Path(__file__).with_name("settings.toml").read_text(encoding="utf-8")
)  # source and help
# What a run's config always holds. Of later settings it holds what is not the default: so older
# runs keep their names.
FIRST = (
    "dev",
    "cut_seed",
    "select_score",
    "reduction",
    "soft_labels",
    "clip_norm",
    "shuffle_labels",
)


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of the training of any fusion. What each does, and its default's source: in
    settings.toml.
    """

    dev: str = "auto"
    cut_seed: Seed = 0
    refit: bool = False
    patience: Depth = 0
    standardise_by: Literal["all", "corpus"] = "all"
    select_score: Literal["ua", "wa", "macro_f1", "ccc"] = "ua"
    reduction: Literal["auto", "sum", "mean"] = "auto"
    soft_labels: bool = False
    class_weights: Literal["none", "inverse", "effective"] = "none"
    effective_beta: Beta = 0.999
    focal_gamma: Gamma = 0.0
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    clip_norm: Weight = 0.0
    shuffle_labels: bool = False
    vad_loss: Literal["ccc", "mse"] = "ccc"
    vad_weight: Weight = 1.0
    vad_scale: str = "auto"


@dataclass(frozen=True)
class Setting:
    """One line of `ser train --settings`."""

    name: str
    default: Any
    kind: str  # "int", "float", "bool", "str", "sum|mean"; "fixed" cannot be set
    source: str
    help: str
    range: str = ""  # "at least 0 and below 1"


def settings(fusion: Fusion) -> list[Setting]:
    """All settings that a fusion uses, its own first, and what is fixed."""
    common = {one.name: one.metadata for one in fields(CommonSettings)}
    listed = []
    for owner in (fusion.settings, TrainingSettings):
        kinds = get_type_hints(owner)
        for one in fields(owner):
            texts = {**common.get(one.name, {}), **one.metadata, **TEXTS.get(one.name, {})}
            if not texts.keys() >= {"source", "help"}:
                how = f"say what its setting {one.name} does, and where its default is from"
                raise WrongUse(f"fusion {fusion.name}: {how}: setting(default, source, help)")
            kind = _kind_name(kinds[one.name])
            listed.append(
                Setting(
                    one.name, one.default, kind, texts["source"], texts["help"], _range(one.type)
                )
            )
    listed = [one for one in listed if one.name not in fusion.unused]
    return listed + [
        Setting(name, value, "fixed", "ours, fixed", help)
        for name, (value, help) in fusion.fixed.items()
    ]


def parse_settings(
    fusion: Fusion, assignments: Sequence[str], epochs: int | None = None
) -> tuple[Any, TrainingSettings]:
    """The fusion's settings and the training's, with `key=value` assignments in place of defaults.

    Raises `WrongUse` for a key that is unknown (naming the nearest) or not used, and for a value of
    the wrong type or out of its range.
    """
    owners = fusion.settings, TrainingSettings
    own, of_training = (get_type_hints(owner, include_extras=True) for owner in owners)
    kinds, chosen = own | of_training, dict[str, Any]()
    for assignment in [*assignments, *([] if epochs is None else [f"epochs={epochs}"])]:
        key, equals, text = (piece.strip() for piece in assignment.partition("="))
        if not equals:
            raise WrongUse(f"--set {assignment}: must be key=value")
        if key in fusion.unused or key in fusion.fixed:
            why = (
                "has no use for it"
                if key in fusion.unused
                else f"has it fixed at {fusion.fixed[key][0]}"
            )
            raise WrongUse(f"--set {assignment}: fusion {fusion.name} {why}; leave it out")
        if key not in kinds:
            raise unknown(f"setting of fusion {fusion.name}", key, kinds.keys() - fusion.unused)
        kind = kinds[key]
        plain = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind  # without its bounds
        try:
            value = plain(text) if plain in (int, float) else text
            chosen[key] = msgspec.convert(value, kind, strict=False)
        except (ValueError, msgspec.ValidationError):
            known = f"{_WORDS.get(plain) or _kind_name(plain)} {_range(kind)}".strip()
            raise WrongUse(f"--set {assignment[:200]}: must be {known}") from None
    return (
        fusion.settings(**{key: value for key, value in chosen.items() if key in own}),
        TrainingSettings(**{key: value for key, value in chosen.items() if key in of_training}),
    )


def recorded(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """The settings `kind` that a run recorded. Raises `CorruptStore` for one unknown here, of
    another type or range.
    """
    try:
        if strange := values.keys() - {field.name for field in fields(kind)}:
            raise ValueError(f"no setting of this ser is called {min(strange)!r}")
        return msgspec.convert(values, kind)
    except (ValueError, msgspec.ValidationError) as fault:
        raise CorruptStore(
            f"{where}: its settings cannot be used ({fault}); train the run again"
        ) from None


def described(settings: Any) -> dict[str, Any]:
    """What a run's config records of the fusion's or the training's settings: of later ones what is
    not the default.
    """
    values = {one: getattr(settings, one.name) for one in fields(settings)}
    later = {one: one.metadata.get("later", one.name not in FIRST) for one in values}
    return {
        one.name: value for one, value in values.items() if value != one.default or not later[one]
    }


def has_setting(fusion: Fusion, assignment: str) -> bool:
    """Whether `key=value` names a setting that the fusion uses, or one of any training."""
    key = assignment.partition("=")[0].strip()
    return key not in fusion.unused and key in get_type_hints(fusion.settings) | get_type_hints(
        TrainingSettings
    )


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
_BOUNDS = {
    "ge": "at least",
    "gt": "above",
    "le": "at most",
    "lt": "below",
    "multiple_of": "a multiple of",
}


def _range(kind: Any) -> str:
    """The bounds of a setting in words, "" if it has none."""
    bounds = [
        (words, getattr(meta, end, None))
        for meta in get_args(kind)[1:]
        for end, words in _BOUNDS.items()
    ]
    return " and ".join(f"{words} {bound:,}" for words, bound in bounds if bound is not None)


def _kind_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    kinds = (
        get_args(kind)[:1] if hasattr(kind, "__metadata__") else get_args(kind)
    )  # without bounds
    return "|".join(map(_kind_name, kinds)) or kind.__name__


@dataclass(frozen=True)
class TrainConfig:
    """How one run trains."""

    fusion: Fusion
    settings: Any  # of the fusion
    training: TrainingSettings
    target: str = "class"
    loss: str = "single"
    select: str = "val"
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"
    log: str | None = None  # see `tensorboard`
    deterministic: bool = False  # on a GPU too

    def autocast(self) -> torch.autocast:
        """Where a forward pass runs: in bfloat16 wherever that is safe, if `precision` is bf16."""
        return torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"
        )

    def heads(self, stage: Stage) -> Heads:
        """The outputs that the loss of a stage looks at; None is all."""
        return (
            None
            if stage.output == "logits" and self.loss != "single"
            else frozenset({stage.output})
        )

    @property
    def reduction(self) -> Literal["sum", "mean"]:
        """Sum over the utterances of a batch of dialogues (Perspective eq. 3), mean elsewhere,
        unless set.
        """
        if self.training.reduction == "auto":
            return "sum" if self.fusion.unit == "dialogue" else "mean"
        return self.training.reduction
