"""Effect sizes between groups: against exact tests, simulated corpora and R's lme4."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from ser.cache.store import open_store
from ser.cache.tools.importing import import_feature
from ser.corpus.manifest import Manifest
from ser.explore.effects import (
    MeanSquares,
    all_effects,
    effects,
    fit_mixed_model,
    holm,
    interval,
    make_design,
)
from ser.tests.command_line import printed, ser

SPEAKERS = 12
EACH = 10


def simulated(
    seed: int, d: float, features: int, between: float = 1.0
) -> tuple[np.ndarray, list[str], list[str]]:
    """Values `[n, features]` of two balanced groups within speakers, their groups and speakers."""
    rng = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(SPEAKERS), EACH)
    groups = np.tile(["neu", "ang"], SPEAKERS * EACH // 2)
    of_speakers = np.sqrt(between) * rng.normal(size=(SPEAKERS, features))
    values = np.repeat(of_speakers, EACH, 0) + rng.normal(size=(len(groups), features))
    values[groups == "ang"] += d * np.sqrt(1 + between)
    return values, groups.tolist(), [f"s{speaker}" for speaker in speakers]


def test_balanced_groups_give_the_exact_test() -> None:
    """Within speakers, of as many utterances each, it is the t-test of the centred values."""
    values, groups, speakers = simulated(0, 0.3, 3)
    design = make_design(groups, speakers, "neu")
    found = all_effects(values, ["a", "b", "c"], design)

    half = np.where(np.array(groups) == "ang", 0.5, -0.5)
    freedom = len(groups) - SPEAKERS - 1
    assert design.degrees_of_freedom(1) == freedom
    for column, effect in enumerate(found):
        by_speaker = values[:, column].reshape(SPEAKERS, EACH)
        centred = (by_speaker - by_speaker.mean(1, keepdims=True)).ravel()
        slope = half @ centred / (half @ half)
        rest = ((centred - half * slope) ** 2).sum() / freedom
        error = np.sqrt(rest / (half @ half))
        assert effect.p == pytest.approx(2 * stats.t.sf(abs(slope / error), freedom), rel=1e-3)

        # The variance of speakers, by the mean squares.
        between = (EACH * by_speaker.mean(1).var(ddof=1) - rest) / EACH
        assert effect.d == pytest.approx(slope / np.sqrt(rest + between), rel=1e-3)
        assert effect.low < effect.d < effect.high


def test_groups_of_whole_speakers_have_few_degrees_of_freedom() -> None:
    """However many utterances each has."""
    speakers = [f"s{number // EACH}" for number in range(SPEAKERS * EACH)]
    groups = ["f" if number // EACH % 2 else "m" for number in range(SPEAKERS * EACH)]
    design = make_design(groups, speakers, "m")
    assert design.degrees_of_freedom(1) == SPEAKERS - 2

    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=SPEAKERS), EACH) + rng.normal(size=len(groups))
    means = values.reshape(SPEAKERS, EACH).mean(1)
    exact = stats.ttest_ind(means[1::2], means[::2]).pvalue
    [effect] = effects(values, "x", design)
    assert effect.p == pytest.approx(exact, rel=1e-3)


def test_speakers_who_do_not_differ_and_what_does_not_vary() -> None:
    values, groups, speakers = simulated(1, 0.5, 1, between=0.0)
    design = make_design(groups, speakers, "neu")
    [effect] = effects(values[:, 0], "x", design)
    pooled = np.sqrt(
        np.mean([values[np.array(groups) == name].var(ddof=1) for name in set(groups)])
    )
    difference = values[np.array(groups) == "ang"].mean() - values[np.array(groups) == "neu"].mean()
    assert effect.d == pytest.approx(difference / pooled, rel=0.05)

    for constant in (np.zeros(len(groups)), np.full(len(groups), np.nan)):
        [unknown] = effects(constant, "x", design)
        assert np.isnan([unknown.d, unknown.low, unknown.p]).all()


def test_where_speakers_hardly_differ_no_other_variance_is_likelier() -> None:
    """Few utterances, unevenly spread: the likelihood with its matrices written out."""
    speakers = np.repeat(np.arange(4), [7, 7, 8, 6])
    rng = np.random.default_rng(5)
    same = (speakers[:, None] == speakers).astype(float)

    at_bound = 0
    for _ in range(20):
        fixed = np.stack([np.ones(28), rng.random(28) < 0.5], 1)
        values = rng.normal(size=28)

        def fit_at(
            ratio: float, x: np.ndarray = fixed, y: np.ndarray = values
        ) -> tuple[float, np.ndarray, np.ndarray]:
            covariance = np.eye(28) + ratio * same
            weighted = np.linalg.solve(covariance, x)
            inverse = np.linalg.inv(x.T @ weighted)
            slopes = inverse @ weighted.T @ y
            rest = y - x @ slopes
            variance = rest @ np.linalg.solve(covariance, rest) / 26
            loss = 26 * np.log(variance) + np.linalg.slogdet(covariance)[1]
            loss -= np.linalg.slogdet(inverse)[1]
            return loss, slopes, np.sqrt(variance * np.diag(inverse))

        model = fit_mixed_model(values, fixed, speakers)
        ratio = model.speaker_variance / model.rest_variance
        least, slopes, errors = fit_at(ratio)
        assert all(least <= fit_at(other)[0] + 1e-9 for other in np.linspace(0, 2, 101))
        np.testing.assert_allclose(model.coefficients, slopes, rtol=1e-8)
        np.testing.assert_allclose(model.errors, errors, rtol=1e-8)
        at_bound += ratio < 1e-6
    assert 0 < at_bound < 20


def test_intervals_of_independent_groups_are_those_of_the_noncentral_t() -> None:
    """Exact where speakers do not count: by the distribution of Cohen's d (Steiger, 2004)."""
    count = 20
    d = 1.2
    error = np.sqrt(2 / count)
    freedom = 2 * count - 2
    low, high = interval(d, error, MeanSquares(0.0, 1, freedom, False))

    def exact(level: float) -> float:
        def excess(delta: float) -> float:
            return float(stats.nct.cdf(d / error, freedom, delta) - level)

        return float(optimize.brentq(excess, -10, 20) * error)

    assert low == pytest.approx(exact(0.975), abs=0.01)
    assert high == pytest.approx(exact(0.025), abs=0.01)


def test_figures_of_lme4() -> None:
    """Of R: `lmer(Weight ~ Time + (1 | Pig), data = dietox)`, on data that statsmodels brings."""
    # It takes a second to import.
    import statsmodels

    folder = Path(statsmodels.__file__).parent
    table = pd.read_csv(folder / "regression" / "tests" / "results" / "dietox.csv")
    fixed = np.stack([np.ones(len(table)), table["Time"].to_numpy(float)], 1)
    _, pigs = np.unique(table["Pig"], return_inverse=True)

    weights = table["Weight"].to_numpy(float)
    model = fit_mixed_model(weights, fixed, pigs)
    assert np.allclose(model.coefficients, [15.723523, 6.942505], rtol=1e-5)
    assert np.allclose(model.errors, [0.78805374, 0.03338727], rtol=1e-5)
    assert model.speaker_variance == pytest.approx(40.39395, rel=1e-5)
    assert model.rest_variance == pytest.approx(11.36692, rel=1e-5)


def test_holm() -> None:
    """The example of R: p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm")."""
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.01]) == pytest.approx([0.04, 0.02])
    adjusted = holm([0.5, float("nan"), 0.9])
    assert adjusted[0] == 1.0
    assert np.isnan(adjusted[1])


# The command
# ----------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dimensions, of which the second differs between the labels."""
    folder = tmp_path_factory.mktemp("explore")
    values, groups, speakers = simulated(3, 0.0, 3)
    values[np.array(groups) == "ang", 1] += 2.0
    rows = []
    for number, (label, speaker) in enumerate(zip(groups, speakers, strict=True)):
        rows.append({"id": f"u{number:03d}", "label": label, "speaker": speaker})
    rows.append({"id": "nobody", "label": "ang", "speaker": None})
    rows.append({"id": "alone", "label": "sad", "speaker": "s1"})
    np.save(folder / "x.npy", np.vstack([values, np.zeros((2, 3))]).astype(np.float32))

    manifest = Manifest.from_rows("toy", rows)
    opened = open_store(folder / "s", create=True)
    import_feature(opened, "mine", folder / "x.npy", "audio", manifest)
    return folder / "s"


def test_the_table_and_the_page(store: Path, tmp_path: Path) -> None:
    table = tmp_path / "effects.csv"
    page = tmp_path / "effects.html"
    words = ["explore", "mine", "--reference", "neu", "--csv", table, "--html", page]
    shown = printed(*words, "--store", store)
    assert shown.splitlines()[0].startswith("1 ")
    assert "ang against neu: d = 1." in shown.splitlines()[0]

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dimension"] for row in rows] == ["0", "1", "2"]
    assert float(rows[1]["p_holm"]) < 1e-6
    assert float(rows[1]["low"]) > 0.5
    assert {row["reference"] for row in rows} == {"neu"}

    html = page.read_text()
    assert html.count("<svg ") == 3
    assert "1 utterances are left out: without a speaker" in html
    assert "1 utterances are left out: alone of their label" in html
    # A dot for each speaker and group.
    assert html.index("<h2>1</h2>") < html.index("<h2>0</h2>")


REFUSED = {
    "a column that is none": (["--by", "mood"], "unknown column to compare by"),
    "a group that is none": (["--reference", "joy"], "unknown group"),
    "one column twice": (["--by", "speaker"], "groups are compared within another column"),
    "nothing of a column": (["--by", "gender"], "two groups are needed, and there are: none"),
    "a mark without a table": (["--decimal", ","], "--decimal is for --csv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared(store: Path, case: str) -> None:
    options, reason = REFUSED[case]
    refused = ser("explore", "mine", *options, "--store", store)
    assert refused.exit_code == 2
    assert reason in " ".join(refused.output.split())


@pytest.mark.slow
@pytest.mark.parametrize("d", [0.0, 0.5, 2.0])
def test_coverage_and_type_one_errors(d: float) -> None:
    """Of 1,000 simulated features without an effect, with a middling and with a large one."""
    values, groups, speakers = simulated(2, d, 1000)
    design = make_design(groups, speakers, "neu")
    found = all_effects(values, [str(number) for number in range(1000)], design)
    covered = np.mean([effect.low < d < effect.high for effect in found])
    assert 0.93 < covered < 0.97
    for effect in found:
        # But for how exactly quantiles stand for a distribution.
        if not 0.045 < effect.p < 0.055:
            assert (effect.p < 0.05) == (not effect.low < 0 < effect.high)
    if d == 0:
        assert 0.03 < np.mean([effect.p < 0.05 for effect in found]) < 0.07
        assert not any(effect.p_holm < 0.01 for effect in found)
