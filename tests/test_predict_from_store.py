"""Runs on the features of a store: bit for bit as they were tested, and no audio is opened."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ser.corpus.manifest import Manifest
from ser.errors import MissingRows, WrongUse
from ser.predict.from_store import predict_stored
from ser.predict.importance import importances, open_tested
from ser.tests.command_line import ser
from ser.tests.store_samples import new_store
from ser.tests.tiny_store import add_feature, make_manifest, make_rows
from ser.train.data.inputs import Inputs
from ser.train.data.streamed import Streamed
from ser.train.experiment import Experiment, run_experiment
from ser.train.run_folder import Run
from ser.train.scores.measures import measure_of

SMALL = ("d_model=16", "gru_hidden=8", "heads=2", "lr=0.01")
EXPERIMENTS = {
    "vectors": Experiment("is13", "audio", set=("lr=0.01",), folds=2),
    "sequences": Experiment("hubert+mpnet", "mit", also_set=(*SMALL, "queries=3"), folds=1),
    "dialogues": Experiment("is13+bert", "lgf-add", also_set=SMALL, folds=1),
    "random dialogues": Experiment(
        "is13+bert", "lgf-add", also_set=SMALL, protocol="random-70-20-10", folds=1
    ),
    "class+vad": Experiment("logmel+bert", "lgf-add", target="class+vad", also_set=SMALL, folds=1),
    "solved": Experiment("is13+bert", "linear", set=("refit=false",), folds=1),
}


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Run]]:
    out = tmp_path_factory.mktemp("runs")
    trained = {}
    for name, experiment in EXPERIMENTS.items():
        epochs = None if name == "solved" else 2
        trained[name] = run_experiment(replace(experiment, store=store, out=out, epochs=epochs))
    return trained


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_was_tested_is_predicted_again_bit_for_bit(
    runs: dict[str, list[Run]], store: Path, name: str
) -> None:
    """Of every utterance of the corpus, those too that the label policy left out."""
    for run in runs[name]:
        predictions = predict_stored([run.path], store)
        assert predictions.ids == make_manifest().ids
        of_run = predictions.by_run[run.name]
        assert not of_run.unusable
        assert np.isfinite(of_run.probabilities).all()

        place = {id_: row for row, id_ in enumerate(predictions.ids)}
        for recorded in (run.predictions(), run.dev_predictions):
            assert recorded is not None
            rows = [place[id_] for id_ in recorded.column("id").to_pylist()]
            probabilities = np.stack(recorded.column("probabilities").to_pylist())
            np.testing.assert_array_equal(of_run.probabilities[rows], np.float32(probabilities))
            labels = [of_run.labels[row] for row in rows]
            assert labels == recorded.column("predicted").to_pylist()
            if name == "class+vad":
                arousal = recorded.column("predicted arousal").to_numpy()
                np.testing.assert_array_equal(of_run.ratings[rows, 1], arousal)


@pytest.mark.parametrize(
    ("name", "groups"),
    [("sequences", {"hubert", "mpnet"}), ("dialogues", {"is13", "bert"}), ("class+vad", None)],
)
def test_importance_begins_at_the_score_that_was_tested(
    runs: dict[str, list[Run]], name: str, groups: set[str] | None
) -> None:
    """What is lost is what is left of it, between all and chance."""
    [run] = runs[name]
    found = importances([run], permutations=2)
    assert groups is None or {each.group for each in found} == groups
    ua = 100 * run.result.tests["both"].ua
    for each in found:
        assert -100 + ua <= each.loss <= ua
    tested = open_tested(run)
    matrix = tested.counts(tested.data, measure_of("ua", run.result.classes, ()))
    assert matrix.tolist() == run.result.tests["both"].confusion


def test_what_does_not_fit_into_memory_is_streamed_bit_for_bit(
    runs: dict[str, list[Run]], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [run] = runs["sequences"]
    held = predict_stored([run.path], store).by_run[run.name]

    read_at_once: list[int] = []
    original = Streamed.window

    def counting(self: Streamed, utterances: np.ndarray) -> Inputs:
        read_at_once.append(len(np.unique(utterances)))
        return original(self, utterances)

    monkeypatch.setattr(Streamed, "window", counting)
    streamed = predict_stored([run.path], store, memory="0.045MB").by_run[run.name]

    assert read_at_once
    assert max(read_at_once) < len(make_manifest())
    np.testing.assert_array_equal(streamed.probabilities, held.probabilities)


def test_a_csv_has_the_mean_and_each_run_and_a_part_alone(
    runs: dict[str, list[Run]], store: Path, tmp_path: Path
) -> None:
    paths = [runs[name][0].path for name in ("vectors", "sequences", "solved")]
    file = tmp_path / "p.csv"

    done = ser("predict", *paths, "--store", store, "--part", "3", "--csv", file)

    assert done.exit_code == 0, done.output
    rows = read_csv(file)
    assert [row["id"] for row in rows] == [id_ for id_ in make_manifest().ids if "Ses03" in id_]
    whole = predict_stored(paths, store)
    for row in rows:
        place = whole.ids.index(row["id"])
        by_run = [of_run.probabilities[place] for of_run in whole.by_run.values()]
        means = np.mean(np.float64(by_run), axis=0)
        shown = [float(row[f"p_{name}"]) for name in whole.classes]
        np.testing.assert_allclose(shown, means, rtol=0, atol=1e-7)
        assert row["predicted"] == whole.classes[means.argmax()]
        for name, values in zip(whole.by_run, by_run, strict=True):
            of_run = [float(row[f"p_{label}@{name}"]) for label in whole.classes]
            np.testing.assert_allclose(of_run, values, rtol=0, atol=1e-6)

    printed = ser("predict", *paths, "--store", store, "--part", "3")
    assert printed.stdout.count("Ses03") == len(rows)
    as_json = json.loads(ser("predict", *paths, "--store", store, "--part", "3", "--json").stdout)
    assert len(as_json["predictions"]) == len(rows)
    assert as_json["runs"].keys() == whole.by_run.keys()


def test_an_utterance_without_a_label_is_predicted_and_one_without_rows_is_named(
    runs: dict[str, list[Run]], tmp_path: Path
) -> None:
    """The audio of one is empty, another has no transcript; the last has no label."""
    manifest = make_manifest()
    rows = manifest.table.to_pylist()
    rows[4]["text"] = rows[4]["text_sha256"] = None
    rows[-1]["label"] = None
    changed = Manifest.from_rows("tiny", rows, synthetic=True)
    changed_store = new_store(tmp_path / "store", changed)
    for feature, lacking in (("hubert", 2), ("mpnet", 4)):
        kept = [number for number in range(len(rows)) if number != lacking]
        empty = [lacking] if feature == "hubert" else []
        values = make_rows(manifest, feature)
        hop = 0.02 if feature == "hubert" else None
        random = {"random": True}
        add_feature(
            changed_store, changed, feature, values, kept, empty, checkpoint=random, hop=hop
        )

    [run] = runs["sequences"]
    file = tmp_path / "p.csv"
    done = ser("predict", run.path, "--store", changed_store.path, "--csv", file)

    assert done.exit_code == 3, done.output
    assert f"{rows[2]['id']}: hubert: quarantined (empty file)" in done.stderr
    assert f"{rows[4]['id']}: has no text" in done.stderr
    in_file = read_csv(file)
    assert [row["id"] for row in in_file if not row["predicted"]] == [rows[2]["id"], rows[4]["id"]]
    assert float(in_file[-1]["p_ang"]) > 0


def test_what_the_store_cannot_give_is_refused(
    runs: dict[str, list[Run]], store: Path, tmp_path: Path
) -> None:
    [vectors, other_fold] = runs["vectors"]
    empty = new_store(tmp_path / "store", make_manifest())
    with pytest.raises(MissingRows, match=r"has no feature 'is13@.*run .ser features"):
        predict_stored([vectors.path], empty.path)
    with pytest.raises(WrongUse, match="--part 9: corpus tiny has the parts 1, 2, 3, 4, 5"):
        predict_stored([vectors.path], store, part="9")
    with pytest.raises(WrongUse, match="name each run once"):
        predict_stored([vectors.path, vectors.path], store)
    with pytest.raises(WrongUse, match="give runs that predict the same"):
        predict_stored([vectors.path, runs["class+vad"][0].path], store)
    assert len(predict_stored([vectors.path, other_fold.path], store).by_run) == 2

    refused = ser("predict", vectors.path, "--store", store, "--text", "hello")
    assert refused.exit_code == 2
    assert "--text is for audio, and --store takes features from a store" in refused.stderr
