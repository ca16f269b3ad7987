"""Features from a real store become batches: right rows, right order, right statistics."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.corpus.manifest import Manifest
from ser.errors import MissingRows, WrongUse
from ser.tests.tiny_store import add_feature, make_manifest, make_rows, make_store, new_store
from ser.train.data.loading import load_dataset
from ser.train.data.memory import DataCache
from ser.train.data.protocols import make_folds
from ser.train.data.standardizer import Standardizer
from ser.train.data.views import with_views
from ser.train.experiment import Experiment, prepare, run_experiment
from ser.train.fit_many import can_train_together
from ser.train.model_file import load_model
from ser.train.report.grouping import group_runs
from ser.train.report.page import make_page
from ser.train.report.sections.what_was_run import command

LAYERS: dict[str, Any] = {
    "checkpoint": {"digest": "a", "random": True},
    "provenance": {"layers": 2},
}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store with a view, and three layers of a model that ends in a LayerNorm.

    Layer k is hubert's rows plus k; the last one after its norm plus 3.
    """
    manifest = make_manifest()
    store = make_store(tmp_path_factory.mktemp("rich") / "s")

    for layer, norm in ((0, "before"), (1, "before"), (2, "before"), (3, "after")):
        config = {"layer": min(layer, 2), "norm": norm}
        variant = "layer=2,norm=after" if norm == "after" else f"layer={layer}"
        rows = [values + np.float16(layer) for values in make_rows(manifest, "hubert")]
        add_feature(store, manifest, "hubert", rows, variant=variant, config=config, **LAYERS)

    rows = [values + np.float16(8) for values in make_rows(manifest, "logmel")]
    add_feature(store, manifest, "logmel", rows, variant="view=pitch-1")
    add_feature(
        store, manifest, "hubert", make_rows(manifest, "hubert"), hop=0.02, variant="view=noise-1"
    )
    add_feature(
        store, manifest, "is13", make_rows(manifest, "is13"), of=range(50), variant="half=1"
    )

    return store.path


def stored(feature: str) -> dict[str, np.ndarray]:
    manifest = make_manifest()
    return dict(zip(manifest.ids, make_rows(manifest, feature), strict=True))


def test_vector_fusions_get_the_mean_or_mean_and_deviation_of_the_rows(store: Path) -> None:
    tokens = stored("bert")
    for name, dim in (("bert", 16), ("bert:pool=meanstd", 32)):
        data, _ = load_dataset(Experiment(f"is13+{name}", "lgf-add", store))
        wanted = []
        for id_ in data.utterances.ids:
            rows = tokens[id_].astype(np.float64)
            mean_and_deviation = [*rows.mean(0), *rows.std(0)]
            wanted.append(mean_and_deviation[:dim])

        assert data.dims == {"audio": 24, "text": dim}
        assert np.allclose(data.inputs["text"].values, wanted, atol=1e-6)


def test_frames_are_averaged_to_a_hop(tmp_path: Path) -> None:
    manifest = make_manifest()
    store = make_store(tmp_path / "s")
    cache = DataCache(tmp_path)
    plain, _ = load_dataset(Experiment("hubert+mpnet", "mit", store.path), cache)
    data, _ = load_dataset(Experiment("mpnet+hubert:hop=0.06", "mit", store.path), cache)
    inputs = data.inputs["audio"]
    frames_of = stored("hubert")

    assert inputs.values.dtype == torch.float32
    assert data.inputs["text"].values.dtype == torch.float16
    assert len(inputs.values) < len(plain.inputs["audio"].values)

    for i, name in enumerate(data.utterances.ids):
        x = frames_of[name].astype(np.float64)
        wanted = [x[first : first + 3].mean(0) for first in range(0, len(x), 3)]
        averaged = inputs.values[inputs.offsets[i] : inputs.offsets[i + 1]]
        assert np.allclose(averaged.numpy(), wanted, atol=1e-6)

    spec = Spec("hubert", "audio", "utterance", 12, "float32", "made-up", 1, "pool=mean")
    means = [x.mean(0, dtype=np.float32) for x in make_rows(manifest, "hubert")]
    add_feature(store, manifest, spec, means)
    # Vectors are made of the averaged frames, and not the stored means.
    frames = "hubert:hop=0.06,pool=mean"
    vectors, _ = load_dataset(Experiment(frames, "superb", store.path))
    first = inputs.values[: inputs.offsets[1]].mean(0)

    assert torch.allclose(vectors.inputs["audio"].values[0], first, atol=1e-6)

    record = plain.record.features["audio"]
    assert record.hop is None
    assert data.record.features["audio"] == msgspec.structs.replace(record, hop=0.06)

    at = f"@{record.fingerprint[:4]}"

    for name in (f"hubert:hop=0.06{at}", f"hubert{at}:hop=0.06"):
        assert load_dataset(Experiment(f"mpnet+{name}", "mit", store.path), cache)[0] is data, name


def test_dialogues_come_whole_and_in_turn_order(tmp_path: Path) -> None:
    # The manifest's rows are shuffled: order comes from turns, not from where a row stands.
    plain = make_manifest()
    order = np.random.default_rng(0).permutation(len(plain))
    manifest = Manifest(plain.corpus, plain.table.take(order), plain.synthetic)
    add_feature(new_store(tmp_path / "s", manifest), manifest, "is13", make_rows(manifest, "is13"))
    data, _ = load_dataset(Experiment("is13", "audio", tmp_path / "s"))

    [batch] = data.batches(np.arange(len(data.utterances)), "dialogue", 100, {})

    assert len(batch.dialogues) == 10
    assert batch.dialogues.sum() == len(batch) == len(data.utterances)

    dialogue_of = dict(zip(plain.ids, plain.column("dialogue"), strict=True))
    turn_of = dict(zip(plain.ids, plain.column("turn"), strict=True))

    for utterances in batch.utterances.split(batch.dialogues.tolist()):
        ids = [data.utterances.ids[row] for row in utterances]
        turns = [turn_of[id_] for id_ in ids]
        assert len({dialogue_of[id_] for id_ in ids}) == 1
        assert turns == sorted(turns)


def test_every_utterance_comes_once_an_epoch_in_a_new_order(store: Path) -> None:
    data, _ = load_dataset(Experiment("hubert", "audio", store))
    rows = np.arange(5, 60)
    shuffling = torch.Generator().manual_seed(0)

    def epoch() -> list[int]:
        batches = data.batches(rows, "utterance", 8, {}, shuffling)
        return torch.cat([batch.utterances for batch in batches]).tolist()

    first = epoch()
    second = epoch()
    assert sorted(first) == sorted(second) == rows.tolist()
    assert rows.tolist() != first != second


def test_what_is_constant_in_training_is_not_divided_by_zero(store: Path) -> None:
    data, _ = load_dataset(Experiment("is13", "audio", store))
    data.inputs["audio"].values[:, 3] = 1e7 / 3
    scaling = Standardizer.of(data.inputs["audio"], np.arange(20))
    assert scaling.std[3] == 1
    assert torch.isfinite(data.scaled({"audio": scaling}).inputs["audio"].values).all()


def test_features_are_loaded_once(store: Path) -> None:
    cache = DataCache()
    first, _ = load_dataset(Experiment("hubert+mpnet", "mit", store), cache)
    second, _ = load_dataset(Experiment("mpnet+hubert", "concat", store), cache)
    assert first.inputs["audio"] is second.inputs["audio"]

    other, _ = load_dataset(Experiment("hubert+mpnet", "mit", store, labels="5class"), cache)
    assert len(other.inputs["audio"].offsets) > len(first.inputs["audio"].offsets)


def test_limit_is_spread_over_the_corpus(store: Path) -> None:
    data, _ = load_dataset(Experiment("is13", "audio", store, limit=30))
    assert len(data.utterances) == 30
    assert set(data.utterances.sessions) == set("12345")


@pytest.mark.parametrize(
    ("features", "fusion", "says"),
    [
        ("is13+is13", "audio", "names is13 twice"),
        ("is13+hubert", "audio:frame", "takes audio frames, and the audio feature has one vector"),
        ("logmel+hubert", "audio:frame", "hubert has not as many rows as logmel"),
        ("hubert:layers=0-x", "audio", "layers=all or a range"),
        ("is13", "mit", "takes audio and text, and --features gives audio"),
        ("is13+mpnet", "mit", "one vector per utterance"),
        ("hubert+mpnet", "mitt", "did you mean mit"),
        ("bert", "audio", "needs one audio feature"),
        ("is13+bert", "audio:utterance", "takes audio, and --features gives audio and text"),
        ("bert:pool=max", "text", "pool must be mean or meanstd"),
        ("logmel & hubert", "cnn", "cannot take the place of logmel"),
        ("logmel & bert", "cnn", "cannot take the place of any feature"),
        ("hubert:layers=0-1 & hubert:layers=0-1", "audio", "several features in place of one"),
        ("hubert:hop=0.05", "audio:frame", "a multiple of its frames' own, 0.02 s, such as 0.1"),
        ("hubert:hop=nan", "audio:frame", "a multiple"),
        ("hubert++mpnet", "audio:frame", "a feature without a name: ''"),
        ("mpnet:hop=0.1", "audio:frame", "a multiple of that of its frames, and it has none"),
        (
            "hubert:hop=0.04 & hubert:view=noise-1",
            "audio:frame",
            "another level, dimension, pool or hop",
        ),
    ],
)
def test_names_that_do_not_fit(rich: Path, features: str, fusion: str, says: str) -> None:
    plain, _, views = features.partition(" & ")

    with pytest.raises(WrongUse, match=says):
        _ = load_dataset(Experiment(plain, fusion, rich, views=views))[0].inputs


@pytest.mark.parametrize(
    ("features", "fusion", "says"),
    [
        ("wavlm", "audio", "ser features CORPUS --features wavlm"),
        (
            "hubert:layers=0-3",
            "audio",
            "all of hubert:layers=0-3; run `ser features CORPUS --features hubert:layers",
        ),
        (
            # Not the last layer of another.
            "hubert:layers=all,norm=none",
            "audio",
            "all of hubert:layers=all,norm=none",
        ),
        (
            "hubert:layers=0-3,pool=mean",
            "superb",
            "ser features CORPUS --features hubert:layers=0-3,pool=mean",
        ),
        ("is13:half=1", "audio", r"lacks \d+ of \d+ .*ser features CORPUS --features is13:half=1"),
    ],
)
def test_a_feature_that_is_not_all_there_names_the_command(
    rich: Path, features: str, fusion: str, says: str
) -> None:
    """For the means of layers that of the means, not of the frames: 100 times as large."""
    with pytest.raises(MissingRows, match=says):
        load_dataset(Experiment(features, fusion, rich))


def test_quarantined_utterances_are_refused_or_named(tmp_path: Path) -> None:
    manifest = make_manifest()
    labels = manifest.column("label")
    bad = labels.index("ang")
    unlabelled = labels.index("xxx")
    kept = [i for i in range(len(manifest)) if i not in (bad, unlabelled)]
    store = new_store(tmp_path / "s", manifest)
    add_feature(
        store, manifest, "is13", make_rows(manifest, "is13"), of=kept, empty=(bad, unlabelled)
    )

    with pytest.raises(
        MissingRows, match=rf"1 labelled .* quarantined, such as {manifest.ids[bad]} \(empty"
    ):
        load_dataset(Experiment("is13", "audio", tmp_path / "s"))

    data, _ = load_dataset(Experiment("is13", "audio", tmp_path / "s", allow_missing=True))
    assert manifest.ids[bad] not in data.utterances.ids
    assert data.origin.left_out["is13: quarantined"] == [manifest.ids[bad]]

    every = new_store(tmp_path / "none", manifest)
    add_feature(
        every, manifest, "is13", make_rows(manifest, "is13"), of=(), empty=range(len(manifest))
    )

    with pytest.raises(
        MissingRows, match=r"labelled utterances are quarantined.*`ser features .* --retry`$"
    ):
        load_dataset(Experiment("is13", "audio", every.path, allow_missing=True))


def test_views_are_copies_of_the_training_utterances_alone(rich: Path) -> None:
    data, _ = load_dataset(Experiment("logmel+bert", "cnn+bert", rich, views="logmel:view=pitch-1"))
    fold = make_folds("session-out", data.utterances)[0]
    more, rows = with_views(data, fold.train)
    n = len(data.utterances)

    assert rows.tolist() == [*fold.train, *(fold.train + n)]

    batch = more.batch(more.groups(rows[[3, len(fold.train) + 3, 5]], "utterance"), {})
    plain = data.batch(data.groups(fold.train[[3, 3, 5]], "utterance"), {})
    assert torch.equal(batch.truth, plain.truth)
    # A view of audio leaves the text as it is.
    assert torch.equal(batch.inputs["text"].values, plain.inputs["text"].values)
    assert torch.equal(batch.inputs["audio"].lengths, plain.inputs["audio"].lengths)

    difference = batch.inputs["audio"].values - plain.inputs["audio"].values
    pieces = difference.split(plain.inputs["audio"].lengths.tolist())
    assert [round(piece.mean().item()) for piece in pieces] == [0, 8, 0]
    assert len(more.groups(rows, "dialogue")) == 2 * len(data.groups(fold.train, "dialogue"))


def test_views_do_not_touch_the_statistics_nor_the_other_parts(rich: Path, tmp_path: Path) -> None:
    settings = ("frames=48", "channels=2")
    plain = Experiment("logmel", "cnn", store=rich, out=tmp_path, epochs=1, folds=1, set=settings)
    [without] = run_experiment(plain)
    [mixed] = run_experiment(replace(plain, views="logmel:view=pitch-1"))

    assert without.path != mixed.path
    assert mixed.config.views[0].feature == "logmel:view=pitch-1"
    assert without.result.n == mixed.result.n
    assert without.result.parts == mixed.result.parts
    assert without.result.history[0].loss != mixed.result.history[0].loss

    scaling = load_model(without)[0].scaling["audio"]
    mixed_scaling = load_model(mixed)[0].scaling["audio"]
    assert torch.equal(scaling.mean, mixed_scaling.mean)
    assert torch.equal(scaling.std, mixed_scaling.std)


def test_processes_share_what_one_has_loaded(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    experiment = Experiment("hubert+bert", "mit", store.path)
    plain, _ = load_dataset(experiment)
    pooled, _ = load_dataset(Experiment("is13+bert", "lgf-add", store.path), DataCache(tmp_path))

    assert pooled.inputs["text"].values.dtype == torch.float32

    first, _ = load_dataset(experiment, DataCache(tmp_path))
    second, _ = load_dataset(experiment, DataCache(tmp_path))

    # The first reads now, and the second no values from the store.
    assert plain.inputs.keys() == first.inputs.keys() == {"audio", "text"}

    for part in tmp_path.glob("s/*/*/parts/*/data.zarr"):
        shutil.rmtree(part)

    for modality, expected in plain.inputs.items():
        for data in (first, second):
            assert torch.equal(data.inputs[modality].values, expected.values)
            assert np.array_equal(data.inputs[modality].offsets, expected.offsets)


def test_layers_stand_side_by_side_the_last_one_after_its_norm(rich: Path) -> None:
    for name, layers in (
        ("all", (0, 1, 3)),
        ("1-2", (1, 3)),
        ("all,norm=before", (0, 1, 2)),
        ("0-1", (0, 1)),
    ):
        data, _ = load_dataset(Experiment(f"hubert:layers={name}", "audio", rich))
        rows = np.array([7, 3, 30])
        frames_of = stored("hubert")
        plain = [frames_of[data.utterances.ids[row]] for row in rows]
        pieces = []
        for frames in plain:
            side_by_side = [frames + np.float16(layer) for layer in layers]
            pieces.append(np.concatenate(side_by_side, 1))

        batch = data.batch(data.groups(rows, "utterance"), {})

        assert batch.truth.tolist() == data.utterances.labels[rows].tolist()
        assert batch.inputs["audio"].lengths.tolist() == [len(x) for x in plain]
        assert np.array_equal(
            batch.inputs["audio"].values, np.concatenate(pieces).astype(np.float32)
        ), name

        pooled, _ = load_dataset(Experiment(f"hubert:layers={name},pool=mean", "superb", rich))
        means = [x.mean(0, dtype=float) for x in pieces]
        assert np.allclose(pooled.inputs["audio"].values[rows], means, atol=1e-3)

    # Any of a checkpoint's layers tells it.
    first = open_store(rich).feature("hubert:layer=0").fingerprint[:9]
    data, _ = load_dataset(Experiment(f"hubert@{first}:layers=1-2", "audio", rich))
    assert data.dims == {"audio": 24}

    cache = DataCache()
    names = ("hubert:layers=0-1", "hubert:layer=0+hubert:layer=1")
    sums, _ = load_dataset(Experiment(names[0], "audio", rich), cache)
    beside, _ = load_dataset(Experiment(names[1], "audio", rich), cache)
    assert sums.record.features != beside.record.features, "the same features, other runs"


def test_means_in_the_store_are_taken_and_told_apart(rich: Path, tmp_path: Path) -> None:
    store = open_store(shutil.copytree(rich, tmp_path / "s"))
    manifest = make_manifest()
    before, _ = load_dataset(Experiment("hubert:layers=0-1,pool=mean", "superb", store.path))

    for layer in range(2):
        means = []
        for frames in make_rows(manifest, "hubert"):
            means.append(frames.mean(0, dtype=np.float64).astype(np.float32) + layer)

        spec = Spec(
            "hubert",
            "audio",
            "utterance",
            12,
            "float32",
            "made-up",
            1,
            f"layer={layer},pool=mean",
            **LAYERS,
        )
        add_feature(store, manifest, spec, means)

    after, _ = load_dataset(Experiment("hubert:layers=0-1,pool=mean", "superb", store.path))
    assert torch.allclose(after.inputs["audio"].values, before.inputs["audio"].values, atol=1e-3)

    names = [data.record.features["audio"].parts[0].feature for data in (before, after)]
    assert names == ["hubert:layer=0", "hubert:layer=0,pool=mean"]

    other = {**LAYERS, "checkpoint": {"digest": "b", "random": True}}

    # Begun with another checkpoint.
    for layer in range(2):
        rows = make_rows(manifest, "hubert")
        add_feature(store, manifest, "hubert", rows, range(9), variant=f"layer={layer}", **other)

    name = "hubert:layers=0-1"
    alone, _ = load_dataset(Experiment(name, "audio", rich))
    of_two, _ = load_dataset(Experiment(name, "audio", store.path))
    complete = alone.inputs["audio"].values
    assert torch.equal(of_two.inputs["audio"].values, complete), "the one that is complete"


def test_features_of_a_modality_are_joined_each_standardised_by_itself(
    rich: Path, tmp_path: Path
) -> None:
    experiment = Experiment(
        "hubert:layers=all+is13+mpnet", "lgf-add", store=rich, out=tmp_path, folds=1, epochs=2
    )
    [job] = prepare(experiment)
    assert job.data.dims == {"audio": 3 * 12 + 24, "text": 12}
    assert not can_train_together(job.data, job.config)

    columns = job.data.inputs["audio"].values.split([12, 12, 12, 24], 1)
    whole = Standardizer.of(job.data.inputs["audio"], job.fold.train)

    cases = [
        ("hubert:layer=0", columns[0], whole.mean[:12]),
        ("is13", columns[3], whole.mean[36:]),
    ]
    for name, values, mean in cases:
        alone, _ = load_dataset(Experiment(f"{name}+mpnet", "lgf-add", rich))
        assert torch.equal(alone.inputs["audio"].values, values)

        scaling_alone = Standardizer.of(alone.inputs["audio"], job.fold.train)
        assert torch.equal(scaling_alone.mean, mean)

    [run] = run_experiment(experiment)
    joined = run.config.features["audio"].joined
    layers = ["hubert:layer=0", "hubert:layer=1", "hubert:layer=2,norm=after"]
    assert [feature.feature for feature in joined] == [*layers, "is13"]
    for feature in joined:
        assert open_store(rich).feature(f"{feature.feature}@{feature.fingerprint}")

    assert list(run.result.layers) == layers
    assert sum(run.result.layers.values()) == pytest.approx(1)
    assert len(set(run.result.layers.values())) == 3

    shares = load_model(run)[0].model.get_parameter("layer_sums.weights.audio 0").softmax(0)
    assert shares.tolist() == list(run.result.layers.values())

    [cell], _ = group_runs([run])
    assert "--features hubert:layers=all+is13+mpnet@" in command(cell)

    [table] = [table for table in make_page([cell], []).tables if table.name == "layers"]
    assert [row["layer"] for row in table.rows] == list(run.result.layers)
