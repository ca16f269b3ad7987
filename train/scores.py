"""Every score, interval and test: the only place that computes them, and every table, page and line takes them here.

A score is pooled over the folds of one seed, whose confusion matrices add up, and then averaged over the seeds. The
mean ± standard deviation over the single runs stands beside it, under that name. Axis letters:

    R  runs            S  seeds           K  classes
    g  groups drawn by the bootstrap      B  resamples
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ser.errors import CorruptStore, WrongUse, unknown

from .run_folder import Run

RESAMPLES = 2000
SPEAKERS = 8  # from which an interval over speakers is the default
METRICS = ("wa", "ua", "macro_f1", "weighted_f1")
AT_A_TIME = 50  # resamples drawn at once, so that memory stays small for a large corpus
NO_COMPARISON = "no comparison with the paper is meant"


def confusions(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """C `[R, K, K]` of the predictions `[R, n]` of the same utterances: rows are true classes `[n]`, columns predicted.

    >>> confusions(np.array([0, 0, 1]), np.array([[0, 1, 1]]), 2).tolist()
    [[[1, 1], [0, 1]]]
    """
    cells = truth * classes + predicted + np.arange(len(predicted))[:, None] * classes**2
    return np.bincount(cells.ravel(), minlength=len(predicted) * classes**2).reshape(-1, classes, classes)


def metrics(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of one matrix C or many, `[…, K, K]` → `[…]` in [0, 1]; NaN where there is nothing to count.

    recalls      `[…, K]`: C[k, k] / Σ_j C[k, j]; NaN for a class without an utterance
    wa           Σ_k C[k, k] / n: the share of utterances that are right, so classes weigh by their size
    ua           the mean recall of the classes that occur: every class weighs the same
    macro_f1     the mean over the classes that occur of F1_k = 2 C[k, k] / (Σ_j C[k, j] + Σ_j C[j, k])
    weighted_f1  the mean of F1_k, weighted by the classes' sizes

    >>> {name: values.round(3).tolist() for name, values in metrics(np.array([[9, 0], [1, 0]])).items()}
    {'recalls': [1.0, 0.0], 'wa': 0.9, 'ua': 0.5, 'macro_f1': 0.474, 'weighted_f1': 0.853}
    """

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.where(below > 0, above / np.maximum(below, 1), np.nan)

    sizes, right = matrix.sum(-1), np.diagonal(matrix, axis1=-2, axis2=-1)  # […, K]
    n, present = sizes.sum(-1), (sizes > 0).sum(-1)
    recalls, f1 = ratio(right, sizes), np.where(sizes > 0, ratio(2 * right, sizes + matrix.sum(-2)), 0)
    return {
        "recalls": recalls,
        "wa": ratio(right.sum(-1), n),
        "ua": ratio(np.nan_to_num(recalls).sum(-1), present),
        "macro_f1": ratio(f1.sum(-1), present),
        "weighted_f1": ratio((f1 * sizes).sum(-1), n),
    }


def scores(truth: Sequence[int], predicted: Sequence[int], classes: Sequence[str]) -> dict[str, Any]:
    """All scores of one set of predictions, as a run's result.json holds them.

    `METRICS`; `per_class`, the recalls by name, None for a class that does not occur; `confusion` C; `n`.

    >>> scores([0, 0, 1], [0, 1, 1], ("ang", "hap", "sad"))["per_class"]
    {'ang': 0.5, 'hap': 1.0, 'sad': None}
    """
    [matrix] = confusions(np.asarray(truth), np.asarray(predicted)[None], len(classes))
    found = metrics(matrix)
    recalls = [None if np.isnan(recall) else recall for recall in found["recalls"].tolist()]
    return {
        **{name: float(found[name]) for name in METRICS},
        "per_class": dict(zip(classes, recalls, strict=True)),
        "confusion": matrix.tolist(),
        "n": int(matrix.sum()),
    }


@dataclass(frozen=True)
class Interval:
    """The ends of a score's 95 % interval, in percent, and what was drawn for it: "speakers" or "utterances"."""

    low: float
    high: float
    over: str


@dataclass(frozen=True)
class Score:
    """One metric of one cell in percent."""

    pooled: float  # over the folds of a seed, then the mean over the seeds: the score
    mean: float  # over the n runs
    std: float | None  # sample deviation over the runs; None for one
    n: int  # runs


class CellScores:
    """The scores of the finished runs of one cell, which are its folds × seeds.

    Reads the result.json of each; predictions only when an interval is asked for. A metric is "wa", "ua", "macro_f1",
    "weighted_f1", or the name of a class for its recall. Raises `WrongUse` if no run is finished.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = [run for run in runs if run.finished]
        if not self.runs:
            raise WrongUse(f"none of these {len(runs)} runs is finished; the same command with --resume goes on")
        self.results = [run.result for run in self.runs]
        self._seeds = np.array([result["seed"] for result in self.results])
        self.classes: list[str] = self.results[0]["classes"]
        for run in self.runs:
            if run.result["classes"] != self.classes:
                raise CorruptStore(f"{run.path}: has other classes than the runs beside it; train the run again")
        tests = self.results[0]["tests"]
        self.tests = [test for test in tests if all(test in result["tests"] for result in self.results)]
        self._resampled: dict[tuple[str, str], np.ndarray] = {}

    def score(self, metric: str, test: str = "both") -> Score:
        """The metric with the model tested in that way; NaN for the recall of a class that does not occur."""
        matrices = self._matrices(test)
        own = self._measure(metric, matrices)  # [R]
        own = own[~np.isnan(own)]
        if not len(own):
            return Score(np.nan, np.nan, None, 0)
        by_seed = self._measure(metric, np.stack([matrices[self._seeds == s].sum(0) for s in np.unique(self._seeds)]))
        std = float(np.std(own, ddof=1)) if len(own) > 1 else None
        return Score(float(np.nanmean(by_seed)), float(own.mean()), std, len(own))

    def confusion(self, test: str = "both") -> np.ndarray:
        """C `[K, K]`, summed over the runs."""
        return self._matrices(test).sum(0)

    def interval(self, metric: str, over: str | None = None, test: str = "both") -> Interval | None:
        """The percentile bootstrap interval (Efron 1979) of the pooled score: 2.5 and 97.5 % of its resampled values.

        Draws utterances with replacement, or whole speakers: those of a speaker are alike, so the interval over
        speakers is the wider and the honest one. It is the default where every utterance names its speaker and there
        are `SPEAKERS` or more; of fewer, there are too few different draws. One draw is applied to all seeds at once,
        each resample is scored like the score itself.
        None where speakers are asked for and not known, and for the recall of a class that does not occur.
        """
        over = over or self.drawn[0]
        if over not in self.drawn:
            return None
        if (over, test) not in self._resampled:
            self._resampled[over, test] = self._resample(over, test)
        values = self._measure(metric, self._resampled[over, test])  # [B, S]
        values = values[~np.isnan(values).all(1)]
        if not len(values):
            return None
        low, high = np.quantile(np.nanmean(values, 1), [0.025, 0.975])
        return Interval(float(low), float(high), over)

    @cached_property
    def drawn(self) -> list[str]:
        """What `interval` can draw, its default first."""
        speakers = set(self._column("speaker"))
        if None in speakers or len(speakers) < 2:
            return ["utterances"]
        return ["speakers", "utterances"] if len(speakers) >= SPEAKERS else ["utterances", "speakers"]

    @property
    def conditions(self) -> str:
        """Protocol, selection and labels, with a warning where a number is easier to win."""
        first = self.results[0]
        selected = "best-test (epoch chosen on the TEST part)" if first["select"] == "best-test" else first["select"]
        split = first["protocol"] if first["speaker_independent"] else f"{first['protocol']} (speaker-dependent)"
        return " · ".join((split, selected, first["labels"]))

    @property
    def caveat(self) -> str | None:
        """One line where the scores say nothing about people, else None."""
        return caveat(self.results)

    @property
    def left_out(self) -> dict[str, int]:
        """Why utterances stand in no part → how many; the most of any fold where the folds differ."""
        found: dict[str, int] = {}
        for why, which in (item for result in self.results for item in result["left_out"].items()):
            why = "shares dialogues with the test speaker" if why.startswith("shares dialogues") else why
            found[why] = max(found.get(why, 0), len(which) if isinstance(which, list) else which)
        return found

    def to_json(self) -> dict[str, Any]:
        """Pooled WA, UA and macro-F1 with the intervals of the first two, in percent, by "ua over speakers", …"""
        pairs = [(metric, over) for over in sorted(self.drawn, reverse=True) for metric in ("ua", "wa")]
        intervals = {f"{metric} over {over}": self.interval(metric, over) for metric, over in pairs}
        return {
            **{metric: self.score(metric).pooled for metric in ("wa", "ua", "macro_f1")},
            "intervals": {name: [ends.low, ends.high] for name, ends in intervals.items() if ends},
        }

    @cached_property
    def _tables(self) -> list[Any]:
        return [run.predictions() for run in self.runs]

    def _column(self, name: str) -> list[Any]:
        return [value for table in self._tables for value in table[name].to_pylist()]

    def _matrices(self, test: str) -> np.ndarray:
        """C `[R, K, K]` of the runs."""
        if test not in self.tests:
            raise unknown("test", test, self.tests)
        return np.array([result["tests"][test]["confusion"] for result in self.results])

    def _measure(self, metric: str, matrices: np.ndarray) -> np.ndarray:
        """The metric of C `[…, K, K]` in percent, `[…]`."""
        if metric not in METRICS and metric not in self.classes:
            raise unknown("metric", metric, [*METRICS, *self.classes])
        found = metrics(matrices)
        return 100 * (found[metric] if metric in METRICS else found["recalls"][..., self.classes.index(metric)])

    def _resample(self, over: str, test: str) -> np.ndarray:
        """C `[B, S, K, K]`, each of as many groups as there are, drawn with replacement."""
        names, group = np.unique(self._column("speaker" if over == "speakers" else "id"), return_inverse=True)
        number = {name: k for k, name in enumerate(self.classes)}
        truth = np.array([number[name] for name in self._column("truth")])
        predicted = np.argmax(self._column("probabilities" if test == "both" else f"probabilities {test}"), 1)
        seeds, seed = np.unique(self._seeds, return_inverse=True)
        of_seed = np.repeat(seed, [table.num_rows for table in self._tables])
        g, k = len(names), len(self.classes)
        matrices = np.zeros((g, len(seeds), k, k))  # of each group and seed: a resample is a sum of these
        np.add.at(matrices, (group, of_seed, truth, predicted), 1)
        rng, drawn = np.random.default_rng(0), []
        for start in range(0, RESAMPLES, AT_A_TIME):
            size = min(AT_A_TIME, RESAMPLES - start)
            of_all = rng.integers(g, size=(size, g)) + g * np.arange(size)[:, None]
            times = np.bincount(of_all.ravel(), minlength=size * g).reshape(size, g)
            drawn.append(times.astype(float) @ matrices.reshape(g, -1))
        return np.concatenate(drawn).reshape(-1, *matrices.shape[1:])


def caveat(results: Iterable[Mapping[str, Any]]) -> str | None:
    """One line for tables whose numbers say nothing about people, else None."""
    results = list(results)
    found = []
    if names := sorted({name for result in results for name in result["random_weights"]}):
        found.append(f"random weights ({', '.join(names)})")
    if corpora := sorted({result["corpus"] for result in results if result["synthetic"]}):
        found.append(f"synthetic corpus ({', '.join(corpora)})")
    return f"{' and '.join(found)}: {NO_COMPARISON}" if found else None


def summary_text(cell: CellScores) -> str:
    """The scores of one cell for the terminal: what `ser train` ends with."""
    from tabulate import tabulate

    asked = [("UA", "ua", "both"), ("WA", "wa", "both"), ("macro-F1", "macro_f1", "both")]
    asked += [(f"recall {name}", name, "both") for name in cell.classes if cell.score(name).n]
    asked += [(f"UA, {test}", "ua", test) for test in cell.tests if test != "both"]
    lines = []
    for name, metric, test in asked:
        score = cell.score(metric, test)
        spread = f" ± {score.std:.2f}" if score.std is not None else ""
        lines.append([name, f"{score.pooled:.2f}", f"{score.mean:.2f}{spread}", str(score.n)])
    table = tabulate(lines, ["%", "pooled over folds", "mean over runs", "runs"], disable_numparse=True)
    ours = cell.to_json()
    ends = [f"{name}: {ours[name[:2]]:.2f} [{low:.2f}, {high:.2f}]" for name, (low, high) in ours["intervals"].items()]
    notes = [cell.conditions, f"95 % bootstrap interval of {'; '.join(ends)}"]
    if absent := ", ".join(f"{count} ({why})" for why, count in cell.left_out.items()):
        notes.append(f"left out: {absent}")
    return "\n".join([table, *notes, *filter(None, [cell.caveat])])


@dataclass(frozen=True)
class Comparison:
    """A paired test: `difference` = first − second; `p` of the null hypothesis that the two do not differ."""

    difference: float
    p: float
    n: int


def mcnemar(truth: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> Comparison:
    """McNemar's exact test (1947) on the utterances that just one of two cells gets right.

    p = min(1, 2 · P(X ≤ min(b, c))), X ~ Binomial(b + c, ½), with b right in `first` alone and c in `second` alone.

    >>> mcnemar([0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]).p  # b = 3, c = 0: 2 · ½³
    0.25
    """
    from scipy.stats import binomtest

    right, other = (np.asarray(predicted) == np.asarray(truth) for predicted in (first, second))
    b, c = int(np.sum(right & ~other)), int(np.sum(~right & other))
    p = float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0
    return Comparison((b - c) / len(right), p, len(right))


def paired_t(first: Sequence[float], second: Sequence[float] | float) -> Comparison:
    """Student's t on the differences of scores that share seed and fold.

    Or on those of the seeds' scores and the one number that somebody else published (Perspective Table 4). Raises
    `ValueError` for fewer than two differences.

    >>> round(paired_t([3, 5, 4], [1, 2, 3]).p, 4), round(paired_t([1, 2, 3], 0).p, 4)  # t = 2 / (1 / √3), df = 2
    (0.0742, 0.0742)
    """
    from scipy.stats import ttest_1samp

    differences = np.subtract(first, second)
    if len(differences) < 2:
        raise ValueError("a paired t-test needs two pairs of scores or more")
    constant = np.ptp(differences) == 0  # the deviation is zero
    p = float(differences[0] == 0) if constant else float(ttest_1samp(differences, 0).pvalue)
    return Comparison(float(differences.mean()), p, len(differences))


def wilcoxon(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Wilcoxon's signed-rank test on the differences of scores that share seed and fold.

    >>> wilcoxon([2, 3, 4, 5, 7], [1, 1, 1, 1, 1]).p  # all positive: 2 of 2⁵ sign patterns
    0.0625
    """
    from scipy.stats import wilcoxon as signed_rank

    differences = np.subtract(first, second)
    p = float(signed_rank(differences).pvalue) if np.any(differences) else 1.0
    return Comparison(float(differences.mean()), p, len(differences))
