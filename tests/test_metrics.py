"""Scores against scikit-learn; intervals, tests and calibration against slow formulas.

And the same digits everywhere.
"""

import csv
import doctest
import json
import math
import re
import shutil
from collections.abc import Sequence
from functools import partial
from itertools import compress, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
from msgspec import structs
from scipy import stats
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
)

from ser.commands.summary import summary_text
from ser.errors import CorruptStore, WrongUse
from ser.predict import Predictor, Turn
from ser.tests.command_line import printed, ser
from ser.tests.newcomer import run_of
from ser.tests.tiny_store import make_store
from ser.train.experiment import Experiment, run_experiment
from ser.train.records import RunResult, Scores
from ser.train.report.as_json import scores_as_json
from ser.train.report.cell_scores import CellScores, compare_cells
from ser.train.report.certainty import abstaining, conformal, temperatures
from ser.train.report.conditions import caveat, conditions, left_out
from ser.train.report.grouping import group_runs
from ser.train.report.recipe_table import recipe_rows, recipe_table
from ser.train.report.sections.calibration import calibration_table
from ser.train.run_folder import RESULT, Run
from ser.train.scores import calibration, classes, errors, intervals, raters, ratings, tests
from ser.train.scores.calibration import (
    choose_temperature,
    conformal_threshold,
    ece,
    fit_temperature,
    reliability,
    tempered,
)
from ser.train.scores.classes import confusions, scores
from ser.train.scores.intervals import average
from ser.train.scores.pooling import Score
from ser.train.scores.tests import against_quoted, holm, mcnemar, p_of_runs, sign_flip
from ser.train.sweep.recipe import read_recipe

CLASSES = ("ang", "hap", "neu", "sad")
MEASURES = {
    "wa": accuracy_score,
    "ua": balanced_accuracy_score,
    "macro_f1": partial(f1_score, average="macro"),
    "weighted_f1": partial(f1_score, average="weighted"),
    "hap": partial(recall_score, labels=["hap"], average="macro"),
}


def percent(metric: str, rows: pandas.DataFrame) -> float:
    """That of scikit-learn; each row weighs as much as its weight says, if any does."""
    measure = MEASURES[metric]
    return 100 * float(measure(rows.truth, rows.predicted, sample_weight=rows.get("weight")))


def truth_and_predictions(seed: int, n: int = 97, classes: int = 4) -> tuple[list[int], list[int]]:
    """Classes, of which the first are more frequent, and predictions of them.

    These are right more often than not.
    """
    rng = np.random.default_rng(seed)
    shares = np.array([5, 2, 1, 1])[:classes]
    truth = rng.choice(classes, n, p=shares / shares.sum())
    predicted = np.where(rng.random(n) < 0.6, truth, rng.integers(classes, size=n))
    return truth.tolist(), predicted.tolist()


def make_run(
    folder: Path,
    seed: int,
    fold: int,
    truth: Any,
    predicted: Any,
    people: Any,
    dialogues: Any = None,
) -> Run:
    """A finished run with these predictions; a fold has the same utterances for every seed."""
    folder.mkdir()
    run = Run(folder)
    numbers = scores(truth, predicted, CLASSES)

    columns = {"id": [f"{fold}-{i}" for i in range(len(truth))], "speaker": people}
    if dialogues:
        columns["dialogue"] = dialogues
    columns["truth"] = [CLASSES[k] for k in truth]
    columns["predicted"] = [CLASSES[k] for k in predicted]
    columns["probabilities"] = list(np.eye(4)[predicted])
    columns["probabilities only audio"] = list(np.eye(4)[truth])

    result = RunResult(
        **numbers,
        corpus="c",
        fusion="audio",
        loss="single",
        protocol="session-out",
        select="val",
        fold=str(fold),
        seed=seed,
        labels="4class",
        classes=list(CLASSES),
        tests={
            "both": Scores(**numbers),
            "only audio": Scores(**scores(truth, truth, CLASSES)),
        },
        raters=None,
        calibration=None,
        speakers={},
        speaker_independent=True,
        repeated_texts=None,
        synthetic=True,
        random_weights=[],
        parts={},
        dev="none",
        refit=False,
        left_out={"label xxx is not in 4class": 3 + fold, "--only scripted": 7},
        epoch=1,
        seconds=0.1,
        history=[],
        files=run.write_predictions(columns),
    )
    run.write_json(RESULT, result)
    run.__dict__["config"] = {}
    return run


@pytest.mark.parametrize("seed", range(20))
def test_scores_equal_scikit_learn_s(seed: int) -> None:
    """Also where a class occurs nowhere, is never predicted, or is predicted alone."""
    truth, predicted = truth_and_predictions(seed, 5 + 3 * seed, 2 + seed % 3)

    numbers = scores(truth, predicted, CLASSES)

    matrix = confusion_matrix(truth, predicted, labels=range(4))
    assert numbers["confusion"] == matrix.tolist()
    assert numbers["n"] == len(truth)
    assert numbers["wa"] == accuracy_score(truth, predicted)
    assert numbers["ua"] == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-15)

    present = sorted(set(truth))
    for name in ("macro", "weighted"):
        f1 = f1_score(truth, predicted, labels=present, average=name, zero_division=0)
        assert numbers[f"{name}_f1"] == pytest.approx(f1, abs=1e-15)

    recalls = recall_score(truth, predicted, labels=range(4), average=None, zero_division=np.nan)
    expected = [None if np.isnan(recall) else recall for recall in recalls]
    assert list(numbers["per_class"].values()) == expected


def test_the_examples_hold() -> None:
    attempted = 0
    for module in (calibration, classes, errors, intervals, raters, ratings, tests):
        outcome = doctest.testmod(module)
        attempted += outcome.attempted
        assert outcome.attempted > 0, module.__name__
        assert outcome.failed == 0, module.__name__
    assert attempted >= 12


@pytest.fixture
def cell(tmp_path: Path) -> Any:
    """Two seeds × three folds of unequal size, and what was predicted."""
    runs = {}
    for seed, fold in product(range(2), range(3)):
        n = 20 + 31 * fold
        truth, _ = truth_and_predictions(fold, n)
        _, predicted = truth_and_predictions(10 * seed + fold, n)
        speakers = [f"{fold}b" if i % 3 == 0 else f"{fold}a" for i in range(n)]

        folder = tmp_path / f"{seed}{fold}"
        runs[seed, fold] = make_run(folder, seed, fold, truth, predicted, speakers)
    return SimpleNamespace(runs=runs, scores=CellScores([*runs.values()]))


@pytest.mark.parametrize("seed", range(20))
def test_several_predictions_are_counted_at_once(seed: int) -> None:
    truth, predicted = truth_and_predictions(seed, 5 + 3 * seed, 2 + seed % 3)

    both = confusions(np.array(truth), np.array([predicted, truth]), 4)

    of_predicted = confusion_matrix(truth, predicted, labels=range(4))
    of_truth = np.diag(np.bincount(truth, minlength=4))
    assert both.tolist() == [of_predicted.tolist(), of_truth.tolist()]


@pytest.mark.parametrize("metric", MEASURES)
def test_a_score_is_pooled_over_the_folds_of_a_seed_then_averaged(cell: Any, metric: str) -> None:
    table = cell.scores.predictions.table
    by_seed = [percent(metric, rows) for _, rows in table.groupby("seed")]
    by_run = [percent(metric, rows) for _, rows in table.groupby("run")]
    by_fold = np.reshape(by_run, (2, 3)).mean(0)

    score = cell.scores.score(metric)

    assert score.pooled == pytest.approx(np.mean(by_seed))
    assert score.over_seeds == pytest.approx((np.mean(by_seed), np.std(by_seed, ddof=1)))
    assert score.over_folds == pytest.approx((np.mean(by_fold), np.std(by_fold, ddof=1)))
    assert score.seeds == 2
    assert score.folds == 3
    assert cell.scores.score(metric, "only audio").pooled == 100

    alone = CellScores([cell.runs[1, 2]]).score(metric)
    assert alone.over_seeds == (pytest.approx(by_run[-1]), None)
    assert alone.over_folds == alone.over_seeds


@pytest.mark.parametrize("metric", ["ua", "wa", "macro_f1"])
def test_an_interval_is_students_on_pseudo_values_of_the_groups(cell: Any, metric: str) -> None:
    """By hand: the t-test's interval of g θ − (g − 1) θ₍ᵢ₎.

    θ₍ᵢ₎ is the score without the i-th of g speakers in both seeds at once.
    """
    table = cell.scores.predictions.table

    def score_without(speaker: str | None) -> float:
        kept = table[table.speaker != speaker]
        by_seed = [percent(metric, rows) for _, rows in kept.groupby("seed")]
        return float(np.mean(by_seed))

    theta = score_without(None)
    pseudo_values = []
    for speaker in ("0a", "0b", "1a", "1b", "2a", "2b"):
        pseudo_values.append(6 * theta - 5 * score_without(speaker))
    interval = stats.ttest_1samp(pseudo_values, 0).confidence_interval(0.95)
    half = (interval.high - interval.low) / 2

    whole, low, high = cell.scores.with_interval(metric)

    assert cell.scores.predictions.over == "speakers"
    assert whole == pytest.approx(theta)
    assert (low, high) == pytest.approx((whole - half, whole + half))
    # Where all is right, no interval: nothing is that certain.
    assert cell.scores.with_interval("wa", "only audio") == (100, None, None)


@pytest.mark.parametrize(
    ("speakers", "dialogues", "over"),
    [
        pytest.param(list("abcd"), None, "4 speakers", id="four speakers"),
        pytest.param(list("abc"), list(range(12)), "no interval: 3 speakers", id="three speakers"),
        pytest.param(["a"], None, "no interval: 1 speaker", id="one speaker"),
        pytest.param([None], list(range(12)), "12 dialogues", id="dialogues"),
        pytest.param(["a", None], None, "60 utterances, too narrow", id="some without a speaker"),
        # As where none is named.
        pytest.param([None], list(range(60)), "60 utterances, too narrow", id="a dialogue each"),
    ],
)
def test_groups_are_speakers_else_dialogues_else_utterances(
    tmp_path: Path, speakers: list[Any], dialogues: list[int] | None, over: str
) -> None:
    people = [speakers[number % len(speakers)] for number in range(60)]
    numbers = None
    if dialogues:
        numbers = [dialogues[number % len(dialogues)] for number in range(60)]

    truth, predicted = truth_and_predictions(0, 60)
    run = make_run(tmp_path / "r", 0, 0, truth, predicted, people, numbers)
    cell_scores = CellScores([run])

    assert cell_scores.interval_over == over
    assert over in summary_text(cell_scores)
    shown = list(scores_as_json(cell_scores)["intervals"])
    if over.startswith("no"):
        assert shown == []
        assert None in cell_scores.with_interval("ua")
    else:
        group = over.split()[1].strip(",")
        assert shown == [f"{metric} over {group}" for metric in ("ua", "wa", "macro_f1")]
        assert None not in cell_scores.with_interval("ua")


def test_what_a_cell_says_of_itself(cell: Any) -> None:
    cell_scores = cell.scores
    assert cell_scores.classes == list(CLASSES)
    assert cell_scores.tests == ["both", "only audio"]
    assert cell_scores.confusion().sum() == 2 * (20 + 51 + 82)

    results = cell_scores.results
    said = conditions(cell_scores.runs)
    assert (
        said
        == "session-out · val · 4class (leaves out 30.0 % of the corpus) · only scripted · dev none"
    )
    assert left_out(results) == {"label xxx is not in 4class": 5, "--only scripted": 7}
    assert caveat(results) == "synthetic corpus (c): no comparison with the paper is meant"

    record = scores_as_json(cell_scores)
    _, low, high = cell_scores.with_interval("ua")
    keys = {"wa", "ua", "macro_f1", "intervals", "calibration", "conformal"}
    assert record.keys() == keys
    assert record["ua"] == cell_scores.score("ua").pooled
    assert record["intervals"]["ua over speakers"] == [low, high]


def test_a_class_that_is_nowhere_has_no_score(tmp_path: Path) -> None:
    run = make_run(tmp_path / "two", 0, 0, [0, 1], [0, 1], ["a", "b"])

    score = CellScores([run]).score("sad")

    assert score.folds == 0
    assert score.seeds == 0
    assert np.isnan(score.pooled)


def test_a_run_that_is_not_there_has_no_scores(tmp_path: Path) -> None:
    with pytest.raises(WrongUse):
        CellScores([Run(tmp_path)])


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        pytest.param(8, 2, 2 * (1 + 10 + 45) / 2**10, id="eight against two"),
        pytest.param(1, 1, 1, id="one against one"),
        pytest.param(0, 6, 2 / 2**6, id="none against six"),
        pytest.param(0, 0, 1, id="none against none"),
    ],
)
def test_mcnemar_is_the_binomial_tail_summed(b: int, c: int, p: float) -> None:
    first = [0] * b + [1] * c + [0] * 5
    second = [1] * b + [0] * c + [0] * 5

    assert mcnemar([0] * (b + c + 5), first, second) == pytest.approx(p)


def test_holm_corrects_a_family() -> None:
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1, 1]


def test_a_share_counts_groups() -> None:
    groups = ["a", "b", "c", "d"] * 5
    counted = 100 * np.array([i % 4 == 0 or i % 7 == 0 for i in range(20)])

    # Equal groups: the interval of their t-test.
    by_group = [np.mean(counted[k::4]) for k in range(4)]
    theirs = stats.ttest_1samp(by_group, 0).confidence_interval(0.95)
    interval = (max(0, theirs.low), min(100, theirs.high))
    assert average(counted, groups) == pytest.approx((np.mean(by_group), *interval))

    three = [groups[i % 3] for i in range(20)]
    assert average(counted, three)[1:] == (None, None)
    assert average([100] * 20, groups) == (100, None, None)
    assert average([100], ["a"]) == (100, None, None)


def test_a_t_test_of_runs_is_scipys() -> None:
    first = [0.61, 0.64, 0.60, 0.66, 0.63]
    second = [0.60, 0.60, 0.59, 0.61, 0.64]

    p, _ = p_of_runs(first, second)

    assert p == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert p_of_runs(first, first) == (None, 1.0)


def test_a_rank_test_of_runs_is_scipys() -> None:
    # 0.30000000000000004 and 0.3 share a rank.
    rounded = np.array([0.1 + 0.2, -0.3, 0.5, 0.7, 0.9])

    _, p = p_of_runs(rounded, np.zeros(5))

    assert p == stats.wilcoxon([3, -3, 5, 7, 9]).pvalue


def test_sign_flips_are_all_patterns_counted() -> None:
    parts = np.random.default_rng(3).normal(0.4, 1, 9).round(1)
    sums = np.array([abs(np.dot(parts, signs)) for signs in product((-1, 1), repeat=9)])

    assert sign_flip(parts) == pytest.approx(np.mean(sums >= abs(parts.sum()) - 1e-9))
    assert sign_flip(parts, sides=1) + sign_flip(-parts, sides=1) >= 1
    # Their sum is 0 but for rounding.
    assert sign_flip(np.array([0.1, 0.2, -0.3, 0.1, 0.2, -0.3])) == 1


def test_many_sign_flips_are_drawn_always_alike() -> None:
    many = np.random.default_rng(4).normal(0.3, 1, 40)

    p = sign_flip(many)

    assert p == sign_flip(many)
    assert p == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)


def two_cells(
    folder: Path, speakers: int, dialogues: list[int] | None = None
) -> tuple[CellScores, CellScores]:
    """The second is worse by a third on each odd speaker; two seeds against three."""
    truth, _ = truth_and_predictions(1, 240)
    people = [str(i % speakers) for i in range(240)]

    better: list[Run] = []
    worse: list[Run] = []
    for seed in range(3):
        _, predicted = truth_and_predictions(20 + seed if seed else 1, 240)
        if seed < 2:
            path = folder / f"better{seed}"
            better.append(make_run(path, seed, 0, truth, predicted, people, dialogues))

        for i in range(0, 240, 3):
            if i % speakers % 2:
                predicted[i] = 0
        path = folder / f"worse{seed}"
        worse.append(make_run(path, seed, 0, truth, predicted, people, dialogues))
    return CellScores(better), CellScores(worse)


@pytest.mark.parametrize("metric", ["ua", "wa"])
def test_cells_are_compared_over_speakers_with_all_seeds(tmp_path: Path, metric: str) -> None:
    """By hand: the difference with each set of speakers swapped between the cells, and without each
    speaker.
    """
    better, worse = two_cells(tmp_path, 6)
    # The cells have different numbers of seeds: an utterance's predictions weigh together as one.
    tables = [
        better.predictions.table.assign(cell=0, weight=1 / 2),
        worse.predictions.table.assign(cell=1, weight=1 / 3),
    ]
    rows = pandas.concat(tables)

    def difference(swapped: Sequence[str], without: str | None = None) -> float:
        kept = rows[rows.speaker != without]
        cell = kept.cell ^ kept.speaker.isin(swapped)
        return percent(metric, kept[cell == 0]) - percent(metric, kept[cell == 1])

    names = list("012345")
    flipped = np.array([difference([*compress(names, s)]) for s in product((0, 1), repeat=6)])
    unflipped = flipped[0]

    comparison = compare_cells(better, worse, metric)

    whole, low, high = comparison.difference
    assert whole == pytest.approx(unflipped)
    assert whole == pytest.approx(better.score(metric).pooled - worse.score(metric).pooled)
    assert comparison.about == "two-sided, 6 speakers"
    assert comparison.p == pytest.approx(np.mean(abs(flipped) >= abs(unflipped) - 1e-9))

    pseudo_values = [6 * whole - 5 * difference([], name) for name in names]
    half = stats.t.ppf(0.975, 5) * stats.sem(pseudo_values)
    assert (low, high) == pytest.approx((whole - half, whole + half))

    for claimed in (1, -1):
        comparison = compare_cells(better, worse, metric, claimed=claimed)
        as_large = claimed * flipped >= claimed * unflipped - 1e-9
        assert comparison.about == "one-sided, 6 speakers"
        assert comparison.p == pytest.approx(np.mean(as_large))


@pytest.mark.parametrize(
    ("speakers", "utterances_of_a_dialogue", "about"),
    [
        pytest.param(2, 20, "two-sided, 12 dialogues", id="enough dialogues"),
        pytest.param(5, None, "no test: 5 speakers", id="too few speakers"),
        pytest.param(2, 60, "no test: 4 dialogues", id="too few dialogues"),
    ],
)
def test_dialogues_are_compared_where_there_are_too_few_speakers(
    tmp_path: Path, speakers: int, utterances_of_a_dialogue: int | None, about: str
) -> None:
    dialogues = None
    if utterances_of_a_dialogue:
        dialogues = [i // utterances_of_a_dialogue for i in range(240)]

    comparison = compare_cells(*two_cells(tmp_path, speakers, dialogues))

    assert comparison is not None
    assert comparison.about == about
    assert (comparison.p is None) == about.startswith("no")


def test_only_cells_of_the_same_utterances_are_compared(tmp_path: Path) -> None:
    truth, predicted = truth_and_predictions(1, 30)
    people = ["a"] * 30
    mine = make_run(tmp_path / "mine", 0, 0, truth, predicted, people)
    theirs = make_run(tmp_path / "theirs", 0, 0, truth, predicted, people)
    of_another_fold = make_run(tmp_path / "other", 0, 7, truth, predicted, people)

    cell = CellScores([mine])
    assert compare_cells(cell, CellScores([theirs])) is not None
    assert compare_cells(cell, CellScores([of_another_fold])) is None

    # The ids are the same, and the corpus is another one.
    theirs.write_json(RESULT, structs.replace(theirs.result, corpus="d"))
    assert compare_cells(cell, CellScores([Run(theirs.path)])) is None


def test_a_quoted_number_is_signed_and_says_what_it_lacks() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(79.9, 0.4, 20)
    theirs = rng.normal(84.79, 0.5, 20)
    mean = ours.mean()
    score = Score(mean, (mean, ours.std(ddof=1)), 20, (mean, None), 1)

    # Of the paper's number no deviation is known.
    against_one = stats.ttest_1samp(ours, 84.79)
    low, high = against_one.confidence_interval()
    comparison = against_quoted(score, 84.79)
    assert comparison.difference == pytest.approx([mean - 84.79, low - 84.79, high - 84.79])
    assert comparison.difference[0] < 0
    assert comparison.p == pytest.approx(against_one.pvalue)
    assert comparison.about == "two-sided, 20 seeds; quoted without a deviation"

    welch = stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = welch.confidence_interval()
    comparison = against_quoted(score, theirs.mean(), theirs.std(ddof=1), 20)
    assert comparison.difference == pytest.approx([mean - theirs.mean(), low, high])
    assert comparison.p == pytest.approx(welch.pvalue)
    assert comparison.about == "two-sided, 20 seeds"

    without_seeds = against_quoted(score, 84.79, 0.5)
    assert without_seeds.about == "two-sided, 20 seeds; quoted without its seeds"

    of_one_seed = against_quoted(Score(80.0, (80.0, None), 1, (80.0, None), 1), 75)
    assert of_one_seed.difference == (5, None, None)
    assert of_one_seed.p is None


RECIPE_OF_TWO = """
tested = "ours"
[[cell]]
name = "ours"
features = "is13"
fusion = "audio"
paper = {{ {paper} }}
[[cell]]
name = "built"
features = "is13"
fusion = "audio"
paper = {{ wa = 75.6 }}
[[quoted]]
name = "higher"
paper = {{ wa = 84.79 }}
"""


@pytest.mark.parametrize(
    ("paper", "claim"),
    [
        pytest.param("wa = 76.9", 1, id="ours is claimed to be better"),
        pytest.param("wa = 70", -1, id="ours is claimed to be worse"),
        pytest.param("", 0, id="nothing is claimed"),
    ],
)
def test_a_recipes_table_gives_signs_sides_and_corrected_p(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paper: str, claim: int
) -> None:
    # These runs have no configs.
    differ_in(monkeypatch, ())
    cells = two_cells(tmp_path, 8)
    for cell in cells:
        for run in cell.runs:
            run.write_json(RESULT, structs.replace(run.result, synthetic=False))

    (tmp_path / "mine.toml").write_text(RECIPE_OF_TWO.format(paper=paper))
    recipe = read_recipe(tmp_path / "mine.toml")
    runs = {}
    for name, cell in zip(("ours", "built"), cells, strict=True):
        runs[name] = [Run(run.path) for run in cell.runs]

    ours, built, higher = recipe_rows(recipe, runs)
    ours_to_quoted = ours.scores["wa"].pooled - 84.79
    assert ours.compared is None
    assert built.compared is not None
    assert built.compared == compare_cells(*cells, "wa", claimed=claim)
    assert higher.compared is not None
    assert higher.compared.difference[0] == ours_to_quoted
    assert ours_to_quoted < 0

    # Holm's, of two.
    p_of_built = built.compared.p
    p_of_quoted = higher.compared.p
    doubled = 2 * min(p_of_built, p_of_quoted)
    assert built.holm_p == pytest.approx(min(1, max(doubled, p_of_built)))
    assert higher.holm_p == pytest.approx(min(1, max(doubled, p_of_quoted)))

    table = recipe_table(recipe, runs)
    sides = "one" if claim else "two"
    assert f"−{-ours_to_quoted:.2f} [−" in table
    assert f"{sides}-sided, 8 speakers" in table
    assert "two-sided, 2 seeds; quoted without a deviation" in table

    # With another selection than the paper's, cells are still tested against cells.
    differ_in(monkeypatch, ("select",))
    ours, built, higher = recipe_rows(recipe, runs)
    assert built.compared == compare_cells(*cells, "wa", claimed=claim)
    assert higher.compared is None


def differ_in(monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]) -> None:
    """Let runs differ from what a paper did in these settings, whatever their configs say."""

    def differences(*_: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (), settings

    monkeypatch.setattr("ser.train.report.recipe_table.differences", differences)


RECIPE_OF_SADNESS = """
[[cell]]
name = "ours"
features = "is13"
fusion = "audio"
paper = { sad = 50.0 }
"""


def test_a_recipes_runs_are_counted_where_folds_lack_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    differ_in(monkeypatch, ())
    (tmp_path / "mine.toml").write_text(RECIPE_OF_SADNESS)
    recipe = read_recipe(tmp_path / "mine.toml")

    runs = []
    for fold in range(10):
        truth = [0, 3] if fold else [0, 0]
        runs.append(make_run(tmp_path / str(fold), 0, fold, truth, [0, 0], ["a", "b"]))

    [row] = recipe_rows(recipe, {"ours": runs})
    assert row.scores["sad"].folds == 9
    assert "10 × 1" in recipe_table(recipe, {"ours": runs})


RECIPE = """
title = "One cell"
[experiment]
features = "is13"
fusion = "audio"
folds = 2
seeds = 3
epochs = 3
[[cell]]
name = "mine"
paper = { ua = 50.0, wa = 50.0 }
"""


def table_line(text: str, start: str) -> list[str]:
    """The cells of the first line that begins so, split where the table has two spaces."""
    for line in text.splitlines():
        if line.startswith(start):
            return re.split(r"\s{2,}", line.strip())
    raise AssertionError(f"no line of the table begins with {start}")


def row_of_results(path: Path) -> dict[str, str]:
    """The first row of the table of results in a file of several tables as CSV, by heading."""
    with path.open(encoding="utf-8") as file:
        lines = list(csv.reader(file))
    for number, line in enumerate(lines):
        if line and line[0] == "cell" and "macro-F1 over seeds %" in line:
            return dict(zip(line, lines[number + 1], strict=True))
    raise AssertionError(f"{path}: no table of results")


def mean_and_deviation(spread: tuple[float, float]) -> str:
    """As tables show it."""
    mean, deviation = spread
    return f"{mean:.2f} ± {deviation:.2f}"


def test_every_table_shows_the_same_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    """Two folds and three seeds, so that pooled scores and means over folds differ."""
    # So wide that no number stands in two lines.
    monkeypatch.setenv("COLUMNS", "400")
    make_store(tmp_path / "store")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    places = ("--store", tmp_path / "store", "--out", tmp_path / "runs", "--device", "cpu")
    numbers = ("--folds", 2, "--seeds", 3, "--epochs", 3)
    train = ("train", "--features", "is13", "--fusion", "audio", *numbers, *places)
    sweep = ("sweep", recipe, "--workers", 1, *places)
    forms = ("csv", "html", "markdown", "latex-all")
    files: list[object] = []
    for form in forms:
        files += [f"--{form}", tmp_path / form]

    runs = json.loads(printed(*train, "--json"))["runs"]
    trained = printed(*train)
    swept = printed(*sweep)
    [swept_row] = json.loads(printed(*sweep, "--json"))["rows"]
    reported = printed("report", tmp_path / "runs", *files)
    in_full = printed("report", tmp_path / "runs", "--tables", "results")
    exact = row_of_results(tmp_path / "csv")

    assert len(runs) == 6
    # Held to the formulas above.
    cell = CellScores([Run(Path(run["path"])) for run in runs])
    for metric in ("ua", "wa"):
        score = cell.score(metric)
        heading = metric.upper()
        seeds = mean_and_deviation(score.over_seeds)
        folds = mean_and_deviation(score.over_folds)
        mean_over_folds, _ = score.over_folds
        assert f"{score.pooled:.2f}" != f"{mean_over_folds:.2f}", "the two must differ"

        # `ser train`
        assert table_line(trained, heading)[1:5] == [seeds, "3", folds, "2"]
        pattern = rf"{metric} over speakers: ({score.pooled:.2f} \[([\d.]+), ([\d.]+)\])"
        [interval, low, high] = re.search(pattern, trained).groups()

        # `ser sweep`
        swept_line = table_line(swept, "mine")
        assert seeds in swept_line
        assert folds in swept_line
        swept_score = swept_row["scores"][metric]
        assert swept_score["pooled"] == pytest.approx(score.pooled)
        assert swept_score["over_seeds"] == pytest.approx(score.over_seeds)
        assert swept_score["over_folds"] == pytest.approx(score.over_folds)

        # `ser report`
        in_short = f"{score.pooled:.2f} [{float(low):.1f}, {float(high):.1f}]"
        assert in_short in table_line(reported, "audio")
        assert interval in in_full
        assert "over 4 speakers" in " ".join(reported.split())
        assert seeds in in_full
        assert folds in in_full
        assert float(exact[f"{heading} %"]) == pytest.approx(score.pooled, abs=1e-4)
        for over, spread in (("seeds", score.over_seeds), ("folds", score.over_folds)):
            mean = float(exact[f"{heading} over {over} %"])
            deviation = float(exact[f"{heading} over {over} % deviation"])
            assert (mean, deviation) == pytest.approx(spread, abs=1e-4)

        for form in ("html", "markdown", "latex-all"):
            text = (tmp_path / form).read_text(encoding="utf-8")
            text = text.replace("\\", "").replace("$pm$", "±")
            assert interval in text, form
            assert seeds in text, form
            assert folds in text, form
        assert f"{score.pooled:.2f} %" in (tmp_path / "html").read_text(encoding="utf-8")


SMALL = ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2", "lr=0.01")


def drawn(n: int, seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Classes drawn from softmax(z), and the probabilities softmax(scale · z).

    These are of a model that is too sure of them.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4)) * 2
    truth = (softmax(logits, 1).cumsum(1) < rng.random((n, 1))).sum(1)
    return truth, softmax(scale * logits, 1)


def test_the_calibration_error_is_that_of_its_bins() -> None:
    truth, probabilities = drawn(4000, 0, 2.5)
    is_right = probabilities.argmax(1) == truth
    confidence = probabilities.max(1)
    share, mean = calibration_curve(is_right, confidence, n_bins=15)

    bins = reliability(truth, probabilities)

    assert bins[:, 0].tolist() == np.histogram(confidence, 15, (0, 1))[0].tolist()
    counts, confidences, rights = bins[bins[:, 0] > 0].T
    assert rights / counts == pytest.approx(share)
    assert confidences / counts == pytest.approx(mean)
    assert ece(bins) == pytest.approx(counts @ abs(share - mean) / 4000)
    assert ece(bins) > 0.1

    # Too sure in one bin and not sure enough in another do not cancel out.
    opposed = np.array([[1, 0.9, 0], [1, 0.6, 1]])
    assert ece(opposed) == pytest.approx((0.9 + 0.4) / 2)


def test_a_temperature_mends_the_calibration() -> None:
    truth, probabilities = drawn(4000, 0, 2.5)

    temperature = fit_temperature(truth, probabilities)
    mended = tempered(probabilities, temperature)

    assert temperature == pytest.approx(2.5, rel=0.06)
    assert mended == pytest.approx(softmax(np.log(probabilities) / temperature, 1))
    assert (mended.argmax(1) == probabilities.argmax(1)).all()
    assert ece(reliability(truth, mended)) < 0.03

    losses = []
    for t in (temperature, 2, 3):
        of_truth = tempered(probabilities, t)[np.arange(4000), truth]
        losses.append(-np.log(of_truth).mean())
    assert losses[0] == min(losses)


def test_a_temperature_has_a_bound() -> None:
    """Of what is always right: as sure as may be."""
    probabilities = np.array([[0.6, 0.4], [0.4, 0.6]])
    assert 0.05 < fit_temperature(np.array([0, 1]), probabilities) < 0.06


PROBABILITIES_OF_DEV = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])


@pytest.mark.parametrize(
    ("truth", "fault"),
    [
        pytest.param([0, 1, 0], "dev has no error", id="all are right"),
        pytest.param([1, 0, 1], "the fit ended at a bound", id="all are wrong"),
    ],
)
def test_a_temperature_that_dev_does_not_say_stays_1(truth: list[int], fault: str) -> None:
    """27 of 30 runs on EmoDB: a dev part of one speaker was all right, and T went to its bound."""
    chosen = choose_temperature(np.array(truth), PROBABILITIES_OF_DEV)

    assert chosen.temperature == 1.0
    assert chosen.fault == fault


def test_a_temperature_that_dev_says_is_taken() -> None:
    truth, probabilities = drawn(4000, 0, 2.5)

    chosen = choose_temperature(truth, probabilities)

    assert chosen.temperature != 1
    assert chosen.temperature == fit_temperature(truth, probabilities)
    assert chosen.fault is None


@pytest.mark.parametrize("n", [5, 9, 29, 100])
def test_conformal_sets_keep_their_promise_to_those_who_are_alike(n: int) -> None:
    """Of exchangeable utterances from 90 % to 90 % + 1 / (n + 1) are covered.

    All, with too few to calibrate on.
    """
    # The share of n scores that is 90 % of n + 1 of them, rounded up.
    level = math.ceil((n + 1) * 0.9 - 1e-9) / n

    shares_covered = []
    for seed in range(400):
        truth, probabilities = drawn(n + 50, seed, 2.5)
        threshold = conformal_threshold(truth[:n], probabilities[:n])
        if level <= 1:
            distances = 1 - probabilities[np.arange(n), truth[:n]]
            expected = 1 - np.quantile(distances, level, method="inverted_cdf")
            assert threshold == pytest.approx(expected)

        is_in_set = probabilities[n:] >= threshold
        shares_covered.append(is_in_set[np.arange(50), truth[n:]].mean())

    most = 1 if n < 9 else 0.91 + 1 / (n + 1)
    assert 0.89 < np.mean(shares_covered) <= most


def lgf_options(store: Path) -> dict[str, Any]:
    """What to train, of two folds."""
    return {
        "features": "is13+bert",
        "fusion": "lgf-add",
        "epochs": 4,
        "set": SMALL,
        "store": store,
        "folds": 2,
    }


def test_a_run_keeps_its_dev_predictions_sealed(store: Path, tmp_path: Path) -> None:
    runs = run_experiment(Experiment(**lgf_options(store), out=tmp_path / "runs"))
    for run in runs:
        dev = run.dev_predictions
        calibrated = run.result.calibration
        truth = np.array([run.result.classes.index(name) for name in dev["truth"].to_pylist()])
        probabilities = np.array(dev["probabilities"].to_pylist())
        assert len(dev) == run.result.parts["dev"] == calibrated.n_dev
        chosen = choose_temperature(truth, probabilities)
        assert calibrated.temperature == pytest.approx(chosen.temperature, rel=1e-6)
        assert calibrated.unfitted == chosen.fault

        test_ids = run.predictions()["id"].to_pylist()
        assert set(dev["id"].to_pylist()).isdisjoint(test_ids)

    cell = CellScores(runs)
    calibration_as_json = scores_as_json(cell)["calibration"]
    assert temperatures(cell) == calibration_as_json["temperatures"]
    assert 0 <= calibration_as_json["ece_tempered"] <= 100
    assert "no guarantee across speakers" in summary_text(cell)

    _, right_of_all = abstaining(cell, 0.0)
    _, right_of_none = abstaining(cell, 1.1)
    assert right_of_all == pytest.approx(cell.with_interval("wa"))
    assert right_of_none is None

    hot = structs.replace(cell.results[0].calibration, temperature=19.9999)
    runs[0].__dict__["result"] = structs.replace(runs[0].result, calibration=hot)
    [row] = calibration_table(group_runs(runs)[0]).rows
    assert " of 2 at a bound" in row["temperatures"]

    file = runs[0].path / "dev.parquet"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptStore, match="is not the file that"):
        scores_as_json(CellScores([Run(runs[0].path)]))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"select": "last"}, id="the last epoch"),
        pytest.param({"set": (*SMALL, "refit=true")}, id="trained again with the dev part"),
    ],
)
def test_without_a_dev_part_nothing_is_calibrated(
    store: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    options = {**lgf_options(store), "folds": 1, **changes}

    [run] = run_experiment(Experiment(**options, out=tmp_path / "runs"))

    assert run.dev_predictions is None
    assert run.result.calibration is None
    assert conformal(CellScores([run])) is None
    row = calibration_table(group_runs([run])[0]).rows[0]
    assert row["temperatures"] == "not recorded"
    assert row["coverage of the sets %"] is None
    assert row["ECE %"] > 0


def test_what_is_below_the_threshold_is_no_answer(newcomer: Path, tmp_path: Path) -> None:
    run = run_of(newcomer, "text")
    texts = ("hello there", "I am so happy", "leave me alone now")
    turns = [Turn(str(number), text=text) for number, text in enumerate(texts)]
    predictor = Predictor(run.path)
    assert predictor.temperature == run.result.calibration.temperature

    predictions = predictor(turns).predictions
    confidences = [max(prediction.probabilities.values()) for prediction in predictions]
    middle = sorted(confidences)[1]

    answer = predictor(turns, middle)

    abstained = [prediction.abstained for prediction in answer.predictions]
    assert abstained == [confidence < middle for confidence in confidences]
    (covered, *_), right = abstaining(CellScores([run]), middle)
    if right is not None:
        assert f"answered {covered:.1f} %, and {right[0]:.1f} %" in " ".join(answer.notes)

    # Without a temperature the labels are the same.
    copy = Run(Path(shutil.copytree(run.path, tmp_path / run.name)))
    files = {name: file for name, file in copy.result.files.items() if name != "dev.parquet"}
    copy.write_json(RESULT, structs.replace(copy.result, calibration=None, files=files))
    untempered = Predictor(copy.path)
    assert untempered.temperature is None
    labels = [prediction.label for prediction in untempered(turns).predictions]
    assert labels == [prediction.label for prediction in answer.predictions]


def test_a_bound_of_predict_is_a_probability(newcomer: Path) -> None:
    run = run_of(newcomer, "text")
    words = ("predict", run.path, "--text", "hello there", "--abstain-below")

    wrong = ser(*words, "nan")
    assert wrong.exit_code == 2
    assert "must be a probability" in wrong.output

    done = ser(*words, 1)
    assert done.exit_code == 0
    assert "abstained" in done.stdout

    [prediction] = json.loads(ser(*words, 1, "--json").stdout)["predictions"]
    assert prediction["abstained"]
    assert sum(prediction["probabilities"].values()) == pytest.approx(1)
