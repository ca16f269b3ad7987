"""Tables for a paper: our cells by the recipe's own names, with the paper's numbers and a test.

A cell stands in the table of a recipe, such as MSMSER's Table 2, where it may stand beside the
numbers there; see `quoted_for`. All others make a table of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ser.train.scores.pooling import Score, Spread
from ser.train.scores.tests import Comparison
from ser.train.sweep.recipe import Recipe

from .cell import Cell, Cells, grouped
from .cell_scores import compare_cells
from .conditions import caution_of_unreal
from .formats import FINE, PERCENT_WITH_DEVIATION, Format
from .paper import MAIN, Quoted, claimed_better, quoted_for
from .table import joined


@dataclass(frozen=True)
class PaperRow:
    """One cell: its name, our scores, the paper's numbers, and p of the test."""

    name: str
    ours: Mapping[str, Spread]
    paper: Mapping[str, float]
    p: float | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table that fits a column of a paper."""

    name: str  # its label
    caption: str
    metrics: Sequence[str]
    rows: Sequence[PaperRow]
    note: str = ""
    format: Format = PERCENT_WITH_DEVIATION

    @property
    def of_paper(self) -> list[str]:
        """The metrics of which the paper gives a number."""
        return [metric for metric in self.metrics if any(metric in row.paper for row in self.rows)]

    @property
    def tested(self) -> bool:
        return any(row.p is not None for row in self.rows)

    def heading(self, metric: str) -> str:
        """UA, WA, or such as "valence" of ratings."""
        return metric.upper() if metric in MAIN else metric.partition(" ")[2] or "mean"


@dataclass(frozen=True)
class Placed:
    """One of our cells at its place in a recipe."""

    cell: Cell
    quoted: Quoted


def paper_tables(cells: Cells) -> list[PaperTable]:
    """A table for each recipe that our cells are of, one of the other cells, and one of ratings."""
    classifying = [cell for cell in cells if cell.scores.classes]
    tables = []
    in_a_table: set[str] = set()
    for placed in _by_recipe(classifying):
        labels = {place.cell.label for place in placed}
        # A paper's full model stands in several of its tables.
        if labels <= in_a_table:
            continue
        in_a_table |= labels
        tables.append(_recipe_table(placed))

    others = [cell for cell in classifying if cell.label not in in_a_table]
    if others:
        tables.append(_table_of_others(others))
    rated = [cell for cell in cells if cell.scores.dimensions]
    if rated:
        tables.append(_table_of_ratings(rated))
    return tables


def _by_recipe(cells: Cells) -> list[list[Placed]]:
    """The cells of each recipe in its order.

    First the recipe that has the most of them; of equals, the one with the most numbers.
    """
    placed: list[Placed] = []
    for cell in cells:
        placed += [Placed(cell, quoted) for quoted in quoted_for(cell) if quoted.of(MAIN)]

    recipes = list(grouped(placed, lambda place: place.quoted.recipe.name).values())
    recipes.sort(key=lambda places: (-len(places), -places[0].quoted.numbers_beside_it))
    for places in recipes:
        order = [cell.name for cell in places[0].quoted.recipe.cells]
        places.sort(key=lambda place: order.index(place.quoted.cell))
    return recipes


def _recipe_table(placed: Sequence[Placed]) -> PaperTable:
    cells = [place.cell for place in placed]
    recipe = placed[0].quoted.recipe
    first = _tested_cell(placed, recipe)
    metric = "ua" if any("ua" in place.quoted.numbers for place in placed) else "wa"
    tests = _tests(first, cells, metric)

    rows = []
    for name, place in zip(_names(placed), placed, strict=True):
        test = tests.get(place.cell.label)
        paper = {metric: number for metric, number in place.quoted.of(MAIN) if metric in MAIN}
        rows.append(PaperRow(name, _ours(place.cell, cells), paper, test.p if test else None))

    return PaperTable(
        name=recipe.name,
        caption=_caption(recipe.title.partition(":")[0], cells),
        metrics=MAIN,
        rows=rows,
        note=joined(
            _about_tests(rows[cells.index(first)].name, metric, tests), _differences(placed)
        ),
    )


def _tested_cell(placed: Sequence[Placed], recipe: Recipe) -> Cell:
    """The user's own cell, the one that the recipe tests, or the one that the paper finds best."""
    users_own = [place.cell for place in placed if place.cell.ours]
    of_recipe = [place.cell for place in placed if place.quoted.cell == recipe.tested]
    best = max(placed, key=lambda place: max(number for _, number in place.quoted.of(MAIN)))
    return [*users_own, *of_recipe, best.cell][0]


def _names(placed: Sequence[Placed]) -> list[str]:
    """The recipe's names; of several cells with one name, what tells their labels apart too."""
    names = []
    for place in placed:
        name = place.quoted.cell
        namesakes = [other.cell.label for other in placed if other.quoted.cell == name]
        what_tells = _what_tells(place.cell.label, namesakes)
        if what_tells:
            name = f"{name} ({what_tells})"
        names.append(name)
    return names


def _what_tells(label: str, labels: Sequence[str]) -> str:
    """The pieces of a label that not all have.

    >>> _what_tells("mit · queries 6", ["mit · queries 6", "mit · queries 3"])
    'queries 6'
    """
    pieces = []
    for piece in label.split(" · "):
        if any(piece not in other.split(" · ") for other in labels):
            pieces.append(piece)
    return ", ".join(pieces)


def _ours(cell: Cell, cells: Cells) -> dict[str, Spread]:
    return {metric: _spread(cell.scores.score(metric), cells) for metric in MAIN}


def _spread(score: Score, cells: Cells) -> Spread:
    """The score, and its deviation over the seeds, or over the folds where all have one seed."""
    over = score.over_seeds if _over_seeds(cells) else score.over_folds
    return score.pooled, over[1]


def _over_seeds(cells: Cells) -> bool:
    return any(len(cell.seeds) > 1 for cell in cells)


def _caption(what: str, cells: Cells) -> str:
    over = "seeds" if _over_seeds(cells) else "folds"
    return joined(
        f"{what}: UA and WA in %, pooled over the folds, ± standard deviation over the {over}.",
        caution_of_unreal(cells),
    )


def _tests(first: Cell, cells: Cells, metric: str) -> dict[str, Comparison]:
    """The first cell with each of the others, by their label, where there is a test."""
    tests = {}
    for cell in cells:
        if cell is first:
            continue
        claim = claimed_better(first, cell, metric)
        test = compare_cells(first.scores, cell.scores, metric, claim)
        if test is not None and test.p is not None:
            tests[cell.label] = test
    return tests


def _about_tests(name: str, metric: str, tests: Mapping[str, Comparison]) -> str:
    if not tests:
        return ""
    kinds = dict.fromkeys(test.about for test in tests.values())
    return f"p: {metric.upper()} against {name} ({'; '.join(kinds)}), not corrected."


def _differences(placed: Sequence[Placed]) -> str:
    """What is not as in the paper, once for all cells that differ in the same."""
    names = _names(placed)
    by_difference: dict[tuple[str, ...], list[str]] = {}
    for name, place in zip(names, placed, strict=True):
        by_difference.setdefault(place.quoted.differs, []).append(name)

    sentences = []
    for differs, of_cells in by_difference.items():
        who = "Ours" if len(of_cells) == len(names) else "; ".join(of_cells)
        if differs:
            sentences.append(f"{who}: not as in the paper in {', '.join(differs)}.")
    return joined(*sentences)


def _table_of_others(cells: Cells) -> PaperTable:
    """Cells that are in no recipe, by their labels, tested against the highest, or the user's."""
    users_own = [cell for cell in cells if cell.ours]
    first = [*users_own, *cells][0]
    tests = _tests(first, cells, "ua")
    rows = []
    for cell in cells:
        test = tests.get(cell.label)
        rows.append(PaperRow(cell.label, _ours(cell, cells), {}, test.p if test else None))
    return PaperTable(
        name="scores",
        caption=_caption("Scores", cells),
        metrics=MAIN,
        rows=rows,
        note=_about_tests(first.label, "ua", tests),
    )


def _table_of_ratings(cells: Cells) -> PaperTable:
    metrics = ["ccc", *[metric for metric in cells[0].scores.rated if metric.startswith("ccc")]]
    rows = []
    for cell in cells:
        ours = {metric: (cell.scores.score(metric).pooled, None) for metric in metrics}
        rows.append(PaperRow(cell.label, ours, {}))
    return PaperTable(
        name="ccc",
        caption=joined("CCC, pooled over the folds.", caution_of_unreal(cells)),
        metrics=metrics,
        rows=rows,
        format=FINE,
    )
