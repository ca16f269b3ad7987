"""Verify names each bad part, repair drops just those, removing never takes a row that counts, old
stores open.
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest

from ser.cache.feature import Feature
from ser.cache.part import Part, Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.store import Store, open_store
from ser.cache.tools.exporting import copy_feature
from ser.cache.tools.listing import list_features
from ser.cache.tools.remove import remove_feature, remove_superseded
from ser.cache.tools.verify import Checked, check_part, verify
from ser.corpus.manifest import Manifest
from ser.disk.folders import remove_folder
from ser.errors import CorruptStore, StoreError, WrongUse
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
    for path in part.rglob("*"):
        if path.name == "data.h5" or path.parent.parent.name == "c":
            content = bytearray(path.read_bytes())
            content[-9 if path.name == "data.h5" else 0] ^= 4
            path.write_bytes(content)
            return


def forge_nan(part: Path) -> None:
    """A value that is not a number, under checksums that are right."""
    record = json.loads((part / "part.json").read_text())
    block = record["arrays"]["values"]["blocks"][0]
    start = block["offset"]
    content = bytearray((part / block["file"]).read_bytes())
    content[start : start + 2] = np.array(np.nan, "<f2").tobytes()
    replace_file(part, block["file"], content)

    checksum = crc32c.crc32c(bytes(content[start : start + block["bytes"]]))
    set_checksum(part, checksum)


def set_checksum(part: Path, checksum: int) -> None:
    """Give the first block of the values another CRC-32C in part.json."""

    def change(record: dict[str, Any]) -> None:
        record["arrays"]["values"]["blocks"][0]["crc32c"] = checksum

    rewrite_record(part / "part.json", change)


def faulty(checks: Iterable[Checked]) -> list[Checked]:
    """Those that have a problem."""
    return [checked for checked in checks if checked.problem]


def put_beside(store: Store, part: Path, folder: Path) -> None:
    """What other programs leave in a store: it is in nobody's way."""
    (part / "Thumbs.db").write_bytes(b"thumbs")
    (part / "elsewhere").symlink_to(folder)
    (part.parent / "desktop.ini").write_text("[View]")
    (store.path / "notes" / "2024").mkdir(parents=True)


def test_repair_moves_just_the_bad_parts(tmp_path: Path, backend: str) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "s", backend, count=20)
    parts = [part.folder for part in feature.parts()]
    names = [part.name for part in parts]
    assert len(names) == 5

    put_beside(store, parts[0], tmp_path)
    check_whole(open_store(tmp_path / "s")["frames"], manifest)
    for checked in verify(store, repair=True):
        assert not checked.note
        assert not checked.problem

    damage(parts[1])
    forge_nan(parts[2])
    (parts[3] / "part.json").write_text("{}")
    bad = faulty(verify(store))
    assert sorted(Path(checked.path).name for checked in bad) == names[1:4]
    for checked in bad:
        assert any(name in str(checked.problem) for name in names[1:4])
    assert parts[1].exists()

    # Nothing is moved through a link.
    kept = {path.name for path in parts[3].iterdir()}
    (store.path / "bad").symlink_to(tmp_path)
    assert not any(checked.repaired for checked in verify(store, repair=True))

    (store.path / "bad").unlink()
    repaired = [str(checked.repaired) for checked in verify(store, repair=True) if checked.repaired]
    assert repaired == [
        f"moved to bad/frames/{feature.fingerprint}/{name}-1" for name in names[1:4]
    ]
    moved = store.path / repaired[2].removeprefix("moved to ")
    assert {path.name for path in moved.iterdir()} == kept

    feature = open_store(tmp_path / "s")["frames"]
    assert [part.folder.name for part in feature.parts()] == [names[0], names[4]]
    assert len(feature.missing(manifest)) == 12
    assert not list((store.path / "notes" / "2024").iterdir())

    assert sorted(fill(feature, manifest, backend)) == names[1:4]
    check_whole(feature, manifest)
    assert not faulty(verify(store))
    assert not list((store.path / "tmp").iterdir())


def test_a_checksum_larger_than_32_bits_is_refused(tmp_path: Path, backend: str) -> None:
    _, feature, manifest, _ = sample_store(tmp_path / "s", backend)
    set_checksum(feature.parts()[0].folder, 1 << 32)

    with pytest.raises(CorruptStore, match=r"part\.json: not a record of a store .*crc32c"):
        open_store(tmp_path / "s")["frames"].load(manifest)


def test_verify_holds_a_part_against_its_spec_and_its_name(tmp_path: Path, backend: str) -> None:
    """As another program writes it: all checksums are right."""
    store, feature, manifest, _ = sample_store(tmp_path / "s", backend, level="utterance")
    first = feature.parts()[0].folder
    faults = {"0" * 16: "holds other utterances than its name says"}

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
        faults[name] = fault
    first.rename(first.with_name("0" * 16))

    problems = {}
    for checked in verify(store, repair=True):
        if checked.repaired:
            problems[Path(checked.path).name] = str(checked.problem)
    assert problems.keys() == faults.keys()
    for name, fault in faults.items():
        assert fault in problems[name]

    fill(feature, manifest, backend)
    check_whole(feature, manifest)


def test_verify_counts_every_byte_and_what_is_still_to_check(tmp_path: Path, backend: str) -> None:
    store, _, _, _ = sample_store(tmp_path / "s", backend, count=20)

    checks = list(verify(store))

    of_parts = sum(checked.bytes for checked in checks if "/parts/" in checked.path)
    assert of_parts == list_features(store)[0].bytes
    assert [checked.remaining for checked in checks] == list(range(len(checks)))[::-1]


def test_removing_what_is_superseded(tmp_path: Path, backend: str) -> None:
    store, feature, manifest, arrays = sample_store(
        tmp_path / "s", backend, level="token", count=10
    )
    # A corpus without a manifest is nobody's business.
    other = manifest_of(3, "other")
    fill(feature, other, backend)

    rows = manifest.table.to_pylist()
    rows[2]["text"] = "changed"
    changed = Manifest.from_rows("toy", [row for row in rows if row["id"] != "u009"])
    store.put_manifest(changed, replace=True)

    # Rows 0 and 1 stand there twice now.
    again = part_rows(changed, feature.spec, [0, 1, 2])
    again.quarantined = [Quarantine("x", "y", "", "unknown")]
    publish_part(feature, again, backend, {})
    assert any("2 rows stand in two parts" in str(checked.note) for checked in verify(store))
    assert list_features(store)[-1].superseded >= 3

    # u000 and u001 once, the old u002, u009.
    removed = list(remove_superseded(store))
    assert sum(count for _, count in removed) == 4

    words = check_whole(feature, changed).extras["word"]
    places = [np.arange(len(arrays[id_])) - 1 for id_ in changed.ids]
    assert np.array_equal(words, np.concatenate(places))
    left = [part.record for part in feature.parts()]
    assert sum(len(record.ids) for record in left if record.corpus == "toy") == 9
    assert not any(record.quarantined for record in left)
    assert not feature.missing(other)

    assert list(remove_superseded(store)) == []
    for checked in verify(store):
        assert not checked.note
        assert not checked.problem


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

    # As `ser features` does: the first audio is back, and more.
    newest = manifest_of(15)
    store.put_manifest(newest)
    fill(later, newest, backend)
    fill(feature, newest, backend)
    list(removing)
    check_whole(later, newest)
    assert feature.complete(newest)
    assert list(remove_superseded(store)) == []

    def publish_before_another_finds_its_rows(*args: Any) -> None:
        publish_part(*args)
        store.put_manifest(newest, replace=True)

    # Of what is kept, before another process finds the rows of its manifest there.
    store.put_manifest(replace(newest, table=newest.table.slice(0, 14)), replace=True)
    monkeypatch.setattr(
        "ser.cache.tools.remove.publish_part", publish_before_another_finds_its_rows
    )
    assert list(remove_superseded(store))
    assert later.complete(newest)
    check_whole(feature, newest)


def test_a_part_that_is_removed_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is gone since it was listed, when it is checked, or opened."""
    store, feature, manifest, _ = sample_store(tmp_path / "s", "hdf5")

    def check_late(part: Path, *args: Any) -> Any:
        remove_folder(part, store.path)
        return check_part(part, *args)

    monkeypatch.setattr("ser.cache.tools.verify.check_part", check_late)
    for checked in verify(store, repair=True):
        assert not checked.problem
        assert not checked.repaired

    fill(feature, manifest, "hdf5")
    open_part = Part.open

    def open_late(part: Path, name: str) -> Part:
        remove_folder(part, store.path)
        return open_part(part, name)

    monkeypatch.setattr(Part, "open", open_late)
    assert Feature(store.path, feature.path).parts() == []


def test_what_another_process_removes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    fill(store.add(spec_of("utterance")), manifest, "zarr")
    open_feature = Feature.__init__

    def open_late(self: Feature, *args: Any) -> None:
        remove_folder(feature.path, store.path)
        open_feature(self, *args)

    # Its folder is removed since it was listed.
    with monkeypatch.context() as patched:
        patched.setattr(Feature, "__init__", open_late)
        for checked in verify(store, repair=True):
            assert not checked.problem
            assert not checked.repaired


def test_a_feature_whose_files_go_while_it_is_removed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is removed by another process while the folder is measured."""
    store, _, _, _ = sample_store(tmp_path / "s", "zarr")
    is_file = Path.is_file

    def is_file_and_gone(path: Path) -> bool:
        if not is_file(path):
            return False
        path.unlink()
        return True

    def lstat_late(path: Path) -> os.stat_result:
        shutil.rmtree(path.parent)
        return os.lstat(path)

    monkeypatch.setattr(Path, "is_file", is_file_and_gone)
    monkeypatch.setattr(Path, "lstat", lstat_late)
    [folder] = store.folders()
    assert remove_feature(store, folder) == 0
    assert store.folders() == []


def contents_of(store: Store) -> dict[Path, bytes]:
    """Every file of a store, metadata included, but the log: it says when and by what."""
    contents = {}
    for path in store.path.rglob("*"):
        if path.is_file():
            contents[path.relative_to(store.path)] = path.read_bytes()
    assert contents.pop(Path("manifests/toy/log.jsonl"))
    return contents


@pytest.mark.parametrize(
    ("source", "target", "level"),
    [("zarr", "hdf5", "frame"), ("hdf5", "zarr", "token"), ("zarr", "hdf5", "utterance")],
)
def test_one_backend_to_the_other_and_back(
    tmp_path: Path, source: str, target: str, level: str
) -> None:
    store, feature, _, _ = sample_store(tmp_path / "a", source, level=level)
    quarantined = [Quarantine("u001", "old", "p", "r")]
    publish_part(feature, PartRows("toy", quarantined=quarantined), source, {})
    there = open_store(tmp_path / "b", create=True)
    back = open_store(tmp_path / "c", create=True)

    assert copy_feature(feature, there, target) == 4
    assert copy_feature(feature, there, target) == 0
    [copied] = there.features()
    assert {part.record.backend for part in copied.parts()} == {target}
    check_whole(there[feature.spec.name], there.manifest())

    copy_feature(copied, back, source)
    assert contents_of(store) == contents_of(back)

    with pytest.raises(WrongUse, match="is the store that"):
        copy_feature(feature, open_store(tmp_path / "a"), target)


def make_read_only(store: Path) -> None:
    """A store that nobody may write to, and that every user may reach."""
    for path in [store, *store.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in store.parents:
        status = parent.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o001:
            parent.chmod(0o755)


def test_a_read_only_store(tmp_path: Path) -> None:
    """As another user, whom the permissions bind even where the tests run as root."""
    _, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    make_read_only(tmp_path / "s")
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)

        store = open_store(tmp_path / "s")
        check_whole(store["frames"], store.manifest())
        assert list_features(store)[0].complete
        assert not faulty(verify(store))

        with pytest.raises(StoreError, match="is not writable"):
            store.put_manifest(manifest_of(12))
        with pytest.raises(StoreError, match="is not writable"):
            store.add(spec_of(dim=99))
        with pytest.raises(StoreError, match="is not writable"):
            publish_part(store["frames"], part_rows(manifest, feature.spec, [1]), "zarr", {})
    finally:
        os.seteuid(user)
