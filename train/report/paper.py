"""Which of the papers' cells a cell of the report is, by its structure: features, fusion, loss, labels, protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ser.train.models import FUSIONS
from ser.train.recipe import Cell as RecipeCell
from ser.train.recipe import Recipe, read_recipe, recipe_names
from ser.train.settings import parse_settings

from .cells import Cell

Spread = tuple[float, float | None]  # mean, deviation


@dataclass(frozen=True)
class Quoted:
    """A paper's cell: where it stands and its numbers in percent (`ua`, `wa`, recalls by class, each with `_std`)."""

    recipe: Recipe
    name: str
    numbers: Mapping[str, float]

    @property
    def where(self) -> str:
        """Such as "MSMSER, Table 2: Full"."""
        return f"{self.recipe.title.partition(':')[0]}: {self.name}"

    @property
    def seeds(self) -> int:
        """That its numbers are the mean of."""
        return next((cell.paper_seeds for cell in self.recipe.cells if cell.name == self.name), 1)


def quoted_spread(numbers: Mapping[str, float], metric: str) -> Spread | None:
    """A paper's mean and standard deviation, as far as it gives them."""
    return (numbers[metric], numbers.get(f"{metric}_std")) if metric in numbers else None


@cache
def _recipes() -> tuple[Recipe, ...]:
    return tuple(read_recipe(name) for name in recipe_names())


@cache
def _structural(fusion: str) -> frozenset[str]:
    """The settings that tell apart two cells of the papers with the same fusion, such as `queries`."""
    cells = [cell for recipe in _recipes() for cell in recipe.cells if cell.experiment.fusion == fusion]
    return frozenset(assignment.partition("=")[0] for cell in cells for assignment in cell.experiment.set)


def quoted_for(cell: Cell, test: str = "both") -> list[Quoted]:
    """The papers' cells of this structure that were tested in that way and have numbers, in the recipes' order."""
    return [
        Quoted(recipe, one.name, one.paper)
        for recipe in _recipes()
        for one in recipe.cells
        if one.paper and one.test == test and _is(cell, one)
    ]


def _is(cell: Cell, one: RecipeCell) -> bool:
    config, asked = cell.config, one.experiment
    ours = [config["fusion"], config["protocol"], config["loss"], config["labels"]["policy"]]
    names = {name.partition(":")[0] for name in asked.features.split("+")}
    if asked.fusion not in FUSIONS or ours != [asked.fusion, asked.protocol, asked.loss, asked.labels]:
        return False
    if names != {feature["feature"].partition(":")[0] for feature in config["features"].values()}:
        return False
    wanted, _ = parse_settings(FUSIONS[asked.fusion], asked.set)
    return all(config["settings"].get(key) == getattr(wanted, key, None) for key in _structural(asked.fusion))


def changed_settings(cell: Cell) -> dict[str, Any]:
    """The fusion's settings that are not those of the paper (or our documented defaults)."""
    name, own = cell.config["fusion"], cell.config["settings"]
    usual = FUSIONS[name].settings() if name in FUSIONS else None
    known = _structural(name)
    return {k: v for k, v in own.items() if usual and k not in known and v != getattr(usual, k, None)}


def others_quoted(cells: Sequence[Cell]) -> list[Quoted]:
    """What the papers quote of other systems, for the recipes of which the report has a cell."""
    held = {quoted.recipe.name for cell in cells for quoted in quoted_for(cell)}
    return [Quoted(one, *pair) for one in _recipes() if one.name in held for pair in one.quoted.items()]
