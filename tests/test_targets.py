"""What a run learns beside classes: valence, arousal and dominance, alone and with them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import t as student

from ser.cache.manifest import Manifest
from ser.cli import main
from ser.errors import WrongUse
from ser.tests.tiny_store import add_feature, make_manifest, make_rows, new_store
from ser.train.data.dataset import DataCache
from ser.train.experiment import Experiment, prepare, run_experiment
from ser.train.fit import fit, shuffled
from ser.train.models import FUSIONS
from ser.train.report.cells import group_runs
from ser.train.report.paper import quoted_for
from ser.train.report.sections import make_page
from ser.train.run_folder import find_runs
from ser.train.scores import concordance, dimension_scores, moments
from ser.train.search import chosen_rows
from ser.train.settings import TrainConfig, TrainingSettings
from ser.train.targets import TARGETS, concordance_loss

DIMENSIONS = ("valence", "arousal", "dominance")
TINY = ("d_model=8", "heads=2", "queries=3", "feed_forward=2", "gru_hidden=4", "lstm_hidden=4", "dense=4", "hidden=5")
TINY += ("frames=40", "channels=2", "turns=4", "encoder_depth=1", "decoder_depth=1", "lr=0.01")
TINY += ("cross_depth=1", "last_depth=1")
CACHE = DataCache()


def asked(store: Path, fusion: str, target: str, **options: Any) -> Experiment:
    takes = {"sequence": {"audio": "hubert", "text": "mpnet"}, "vector": {"audio": "is13", "text": "bert"}}
    audio = {"audio": "logmel"} if fusion.startswith("cnn") else {}
    features = [(takes[FUSIONS[fusion].level] | audio)[modality] for modality in FUSIONS[fusion].inputs]
    name = fusion.partition(":")[0] if fusion.startswith(("audio", "text")) else fusion
    base = Experiment("+".join(features), name, store, target=target, epochs=2, folds=1, also_set=TINY)
    return replace(base, **options)


def slow_ccc(truth: Any, predicted: Any) -> float:
    """Lin 1989, with sums over the utterances."""
    n, mt, mp = len(truth), sum(truth) / len(truth), sum(predicted) / len(predicted)
    both = sum((t - mt) * (p - mp) for t, p in zip(truth, predicted, strict=True)) / n
    vt, vp = sum((t - mt) ** 2 for t in truth) / n, sum((p - mp) ** 2 for p in predicted) / n
    return 2 * both / (vt + vp + (mt - mp) ** 2)


def test_ccc_and_rmse_are_lins_and_the_loss_is_one_minus_ccc() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(2, 11, (40, 3)) / 2, rng.normal(3, 1, (40, 3))
    wanted = [slow_ccc(truth[:, d], predicted[:, d]) for d in range(3)]
    found = dimension_scores(truth, predicted)
    assert [found["ccc"][name] for name in DIMENSIONS] == pytest.approx(wanted, abs=1e-12)
    errors = np.sqrt(((truth - predicted) ** 2).mean(0))
    assert [found["rmse"][name] for name in DIMENSIONS] == pytest.approx(errors, abs=1e-12)
    loss = concordance_loss(torch.from_numpy(predicted), torch.from_numpy(truth)).item()
    assert loss == pytest.approx(1 - np.mean(wanted), abs=1e-7)
    for same in (truth[:1], np.ones((5, 3))):  # of one utterance, or without any variance, it is 0 and teaches nothing
        outputs = torch.zeros(same.shape, dtype=torch.float64, requires_grad=True)
        concordance_loss(outputs, torch.from_numpy(same)).backward()
        assert outputs.grad is not None and not outputs.grad.any()
        assert set(dimension_scores(same, same)["ccc"].values()) == {0.0}
    assert np.isnan(concordance(moments(truth[:0], predicted[:0]).sum(0))["ccc"]).all()


@pytest.mark.parametrize("unit", ["mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_losses_of_classes_and_ratings_add_up(unit: str, soft: bool) -> None:
    training = TrainingSettings(vad_loss="mse", vad_weight=0.5, vad_scale="1..5", reduction=unit)  # type: ignore[arg-type]
    config = TrainConfig(FUSIONS["mit"], None, training, target="class+vad")
    outputs, ratings = torch.randn(6, 7).double(), torch.rand(6, 3).double()
    shares = torch.rand(6, 4).double() if soft else torch.eye(4).double()[[0, 1, 2, 3, 0, 1]]
    truth = torch.cat([shares if soft else torch.tensor([[0.0], [1], [2], [3], [0], [1]]), ratings], 1)
    of_classes = -(shares * outputs[:, :4].log_softmax(1)).sum()
    wanted = of_classes / 6 + 0.5 * ((outputs[:, 4:] - ratings) ** 2).mean()
    found = TARGETS["class+vad"].loss(outputs, truth, config)
    torch.testing.assert_close(found, wanted * (6 if unit == "sum" else 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_learns_every_target(store: Path, name: str) -> None:
    losses = set()
    for target, of in TARGETS.items():
        job = prepare(asked(store, name, target), CACHE)[0]
        classes, heads = len(job.data.utterances.classes), []
        torch.manual_seed(0)
        start = of.build(job.plan.fusion, job.plan.settings, job.data.dims, classes)
        fitted = fit(job.data, job.fold, replace(job.plan, select="last"))
        for (weight, before), after in zip(start.named_parameters(), fitted.model.parameters(), strict=True):
            if before.ndim == 2 and len(before) == of.width(classes):
                heads.append(weight)
                assert not torch.equal(before, after) or name.startswith(("ef", "mf", "lf", "lgf")), weight
        assert heads and np.isfinite([line["loss"] for line in fitted.history]).all()
        losses.add(fitted.history[-1]["loss"])
    assert len(losses) == len(TARGETS)


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All folds and two seeds of each target."""
    out = tmp_path_factory.mktemp("targets")
    for target in TARGETS:
        more: dict[str, Any] = {"folds": "all", "seeds": 2, "out": out, "epochs": 8, "set": ("batch_size=8",)}
        run_experiment(asked(store, "concat:utterance", target, **more), cache=CACHE)
    return out


def cell_of(runs: Path, target: str) -> Any:
    return next(cell for cell in group_runs(find_runs(runs))[0] if cell.config.get("target", "class") == target)


def test_scores_are_pooled_over_folds_with_intervals_over_speakers(runs: Path) -> None:
    cell = cell_of(runs, "vad")
    every = pandas.concat([run.predictions().to_pandas().assign(seed=run.config["seed"]) for run in cell.runs])

    def pooled(part: pandas.DataFrame, name: str) -> float:
        ccc = [slow_ccc([*one[f"truth {name}"]], [*one[f"predicted {name}"]]) for _, one in part.groupby("seed")]
        return float(np.mean(ccc))

    for name in DIMENSIONS:
        whole, low, high = cell.with_interval(f"ccc {name}")
        speakers = sorted(every.speaker.unique())
        without = np.array([pooled(every[every.speaker != one], name) for one in speakers])
        half = student.ppf(0.975, len(speakers) - 1) * np.sqrt((len(speakers) - 1) * without.var())
        assert whole == pytest.approx(pooled(every, name), abs=1e-9)
        assert (low, high) == pytest.approx((max(-1, whole - half), min(1, whole + half)), abs=1e-9)
    assert every["truth valence"].between(1, 5).all()
    run = cell.runs[0]
    kept = max(run.result["history"], key=lambda line: line["ccc"])  # the mean CCC on dev selects
    assert run.result["epoch"] == kept["epoch"] and kept["ua"] is None
    assert cell.score("ccc").pooled > 0.6, "it is learnt"
    assert "probabilities" not in every and run.result["classes"] == []


def test_what_has_no_rating_or_no_class_is_left_out_and_counted(store: Path, runs: Path) -> None:
    alone, both = cell_of(runs, "vad"), cell_of(runs, "class+vad")
    absent = "no rating of valence, arousal, dominance"
    assert alone.left_out == {absent: 10 // 2} and alone.n == 2 * (120 - 5)
    assert both.left_out[absent] < 5 and "label xxx is not in 4class" in both.left_out
    assert both.config["training"]["select_score"] == "ua" and both.score("ua").pooled > 0
    asked_for = [asked(store, "audio:utterance", "vad", labels=policy) for policy in ("4class", "6class")]
    assert len({prepare(one, CACHE)[0].name for one in asked_for}) == 1, "labels have no part in it"
    assert "target" not in cell_of(runs, "class").config


def test_reports_show_ratings_and_never_beside_a_paper(runs: Path, tmp_path: Path) -> None:
    files = [f"--{form}={tmp_path / form}" for form in ("html", "latex", "markdown", "csv")]
    shown = CliRunner().invoke(main, ["report", str(runs), "--paired", *files])
    assert shown.exit_code == 0 and "CCC valence" in shown.output, shown.output
    page = (tmp_path / "html").read_text()
    assert all("Dashed: predicted as rated" in page and f"scatter-{name}" in page for name in DIMENSIONS)
    assert "calibration-ratings" in page and "Mean CCC of the evaluated part" in page
    for form in ("latex", "markdown", "csv"):
        assert "RMSE dominance" in (tmp_path / form).read_text()
    cells, _ = group_runs(find_runs(runs))
    assert {cell.label for cell in cells} == {f"concat:utterance · {target}" for target in TARGETS}
    [curves] = [table for table in make_page(cells, []).tables if table.name == "learning-ccc"]
    rated = {cell.label for cell in cells if cell.dimensions}
    assert {row["cell"] for row in curves.rows} == rated
    assert all(len(text.partition(".")[2]) == 3 for *_, text in curves.texts)  # no percent
    [row, *_] = chosen_rows("searched", 1, (), cell_of(runs, "vad").runs)
    assert row["dev mean CCC"] == max(line["ccc"] for line in cell_of(runs, "vad").runs[0].result["history"])
    alone = [str(run.path) for run in cell_of(runs, "vad").runs]
    one = CliRunner().invoke(main, ["report", *alone, "--html", str(tmp_path / "one")])
    assert one.exit_code == 0 and "CCC of arousal" in (tmp_path / "one").read_text() and "UA %" not in one.output
    refused = CliRunner().invoke(main, ["report", *alone, str(cell_of(runs, "class").runs[0].path), "--paired"])
    assert refused.exit_code == 2 and "fewer than two cells of classes" in refused.output
    assert quoted_for(cell_of(runs, "vad")) == quoted_for(cell_of(runs, "class+vad")) == []


def test_sweeps_show_ratings(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'tested = "a"\n[experiment]\nfeatures = "is13+bert"\nfusion = "lgf-add"\n'
        '[[cell]]\nname = "a"\n[[cell]]\nname = "b"\ntarget = "vad"\npaper = {ua = 60.0}\n'
    )
    asked_for = ["sweep", str(tmp_path / "mine.toml"), "--store", str(store), "--out", str(tmp_path), "--workers", "1"]
    asked_for += ["--epochs", "1", "--folds", "1", "--set", "d_model=8", "--set", "gru_hidden=4"]
    shown = CliRunner().invoke(main, asked_for)
    assert shown.exit_code == 0 and "CCC valence" in shown.output, shown.output
    [_, rated] = json.loads(CliRunner().invoke(main, [*asked_for, "--json"]).stdout)["rows"]
    assert rated["scores"]["rmse valence"]["pooled"] > 0 and "ua" not in rated["scores"]
    (tmp_path / "mine.toml").write_text(
        '[experiment]\nfeatures = "is13+bert"\nfusion = "lgf-add"\ntarget = "vad"\n'
        '[[cell]]\nname = "a"\nset = { lr = [1e-3, 1e-2] }\n'
    )
    shown = CliRunner().invoke(main, asked_for)
    tables, *_ = shown.stdout.partition("\nours: ")
    assert "dev mean CCC " in tables and "RMSE valence" in tables and "%" not in tables, "none is a share"


@pytest.mark.parametrize(
    ("target", "setting", "says"),
    [
        ("vad", "vad_scale=5..1", "must be auto, or a range such as 1..5"),
        ("vad", "vad_scale=-inf..5", "must be auto, or a range such as 1..5"),
        ("vad", "vad_scale=-1e308..1e308", "must be auto, or a range such as 1..5"),
        ("vad", "vad_scale=0..1", "has ratings from 1.5 to 4.5; give the scale"),
        ("vad", "soft_labels=true", "no use for it"),
        ("vad", "select_score=wa", "--target vad selects by ccc"),
        ("vad", "batch_size=1", "vad_loss=ccc compares the utterances of a batch"),
        ("vad", "released=true", "probabilities of classes alone"),
        ("class", "vad_loss=mse", "--target class has no use for it"),
        ("class", "select_score=ccc", "--target class selects by ua or wa"),
        ("class", "effective_beta=0.9", "it is that of class_weights=effective"),
    ],
)
def test_what_a_target_cannot_use_is_one_sentence(store: Path, target: str, setting: str, says: str) -> None:
    with pytest.raises(WrongUse, match=says):
        prepare(asked(store, "mit" if "batch" in setting else "lgf-add", target, set=(setting,)), CACHE)


def test_the_scale_is_known_by_the_ids_or_said(tmp_path: Path) -> None:
    rows = make_manifest(4).table.to_pylist()
    plain = [{key: value for key, value in row.items() if key not in DIMENSIONS} for row in rows]
    for corpus, form, kept in (("msp", "MSP-PODCAST_0001_{:04d}", rows), ("mine", "u{}", rows), ("bare", "b{}", plain)):
        manifest = Manifest.from_rows(corpus, [row | {"id": form.format(i)} for i, row in enumerate(kept)])
        store = new_store(tmp_path / corpus, manifest)
        add_feature(store, manifest, "is13", make_rows(manifest, "is13"))
    msp, mine, bare = (asked(tmp_path / name, "audio:utterance", "vad") for name in ("msp", "mine", "bare"))
    found = prepare(msp)[0].config["training"]["vad_scale"], prepare(replace(mine, set=("vad_scale=1..5",)))[0]
    assert found[0] == "1..7" and found[1].config["training"]["vad_scale"] == "1..5"
    with pytest.raises(WrongUse, match=r"scale on which corpus mine rates.*--set vad_scale=1\.\.5"):
        prepare(mine)
    with pytest.raises(WrongUse, match="no utterance of corpus bare has ratings of valence, arousal, dominance"):
        prepare(bare)


def test_shuffled_labels_shuffle_ratings_too(store: Path) -> None:
    job = prepare(asked(store, "audio:utterance", "class+vad", set=("shuffle_labels=true",)), CACHE)[0]
    mixed, plain = shuffled(job.data, job.fold, job.plan).utterances, job.data.utterances
    pairs = [{(k, *row) for k, row in zip(one.labels, one.dimensions.tolist(), strict=True)} for one in (mixed, plain)]
    assert pairs[0] == pairs[1] and not np.array_equal(mixed.dimensions, plain.dimensions)
    assert np.array_equal(mixed.dimensions[job.fold.test], plain.dimensions[job.fold.test])
