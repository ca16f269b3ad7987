"""Recipes: sets of cells, such as a paper's table, as TOML files.

    title, source, note      what it is, where its numbers come from, what to know
    [experiment]             options of `ser train` for all cells
    [[cell]]                 name, options that differ, `set` as a table, `test` (how the trained model is tested),
                             and `paper`: the paper's numbers in percent
    [[quoted]]               name and `paper`: what the paper quotes of other systems
    tested                   the cell whose seeds are tested against each quoted number, if the paper does so

`paper` holds ua, wa, or recalls by class, each with its `_std` where the paper gives one.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from ser.errors import WrongUse, unknown

from .experiment import Experiment
from .settings import assignments

TESTS = ("both", "only audio", "only text", "head audio", "head text")


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
    return sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))


def list_recipes() -> dict[str, dict[str, Any]]:
    """What `ser sweep --list --json` prints: the cells of each recipe and the paper's numbers, in percent."""
    recipes = {name: read_recipe(name) for name in recipe_names()}
    return {
        name: {
            "cells": len(recipe.cells),
            "title": recipe.title,
            "paper": {cell.name: dict(cell.paper or {}) for cell in recipe.cells},
            "quoted": {quoted: dict(numbers) for quoted, numbers in recipe.quoted.items()},
        }
        for name, recipe in recipes.items()
    }


def read_recipe(name: str | Path, **options: Any) -> Recipe:
    """A recipe by name, or from a TOML file; `options` of `Experiment` override those of all cells.

    An option `set` goes to the cells whose fusion has that setting. Raises `WrongUse` naming what is wrong.
    """
    path = Path(name)
    if path.suffix == ".toml":
        where = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise WrongUse(f"{path}: cannot be read ({error})") from None
    else:
        if str(name) not in recipe_names():
            raise unknown("recipe", str(name), [*recipe_names(), "FILE.toml"])
        where, text = str(name), (_folder() / f"{name}.toml").read_text(encoding="utf-8")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WrongUse(f"{where}: not a TOML file ({error})") from None
    return _recipe(where, path.stem, table, options)


def _folder() -> Any:
    return files("ser.train.recipes")


def _recipe(where: str, name: str, table: Mapping[str, Any], options: Mapping[str, Any]) -> Recipe:
    strange = set(table) - {"title", "source", "note", "tested", "experiment", "cell", "quoted"}
    if strange:
        raise WrongUse(f"{where}: unknown key '{min(strange)}' in the recipe")
    lines = table.get("cell", [])
    if not isinstance(lines, list) or not lines:
        raise WrongUse(f"{where}: a recipe needs [[cell]] tables")
    cells = tuple(_cell(where, {**table.get("experiment", {}), **line}, options) for line in lines)
    names = [cell.name for cell in cells]
    if twice := {cell for cell in names if names.count(cell) > 1}:
        raise WrongUse(f"{where}: two cells are called '{min(twice)}'")
    quoted = {line["name"]: line["paper"] for line in table.get("quoted", [])}
    tested = table.get("tested")
    if tested is not None and tested not in names:
        raise unknown(f"cell to be tested in {where}", tested, names)
    title, source, note = (str(table.get(key, "")) for key in ("title", "source", "note"))
    return Recipe(name, title or name, source, note, cells, quoted, tested)


def _cell(where: str, line: Mapping[str, Any], options: Mapping[str, Any]) -> Cell:
    known = {field.name for field in fields(Experiment)}
    asked = {key: value for key, value in line.items() if key not in ("name", "test", "paper")}
    for key in asked:
        if key not in known:
            raise unknown(f"option in {where}", key, known)
    for key in ("name", "features", "fusion"):
        if key not in line:
            raise WrongUse(f"{where}: cell {line.get('name', '?')} has no '{key}'")
    if (test := line.get("test", "both")) not in TESTS:
        raise unknown(f"test in {where}", test, TESTS)
    asked["set"] = assignments(asked.get("set", {}))
    asked["model"] = tuple(asked.get("model", ()))
    experiment = Experiment(**asked)
    also = tuple(options.get("set", ()))
    experiment = replace(experiment, **{key: value for key, value in options.items() if key != "set"}, also_set=also)
    return Cell(line["name"], experiment, test, line.get("paper"))
