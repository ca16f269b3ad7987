"""Verify names each bad part, repair drops just those, removing never takes a row that counts, old
stores open.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import crc32c
import numpy as np
import pytest

from ser.cache.feature import Feature
from ser.cache.part import Part, Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.store import open_store
from ser.cache.tools.exporting import copy_feature
from ser.cache.tools.listing import list_features
from ser.cache.tools.remove import remove_feature, remove_superseded
from ser.cache.tools.verify import check_part, verify
from ser.corpus.manifest import Manifest
from ser.disk.folders import remove_folder
from ser.errors import StoreError, WrongUse
from ser.tests.store_samples import (
    check_whole,
    fill,
    manifest_of,
    part_rows,
    replace_file,
    rewrite_record,
    sample_store,
    spec_of,
)


def damage(part: Path) -> None:
    """Flip a bit of a value."""
    file = next(
        path for path in part.rglob("*") if path.name == "data.h5" or path.parent.parent.name == "c"
    )
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


def forge_nan(part: Path) -> None:
    """A value that is not a number, under checksums that are right."""
    block = json.loads((part / "part.json").read_text())["arrays"]["values"]["blocks"][0]
    start, content = block["offset"], bytearray((part / block["file"]).read_bytes())
    content[start : start + 2] = np.array(np.nan, "<f2").tobytes()
    replace_file(part, block["file"], content)
    checksum = crc32c.crc32c(bytes(content[start : start + block["bytes"]]))
    rewrite_record(
        part / "part.json", lambda r: r["arrays"]["values"]["blocks"][0].update(crc32c=checksum)
    )


def test_repair_moves_just_the_bad_parts(tmp_path: Path, backend: str) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "s", backend, count=20)
    parts = [part.folder for part in feature.parts()]
    names = [part.name for part in parts]
    assert len(names) == 5
    (parts[0] / "Thumbs.db").write_bytes(b"thumbs")
    (parts[0] / "elsewhere").symlink_to(tmp_path)
    (parts[0].parent / "desktop.ini").write_text("[View]")
    (store.path / "notes" / "2024").mkdir(parents=True)
    check_whole(open_store(tmp_path / "s")["frames"], manifest)
    assert not [one for one in verify(store, repair=True) if one.note or one.problem]
    damage(parts[1])
    forge_nan(parts[2])
    (parts[3] / "part.json").write_text("{}")
    found = {checked.path: checked for checked in verify(store)}
    bad = [path for path, checked in found.items() if checked.problem]
    assert sorted(Path(path).name for path in bad) == names[1:4]
    assert all(any(name in str(found[path].problem) for name in names[1:4]) for path in bad)
    assert parts[1].exists()
    kept = {path.name for path in parts[3].iterdir()}
    (store.path / "bad").symlink_to(tmp_path)
    assert not any(checked.repaired for checked in verify(store, repair=True))
    (store.path / "bad").unlink()
    repaired = [str(checked.repaired) for checked in verify(store, repair=True) if checked.repaired]
    assert repaired == [
        f"moved to bad/frames/{feature.fingerprint}/{name}-1" for name in names[1:4]
    ]
    assert {
        path.name for path in (store.path / repaired[2].removeprefix("moved to ")).iterdir()
    } == kept
    feature = open_store(tmp_path / "s")["frames"]
    assert [part.folder.name for part in feature.parts()] == [names[0], names[4]]
    assert len(feature.missing(manifest)) == 12 and not list(
        (store.path / "notes" / "2024").iterdir()
    )
    assert sorted(fill(feature, manifest, backend)) == names[1:4]
    check_whole(feature, manifest)
    assert not [checked for checked in verify(store) if checked.problem]
    assert not list((store.path / "tmp").iterdir())


def test_verify_holds_a_part_against_its_spec_and_its_name(tmp_path: Path, backend: str) -> None:
    """As another program writes it: all checksums are right."""
    store, feature, manifest, _ = sample_store(tmp_path / "s", backend, level="utterance")
    first = feature.parts()[0].folder
    expected = {"0" * 16: "holds other utterances than its name says"}
    for spec, fault in (
        (spec_of("utterance", 9), "holds 9 × float16"),
        (spec_of(), "are not one row each"),
    ):
        rows = part_rows(Manifest(fault, manifest.table), spec, [0, 1])
        name = str(publish_part(Feature(store.path, feature.path, spec), rows, backend, {}))
        rewrite_record(
            first.parent / name / "part.json",
            lambda record: record.update(fingerprint=feature.fingerprint),
        )
        expected[name] = fault
    first.rename(first.with_name("0" * 16))
    found = {
        Path(one.path).name: str(one.problem) for one in verify(store, repair=True) if one.repaired
    }
    assert found.keys() == expected.keys() and all(
        fault in found[name] for name, fault in expected.items()
    )
    fill(feature, manifest, backend)
    check_whole(feature, manifest)


def test_verify_counts_every_byte_and_what_is_still_to_check(tmp_path: Path, backend: str) -> None:
    store, _, _, _ = sample_store(tmp_path / "s", backend, count=20)
    checked = list(verify(store))
    of_parts = sum(one.bytes for one in checked if "/parts/" in one.path)
    assert of_parts == list_features(store)[0].bytes
    assert [one.remaining for one in checked] == list(range(len(checked)))[::-1]


def test_removing_what_is_superseded(tmp_path: Path, backend: str) -> None:
    store, feature, manifest, arrays = sample_store(
        tmp_path / "s", backend, level="token", count=10
    )
    other = manifest_of(3, "other")
    fill(feature, other, backend)  # a corpus without a manifest is nobody's business
    rows = manifest.table.to_pylist()
    rows[2]["text"] = "changed"
    changed = Manifest.from_rows("toy", [row for row in rows if row["id"] != "u009"])
    store.put_manifest(changed, replace=True)
    again = part_rows(changed, feature.spec, [0, 1, 2])  # 0 and 1 appear twice now
    gone = [
        Quarantine("u001", changed.inputs("text")[1], "", "was bad"),
        Quarantine("x", "y", "", "unknown"),
    ]
    again.quarantined = [gone[1]]
    publish_part(feature, again, backend, {})
    assert any("2 rows stand in two parts" in str(checked.note) for checked in verify(store))
    assert list_features(store)[-1].superseded >= 3
    removed = list(remove_superseded(store))
    assert sum(rows for _, rows in removed) == 4  # u000 and u001 once, the old u002, u009
    words = check_whole(feature, changed).extras["word"]
    assert np.array_equal(
        words, np.concatenate([np.arange(len(arrays[id_])) - 1 for id_ in changed.ids])
    )
    assert sum(len(part.record.ids) for part in feature.parts() if part.record.corpus == "toy") == 9
    assert not [entry for part in feature.parts() for entry in part.record.quarantined]
    assert not feature.missing(other)
    assert list(remove_superseded(store)) == [] and not [
        c for c in verify(store) if c.note or c.problem
    ]


def test_what_others_publish_meanwhile_is_not_superseded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = "hdf5"
    store, feature, manifest, _ = sample_store(tmp_path / "s", backend)
    later = store.add(spec_of("utterance"))
    rows = manifest.table.to_pylist()
    rows[0]["audio_sha256"] = "0" * 64
    store.put_manifest(Manifest.from_rows("toy", rows))
    removing = remove_superseded(store)
    assert next(removing)[1] == 1
    store.put_manifest(
        newest := manifest_of(15)
    )  # as `ser features` does: the first audio is back, and more
    fill(later, newest, backend)
    fill(feature, newest, backend)
    list(removing)
    check_whole(later, newest)
    assert feature.complete(newest) and list(remove_superseded(store)) == []
    store.put_manifest(replace(newest, table=newest.table.slice(0, 14)), replace=True)
    # Of what is kept, before another process finds the rows of its manifest there.
    monkeypatch.setattr(
        "ser.cache.tools.remove.publish_part",
        lambda *part: (publish_part(*part), store.put_manifest(newest, replace=True)),
    )
    assert list(remove_superseded(store)) and later.complete(newest)
    check_whole(feature, newest)
    late = lambda part, *asked: (remove_folder(part, store.path), check_part(part, *asked))  # noqa: E731
    monkeypatch.setattr("ser.cache.tools.verify.check_part", late)
    assert not [one for one in verify(store, repair=True) if one.problem or one.repaired]
    fill(feature, newest, backend)
    opened = Part.open  # each is gone since it was listed
    monkeypatch.setattr(
        Part, "open", lambda part, name: (remove_folder(part, store.path), opened(part, name))[1]
    )
    assert Feature(store.path, feature.path).parts() == []


def test_what_another_process_removes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    fill(store.add(spec_of("utterance")), manifest, "zarr")
    opened = Feature.__init__  # its folder is removed since it was listed
    late = lambda self, *asked: (remove_folder(feature.path, store.path), opened(self, *asked))[1]  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(Feature, "__init__", late)
        assert not [one for one in verify(store, repair=True) if one.problem or one.repaired]
    is_file = Path.is_file  # each file is removed while the folder is measured
    monkeypatch.setattr(Path, "is_file", lambda path: is_file(path) and (path.unlink(), True)[1])
    monkeypatch.setattr(Path, "lstat", lambda path: (shutil.rmtree(path.parent), os.lstat(path))[1])
    [left] = store.folders()
    assert remove_feature(store, left) == 0 and store.folders() == []


@pytest.mark.parametrize(
    ("source", "target", "level"),
    [("zarr", "hdf5", "frame"), ("hdf5", "zarr", "token"), ("zarr", "hdf5", "utterance")],
)
def test_one_backend_to_the_other_and_back(
    tmp_path: Path, source: str, target: str, level: str
) -> None:
    store, feature, _, _ = sample_store(tmp_path / "a", source, level=level)
    publish_part(
        feature, PartRows("toy", quarantined=[Quarantine("u001", "old", "p", "r")]), source, {}
    )
    there = open_store(tmp_path / "b", create=True)
    back = open_store(tmp_path / "c", create=True)
    copied = copy_feature(feature, there, target)
    assert copied == 4 and copy_feature(feature, there, target) == 0
    assert {part.record.backend for part in there.features()[0].parts()} == {target}
    copy_feature(there.features()[0], back, source)
    check_whole(there[feature.spec.name], there.manifest())
    ours = {p.relative_to(store.path): p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    theirs = {p.relative_to(back.path): p.read_bytes() for p in back.path.rglob("*") if p.is_file()}
    assert ours.pop(log := Path("manifests/toy/log.jsonl")) and theirs.pop(
        log
    )  # when it was put, and by what
    assert ours == theirs  # every other file, metadata included
    with pytest.raises(WrongUse, match="is the store that"):
        copy_feature(feature, open_store(tmp_path / "a"), target)


def test_a_read_only_store(tmp_path: Path) -> None:
    """As another user, whom the permissions bind even where the tests run as root."""
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    for path in [tmp_path / "s", *(tmp_path / "s").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(0o755)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        store = open_store(tmp_path / "s")
        check_whole(store["frames"], store.manifest())
        assert list_features(store)[0].complete
        assert not [checked for checked in verify(store) if checked.problem]
        for write in (
            lambda: store.put_manifest(manifest_of(12)),
            lambda: store.add(spec_of(dim=99)),
            lambda: publish_part(
                store["frames"], part_rows(manifest, feature.spec, [1]), "zarr", {}
            ),
        ):
            with pytest.raises(StoreError, match="is not writable"):
                write()
    finally:
        os.seteuid(user)
