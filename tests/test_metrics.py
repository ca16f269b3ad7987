"""Metrics against their formulas written the slow way, and against scikit-learn where it has them."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from ser.train.scores import against, bootstrap, mcnemar, mean_std, paired_t, pooled, scores, wilcoxon

CLASSES = ("ang", "hap", "neu", "sad")


def made(seed: int, n: int = 97, classes: int = 4) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, n, p=np.array([5, 2, 1, 1])[:classes] / np.sum(np.array([5, 2, 1, 1])[:classes]))
    predicted = np.where(rng.random(n) < 0.6, truth, rng.integers(classes, size=n))
    return truth.tolist(), predicted.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_slow_formulas(seed: int) -> None:
    truth, predicted = made(seed)
    found = scores(truth, predicted, CLASSES)
    right = [t == p for t, p in zip(truth, predicted, strict=True)]
    assert found["wa"] == pytest.approx(sum(right) / len(right), abs=1e-15)
    assert found["wa"] == accuracy_score(truth, predicted)
    recall, f1, weight = [], [], []
    for k in sorted(set(truth)):
        hits = sum(t == p == k for t, p in zip(truth, predicted, strict=True))
        recall.append(hits / truth.count(k))
        f1.append(2 * hits / (truth.count(k) + predicted.count(k)))
        weight.append(truth.count(k) / len(truth))
    assert found["ua"] == pytest.approx(sum(recall) / len(recall), abs=1e-15)
    assert found["ua"] == pytest.approx(balanced_accuracy_score(truth, predicted))
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
    assert found["confusion"] == confusion_matrix(truth, predicted, labels=range(4)).tolist()
    for name in ("macro", "weighted"):
        f1 = f1_score(truth, predicted, labels=present, average=name, zero_division=0)
        assert found[f"{name}_f1"] == pytest.approx(f1, abs=1e-15)


def test_wa_and_ua_are_not_the_same_thing() -> None:
    found = scores([0] * 9 + [1], [0] * 10, ("neu", "ang"))
    assert found["wa"] == 0.9 and found["ua"] == 0.5


def test_a_class_that_does_not_occur_counts_nowhere() -> None:
    found = scores([0, 0, 1], [0, 2, 1], CLASSES)
    assert found["per_class"] == {"ang": 0.5, "hap": 1.0, "neu": None, "sad": None}
    assert found["ua"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_pooled_is_the_score_of_all_utterances_together() -> None:
    first, second = made(1, 30), made(2, 61)
    folds = [scores(*first, CLASSES), scores(*second, CLASSES)]
    found, whole = pooled(folds, CLASSES), scores(first[0] + second[0], first[1] + second[1], CLASSES)
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_mean_std_is_the_sample_deviation() -> None:
    mean, std = mean_std([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert std == pytest.approx(math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2))
    assert mean_std([0.5]) == (0.5, None)


def test_bootstrap_agrees_with_resampling_by_hand() -> None:
    truth, predicted = made(3, 200)
    interval = bootstrap(truth, predicted, 4, "wa", resamples=4000)
    rng = np.random.default_rng(9)
    right = np.equal(truth, predicted)
    by_hand = [right[rng.integers(200, size=200)].mean() for _ in range(4000)]
    assert interval.value == right.mean()
    assert [interval.low, interval.high] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), abs=0.012)
    assert interval == bootstrap(truth, predicted, 4, "wa", resamples=4000)


def test_bootstrap_over_speakers_draws_speakers() -> None:
    # Speaker a is all right, speaker b all wrong: a resample is 0, ½ or 1 right, so the interval is everything.
    truth, predicted, speakers = [0] * 100, [0] * 50 + [1] * 50, ["a"] * 50 + ["b"] * 50
    assert (bootstrap(truth, predicted, 2, "wa").high - bootstrap(truth, predicted, 2, "wa").low) < 0.25
    wide = bootstrap(truth, predicted, 2, "wa", groups=speakers)
    assert (wide.low, wide.high) == (0.0, 1.0)


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


def test_against_a_quoted_number() -> None:
    assert against([85.4, 85.0, 85.8], 75.6).p < 0.01
    assert against([85.4, 85.0, 85.8], 85.4).p == pytest.approx(1.0)
    assert against([80.0, 80.0], 80.0).p == 1.0
