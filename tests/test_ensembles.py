"""Ensembles: their numbers are numpy's and scikit-learn's, and they are runs like any other."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score
from sklearn.model_selection import GridSearchCV, GroupKFold

from ser.errors import LeakageError, StoreError, WrongUse
from ser.predict import Predictors
from ser.predict.from_store import predict_stored
from ser.tests.command_line import ser
from ser.tests.named_commands import next_command
from ser.tests.newcomer import run_of, turns_of_test_part
from ser.train.ensemble.make import make_ensemble
from ser.train.ensemble.members import matrix_of
from ser.train.ensemble.stacking import fit_stack
from ser.train.ensemble.weights import weights_of_classes, weights_of_ratings
from ser.train.experiment import Experiment, run_experiment
from ser.train.run_folder import DEV, Run, load_run

SMALL = ("d_model=16", "gru_hidden=8", "heads=2", "lr=0.01")
NEXT = "dev=next"


def trained(store: Path, out: Path, experiment: Experiment) -> list[Run]:
    options = {"set": (NEXT,), "also_set": SMALL, "epochs": 2, "folds": 1}
    if experiment.fusion == "linear":
        options["epochs"] = None
        # What is fitted on dev needs a member that has not learnt from it.
        options["set"] = (NEXT, "refit=false")
    for name, value in vars(experiment).items():
        if name in options and value not in ((), None, "all"):
            options[name] = value
    return run_experiment(replace(experiment, store=store, out=out, **options))


@pytest.fixture(scope="module")
def members(store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three models of two kinds of features, one of them linear, on the same fold."""
    out = tmp_path_factory.mktemp("members")
    runs = trained(store, out, Experiment("is13", "audio", seeds=2))
    runs += trained(store, out, Experiment("is13+bert", "linear"))
    return sorted(runs, key=lambda run: run.name)


def by_member(ensemble: Run, members: list[Run], name: str = "predictions.parquet") -> np.ndarray:
    """[M, n, K], in the ensemble's order of members and utterances."""
    record = ensemble.result.ensemble
    assert record is not None
    ids = ensemble.predictions(name).column("id").to_pylist()
    probabilities = []
    for member in record.members:
        [run] = [run for run in members if run.name == member.run]
        table = run.predictions(name)
        place = {id_: row for row, id_ in enumerate(table.column("id").to_pylist())}
        lists = table.column("probabilities").to_pylist()
        probabilities.append([lists[place[id_]] for id_ in ids])
    return np.array(probabilities)


def own(ensemble: Run, name: str = "predictions.parquet") -> np.ndarray:
    return np.array(ensemble.predictions(name).column("probabilities").to_pylist())


def test_mean_median_and_majority_are_numpys(members: list[Run], tmp_path: Path) -> None:
    for by in ("mean", "median", "majority"):
        [ensemble] = make_ensemble([run.path for run in members], by, tmp_path)
        for name in ("predictions.parquet", DEV):
            p = by_member(ensemble, members, name)
            combined = own(ensemble, name)
            np.testing.assert_allclose(combined.sum(1), 1, atol=1e-12)
            if by == "mean":
                np.testing.assert_allclose(combined, p.mean(0), rtol=0, atol=1e-7)
            if by == "median":
                medians = np.median(p, axis=0)
                shares = medians / medians.sum(1, keepdims=True)
                np.testing.assert_allclose(combined, shares, rtol=0, atol=1e-7)
            if by == "majority":
                votes = np.stack([np.bincount(v, minlength=4) for v in p.argmax(2).T])
                best = votes == votes.max(1, keepdims=True)
                winner = np.where(best, p.mean(0), -1).argmax(1)
                np.testing.assert_array_equal(combined.argmax(1), winner)

        table = ensemble.predictions()
        truth = table.column("truth").to_pylist()
        predicted = table.column("predicted").to_pylist()
        result = ensemble.result
        assert result.ua == pytest.approx(recall_score(truth, predicted, average="macro"))
        assert result.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
        assert result.calibration is not None
        assert result.calibration.n_dev == len(own(ensemble, DEV))
        assert load_run(ensemble.path).checked().name == ensemble.name


def test_a_stack_is_scikit_learns_on_the_dev_part_by_speakers(
    members: list[Run], tmp_path: Path
) -> None:
    [ensemble] = make_ensemble([run.path for run in members], "stack", tmp_path)
    dev = ensemble.predictions(DEV)
    on_dev = by_member(ensemble, members, DEV)
    features = np.concatenate(list(on_dev), 1)
    truth = dev.column("truth").to_pylist()
    record = ensemble.result.ensemble
    assert record is not None

    regression = LogisticRegression(C=record.strength, max_iter=2000).fit(features, truth)

    on_test = np.concatenate(list(by_member(ensemble, members)), 1)
    assert list(regression.classes_) == ensemble.result.classes
    np.testing.assert_allclose(own(ensemble), regression.predict_proba(on_test), atol=1e-9)
    # Of dev it keeps what was not fitted on the speaker.
    assert np.abs(own(ensemble, DEV) - regression.predict_proba(features)).max() > 1e-3


def test_the_strength_of_a_stack_is_the_one_that_a_grid_search_finds() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    speakers = [f"s{number}" for number in rng.integers(0, 12, 300)]
    logits = rng.normal(size=(4, 300, 3)) + 1.5 * np.eye(3)[truth]
    members = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)

    stack, held_out = fit_stack(members, truth, speakers)

    search = GridSearchCV(
        LogisticRegression(max_iter=2000),
        {"C": [0.01, 0.1, 1.0, 10.0]},
        scoring="neg_log_loss",
        cv=GroupKFold(5),
    ).fit(np.concatenate(list(members), 1), truth, groups=speakers)
    assert stack.strength == search.best_params_["C"]
    np.testing.assert_allclose(
        stack.probabilities(members),
        search.predict_proba(np.concatenate(list(members), 1)),
        atol=1e-9,
    )
    assert held_out.shape == (300, 3)

    with pytest.raises(WrongUse, match="one speaker alone"):
        fit_stack(members, truth, ["s"] * 300)
    two = members[:, :, :2] / members[:, :, :2].sum(2, keepdims=True)
    labels = np.minimum(truth, 1)
    regression = LogisticRegression(max_iter=2000)
    stack, _ = fit_stack(two, labels, speakers)
    regression.set_params(C=stack.strength).fit(np.concatenate(list(two), 1), labels)
    expected = regression.predict_proba(np.concatenate(list(two), 1))
    np.testing.assert_allclose(stack.probabilities(two), expected, atol=1e-9)


def test_weights_are_those_that_an_optimiser_finds() -> None:
    """Of classes by their log-likelihood, of ratings by their squared error."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 400)
    strength = np.array([2.0, 1.0, 0.0])[:, None, None]
    logits = rng.normal(size=(3, 400, 4)) + strength * np.eye(4)[truth]
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)

    def loss(free: np.ndarray) -> float:
        weights = np.exp(free) / np.exp(free).sum()
        mixed = np.einsum("m,mn->n", weights, p[:, np.arange(400), truth])
        return float(-np.log(mixed).sum())

    best = minimize(loss, np.zeros(3), tol=1e-12).x
    expected = np.exp(best) / np.exp(best).sum()
    np.testing.assert_allclose(weights_of_classes(p, np.eye(4)[truth]), expected, atol=1e-3)

    rated = rng.normal(size=(300, 2))
    ratings = rated + rng.normal(size=(3, 300, 2)) * np.array([0.5, 1.0, 1.0])[:, None, None]
    weights = weights_of_ratings(ratings, rated)
    # Noises are independent: the best weights are the inverse variances', 4 : 1 : 1.
    np.testing.assert_allclose(weights, [4 / 6, 1 / 6, 1 / 6], atol=0.08)
    assert weights.sum() == pytest.approx(1)


def test_weights_come_from_dev_alone(members: list[Run], tmp_path: Path) -> None:
    [ensemble] = make_ensemble([run.path for run in members], "mean", tmp_path, "dev")
    dev = ensemble.predictions(DEV)
    number = {name: k for k, name in enumerate(ensemble.result.classes)}
    truth = np.array([number[label] for label in dev.column("truth").to_pylist()])
    expected = weights_of_classes(by_member(ensemble, members, DEV), np.eye(4)[truth])
    record = ensemble.result.ensemble
    assert record is not None
    weights = [member.weight for member in record.members]
    np.testing.assert_allclose(weights, expected)
    mixed = np.einsum("m,mnk->nk", expected, by_member(ensemble, members))
    np.testing.assert_allclose(own(ensemble), mixed, rtol=0, atol=1e-7)


def test_what_cannot_be_one_ensemble_is_refused_by_name(
    members: list[Run], store: Path, tmp_path: Path
) -> None:
    first, second, _ = members
    out = tmp_path / "out"
    two_folds = trained(store, tmp_path, Experiment("is13", "audio", folds=2))
    with pytest.raises(LeakageError, match=r"tests fold session 2.*on whose test"):
        make_ensemble([run.path for run in two_folds], "mean", out)

    [limited] = trained(store, tmp_path, Experiment("is13", "audio", limit=80))
    with pytest.raises(LeakageError, match="may have been trained on; give runs that are cut"):
        make_ensemble([first.path, limited.path], "mean", out)

    [other_dev] = trained(store, tmp_path, Experiment("is13", "audio", set=("dev=0.2",)))
    with pytest.raises(LeakageError, match=f"{other_dev.name}|{first.name}"):
        make_ensemble([first.path, other_dev.path], "stack", out)
    [without] = make_ensemble([first.path, other_dev.path], "mean", out)
    assert DEV not in without.result.files

    [other_classes] = trained(store, tmp_path, Experiment("is13", "audio", labels="5class"))
    with pytest.raises(WrongUse, match=r"predicts .*give runs that predict the same"):
        make_ensemble([first.path, other_classes.path], "mean", out)

    [ensemble] = make_ensemble([first.path, second.path], "mean", out)
    with pytest.raises(WrongUse, match="is an ensemble itself"):
        make_ensemble([ensemble.path, second.path], "mean", out)
    with pytest.raises(WrongUse, match="needs two runs at least"):
        make_ensemble([first.path], "mean", out)
    refused = ser("ensemble", first.path, second.path, "--by", "median", "--weights", "dev")
    assert refused.exit_code == 2
    assert "--weights dev is for --by mean" in refused.stderr


def test_ratings_are_averaged_and_voted_for_by_nobody(store: Path, tmp_path: Path) -> None:
    runs = trained(store, tmp_path, Experiment("is13", "audio", target="vad", seeds=2))
    [ensemble] = make_ensemble([run.path for run in runs], "mean", tmp_path / "out", "dev")
    record = ensemble.result.ensemble
    assert record is not None
    weighted = 0
    for member, run in zip(
        record.members, sorted(runs, key=lambda run: run.config.seed), strict=True
    ):
        assert member.run == run.name
        weighted += member.weight * run.predictions().column("predicted valence").to_numpy()
    own_ratings = ensemble.predictions().column("predicted valence").to_numpy()
    np.testing.assert_allclose(own_ratings, weighted, rtol=0, atol=1e-7)
    assert ensemble.result.ccc is not None
    with pytest.raises(WrongUse, match="--by majority is for classes"):
        make_ensemble([run.path for run in runs], "majority", tmp_path / "out")


def test_cells_of_several_folds_are_one_cell_of_a_report(store: Path, tmp_path: Path) -> None:
    runs = trained(store, tmp_path / "runs", Experiment("is13", "audio", seeds=2, folds=2))
    made = ser("ensemble", tmp_path / "runs", "--out", tmp_path / "ens", "--json")
    assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    assert [fact["fold"] for fact in facts] == ["session 1", "session 2"]
    assert len(facts[0]["members"]) == 2

    report = ser(
        *("report", tmp_path / "runs", tmp_path / "ens", "--paired"),
        *("--html", tmp_path / "page.html", "--csv", tmp_path / "tables.csv"),
    )
    assert report.exit_code == 0, report.output
    assert "ensemble:mean  " in report.stdout
    assert "`ser train --features is13@" in " ".join(report.stdout.split())
    page = (tmp_path / "page.html").read_text()
    assert "ser ensemble" in page
    pooled = np.mean([fact["wa"] for fact in facts])
    assert facts[0]["wa"] is not None and pooled > 0

    # Made of the same predictions it is there already; of others it is not silently kept.
    again = ser("ensemble", tmp_path / "runs", "--out", tmp_path / "ens", "--json")
    assert json.loads(again.stdout)[0]["run"] == facts[0]["run"]
    ensemble = load_run(tmp_path / "ens" / Path(facts[0]["run"]).name)
    other = runs[0]
    shutil.rmtree(other.path)
    [*_, changed] = run_experiment(
        replace(
            Experiment("is13", "audio", set=(NEXT, "lr=0.02"), epochs=2, folds=1),
            store=store,
            out=tmp_path / "runs",
        )
    )
    assert changed.name != other.name
    with pytest.raises(WrongUse, match=f"its member {other.name} is no longer at"):
        predict_stored([ensemble.path], store)


def test_an_ensemble_predicts_from_a_store_what_it_holds(
    members: list[Run], store: Path, tmp_path: Path
) -> None:
    for by, weights in (("mean", None), ("mean", "dev"), ("stack", None)):
        [ensemble] = make_ensemble([run.path for run in members], by, tmp_path, weights)
        predictions = predict_stored([ensemble.path, members[0].path], store)
        place = {id_: row for row, id_ in enumerate(predictions.ids)}
        table = ensemble.predictions()
        rows = [place[id_] for id_ in table.column("id").to_pylist()]
        again = predictions.by_run[ensemble.name].probabilities[rows]
        np.testing.assert_allclose(again, matrix_of(table, "probabilities"), rtol=0, atol=1e-12)
        if by == "mean" and weights is None:
            np.testing.assert_array_equal(again, matrix_of(table, "probabilities"))


def test_an_ensemble_predicts_new_speech_as_the_mean_of_its_members(
    newcomer: Path, tmp_path: Path
) -> None:
    """Each feature once; before the temperature, the numbers are the means of the members'."""
    runs = [run_of(newcomer, name) for name in ("mit", "mit-no-rmm", "lgf-add")]
    [ensemble] = make_ensemble([run.path for run in runs], "mean", tmp_path)
    turns = turns_of_test_part(newcomer, runs[0])[:3]

    answers = Predictors([ensemble.path])(turns)

    alone = Predictors([run.path for run in runs])
    for predictor in alone.predictors.values():
        predictor.temperature = None
    expected = alone(turns).mean
    temperature = ensemble.result.calibration
    for prediction, mean in zip(answers.mean, expected, strict=True):
        assert prediction.label == mean.label
        if temperature is None or temperature.temperature == 1:
            assert prediction.probabilities == pytest.approx(mean.probabilities, abs=1e-6)
    refused = ser("export", ensemble.path, tmp_path / "exported")
    assert refused.exit_code == 2
    assert "is an ensemble, which has no model of its own" in refused.stderr


def test_an_ensemble_of_other_predictions_is_not_silently_kept(
    members: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [run.path for run in members]
    [ensemble] = make_ensemble(paths, "mean", tmp_path)
    files = dict(members[0].result.files)
    assert files["predictions.parquet"].sha256 != "0" * 64
    original = Run.result.func

    def changed(run: Run) -> object:
        result = original(run)
        if run.name == members[0].name:
            file = result.files["predictions.parquet"]
            result.files["predictions.parquet"] = type(file)(bytes=file.bytes, sha256="0" * 64)
        return result

    monkeypatch.setattr(Run, "result", property(changed))
    with pytest.raises(StoreError, match="was made of other predictions"):
        make_ensemble(paths, "mean", tmp_path)
    assert ensemble.finished


def test_the_report_that_an_ensemble_names(members: list[Run], tmp_path: Path) -> None:
    runs = [run.path for run in members]
    made = ser("ensemble", *runs, "--by", "mean", "--out", tmp_path)

    report = ser(*next_command(made))

    assert report.exit_code == 0
    assert "ensemble" in report.output
