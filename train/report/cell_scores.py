"""The scores of a cell's runs, from those that each run keeps: every table, page and line takes
them here.

A score is pooled over the folds of one seed, whose confusion matrices add up, and then averaged
over the seeds. Beside it stand two spreads: the deviation over the seeds, and mean ± deviation over
the folds. It is pooled over several corpora too, where large ones weigh more; beside it stand the
score of each corpus, pooled over the folds that test it, and their plain mean, the "mean over
corpora".

Utterances of one speaker are alike, so intervals, and the tests of significance.py, count groups:
speakers where all are known, else dialogues where any has two utterances, else utterances, which is
too narrow and says so. Axis letters as in train/scores.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ser.errors import CorruptStore
from ser.train import scores
from ser.train.data.labels import DIMENSIONS
from ser.train.run_folder import Run, column
from ser.train.scores import FEWEST, LEVEL, METRICS, PERCENT, SCORED, SHOWN, Ends

RANGES = {"ccc": (-1.0, 1.0), "rmse": (0.0, np.inf)}  # no interval leaves them
NOT_KNOWN = "whether test speakers are heard in training is not known"
ENDS = ("pooled", "low", "high")
Spread = tuple[float, float | None]  # mean, deviation


@dataclass(frozen=True)
class Score:
    """One metric of one cell: the score, and mean and sample deviation over seeds and over folds.

    In percent, but CCC between −1 and 1 and RMSE in the units of the corpus's scale.
    """

    pooled: float  # over the folds of a seed, then the mean over the seeds: the score
    over_seeds: Spread  # of the seeds' pooled scores
    seeds: int
    over_folds: Spread  # of each fold's mean over its seeds
    folds: int


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
        self._seeds, self._folds = (
            np.array([result[key] for result in self.results]) for key in ("seed", "fold")
        )
        self.classes: list[str] = self.results[0]["classes"]
        self.dimensions = DIMENSIONS if "moments" in self.results[0] else ()
        self.rated = [f"{kind} {name}" for kind in RANGES for name in self.dimensions]
        self.of_ratings = ["ccc", *self.rated] if self.dimensions else []
        self.metrics = (
            [*METRICS, *self.classes, *self.of_ratings] if self.classes else self.of_ratings
        )
        for run in runs:
            if run.result["classes"] != self.classes:
                raise CorruptStore(
                    f"{run.path}: has other classes than the runs beside it; train the run again"
                )
        tests = self.results[0]["tests"]
        self.tests = [
            test for test in tests if all(test in result["tests"] for result in self.results)
        ]

    def score(self, metric: str, test: str = "both") -> Score:
        """The metric with the model tested in that way; NaN for the recall of a class that does not
        occur.
        """
        counted = "moments" if metric in self.of_ratings else "confusion"
        matrices = np.array([result["tests"][test][counted] for result in self.results])
        own = self.measure(metric, matrices)  # [R]
        known = ~np.isnan(own)
        by_seed = self.measure(
            metric, np.stack([matrices[self._seeds == s].sum(0) for s in np.unique(self._seeds)])
        )
        by_seed = by_seed[~np.isnan(by_seed)]
        by_fold = np.array(
            [own[known & (self._folds == fold)].mean() for fold in np.unique(self._folds[known])]
        )
        return Score(
            spread(by_seed)[0], spread(by_seed), len(by_seed), spread(by_fold), len(by_fold)
        )

    def confusion(self, test: str = "both") -> np.ndarray:
        """C `[K, K]`, the sum over the runs."""
        return np.sum([result["tests"][test]["confusion"] for result in self.results], 0)

    @property
    def n(self) -> int:
        """Predictions, of all folds and seeds."""
        return sum(result["n"] for result in self.results)

    def with_interval(self, metric: str, test: str = "both", corpus: str | None = None) -> Ends:
        """The pooled score and the ends of its interval over the groups, see `jackknife_interval`;
        units as of `Score`.

        Left out is a group's part in all seeds at once. No ends where `within` gives none, nor for
        the recall of a class that does not occur in two of them. With a `corpus`, one of several,
        of its utterances alone.
        """
        rated = metric in self.of_ratings
        groups = self.group
        if corpus is not None:
            groups = groups.where(self.predictions.id.str.startswith(f"{corpus}/"))
        matrices = self.by_group(groups, test, rated)
        whole = (
            float(self.measure(metric, matrices.sum(0)).mean())
            if corpus
            else self.score(metric, test).pooled
        )
        without = self.measure(metric, matrices.sum(0) - matrices)  # [g, S]
        if np.isnan(without).all(1).any():
            return whole, None, None
        return scores.within(
            RANGES[metric.split()[0]] if rated else PERCENT, whole, np.nanmean(without, 1)
        )

    @cached_property
    def groupings(self) -> dict[str, Any]:
        """The group of each prediction by what groups of intervals and tests can be, the default
        first.

        Utterances where nothing else is known.
        """
        p = self.predictions
        alone = p.dialogue.isna().any() or p.dialogue.nunique() == p.id.nunique()
        known = {"speakers": p.speaker.notna().all(), "dialogues": not alone}
        return {over: p[over[:-1]] for over, is_known in known.items() if is_known} or {
            "utterances": p.id
        }

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
        return f"{'' if g >= FEWEST else 'no interval: '}{how_many(g, self.over)}"

    @cached_property
    def corpora(self) -> list[dict[str, Any]]:
        """The rows of a table: each corpus that is tested, its scores and who trained, and the
        "mean over corpora".

        No row where there is one corpus alone.
        """
        rows: list[dict[str, Any]] = []
        corpora = self.results[0].get("corpora", {})
        headings = {heading: metric for metric, heading in SCORED.items() if metric in self.metrics}
        for name in corpora:
            folds = {
                result["fold"]: result["corpora"]
                for result in self.results
                if result["corpora"][name]["test"]
            }
            if not folds:
                continue
            train = {other: [fold[other]["train"] for fold in folds.values()] for other in corpora}
            row = {"tested on": name, "n": sum(fold[name]["test"] for fold in folds.values())}
            row["folds"] = ", ".join(folds) if len(folds) < FEWEST else f"{len(folds)}"
            row["trained on"] = " + ".join(
                f"{other} {_range(n)}" for other, n in train.items() if any(n)
            )
            row["has no"] = (
                ", ".join(label for label, n in corpora[name]["classes"].items() if not n) or None
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
        dependent = heard not in ("", NOT_KNOWN) or first["protocol"].startswith("random")
        conditions = [f"{first['protocol']}{' (speaker-dependent)' * dependent}", heard]
        conditions.append(
            first["select"] + " (epoch chosen on the TEST part)" * (first["select"] == "best-test")
        )
        if self.classes:
            conditions.append(first["labels"])
        if self.dimensions or "kl" in first:
            config = self.runs[0].config
            rated = f", rated {config['training']['vad_scale']}" if self.dimensions else ""
            conditions.append(f"target {config['target']}{rated}")
        conditions += [
            why.removeprefix("--") for why in first["left_out"] if why.startswith("--")
        ]  # --only, --limit
        if first.get("corpora"):
            conditions.append(f"corpora {first['corpus']}")
        if first.get("standardise_by") == "corpus":
            corpora = [corpus for result in self.results for corpus in result["corpora"].values()]
            unseen = any(corpus["test"] and not corpus["train"] for corpus in corpora)
            own = ", the tested one by its own unlabelled speech: transductive"
            conditions.append(f"z-scored by corpus{own * unseen}")
        conditions += [f"{name} {value}" for name, value in parts(self.results).items()]
        return " · ".join(filter(None, conditions))

    @property
    def left_out(self) -> dict[str, int]:
        """Why utterances stand in no part → how many; the most of any fold where the folds differ."""
        most: dict[str, int] = {}
        for why, ids in (item for result in self.results for item in result["left_out"].items()):
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
        """That of each run; none where a run has none, without a dev part or written by an earlier
        ser.
        """
        fitted: list[Any] = [
            (result.get("calibration") or {}).get("temperature") for result in self.results
        ]
        return fitted if all(fitted) else []

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
            scores.tempered(plain, temperatures[self.predictions.run][:, None])
            if len(temperatures)
            else plain
        )

    def reliability(self, after: bool = False) -> tuple[float, np.ndarray]:
        """The ECE in percent, pooled over the folds of a seed and the mean over the seeds, and the
        bins of all runs.

        `after` the temperature, or before it.
        """
        p, seeds = (
            self.sure if after else self.probabilities["both"],
            self.predictions.seed.to_numpy(),
        )
        bins = np.array(
            [scores.reliability(self.truth[seeds == s], p[seeds == s]) for s in np.unique(seeds)]
        )
        return 100 * float(np.mean([*map(scores.ece, bins)])), bins.sum(0)

    def abstaining(self, below: float) -> tuple[Ends, Ends | None]:
        """The share that is answered if no answer is given `below` a probability, and the share of
        those that is right.

        Probabilities are those after the temperature, if there is one.
        """
        right, answered = (
            self.probabilities["both"].argmax(1) == self.truth,
            self.sure.max(1) >= below,
        )
        of_answered = (
            scores.average(100 * right[answered], self.group[answered]) if answered.any() else None
        )
        return scores.average(100 * answered, self.group), of_answered

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
        least = np.array([scores.conformal_threshold(*pair) for pair in on_dev])
        inside = self.probabilities["both"] >= least[self.predictions.run][:, None]
        held = inside[np.arange(len(inside)), self.truth]
        return scores.average(100 * held, self.group), float(inside.sum(1).mean())

    @property
    def raters(self) -> dict[str, Any] | None:
        """The raters' own scores of what is tested, by this label policy; None without votes and of
        an earlier ser.
        """
        by_fold = {
            result["fold"]: result.get("raters") for result in self.results
        }  # the same for all seeds
        known = [raters for raters in by_fold.values() if raters]
        if not known:
            return None
        left_out = sum(raters["left_out"] for raters in known)
        return scores.rater_scores(np.sum([raters["confusion"] for raters in known], 0), left_out)

    def divergences(self) -> dict[str, Ends]:
        """KL and JS of the raters' shares and the probabilities, the mean over all predictions;
        only if learnt.
        """
        if any("kl" not in result for result in self.results):
            return {}
        divergences = scores.divergences(
            np.stack(self.predictions.votes), self.probabilities["both"]
        )
        return {
            name: scores.average(values, self.group, (0.0, np.inf))
            for name, values in divergences.items()
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

    def measure(self, metric: str, matrices: np.ndarray) -> np.ndarray:
        """The metric of C `[…, K, K]` in percent, or of M `[…, D, 6]`: `[…]`."""
        if metric in self.of_ratings:
            kind, _, name = metric.partition(" ")
            rated = scores.concordance(matrices)[kind]
            return rated[..., self.dimensions.index(name)] if name else rated.mean(-1)
        values = scores.metrics(matrices)
        return 100 * (
            values[metric]
            if metric in METRICS
            else values["recalls"][..., self.classes.index(metric)]
        )

    def by_group(self, groups: Any, test: str = "both", rated: bool = False) -> np.ndarray:
        """C `[g, S, K, K]` of each group in each seed, in the order of the groups' names; if
        `rated` M `[g, S, D, 6]`.

        `groups` are those of all predictions; those in none do not count.
        """
        import pandas

        group, names = pandas.factorize(np.asarray(groups), sort=True)  # -1, counted last, is none
        seeds, seed = np.unique(self.predictions.seed, return_inverse=True)
        shape = (len(DIMENSIONS), 6) if rated else (len(self.classes), len(self.classes))
        counted = np.zeros((len(names) + 1, len(seeds), *shape))
        if rated:
            np.add.at(counted, (group, seed), scores.moments(*self.ratings(test)))
        else:
            np.add.at(counted, (group, seed, self.truth, self.probabilities[test].argmax(1)), 1)
        return counted[:-1, counted[:-1].any((0, 2, 3))]

    @cached_property
    def tested(self) -> list[tuple[str, str]]:
        """The "corpus/id" and the true class of each prediction."""
        p, home = (
            self.predictions,
            "" if self.results[0].get("corpora") else f"{self.results[0]['corpus']}/",
        )
        return list(zip(home + p.id, p.truth, strict=True))


def spread(values: np.ndarray) -> Spread:
    """Their mean, NaN of none, and sample deviation, None of a single one."""
    mean = float(values.mean()) if len(values) else np.nan
    return mean, float(values.std(ddof=1)) if len(values) > 1 else None


def named(metric: str) -> str:
    """A metric of ratings as a heading: "CCC valence"."""
    kind, _, name = metric.partition(" ")
    return f"{kind.upper()} {name}"


def how_many(g: int, over: str) -> str:
    """Such as "1 speaker", or "97 utterances, too narrow"."""
    return f"{g} {over if g != 1 else over[:-1]}{', too narrow' if over == 'utterances' else ''}"


def _range(sizes: Sequence[int]) -> str:
    """The least and the most, such as "3,205–3,300", or the one that all are."""
    return "–".join(f"{n:,}" for n in dict.fromkeys((min(sizes), max(sizes))))


def parts(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How dev was cut, and n of each part; where folds differ, the fewest and the most, such as
    "3,205–3,300".
    """
    how = [
        f"{result['dev']}{', then refit' * result['refit']}"
        for result in results
        if "dev" in result
    ]
    cut = {"dev": ", ".join(dict.fromkeys(how))} if how else {}  # not of an earlier ser
    for part in results[0].get("parts", ()):
        cut[f"n {part}"] = _range([result["parts"][part] for result in results])
    return cut


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
    weights, corpora = set[str](), set[str]()
    for result in results:
        weights.update(result["random_weights"])
        every = result.get("corpora") or {result["corpus"]: result}
        corpora.update(name for name, corpus in every.items() if corpus["synthetic"])
    reasons = [f"random weights ({', '.join(sorted(weights))})"] if weights else []
    reasons += [f"synthetic corpus ({', '.join(sorted(corpora))})"] if corpora else []
    return f"{' and '.join(reasons)}: no comparison with the paper is meant" if reasons else None
