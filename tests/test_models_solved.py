"""Models that a solver fits, `linear` and `svm`, against scikit-learn called directly."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ser.errors import WrongUse
from ser.tests.command_line import ser
from ser.tests.tiny_store import add_feature, make_manifest, make_rows, make_store
from ser.train import fit_solved
from ser.train.estimate import estimate
from ser.train.experiment import Experiment, prepare, prepare_resumed, run_experiment
from ser.train.job import Job
from ser.train.model_file import load_model
from ser.train.models.row_space import RowSpace
from ser.train.models.solved import Truth
from ser.train.models.svm import Svm, SvmSettings
from ser.train.report.cell_scores import compare_cells
from ser.train.report.grouping import group_runs
from ser.train.report.sections.against_linear import against_linear, against_linear_table
from ser.train.report.terminal import report_text
from ser.train.run_folder import MODEL, STATE, Run, find_runs
from ser.train.train_jobs import train_jobs

STRENGTHS = {"linear": (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0), "svm": (0.1, 1.0, 10.0, 100.0)}
FEATURES = {
    "vectors": "is13",
    "means of frames": "hubert:layer=1",
    "both modalities": "is13+bert",
    "joined": "hubert:layer=0+is13+mpnet",
}


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store with three layers of an encoder, of which the second alone says anything."""
    manifest = make_manifest()
    store = make_store(tmp_path_factory.mktemp("layers") / "s")
    checkpoint = {"digest": "d", "architecture": "hubert", "layers": 2}
    noise = np.random.default_rng(0)
    for layer in range(3):
        config = {"layer": layer, "norm": "none"}
        rows = make_rows(manifest, "hubert")
        if layer != 1:
            rows = [noise.normal(size=values.shape).astype(np.float16) for values in rows]
        add_feature(
            store,
            manifest,
            "hubert",
            rows,
            variant=f"layer={layer}",
            config=config,
            checkpoint=checkpoint,
        )
    return store.path


def job_of(store: Path, fusion: str, features: str, out: Path, *texts: str, **more: Any) -> Job:
    """The first job of an experiment, whose model is that of the training part by default."""
    if "refit=true" not in texts:
        texts = (*texts, "refit=false")
    options = {"folds": 1, "out": out, "set": texts, **more}
    return prepare(Experiment(features, fusion, store, **options))[0]


def run_of(job: Job, out: Path, **more: Any) -> Run:
    """The run of a job."""
    [run] = train_jobs([job], out, **more)
    assert isinstance(run, Run)
    return run


def seen(job: Job) -> np.ndarray:
    """The vectors of all utterances, every modality side by side, as they are stored."""
    columns = [inputs.values.double() for inputs in job.data.inputs.values()]
    return torch.cat(columns, 1).numpy()


def directly(fusion: str, strength: float) -> Pipeline:
    """What a user of scikit-learn writes."""
    if fusion == "linear":
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=10_000))
    return make_pipeline(StandardScaler(), SVC(C=strength, break_ties=True))


def probabilities(run: Run) -> np.ndarray:
    return np.array(run.predictions()["probabilities"].to_pylist())


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_logistic_regression_is_scikit_learn_s(
    layers: Path, tmp_path: Path, features: str, strength: float
) -> None:
    job = job_of(layers, "linear", FEATURES[features], tmp_path, f"C={strength}")
    run = run_of(job, tmp_path)

    x = seen(job)
    fitted = directly("linear", strength).fit(
        x[job.fold.train], job.data.utterances.labels[job.fold.train]
    )
    expected = fitted.predict_proba(x[job.fold.test])
    np.testing.assert_allclose(probabilities(run), expected, atol=2e-3)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_the_svm_is_scikit_learn_s(
    layers: Path, tmp_path: Path, features: str, strength: float
) -> None:
    job = job_of(layers, "svm", FEATURES[features], tmp_path, f"C={strength}")
    run = run_of(job, tmp_path)

    x = seen(job)
    labels = job.data.utterances.labels
    fitted = directly("svm", strength).fit(x[job.fold.train], labels[job.fold.train])
    predicted = fitted.predict(x[job.fold.test])
    classes = job.data.utterances.classes
    assert run.predictions()["predicted"].to_pylist() == [classes[label] for label in predicted]

    # And so are the outputs, but for their scale.
    outputs = np.log(probabilities(run))
    decisions = fitted.decision_function(x[job.fold.test])
    scale = load((run.path / MODEL).read_bytes())["model.scale"].item()
    np.testing.assert_allclose(
        outputs - outputs.mean(1, keepdims=True),
        scale * (decisions - decisions.mean(1, keepdims=True)),
        atol=1e-3,
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_the_svm_s_decisions_are_those_of_any_number_of_classes(classes: int) -> None:
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(60, 5))
    # One class of the policy is not in the training part.
    labels = np.array([0, 2, 3])[rng.integers(0, classes, 60)]
    x[:, 0] += labels

    model = Svm(SvmSettings(), {"audio": 5}, 4)
    model.solver(x, Truth(np.eye(4)[labels]))(1.0)
    fitted = SVC(C=1.0, gamma="scale", break_ties=classes > 2).fit(x, labels)

    new = rng.normal(size=(40, 5))
    outputs = model.outputs(torch.from_numpy(new).float()).numpy()
    np.testing.assert_array_equal(outputs.argmax(1), fitted.predict(new))
    if classes == 3:
        decisions = model.decisions(torch.from_numpy(new).float()).numpy()[:, [0, 2, 3]]
        np.testing.assert_allclose(decisions, fitted.decision_function(new), atol=1e-4)


def test_ridge_regression_is_scikit_learn_s(layers: Path, tmp_path: Path) -> None:
    job = job_of(layers, "linear", "is13+bert", tmp_path, "C=0.01", target="vad")
    run = run_of(job, tmp_path)

    x = seen(job)
    train = job.fold.train
    ratings = job.data.utterances.dimensions
    # On a scale of -1 to 1 errors are smaller, and so are weights: alpha is the same.
    fitted = make_pipeline(StandardScaler(), Ridge(alpha=100)).fit(x[train], ratings[train])
    expected = fitted.predict(x[job.fold.test])
    table = run.predictions()
    for d, name in enumerate(("valence", "arousal", "dominance")):
        np.testing.assert_allclose(table[f"predicted {name}"].to_numpy(), expected[:, d], atol=1e-4)
    assert run.result.ccc is not None


@pytest.mark.parametrize("fusion", STRENGTHS)
def test_dev_chooses_the_strength_with_the_lowest_loss(
    layers: Path, tmp_path: Path, fusion: str
) -> None:
    job = job_of(layers, fusion, "is13+bert", tmp_path)
    run = run_of(job, tmp_path)
    history = run.result.history
    assert [epoch.tried["C"] for epoch in history] == list(STRENGTHS[fusion])

    losses = [epoch.eval_loss for epoch in history]
    chosen = int(np.argmin(losses))
    assert run.result.epoch == chosen + 1
    # Nothing says that an epoch's score decided.
    assert run.result.tied is None
    log = (run.path / "log").read_text().splitlines()
    assert len(log) == len(history) + 1
    assert log[-1].startswith(f"C {STRENGTHS[fusion][chosen]:g} is kept: its loss on the part")

    if fusion == "linear":
        x = seen(job)
        labels = job.data.utterances.labels
        for strength, loss in zip(STRENGTHS[fusion], losses, strict=True):
            fitted = directly(fusion, strength).fit(x[job.fold.train], labels[job.fold.train])
            expected = log_loss(
                labels[job.fold.dev], fitted.predict_proba(x[job.fold.dev]), labels=range(4)
            )
            assert loss == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize("fusion", STRENGTHS)
def test_dev_chooses_the_layer_and_a_setting_fixes_it(
    layers: Path, tmp_path: Path, fusion: str
) -> None:
    of_all = run_of(
        job_of(layers, fusion, "hubert:layers=all+is13", tmp_path, "layer=dev"), tmp_path
    )
    tried = [epoch.tried for epoch in of_all.result.history]
    layers_tried = [values["layer"] for values in tried]
    strengths = len(STRENGTHS[fusion])
    assert layers_tried == [0] * strengths + [1] * strengths + [2] * strengths
    losses = [epoch.eval_loss for epoch in of_all.result.history]
    chosen = layers_tried[int(np.argmin(losses))]
    shares = {f"hubert:layer={layer}": float(layer == chosen) for layer in range(3)}
    assert of_all.result.layers == shares

    # The layer by itself gives the same numbers, and so does --set layer.
    name = f"hubert:layer={chosen:g}+is13"
    alone = run_of(job_of(layers, fusion, name, tmp_path), tmp_path)
    fixed = run_of(
        job_of(layers, fusion, "hubert:layers=all+is13", tmp_path, f"layer={chosen:g}"), tmp_path
    )
    np.testing.assert_allclose(probabilities(alone), probabilities(of_all), atol=1e-4)
    np.testing.assert_array_equal(probabilities(fixed), probabilities(of_all))
    assert fixed.result.layers == of_all.result.layers


REFUSED = {
    "a layer that is not there": (
        {"set": ("layer=7",), "features": "hubert:layers=all"},
        r"--set layer=7: --features has layers 0-2",
    ),
    "a layer where there is one": (
        {"set": ("layer=1",)},
        "--set layer=1: --features names no layers=all or range",
    ),
    "a layer that nothing chooses": (
        {"set": ("layer=dev",), "select": "last", "features": "hubert:layers=all"},
        "--select last chooses no layer; use --select val, or say which by --set layer=2",
    ),
    "a setting of the loop": ({"set": ("lr=1",)}, "fusion linear:audio has no use for it"),
    "epochs": ({"epochs": 3}, "fusion linear:audio has no use for it"),
    "a score that selects": (
        {"set": ("select_score=wa",)},
        "fusion linear:audio has no use for it",
    ),
    "the perspective loss": (
        {"loss": "perspective"},
        "--loss perspective: linear:audio has no unimodal heads; use --loss single",
    ),
    "votes with an svm": (
        {"target": "distribution", "fusion": "svm"},
        "--target distribution: svm:audio learns one class of each utterance",
    ),
    "soft labels with an svm": (
        {"set": ("soft_labels=true",), "fusion": "svm"},
        "fusion svm:audio has no use for it",
    ),
    "ratings with an svm": ({"target": "vad", "fusion": "svm"}, "--target vad: svm:audio learns"),
    "a penalty of nothing": ({"set": ("C=0",)}, "--set C=0: must be float|dev"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_means_nothing_is_refused_in_a_sentence(
    layers: Path, tmp_path: Path, case: str
) -> None:
    options, sentence = REFUSED[case]
    asked = {"features": "is13", "fusion": "linear", "store": layers, "out": tmp_path, **options}
    with pytest.raises(WrongUse, match=sentence):
        prepare(Experiment(**asked))


def test_without_a_part_that_selects_there_is_one_fit(layers: Path, tmp_path: Path) -> None:
    run = run_of(job_of(layers, "linear", "is13", tmp_path, select="last"), tmp_path)
    [epoch] = run.result.history
    assert epoch.tried == {"C": 1.0}
    assert epoch.eval_loss is None


def test_refit_learns_train_and_dev_as_dev_chose(layers: Path, tmp_path: Path) -> None:
    job = job_of(layers, "linear", "hubert:layers=all", tmp_path, "layer=dev", "refit=true")
    run = run_of(job, tmp_path)
    again = run.result.history[-1]
    assert (again.stage, again.epoch) == ("train again", run.result.epoch)
    assert again.tried["layer"] == 1

    rows = np.concatenate([job.fold.train, job.fold.dev])
    x = job.data.inputs["audio"].values[:, 12:24].double().numpy()
    labels = job.data.utterances.labels
    fitted = directly("linear", again.tried["C"]).fit(x[rows], labels[rows])
    expected = fitted.predict_proba(x[job.fold.test])
    np.testing.assert_allclose(probabilities(run), expected, atol=2e-3)
    assert run.dev_predictions is None


@pytest.mark.parametrize("fusion", STRENGTHS)
def test_all_layers_side_by_side_are_the_features_side_by_side(
    layers: Path, tmp_path: Path, fusion: str
) -> None:
    name = "hubert:layers=all+is13"
    together = run_of(job_of(layers, fusion, name, tmp_path, "C=0.1", "layer=all"), tmp_path)
    joined = "hubert:layer=0+hubert:layer=1+hubert:layer=2+is13"
    alone = run_of(job_of(layers, fusion, joined, tmp_path, "C=0.1"), tmp_path)
    np.testing.assert_allclose(probabilities(together), probabilities(alone), atol=1e-5)
    assert together.result.history[0].tried == {"C": 0.1, "layer": "all"}

    # As it is read from its folder.
    again, _ = load_model(together)
    assert again.model.columns is None


@pytest.mark.parametrize(
    ("select", "texts", "refit"),
    [
        pytest.param("val", (), True, id="by default"),
        pytest.param("val", ("refit=false",), False, id="as it is set"),
        pytest.param("last", (), False, id="nothing selects"),
    ],
)
def test_what_a_solver_fits_learns_train_and_dev_by_default(
    layers: Path, select: str, texts: tuple[str, ...], refit: bool
) -> None:
    experiment = Experiment("is13", "linear", layers, folds=1, select=select, set=texts)
    [job] = prepare(experiment)
    assert job.config.training.refit == refit
    assert job.record.training.get("refit", False) == refit


@pytest.mark.parametrize("fusion", STRENGTHS)
def test_every_seed_is_one_run_and_the_same_bytes(
    layers: Path, tmp_path: Path, fusion: str
) -> None:
    experiment = Experiment("is13", fusion, layers, out=tmp_path / "1", folds=1, seeds=3)
    first = run_experiment(experiment)
    second = run_experiment(replace(experiment, out=tmp_path / "2"))
    assert [run.name for run in first] == [run.name for run in second]
    assert len(first) == 1
    for name in (MODEL, "predictions.parquet"):
        assert (first[0].path / name).read_bytes() == (second[0].path / name).read_bytes()


@pytest.mark.parametrize("fusion", STRENGTHS)
def test_a_killed_run_goes_on_behind_the_fits_that_it_has(
    layers: Path, tmp_path: Path, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(layers, fusion, "hubert:layers=all", tmp_path, "layer=dev")
    whole = run_of(job, tmp_path / "whole")
    monkeypatch.setattr("ser.train.job_in_training.STATE_SECONDS", 0.0)

    fits = []
    quietly = fit_solved.fit_quietly

    def killed_at_the_sixth(solve: Any, candidate: Any) -> None:
        if len(fits) == 5:
            raise MemoryError("killed")
        fits.append(candidate)
        quietly(solve, candidate)

    monkeypatch.setattr(fit_solved, "fit_quietly", killed_at_the_sixth)
    with pytest.raises(Exception, match="ran out"):
        train_jobs([job], tmp_path / "killed")
    assert (tmp_path / "killed" / job.name / STATE).exists()

    monkeypatch.setattr(fit_solved, "fit_quietly", quietly)
    _, [again] = prepare_resumed(tmp_path / "killed" / job.name)
    resumed = run_of(again, tmp_path / "killed", resume=True)
    assert len(resumed.result.history) == len(whole.result.history)
    assert (resumed.path / MODEL).read_bytes() == (whole.path / MODEL).read_bytes()


@pytest.mark.parametrize("fusion", STRENGTHS)
def test_what_is_streamed_gives_the_same_bytes(layers: Path, tmp_path: Path, fusion: str) -> None:
    options: dict[str, Any] = {"features": "hubert:layers=all+bert", "fusion": fusion, "folds": 1}
    plain = Experiment(store=layers, out=tmp_path / "plain", **options)
    little = Experiment(store=layers, out=tmp_path / "little", memory="0.04MB", **options)
    streams = prepare(little)[0].data.inputs.values()
    assert any(inputs.streamed for inputs in streams)

    [in_memory] = run_experiment(plain)
    [streamed] = run_experiment(little)
    assert (in_memory.path / MODEL).read_bytes() == (streamed.path / MODEL).read_bytes()


def test_weights_of_classes_and_shares_enter_the_loss(layers: Path, tmp_path: Path) -> None:
    job = job_of(layers, "linear", "is13", tmp_path, "C=0.1", "class_weights=inverse")
    run = run_of(job, tmp_path)
    x = StandardScaler().fit(seen(job)[job.fold.train]).transform(seen(job))
    labels = job.data.utterances.labels
    balanced = LogisticRegression(C=0.1, class_weight="balanced", max_iter=10_000)
    balanced.fit(x[job.fold.train], labels[job.fold.train])
    expected = balanced.predict_proba(x[job.fold.test])
    np.testing.assert_allclose(probabilities(run), expected, atol=2e-3)

    # The votes of an utterance: as many rows of it, each as heavy as its share.
    job = job_of(layers, "linear", "is13", tmp_path, "C=0.1", target="distribution")
    run = run_of(job, tmp_path)
    x = StandardScaler().fit(seen(job)[job.fold.train]).transform(seen(job))
    votes = job.data.utterances.votes[job.fold.train]
    rows = np.repeat(x[job.fold.train], 4, axis=0)
    plain = LogisticRegression(C=0.1, max_iter=10_000)
    plain.fit(rows, np.tile(range(4), len(votes)), votes.ravel())
    expected = plain.predict_proba(x[job.fold.test])
    np.testing.assert_allclose(probabilities(run), expected, atol=2e-3)
    assert run.result.kl is not None


def test_fewer_columns_give_the_same_answer() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 300))
    # One that is constant, and a row that is there twice.
    x[:, 7] = 0.0
    x[3] = x[4]
    labels = rng.integers(0, 3, 40)
    space = RowSpace.of(x)
    # The row that is there twice spans nothing of its own.
    assert space.coordinates.shape == (40, 39)
    basis = space.rows.T @ space.combinations
    np.testing.assert_allclose(basis.T @ basis, np.eye(39), atol=1e-12)
    np.testing.assert_allclose(space.coordinates @ basis.T, x, atol=1e-12)
    np.testing.assert_allclose(space.weights(np.eye(39)), basis.T, atol=1e-12)

    direct = LogisticRegression(C=0.01, tol=1e-10, max_iter=10_000).fit(x, labels)
    reduced = LogisticRegression(C=0.01, tol=1e-10, max_iter=10_000).fit(space.coordinates, labels)
    np.testing.assert_allclose(space.weights(reduced.coef_), direct.coef_, atol=1e-6)


@pytest.mark.parametrize("fusion", STRENGTHS)
def test_a_trained_one_predicts_as_any_other(layers: Path, tmp_path: Path, fusion: str) -> None:
    job = job_of(layers, fusion, "hubert:layers=all+is13+bert", tmp_path, "layer=dev")
    run = run_of(job, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seconds = estimate([job]).seconds
    assert 0 < seconds < 60

    fitted, config = load_model(run)
    again = fitted.predict(job.data, job.fold.test, config)["logits"]
    np.testing.assert_allclose(again, probabilities(run), atol=1e-6)


def test_a_report_says_by_how_much_the_best_cell_beats_the_linear_one(
    layers: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"features": "is13", "store": layers, "out": tmp_path}
    run_experiment(Experiment(fusion="svm", **options))
    cells, _ = group_runs(find_runs(tmp_path))
    alone = against_linear(cells)
    assert "No linear model on the features of svm:audio stands beside it" in alone
    assert f"--fusion linear --store {layers} --out {tmp_path}` trains one" in alone
    assert alone in " ".join(report_text(cells, []).split())
    assert not against_linear_table(cells)

    # The command makes the one that is missing; another on other features is not it.
    run_experiment(Experiment(fusion="linear", **{**options, "features": "hubert:layer=1"}))
    cells, _ = group_runs(find_runs(tmp_path))
    assert "No linear model" in against_linear(cells)
    done = ser(*re.findall("`ser (.*)`", alone)[0].split())
    assert done.exit_code == 0
    cells, _ = group_runs(find_runs(tmp_path))
    by_features = {}
    for cell in cells:
        by_features[cell.config.fusion, cell.config.features["audio"].feature] = cell
    svm = by_features["svm:audio", "is13"]
    linear = by_features["linear:audio", "is13"]

    compared = compare_cells(svm.scores, linear.scores, "ua")
    difference, low, high = compared.difference
    expected = svm.scores.score("ua").pooled - linear.scores.score("ua").pooled
    assert difference == pytest.approx(expected)
    [row] = against_linear_table(cells).rows
    assert row["UA difference"] == compared.difference
    sentence = against_linear(cells)
    assert f"{difference:+.2f} points of UA (95 % interval {low:+.2f} to {high:+.2f}" in sentence
    assert (" beats a linear model on the same features: " in sentence) == (low > 0)
    assert (" is beaten by a linear model " in sentence) == (high < 0)
