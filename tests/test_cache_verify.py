"""Verify names each bad part, repair drops just those, removing never takes a row that counts, old stores open."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ser.cache.maintain import JOURNAL, feature_info, list_features, remove_feature, remove_superseded, verify
from ser.cache.store import Manifest, Quarantine, open_store
from ser.cache.transfer import copy
from ser.errors import CorruptStore, StoreError, WrongUse
from ser.tests.store_samples import check_whole, fill, manifest_of, part_rows, sample_store, spec_of, values_of

BACKENDS = ["zarr", "hdf5"]
FIXTURES = Path(__file__).parent / "fixtures"


def damage(part: Path) -> None:
    """Flip a bit of a value."""
    file = next(path for path in part.rglob("*") if path.name == "data.h5" or path.parent.parent.name == "c")
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("backend", BACKENDS)
def test_repair_drops_just_the_bad_parts(tmp_path: Path, backend: str) -> None:
    store, feature, manifest, arrays = sample_store(tmp_path / "s", backend, count=20)
    names = [part.name for part in feature.parts()]
    assert len(names) == 5
    damage(feature.path / "parts" / names[1])
    (feature.path / "parts" / names[3] / "part.json").write_text("{}")
    found = {checked.path: checked for checked in verify(store)}
    bad = [path for path, checked in found.items() if checked.problem]
    assert sorted(Path(path).name for path in bad) == [names[1], names[3]]
    assert all(names[1] in found[p].problem or names[3] in found[p].problem for p in bad)  # type: ignore[operator]
    assert (feature.path / "parts" / names[1]).exists()
    repaired = [checked for checked in verify(store, repair=True) if checked.repaired]
    assert len(repaired) == 2
    feature = open_store(tmp_path / "s")["frames"]
    assert [part.name for part in feature.parts()] == [names[0], names[2], names[4]]
    assert len(feature.missing(manifest)) == 8
    assert sorted(fill(feature, manifest, arrays, backend)) == sorted([names[1], names[3]])
    check_whole(feature, manifest, arrays)
    assert not [checked for checked in verify(store) if checked.problem]
    assert not list((store.path / "tmp").iterdir())


def test_a_bad_spec_costs_no_rows(tmp_path: Path) -> None:
    store, feature, manifest, arrays = sample_store(tmp_path / "s", "zarr")
    (feature.path / "spec.json").write_text("{}")
    with pytest.raises(CorruptStore, match=r"spec\.json"):
        store.feature("frames")
    assert [c.path for c in verify(store, repair=True) if c.problem] == [f"frames/{feature.fingerprint}/spec.json"]
    listed = list_features(store)
    assert len(listed) == 1 and "spec.json" in str(listed[0].problem)
    other = store.add(spec_of(config={"another": "way"}))
    with pytest.raises(StoreError, match=r"spec\.json"):
        store.feature("frames")
    assert store.feature(f"frames@{other.fingerprint}").fingerprint == other.fingerprint
    check_whole(store.add(spec_of()), manifest, arrays)
    check_whole(store.feature(f"frames@{feature.fingerprint}"), manifest, arrays)


def test_verify_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    store, _feature, _, _ = sample_store(tmp_path / "s", "zarr", count=20)
    checked = list(verify(store))
    assert sum(one.bytes for one in checked if "/parts/" in one.path) == list_features(store)[0].bytes
    whole = [one.path for one in checked]
    assert [checked.remaining for checked in verify(store)] == list(range(len(whole)))[::-1]
    first = []
    for checked in verify(store):
        first.append(checked.path)
        if len(first) == 4:
            break
    assert first == whole[:4] and [checked.path for checked in verify(store)] == whole[4:]
    next(verify(store))
    os.utime(store.path / JOURNAL, (0, 0))
    assert [checked.path for checked in verify(store)] == whole  # what was good long ago may be bad now
    assert not (store.path / JOURNAL).exists()


def test_listing(tmp_path: Path) -> None:
    store, feature, _manifest, arrays = sample_store(
        tmp_path / "s", "zarr", provenance={"model": "facebook/x"}, checkpoint={"random": True}
    )
    grown = Manifest("toy", manifest_of(12).table)
    store.put_manifest(grown)
    store.add(spec_of(feature="begun"))
    begun, frames = list_features(store)
    assert (begun.feature, begun.corpus, begun.rows, begun.complete) == ("begun", None, 0, False)
    assert (frames.rows, frames.of, frames.complete, frames.model) == (10, 12, False, "facebook/x")
    assert frames.random_weights and frames.backends == ("zarr",) and frames.superseded == 0
    info = feature_info(store, feature)
    assert info["provenance"] == {"model": "facebook/x"} and info["corpora"]["toy"]["rows"] == 10
    assert info["corpora"]["toy"]["vectors"] == sum(len(array) for array in arrays.values())


def test_removing_a_feature(tmp_path: Path) -> None:
    store, feature, manifest, _arrays = sample_store(tmp_path / "s", "zarr")
    other = store.add(spec_of("utterance"))
    fill(other, manifest, values_of(manifest, other.spec), "hdf5")
    reader = open_store(tmp_path / "s")["frames"]
    reader.parts()
    removed = remove_feature(store, feature)
    assert removed.rows == 10 and removed.bytes > 1000 and not feature.path.parent.exists()
    with pytest.raises(StoreError, match="is missing"):
        reader.load(manifest)
    assert [f.spec.feature for f in store.features()] == ["utterances"]
    check_whole(other, manifest, values_of(manifest, other.spec))
    assert not list((store.path / "tmp").iterdir())


@pytest.mark.parametrize("backend", BACKENDS)
def test_removing_what_is_superseded(tmp_path: Path, backend: str) -> None:
    store, feature, manifest, arrays = sample_store(tmp_path / "s", backend, level="token", count=10)
    other = manifest_of(3, "other")
    fill(feature, other, values_of(other, feature.spec), backend)  # a corpus without a manifest is nobody's business
    rows = manifest.table.to_pylist()
    rows[2]["text"] = "changed"
    changed = Manifest.from_rows("toy", [row for row in rows if row["id"] != "u009"])
    store.put_manifest(changed)
    again = part_rows(changed, feature.spec, arrays, [0, 1, 2])  # 0 and 1 appear twice now
    gone = [Quarantine("u001", changed.inputs("text")[1], "", "was bad"), Quarantine("x", "y", "", "unknown")]
    again.quarantined = [gone[1]]
    feature.publish(again, backend, {})
    assert any("2 rows stand in two parts" in str(checked.note) for checked in verify(store))
    assert list_features(store)[-1].superseded >= 3
    removed = list(remove_superseded(store))
    assert sum(record.rows for record in removed) == 4  # u000 and u001 once, the old u002, u009
    current = {id_: arrays[id_] for id_ in changed.ids}
    check_whole(feature, changed, current)
    words = feature.load(changed).extras["word"]
    assert np.array_equal(words, np.concatenate([np.arange(len(current[id_])) - 1 for id_ in changed.ids]))
    assert sum(len(part.record.ids) for part in feature.parts() if part.record.corpus == "toy") == 9
    assert not [entry for part in feature.parts() for entry in part.record.quarantined]
    assert not feature.missing(other)
    assert list(remove_superseded(store)) == [] and not [c for c in verify(store) if c.note or c.problem]


@pytest.mark.parametrize(("source", "target"), [("zarr", "hdf5"), ("hdf5", "zarr")])
@pytest.mark.parametrize("level", ["frame", "token", "utterance"])
def test_one_backend_to_the_other_and_back(tmp_path: Path, source: str, target: str, level: str) -> None:
    store, feature, manifest, arrays = sample_store(tmp_path / "a", source, level=level)
    bad = part_rows(manifest, feature.spec, arrays, [])
    bad.quarantined = [Quarantine("u001", "old", "p", "r")]
    feature.publish(bad, source, {})
    there = open_store(tmp_path / "b", create=True)
    back = open_store(tmp_path / "c", create=True)
    copied = copy(feature, there, target)
    assert len(copied) == 4 and copy(feature, there, target) == []
    assert {part.record.backend for part in there.features()[0].parts()} == {target}
    copy(there.features()[0], back, source)
    check_whole(there[feature.spec.name], there.manifest(), arrays)
    ours = {p.relative_to(store.path): p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    theirs = {p.relative_to(back.path): p.read_bytes() for p in back.path.rglob("*") if p.is_file()}
    assert ours == theirs  # every file, metadata included
    with pytest.raises(WrongUse, match="is the store that"):
        copy(feature, open_store(tmp_path / "a"), target)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stores_of_version_1_open_for_ever(tmp_path: Path, backend: str) -> None:
    store = open_store(FIXTURES / f"store-v1-{backend}")
    manifest = store.manifest("toy")
    assert len(manifest) == 6 and manifest.column("label")[1] == "ang" and not manifest.synthetic
    truth = np.load(FIXTURES / "store-v1-values.npz")
    for feature in store.features():
        packed = feature.load(manifest)
        assert np.array_equal(packed.values, truth[feature.spec.feature])
        assert packed.ids == manifest.ids
        assert feature.fingerprint == feature.spec.fingerprint
    assert {feature.spec.feature for feature in store.features()} == {"frames", "tokens", "utterances"}
    assert store["tokens"].load(manifest).extras["word"].tolist() == truth["word"].tolist()
    assert store["frames"].spec.provenance["model"] == "toy/model"
    shutil.copytree(store.path, tmp_path / "s")
    assert not [checked for checked in verify(open_store(tmp_path / "s")) if checked.problem]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_read_only_store(tmp_path: Path, backend: str) -> None:
    """As another user, whom the permissions bind even where the tests run as root."""
    store, feature, manifest, arrays = sample_store(tmp_path / "s", backend)
    for path in [tmp_path / "s", *(tmp_path / "s").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_uid == os.getuid() and parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(0o755)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            store = open_store(tmp_path / "s")
            check_whole(store["frames"], store.manifest(), arrays)
            assert list_features(store)[0].complete
            assert not [checked for checked in verify(store) if checked.problem]
            for write in (
                lambda: store.put_manifest(manifest_of(3)),
                lambda: store.add(spec_of(dim=99)),
                lambda: store["frames"].publish(part_rows(manifest, feature.spec, arrays, [1]), backend, {}),
            ):
                with pytest.raises(StoreError, match="is not writable"):
                    write()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    for path in [tmp_path / "s", *(tmp_path / "s").rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
