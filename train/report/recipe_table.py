"""The table that a sweep ends with: the recipe's cells, the paper's numbers, and ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ser.errors import WrongUse
from ser.train.run_folder import Run
from ser.train.scores.measures import SHOWN
from ser.train.scores.pooling import Score
from ser.train.scores.tests import Comparison, against_quoted, holm
from ser.train.sweep.recipe import Recipe, RecipeCell
from ser.train.sweep.search import choose_candidates

from .cell_scores import CellScores, compare_cells
from .conditions import caveat, conditions
from .formats import DIFFERENCE, FINE, P_VALUE, PERCENT_WITH_DEVIATION, TEXT
from .headings import heading_of
from .paper import beside, beside_columns, claimed, differences
from .searches import chosen_columns, chosen_rows
from .table import Column, Row, Table, columns_of
from .text_table import tabulated

NOT_COMPARED = "not compared: "


@dataclass
class RecipeRow:
    """One line of a recipe's table."""

    cell: str
    paper: Mapping[str, float]
    # Empty: quoted, or not one run is finished.
    scores: Mapping[str, Score] = field(default_factory=dict)
    # How many the cell needs; of a search, how many it chooses.
    runs: int = 0
    done: int = 0
    # Such as "session-out · val · 4class".
    conditions: str = ""
    quoted: bool = False
    # From the recipe's cell: what does, or why there is no comparison and no `paper`.
    differs: str = ""
    # The recipe's `tested` cell with this one.
    compared: Comparison | None = None
    # Over the table.
    holm_p: float | None = None
    folders: Sequence[str] = ()
    # What a search chose, by fold and seed.
    chosen: Sequence[Row] = ()


@dataclass(frozen=True)
class Tested:
    """The scores of a cell's finished runs, and the way in which the recipe tests them."""

    scores: CellScores
    test: str


def recipe_rows(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> list[RecipeRow]:
    """The rows of a recipe's table, in its order; cells without a finished run say so.

    `runs` are those of each cell, by its name. Raises `WrongUse` for a test that a cell's model
    does not have.
    """
    rows = []
    finished: dict[str, Tested] = {}
    for cell in recipe.cells:
        row, tested = _cell_row(recipe, cell, runs[cell.name])
        rows.append(row)
        if tested is not None:
            finished[cell.name] = tested
    for quoted in recipe.quoted:
        source = "quoted by the paper"
        if quoted.footnote:
            source += f"; {quoted.footnote}"
        rows.append(RecipeRow(quoted.name, quoted.paper, conditions=source, quoted=True))

    if recipe.tested in finished:
        first = next(row for row in rows if row.cell == recipe.tested)
        tested_cell = finished.pop(recipe.tested)
        for row in rows:
            row.compared = _compared(tested_cell, first, row, finished.get(row.cell))

    corrected = holm([row.compared.p if row.compared else None for row in rows])
    for row, p in zip(rows, corrected, strict=True):
        row.holm_p = p
    return rows


def _cell_row(
    recipe: Recipe, cell: RecipeCell, runs: Sequence[Run]
) -> tuple[RecipeRow, Tested | None]:
    """The row of a cell before tests; None where no run is finished."""
    tried = len(cell.candidates)
    needed = len(runs) // tried
    if cell.searched:
        # The runs of the first candidate stand before those of the second.
        runs = choose_candidates(runs[number::needed] for number in range(needed))

    row = RecipeRow(
        cell.name, cell.paper or {}, runs=needed, folders=[str(run.path) for run in runs]
    )
    done = [run for run in runs if run.finished]
    if not done:
        row.conditions = "no run finished"
        if cell.searched:
            row.conditions = f"no fold has all {tried} candidates finished"
        return row, None

    scores = CellScores(done)
    if cell.test not in scores.tests:
        raise WrongUse(
            f"cell '{cell.name}': its model has no test '{cell.test}', only "
            f"{', '.join(scores.tests)}"
        )
    row.done = len(done)
    row.conditions = conditions(done)

    measured = {}
    for metric in dict.fromkeys([*row.paper, *SHOWN.values(), *scores.rated]):
        if metric in scores.metrics:
            measured[metric] = scores.score(metric, cell.test)
    row.scores = measured
    if cell.searched:
        row.chosen = chosen_rows(cell.name, tried, cell.searched, done)

    if row.paper or cell.name == recipe.tested:
        barring, differing = differences(done, cell, recipe.models)
        if barring:
            row.differs = NOT_COMPARED + ", ".join(barring)
            row.paper = {}
        else:
            row.differs = ", ".join(differing)
    return row, Tested(scores, cell.test)


def _compared(
    tested: Tested, first: RecipeRow, row: RecipeRow, other: Tested | None
) -> Comparison | None:
    """The tested cell, tested in its way, with another or with a quoted number.

    `first` is the tested cell's row: only if nothing differs from the recipe, it is compared with
    quoted numbers.
    """
    metric = "wa" if "wa" in row.paper else "ua"
    if not tested.scores.classes:
        return None

    if other is not None:
        barred = any(line.differs.startswith(NOT_COMPARED) for line in (first, row))
        if barred or not other.scores.classes:
            return None
        return compare_cells(
            tested.scores,
            other.scores,
            metric,
            claimed(first.paper, row.paper, metric),
            tests=(tested.test, other.test),
        )

    unreal = caveat(tested.scores.results) is not None
    if not row.quoted or metric not in row.paper or unreal or first.differs:
        return None
    score = tested.scores.score(metric, tested.test)
    return against_quoted(score, row.paper[metric], row.paper.get(f"{metric}_std"))


def recipe_table(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> str:
    """The table that a sweep ends with.

    Cell · paper · ours with two spreads · difference · runs · tests · protocol.
    """
    rows = recipe_rows(recipe, runs)
    results = []
    for runs_of_cell in runs.values():
        results += [run.result for run in runs_of_cell if run.finished]
    unreal = caveat(results)
    conditions_of_rows = {row.conditions for row in rows}
    any_tested = any(row.compared for row in rows)

    title = recipe.title
    if len(conditions_of_rows) == 1:
        title = f"{recipe.title} ({', '.join(conditions_of_rows)})"
    pieces = [title, "", tabulated(_ours_beside_the_papers(recipe, rows, unreal is None)) + "\n"]

    chosen: list[Row] = []
    for row in rows:
        chosen += row.chosen
    if chosen:
        searched: list[str] = []
        for cell in recipe.cells:
            searched += cell.searched
        table = Table("chosen", "", chosen_columns(searched), chosen)
        pieces.append(f"chosen on dev, of so many that were tried:\n\n{tabulated(table)}\n")

    if recipe.note:
        pieces.append(recipe.note)
    pieces.append(
        "ours: pooled over the folds, mean ± standard deviation over the seeds, in percent; over "
        "folds: mean ± standard deviation of the folds’ means over the seeds; runs: folds × seeds; "
        "differences with their 95 % intervals; WA = accuracy, UA = mean recall"
    )
    if any_tested:
        pieces.append(
            f"tested cell: {recipe.tested} − the line’s; one-sided where the paper claims the "
            "better; Holm over the table"
        )
    if unreal:
        pieces.append(unreal)
    return "\n".join(pieces)


def _ours_beside_the_papers(recipe: Recipe, rows: Sequence[RecipeRow], meant: bool) -> Table:
    """The table itself; without differences where none are `meant`."""
    papers = [cell.paper or {} for cell in recipe.cells]
    papers += [quoted.paper for quoted in recipe.quoted]
    in_any_row: dict[str, None] = {}
    for row in rows:
        in_any_row.update(dict.fromkeys(row.scores))
    scored = list(in_any_row)
    rated = [metric for metric in scored if " " in metric]  # no percent
    metrics = _metrics_of(papers) or [metric for metric in scored if metric not in rated][:2]
    seeds = {cell.name: cell.written.seeds for cell in recipe.cells}

    any_paper = any(papers)
    any_tested = any(row.compared for row in rows)
    any_differs = any(row.differs for row in rows)
    same_conditions = len({row.conditions for row in rows}) == 1

    lines = []
    for row in rows:
        line: Row = {"cell": row.cell}
        numbers = beside(
            metrics,
            row.paper,
            row.scores,
            seeds.get(row.cell, 1),
            alike=not row.differs,
            meant=meant,
        )
        for heading, number in numbers.items():
            is_ours = heading.startswith("ours") or "over folds" in heading
            if any_paper or is_ours:
                line[heading] = number

        if "macro_f1" in scored:
            f1 = row.scores.get("macro_f1")
            line["ours macro-F1 %"] = f1.over_seeds if f1 else None
        for metric in rated:
            score = row.scores.get(metric)
            line[heading_of(metric)] = score.pooled if score else None

        line["runs"] = _runs(row)
        if any_tested:
            line |= _test(row)
        if any_differs:
            line["differs in"] = row.differs
        if not same_conditions:
            line["protocol"] = row.conditions
        lines.append(line)

    return Table(
        name="recipe",
        caption="",
        columns=[
            Column("cell", TEXT),
            *beside_columns(metrics),
            Column("ours macro-F1 %", PERCENT_WITH_DEVIATION),
            *columns_of(FINE, [heading_of(metric) for metric in rated]),
            Column("runs", TEXT),
            Column("tested cell’s difference", DIFFERENCE),
            *columns_of(P_VALUE, ["p", "Holm p"]),
            *columns_of(TEXT, ["test", "differs in", "protocol"]),
        ],
        rows=lines,
    )


def _metrics_of(papers: Sequence[Mapping[str, float]]) -> list[str]:
    """What the papers give, without the deviations."""
    metrics: dict[str, None] = {}
    for paper in papers:
        metrics.update(dict.fromkeys(name for name in paper if not name.endswith("_std")))
    return list(metrics)


def _runs(row: RecipeRow) -> str:
    """Folds × seeds, or how many of the runs are done."""
    if row.quoted:
        return ""
    if row.done != row.runs:
        return f"{row.done} of {row.runs}"
    score = row.scores.get("ua") or row.scores.get("ccc valence")
    return f"{score.folds} × {score.seeds}" if score else ""


def _test(row: RecipeRow) -> Row:
    test = row.compared
    return {
        "tested cell’s difference": test.difference if test else None,
        "p": test.p if test else None,
        "Holm p": row.holm_p,
        "test": test.about if test else None,
    }
