"""Recipes: sets of cells, such as a paper's table, as TOML files.

    title, source, note   what it is, where its numbers come from, what to know
    [models]              feature = "checkpoint": the encoders behind the numbers
    [experiment]          options of `ser train` for all cells
    [search]              for cells that are searches: draws, seed, at_most
    [[cell]]              one configuration:
        name, test        `test` is how the trained model is tested, one of `TESTS`
        …                 options of `ser train` that differ from those of all cells
        set               settings as a table, added to those of all cells
        paper             the paper's numbers in percent
        utterances        how many utterances these numbers are of
        differs           in what the cell differs from what they are of
        each_layer        true: it stands for a cell for each layer of its features
    [[quoted]]            name, paper, footnote: what the paper quotes of another system
    tested                the cell whose seeds are tested against each quoted number

`paper` holds ua, wa, or recalls by class, each with its `_std` where the paper gives one.

A cell is a search if its `set` holds several values of a setting. Each fold and seed counts with
the best one on dev.

    set = { lr = [1e-4, 3e-4], dropout = [0.1, 0.2] }
        a grid: every combination is a candidate
    set = { lr = { from = 1e-5, to = 1e-3, log = true } }
        a range, of which `[search]` draws candidates
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec

from ser.disk.read import read_toml
from ser.errors import WrongUse, unknown

from ..options import Experiment, setting_texts
from .search import Range, Scalar, SearchBudget, candidates

FOLDER = Path(__file__).parent.parent / "recipes"
# Those that are of no paper.
OWN_FOLDER = FOLDER / "own"
# How a trained model is tested: as it is, with the other modality hidden, or one of its heads.
TESTS = ("both", "only audio", "only text", "head audio", "head text")
# What a cell's table says beside the options of its experiment.
NOT_OPTIONS = ("name", "test", "paper", "utterances", "differs", "each_layer")

# Scores by metric: "ua", "wa", a class for its recall, each perhaps with "ua_std" and so on.
Percents = dict[str, Annotated[float, msgspec.Meta(ge=0, le=100)]]


class QuotedSystem(msgspec.Struct, frozen=True):
    """`[[quoted]]`: what a paper quotes of another system."""

    name: str
    paper: Percents
    footnote: str | None = None


class RecipeTable(msgspec.Struct, frozen=True):
    """A recipe's file. Its cells are read one by one, as `CellTable`."""

    cell: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    title: str = ""
    source: str = ""
    note: str = ""
    tested: str | None = None
    search: SearchBudget = SearchBudget()
    models: dict[str, str] = {}
    experiment: dict[str, Any] = {}
    quoted: list[QuotedSystem] = []


class CellTable(msgspec.Struct, frozen=True):
    """One `[[cell]]`, with what `[experiment]` says for all."""

    name: str
    features: str
    fusion: str
    test: str = "both"
    paper: Percents | None = None
    set: dict[str, Scalar | Annotated[list[Scalar], msgspec.Meta(min_length=1)] | Range] = {}
    model: tuple[str, ...] = ()
    utterances: int | None = None
    differs: str = ""
    each_layer: bool = False


# The other options of `ser train` may stand in a cell too. Their values are checked with those of
# the command line (`options.check_options`); here only that they are no tables.
_OTHER_OPTIONS: list[tuple[str, Any, Any]] = [
    (field.name, Scalar, "")
    for field in fields(Experiment)
    if field.name not in CellTable.__struct_fields__
]
_CELL_WITH_OPTIONS = cast(
    type[CellTable],
    msgspec.defstruct("CellWithOptions", _OTHER_OPTIONS, bases=(CellTable,)),
)


@dataclass(frozen=True)
class RecipeCell:
    """One configuration of a recipe."""

    name: str
    experiment: Experiment
    """What is trained: as the recipe has it, but for what a command asks for."""
    written: Experiment
    """As the recipe has it."""
    test: str = "both"
    paper: Mapping[str, float] | None = None
    utterances: int | None = None
    """That the paper's numbers are of, in all parts, if the recipe says it."""
    differs: str = ""
    """In what this cell is not what the paper's numbers are of, such as "features"."""
    each_layer: bool = False
    """Whether it stands for a cell for each layer of its features: see `each_layer`."""
    searched: tuple[str, ...] = ()
    """The settings that are searched, by name."""
    candidates: tuple[tuple[str, ...], ...] = ((),)
    """The values that they are tried at, each as `--set` takes them; one without any if none is."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as read."""

    name: str
    title: str
    note: str
    cells: tuple[RecipeCell, ...]
    quoted: Sequence[QuotedSystem]
    tested: str | None
    models: Mapping[str, str]
    """Feature → checkpoint."""
    budget: SearchBudget
    """Of each cell's search."""
    file: str


def recipe_names() -> list[str]:
    """The papers' recipes that come with ser."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def own_recipe_names() -> list[str]:
    """The recipes that come with ser and are of no paper."""
    return sorted(path.stem for path in OWN_FOLDER.glob("*.toml"))


def list_recipes() -> dict[str, dict[str, Any]]:
    """What `ser sweep --list --json` prints: each recipe's cells with the paper's percentages."""
    listed = {}
    for name in recipe_names():
        recipe = read_recipe(name)
        listed[name] = {
            "cells": len(recipe.cells),
            "title": recipe.title,
            "paper": {cell.name: dict(cell.paper or {}) for cell in recipe.cells},
            "quoted": {system.name: system.paper for system in recipe.quoted},
        }
    return listed


def read_recipe(name: str | Path, named: Collection[str] = (), **options: Any) -> Recipe:
    """A recipe by name, or from a TOML file, with all its cells or the `named` ones.

    `options` of `Experiment` go before what the recipe says. Those of `set`, and `epochs`, go to
    the cells whose fusion has that setting. Raises `WrongUse`, saying what is wrong.
    """
    path = _find_recipe(name)
    table = read_toml(path, "[[cell]]")
    strange = table.keys() - set(RecipeTable.__struct_fields__)
    if strange:
        raise WrongUse(f"{path}: unknown key '{min(strange)}' in the recipe")
    read = _convert(path, table, RecipeTable)

    cells = []
    for cell_table in read.cell:
        joined = _joined(read.experiment, cell_table)
        cells.append(_read_cell(path, joined, options, read.search))
    _check_cells(path, cells)

    names = [cell.name for cell in cells]
    unknown_cells = set(named) - set(names)
    if unknown_cells:
        raise unknown(f"cell of {path.stem}", min(unknown_cells), names)
    if read.tested is not None and read.tested not in names:
        raise unknown(f"cell to be tested in {path}", read.tested, names)

    return Recipe(
        name=path.stem,
        title=read.title or path.stem,
        note=read.note,
        cells=tuple(cell for cell in cells if not named or cell.name in named),
        quoted=read.quoted,
        tested=read.tested,
        models=read.models,
        budget=read.search,
        file=str(path),
    )


def _find_recipe(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix == ".toml":
        return path

    own_names = own_recipe_names()
    if str(name) in own_names:
        return OWN_FOLDER / f"{name}.toml"

    names = recipe_names()
    if str(name) not in names:
        raise unknown("recipe", str(name), [*names, *own_names, "FILE.toml"])
    return FOLDER / f"{name}.toml"


def _joined(common: Mapping[str, Any], cell_table: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's table with what is said for all; of `set` each setting by itself."""
    joined = {**common, **cell_table}
    common_settings = common.get("set")
    cell_settings = cell_table.get("set")
    if isinstance(common_settings, dict) and isinstance(cell_settings, dict):
        joined["set"] = {**common_settings, **cell_settings}
    return joined


Shape = TypeVar("Shape")


def _convert(path: Path, table: Mapping[str, Any], shape: type[Shape]) -> Shape:
    """The table as a record. Raises `WrongUse`, naming the cell, for a value of another type."""
    try:
        return msgspec.convert(table, shape)
    except msgspec.ValidationError as fault:
        cell = f"cell {table['name']}: " if "name" in table else ""
        raise WrongUse(f"{path}: {cell}{fault}") from None


def _read_cell(
    path: Path, table: Mapping[str, Any], overriding: Mapping[str, Any], budget: SearchBudget
) -> RecipeCell:
    options = {key: value for key, value in table.items() if key not in NOT_OPTIONS}
    known = [field.name for field in fields(Experiment) if field.name != "also_set"]
    for name in options:
        if name not in known:
            raise unknown(f"option for cell '{table.get('name')}' in {path}", name, known)

    read = _convert(path, table, _CELL_WITH_OPTIONS)
    if read.test not in TESTS:
        raise unknown(f"test in {path}", read.test, TESTS)

    fixed = {}
    searched = {}
    for name, value in read.set.items():
        if isinstance(value, list | Range):
            searched[name] = value
        else:
            fixed[name] = value

    written = Experiment(**{**options, "set": setting_texts(fixed), "model": read.model})
    # As --set does, --epochs goes to the fusions that have it.
    changes = dict(overriding)
    also_set = [*changes.pop("set", ())]
    epochs = changes.pop("epochs", None)
    if epochs is not None:
        also_set.append(f"epochs={epochs}")
        changes["epochs"] = None
    experiment = replace(written, **changes, also_set=tuple(also_set))
    return RecipeCell(
        name=read.name,
        experiment=experiment,
        written=written,
        test=read.test,
        paper=read.paper,
        utterances=read.utterances,
        differs=read.differs,
        each_layer=read.each_layer,
        searched=tuple(searched),
        candidates=candidates(searched, budget, path),
    )


def _check_cells(path: Path, cells: Sequence[RecipeCell]) -> None:
    """Raise `WrongUse` for cells of one name, or with searches of different sizes."""
    # By their number of candidates, the first cell that has so many.
    first_cells: dict[int, str] = {}
    names: set[str] = set()
    for cell in cells:
        if cell.name in names:
            raise WrongUse(f"{path}: two cells are called '{cell.name}'")
        names.add(cell.name)
        first_cells.setdefault(len(cell.candidates), cell.name)

    if len(first_cells) > 1:
        tried = ", ".join(f"'{name}' {count}" for count, name in first_cells.items())
        raise WrongUse(
            f"{path}: its cells must try as many candidates each, and these do not: {tried}"
        )
