"""What the runs of one experiment come to: pooled, mean and deviation, intervals, and under which conditions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .run_folder import Run


def confusion(truth: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """C [K, K] int64: rows are true classes, columns predicted ones."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(truth, predicted, labels=list(range(classes)))


def confusions(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """C [R, K, K] of many predictions [R, n] of the same utterances, whose true classes are [n].

    As `confusion`, for what is looked at after every epoch: that takes milliseconds, and its import most of a second.
    """
    cells = truth * classes + predicted + np.arange(len(predicted))[:, None] * classes**2
    return np.bincount(cells.ravel(), minlength=len(predicted) * classes**2).reshape(-1, classes, classes)


def weighted_accuracy(matrix: np.ndarray) -> float:
    """WA = Σ_k C[k, k] / n: the share of utterances that are right, so classes weigh by their size."""
    return float(np.trace(matrix) / matrix.sum())


def recalls(matrix: np.ndarray) -> list[float | None]:
    """C[k, k] / Σ_j C[k, j] of each class; None where the class has no utterance."""
    return [float(row[k] / row.sum()) if row.sum() else None for k, row in enumerate(matrix)]


def unweighted_accuracy(matrix: np.ndarray) -> float:
    """UA = mean over the classes that occur of C[k, k] / Σ_j C[k, j]: every class weighs the same."""
    return float(np.mean([recall for recall in recalls(matrix) if recall is not None]))


def scores(truth: Sequence[int], predicted: Sequence[int], classes: Sequence[str]) -> dict[str, Any]:
    """All scores of one set of predictions.

    `wa`, `ua` as above; `macro_f1` and `weighted_f1` are the means of F1_k = 2 C[k, k] / (Σ_j C[k, j] + Σ_j C[j, k])
    over the classes that occur, even or weighted by their size; `per_class` the recalls by name; `confusion` C.
    """
    from sklearn.metrics import f1_score

    matrix = confusion(truth, predicted, len(classes))
    present = np.flatnonzero(matrix.sum(axis=1)).tolist()
    return {
        "wa": weighted_accuracy(matrix),
        "ua": unweighted_accuracy(matrix),
        "macro_f1": float(f1_score(truth, predicted, labels=present, average="macro", zero_division=0)),
        "weighted_f1": float(f1_score(truth, predicted, labels=present, average="weighted", zero_division=0)),
        "per_class": dict(zip(classes, recalls(matrix), strict=True)),
        "confusion": matrix.tolist(),
        "n": int(matrix.sum()),
    }


def pooled(results: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """The same scores of all folds' utterances taken together, from the folds' confusion matrices, which add up."""
    matrix = np.sum([np.asarray(result["confusion"]) for result in results], axis=0)
    sizes = matrix.sum(axis=1)
    present = sizes > 0
    f1 = 2 * matrix.diagonal() / np.maximum(sizes + matrix.sum(axis=0), 1)
    return {
        "wa": weighted_accuracy(matrix),
        "ua": unweighted_accuracy(matrix),
        "macro_f1": float(f1[present].mean()),
        "weighted_f1": float(f1 @ sizes / sizes.sum()),
        "per_class": dict(zip(classes, recalls(matrix), strict=True)),
        "confusion": matrix.tolist(),
        "n": int(matrix.sum()),
    }


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n − 1); None for the deviation of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


SCORES: dict[str, Callable[[np.ndarray], float]] = {"wa": weighted_accuracy, "ua": unweighted_accuracy}


@dataclass(frozen=True)
class Interval:
    """A score with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(
    truth: Sequence[int],
    predicted: Sequence[int],
    classes: int,
    score: Literal["wa", "ua"],
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of a score: 2.5 and 97.5 % of its values on `resamples` drawn samples.

    Draws utterances with replacement, or whole groups where `groups` [n] names one (such as the speaker) for each
    utterance: utterances of a speaker are alike, so the interval over speakers is the wider and the honest one.
    """
    names = np.arange(len(truth)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    # One confusion matrix per group [g, K, K]: a resample is a sum of matrices, whatever is drawn.
    matrices = np.zeros((int(names.max()) + 1, classes, classes))
    np.add.at(matrices, (names, np.asarray(truth), np.asarray(predicted)), 1)
    rng = np.random.default_rng(seed)
    flat = matrices.reshape(len(matrices), -1)
    drawn = rng.multinomial(len(matrices), np.full(len(matrices), 1 / len(matrices)), size=resamples) @ flat
    values = [SCORES[score](matrix) for matrix in drawn.reshape(-1, classes, classes)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(SCORES[score](confusion(truth, predicted, classes)), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """A paired test: `difference` = first − second; `p` of the null hypothesis that the two do not differ."""

    test: str
    difference: float
    p: float
    n: int


def mcnemar(truth: Sequence[int], first: Sequence[int], second: Sequence[int]) -> Comparison:
    """McNemar's exact test (1947) on the utterances that just one of two cells gets right.

    p = min(1, 2 · P(X ≤ min(b, c))), X ~ Binomial(b + c, ½), with b right in `first` alone and c in `second` alone.
    """
    from scipy.stats import binomtest

    right_first = np.asarray(first) == np.asarray(truth)
    right_second = np.asarray(second) == np.asarray(truth)
    b, c = int(np.sum(right_first & ~right_second)), int(np.sum(~right_first & right_second))
    p = float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0
    return Comparison("McNemar", (b - c) / len(right_first), p, len(right_first))


def paired_t(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Student's t on the differences of scores that share seed and fold; needs two pairs or more."""
    from scipy.stats import ttest_rel

    differences = np.asarray(first) - np.asarray(second)
    if len(differences) < 2:
        raise ValueError("a paired t-test needs two pairs of scores or more")
    p = float(ttest_rel(first, second).pvalue) if np.any(differences) else 1.0
    return Comparison("paired t", float(differences.mean()), p, len(differences))


def wilcoxon(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Wilcoxon's signed-rank test on the differences of scores that share seed and fold."""
    from scipy.stats import wilcoxon as signed_rank

    differences = np.asarray(first) - np.asarray(second)
    p = float(signed_rank(differences).pvalue) if np.any(differences) else 1.0
    return Comparison("Wilcoxon", float(differences.mean()), p, len(differences))


def against(scores: Sequence[float], quoted: float) -> Comparison:
    """Student's t of the seeds' scores against one number that somebody else published (Perspective Table 4)."""
    from scipy.stats import ttest_1samp

    differences = np.asarray(scores) - quoted
    if np.ptp(differences) == 0:  # the deviation is zero, so t is undefined
        return Comparison("one-sample t", float(differences[0]), 1.0 if differences[0] == 0 else 0.0, len(differences))
    return Comparison(
        "one-sample t", float(differences.mean()), float(ttest_1samp(scores, quoted).pvalue), len(differences)
    )


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
