"""Tables on the terminal: the paper's numbers beside ours, with the protocol they were won under."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import mean_std, pooled
from .recipe import Recipe
from .runs import Run
from .statistics import Interval, against, bootstrap

NO_COMPARISON = "no comparison with the paper is meant"


@dataclass(frozen=True)
class Score:
    """One metric of one cell in percent: mean and standard deviation over n runs, and pooled over the folds."""

    mean: float
    std: float | None
    n: int
    pooled: float  # all folds' utterances taken together, then the mean over seeds


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
    p: float | None = None  # of a quoted row: one-sample t-test of the recipe's first cell against it


def conditions(result: Mapping[str, Any]) -> str:
    """Protocol, selection and labels, with a warning where a number is easier to win."""
    selected = (
        f"{result['select']} (epoch chosen on the TEST part)" if result["select"] == "best-test" else result["select"]
    )
    split = result["protocol"] if result["speaker_independent"] else f"{result['protocol']} (speaker-dependent)"
    return " · ".join((split, selected, result["labels"]))


def caveat(results: Iterable[Mapping[str, Any]]) -> str | None:
    """One line for tables whose numbers say nothing about people, else None."""
    results = list(results)
    found = []
    if names := sorted({name for result in results for name in result["random_weights"]}):
        found.append(f"random weights ({', '.join(names)})")
    if corpora := sorted({result["corpus"] for result in results if result["synthetic"]}):
        found.append(f"synthetic corpus ({', '.join(corpora)})")
    return f"{' and '.join(found)}: {NO_COMPARISON}" if found else None


def measure(results: Sequence[Mapping[str, Any]], metric: str, test: str = "both") -> Score:
    """One metric ("wa", "ua", "macro_f1", or a class name for its recall) of one cell's runs, in percent."""
    tested = [result["tests"][test] for result in results]
    values = [100 * value for scores in tested if (value := _value(scores, metric)) is not None]
    by_seed: dict[int, list[Mapping[str, Any]]] = {}
    for result, scores in zip(results, tested, strict=True):
        by_seed.setdefault(result["seed"], []).append(scores)
    together = [_value(pooled(folds, results[0]["classes"]), metric) for folds in by_seed.values()]
    mean, std = mean_std(values)
    return Score(mean, std, len(values), 100 * float(np.mean([value for value in together if value is not None])))


def _value(scores: Mapping[str, Any], metric: str) -> float | None:
    return scores[metric] if metric in scores else scores["per_class"].get(metric)


def recipe_rows(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    """The rows of a recipe's table, in its order; cells without a finished run say so."""
    rows = []
    for cell in recipe.cells:
        results = [run.result for run in runs[cell.name] if run.finished]
        metrics = list(dict.fromkeys([*_metrics(cell.paper or {}), "ua", "wa"]))
        found = {metric: measure(results, metric, cell.test) for metric in metrics} if results else {}
        where = conditions(results[0]) if results else "no run finished"
        rows.append(Row(cell.name, cell.paper or {}, found, len(runs[cell.name]), len(results), where))
    first = [run.result for run in runs[recipe.cells[0].name] if run.finished]
    for name, paper in recipe.quoted.items():
        p = None
        if len(first) > 1 and len({result["fold"] for result in first}) == 1 and "wa" in paper:
            p = against([100 * result["wa"] for result in first], paper["wa"]).p
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
    with_p = any(row.p is not None for row in rows)
    lines = [
        [row.cell, *(piece for metric in metrics for piece in _pieces(row, metric))]
        + [str(row.done) if row.done == row.runs else f"{row.done} of {row.runs}" if not row.quoted else ""]
        + ([f"{row.p:.2g}" if row.p is not None else ""] if with_p else [])
        + [row.conditions]
        for row in rows
    ]
    header += ["runs", *(["p (ours first cell)"] if with_p else []), "protocol"]
    table = tabulate(lines, header, tablefmt=tablefmt, disable_numparse=True)
    finished = [run.result for cell in runs.values() for run in cell if run.finished]
    notes = [
        recipe.note,
        "ours: mean ± standard deviation over the runs (fold × seed), in percent; WA = accuracy, UA = mean recall",
    ]
    return "\n".join([recipe.title, "", table, "", *filter(None, notes), *filter(None, [caveat(finished)])])


def _pieces(row: Row, metric: str) -> tuple[str, str, str]:
    paper, score = row.paper.get(metric), row.scores.get(metric)
    std = row.paper.get(f"{metric}_std")
    told = "–" if paper is None else f"{paper:.2f}" + (f" ± {std:.2f}" if std is not None else "")
    ours = "" if score is None else f"{score.mean:.2f}" + (f" ± {score.std:.2f}" if score.std is not None else "")
    return told, ours, f"{score.mean - paper:+.2f}" if score is not None and paper is not None else ""


def _metrics(paper: Mapping[str, float]) -> list[str]:
    return [name for name in paper if not name.endswith("_std")]


@dataclass(frozen=True)
class Summary:
    """What `ser train` ends with: the scores of one cell's runs."""

    wa: Score
    ua: Score
    macro_f1: Score
    per_class: Mapping[str, Score]
    confusion: list[list[int]]  # summed over all runs
    classes: Sequence[str]
    intervals: Mapping[str, Interval]  # "ua over utterances", … in percent; of the lowest seed's folds together
    tests: Mapping[str, Mapping[str, Score]]  # test → metric → score
    conditions: str
    caveat: str | None


def summarise(runs: Sequence[Run]) -> Summary:
    """The scores of the finished runs of one experiment, with bootstrap intervals over utterances and speakers."""
    results = [run.result for run in runs]
    classes = results[0]["classes"]
    return Summary(
        wa=measure(results, "wa"),
        ua=measure(results, "ua"),
        macro_f1=measure(results, "macro_f1"),
        per_class={name: measure(results, name) for name in classes if _occurs(results, name)},
        confusion=np.sum([result["confusion"] for result in results], axis=0).tolist(),
        classes=classes,
        intervals=_intervals(runs, classes),
        tests={test: {m: measure(results, m, test) for m in ("ua", "wa")} for test in results[0]["tests"]},
        conditions=conditions(results[0]),
        caveat=caveat(results),
    )


def _occurs(results: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(result["per_class"][name] is not None for result in results)


def _intervals(runs: Sequence[Run], classes: Sequence[str]) -> dict[str, Interval]:
    seed = min(run.result["seed"] for run in runs)
    tables = [run.predictions() for run in runs if run.result["seed"] == seed]
    columns = {
        name: [v for table in tables for v in table[name].to_pylist()] for name in ("truth", "predicted", "speaker")
    }
    truth, predicted = ([classes.index(name) for name in columns[key]] for key in ("truth", "predicted"))
    groupings: dict[str, list[str] | None] = {"utterances": None}
    if None not in columns["speaker"] and len(set(columns["speaker"])) > 1:
        groupings["speakers"] = columns["speaker"]
    found = {}
    for over, groups in groupings.items():
        for metric in ("ua", "wa"):
            interval = bootstrap(truth, predicted, len(classes), metric, groups)
            found[f"{metric} over {over}"] = Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)
    return found


def summary_text(summary: Summary) -> str:
    """A summary for the terminal."""
    from tabulate import tabulate

    def line(name: str, score: Score) -> list[str]:
        spread = f"± {score.std:.2f}" if score.std is not None else ""
        return [name, f"{score.pooled:.2f}", f"{score.mean:.2f} {spread}".strip(), str(score.n)]

    lines = [line("UA", summary.ua), line("WA", summary.wa), line("macro-F1", summary.macro_f1)]
    lines += [line(f"recall {name}", score) for name, score in summary.per_class.items()]
    lines += [line(f"UA, {test}", scores["ua"]) for test, scores in summary.tests.items() if test != "both"]
    table = tabulate(lines, ["%", "pooled over folds", "mean over runs", "runs"], disable_numparse=True)
    intervals = [f"{name}: {i.value:.2f} [{i.low:.2f}, {i.high:.2f}]" for name, i in summary.intervals.items()]
    told = f"{summary.conditions}\n95 % bootstrap interval of {'; '.join(intervals)}"
    return "\n".join([table, told, *filter(None, [summary.caveat])])
