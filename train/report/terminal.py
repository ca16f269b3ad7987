"""Tables on the terminal: the paper's numbers beside ours, with the protocol that they were measured under."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ser.errors import WrongUse
from ser.train.recipe import Recipe, choose, chosen_rows
from ser.train.run_folder import Run
from ser.train.scores import SHOWN

from .cell_scores import CellScores, Score, caveat, named
from .paper import beside, claimed, differences
from .significance import Comparison, against_quoted, compare, holm
from .tables import described, tabulated, text_of


@dataclass(frozen=True)
class Row:
    """One line of a recipe's table."""

    cell: str
    paper: Mapping[str, float]
    scores: Mapping[str, Score]  # empty: quoted, or not one run finished
    runs: int  # how many the cell needs; of a search, how many it chooses
    done: int
    conditions: str  # "session-out · val · 4class"
    quoted: bool = False
    differs: str = ""  # from the recipe's cell: what does, or why there is no comparison and no `paper`
    compared: Comparison | None = None  # the recipe's `tested` cell with this one
    holm_p: float | None = None  # over the table
    folders: Sequence[str] = ()
    chosen: Sequence[dict[str, Any]] = ()  # what a search chose, by fold and seed


def recipe_rows(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    """The rows of a recipe's table, in its order; cells without a finished run say so."""
    rows, finished = [], dict[str, tuple[CellScores, str]]()
    for cell in recipe.cells:
        mine, paper = runs[cell.name], cell.paper or {}
        tried, needed = len(cell.candidates), len(mine) // len(cell.candidates)
        mine = choose(mine[number::needed] for number in range(needed)) if cell.over else mine
        folders = [str(run.path) for run in mine]
        if not any(run.finished for run in mine):
            why = f"no fold has all {tried} candidates finished" if cell.over else "no run finished"
            rows.append(Row(cell.name, paper, {}, needed, 0, why, folders=folders))
            continue
        ours = CellScores(mine)
        if cell.test not in ours.tests:
            raise WrongUse(f"cell '{cell.name}': its model has no test '{cell.test}', only {', '.join(ours.tests)}")
        finished[cell.name] = ours, cell.test
        asked = [*_metrics(paper), *SHOWN.values(), *ours.rated]
        found = {metric: ours.score(metric, cell.test) for metric in asked if metric in ours.metrics}
        meant = paper or cell.name == recipe.tested
        barred, others = differences(ours.runs, cell, recipe.models) if meant else ((), ())
        about, paper = ", ".join(others), {} if barred else paper
        about = f"not compared: {', '.join(barred)}" if barred else about
        chosen = chosen_rows(cell.name, tried, cell.over, ours.runs) if cell.over else ()
        about_runs = needed, len(ours.runs), ours.conditions
        rows.append(Row(cell.name, paper, found, *about_runs, differs=about, folders=folders, chosen=chosen))
    for other in recipe.quoted:
        about = "; ".join(filter(None, ["quoted by the paper", other.footnote]))
        rows.append(Row(other.name, other.paper, {}, 0, 0, about, quoted=True))
    if recipe.tested in finished:
        first = next(row for row in rows if row.cell == recipe.tested)
        tested = finished.pop(recipe.tested)
        rows = [replace(row, compared=_compared(tested, first, row, finished.get(row.cell))) for row in rows]
    family = holm([row.compared.p if row.compared else None for row in rows])
    return [replace(row, holm_p=p) for row, p in zip(rows, family, strict=True)]


def _compared(
    tested: tuple[CellScores, str], first: Row, row: Row, other: tuple[CellScores, str] | None
) -> Comparison | None:
    """The tested cell, tested in its way, with another or with a quoted number.

    `first` is the tested cell's row: only if nothing differs from the recipe, it is compared with quoted numbers.
    """
    (ours, test), metric = tested, "wa" if "wa" in row.paper else "ua"
    if not ours.classes or (other and not other[0].classes):
        return None
    if other:
        claim = claimed(first.paper, row.paper, metric)
        barred = any(one.differs.startswith("not compared") for one in (first, row))
        return None if barred else compare(ours, other[0], metric, claim, tests=(test, other[1]))
    if not row.quoted or metric not in row.paper or ours.caveat or first.differs:
        return None
    return against_quoted(ours.score(metric, test), row.paper[metric], row.paper.get(f"{metric}_std"))


def recipe_table(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> str:
    """The table that a sweep ends with: cell · paper · ours with two spreads · difference · runs · tests · protocol."""
    rows = recipe_rows(recipe, runs)
    papers = [*(cell.paper or {} for cell in recipe.cells), *(other.paper for other in recipe.quoted)]
    every = list(dict.fromkeys(metric for row in rows for metric in row.scores))
    metrics = list(dict.fromkeys(metric for paper in papers for metric in _metrics(paper)))
    metrics = metrics or [metric for metric in every if " " not in metric][:2]
    rated = [metric for metric in every if " " in metric]  # no percent
    warning = caveat(run.result for cell in runs.values() for run in cell if run.finished)
    seeds = {cell.name: cell.written.seeds for cell in recipe.cells}
    tested, differing = any(row.compared for row in rows), any(row.differs for row in rows)
    lines, about = [], {row.conditions for row in rows}
    title = f"{recipe.title} ({', '.join(about)})" if len(about) == 1 else recipe.title  # a terminal is narrow
    for row in rows:
        of_paper = beside(metrics, row.paper, row.scores, seeds.get(row.cell, 1), not row.differs, not warning)
        shown = [name for name in of_paper if any(papers) or name.startswith("ours") or "over folds" in name]
        line: dict[str, Any] = {"cell": row.cell, **{name: of_paper[name] for name in shown}}
        if "macro_f1" in every:
            line["ours macro-F1 %"] = (f1 := row.scores.get("macro_f1")) and f1.over_seeds
        line |= {named(metric): (score := row.scores.get(metric)) and score.pooled for metric in rated}
        first = row.scores.get("ua") or row.scores.get("ccc valence")
        shape = f"{first.folds} × {first.seeds}" if first else ""
        line["runs"] = "" if row.quoted else shape if row.done == row.runs else f"{row.done} of {row.runs}"
        if tested:
            test = row.compared
            line |= {"tested cell’s difference": test and test.difference, "p": test and test.p}
            line |= {"Holm p": row.holm_p, "test": test and test.about}
        line |= {"differs in": row.differs} if differing else {}
        lines.append(line | ({"protocol": row.conditions} if len(about) > 1 else {}))
    pieces: list[str | None] = [tabulated(described("recipe", lines)) + "\n"]
    if picked := [line for row in rows for line in row.chosen]:
        pieces.append(f"chosen on dev, of so many that were tried:\n\n{tabulated(described('chosen', picked))}\n")
    pieces += [recipe.note, text_of("recipe", "note", {}), text_of("recipe", "tested", vars(recipe)) * tested, warning]
    return "\n".join([title, "", *filter(None, pieces)])


def _metrics(paper: Mapping[str, float]) -> list[str]:
    return [name for name in paper if not name.endswith("_std")]
