"""Recipes: sets of cells, such as a paper's table, as TOML files.

    title, source, note      what it is, where its numbers come from, what to know
    [experiment]             options of `ser train` for all cells
    [[cell]]                 name, options that differ, `set` as a table, `test` (how the trained model is tested),
                             and `paper`: the paper's numbers in percent
    [[quoted]]               name and `paper`: what the paper quotes of other systems
    tested                   the cell whose seeds are tested against each quoted number, if the paper does so

`paper` holds ua, wa, or recalls by class, each with its `_std` where the paper gives one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from ser.errors import WrongUse, unknown

from .options import Experiment, assignments, read_toml

FOLDER = Path(__file__).parent / "recipes"
TESTS = ("both", "only audio", "only text", "head audio", "head text")


Paper = dict[str, Annotated[float, msgspec.Meta(ge=0, le=100)]]
Table = TypeVar("Table")


class CellTable(msgspec.Struct):
    """A `[[cell]]` with what `[experiment]` shares; `experiment.prepare` checks the options that are not here."""

    name: str
    features: str
    fusion: str
    test: str = "both"
    paper: Paper | None = None
    set: dict[str, str | int | float | bool] = {}
    model: list[str] = []


class QuotedTable(msgspec.Struct, forbid_unknown_fields=True):
    """A `[[quoted]]`."""

    name: str
    paper: Paper


class RecipeTable(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    cell: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    experiment: dict[str, Any] = {}
    title: str = ""
    source: str = ""
    note: str = ""
    tested: str | None = None
    quoted: list[QuotedTable] = []


@dataclass(frozen=True)
class Cell:
    """One configuration of a recipe."""

    name: str
    experiment: Experiment
    test: str = "both"
    paper: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe as read."""

    name: str
    title: str
    source: str
    note: str
    cells: tuple[Cell, ...]
    quoted: Mapping[str, Mapping[str, float]]
    tested: str | None = None


def recipe_names() -> list[str]:
    """The recipes that come with ser."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def list_recipes() -> dict[str, dict[str, Any]]:
    """What `ser sweep --list --json` prints: the cells of each recipe and the paper's numbers, in percent."""
    return {
        recipe.name: {
            "cells": len(recipe.cells),
            "title": recipe.title,
            "paper": {cell.name: dict(cell.paper or {}) for cell in recipe.cells},
            "quoted": {quoted: dict(numbers) for quoted, numbers in recipe.quoted.items()},
        }
        for recipe in map(read_recipe, recipe_names())
    }


def read_recipe(name: str | Path, **options: Any) -> Recipe:
    """A recipe by name, or from a TOML file; `options` of `Experiment` override those of all cells.

    An option `set` goes to the cells whose fusion has that setting. Raises `WrongUse` naming what is wrong.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in recipe_names():
            raise unknown("recipe", str(name), [*recipe_names(), "FILE.toml"])
        path = FOLDER / f"{name}.toml"
    table = _typed(path, read_toml(path, "[[cell]]"), RecipeTable)
    cells = tuple(_cell(path, {**table.experiment, **line}, options) for line in table.cell)
    names = [cell.name for cell in cells]
    if twice := {cell for cell in names if names.count(cell) > 1}:
        raise WrongUse(f"{path}: two cells are called '{min(twice)}'")
    if table.tested is not None and table.tested not in names:
        raise unknown(f"cell to be tested in {path}", table.tested, names)
    quoted = {line.name: line.paper for line in table.quoted}
    return Recipe(path.stem, table.title or path.stem, table.source, table.note, cells, quoted, table.tested)


def _typed(path: Path, table: Mapping[str, Any], kind: type[Table]) -> Table:
    """The table as an instance of `kind`. Raises `WrongUse` saying where it is something else."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as fault:
        raise WrongUse(f"{path}: {f'cell {name}: ' if (name := table.get('name')) else ''}{fault}") from None


def _cell(path: Path, line: Mapping[str, Any], options: Mapping[str, Any]) -> Cell:
    asked = {key: value for key, value in line.items() if key not in ("name", "test", "paper")}
    known = [field.name for field in fields(Experiment)]
    if strange := [key for key in asked if key not in known]:
        raise unknown(f"option in {path}", strange[0], known)
    cell = _typed(path, line, CellTable)
    if several := [
        key for key, value in asked.items() if isinstance(value, dict | list) and key not in ("set", "model")
    ]:
        raise WrongUse(f"{path}: cell {cell.name}: {several[0]} takes one value")
    if cell.test not in TESTS:
        raise unknown(f"test in {path}", cell.test, TESTS)
    asked |= {"set": assignments(cell.set), "model": tuple(cell.model)}
    asked |= {key: value for key, value in options.items() if key != "set"}
    return Cell(cell.name, Experiment(**asked, also_set=tuple(options.get("set", ()))), cell.test, cell.paper)
