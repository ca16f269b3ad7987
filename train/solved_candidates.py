"""What is tried of a model that a solver fits, and what such a model cannot do."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from ser.errors import WrongUse

from .config import TrainConfig
from .data.dataset import Dataset
from .models import Fusion
from .models.solved import ALL_LAYERS, BY_DEV, SIDE_BY_SIDE, SolvedModel
from .records import FeatureRecord
from .targets import TARGETS

# The strength where nothing selects: scikit-learn's own.
STRENGTH = 1.0


@dataclass(frozen=True)
class Candidate:
    """What a model is fitted with."""

    strength: float
    """C."""
    place: int = 0
    """The place of its layer among those that there are."""
    layer: int | Literal["all"] | None = None
    """The number of that layer in the encoder; None where there is none to choose."""

    @property
    def tried(self) -> dict[str, float | str]:
        """Its values by the names of the settings."""
        values: dict[str, float | str] = {"C": self.strength}
        if self.layer is not None:
            values["layer"] = self.layer
        return values


def list_candidates(config: TrainConfig, data: Dataset) -> list[Candidate]:
    """Every strength on every layer that the settings leave open, the strongest penalty first.

    Raises `WrongUse` for a layer that is not there, or where nothing chooses one of several.
    """
    strengths = _strengths(config)
    numbers = layer_numbers(data.record.features)
    wanted = config.settings.layer
    if wanted not in (BY_DEV, ALL_LAYERS, *numbers):
        there = "names no layers=all or range"
        if numbers:
            there = f"has layers {numbers[0]}-{numbers[-1]}"
        raise WrongUse(f"--set layer={wanted}: --features {there}")
    if wanted == BY_DEV and numbers and config.select == "last":
        raise WrongUse(
            "--select last chooses no layer; use --select val, or say which by "
            f"--set layer={numbers[-1]} or layer=all"
        )
    if not numbers:
        return [Candidate(strength) for strength in strengths]
    if wanted == ALL_LAYERS:
        return [Candidate(strength, SIDE_BY_SIDE, ALL_LAYERS) for strength in strengths]
    candidates = []
    for place, number in enumerate(numbers):
        if wanted in (BY_DEV, number):
            for strength in strengths:
                candidates.append(Candidate(strength, place, number))
    return candidates


def _strengths(config: TrainConfig) -> Sequence[float]:
    if config.settings.C != BY_DEV:
        return [config.settings.C]
    if config.select == "last":
        return [STRENGTH]
    # Of whatever width: that does not matter here.
    narrow = config.fusion.build(config.settings, dict.fromkeys(config.fusion.inputs, 1), 2)
    return cast(SolvedModel, narrow).strengths


def layer_numbers(features: Mapping[str, FeatureRecord]) -> list[int]:
    """The numbers of the layers to choose from; none where no feature has several.

    Raises `WrongUse` where several features have.
    """
    choices: list[list[int]] = []
    for feature in features.values():
        first = 0
        for layers, _ in feature.sums or []:
            if layers > 1:
                # They follow each other, and the last may stand there without its number.
                lowest = _layer_number(feature.parts[first].feature)
                choices.append(list(range(lowest, lowest + layers)))
            first += layers

    if len(choices) > 1:
        raise WrongUse(
            f"{len(choices)} of the features have several layers, and the layer of one alone can "
            "be chosen; name a single layer of the others, such as layer=6"
        )
    return choices[0] if choices else []


def _layer_number(feature: str) -> int:
    """9 of "hubert:layer=9,pool=mean"."""
    match = re.search(r"\blayer=(\d+)", feature)
    assert match is not None, feature
    return int(match[1])


def refits_by_default(fusion: Fusion, select: str) -> bool:
    """Whether a model is fitted again on train and dev, where no setting says whether it is.

    One that a solver fits is, once dev has chosen: it takes one more fit.
    """
    return fusion.solved and select == "val"


def check_solved(config: TrainConfig, data: Dataset) -> None:
    """Raise `WrongUse` for what a model that a solver fits cannot do, before anything is fitted."""
    name = config.fusion.name
    target = TARGETS[config.target]
    if name.startswith("svm") and (target.voted or target.rated):
        raise WrongUse(
            f"--target {target.name}: {name} learns one class of each utterance; use --target "
            "class, or --fusion linear"
        )
    if config.loss != "single":
        raise WrongUse(f"--loss {config.loss}: {name} has no unimodal heads; use --loss single")
    list_candidates(config, data)
