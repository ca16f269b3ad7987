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
    names = {name.partition(":")[0] for name in asked.features.split("+")}
    if (
        asked.fusion not in FUSIONS
        or (asked.fusion, asked.protocol, asked.loss) != (config["fusion"], config["protocol"], config["loss"])
        or asked.labels != config["labels"]["policy"]
        or names != {feature["feature"].partition(":")[0] for feature in config["features"].values()}
    ):
        return False
    wanted, _ = parse_settings(FUSIONS[asked.fusion], asked.set)
    return all(config["settings"].get(key) == getattr(wanted, key, None) for key in _structural(asked.fusion))


def changed_settings(cell: Cell) -> dict[str, Any]:
    """The fusion's settings that are not those of the paper (or our documented defaults)."""
    fusion = FUSIONS.get(cell.config["fusion"])
    if fusion is None:
        return {}
    usual, _ = parse_settings(fusion, ())
    own = {k: v for k, v in cell.config["settings"].items() if k not in _structural(fusion.name)}
    return {key: value for key, value in own.items() if value != getattr(usual, key, None)}


def others_quoted(cells: Sequence[Cell]) -> list[Quoted]:
    """What the papers quote of other systems, for the recipes of which the report has a cell."""
    held = {quoted.recipe.name for cell in cells for quoted in quoted_for(cell)}
    recipes = [recipe for recipe in _recipes() if recipe.name in held]
    return [Quoted(recipe, name, numbers) for recipe in recipes for name, numbers in recipe.quoted.items()]
