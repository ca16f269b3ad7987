"""Stores that were harmed, and stores that lie on purpose, with every checksum right: somebody says
so.
"""

import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ser.cache.feature import Feature
from ser.cache.store import open_store
from ser.cache.tools.maintain import check_part, verify
from ser.corpus.manifest import Manifest
from ser.errors import CorruptStore, SerError, StoreError, WrongUse
from ser.tests.store_samples import (
    check_whole,
    manifest_of,
    replace_file,
    rewrite_record,
    sample_store,
)

Change = Callable[[dict[str, Any]], Any]


def sample(path: Path, backend: str) -> tuple[Feature, Manifest, Path]:
    _, feature, manifest, _ = sample_store(path, backend, count=4)
    return feature, manifest, next((feature.path / "parts").iterdir())


def values(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["arrays"]["values"]
    return found


def bomb(record: dict[str, Any]) -> None:
    """One real block named 20,000 times: kilobytes that claim to be gigabytes."""
    array = values(record)
    array["blocks"] = array["blocks"][:1] * 20_000
    rows = array["blocks"][0]["bytes"] // 16 * 20_000
    array["shape"][0] = rows


LIES: dict[str, Change] = {
    "rows that are not there": lambda r: values(r)["shape"].__setitem__(0, 1 << 40),
    "a chunk bomb": bomb,
    "a negative shape": lambda r: values(r)["shape"].__setitem__(0, -1),
    "a shape that is no number": lambda r: values(r)["shape"].__setitem__(0, "9"),
    "a true shape": lambda r: values(r)["shape"].__setitem__(1, True),
    "another dimension": lambda r: values(r)["shape"].__setitem__(1, 1),
    "another dtype": lambda r: values(r).__setitem__("dtype", "int16"),
    "an object dtype": lambda r: values(r).__setitem__("dtype", "O"),
    "a block outside its file": lambda r: values(r)["blocks"][0].__setitem__("offset", 1 << 30),
    "a negative offset": lambda r: values(r)["blocks"][0].__setitem__("offset", -2),
    "a block in another file": lambda r: values(r)["blocks"][0].__setitem__(
        "file", "../../../spec.json"
    ),
    "an absolute file": lambda r: r["files"].__setitem__(
        "/etc/passwd", {"bytes": 1, "sha256": "0"}
    ),
    "a file with ..": lambda r: r["files"].__setitem__(
        "data.zarr/../x", {"bytes": 1, "sha256": "0"}
    ),
    "a file with NUL": lambda r: r["files"].__setitem__(
        "data.zarr/v\0/c/0", {"bytes": 1, "sha256": "0"}
    ),
    "ids of another length": lambda r: r["ids"].append("more"),
    "an id twice": lambda r: r["ids"].__setitem__(0, r["ids"][1]),
    "an id that is no text": lambda r: r["ids"].__setitem__(0, 7),
    "another backend": lambda r: r.__setitem__("backend", "pickle"),
    "no values": lambda r: r["arrays"].pop("values"),
    "no arrays": lambda r: r.__setitem__("arrays", None),
    "another fingerprint": lambda r: r.__setitem__("fingerprint", "0" * 16),
    "a quarantine of another shape": lambda r: r["quarantined"].append({"id": "x", "code": "evil"}),
    "no version": lambda r: r.pop("format_version"),
    "no key at all": lambda r: r.clear(),
}


def test_a_part_that_lies(tmp_path: Path, backend: str) -> None:
    feature, manifest, folder = sample(tmp_path / "s", backend)
    honest = (folder / "part.json").read_bytes()
    for lie, change in LIES.items():
        rewrite_record(folder / "part.json", change)
        with pytest.raises(SerError) as caught:
            open_store(tmp_path / "s")["frames"].load(manifest)
        assert str(folder) in str(caught.value) or str(feature.path) in str(caught.value), lie
        assert "\n" not in str(caught.value), lie
        (folder / "part.json").write_bytes(honest)


def test_a_spec_that_lies(tmp_path: Path) -> None:
    feature, _, _ = sample(tmp_path / "s", "zarr")
    honest = (feature.path / "spec.json").read_bytes()
    for key, value in (
        ("dtype", "O"),
        ("level", "../x"),
        ("modality", 7),
        ("dim", 0),
        ("dim", "8"),
    ):
        rewrite_record(
            feature.path / "spec.json",
            lambda record, key=key, value=value: record.__setitem__(key, value),
        )
        with pytest.raises(
            CorruptStore, match=rf"spec\.json: not a record of a store \(.*`\$\.{key}`"
        ):
            open_store(tmp_path / "s").features()
        (feature.path / "spec.json").write_bytes(honest)


def test_what_a_newer_ser_wrote_is_refused_and_left(tmp_path: Path) -> None:
    feature, manifest, folder = sample(tmp_path / "s", "zarr")
    for path in (feature.path / "spec.json", folder / "part.json"):
        content = path.read_bytes()
        rewrite_record(path, lambda record: record.update(format_version=2))
        with pytest.raises(StoreError, match=r"format version 2.*update ser"):
            open_store(tmp_path / "s")["frames"].load(manifest)
        problems = [
            checked
            for checked in verify(open_store(tmp_path / "s"), repair=True)
            if checked.problem
        ]
        assert problems and all(
            "update ser" in str(one.problem) and not one.repaired for one in problems
        )
        path.write_bytes(content)
    open_store(tmp_path / "s")["frames"].load(manifest)


def test_a_newer_manifest_is_not_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feature, manifest, _ = sample(tmp_path / "s", "zarr")
    store = open_store(tmp_path / "s")
    with monkeypatch.context() as newer:
        newer.setattr("ser.corpus.manifest.FORMAT_VERSION", 3)
        store.put_manifest(grown := manifest_of(5))
    with pytest.raises(StoreError, match=r"format version 3.*update ser"):
        store.put_manifest(manifest)
    assert grown.digest in (tmp_path / "s" / "manifests" / "toy" / "latest").read_text()
    store.put_manifest(manifest, replace=True)
    assert feature.complete(store.manifest())


@pytest.mark.parametrize("name", ["latest", "*.parquet"])
def test_a_damaged_manifest_gives_way_to_itself_alone(tmp_path: Path, name: str) -> None:
    _feature, manifest, _ = sample(tmp_path / "s", "zarr")
    store, fewer = open_store(tmp_path / "s"), Manifest("toy", manifest.table.slice(1))
    [file] = (tmp_path / "s" / "manifests" / "toy").glob(name)
    file.write_bytes(file.read_bytes()[1:])
    with pytest.raises(
        WrongUse, match=r"this is another manifest, which takes its place with --replace"
    ):
        store.put_manifest(fewer)
    store.put_manifest(manifest)
    assert store.manifest().same(manifest)


def test_json_that_is_none(tmp_path: Path) -> None:
    _feature, manifest, folder = sample(tmp_path / "s", "zarr")
    for body in (
        b"[" * 100_000 + b"}",
        b'{"a":NaN}',
        b"{]}",
        b'{"format_version":1e999}',
        b"\xff}",
    ):
        sealed = body[:-1] + b',"sha256":"%s"}\n' % hashlib.sha256(body).hexdigest().encode()
        (folder / "part.json").write_bytes(sealed)
        with pytest.raises(CorruptStore, match=str(folder)):
            open_store(tmp_path / "s")["frames"].load(manifest)


def test_a_manifest_that_lies(tmp_path: Path) -> None:
    sample(tmp_path / "s", "zarr")
    folder = tmp_path / "s" / "manifests" / "toy"
    lies = [("other", None), ("toy", [["ang", None]]), ("toy", [None])]  # corpus and votes
    made = (Manifest.from_rows(name, [{"id": "a", "votes": votes}]).content for name, votes in lies)
    for content in (b"PAR1 and then nothing", *made):
        digest = hashlib.sha256(content).hexdigest()
        (folder / f"{digest}.parquet").write_bytes(content)
        (folder / "latest").write_text(f"{digest}\n")
        with pytest.raises(
            CorruptStore, match=r"not a manifest of a store|is the manifest of corpus 'other'"
        ):
            open_store(tmp_path / "s").manifest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"name":"crc32c"}', b'{"name":"crc32c"},{"name":"evil.codec"}'),
        (b'"fill_value":"NaN"', b'"fill_value":0.0'),
        (b'"shape":[', b'"shape":[1'),
        (b'"float16"', b'"int16"'),
    ],
)
def test_zarr_metadata_that_shows_plain_readers_something_else(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    feature, _, folder = sample(tmp_path / "s", "zarr")
    name = "data.zarr/values/zarr.json"
    content = (folder / name).read_bytes()
    assert old in content
    replace_file(folder, name, content.replace(old, new))
    with pytest.raises(CorruptStore, match=r"another array, codec or fill"):
        check_part(folder, feature.fingerprint)


def virtual(file: h5py.File, other: str) -> None:
    layout = h5py.VirtualLayout((9, 8), "f2")
    layout[:] = h5py.VirtualSource(other, "values", (9, 8), "f2")
    file.create_virtual_dataset("values", layout)


put = h5py.File.__setitem__
EVIL_HDF5: dict[str, tuple[Callable[[h5py.File, str], Any], str]] = {
    "external link": (
        lambda file, other: put(file, "values", h5py.ExternalLink(other, "/x")),
        "link to elsewhere",
    ),
    "soft link": (
        lambda file, _: put(file, "values", h5py.SoftLink("/offsets")),
        "link to elsewhere",
    ),
    "external storage": (
        lambda file, raw: file.create_dataset("values", (9, 8), "f2", external=raw),
        "values elsewhere",
    ),
    "virtual dataset": (virtual, "values elsewhere"),
    "foreign filter": (
        lambda file, _: file.create_dataset("values", (9, 8), "f2", compression="lzf"),
        "filter other",
    ),
    "group": (lambda file, _: file.create_group("values"), "a group"),
}


def evil_hdf5(kind: str, path: Path) -> None:
    """An HDF5 file whose `values` are not in it."""
    with h5py.File(other := path.with_name("other.h5"), "w") as file:
        file["values"] = np.zeros((9, 8), "f2")
    with h5py.File(path, "w") as file:
        file["offsets"] = np.arange(10)
        EVIL_HDF5[kind][0](file, str(other))


@pytest.mark.parametrize("kind", EVIL_HDF5)
def test_hdf5_whose_values_are_elsewhere(tmp_path: Path, kind: str) -> None:
    feature, _, folder = sample(tmp_path / "s", "hdf5")
    evil_hdf5(kind, tmp_path / "evil.h5")
    content = (folder / "data.h5").read_bytes()
    evil = (tmp_path / "evil.h5").read_bytes()
    # The blocks stay true: the evil file goes first, the real bytes behind it, so that ours still
    # reads them.
    replace_file(folder, "data.h5", evil + content)

    def shift(record: dict[str, Any]) -> None:
        for array in record["arrays"].values():
            for block in array["blocks"]:
                block["offset"] += len(evil)

    rewrite_record(folder / "part.json", shift)
    with pytest.raises(CorruptStore, match=rf"data\.h5: 'values' .*{EVIL_HDF5[kind][1]}"):
        check_part(folder, feature.fingerprint)


# Whatever happens to a file: at open, at reading, or at verify
# --------------------------------------------------------

DATA = re.compile(r"data\.h5|data\.zarr")  # files that are read only when their rows are


@pytest.fixture
def stored(backend: str, tmp_path: Path) -> tuple[Path, Manifest]:
    store, _, manifest, _ = sample_store(tmp_path / "s", backend, count=4, dim=5, level="token")
    return store.path, manifest


def files_of(path: Path) -> list[Path]:
    found = (file for file in path.glob("**/*") if file.is_file())
    return sorted(
        file for file in found if file.name != "log.jsonl"
    )  # a history: what is read does not rest on it


def complaints(path: Path, manifest: Manifest) -> Iterator[str]:
    """What is said when the store is opened and read, and when it is verified. Wrong values fail
    the test.
    """
    try:
        store = open_store(path)
        feature = store.feature("tokens", "toy")
        store.manifest()
        assert feature["u003"].tobytes() == check_whole(feature, manifest)[3].tobytes()
    except SerError as error:
        yield str(error)
    if (path / "manifests").exists():
        yield from (checked.problem for checked in verify(open_store(path)) if checked.problem)


FLIPS = [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 120))]


@pytest.mark.parametrize("harm", ["delete", "empty", "truncate", "grow", "link", "pipe", *FLIPS])
def test_each_file_in_turn(stored: tuple[Path, Manifest], harm: str | int, tmp_path: Path) -> None:
    """A number is that of the seed by which one bit of each file is flipped."""
    path, manifest = stored
    dice = random.Random(harm)
    files = files_of(path)
    assert len(files) >= 5
    for file in files:
        content = file.read_bytes()
        others = {"empty": b"", "truncate": content[: len(content) // 2], "grow": content + b"\0"}
        file.unlink()
        if harm == "link":
            (tmp_path / "elsewhere").write_bytes(content)
            file.symlink_to(tmp_path / "elsewhere")
        elif harm == "pipe":
            os.mkfifo(file)
        elif isinstance(harm, int):
            altered = bytearray(content)
            altered[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            file.write_bytes(altered)
        elif harm in others:
            file.write_bytes(others[harm])
        said = list(complaints(path, manifest))
        # A named error: the file itself, or the part that it belongs to.
        names = [
            str(file),
            *(str(parent) for parent in file.parents if parent.parent.name == "parts"),
        ]
        assert said, f"nobody noticed {file}"
        assert all("\n" not in text for text in said)
        assert any(name in text for name in names for text in said), (file, said)
        if isinstance(harm, str) or not DATA.search(str(file)):  # at open
            with pytest.raises(CorruptStore):
                store = open_store(path)
                store.manifest()
                assert [feature.parts() for feature in store.features()]
        file.unlink(missing_ok=True)
        file.write_bytes(content)
    assert not list(complaints(path, manifest))


def test_each_folder_in_turn(stored: tuple[Path, Manifest]) -> None:
    path, manifest = stored
    folders = sorted(
        folder for folder in path.glob("**/*") if folder.is_dir() and folder.name != "tmp"
    )
    # Without its whole folder a part or feature is not there, which is absence and not corruption:
    # rows are missing.
    for folder in folders:
        aside = path.parent / "aside"
        folder.rename(aside)
        assert list(complaints(path, manifest)), f"nobody noticed {folder}"
        if "data.zarr" in folder.parts:
            folder.symlink_to(aside)
            assert any("link or a special file" in said for said in complaints(path, manifest)), (
                folder
            )
            folder.unlink()
        aside.rename(folder)
    assert not list(complaints(path, manifest))


def test_a_reader_in_flight_gets_an_error(stored: tuple[Path, Manifest]) -> None:
    """Files that go or change after a feature has been opened."""
    path, manifest = stored
    for file in (one for one in files_of(path) if one.name == "data.h5" or "values/c/" in str(one)):
        for content in (None, b"", bytes(file.stat().st_size)):
            feature = open_store(path)["tokens"]
            feature.parts()
            kept = file.read_bytes()
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            with pytest.raises(CorruptStore, match=str(file)):
                feature.load(manifest)
            file.write_bytes(kept)
    check_whole(open_store(path)["tokens"], manifest)
