"""The scores of a cell's runs, from those that each run keeps: every table, page and line takes
them here, and `ser.train.scores` computes them.

A score is pooled over the folds of one seed, whose confusion matrices add up, and then averaged
over the seeds. It is pooled over several corpora too, where large ones weigh more; beside it stand
the score of each corpus, pooled over the folds that test it, and their plain mean, the "mean over
corpora".
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ser.errors import CorruptStore
from ser.train.data.utterances import DIMENSIONS
from ser.train.records import RunResult
from ser.train.run_folder import Run, column
from ser.train.scores.calibration import (
    LEVEL,
    abstention,
    conformal_sets,
    conformal_threshold,
    reliability_over_seeds,
    tempered,
)
from ser.train.scores.classes import METRICS
from ser.train.scores.groups import (
    confusions_by_group,
    count_of_groups,
    groupings,
    moments_by_group,
)
from ser.train.scores.intervals import FEWEST, Ends, average, pooled_interval
from ser.train.scores.measures import RANGES, SCORED, SHOWN, Measure, measure_of, rating_metrics
from ser.train.scores.pooling import Score, pool
from ser.train.scores.raters import divergences, rater_scores
from ser.train.scores.tests import ClassPredictions, Comparison, compare

NOT_KNOWN = "whether test speakers are heard in training is not known"
ENDS = ("pooled", "low", "high")


class CellScores:
    """The scores of the finished runs of one cell, which are its folds × seeds.

    Reads the result.json of each; predictions only when an interval is requested. A metric is "wa",
    "ua", "macro_f1", "weighted_f1", or the name of a class for its recall. Where valence, arousal
    and dominance are learnt it may be "ccc", their mean, "ccc valence", …, or "rmse valence", …;
    where nothing else is, there are no `classes`. Raises `WrongUse` for a run that is not finished.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.results = [run.result for run in runs]
        self._seeds = np.array([result.seed for result in self.results])
        self._folds = np.array([result.fold for result in self.results])
        self.classes: list[str] = self.results[0].classes
        self.dimensions = DIMENSIONS if self.results[0].moments is not None else ()
        self.of_ratings = rating_metrics(self.dimensions)
        self.rated = [metric for metric in self.of_ratings if metric != "ccc"]
        self.metrics = (
            [*METRICS, *self.classes, *self.of_ratings] if self.classes else self.of_ratings
        )
        for run in runs:
            if run.result.classes != self.classes:
                raise CorruptStore(
                    f"{run.path}: has other classes than the runs beside it; train the run again"
                )
        tests = self.results[0].tests
        self.tests = [
            test for test in tests if all(test in result.tests for result in self.results)
        ]

    def score(self, metric: str, test: str = "both") -> Score:
        """The metric with the model tested in that way; NaN for the recall of a class that does not
        occur.
        """
        measure = self._measure(metric)
        counts = [getattr(result.tests[test], measure.counts) for result in self.results]
        return pool(np.array(counts), self._seeds, self._folds, measure)

    def confusion(self, test: str = "both") -> np.ndarray:
        """C `[K, K]`, the sum over the runs."""
        matrices: list[Any] = [result.tests[test].confusion for result in self.results]
        return np.sum(matrices, 0)

    @property
    def n(self) -> int:
        """Predictions, of all folds and seeds."""
        return sum(result.n for result in self.results)

    def with_interval(self, metric: str, test: str = "both", corpus: str | None = None) -> Ends:
        """The pooled score and the ends of its interval over the groups, see `jackknife_interval`;
        units as of `Score`.

        Left out is a group's part in all seeds at once. No ends where `within` gives none, nor for
        the recall of a class that does not occur in two of them. With a `corpus`, one of several,
        of its utterances alone.
        """
        groups = self.group
        whole = None
        if corpus is None:
            whole = self.score(metric, test).pooled
        else:
            groups = groups.where(self.predictions.id.str.startswith(f"{corpus}/"))

        measure = self._measure(metric)
        seeds = self.predictions.seed.to_numpy()
        if measure.counts == "moments":
            by_group = moments_by_group(groups, seeds, *self.ratings(test))
        else:
            predicted = self.probabilities[test].argmax(1)
            by_group = confusions_by_group(groups, seeds, self.truth, predicted, len(self.classes))
        return pooled_interval(by_group, measure, whole)

    def _measure(self, metric: str) -> Measure:
        return measure_of(metric, self.classes, self.dimensions)

    @cached_property
    def groupings(self) -> dict[str, Any]:
        """The group of each prediction by what groups of intervals and tests can be, the default
        first.

        Utterances where nothing else is known.
        """
        p = self.predictions
        return groupings(p.speaker, p.dialogue, p.id)

    @property
    def over(self) -> str:
        """What the groups of the intervals are."""
        return next(iter(self.groupings))

    @property
    def group(self) -> Any:
        """Of the intervals, that of each prediction, a series."""
        return self.groupings[self.over]

    @property
    def interval_over(self) -> str:
        """What the intervals are over and of how many, or why there is none."""
        g = self.group.nunique()
        return f"{'' if g >= FEWEST else 'no interval: '}{count_of_groups(g, self.over)}"

    @cached_property
    def corpora(self) -> list[dict[str, Any]]:
        """The rows of a table: each corpus that is tested, its scores and who trained, and the
        "mean over corpora".

        No row where there is one corpus alone.
        """
        rows: list[dict[str, Any]] = []
        corpora = self.results[0].corpora or {}
        headings = {heading: metric for metric, heading in SCORED.items() if metric in self.metrics}
        for name in corpora:
            folds = {}
            for result in self.results:
                in_fold = result.corpora or {}
                if in_fold[name].test:
                    folds[result.fold] = in_fold
            if not folds:
                continue
            train = {other: [fold[other].train for fold in folds.values()] for other in corpora}
            row = {"tested on": name, "n": sum(fold[name].test for fold in folds.values())}
            row["folds"] = ", ".join(folds) if len(folds) < FEWEST else f"{len(folds)}"
            row["trained on"] = " + ".join(
                f"{other} {_range(n)}" for other, n in train.items() if any(n)
            )
            row["has no"] = (
                ", ".join(label for label, n in corpora[name].classes.items() if not n) or None
            )
            row |= {
                heading: self.with_interval(metric, corpus=name)
                for heading, metric in headings.items()
            }
            rows.append(row)
        if not rows:
            return []
        means = {
            heading: (float(np.mean([row[heading][0] for row in rows])), None, None)
            for heading in headings
        }
        return [*rows, {"tested on": "mean over corpora", **means}]

    @property
    def conditions(self) -> str:
        """Protocol, selection, labels and parts, with a warning where a number is easier to win."""
        first = self.results[0]
        heard = heard_in_training(self.results)
        dependent = heard not in ("", NOT_KNOWN) or first.protocol.startswith("random")
        conditions = [f"{first.protocol}{' (speaker-dependent)' * dependent}", heard]
        conditions.append(
            first.select + " (epoch chosen on the TEST part)" * (first.select == "best-test")
        )
        if self.classes:
            conditions.append(first.labels)
        if self.dimensions or first.kl is not None:
            config = self.runs[0].config
            rated = f", rated {config.training['vad_scale']}" if self.dimensions else ""
            conditions.append(f"target {config.target}{rated}")
        conditions += [
            why.removeprefix("--") for why in first.left_out if why.startswith("--")
        ]  # --only, --limit
        if first.corpora:
            conditions.append(f"corpora {first.corpus}")
        if first.standardise_by == "corpus":
            unseen = any(
                corpus.test and not corpus.train
                for result in self.results
                for corpus in (result.corpora or {}).values()
            )
            own = ", the tested one by its own unlabelled speech: transductive"
            conditions.append(f"z-scored by corpus{own * unseen}")
        conditions += [f"{name} {value}" for name, value in parts(self.results).items()]
        return " · ".join(filter(None, conditions))

    @property
    def left_out(self) -> dict[str, int]:
        """Why utterances stand in no part → how many; the most of any fold where the folds differ."""
        most: dict[str, int] = {}
        for why, ids in (item for result in self.results for item in result.left_out.items()):
            why = (
                "shares dialogues with the test speaker"
                if why.startswith("shares dialogues")
                else why
            )
            most[why] = max(most.get(why, 0), len(ids) if isinstance(ids, list) else ids)
        return most

    def to_json(self) -> dict[str, Any]:
        """Pooled WA, UA and macro-F1, CCC and RMSE by dimension, intervals by "ua over speakers",
        …, how sure it is.

        Of several corpora the rows of `corpora` too.
        """
        facts: dict[str, Any] = {"corpora": self.corpora} if self.corpora else {}
        facts |= {metric: self.score(metric).pooled for metric in SHOWN.values() if self.classes}
        facts |= {
            k: {d: self.score(f"{k} {d}").pooled for d in self.dimensions}
            for k in RANGES
            if self.dimensions
        }
        facts["intervals"] = {
            f"{metric} over {self.over}": ends for metric, (_, *ends) in self.intervals.items()
        }
        if self.classes:
            after, sets = (
                self.reliability(after=True)[0] if self.temperatures else None,
                self.conformal,
            )
            fitted = {"ece_tempered": after, "temperatures": self.temperatures}
            facts["calibration"] = {"ece": self.reliability()[0], **fitted}
            facts["conformal"] = sets and {
                "level": 100 * LEVEL,
                "coverage": sets[0],
                "size": sets[1],
            }
        facts |= {"raters": self.raters} if self.raters else {}
        return facts | {
            kind: dict(zip(ENDS, ends, strict=True)) for kind, ends in self.divergences().items()
        }

    @property
    def intervals(self) -> dict[str, Ends]:
        """The main metrics with their intervals, as far as they have any."""
        main = (metric for metric in (*SHOWN.values(), *self.rated) if metric in self.metrics)
        ends = {metric: self.with_interval(metric) for metric in main}
        return {metric: of for metric, of in ends.items() if None not in of}

    def ratings(self, test: str = "both") -> tuple[np.ndarray, np.ndarray]:
        """Truth and prediction of valence, arousal and dominance, `[n, D]` each, run by run, on the
        corpus's scale.
        """
        columns = (
            [f"truth {name}" for name in DIMENSIONS],
            [column(f"predicted {name}", test) for name in DIMENSIONS],
        )
        truth, predicted = (self.predictions[names].to_numpy() for names in columns)
        return truth, predicted

    @property
    def temperatures(self) -> list[float]:
        """That of each run; none where a run has none, without a dev part."""
        fitted: list[float] = []
        for result in self.results:
            if result.calibration is None:
                return []
            fitted.append(result.calibration.temperature)
        return fitted

    @cached_property
    def truth(self) -> np.ndarray:
        """The number of the true class of each prediction `[n]`."""
        return self.predictions.truth.map(self.classes.index).to_numpy()

    @cached_property
    def probabilities(self) -> dict[str, np.ndarray]:
        """Those of the classes in each prediction `[n, K]`, by the way of testing."""
        columns = {test: self.predictions[column("probabilities", test)] for test in self.tests}
        return {test: np.stack(values).astype(np.float64) for test, values in columns.items()}

    @cached_property
    def sure(self) -> np.ndarray:
        """The probabilities `[n, K]` after the temperature of their run, if all have one."""
        temperatures, plain = np.array(self.temperatures), self.probabilities["both"]
        return (
            tempered(plain, temperatures[self.predictions.run][:, None])
            if len(temperatures)
            else plain
        )

    def reliability(self, after: bool = False) -> tuple[float, np.ndarray]:
        """The ECE in percent, pooled over the folds of a seed and the mean over the seeds, and the
        bins of all runs.

        `after` the temperature, or before it.
        """
        probabilities = self.sure if after else self.probabilities["both"]
        return reliability_over_seeds(self.truth, probabilities, self.predictions.seed.to_numpy())

    def abstaining(self, below: float) -> tuple[Ends, Ends | None]:
        """The share that is answered if no answer is given `below` a probability, and the share of
        those that is right.

        Probabilities are those after the temperature, if there is one.
        """
        right = self.probabilities["both"].argmax(1) == self.truth
        return abstention(right, self.sure.max(1), self.group.to_numpy(), below)

    @cached_property
    def conformal(self) -> tuple[Ends, float] | None:
        """The share of the sets that hold the true class and their mean size, calibrated on each
        run's dev part.

        By the probabilities as they are, so that nothing but the epoch was chosen there. None where
        a run has none.
        """
        dev = [
            table.to_pandas(use_threads=False)
            for run in self.runs
            if (table := run.dev_predictions) is not None
        ]
        if len(dev) < len(self.runs):
            return None
        on_dev = [
            (p.truth.map(self.classes.index).to_numpy(), np.stack(p.probabilities).astype(float))
            for p in dev
        ]
        by_run = np.array([conformal_threshold(*pair) for pair in on_dev])
        thresholds = by_run[self.predictions.run]
        return conformal_sets(self.truth, self.probabilities["both"], thresholds, self.group)

    @property
    def raters(self) -> dict[str, Any] | None:
        """The raters' own scores of what is tested, by this label policy; None without votes."""
        by_fold = {result.fold: result.raters for result in self.results}  # the same for all seeds
        known = [raters for raters in by_fold.values() if raters]
        if not known:
            return None
        left_out = sum(raters.left_out for raters in known)
        matrices: list[Any] = [raters.confusion for raters in known]
        return rater_scores(np.sum(matrices, 0), left_out)

    def divergences(self) -> dict[str, Ends]:
        """KL and JS of the raters' shares and the probabilities, the mean over all predictions;
        only if learnt.
        """
        if any(result.kl is None for result in self.results):
            return {}
        votes = np.stack(self.predictions.votes)
        by_prediction = divergences(votes, self.probabilities["both"])
        return {
            name: average(values, self.group, (0.0, np.inf))
            for name, values in by_prediction.items()
        }

    @cached_property
    def predictions(self) -> Any:
        """A data frame of the runs' predictions.parquet: an utterance is there once per seed.

        It has these files' columns, `run` (its place in `runs`) and `seed`; None where a run lacks
        a column.
        """
        import pandas

        frames = [run.predictions().to_pandas(use_threads=False) for run in self.runs]
        run = np.repeat(range(len(frames)), [*map(len, frames)])
        joined = pandas.concat(frames, ignore_index=True).assign(run=run, seed=self._seeds[run])
        # Runs of earlier versions do not name dialogues.
        return joined.reindex(columns=list(dict.fromkeys([*joined.columns, "dialogue", "truth"])))

    @cached_property
    def tested(self) -> list[tuple[str, str]]:
        """The "corpus/id" and the true class of each prediction."""
        p, home = (
            self.predictions,
            "" if self.results[0].corpora else f"{self.results[0].corpus}/",
        )
        return list(zip(home + p.id, p.truth, strict=True))

    def class_predictions(self, test: str = "both") -> ClassPredictions:
        """What the tests between cells are given, with the model tested in that way."""
        return ClassPredictions(
            classes=self.classes,
            utterances=self.tested,
            truth=self.truth,
            predicted=self.probabilities[test].argmax(1),
            seeds=self.predictions.seed.to_numpy(),
            groupings=self.groupings,
        )


def compare_cells(
    first: CellScores,
    second: CellScores,
    metric: str = "ua",
    claimed: int = 0,
    tests: Sequence[str] = ("both", "both"),
) -> Comparison | None:
    """As `compare`; `tests` are the ways in which each model is tested."""
    if first.classes != second.classes:
        return None
    return compare(
        first.class_predictions(tests[0]), second.class_predictions(tests[1]), metric, claimed
    )


def named(metric: str) -> str:
    """A metric of ratings as a heading: "CCC valence"."""
    kind, _, name = metric.partition(" ")
    return f"{kind.upper()} {name}"


def _range(sizes: Sequence[int]) -> str:
    """The least and the most, such as "3,205–3,300", or the one that all are."""
    return "–".join(f"{n:,}" for n in dict.fromkeys((min(sizes), max(sizes))))


def parts(results: Sequence[RunResult]) -> dict[str, str]:
    """How dev was cut, and n of each part; where folds differ, the fewest and the most, such as
    "3,205–3,300".
    """
    how = [f"{result.dev}, then refit" if result.refit else result.dev for result in results]
    cut = {"dev": ", ".join(dict.fromkeys(how))}
    for part in results[0].parts:
        cut[f"n {part}"] = _range([result.parts[part] for result in results])
    return cut


def heard_in_training(results: Sequence[RunResult]) -> str:
    """How many speakers of the test parts are heard in training, or `NOT_KNOWN`; "" if none is."""
    known: list[Any] = [result.speakers for result in results]
    if all(result.speaker_independent for result in results):
        return ""
    if None in known:
        return NOT_KNOWN
    heard = {name for speakers in known for name, is_heard in speakers.items() if is_heard}
    return f"{len(heard)} of {len(set().union(*known))} test speakers are heard in training"


def caveat(results: Iterable[RunResult]) -> str | None:
    """One line for tables whose numbers say nothing about people, else None."""
    weights, corpora = set[str](), set[str]()
    for result in results:
        weights.update(result.random_weights)
        for name, corpus in (result.corpora or {}).items():
            if corpus.synthetic:
                corpora.add(name)
        if not result.corpora and result.synthetic:
            corpora.add(result.corpus)
    reasons = [f"random weights ({', '.join(sorted(weights))})"] if weights else []
    reasons += [f"synthetic corpus ({', '.join(sorted(corpora))})"] if corpora else []
    return f"{' and '.join(reasons)}: no comparison with the paper is meant" if reasons else None
