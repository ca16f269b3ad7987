"""Permutation importance: against what is expected of every pair of utterances, by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from ser.cache.store import open_store
from ser.cache.tools.importing import import_feature
from ser.corpus.manifest import Manifest
from ser.errors import WrongUse
from ser.predict.importance import importances, permute, permuted_within
from ser.tests.command_line import printed, ser
from ser.train.data.inputs import Inputs
from ser.train.experiment import Experiment, run_experiment
from ser.train.run_folder import Run

SPEAKERS = 6
EACH = 10
LABELS = ("ang", "neu", "sad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two features of utterances: `telling`, whose first value knows the label, and `noise`."""
    folder = tmp_path_factory.mktemp("importance")
    rng = np.random.default_rng(0)
    rows = []
    labels = []
    for number in range(SPEAKERS * EACH):
        label = number % len(LABELS)
        labels.append(label)
        speaker = f"s{number // EACH}"
        rows.append({"id": f"u{number:02d}", "label": LABELS[label], "speaker": speaker})
    manifest = Manifest.from_rows("toy", rows)
    store = open_store(folder / "s", create=True)

    n = len(rows)
    telling = rng.normal(size=(n, 2)).astype(np.float32)
    telling[:, 0] += 2 * np.array(labels)
    arrays = {"telling": telling, "noise": rng.normal(size=(n, 3)).astype(np.float32)}
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
        import_feature(store, name, folder / f"{name}.npy", "audio", manifest)
    return folder


def trained(folder: Path, features: str, fusion: str = "linear", **options: object) -> list[Run]:
    experiment = Experiment(
        features,
        fusion,
        store=folder / "s",
        out=folder / f"runs of {features}",
        labels="all",
        protocol="speaker-out",
        **options,  # type: ignore[arg-type]
    )
    return run_experiment(experiment)


def ua_by_hand(
    run: Run, folder: Path, columns: list[int], features: list[str]
) -> tuple[float, float]:
    """The UA in percent of a linear run, and what is expected of it without these columns.

    The latter over all pairs of utterances: whose values one has is drawn evenly.
    """
    values = np.concatenate([np.load(folder / f"{name}.npy") for name in features], axis=1)
    ids = run.predictions().column("id").to_pylist()
    rows = [int(id_[1:]) for id_ in ids]
    truth = np.array(rows) % len(LABELS)

    tensors, _ = run.tensors("model.safetensors")
    weight = tensors["model.weight"].numpy()
    bias = tensors["model.bias"].numpy()
    mean = tensors["scaling.audio.mean"].numpy()
    std = tensors["scaling.audio.std"].numpy()

    def recalls(of_rows: np.ndarray) -> float:
        right = ((of_rows - mean) / std @ weight.T + bias).argmax(1) == truth
        return float(np.mean([right[truth == label].mean() for label in np.unique(truth)]))

    tested = values[rows]
    expected = []
    for other in range(len(rows)):
        changed = tested.copy()
        changed[:, columns] = tested[(np.arange(len(rows)) + other) % len(rows)][:, columns]
        expected.append(recalls(changed))
    return 100 * recalls(tested), 100 * float(np.mean(expected))


def test_losses_are_those_expected_by_hand(folder: Path) -> None:
    [run] = trained(folder, "telling+noise", folds=1)
    found = {each.group: each for each in importances([run], "c", permutations=400)}
    assert set(found) == {"telling", "noise"}
    assert list(found) == ["telling", "noise"]
    for group, columns in (("telling", [0, 1]), ("noise", [2, 3, 4])):
        before, without = ua_by_hand(run, folder, columns, ["telling", "noise"])
        assert before == pytest.approx(100 * run.result.tests["both"].ua)
        loss = found[group].loss
        deviation = found[group].deviation
        assert deviation is not None
        # Of the mean of the permutations, four standard errors.
        assert loss == pytest.approx(before - without, abs=4 * deviation / np.sqrt(400) + 1e-9)
        assert found[group].columns == len(columns)
    assert found["telling"].loss > 20


def test_the_same_numbers_every_time_and_folds_are_pooled(folder: Path, tmp_path: Path) -> None:
    runs = trained(folder, "telling+noise", folds="all")
    first = importances(runs, "c")
    assert first == importances(runs, "c")

    out = tmp_path / "t.csv"
    shown = printed("report", *[run.path for run in runs], "--importance", "--csv", out)
    assert "UA points lost" in shown
    assert "Permutation importance" in shown
    # Of all folds the number that the report says first, and without a group so much less.
    with out.open(newline="") as file:
        text = file.read()
    assert f"{first[0].loss:.4f}" in text
    lines = [line for line in csv.reader(text.splitlines()) if line[1:2] == ["telling"]]
    assert len(lines) == 1


def test_a_store_that_is_gone(folder: Path, tmp_path: Path) -> None:
    [run] = trained(folder, "telling", folds=1)
    (folder / "s").rename(folder / "t")
    try:
        with pytest.raises(WrongUse, match="reads the features of the store that it was trained"):
            importances([run])
        assert ser("report", run.path, "--importance").exit_code == 2
    finally:
        (folder / "t").rename(folder / "s")


def test_sequences_change_places_whole() -> None:
    """Those of other lengths too, and within each corpus."""
    lengths = np.array([2, 1, 3, 2])
    values = torch.arange(8.0)[:, None]
    stored = Inputs(values, np.concatenate([[0], lengths.cumsum()]))
    places = np.array([2, 0, 1, 3])
    permuted = permute(stored, None, places)

    taken = permuted.take(np.array([1, 0, 3]))
    assert taken.lengths.tolist() == [2, 3, 2]
    assert taken.values[:, 0].tolist() == [0, 1, 3, 4, 5, 6, 7]

    corpora = np.array([1, 2, 2, 1, 1, 2])
    drawn = permuted_within(corpora, np.random.default_rng(0))
    assert sorted(drawn) == list(range(6))
    assert (corpora[drawn] == corpora).all()
