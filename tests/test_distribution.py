"""The raters' votes: what they would score themselves, and models that learn their distribution."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from ser.cache.manifest import Manifest
from ser.cli import main
from ser.commands.train import summary_text
from ser.errors import WrongUse
from ser.tests.tiny_store import add_feature, make_manifest, make_rows, new_store
from ser.train.data.labels import get_policy, rater_votes
from ser.train.experiment import Experiment, prepare, run_experiment
from ser.train.report.calibration import votes_table
from ser.train.report.cell_scores import CellScores
from ser.train.report.cells import group_runs
from ser.train.run_folder import MODEL, Run
from ser.train.scores import divergences, rater_scores

SMALL = ("d_model=16", "gru_hidden=8", "heads=2", "batch_size=2", "lr=0.01")


def asked(store: Path, out: Path, **more: object) -> Experiment:
    options = {"features": "is13+bert", "fusion": "lgf-add", "epochs": 3, "set": SMALL, "folds": 1, "store": store}
    return Experiment(**{**options, "out": out, **more})  # type: ignore[arg-type]


def test_each_vote_is_scored_against_the_majority_of_the_others() -> None:
    votes = [
        [["Anger"], ["Anger"], ["Sadness"]],  # two votes are against a tie; the third is wrong
        [["Neutral"], ["Neutral"], ["Neutral"], ["Anger"]],  # three right, one wrong
        [["Happiness"], ["Happiness", "Neutral"], ["Happiness"]],  # the second names two alike; the others are right
        [["Other"], ["Neutral"], ["Neutral"]],  # the first is for no class
        [["Anger"]],
        None,
    ]
    matrix, left_out = rater_votes(get_policy("4class"), votes)  # type: ignore[arg-type]
    ang, hap, neu, sad = range(4)
    wanted = np.zeros((4, 4), int)
    for majority, vote in [(ang, sad), (neu, neu), (neu, neu), (neu, neu), (neu, ang), (hap, hap), (hap, hap)]:
        wanted[majority, vote] += 1
    wanted[neu, neu] += 2
    assert (matrix == wanted).all() and left_out == 2 + 1 + 1 + 1
    told = rater_scores(matrix, left_out)
    assert told is not None and told["n"] == 9 and told["wa"] == pytest.approx(7 / 9)
    assert told["ua"] == pytest.approx((0 + 1 + 5 / 6) / 3)
    assert rater_scores(np.zeros((4, 4), int), 3) is None


def test_the_divergences_are_scipys() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(4), (2, 20))
    p[0] = [1, 0, 0, 0]
    found = divergences(p, q)
    assert found["kl"] == pytest.approx([entropy(*pair) for pair in zip(p, q, strict=True)])
    assert found["js"] == pytest.approx([jensenshannon(*pair) ** 2 for pair in zip(p, q, strict=True)])


def test_a_run_learns_the_votes_and_is_scored_by_them(store: Path, tmp_path: Path) -> None:
    [run] = run_experiment(asked(store, tmp_path, target="distribution"))
    [soft] = run_experiment(asked(store, tmp_path, set=(*SMALL, "soft_labels=true")))
    ours, theirs = ({n: x.numpy().tobytes() for n, x in one.tensors(MODEL)[0].items()} for one in (run, soft))
    assert ours == theirs, "one mechanism"
    told = divergences(*(np.array(run.predictions()[name].to_pylist()) for name in ("votes", "probabilities")))
    for name, each in told.items():
        assert run.result[name] == pytest.approx(each.mean()) and run.result["tests"]["head text"][name] > 0
    assert run.result["ua"] == soft.result["ua"] and "kl" not in soft.result
    runs = run_experiment(asked(store, tmp_path, target="distribution", folds="all"))
    cell = CellScores(runs)
    whole, low, high = cell.divergences()["js"]
    assert low is not None and high is not None and 0 <= low < whole < high
    assert whole == pytest.approx(np.average([r.result["js"] for r in runs], weights=[r.result["n"] for r in runs]))
    assert cell.to_json()["raters"] == cell.raters and cell.raters is not None and cell.raters["n"] > 0
    tested = [r.result["raters"]["n"] for r in runs]
    assert cell.raters["n"] == sum(tested) > tested[0] > 0, "the raters of what is tested"
    assert "from the raters' votes, in nats: KL" in summary_text(cell) and "the raters' own: UA" in summary_text(cell)
    assert "· 4class · target distribution ·" in cell.conditions
    assert {"KL in nats", "raters’ UA %", "votes left out"} <= votes_table(group_runs(runs)[0]).rows[0].keys()


def test_what_has_no_majority_trains_and_is_scored_apart(store: Path, tmp_path: Path) -> None:
    plain, more = (prepare(asked(store, tmp_path, target=f"distribution{also}"))[0] for also in ("", "+undecided"))
    utterances = more.data.utterances
    undecided = np.flatnonzero(utterances.undecided)
    assert len(utterances) - len(plain.data.utterances) == len(undecided) > 0
    assert np.allclose(utterances.votes[undecided], [0.5, 0, 0.5, 0]), "a rater who names two"
    assert set(undecided) & set(more.fold.train) and not set(undecided) & {*more.fold.dev, *more.fold.test}
    assert len(more.fold.test) == len(plain.fold.test)
    [run] = run_experiment(asked(store, tmp_path, target="distribution+undecided"))
    apart = run.result["no_majority"]
    assert apart["n"] == len(more.fold.left_out["no majority among the raters (test)"]) and apart["js"] > 0
    assert votes_table(group_runs([run])[0]).rows[0]["without a majority"] == apart["n"]
    assert "no majority among the raters (test)" in Run(run.path).result["left_out"]


def test_without_votes_there_is_no_distribution(tmp_path: Path) -> None:
    rows = [{**row, "votes": None} for row in make_manifest(8).table.to_pylist()]
    manifest = Manifest.from_rows("mute", rows, synthetic=True)
    store = new_store(tmp_path / "s", manifest)
    add_feature(store, manifest, "is13", make_rows(manifest, "is13"))
    quiet = replace(asked(store.path, tmp_path / "r", features="is13", fusion="audio"), target="distribution")
    with pytest.raises(WrongUse, match="corpus mute does not hold its raters' votes"):
        prepare(quiet)
    words = ["--features", "is13", "--fusion", "audio", "--epochs", "1", "--folds", "1", "--json"]
    words += [word for one in SMALL for word in ("--set", one)]
    done = CliRunner().invoke(main, ["train", "--store", str(store.path), "--out", str(tmp_path / "r"), *words])
    assert done.exit_code == 0 and "raters" not in json.loads(done.stdout)["scores"]
