"""Recipes: sets of cells, such as a paper's table, as TOML files, and the searches that some of
their cells are.

    title, source, note      what it is, where its numbers come from, what to know
    [models]                 feature = "checkpoint": the encoders behind the numbers
    [experiment]             options of `ser train` for all cells
    [search]                 for cells that are searches: draws, seed, at_most
    [[cell]]                 name, options that differ, `set` as a table (added to that of all), `test` (how the trained
                             model is tested), `paper`: the paper's numbers in percent, how many `utterances` they are
                             of, and in what the cell `differs` from what they are of
    [[quoted]]               name, `paper` and perhaps `footnote`: what the paper quotes of other systems
    tested                   the cell whose seeds are tested against each quoted number, if the paper does so

`paper` holds ua, wa, or recalls by class, each with its `_std` where the paper gives one.

A cell is a search if its `set` holds several values of a setting. Each fold and seed counts with
the best one on dev.

    set = { lr = [1e-4, 3e-4], dropout = [0.1, 0.2] }           a grid: every combination is a candidate
    set = { lr = { from = 1e-5, to = 1e-3, log = true } }       a range, of which `[search]` draws candidates
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ser.disk.read import read_toml
from ser.errors import WrongUse, unknown

from ..options import Experiment, setting_texts
from .search import Range, Scalar, SearchBudget, candidates

FOLDER = Path(__file__).parent.parent / "recipes"
TESTS = ("both", "only audio", "only text", "head audio", "head text")


def shape(texts: str, **others: Any) -> Any:
    """A type of JSON object with at least these keys: `texts`, and `others` by kind; (kind,
    default) is optional.
    """
    kinds = [(key, *(kind if isinstance(kind, tuple) else (kind,))) for key, kind in others.items()]
    return msgspec.defstruct("Record", [*((key, str) for key in texts.split()), *kinds])


PAPER = dict[str, Annotated[float, msgspec.Meta(ge=0, le=100)]]
RECIPE_SHAPE = shape(
    "",
    cell=Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)],
    **dict.fromkeys(("title", "source", "note"), (str, "")),
    tested=(str | None, None),
    search=(SearchBudget, SearchBudget()),
    models=(dict[str, str], {}),
    experiment=(dict[str, Any], {}),
    quoted=(list[shape("name", paper=PAPER, footnote=(str | None, None))], []),  # type: ignore[misc]
)
CELL_SHAPE = shape(
    "name features fusion",
    test=(str, "both"),
    paper=(PAPER | None, None),
    set=(dict[str, Scalar | Annotated[list[Scalar], msgspec.Meta(min_length=1)] | Range], {}),
    model=(tuple[str, ...], ()),
    utterances=(int | None, None),
    differs=(str, ""),
    **{
        one.name: (Scalar, "")
        for one in fields(Experiment)
        if one.name not in ("features", "fusion", "set", "model")
    },
)


@dataclass(frozen=True)
class RecipeCell:
    """One configuration of a recipe; `written` is the experiment as the recipe has it, whatever a
    command asks for.
    """

    name: str
    experiment: Experiment
    written: Experiment
    test: str = "both"
    paper: Mapping[str, float] | None = None
    utterances: int | None = (
        None  # that the paper's numbers are of, in all parts, if the recipe says it
    )
    differs: str = ""  # in what the recipe's own cell is not what the paper's numbers are of, such as "features"
    over: tuple[str, ...] = ()  # the settings that are searched
    candidates: tuple[tuple[str, ...], ...] = ((),)  # their values, as `--set` takes them


@dataclass(frozen=True)
class Recipe:
    """A recipe as read."""

    name: str
    title: str
    note: str
    cells: tuple[RecipeCell, ...]
    quoted: Sequence[Any]  # each with its name, paper and footnote
    tested: str | None
    models: Mapping[str, str]  # by feature
    budget: SearchBudget  # of each cell's search
    file: str


def recipe_names() -> list[str]:
    """The recipes that come with ser."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def list_recipes() -> dict[str, dict[str, Any]]:
    """What `ser sweep --list --json` prints: the cells of each recipe and the paper's numbers, in
    percent.
    """
    return {
        recipe.name: {
            "cells": len(recipe.cells),
            "title": recipe.title,
            "paper": {cell.name: dict(cell.paper or {}) for cell in recipe.cells},
            "quoted": {quoted.name: quoted.paper for quoted in recipe.quoted},
        }
        for recipe in map(read_recipe, recipe_names())
    }


def read_recipe(name: str | Path, named: Collection[str] = (), **options: Any) -> Recipe:
    """A recipe by name, or from a TOML file, or its `named` cells; `options` of `Experiment`
    override those of all.

    An option `set` goes to the cells whose fusion has that setting. Raises `WrongUse`, saying what
    is wrong.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in recipe_names():
            raise unknown("recipe", str(name), [*recipe_names(), "FILE.toml"])
        path = FOLDER / f"{name}.toml"
    table = read_toml(path, "[[cell]]")
    if strange := table.keys() - set(RECIPE_SHAPE.__struct_fields__):
        raise WrongUse(f"{path}: unknown key '{min(strange)}' in the recipe")
    read = _shaped(path, table, RECIPE_SHAPE)
    for line in read.cell:
        if isinstance(common := read.experiment.get("set"), dict) and isinstance(
            own := line.get("set"), dict
        ):
            line["set"] = common | own
    cells = tuple(
        _cell(path, {**read.experiment, **line}, options, read.search) for line in read.cell
    )
    if len({len(cell.candidates) for cell in cells}) > 1:
        tried = ", ".join(f"'{cell.name}' {len(cell.candidates)}" for cell in cells)
        raise WrongUse(
            f"{path}: its cells must try as many candidates each, and these do not: {tried}"
        )
    names = [cell.name for cell in cells]
    if twice := {cell for cell in names if names.count(cell) > 1}:
        raise WrongUse(f"{path}: two cells are called '{min(twice)}'")
    if strange := set(named) - set(names):
        raise unknown(f"cell of {path.stem}", min(strange), names)
    cells = tuple(cell for cell in cells if not named or cell.name in named)
    if read.tested is not None and read.tested not in names:
        raise unknown(f"cell to be tested in {path}", read.tested, names)
    about = read.quoted, read.tested, read.models, read.search, str(path)
    return Recipe(path.stem, read.title or path.stem, read.note, cells, *about)


def _shaped(path: Path, table: Mapping[str, Any], expected: Any) -> Any:
    """The table as a record of the `expected` shape. Raises `WrongUse` saying where it is something
    else.
    """
    try:
        return msgspec.convert(table, expected)
    except msgspec.ValidationError as fault:
        cell = f"cell {table['name']}: " if "name" in table else ""
        raise WrongUse(f"{path}: {cell}{fault}") from None


def _cell(
    path: Path, line: Mapping[str, Any], overriding: Mapping[str, Any], budget: SearchBudget
) -> RecipeCell:
    options = {
        key: line[key]
        for key in line
        if key not in ("name", "test", "paper", "utterances", "differs")
    }
    known = [field.name for field in fields(Experiment) if field.name != "also_set"]
    if strange := [key for key in options if key not in known]:
        raise unknown(f"option for cell '{line.get('name')}' in {path}", strange[0], known)
    read = _shaped(path, line, CELL_SHAPE)
    if read.test not in TESTS:
        raise unknown(f"test in {path}", read.test, TESTS)
    searched = {key: value for key, value in read.set.items() if isinstance(value, list | Range)}
    fixed = {key: value for key, value in read.set.items() if key not in searched}
    written = Experiment(**options | {"set": setting_texts(fixed), "model": read.model})
    others = {key: value for key, value in overriding.items() if key != "set"}
    experiment = replace(written, **others, also_set=tuple(overriding.get("set", ())))
    about = read.utterances, read.differs, tuple(searched), candidates(searched, budget, path)
    return RecipeCell(read.name, experiment, written, read.test, read.paper, *about)
