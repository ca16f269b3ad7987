"""What people import: a table, a dataset, against the plainest way to the same."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.cache.tools.tables import pooled, utterances
from ser.errors import MissingRows, WrongUse
from ser.tests.api_signatures import FIXTURE, documented, signatures
from ser.tests.tiny_store import add_feature, make_manifest, make_store
from ser.train.torch_dataset import TorchDataset


def test_pooled_table_is_the_mean_of_the_stored_frames(newcomer: Path) -> None:
    store = open_store(newcomer / "features")
    manifest = store.manifest()
    assert repr(manifest) == f"<Manifest of demo: {len(manifest)} utterances>"
    assert re.fullmatch(
        r"<Feature hubert@[0-9a-f]{16}: frame × \d+ float16>", repr(store["hubert"])
    )

    table = pooled(store["hubert"], manifest, "meanstd")
    assert list(table.index) == manifest.ids and table.shape == (
        len(manifest),
        2 * store["hubert"].spec.dim,
    )
    for id_ in manifest.ids[:5]:
        frames = store["hubert"][id_].astype(np.float64)
        assert np.allclose(table.loc[id_].to_numpy(), [*frames.mean(0), *frames.std(0)], atol=1e-5)
    labels = utterances(manifest)["label"]
    assert labels.to_dict() == dict(zip(manifest.ids, manifest.column("label"), strict=True))


def test_pooled_table_of_vectors_leaves_quarantined_out_and_refuses_gaps(tmp_path: Path) -> None:
    store, manifest = make_store(tmp_path / "s"), make_manifest()
    table = pooled(store["is13"], manifest)
    assert np.array_equal(table.loc[manifest.ids[3]].to_numpy(), store["is13"][manifest.ids[3]])
    half, some = (
        Spec(name, "audio", "utterance", 2, "float32", "made-up", 1) for name in ("half", "some")
    )
    add_feature(store, manifest, half, [np.ones(2, "f4")] * 120, range(1, 120), empty=[0])
    assert list(pooled(store["half"], manifest).index) == manifest.ids[1:]
    add_feature(store, manifest, some, [np.ones(2, "f4")], of=[0])
    with pytest.raises(MissingRows, match="lacks 119"):
        pooled(store["some"], manifest)


def test_torch_dataset_holds_what_the_store_holds(newcomer: Path) -> None:
    store = open_store(newcomer / "features")
    manifest = store.manifest()
    data = TorchDataset(newcomer / "features", "hubert+mpnet+logmel")
    label_of = dict(zip(manifest.ids, manifest.column("label"), strict=True))
    expected = [i for i in manifest.ids if label_of[i] in ("ang", "hap", "exc", "neu", "sad")]
    assert [data[k]["id"] for k in range(len(data))] == expected
    item = data[4]
    assert torch.equal(item["hubert"], torch.from_numpy(store["hubert"][item["id"]]).float())
    assert data.classes[item["label"]] == {"exc": "hap"}.get(
        label_of[item["id"]], label_of[item["id"]]
    )

    for fold in data.folds("session-out"):
        speakers = [
            {data.utterances.speakers[row] for row in rows} for rows in (fold.train, fold.test)
        ]
        assert not speakers[0] & speakers[1]
    batch = next(
        iter(DataLoader(Subset(data, fold.train.tolist()), batch_size=4, collate_fn=data.collate))
    )
    assert [name for name in batch if "lengths" not in name] == [
        "id",
        "label",
        "hubert",
        "mpnet",
        "logmel",
    ]
    lengths = batch["mpnet lengths"]
    assert batch["mpnet"].shape == (4, int(lengths.max()), item["mpnet"].shape[1])
    first = store["mpnet"][batch["id"][0]]
    assert np.array_equal(batch["mpnet"][0, : lengths[0]], first.astype("f4"))
    assert not batch["mpnet"][0, lengths[0] :].any()


def test_torch_dataset_of_vectors(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    data = TorchDataset(tmp_path / "s", ["is13"], labels="6class")
    assert data[0]["is13"].shape == (24,) and data.collate([data[0], data[1]])["is13"].shape == (
        2,
        24,
    )
    assert data.classes == ("ang", "exc", "fru", "hap", "neu", "sad")
    with pytest.raises(WrongUse, match=r"unknown label policy '4clas' \(did you mean 4class\?\)"):
        TorchDataset(tmp_path / "s", "is13", labels="4clas")


def test_a_public_signature_changes_with_a_line_in_the_changelog() -> None:
    modules = documented()
    assert all(
        {*names} <= {*importlib.import_module(name).__all__} for name, names in modules.items()
    )
    _, *held = FIXTURE.read_text(encoding="utf-8").splitlines()
    assert list(signatures()) == held, (
        "say so in CHANGELOG.md, then run `python -m ser.tests.api_signatures`"
    )
