"""Tables on the terminal: the paper's numbers beside ours, with the protocol that they were measured under."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from ser.errors import WrongUse
from ser.train.recipe import Recipe
from ser.train.run_folder import Run
from ser.train.scores import METRICS, CellScores, Score, against, caveat

from .cells import Cell
from .sections import cautions, papers_table, results_table, significance_table
from .tables import shown, tabulated


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
        known = [
            metric for metric in dict.fromkeys([*_metrics(paper), "ua", "wa"]) if metric in {*METRICS, *ours.classes}
        ]
        found = {metric: ours.score(metric, cell.test) for metric in known}
        rows.append(Row(cell.name, paper, found, len(mine), len(ours.runs), ours.conditions))
        if cell.name == recipe.tested and not ours.caveat:
            tested = [100 * result["wa"] for result in ours.results]
    for name, paper in recipe.quoted.items():
        p = against(tested, paper["wa"]).p if len(tested) > 1 and "wa" in paper else None
        rows.append(Row(name, paper, {}, 0, 0, "quoted by the paper", quoted=True, p=p))
    return rows


def recipe_table(recipe: Recipe, runs: Mapping[str, Sequence[Run]], tablefmt: str = "simple") -> str:
    """The table that a sweep ends with: cell · paper · ours (mean ± std over n runs) · difference · protocol."""
    from tabulate import tabulate

    rows = recipe_rows(recipe, runs)
    metrics = list(dict.fromkeys(metric for row in rows for metric in _metrics(row.paper))) or ["ua", "wa"]
    warning = caveat(run.result for cell in runs.values() for run in cell if run.finished)
    with_p = any(row.p is not None for row in rows)
    header = ["cell"]
    for name in (metric.upper() if metric in ("ua", "wa") else metric for metric in metrics):
        header += [f"paper {name}", f"ours {name}", "diff"]
    header += ["runs", *(["p"] if with_p else []), "protocol"]
    lines = []
    for row in rows:
        line = [row.cell, *(piece for metric in metrics for piece in _pieces(row, metric, warning is None))]
        line.append("" if row.quoted else str(row.done) if row.done == row.runs else f"{row.done} of {row.runs}")
        line += [f"{row.p:.2g}" if row.p is not None else ""] if with_p else []
        lines.append([*line, row.conditions])
    table = tabulate(lines, header, tablefmt=tablefmt, disable_numparse=True)
    about = "ours: mean ± standard deviation over the runs (fold × seed), in percent; WA = accuracy, UA = mean recall"
    return "\n".join([recipe.title, "", table, "", *filter(None, [recipe.note, about, warning])])


def _pieces(row: Row, metric: str, compared: bool) -> tuple[str, str, str]:
    paper, score = row.paper.get(metric), row.scores.get(metric)
    quoted = "–" if paper is None else shown((paper, row.paper.get(f"{metric}_std")), "spread")
    ours = "" if score is None else shown((score.mean, score.std), "spread")
    if score is None or paper is None:
        return quoted, ours, ""
    return quoted, ours, f"{score.mean - paper:+.2f}" if compared else "not meant"


def _metrics(paper: Mapping[str, float]) -> list[str]:
    return [name for name in paper if not name.endswith("_std")]


def report_text(cells: Sequence[Cell], unfinished: Sequence[Run], paired: bool = False) -> str:
    """What `ser report` prints: each cell's scores, the papers' numbers beside them, and the paired tests if asked.

    Raises `WrongUse` if tests are asked for and there is one cell only.
    """
    tables = [results_table(cells), papers_table(cells), significance_table(cells) if paired else None]
    if paired and len(cells) < 2:
        raise WrongUse("--paired compares cells, and these runs are one cell; name the runs of another one too")
    pieces = [fill(caution, 110) for caution in cautions(cells)]
    for table in filter(None, tables):
        pieces += [table.caption, tabulated(table), *([fill(table.note, 110)] if table.note else [])]
    if unfinished:
        pieces.append(f"{len(unfinished)} runs are not finished and are left out")
    return "\n\n".join(pieces)
