"""Tables on the terminal: the paper's numbers beside ours, with the protocol that they were measured under."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from ser.errors import WrongUse
from ser.train.recipe import Recipe
from ser.train.run_folder import Run
from ser.train.scores import METRICS, CellScores, Score, caveat, paired_t

from .cells import Cell
from .paper import Differences, differences, quoted_spread
from .sections import beside, cautions, papers_table, results_table, significance_table
from .tables import Table, tabulated


@dataclass(frozen=True)
class Row:
    """One line of a recipe's table."""

    cell: str
    paper: Mapping[str, float]
    scores: Mapping[str, Score]  # empty: quoted, or not one run finished
    runs: int  # how many the cell needs
    done: int
    conditions: str  # "session-out · val · 4class"
    quoted: bool = False
    differs: str = ""  # from the recipe's cell: what does, or why there is no comparison and no `paper`
    p: float | None = None  # of a quoted row: one-sample t-test of the recipe's `tested` cell against it


def recipe_rows(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    """The rows of a recipe's table, in its order; cells without a finished run say so."""
    rows, tested = [], []
    for cell in recipe.cells:
        mine, paper = runs[cell.name], cell.paper or {}
        if not any(run.finished for run in mine):
            rows.append(Row(cell.name, paper, {}, len(mine), 0, "no run finished"))
            continue
        ours = CellScores(mine)
        asked, known = [*_metrics(paper), "ua", "wa"], {*METRICS, *ours.classes}
        found = {metric: ours.score(metric, cell.test) for metric in asked if metric in known}
        unlike = differences(ours.runs, cell, recipe.models) if paper else Differences(())
        paper = {} if unlike.barred else paper
        rows.append(Row(cell.name, paper, found, len(mine), len(ours.runs), ours.conditions, differs=str(unlike)))
        if cell.name == recipe.tested and not ours.caveat and not str(unlike):
            tested = [100 * result["wa"] for result in ours.results]
    for name, paper in recipe.quoted.items():
        p = paired_t(tested, paper["wa"]).p if len(tested) > 1 and "wa" in paper else None
        about = "; ".join(filter(None, ["quoted by the paper", recipe.footnotes.get(name)]))
        rows.append(Row(name, paper, {}, 0, 0, about, quoted=True, p=p))
    return rows


def recipe_table(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> str:
    """The table that a sweep ends with: cell · paper · ours (mean ± std over n runs) · difference · protocol."""
    rows = recipe_rows(recipe, runs)
    papers = [*(cell.paper or {} for cell in recipe.cells), *recipe.quoted.values()]
    metrics = list(dict.fromkeys(metric for paper in papers for metric in _metrics(paper))) or ["ua", "wa"]
    warning = caveat(run.result for cell in runs.values() for run in cell if run.finished)
    lines = []
    for row in rows:
        line: dict[str, Any] = {"cell": row.cell}
        for metric in metrics:
            name, ours = metric.upper() if metric in ("ua", "wa") else metric, row.scores.get(metric)
            line |= beside(name, quoted_spread(row.paper, metric), (ours.mean, ours.std) if ours else None, not warning)
        line["runs"] = "" if row.quoted else str(row.done) if row.done == row.runs else f"{row.done} of {row.runs}"
        line |= {"p": row.p} if any(row.p is not None for row in rows) else {}
        line |= {"differs in": row.differs} if any(row.differs for row in rows) else {}
        lines.append({**line, "protocol": row.conditions})
    about = "ours: mean ± standard deviation over the runs (fold × seed), in percent; WA = accuracy, UA = mean recall"
    table = tabulated(Table("recipe", recipe.title, lines))
    return "\n".join([recipe.title, "", table, "", *filter(None, [recipe.note, about, warning])])


def _metrics(paper: Mapping[str, float]) -> list[str]:
    return [name for name in paper if not name.endswith("_std")]


def report_text(cells: Sequence[Cell], unfinished: Sequence[Run], paired: bool = False) -> str:
    """What `ser report` prints: each cell's scores, the papers' numbers beside them, and the paired tests if asked.

    Raises `WrongUse` if tests are asked for and there is one cell only.
    """
    if paired and len(cells) < 2:
        raise WrongUse("--paired compares cells, and these runs are one cell; name the runs of another one too")
    pieces = [fill(caution, 110) for caution in cautions(cells)]
    tables = [results_table(cells), papers_table(cells), *([significance_table(cells)] if paired else [])]
    for table in filter(None, tables):
        pieces += [table.caption, tabulated(table), *([fill(table.note, 110)] if table.note else [])]
    if unfinished:
        pieces.append(f"{len(unfinished)} runs are not finished and are left out")
    return "\n\n".join(pieces)
