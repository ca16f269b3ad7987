"""Every score and interval: the only place that computes them, and every table, page and line takes them here.

A score is pooled over the folds of one seed, whose confusion matrices add up, and then averaged over the seeds. Beside
it stand two spreads: the deviation over the seeds, and mean ± deviation over the folds. It is pooled over several
corpora too, where large ones weigh more; beside it stand the score of each corpus, pooled over the folds that test it,
and their plain mean, the "mean over corpora".

Utterances of one speaker are alike, so intervals, and the tests of report/significance.py, count groups: speakers where
all are known, else dialogues where any has two utterances, else utterances, which is too narrow and says so. `python -m
benchmarks.statistics` simulates how often the intervals hold the truth. Axis letters:

    R  runs     S  seeds     K  classes     g  groups
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ser.errors import CorruptStore, WrongUse, unknown

from .run_folder import Run

METRICS = ("wa", "ua", "macro_f1", "weighted_f1")
FEWEST = 4  # groups of an interval: of fewer, it is too wide or too uncertain to say anything
COLUMNS = {"speakers": "speaker", "dialogues": "dialogue", "utterances": "id"}  # of the predictions
NO_COMPARISON = "no comparison with the paper is meant"
NOT_KNOWN = "whether test speakers are heard in training is not known"
Spread = tuple[float, float | None]  # mean, deviation
Ends = tuple[float, float | None, float | None]  # a value and the ends of its 95 % interval, if it has one


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
class Score:
    """One metric of one cell in percent: the score, and mean and sample deviation over seeds and over folds."""

    pooled: float  # over the folds of a seed, then the mean over the seeds: the score
    over_seeds: Spread  # of the seeds' pooled scores
    seeds: int
    over_folds: Spread  # of each fold's mean over its seeds
    folds: int


def finished(runs: Sequence[Run]) -> list[Run]:
    """Those that are finished. Raises `WrongUse` if none is."""
    found = [run for run in runs if run.finished]
    if not found:
        raise WrongUse(f"none of these {len(runs)} runs is finished; the same command with --resume goes on with them")
    return found


class CellScores:
    """The scores of the finished runs of one cell, which are its folds × seeds.

    Reads the result.json of each; predictions only when an interval is asked for. A metric is "wa", "ua", "macro_f1",
    "weighted_f1", or the name of a class for its recall. Raises `WrongUse` if no run is finished.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = finished(runs)
        self.results = [run.result for run in self.runs]
        self._seeds = np.array([result["seed"] for result in self.results])
        self._folds = np.array([result["fold"] for result in self.results])
        self.classes: list[str] = self.results[0]["classes"]
        for run in self.runs:
            if run.result["classes"] != self.classes:
                raise CorruptStore(f"{run.path}: has other classes than the runs beside it; train the run again")
        tests = self.results[0]["tests"]
        self.tests = [test for test in tests if all(test in result["tests"] for result in self.results)]
        self._counted: dict[tuple[str, str | None], np.ndarray] = {}

    def score(self, metric: str, test: str = "both") -> Score:
        """The metric with the model tested in that way; NaN for the recall of a class that does not occur."""
        matrices = self._matrices(test)
        own = self.measure(metric, matrices)  # [R]
        known = ~np.isnan(own)
        if not known.any():
            return Score(np.nan, (np.nan, None), 0, (np.nan, None), 0)
        by_seed = self.measure(metric, np.stack([matrices[self._seeds == s].sum(0) for s in np.unique(self._seeds)]))
        by_seed = by_seed[~np.isnan(by_seed)]
        by_fold = np.array([own[known & (self._folds == fold)].mean() for fold in np.unique(self._folds[known])])
        return Score(float(by_seed.mean()), _spread(by_seed), len(by_seed), _spread(by_fold), len(by_fold))

    def confusion(self, test: str = "both") -> np.ndarray:
        """C `[K, K]`, summed over the runs."""
        return self._matrices(test).sum(0)

    def with_interval(self, metric: str, test: str = "both", corpus: str | None = None) -> Ends:
        """The pooled score and the ends of its interval over the groups, see `jackknife_interval`, in percent.

        Left out is a group's part in all seeds at once. No ends with fewer than `FEWEST` groups, nor for the recall of
        a class that does not occur in two of them. With a `corpus`, one of several, of its utterances alone.
        """
        if (test, corpus) not in self._counted:
            groups, of = self.groups(self.over), self.tested
            kept = [g if corpus in (None, one[0]) else None for g, one in zip(groups, of, strict=True)]
            self._counted[test, corpus] = self.by_group(kept, test)
        matrices = self._counted[test, corpus]
        own = None if corpus is None else float(self.measure(metric, matrices.sum(0)).mean())
        whole = self.score(metric, test).pooled if own is None else own
        found = self.measure(metric, matrices.sum(0) - matrices)  # [g, S]
        if len(found) < FEWEST or np.isnan(found).all(1).any():
            return whole, None, None
        return _of_share(whole, np.nanmean(found, 1))

    @cached_property
    def groupings(self) -> list[str]:
        """What the groups of intervals and tests can be, the default first; utterances where nothing else is known."""
        speakers, dialogues = set(self.groups("speakers")), set(self.groups("dialogues"))
        alone = None in dialogues or len(dialogues) == len(set(self.groups("utterances")))
        return ["speakers"] * (None not in speakers) + ["dialogues"] * (not alone) or ["utterances"]

    @property
    def over(self) -> str:
        """What the groups of the intervals are."""
        return self.groupings[0]

    @property
    def interval_over(self) -> str:
        """What the intervals are over and of how many, or why there is none."""
        g = len(set(self.groups(self.over)))
        return f"{'' if g >= FEWEST else 'no interval: '}{how_many(g, self.over)}"

    def groups(self, over: str) -> list[Any]:
        """The group of each prediction, run by run; None where the run does not know it."""
        return self._column(COLUMNS[over])

    @cached_property
    def corpora(self) -> list[dict[str, Any]]:
        """The lines of a table: each corpus that is tested, its scores and who trained, and the "mean over corpora".

        None where there is one corpus alone.
        """
        rows: list[dict[str, Any]] = []
        names, told = self.results[0].get("corpora", {}), {"UA %": "ua", "WA %": "wa", "macro-F1 %": "macro_f1"}
        for name in names:
            tested = {result["fold"]: result["corpora"] for result in self.results if result["corpora"][name]["test"]}
            if tested:
                sizes = {one: [corpora[one]["train"] for corpora in tested.values()] for one in names}
                row = {"tested on": name, "n": sum(corpora[name]["test"] for corpora in tested.values())}
                row["folds"] = ", ".join(tested) if len(tested) < FEWEST else f"{len(tested)}"
                row["trained on"] = " + ".join(f"{one} {_range(n)}" for one, n in sizes.items() if any(n))
                row["has no"] = ", ".join(label for label, n in names[name]["classes"].items() if not n) or None
                rows.append(row | {heading: self.with_interval(key, corpus=name) for heading, key in told.items()})
        means = {heading: (float(np.mean([row[heading][0] for row in rows])), None, None) for heading in told if rows}
        return [*rows, {"tested on": "mean over corpora", **means}] if rows else []

    @property
    def conditions(self) -> str:
        """Protocol, selection, labels and parts, with a warning where a number is easier to win."""
        first = self.results[0]
        selected = "best-test (epoch chosen on the TEST part)" if first["select"] == "best-test" else first["select"]
        heard = heard_in_training(self.results)
        dependent = heard not in ("", NOT_KNOWN) or first["protocol"].startswith("random")
        split = f"{first['protocol']}{' (speaker-dependent)' * dependent}"
        cut = [why.removeprefix("--") for why in first["left_out"] if why.startswith("--")]  # --only, --limit
        cut += [f"corpora {first['corpus']}"] if first.get("corpora") else []
        if first.get("standardise_by") == "corpus":
            foreign = any(one["test"] and not one["train"] for r in self.results for one in r["corpora"].values())
            cut.append(f"z-scored by corpus{', the tested one by its own unlabelled speech: transductive' * foreign}")
        cut += [f"{name} {value}" for name, value in parts(self.results).items()]
        return " · ".join((split, *filter(None, [heard]), selected, first["labels"], *cut))

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
        """Pooled WA, UA and macro-F1 with the intervals of the first two, in percent, by "ua over speakers", …

        Of several corpora the lines of `corpora` too.
        """
        found = {metric: self.with_interval(metric) for metric in ("ua", "wa")}
        return {
            **({"corpora": self.corpora} if self.corpora else {}),
            **{metric: self.score(metric).pooled for metric in ("wa", "ua", "macro_f1")},
            "intervals": {
                f"{metric} over {self.over}": ends for metric, (_, *ends) in found.items() if None not in ends
            },
        }

    @cached_property
    def tables(self) -> list[Any]:
        """The predictions of each run."""
        return [run.predictions() for run in self.runs]

    def _column(self, name: str) -> list[Any]:
        # Runs of earlier versions do not name dialogues.
        lists = (t[name].to_pylist() if name in t.column_names else [None] * len(t) for t in self.tables)
        return [value for values in lists for value in values]

    def _matrices(self, test: str) -> np.ndarray:
        """C `[R, K, K]` of the runs."""
        if test not in self.tests:
            raise unknown("test", test, self.tests)
        return np.array([result["tests"][test]["confusion"] for result in self.results])

    def measure(self, metric: str, matrices: np.ndarray) -> np.ndarray:
        """The metric of C `[…, K, K]` in percent, `[…]`."""
        if metric not in METRICS and metric not in self.classes:
            raise unknown("metric", metric, [*METRICS, *self.classes])
        found = metrics(matrices)
        return 100 * (found[metric] if metric in METRICS else found["recalls"][..., self.classes.index(metric)])

    def by_group(self, groups: Sequence[Any], test: str = "both") -> np.ndarray:
        """C `[g, S, K, K]` of each group in each seed, in the order of the groups' names.

        `groups` are those of all predictions, run by run; what has None does not count.
        """
        number = {name: k for k, name in enumerate(self.classes)}
        truth = np.array([number[name] for name in self._column("truth")])
        predicted = np.argmax(self._column("probabilities" if test == "both" else f"probabilities {test}"), 1)
        seeds, seed = np.unique(self._seeds, return_inverse=True)
        of_seed = np.repeat(seed, [table.num_rows for table in self.tables])
        kept = np.array([group is not None for group in groups])
        names, group = np.unique(np.array(groups)[kept], return_inverse=True)
        matrices = np.zeros((len(names), len(seeds), len(number), len(number)))
        np.add.at(matrices, (group, of_seed[kept], truth[kept], predicted[kept]), 1)
        return matrices[:, matrices.any((0, 2, 3))]

    @cached_property
    def tested(self) -> list[tuple[str, ...]]:
        """Corpus, id and true class of each prediction."""
        corpus, ids = self.results[0]["corpus"], self._column("id")
        own = [id_.partition("/")[::2] if self.results[0].get("corpora") else (corpus, id_) for id_ in ids]
        return [(*pair, truth) for pair, truth in zip(own, self._column("truth"), strict=True)]


def _spread(values: np.ndarray) -> Spread:
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def how_many(g: int, over: str) -> str:
    """Such as "1 speaker", or "97 utterances, too narrow"."""
    return f"{g} {over if g != 1 else over[:-1]}{', too narrow' if over == 'utterances' else ''}"


def jackknife_interval(whole: Any, without: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of an estimate θ `[…]` from its values θ₍ᵢ₎ `[…, g]` without each of the g groups.

    θ ± t₀.₉₇₅ √((g − 1) / g · Σᵢ (θ₍ᵢ₎ − mean)²), t with g − 1 degrees of freedom: Student's t on the jackknife's
    pseudo-values (Tukey 1958), about the estimate itself. For a mean it is the interval of the t-test.

    >>> low, high = jackknife_interval(2.0, np.array([2.5, 2.0, 1.5]))  # the mean of 1, 2, 3
    >>> round(float(low), 3), round(float(high), 3)  # 2 ± 4.303 / √3
    (-0.484, 4.484)
    """
    from scipy.stats import t

    half = t.ppf(0.975, without.shape[-1] - 1) * np.sqrt((without.shape[-1] - 1) * without.var(-1))
    return whole - half, whole + half


def share(counted: Sequence[bool] | np.ndarray, groups: Sequence[Any]) -> Ends:
    """The share of n predictions that count, with its interval over their groups, in percent."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    n, hits = np.bincount(group), np.bincount(group, np.asarray(counted, dtype=float))
    whole = 100 * float(hits.sum() / n.sum())
    return (whole, None, None) if len(n) < FEWEST else _of_share(whole, 100 * (hits.sum() - hits) / (n.sum() - n))


def _of_share(whole: float, without: np.ndarray) -> Ends:
    low, high = jackknife_interval(whole, without)
    return whole, max(0.0, float(low)), min(100.0, float(high))


def _range(sizes: Sequence[int]) -> str:
    """The least and the most, such as "3,205–3,300", or the one that all are."""
    return "–".join(f"{n:,}" for n in dict.fromkeys((min(sizes), max(sizes))))


def parts(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How dev was cut, and n of each part; where folds differ, the fewest and the most, such as "3,205–3,300"."""
    how = [f"{result['dev']}{', then refit' * result['refit']}" for result in results if "dev" in result]
    found = {"dev": ", ".join(dict.fromkeys(how))} if how else {}  # not of an earlier ser
    for part in results[0].get("parts", ()):
        found[f"n {part}"] = _range([result["parts"][part] for result in results])
    return found


def heard_in_training(results: Sequence[Mapping[str, Any]]) -> str:
    """How many speakers of the test parts are heard in training, or `NOT_KNOWN`; "" if none is."""
    known: list[Any] = [result.get("speakers") for result in results]
    if all(result["speaker_independent"] for result in results):
        return ""
    if None in known:
        return NOT_KNOWN
    heard = {name for speakers in known for name, is_heard in speakers.items() if is_heard}
    return f"{len(heard)} of {len(set().union(*known))} test speakers are heard in training"


def caveat(results: Iterable[Mapping[str, Any]]) -> str | None:
    """One line for tables whose numbers say nothing about people, else None."""
    results = list(results)
    found = []
    if names := sorted({name for result in results for name in result["random_weights"]}):
        found.append(f"random weights ({', '.join(names)})")
    unreal = [result for result in results if result["synthetic"]]
    about = [r.get("corpora") or {r["corpus"]: {"synthetic": True}} for r in unreal]
    if corpora := sorted({name for corpora in about for name, one in corpora.items() if one["synthetic"]}):
        found.append(f"synthetic corpus ({', '.join(corpora)})")
    return f"{' and '.join(found)}: {NO_COMPARISON}" if found else None


def summary_text(cell: CellScores) -> str:
    """The scores of one cell for the terminal: what `ser train` ends with."""
    from tabulate import tabulate

    asked = [("UA", "ua", "both"), ("WA", "wa", "both"), ("macro-F1", "macro_f1", "both")]
    asked += [(f"recall {name}", name, "both") for name in cell.classes if cell.score(name).folds]
    asked += [(f"UA, {test}", "ua", test) for test in cell.tests if test != "both"]
    lines = []
    for name, metric, test in asked:
        score = cell.score(metric, test)
        spreads = [" ± ".join(f"{x:.2f}" for x in one if x is not None) for one in (score.over_seeds, score.over_folds)]
        lines.append([name, spreads[0], str(score.seeds), spreads[1], str(score.folds)])
    headings = ["%", "pooled over folds, over seeds", "seeds", "over folds", "folds"]
    table = tabulate(lines, headings, disable_numparse=True)
    ours = cell.to_json()
    ends = [f"{name}: {ours[name[:2]]:.2f} [{low:.2f}, {high:.2f}]" for name, (low, high) in ours["intervals"].items()]
    about = f"95 % interval of {'; '.join(ends)} ({cell.interval_over})" if ends else cell.interval_over
    notes = [cell.conditions, about]
    if absent := ", ".join(f"{count} ({why})" for why, count in cell.left_out.items()):
        notes.append(f"left out: {absent}")
    if cell.corpora:
        from .report.tables import Table, tabulated

        notes.append(tabulated(Table("corpora", "", cell.corpora)))
    return "\n".join([table, *notes, *filter(None, [cell.caveat])])
