"""Tables on the terminal: the paper's numbers beside ours, with the protocol they were won under."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from ser.errors import WrongUse
from ser.train.recipe import Recipe
from ser.train.run_folder import Run
from ser.train.scores import Score, against, caveat, conditions, measure


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
    rows = []
    for cell in recipe.cells:
        results = [run.result for run in runs[cell.name] if run.finished]
        metrics = list(dict.fromkeys([*_metrics(cell.paper or {}), "ua", "wa"]))
        found = {metric: measure(results, metric, cell.test) for metric in metrics} if results else {}
        where = conditions(results[0]) if results else "no run finished"
        rows.append(Row(cell.name, cell.paper or {}, found, len(runs[cell.name]), len(results), where))
    tested = []
    if recipe.tested:
        results = [run.result for run in runs[recipe.tested] if run.finished]
        tested = [] if caveat(results) else [100 * result["wa"] for result in results]
    for name, paper in recipe.quoted.items():
        p = against(tested, paper["wa"]).p if len(tested) > 1 and "wa" in paper else None
        rows.append(Row(name, paper, {}, 0, 0, "quoted by the paper", quoted=True, p=p))
    return rows


def recipe_table(recipe: Recipe, runs: Mapping[str, Sequence[Run]], tablefmt: str = "simple") -> str:
    """The table that a sweep ends with: cell · paper · ours (mean ± std over n runs) · difference · protocol."""
    from tabulate import tabulate

    rows = recipe_rows(recipe, runs)
    metrics = list(dict.fromkeys(metric for row in rows for metric in _metrics(row.paper))) or ["ua", "wa"]
    header = ["cell"]
    for metric in metrics:
        name = metric.upper() if metric in ("ua", "wa") else metric
        header += [f"paper {name}", f"ours {name}", "diff"]
    finished = [run.result for cell in runs.values() for run in cell if run.finished]
    warning = caveat(finished)
    with_p = any(row.p is not None for row in rows)
    lines = [
        [row.cell, *(piece for metric in metrics for piece in _pieces(row, metric, compared=warning is None))]
        + ["" if row.quoted else str(row.done) if row.done == row.runs else f"{row.done} of {row.runs}"]
        + ([f"{row.p:.2g}" if row.p is not None else ""] if with_p else [])
        + [row.conditions]
        for row in rows
    ]
    header += ["runs", *(["p"] if with_p else []), "protocol"]
    table = tabulate(lines, header, tablefmt=tablefmt, disable_numparse=True)
    notes = [
        recipe.note,
        "ours: mean ± standard deviation over the runs (fold × seed), in percent; WA = accuracy, UA = mean recall",
    ]
    return "\n".join([recipe.title, "", table, "", *filter(None, [*notes, warning])])


def report_text(runs: Sequence[Run], paired: bool = False) -> str:
    """What `ser report` prints: each cell's scores, the papers' numbers beside them, and the paired tests if asked.

    Raises `WrongUse` if no run is finished, or if tests are asked for and there is one cell only.
    """
    from tabulate import tabulate

    from . import results, significance
    from .cells import finished_cells
    from .tables import shown

    cells, unfinished = finished_cells(runs)
    tables = [results.table(cells), results.papers_table(cells)]
    if paired:
        tested = significance.table(cells)
        if tested is None:
            raise WrongUse("--paired compares cells, and these runs are one cell; name the runs of another one too")
        tables.append(tested)
    pieces = ["\n".join(wrap(caution, 110)) for caution in results.cautions(cells)]
    for table in filter(None, tables):
        lines = [[shown(v, c.kind) for v, c in zip(row, table.columns, strict=True)] for row in table.rows]
        sides = ["left" if column.kind == "text" else "right" for column in table.columns]
        heads = [column.name for column in table.columns]
        body = tabulate(lines, heads, tablefmt="simple", disable_numparse=True, colalign=sides)
        pieces += [table.caption, body, *(["\n".join(wrap(table.note, 110))] if table.note else [])]
    if unfinished:
        pieces.append(f"{len(unfinished)} runs are not finished and are left out")
    return "\n\n".join(pieces)


def _pieces(row: Row, metric: str, compared: bool) -> tuple[str, str, str]:
    paper, score = row.paper.get(metric), row.scores.get(metric)
    std = row.paper.get(f"{metric}_std")
    told = "–" if paper is None else f"{paper:.2f}" + (f" ± {std:.2f}" if std is not None else "")
    ours = "" if score is None else f"{score.mean:.2f}" + (f" ± {score.std:.2f}" if score.std is not None else "")
    if score is None or paper is None:
        return told, ours, ""
    return told, ours, f"{score.mean - paper:+.2f}" if compared else "not meant"


def _metrics(paper: Mapping[str, float]) -> list[str]:
    return [name for name in paper if not name.endswith("_std")]
