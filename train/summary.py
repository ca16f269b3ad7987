"""What the runs of one experiment come to: pooled, mean and deviation, intervals, and under which conditions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import mean_std, pooled
from .runs import Run
from .statistics import Interval, bootstrap

NO_COMPARISON = "no comparison with the paper is meant"


@dataclass(frozen=True)
class Score:
    """One metric of one cell in percent: mean and standard deviation over n runs, and pooled over the folds."""

    mean: float
    std: float | None
    n: int
    pooled: float  # all folds' utterances taken together, then the mean over seeds


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
    left_out: Mapping[str, int]  # why → utterances that stand in no part
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
        left_out=left_out(results),
        caveat=caveat(results),
    )


def left_out(results: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Why utterances stand in no part → how many; of reasons that differ from fold to fold the most."""
    found: dict[str, int] = {}
    for result in results:
        for why, which in result["left_out"].items():
            count = len(which) if isinstance(which, list) else which
            why = "shares dialogues with the test speaker" if why.startswith("shares dialogues") else why
            found[why] = max(found.get(why, 0), count)
    return found


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
    absent = ", ".join(f"{count} ({why})" for why, count in summary.left_out.items())
    return "\n".join([table, told, *([f"left out: {absent}"] if absent else []), *filter(None, [summary.caveat])])
