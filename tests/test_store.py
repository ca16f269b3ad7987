"""What goes into a store comes out, bit for bit, and nothing else does."""

import hashlib
import io
import itertools
import json
import pickle
from dataclasses import replace
from pathlib import Path

import crc32c
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from ser.cache import blocks, zarr_layout
from ser.cache.backends import BACKENDS
from ser.cache.part import Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.store import open_store
from ser.cache.tools.listing import computed_with
from ser.cache.tools.verify import check_part
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

    assert feature.complete(manifest)
    assert feature.rows(manifest) == len(manifest)
    assert not feature.missing(manifest)

    utterance = feature["u003"]
    assert utterance.tobytes() == arrays["u003"].tobytes()
    assert utterance.shape == ((8,) if level == "utterance" else arrays["u003"].shape)

    if level == "token":
        words = feature.load(manifest, [7, 2]).extras["word"]
        expected = np.concatenate([np.arange(len(arrays[id_])) - 1 for id_ in ("u007", "u002")])
        assert np.array_equal(words, expected) and words.dtype == np.int32


def test_any_rows_in_any_order(tmp_path: Path, backend: str) -> None:
    # Blocks of 2 MB hold several of these utterances, and some utterances span blocks.
    manifest = manifest_of(6)
    random = np.random.default_rng(0)
    spec = spec_of(dim=1000, feature="large", dtype="float32")
    large = new_store(tmp_path / "s", manifest).add(spec)

    arrays = {}
    for id_, rows in zip(manifest.ids, [3, 900, 1, 1500, 7, 40], strict=True):
        arrays[id_] = random.normal(size=(rows, 1000)).astype("f4")
    fill(large, manifest, backend, arrays)

    for rows in ([5, 0, 3], [1], [], [3, 3, 0, 3], [4, 5, 2, 1, 0, 3], [np.int64(2)]):
        packed = check_whole(large, manifest, arrays, rows)
        lengths = [len(arrays[id_]) for id_ in packed.ids]
        assert packed.offsets.tolist() == np.cumsum([0, *lengths]).tolist()

    with pytest.raises(IndexError):
        packed[len(packed)]


@pytest.mark.parametrize("read_bytes", [1000, 4 << 20], ids=["short reads", "long reads"])
def test_any_stretches_of_any_blocks(
    tmp_path: Path, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_READ_BYTES", read_bytes)
    monkeypatch.setattr(blocks, "_BYTES_PER_THREAD", 1000)
    random = np.random.default_rng(0)

    for case in range(60):
        shape = (int(random.integers(1, 400)), int(random.choice([1, 40, 2500])))
        array = random.integers(0, 1 << 16, shape).astype("u2")

        # Blocks in up to two files, some side by side, some with other bytes between them.
        cuts = np.unique([0, shape[0], *random.integers(0, shape[0], 6)]).tolist()
        files = {"0": b"", "1": b""}
        found = []
        for start, stop in itertools.pairwise(cuts):
            name = str(random.integers(1 + case % 2))
            files[name] += bytes(int(random.choice([0, 4, 5000])))
            content = array[start:stop].tobytes()
            offset = len(files[name])
            found.append(blocks.Block(name, offset, len(content), crc32c.crc32c(content)))
            files[name] += content
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        record = blocks.ArrayRecord("uint16", shape, tuple(found))
        assert np.array_equal(blocks.read_array(tmp_path, record), array)

        starts, stops = np.sort(random.integers(0, shape[0] + 1, (2, 20)), 0)
        if case % 3 == 0:
            stops = np.minimum(starts + 1, shape[0])
        lengths = stops - starts
        stretches = blocks.Stretches(starts, stops, np.cumsum(lengths) - lengths)
        target = blocks.empty_to_read_into((lengths.sum(), shape[1]), "u2")
        blocks.read_stretches([blocks.ArrayRead(tmp_path, record, stretches)], target)

        rows = [array[start:stop] for start, stop in zip(starts, stops, strict=True)]
        assert np.array_equal(target, np.concatenate(rows))


@pytest.mark.parametrize("level", ["frame", "token"])
def test_plain_zarr_and_plain_h5py_open_it(tmp_path: Path, level: str) -> None:
    manifest = manifest_of(3)
    spec = spec_of(level, dim=3, feature="plain")
    feature = new_store(tmp_path / "s", manifest).add(spec)

    for rows, backend in itertools.product([0, 1, 5, 1023, 1024, 1025, 2049, 3001], BACKENDS):
        array = np.random.default_rng(rows).normal(size=(rows, 3)).astype("f2")
        arrays = {
            "u000": array[: rows // 3],
            "u001": array[rows // 3 : rows // 2],
            "u002": array[rows // 2 :],
        }
        part = part_rows(manifest, spec, [0, 1, 2], arrays)
        part.corpus = f"{backend}-{rows}"
        folder = feature.path / "parts" / str(publish_part(feature, part, backend, {}))

        if backend == "zarr":
            data = zarr.open_group(folder / "data.zarr", mode="r")
        else:
            data = h5py.File(folder / "data.h5")
        assert np.array_equal(data["values"][:], array)
        assert data["values"].dtype == np.float16
        assert data["offsets"][:].tolist() == [0, rows // 3, rows // 2, rows]
        assert json.loads((folder / "part.json").read_text())["ids"] == ["u000", "u001", "u002"]

        if level == "token":
            assert data["word"].dtype == np.int32
            assert np.array_equal(data["word"][:], np.concatenate(part.extras["word"]))


def test_a_part_has_a_file_for_each_array(tmp_path: Path) -> None:
    # At most four beside part.json and what describes them to Zarr.
    for backend, expected in (("zarr", 4), ("hdf5", 1)):
        _, feature, _, _ = sample_store(tmp_path / backend, backend, level="token")
        for part in feature.parts():
            names = [name for name in part.record.files if not name.endswith("zarr.json")]
            assert len(names) == expected == len(part.record.arrays) ** (backend == "zarr")


def test_an_array_larger_than_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_layout, "SHARD_BYTES", 2 * 1000 * 3 * 2)
    manifest = manifest_of(1)
    feature = new_store(tmp_path / "s", manifest).add(spec_of(dim=3))
    values = np.random.default_rng(0).normal(size=(4900, 3)).astype("f2")
    fill(feature, manifest, "zarr", {"u000": values})

    [part] = feature.parts()
    shards = sorted((part.folder / "data.zarr/values/c").iterdir())
    assert [shard.name for shard in shards] == ["0", "1", "2"]
    data = zarr.open_group(part.folder / "data.zarr", mode="r")
    assert data["values"].shards == (1960, 3) and data["values"].chunks == (980, 3)
    assert np.array_equal(data["values"][:], values)
    assert np.array_equal(feature["u000"], values)
    check_part(part.folder, feature.fingerprint)


def test_size_on_disk(tmp_path: Path, backend: str) -> None:
    manifest = manifest_of(100)
    store = new_store(tmp_path / "s", manifest)
    is13 = spec_of("utterance", 6373, "float32", feature="is13")
    hubert = spec_of(dim=768, feature="hubert")

    for spec in (is13, hubert):
        feature = store.add(spec)
        arrays = values_of(manifest, spec, longest=100)
        publish_part(feature, part_rows(manifest, spec, range(100), arrays), backend, {})

        files = [path for path in (feature.path / "parts").rglob("*") if path.is_file()]
        size = sum(file.stat().st_size for file in files)
        assert size <= 1.02 * sum(array.nbytes for array in arrays.values())


def test_what_has_changed_is_missing_and_nothing_else(tmp_path: Path) -> None:
    store, audio, manifest, _ = sample_store(tmp_path / "s", "zarr", level="frame")
    text = store.add(spec_of("token"))
    fill(text, manifest, "zarr")

    rows = manifest.table.to_pylist()
    rows[2]["text"] = "changed"
    rows[5]["audio_sha256"] = "0" * 64
    rows.append({"id": "new", "audio_sha256": "1" * 64, "text": "new"})
    changed = Manifest.from_rows("toy", rows)

    assert audio.missing(changed) == [5, 10]
    assert text.missing(changed) == [2, 10]
    assert audio.missing(manifest) == []
    assert text.missing(manifest) == []
    another_corpus = Manifest("asr", manifest.table)
    assert audio.missing(another_corpus) == list(range(10))
    with pytest.raises(MissingRows, match=r"lacks 2 of 11 utterances.*ser features"):
        audio.load(changed)
    check_whole(audio, manifest)

    other = manifest_of(3, "other")
    fill(audio, other, "hdf5")
    both = Manifest.joined([other, manifest])
    assert both.ids[0] == "other/u000"
    assert audio.load(both).ids == both.ids
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

    # u003 has another input now.
    assert feature.quarantined(manifest) == {"u002": "is empty"}
    assert feature.missing(manifest) == [3]
    assert feature.missing(manifest, retry=True) == [2, 3]
    assert feature.rows(manifest) == 2
    assert not feature.complete(manifest)
    with pytest.raises(MissingRows, match=r"1 of them quarantined.*--retry"):
        feature.load(manifest)

    folder = Quarantine("u003", manifest.inputs("audio")[3], "u003.wav", "is a folder")
    only_quarantined = PartRows("toy", quarantined=[folder])
    assert publish_part(feature, only_quarantined, "hdf5", {})
    assert publish_part(feature, only_quarantined, "zarr", {}) is None
    assert feature.complete(manifest)
    assert feature.rows(manifest) == 2

    publish_part(feature, part_rows(manifest, feature.spec, [2, 3]), "hdf5", {})
    assert feature.quarantined(manifest) == {}
    assert feature.rows(manifest) == 4
    check_whole(feature, manifest)


ONE = np.zeros((1, 8))
LARGE = np.full((1, 8), 65536.0)


def rows_of(*arrays: np.ndarray) -> PartRows:
    """Utterances "a", "b" … with these arrays."""
    ids = list("abc")[: len(arrays)]
    return PartRows("toy", ids, ["d"] * len(ids), list(arrays))


UNFIT_ROWS = {
    "NaN": (rows_of(np.full((1, 8), np.nan)), "float16", "'a'.*not finite"),
    "infinite": (rows_of(np.full((1, 8), np.inf)), "float32", "'a'.*not finite"),
    "too large for float16": (rows_of(ONE, LARGE), "float16", "'b'.*--dtype float32"),
    "another dimension": (rows_of(np.zeros((3, 7))), "float16", "'a'"),
    "one axis": (rows_of(np.zeros(8)), "float16", "'a'"),
    "three axes": (rows_of(np.zeros((1, 2, 8))), "float16", "'a'"),
    "integers": (rows_of(np.zeros((3, 8), np.int64)), "float16", "'a' has dtype int64"),
    "an id twice": (PartRows("toy", ["a", "a"], ["d", "e"], [ONE, ONE]), "float16", "twice"),
    "a lone surrogate": (
        PartRows("toy", ["\ud800"], ["d"], [ONE]),
        "float16",
        "not valid Unicode",
    ),
}


@pytest.mark.parametrize("unfit", UNFIT_ROWS)
def test_rows_that_cannot_be_kept(tmp_path: Path, unfit: str) -> None:
    rows, dtype, message = UNFIT_ROWS[unfit]
    feature = open_store(tmp_path / "s", create=True).add(spec_of(dtype=dtype))

    with pytest.raises(StoreError, match=message):
        publish_part(feature, rows, "zarr", {})
    with pytest.raises(WrongUse, match=r"unknown backend 'zar'.*did you mean zarr"):
        publish_part(feature, rows, "zar", {})
    assert feature.parts() == []


# Ids that would do harm as a path, in a shell, on a page or in JSON.
HOSTILE = [
    "../../etc/passwd",
    "/abs",
    "nul\0nul",
    "new\nline",
    "tab\t\x1b[31m",
    "=cmd|'/c calc'!A0",
    "<script>x</script>",
    "é",
    "e\u0301",
    "",
    " ",
    ".",
    "..",
    "a" * 5000,
    "data.h5",
    "\u202e",
    "\U0001f600",
    '"}],"x":1',
    "\\",
    "%s{}",
]

BAD_NAMES = ["../evil", "a/b", "", ".", "..", "tmp", "manifests", ".hidden", "a\0b", "x" * 65, "é"]


def test_ids_are_data(tmp_path: Path, backend: str) -> None:
    manifest = Manifest.from_rows("toy", [{"id": id_, "audio_sha256": "0" * 64} for id_ in HOSTILE])
    feature = new_store(tmp_path / "s", manifest).add(spec_of())
    arrays = values_of(manifest, feature.spec)
    publish_part(feature, part_rows(manifest, feature.spec, range(len(HOSTILE))), backend, {})

    again = open_store(tmp_path / "s")
    check_whole(again["frames"], again.manifest())
    for id_ in HOSTILE:
        assert feature[id_].tobytes() == arrays[id_].tobytes()

    names = set()
    for path in tmp_path.rglob("*"):
        names.update(path.relative_to(tmp_path).parts)
    assert not names & set(HOSTILE) - {"data.h5"}


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

    thesis = tmp_path / "other" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("precious")
    for path in (thesis.parent, thesis):
        with pytest.raises(WrongUse):
            open_store(path, create=True)
    assert thesis.read_text() == "precious"

    # Another process is making it.
    for inside in ("tmp", "manifests"):
        (tmp_path / "s" / inside).mkdir(parents=True, exist_ok=True)
        open_store(tmp_path / "s", create=True)

    # As an ext file system has it.
    (tmp_path / "disk" / "lost+found" / "#12").mkdir(parents=True)
    assert open_store(tmp_path / "disk", create=True).features() == []


def test_features_by_name(tmp_path: Path) -> None:
    store, _, manifest, _ = sample_store(tmp_path / "s", "zarr")

    command = "ser features CORPUS --features hubert "
    with pytest.raises(MissingRows, match=rf"no feature 'hubert' \(there is frames\).*{command}"):
        store.feature("hubert")
    hint = r"no feature 'frmes:layer=9' \(there is frames\); if you mean another, run "
    with pytest.raises(MissingRows, match=hint):
        store.feature("frmes:layer=9")

    variant = store.add(spec_of(variant="layer=9,norm=yes", feature="hubert"))
    assert store.feature("hubert:norm=yes,layer=9").fingerprint == variant.fingerprint
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
    listed = "is complete in several ways, choose one: hubert@.*, hubert@"
    with pytest.raises(WrongUse, match=listed) as caught:
        store.feature("hubert", "toy")
    assert first.fingerprint[:8] in str(caught.value)
    assert second.fingerprint[:8] in str(caught.value)


def test_corpora_and_manifests(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    with pytest.raises(WrongUse, match="holds no corpus yet"):
        store.manifest()
    with pytest.raises(WrongUse, match="'a' twice"):
        store.put_manifest(Manifest.from_rows("toy", [{"id": "a"}, {"id": "a"}]))

    old = manifest_of(3)
    new = manifest_of(4)
    first = store.put_manifest(old)
    assert store.put_manifest(manifest_of(3)) == first

    second = store.put_manifest(new)
    assert len(store.manifest()) == 4
    assert store.manifest().digest == second
    assert len(store.manifest("toy", first)) == 3

    lost = r"4 utterances there, and 1 of them \(such as 'u003'\).*--replace"
    with pytest.raises(WrongUse, match=lost):
        store.put_manifest(old)
    with pytest.raises(WrongUse, match="and 4 of them"):
        store.put_manifest(manifest_of(9, prefix="v"))
    assert store.put_manifest(old, replace=True) == first
    assert len(store.manifest()) == 3

    store.put_manifest(manifest_of(2, "zebra"))
    assert store.corpora() == ["toy", "zebra"]
    with pytest.raises(WrongUse, match="toy, zebra"):
        store.manifest()
    with pytest.raises(WrongUse, match="no corpus 'tou'"):
        store.manifest("tou")
    with pytest.raises(WrongUse, match="has no manifest"):
        store.manifest("toy", "../../x")


def test_a_manifest_keeps_its_bytes(tmp_path: Path) -> None:
    """Another version of pyarrow writes other bytes; the digest must not depend on who reads."""
    manifest = manifest_of(3)
    metadata = pq.read_schema(io.BytesIO(manifest.content)).metadata
    table = manifest.table.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=2)

    content = sink.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    read = Manifest.from_content(content, digest, "x")
    assert read.digest == digest != manifest.digest
    assert read.table.equals(manifest.table)


def test_the_first_part_by_name_counts(tmp_path: Path) -> None:
    _store, feature, manifest, arrays = sample_store(tmp_path / "s", "zarr", count=4)
    others = {id_: array + 1 for id_, array in arrays.items()}
    publish_part(feature, part_rows(manifest, feature.spec, [1, 2], others), "zarr", {})

    first = feature.parts()[0].record.ids
    expected = dict(arrays)
    # The part of two is the new one.
    if len(first) == 2:
        for id_ in first:
            expected[id_] = others[id_]
    check_whole(feature, manifest, expected)


def test_provenance_can_be_added(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    spec = spec_of(provenance={"model": "x/y", "versions": {"torch": "2"}})
    checked = {"utterances": 5, "difference": 1e-7}

    store.add(spec).annotate(checked=checked)

    again = store.add(spec)
    assert again.fingerprint == spec.fingerprint
    assert again.spec.provenance == {**spec.provenance, "checked": checked}
    assert again.spec.identity() == spec.identity()
    assert not list((store.path / "tmp").iterdir())


def test_any_other_setting_is_another_feature() -> None:
    settings = [
        {"dim": 9},
        {"dtype": "float32"},
        {"version": 2},
        {"config": {"layer": 9}},
        {"variant": "layer=9"},
        {"checkpoint": {"digest": "1"}},
        {"hop": 0.01},
    ]
    base = {"hop": 0.02, "checkpoint": {"digest": "0" * 64}}
    specs = [spec_of(**base)] + [spec_of(**{**base, **setting}) for setting in settings]
    assert len({spec.fingerprint for spec in specs}) == 8


def test_a_fingerprint_is_no_part_of_a_spec() -> None:
    """Whether it is computed yet makes no difference to who compares or copies a spec."""
    fresh = spec_of()
    used = spec_of()
    pickled = pickle.dumps(used)

    assert used.fingerprint
    assert used == fresh
    assert pickle.dumps(used) == pickled
    assert replace(used, dim=9).fingerprint == spec_of(dim=9).fingerprint


def test_the_versions_that_computed_each_part_are_listed_with_their_rows(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    manifest = manifest_of(6)
    store.put_manifest(manifest)
    feature = store.add(spec_of())
    for start, versions in ((0, {"librosa": "0.8"}), (1, {"librosa": "0.11"}), (3, None)):
        stop = start + (2 if start else 1)
        written_by = {"versions": versions} if versions else {}
        publish_part(
            feature, part_rows(manifest, feature.spec, range(start, stop)), "zarr", written_by
        )

    [first, second, third] = computed_with(feature)
    assert {entry["rows"] for entry in (first, second)} == {2}
    assert third == {"rows": 1, "versions": {"librosa": "0.8"}, "differs": ["librosa"]}
    recorded = [entry["versions"] for entry in (first, second)]
    assert None in recorded
    assert {"librosa": "0.11"} in recorded
