"""Scores against their formulas written the slow way, and against scikit-learn where it has them."""

import doctest
import math
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from ser.errors import WrongUse
from ser.train import scores as module
from ser.train.run_folder import RESULT, Run, write_json, write_predictions
from ser.train.scores import CellScores, confusions, mcnemar, paired_t, scores, wilcoxon

CLASSES = ("ang", "hap", "neu", "sad")


def made(seed: int, n: int = 97, classes: int = 4) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, n, p=np.array([5, 2, 1, 1])[:classes] / np.sum(np.array([5, 2, 1, 1])[:classes]))
    predicted = np.where(rng.random(n) < 0.6, truth, rng.integers(classes, size=n))
    return truth.tolist(), predicted.tolist()


def make_run(folder: Path, seed: int, fold: int, truth: list[int], predicted: list[int], speakers: list[Any]) -> Run:
    """A finished run with these predictions; the utterances of a fold are the same for every seed."""
    folder.mkdir()
    run, found = Run(folder), scores(truth, predicted, CLASSES)
    told = {"corpus": "c", "protocol": "session-out", "select": "val", "labels": "4class", "speaker_independent": True}
    told |= {"synthetic": True, "random_weights": [], "left_out": {"label xxx is not in 4class": 3 + fold}}
    told |= {"epoch": 1, "seconds": 0.1, "history": []}
    tests = {"both": found, "only audio": scores(truth, truth, CLASSES)}
    write_json(run, RESULT, {**found, **told, "seed": seed, "fold": str(fold), "classes": CLASSES, "tests": tests})
    columns = {"id": [f"{fold}-{i}" for i in range(len(truth))], "speaker": speakers}
    columns |= {name: [CLASSES[k] for k in rows] for name, rows in (("truth", truth), ("predicted", predicted))}
    columns |= {"probabilities": list(np.eye(4)[predicted]), "probabilities only audio": list(np.eye(4)[truth])}
    write_predictions(run, columns)
    return run


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_slow_formulas(seed: int) -> None:
    truth, predicted = made(seed)
    found = scores(truth, predicted, CLASSES)
    right = [t == p for t, p in zip(truth, predicted, strict=True)]
    assert found["wa"] == pytest.approx(sum(right) / len(right), abs=1e-15)
    recall, f1, weight = [], [], []
    for k in sorted(set(truth)):
        hits = sum(t == p == k for t, p in zip(truth, predicted, strict=True))
        recall.append(hits / truth.count(k))
        f1.append(2 * hits / (truth.count(k) + predicted.count(k)))
        weight.append(truth.count(k) / len(truth))
    assert found["ua"] == pytest.approx(sum(recall) / len(recall), abs=1e-15)
    assert found["macro_f1"] == pytest.approx(sum(f1) / len(f1))
    assert found["weighted_f1"] == pytest.approx(sum(w * f for w, f in zip(weight, f1, strict=True)))
    assert list(found["per_class"].values()) == pytest.approx(recall)
    assert found["n"] == 97 and np.sum(found["confusion"]) == 97
    assert found["confusion"][0][1] == sum(t == 0 and p == 1 for t, p in zip(truth, predicted, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_scores_equal_scikit_learn_s(seed: int) -> None:
    """Also where a class occurs nowhere, is never predicted, or is predicted alone."""
    truth, predicted = made(seed, 5 + 3 * seed, 2 + seed % 3)
    found = scores(truth, predicted, CLASSES)
    present = sorted(set(truth))
    matrix = confusion_matrix(truth, predicted, labels=range(4))
    assert found["confusion"] == matrix.tolist()
    assert found["wa"] == accuracy_score(truth, predicted)
    assert found["ua"] == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-15)
    for name in ("macro", "weighted"):
        f1 = f1_score(truth, predicted, labels=present, average=name, zero_division=0)
        assert found[f"{name}_f1"] == pytest.approx(f1, abs=1e-15)
    both = confusions(np.array(truth), np.array([predicted, truth]), 4)
    assert both.tolist() == [matrix.tolist(), np.diag(np.bincount(truth, minlength=4)).tolist()]


def test_the_examples_hold() -> None:
    assert doctest.testmod(module).attempted >= 6 and doctest.testmod(module).failed == 0


class Cell(SimpleNamespace):
    """Two seeds × three folds of unequal size, and what was predicted."""

    @cached_property
    def scores(self) -> CellScores:
        return CellScores(list(self.runs.values()))


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    held, runs = {}, {}
    for seed in range(2):
        for fold in range(3):
            truth, predicted = made(fold, 20 + 31 * fold)[0], made(10 * seed + fold, 20 + 31 * fold)[1]
            speakers = [f"{fold}{'ab'[i % 2]}" for i in range(len(truth))]
            held[seed, fold] = truth, predicted, speakers
            runs[seed, fold] = make_run(tmp_path / f"{seed}{fold}", seed, fold, truth, predicted, speakers)
    return Cell(held=held, runs=runs)


@pytest.mark.parametrize("metric", ["wa", "ua", "macro_f1", "weighted_f1", "hap"])
def test_a_score_is_pooled_over_the_folds_of_a_seed_then_averaged(cell: Cell, metric: str) -> None:
    def one(pairs: list[tuple]) -> float:
        found = scores([t for p in pairs for t in p[0]], [k for p in pairs for k in p[1]], CLASSES)
        return 100 * (found[metric] if metric in found else found["per_class"][metric])

    runs = [one([held]) for held in cell.held.values()]
    mean = sum(runs) / 6
    found = cell.scores.score(metric)
    by_seed = [one([cell.held[seed, fold] for fold in range(3)]) for seed in range(2)]
    assert found.pooled == pytest.approx(sum(by_seed) / 2)
    assert found.mean == pytest.approx(mean) and found.n == 6
    assert found.std == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in runs) / 5))
    assert cell.scores.score(metric, "only audio").pooled == 100


@pytest.mark.parametrize("over", ["speakers", "utterances"])
def test_the_interval_draws_the_same_groups_for_every_seed(cell: Cell, over: str) -> None:
    """By hand: groups drawn with replacement; of all their predictions UA per seed; the mean over the seeds."""
    rng, values = np.random.default_rng(9), []
    rows = [  # (group, seed, truth, predicted)
        (speaker if over == "speakers" else (fold, i), seed, t, p)
        for (seed, fold), held in cell.held.items()
        for i, (t, p, speaker) in enumerate(zip(*held, strict=True))
    ]
    groups = sorted({row[0] for row in rows})
    for _ in range(600):
        times = np.bincount(rng.integers(len(groups), size=len(groups)), minlength=len(groups))
        of = dict(zip(groups, times.tolist(), strict=True))
        by_seed = []
        for seed in range(2):
            drawn = [row for row in rows if row[1] == seed for _ in range(of[row[0]])]
            by_seed.append(balanced_accuracy_score([row[2] for row in drawn], [row[3] for row in drawn]))
        values.append(100 * np.mean(by_seed))
    found = cell.scores.interval("ua", over)
    assert found is not None and found.over == over
    assert [found.low, found.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1.5)
    assert found == CellScores(list(cell.runs.values())).interval("ua", over)  # the same each time
    assert (cell.scores.interval("ua") == found) == (over == "utterances"), "of four speakers there are too few draws"
    certain = cell.scores.interval("wa", over, "only audio")
    assert certain is not None and (certain.low, certain.high) == (100, 100)


def test_speakers_of_one_kind_make_the_interval_wide(tmp_path: Path) -> None:
    # Speaker a is all right, speaker b all wrong: a resample is 0, ½ or 1 right, so the interval is everything.
    found = CellScores([make_run(tmp_path / "r", 0, 0, [0] * 100, [0] * 50 + [1] * 50, ["a"] * 50 + ["b"] * 50)])
    wide, narrow = found.interval("wa", "speakers"), found.interval("wa")
    assert wide is not None and (wide.low, wide.high, wide.over) == (0, 100, "speakers")
    assert narrow is not None and narrow.over == "utterances" and narrow.high - narrow.low < 25
    pairs = [str(number % 8) for number in range(100)]
    many = CellScores([make_run(tmp_path / "many", 0, 0, [0] * 100, [0] * 50 + [1] * 50, pairs)]).interval("wa")
    assert many is not None and many.over == "speakers", "of eight there are enough"
    assert found.interval("sad") is None and found.score("sad").n == 0
    score = found.score("wa")  # of one run
    assert (score.std, score.n, score.pooled) == (None, 1, score.mean)


@pytest.mark.parametrize("speakers", [["a"] * 30, [None] * 30, ["a", None] * 15])
def test_utterances_are_drawn_where_speakers_are_not_known(tmp_path: Path, speakers: list[Any]) -> None:
    found = CellScores([make_run(tmp_path / "r", 0, 0, *made(0, 30), speakers)])
    interval = found.interval("ua")
    assert interval is not None and interval.over == "utterances" and found.interval("ua", "speakers") is None
    assert list(found.to_json()["intervals"]) == ["ua over utterances", "wa over utterances"]


def test_what_a_cell_says_of_itself(cell: Cell, tmp_path: Path) -> None:
    found = cell.scores
    assert found.classes == list(CLASSES) and found.tests == ["both", "only audio"]
    assert found.confusion().sum() == 2 * (20 + 51 + 82)
    assert found.conditions == "session-out · val · 4class" and found.left_out == {"label xxx is not in 4class": 5}
    assert found.caveat == "synthetic corpus (c): no comparison with the paper is meant"
    told = found.to_json()
    ends = found.interval("ua", "speakers")
    assert told["ua"] == found.score("ua").pooled and ends is not None
    assert told["intervals"]["ua over speakers"] == [ends.low, ends.high]
    for wrong in (
        lambda: found.score("uaa"),
        lambda: found.score("ua", "only video"),
        lambda: CellScores([Run(tmp_path)]),
    ):
        with pytest.raises(WrongUse):
            wrong()


@pytest.mark.parametrize(("b", "c"), [(8, 2), (1, 1), (0, 6), (0, 0)])
def test_mcnemar_is_the_binomial_tail_summed(b: int, c: int) -> None:
    truth = [0] * (b + c + 5)
    first = [0] * b + [1] * c + [0] * 5
    second = [1] * b + [0] * c + [0] * 5
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    found = mcnemar(truth, first, second)
    assert found.p == pytest.approx(min(1, 2 * tail))
    assert found.difference == pytest.approx((b - c) / (b + c + 5))


def test_paired_tests() -> None:
    first, second = [0.61, 0.64, 0.60, 0.66, 0.63], [0.60, 0.60, 0.59, 0.61, 0.64]
    d = [a - b for a, b in zip(first, second, strict=True)]
    mean = sum(d) / 5
    t = mean / math.sqrt(sum((x - mean) ** 2 for x in d) / 4 / 5)
    from scipy.stats import t as student

    found = paired_t(first, second)
    assert found.p == pytest.approx(2 * student.sf(abs(t), 4))
    assert found.difference == pytest.approx(mean) and found.n == 5
    assert paired_t(first, first).p == 1.0 and wilcoxon(first, first).p == 1.0
    # Five differences of one sign: of 32 equally likely sign patterns, two are as extreme.
    assert wilcoxon([2, 3, 4, 5, 7], [1, 1, 1, 1, 1]).p == pytest.approx(2 / 32)
    with pytest.raises(ValueError, match="two pairs"):
        paired_t([1.0], [2.0])
    # Against one number that somebody quotes.
    assert paired_t([85.4, 85.0, 85.8], 75.6).p < 0.01
    assert paired_t([85.4, 85.0, 85.8], 85.4).p == pytest.approx(1.0)
    assert paired_t([80.0, 80.0], 80.0).p == 1.0
