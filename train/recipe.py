"""Recipes: sets of cells, such as a paper's table, as TOML files.

    title, source, note      what it is, where its numbers come from, what to know
    [models]                 feature = "checkpoint": which encoders the numbers are of
    [experiment]             options of `ser train` for all cells
    [[cell]]                 name, options that differ, `set` as a table, `test` (how the trained model is tested),
                             `paper`: the paper's numbers in percent, how many `utterances` they are of, and in
                             what the cell `differs` from what they are of
    [[quoted]]               name, `paper` and perhaps `footnote`: what the paper quotes of other systems
    tested                   the cell whose seeds are tested against each quoted number, if the paper does so

`paper` holds ua, wa, or recalls by class, each with its `_std` where the paper gives one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ser.errors import WrongUse, unknown

from .options import Experiment, assignments, read_toml
from .run_folder import ANY, Scalar, shape

FOLDER = Path(__file__).parent / "recipes"
OF_THE_PAPER = ("utterances", "differs")
TESTS = ("both", "only audio", "only text", "head audio", "head text")


PAPER = dict[str, Annotated[float, msgspec.Meta(ge=0, le=100)]]
RECIPE_SHAPE = shape(
    "",
    cell=Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)],
    **dict.fromkeys(("title", "source", "note", "tested"), (str, "")),
    experiment=ANY,
    quoted=(list[shape("name", paper=PAPER)], []),  # type: ignore[misc]
)
CELL_SHAPE = shape(
    "name features fusion",
    test=(str, ""),
    paper=(PAPER, {}),
    set=(dict[str, Scalar], {}),
    model=(list[str], []),
    utterances=(int, 0),
    differs=(str, ""),
)


@dataclass(frozen=True)
class Cell:
    """One configuration of a recipe; `written` is the experiment as the recipe has it, whatever a command asks for."""

    name: str
    experiment: Experiment
    written: Experiment
    test: str = "both"
    paper: Mapping[str, float] | None = None
    paper_seeds: int = 1  # that the paper's numbers are the mean of
    utterances: int | None = None  # that the paper's numbers are of, in all parts, if the recipe says it
    differs: str = ""  # in what the recipe's own cell is not what the paper's numbers are of, such as "features"


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
    models: Mapping[str, str] = field(default_factory=dict)  # by feature
    footnotes: Mapping[str, str] = field(default_factory=dict)  # by what is quoted


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
    table = read_toml(path, "[[cell]]")
    if strange := set(table) - {"title", "source", "note", "tested", "models", "experiment", "cell", "quoted"}:
        raise WrongUse(f"{path}: unknown key '{min(strange)}' in the recipe")
    _check(path, table, RECIPE_SHAPE)
    cells = tuple(_cell(path, {**table.get("experiment", {}), **line}, options) for line in table["cell"])
    names = [cell.name for cell in cells]
    if twice := {cell for cell in names if names.count(cell) > 1}:
        raise WrongUse(f"{path}: two cells are called '{min(twice)}'")
    tested = table.get("tested")
    if tested is not None and tested not in names:
        raise unknown(f"cell to be tested in {path}", tested, names)
    title, source, note = (table.get(key, "") for key in ("title", "source", "note"))
    quoted = {line["name"]: line["paper"] for line in table.get("quoted", [])}
    footnotes = {line["name"]: line["footnote"] for line in table.get("quoted", []) if "footnote" in line}
    models = table.get("models", {})
    return Recipe(path.stem, title or path.stem, source, note, cells, quoted, tested, models, footnotes)


def _check(path: Path, table: Mapping[str, Any], expected: type) -> None:
    """Raise `WrongUse` saying where the table is something else."""
    try:
        msgspec.convert(table, expected)
    except msgspec.ValidationError as fault:
        raise WrongUse(f"{path}: {f'cell {name}: ' if (name := table.get('name')) else ''}{fault}") from None


def _cell(path: Path, line: Mapping[str, Any], options: Mapping[str, Any]) -> Cell:
    asked = {key: value for key, value in line.items() if key not in ("name", "test", "paper", *OF_THE_PAPER)}
    known = [field.name for field in fields(Experiment)]
    if strange := [key for key in asked if key not in known]:
        raise unknown(f"option in {path}", strange[0], known)
    _check(path, line, CELL_SHAPE)
    if several := [
        key for key, value in asked.items() if isinstance(value, dict | list) and key not in ("set", "model")
    ]:
        raise WrongUse(f"{path}: cell {line['name']}: {several[0]} takes one value")
    if (test := line.get("test", "both")) not in TESTS:
        raise unknown(f"test in {path}", test, TESTS)
    asked |= {"set": assignments(asked.get("set", {})), "model": tuple(asked.get("model", ()))}
    written = Experiment(**asked)
    given = {key: value for key, value in options.items() if key != "set"}
    experiment = replace(written, **given, also_set=tuple(options.get("set", ())))
    about = {key: line[key] for key in OF_THE_PAPER if key in line}
    return Cell(line["name"], experiment, written, test, line.get("paper"), line.get("seeds", 1), **about)
