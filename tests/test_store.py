"""What goes into a store comes out, bit for bit, and nothing else does."""

import hashlib
import io
import itertools
import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from ser.cache.backends import BACKENDS
from ser.cache.part import Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.store import open_store
from ser.corpus.manifest import Manifest
from ser.errors import MissingRows, StoreError, WrongUse
from ser.tests.store_samples import (
    check_whole,
    fill,
    manifest_of,
    new_store,
    part_rows,
    sample_store,
    spec_of,
    values_of,
)


@pytest.mark.parametrize("level", ["frame", "token", "utterance"])
def test_what_goes_in_comes_out(tmp_path: Path, backend: str, level: str) -> None:
    _, feature, manifest, arrays = sample_store(tmp_path / "s", backend, level=level)
    again = open_store(tmp_path / "s")
    feature = again[feature.spec.name]
    assert check_whole(feature, again.manifest()).values.dtype == np.float16
    assert (
        feature.complete(manifest)
        and feature.rows(manifest) == len(manifest)
        and not feature.missing(manifest)
    )
    one = feature["u003"]
    assert one.tobytes() == arrays["u003"].tobytes()
    assert one.shape == ((8,) if level == "utterance" else arrays["u003"].shape)
    if level == "token":
        words = feature.load(manifest, [7, 2]).extras["word"]
        expected = np.concatenate([np.arange(len(arrays[id_])) - 1 for id_ in ("u007", "u002")])
        assert np.array_equal(words, expected) and words.dtype == np.int32


def test_any_rows_in_any_order(tmp_path: Path, backend: str) -> None:
    # Blocks of 2 MB hold several of these utterances, and some utterances span blocks.
    manifest, random = manifest_of(6), np.random.default_rng(0)
    large = new_store(tmp_path / "s", manifest).add(
        spec_of(dim=1000, feature="large", dtype="float32")
    )
    lengths = dict(zip(manifest.ids, [3, 900, 1, 1500, 7, 40], strict=True))
    arrays = {id_: random.normal(size=(n, 1000)).astype("f4") for id_, n in lengths.items()}
    fill(large, manifest, backend, arrays)
    for rows in ([5, 0, 3], [1], [], [3, 3, 0, 3], [4, 5, 2, 1, 0, 3], [np.int64(2)]):
        packed = check_whole(large, manifest, arrays, rows)
        assert (
            packed.offsets.tolist()
            == np.cumsum([0, *(len(arrays[id_]) for id_ in packed.ids)]).tolist()
        )
    with pytest.raises(IndexError):
        packed[len(packed)]


@pytest.mark.parametrize("level", ["frame", "token"])
def test_plain_zarr_and_plain_h5py_open_it(tmp_path: Path, level: str) -> None:
    manifest, spec = manifest_of(3), spec_of(level, dim=3, feature="plain")
    feature = new_store(tmp_path / "s", manifest).add(spec)
    for rows, backend in itertools.product([0, 1, 5, 1023, 1024, 1025, 2049, 3001], BACKENDS):
        array = np.random.default_rng(rows).normal(size=(rows, 3)).astype("f2")
        arrays = {
            "u000": array[: rows // 3],
            "u001": array[rows // 3 : rows // 2],
            "u002": array[rows // 2 :],
        }
        made = part_rows(manifest, spec, [0, 1, 2], arrays)
        made.corpus = f"{backend}-{rows}"
        folder = feature.path / "parts" / str(publish_part(feature, made, backend, {}))
        data = (
            zarr.open_group(folder / "data.zarr", mode="r")
            if backend == "zarr"
            else h5py.File(folder / "data.h5")
        )
        assert np.array_equal(data["values"][:], array) and data["values"].dtype == np.float16
        assert data["offsets"][:].tolist() == [0, rows // 3, rows // 2, rows]
        assert json.loads((folder / "part.json").read_text())["ids"] == ["u000", "u001", "u002"]
        if level == "token":
            assert data["word"].dtype == np.int32
            assert np.array_equal(data["word"][:], np.concatenate(made.extras["word"]))


def test_size_on_disk(tmp_path: Path, backend: str) -> None:
    manifest = manifest_of(100)
    store = new_store(tmp_path / "s", manifest)
    for spec in (
        spec_of("utterance", 6373, "float32", feature="is13"),
        spec_of(dim=768, feature="hubert"),
    ):
        feature, arrays = store.add(spec), values_of(manifest, spec, longest=100)
        publish_part(feature, part_rows(manifest, spec, range(100), arrays), backend, {})
        held = sum(
            path.stat().st_size for path in (feature.path / "parts").rglob("*") if path.is_file()
        )
        assert held <= 1.02 * sum(array.nbytes for array in arrays.values())


def test_what_has_changed_is_missing_and_nothing_else(tmp_path: Path) -> None:
    store, audio, manifest, _ = sample_store(tmp_path / "s", "zarr", level="frame")
    text = store.add(spec_of("token"))
    fill(text, manifest, "zarr")
    rows = manifest.table.to_pylist()
    rows[2]["text"] = "changed"
    rows[5]["audio_sha256"] = "0" * 64
    changed = Manifest.from_rows(
        "toy", [*rows, {"id": "new", "audio_sha256": "1" * 64, "text": "new"}]
    )
    assert audio.missing(changed) == [5, 10] and text.missing(changed) == [2, 10]
    assert audio.missing(manifest) == text.missing(manifest) == []
    assert audio.missing(Manifest("asr", manifest.table)) == list(range(10))  # another corpus
    with pytest.raises(MissingRows, match=r"lacks 2 of 11 utterances.*ser features"):
        audio.load(changed)
    check_whole(audio, manifest)
    other = manifest_of(3, "other")
    fill(audio, other, "hdf5")
    both = Manifest.joined([other, manifest])
    assert audio.load(both).ids == both.ids and both.ids[0] == "other/u000"
    assert audio.load(both, [12, 1]).ids == [both.ids[12], both.ids[1]]


def test_quarantine(tmp_path: Path) -> None:
    manifest = manifest_of(4)
    feature = new_store(tmp_path / "s", manifest).add(spec_of())
    rows = part_rows(manifest, feature.spec, [0, 1])
    digest = manifest.inputs("audio")[2]
    rows.quarantined = [
        Quarantine("u002", digest, "u002.wav", "is empty"),
        Quarantine("u003", "old", "x", "was empty"),
    ]
    publish_part(feature, rows, "zarr", {})
    assert feature.quarantined(manifest) == {"u002": "is empty"}  # u003 has another input now
    assert feature.missing(manifest) == [3] and feature.missing(manifest, retry=True) == [2, 3]
    assert feature.rows(manifest) == 2 and not feature.complete(manifest)
    with pytest.raises(MissingRows, match=r"1 of them quarantined.*--retry"):
        feature.load(manifest)
    only = PartRows(
        "toy",
        quarantined=[Quarantine("u003", manifest.inputs("audio")[3], "u003.wav", "is a folder")],
    )
    assert (
        publish_part(feature, only, "hdf5", {}) and publish_part(feature, only, "zarr", {}) is None
    )
    assert feature.complete(manifest) and feature.rows(manifest) == 2
    publish_part(feature, part_rows(manifest, feature.spec, [2, 3]), "hdf5", {})
    assert feature.quarantined(manifest) == {} and feature.rows(manifest) == 4
    check_whole(feature, manifest)


ONE = np.zeros((1, 8))
LARGE = np.full((1, 8), 65536.0)


@pytest.mark.parametrize(
    ("rows", "dtype", "word"),
    [
        (PartRows("toy", ["a"], ["d"], [np.full((1, 8), np.nan)]), "float16", "'a'.*not finite"),
        (PartRows("toy", ["a"], ["d"], [np.full((1, 8), np.inf)]), "float32", "'a'.*not finite"),
        (PartRows("toy", ["b", "a"], ["d", "d"], [ONE, LARGE]), "float16", "'a'.*--dtype float32"),
        *(
            (PartRows("toy", ["a"], ["d"], [np.zeros(shape)]), "float16", "'a'")
            for shape in [(3, 7), 8, (1, 2, 8)]
        ),
        (
            PartRows("toy", ["a"], ["d"], [np.zeros((3, 8), np.int64)]),
            "float16",
            "'a' has dtype int64",
        ),
        (PartRows("toy", ["a", "a"], ["d", "e"], [ONE, ONE]), "float16", "twice"),
        (PartRows("toy", ["\ud800"], ["d"], [ONE]), "float16", "not valid Unicode"),
    ],
)
def test_rows_that_cannot_be_kept(tmp_path: Path, rows: PartRows, dtype: str, word: str) -> None:
    feature = open_store(tmp_path / "s", create=True).add(spec_of(dtype=dtype))
    with pytest.raises(StoreError, match=word):
        publish_part(feature, rows, "zarr", {})
    with pytest.raises(WrongUse, match=r"unknown backend 'zar'.*did you mean zarr"):
        publish_part(feature, rows, "zar", {})
    assert feature.parts() == []


HOSTILE = [
    "../../etc/passwd", "/abs", "nul\0nul", "new\nline", "tab\t\x1b[31m", "=cmd|'/c calc'!A0", "<script>x</script>",
    "é", "e\u0301", "", " ", ".", "..", "a" * 5000, "data.h5", "\u202e", "\U0001f600", '"}],"x":1', "\\", "%s{}",
]  # fmt: skip
BAD_NAMES = ["../evil", "a/b", "", ".", "..", "tmp", "manifests", ".hidden", "a\0b", "x" * 65, "é"]


def test_ids_are_data(tmp_path: Path, backend: str) -> None:
    manifest = Manifest.from_rows("toy", [{"id": id_, "audio_sha256": "0" * 64} for id_ in HOSTILE])
    feature = new_store(tmp_path / "s", manifest).add(spec_of())
    arrays = values_of(manifest, feature.spec)
    publish_part(feature, part_rows(manifest, feature.spec, range(len(HOSTILE))), backend, {})
    check_whole(open_store(tmp_path / "s")["frames"], open_store(tmp_path / "s").manifest())
    assert all(feature[id_].tobytes() == arrays[id_].tobytes() for id_ in HOSTILE)
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*")]
    assert not [
        name for name in names if any(id_ in name.parts for id_ in HOSTILE if id_ != "data.h5")
    ]


def test_names_that_become_folders(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    for name in BAD_NAMES:
        with pytest.raises(WrongUse, match="cannot be called"):
            store.add(spec_of(feature=name))
        with pytest.raises(WrongUse, match="cannot be called"):
            store.put_manifest(Manifest.from_rows(name, [{"id": "a"}]))
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_a_spec_that_nothing_could_read_is_never_written(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    for wrong in ({"dim": -64}, {"dim": True}, {"hop": -0.02}, {"config": {"scale": float("nan")}}):
        with pytest.raises(WrongUse, match="frames: no store can hold"):
            store.add(spec_of(**wrong))
    assert {path.name for path in store.path.iterdir()} <= {"manifests", "tmp"}


def test_a_path_that_holds_no_store(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"holds no store; run `ser features"):
        open_store(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    for path in (tmp_path / "other", tmp_path / "other" / "thesis.txt"):
        with pytest.raises(WrongUse):
            open_store(path, create=True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"
    for inside in ("tmp", "manifests"):  # another process is making it
        (tmp_path / "s" / inside).mkdir(parents=True, exist_ok=True)
        open_store(tmp_path / "s", create=True)
    (tmp_path / "disk" / "lost+found" / "#12").mkdir(parents=True)  # as an ext file system has it
    assert open_store(tmp_path / "disk", create=True).features() == []


def test_features_by_name(tmp_path: Path) -> None:
    store, _, manifest, _ = sample_store(tmp_path / "s", "zarr")
    with pytest.raises(
        MissingRows, match=r"no feature 'hubert'.*ser features CORPUS --features hubert "
    ):
        store.feature("hubert")
    with pytest.raises(
        MissingRows,
        match=r"no feature 'frmes:layer=9' \(there is frames\); if you mean another, run ",
    ):
        store.feature("frmes:layer=9")
    a = store.add(spec_of(variant="layer=9,norm=yes", feature="hubert"))
    assert store.feature("hubert:norm=yes,layer=9").fingerprint == a.fingerprint
    with pytest.raises(MissingRows, match=r"there is hubert:layer=9,norm=yes@"):
        store.feature("hubert")
    first = store.add(spec_of(feature="hubert", config={"x": 1}))
    second = store.add(spec_of(feature="hubert", config={"x": 2}))
    assert store.feature(f"hubert@{second.fingerprint[:6]}").fingerprint == second.fingerprint
    with pytest.raises(WrongUse, match="incomplete in several ways"):
        store.feature("hubert")
    fill(first, manifest, "zarr")
    assert store["hubert"].fingerprint == first.fingerprint
    fill(second, manifest, "zarr")
    with pytest.raises(
        WrongUse,
        match=f"{first.fingerprint[:8]}.*{second.fingerprint[:8]}|{second.fingerprint[:8]}",
    ):
        store.feature("hubert", "toy")


def test_corpora_and_manifests(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    with pytest.raises(WrongUse, match="holds no corpus yet"):
        store.manifest()
    with pytest.raises(WrongUse, match="'a' twice"):
        store.put_manifest(Manifest.from_rows("toy", [{"id": "a"}, {"id": "a"}]))
    old, new = manifest_of(3), manifest_of(4)
    first = store.put_manifest(old)
    assert store.put_manifest(manifest_of(3)) == first
    second = store.put_manifest(new)
    assert (
        len(store.manifest()) == 4
        and store.manifest().digest == second
        and len(store.manifest("toy", first)) == 3
    )
    with pytest.raises(
        WrongUse, match=r"4 utterances there, and 1 of them \(such as 'u003'\).*--replace"
    ):
        store.put_manifest(old)
    with pytest.raises(WrongUse, match="and 4 of them"):
        store.put_manifest(manifest_of(9, prefix="v"))
    assert store.put_manifest(old, replace=True) == first and len(store.manifest()) == 3
    store.put_manifest(manifest_of(2, "zebra"))
    assert store.corpora() == ["toy", "zebra"]
    with pytest.raises(WrongUse, match="toy, zebra"):
        store.manifest()
    with pytest.raises(WrongUse, match="no corpus 'tou'"):
        store.manifest("tou")
    with pytest.raises(WrongUse, match="has no manifest"):
        store.manifest("toy", "../../x")


def test_a_manifest_keeps_its_bytes(tmp_path: Path) -> None:
    # Another version of pyarrow writes other bytes; the digest must not depend on who reads.
    manifest = manifest_of(3)
    sink = io.BytesIO()
    pq.write_table(manifest.table.replace_schema_metadata(pq.read_schema(io.BytesIO(manifest.content)).metadata), sink,
                   compression="zstd", row_group_size=2)  # fmt: skip
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    read = Manifest.from_content(sink.getvalue(), digest, "x")
    assert read.digest == digest != manifest.digest and read.table.equals(manifest.table)


def test_the_first_part_by_name_counts(tmp_path: Path) -> None:
    _store, feature, manifest, arrays = sample_store(tmp_path / "s", "zarr", count=4)
    other = {id_: array + 1 for id_, array in arrays.items()}
    publish_part(feature, part_rows(manifest, feature.spec, [1, 2], other), "zarr", {})
    first = feature.parts()[0].record.ids
    check_whole(
        feature, manifest, {**arrays, **{id_: other[id_] for id_ in first if len(first) == 2}}
    )


def test_provenance_can_be_added_and_any_setting_makes_another_fingerprint(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    spec = spec_of(
        provenance={"model": "x/y", "versions": {"torch": "2"}},
        hop=0.02,
        checkpoint={"digest": "0" * 64},
    )
    feature = store.add(spec)
    feature.annotate(checked={"utterances": 5, "difference": 1e-7})
    again = store.add(spec)
    assert again.fingerprint == spec.fingerprint
    assert again.spec.provenance == {
        **spec.provenance,
        "checked": {"utterances": 5, "difference": 1e-7},
    }
    assert again.spec.identity() == spec.identity() and not list((store.path / "tmp").iterdir())
    settings = (
        {"dim": 9},
        {"dtype": "float32"},
        {"version": 2},
        {"config": {"layer": 9}},
        {"variant": "layer=9"},
    )
    others = [
        spec_of(**{"hop": 0.02, **more})
        for more in (*settings, {"checkpoint": {"digest": "1"}}, {"hop": 0.01})
    ]
    assert len({one.fingerprint for one in [spec, *others]}) == 8, (
        "any other setting is another feature"
    )
