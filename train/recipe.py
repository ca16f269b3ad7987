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

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ser.disk.read import read_small, read_toml
from ser.disk.write import make_folder, write_whole
from ser.errors import CorruptStore, StoreError, WrongUse, unknown

from .options import Experiment, assignments
from .run_folder import Run, run_name, shape
from .scores.measures import SCORED

FOLDER = Path(__file__).parent / "recipes"
TESTS = ("both", "only audio", "only text", "head audio", "head text")
OF_THE_RUN = ("fold", "seed", "cut", "provenance")  # what tells the runs of one cell apart
AGAIN = "remove it and run the sweep again"
Scalar = str | int | float | bool


class Range(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"low": "from", "high": "to"}
):
    """Numbers to draw from, evenly or in their logarithm: whole if both ends are, else of four
    digits.
    """

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        if not -1e300 <= self.low < self.high <= 1e300 or (self.log and self.low <= 0):
            raise ValueError(
                "a range goes from a number to a larger one, and with log from above 0"
            )

    def at(self, share: float) -> Scalar:
        """The number at this share, from 0 to 1, of the way from `low` to `high`."""
        low, high = self.low, self.high
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        return (
            round(value)
            if isinstance(low, int) and isinstance(high, int)
            else float(f"{value:.4g}")
        )


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe's `[search]`: how many candidates each cell draws, with which seed, and the most
    runs allowed.
    """

    draws: int | None = None
    seed: int = 0
    at_most: int = 10_000

    def check(self, runs: int, file: Path | str) -> None:
        """Raise `WrongUse` for more runs than are meant, naming the recipe's file."""
        if runs > self.at_most:
            remedy = f"if they are meant, write `at_most = {runs}` under [search]"
            raise WrongUse(f"{file}: the search has {runs:,} runs; {remedy}")


PAPER = dict[str, Annotated[float, msgspec.Meta(ge=0, le=100)]]
RECIPE_SHAPE = shape(
    "",
    cell=Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)],
    **dict.fromkeys(("title", "source", "note"), (str, "")),
    tested=(str | None, None),
    search=(Budget, Budget()),
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
class Cell:
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
    cells: tuple[Cell, ...]
    quoted: Sequence[Any]  # each with its name, paper and footnote
    tested: str | None
    models: Mapping[str, str]  # by feature
    budget: Budget  # of each cell's search
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
    path: Path, line: Mapping[str, Any], overriding: Mapping[str, Any], budget: Budget
) -> Cell:
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
    written = Experiment(**options | {"set": assignments(fixed), "model": read.model})
    others = {key: value for key, value in overriding.items() if key != "set"}
    experiment = replace(written, **others, also_set=tuple(overriding.get("set", ())))
    about = read.utterances, read.differs, tuple(searched), candidates(searched, budget, path)
    return Cell(read.name, experiment, written, read.test, read.paper, *about)


def candidates(
    searched: Mapping[str, Any], budget: Budget, file: Path
) -> tuple[tuple[str, ...], ...]:
    """The candidates of a cell, each as the assignments of `--set`: one without any if nothing is
    searched.

    Each setting that is has a list of values, or a `Range`. The same settings and seed give the
    same draws. Raises `WrongUse` if there are no such candidates, or too many.
    """
    lists = {key: values for key, values in searched.items() if not isinstance(values, Range)}
    if budget.draws is None:
        if ranges := searched.keys() - lists.keys():
            remedy = "write `draws = 20` under [search], or a list of values"
            raise WrongUse(f"{file}: {min(ranges)} is a range: {remedy}")
        budget.check(math.prod(map(len, lists.values())), file)
        return tuple(
            assignments(dict(zip(lists, values, strict=True)))
            for values in product(*lists.values())
        )
    budget.check(budget.draws, file)
    share = random.Random(budget.seed).random
    distinct: dict[tuple[str, ...], None] = {}
    for _ in range(100 * budget.draws if searched else 0):
        draw = {}
        for key, values in searched.items():
            draw[key] = (
                values.at(share())
                if isinstance(values, Range)
                else values[int(share() * len(values))]
            )
        distinct[assignments(draw)] = None
        if len(distinct) == budget.draws:
            return tuple(distinct)
    raise WrongUse(
        f"{file}: [search] draws {budget.draws} candidates, and there are not so many; leave draws out"
    )


def choose(columns: Iterable[Sequence[Run]]) -> list[Run]:
    """Of each column, one fold's and seed's runs in the order of the candidates, the first with the
    best dev score.

    A column waits until all its runs are finished, or have diverged: those have lost.
    """
    ended = [column for column in columns if all(run.finished or run.diverged for run in column)]
    finished = [[run for run in column if run.finished] for column in ended]
    return [max(column, key=dev_score) for column in finished if column]


def dev_score(run: Run) -> float:
    """The dev score of the epoch that a finished run kept, by the score that it selects on: in
    percent, but CCC not.
    """
    name = run.config["training"]["select_score"]
    kept = [
        line[name] for line in run.result["history"] if line.get("kept") and line[name] is not None
    ]
    return (1 if name == "ccc" else 100) * kept[-1] if kept else -math.inf


def chosen_rows(
    cell: str, tried: int, over: Sequence[str], runs: Iterable[Run]
) -> list[dict[str, Any]]:
    """A table's lines: the values that each fold and seed of a cell chose, and by which dev score."""
    rows = []
    for run in runs:
        settings = {**run.config["settings"], **run.config["training"]}
        row = {"cell": cell, "seed": run.config["seed"], "fold": run.config["fold"], "tried": tried}
        row |= {key: settings.get(key, "default") for key in over}
        rows.append(
            {**row, f"dev {SCORED[settings['select_score']]}": dev_score(run), "run": run.name}
        )
    return rows


class Record(msgspec.Struct, frozen=True):
    """`search-<hash>.json` beside the runs of a search, so that a report shows the chosen ones'
    scores alone.
    """

    file: str  # the recipe
    over: list[str]
    candidates: list[str]  # their `cell_name`

    @property
    def name(self) -> str:
        """Of its file."""
        return f"search-{run_name({'candidates': self.candidates})}.json"

    def write(self, out: Path) -> None:
        """Write it into the folder of the runs. Raises `StoreError` for a link in its place."""
        make_folder(out)
        if (path := out / self.name).is_symlink():
            raise StoreError(f"{path}: is a link, and no record is written through one; remove it")
        write_whole(path, msgspec.json.encode(self))


def cell_name(config: Mapping[str, Any]) -> str:
    """The same for all runs of a cell, and for no others."""
    return run_name({key: value for key, value in config.items() if key not in OF_THE_RUN})


def find_records(*paths: Path | str) -> list[Record]:
    """The searches in folders of runs, each once. Raises `CorruptStore` for a file that is not such
    a record.
    """
    records: dict[str, Record] = {}
    for path in (
        path for folder in map(Path, paths) for path in sorted(folder.glob("search-*.json"))
    ):
        try:
            record = records[path.name] = msgspec.json.decode(read_small(path, AGAIN), type=Record)
            if (
                record.name != path.name
            ):  # which vouches for the candidates: the others are reported as cells
                raise msgspec.ValidationError("its candidates are not those of its name")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
            raise CorruptStore(
                f"{path}: is not the record of a search ({fault}); {AGAIN}"
            ) from None
    return list(records.values())
