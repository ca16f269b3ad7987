"""Stores that were harmed, and stores that lie with every checksum right: somebody says so."""

import hashlib
import os
import random
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crc32c
import h5py
import numpy as np
import pytest
import zarr

from ser.cache.feature import Feature
from ser.cache.manifest_log import LOG
from ser.cache.store import open_store
from ser.cache.tools.verify import check_part, verify
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
    array: dict[str, Any] = record["arrays"]["values"]
    return array


def set_shape(axis: int, length: Any) -> Change:
    """Record another length of one of the values' axes."""
    return lambda record: values(record)["shape"].__setitem__(axis, length)


def set_dtype(dtype: str) -> Change:
    return lambda record: values(record).update(dtype=dtype)


def set_block(**fields: Any) -> Change:
    """Record something else of the values' first block."""
    return lambda record: values(record)["blocks"][0].update(fields)


def add_file(name: str) -> Change:
    return lambda record: record["files"].update({name: {"bytes": 1, "sha256": "0"}})


def bomb(record: dict[str, Any]) -> None:
    """One real block named 20,000 times: kilobytes that claim to be gigabytes."""
    array = values(record)
    array["blocks"] = array["blocks"][:1] * 20_000
    rows = array["blocks"][0]["bytes"] // 16 * 20_000
    array["shape"][0] = rows


LIES: dict[str, Change] = {
    "rows that are not there": set_shape(0, 1 << 40),
    "a chunk bomb": bomb,
    "a negative shape": set_shape(0, -1),
    "a shape that is no number": set_shape(0, "9"),
    "a true shape": set_shape(1, True),
    "another dimension": set_shape(1, 1),
    "another dtype": set_dtype("int16"),
    "an object dtype": set_dtype("O"),
    "a block outside its file": set_block(offset=1 << 30),
    "a negative offset": set_block(offset=-2),
    "a block in another file": set_block(file="../../../spec.json"),
    "an absolute file": add_file("/etc/passwd"),
    "a file with dots": add_file("data.zarr/../x"),
    "a file with NUL": add_file("data.zarr/v\0/c/0"),
    "ids of another length": lambda record: record["ids"].append("more"),
    "an id twice": lambda record: record["ids"].__setitem__(0, record["ids"][1]),
    "an id that is no text": lambda record: record["ids"].__setitem__(0, 7),
    "another backend": lambda record: record.update(backend="pickle"),
    "no values": lambda record: record["arrays"].pop("values"),
    "no arrays": lambda record: record.update(arrays=None),
    "another fingerprint": lambda record: record.update(fingerprint="0" * 16),
    "a quarantine of another shape": lambda record: record["quarantined"].append(
        {"id": "x", "code": "evil"}
    ),
    "no version": lambda record: record.pop("format_version"),
    "no key at all": lambda record: record.clear(),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_part_that_lies(tmp_path: Path, backend: str, lie: str) -> None:
    feature, manifest, folder = sample(tmp_path / "s", backend)
    rewrite_record(folder / "part.json", LIES[lie])

    with pytest.raises(SerError) as caught:
        open_store(tmp_path / "s")["frames"].load(manifest)

    message = str(caught.value)
    assert str(folder) in message or str(feature.path) in message
    assert "\n" not in message


WRONG_SPECS = {
    "an object dtype": ("dtype", "O"),
    "a level that is a path": ("level", "../x"),
    "a modality that is a number": ("modality", 7),
    "no dimension": ("dim", 0),
    "a dimension that is a text": ("dim", "8"),
}


@pytest.mark.parametrize("lie", WRONG_SPECS)
def test_a_spec_that_lies(tmp_path: Path, lie: str) -> None:
    key, value = WRONG_SPECS[lie]
    feature, _, _ = sample(tmp_path / "s", "zarr")
    rewrite_record(feature.path / "spec.json", lambda record: record.update({key: value}))

    fault = rf"spec\.json: not a record of a store \(.*`\$\.{key}`"
    with pytest.raises(CorruptStore, match=fault):
        open_store(tmp_path / "s").features()


def test_what_a_newer_ser_wrote_is_refused_and_left(tmp_path: Path) -> None:
    feature, manifest, folder = sample(tmp_path / "s", "zarr")
    for path in (feature.path / "spec.json", folder / "part.json"):
        content = path.read_bytes()
        rewrite_record(path, lambda record: record.update(format_version=2))
        with pytest.raises(StoreError, match=r"format version 2.*update ser"):
            open_store(tmp_path / "s")["frames"].load(manifest)

        checks = verify(open_store(tmp_path / "s"), repair=True)
        problems = [checked for checked in checks if checked.problem]
        assert problems
        for checked in problems:
            assert "update ser" in str(checked.problem)
            assert not checked.repaired
        path.write_bytes(content)

    open_store(tmp_path / "s")["frames"].load(manifest)


def test_a_newer_manifest_is_not_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feature, manifest, _ = sample(tmp_path / "s", "zarr")
    store = open_store(tmp_path / "s")
    grown = manifest_of(5)
    with monkeypatch.context() as newer:
        newer.setattr("ser.corpus.manifest.FORMAT_VERSION", 3)
        store.put_manifest(grown)

    with pytest.raises(StoreError, match=r"format version 3.*update ser"):
        store.put_manifest(manifest)
    assert grown.digest in (tmp_path / "s" / "manifests" / "toy" / "latest").read_text()

    store.put_manifest(manifest, replace=True)
    assert feature.complete(store.manifest())


@pytest.mark.parametrize(
    "name", [pytest.param("latest", id="latest"), pytest.param("*.parquet", id="manifest")]
)
def test_a_damaged_manifest_gives_way_to_itself_alone(tmp_path: Path, name: str) -> None:
    _feature, manifest, _ = sample(tmp_path / "s", "zarr")
    store = open_store(tmp_path / "s")
    fewer = Manifest("toy", manifest.table.slice(1))
    [file] = (tmp_path / "s" / "manifests" / "toy").glob(name)
    file.write_bytes(file.read_bytes()[1:])

    remedy = "this is another manifest, which takes its place with --replace"
    with pytest.raises(WrongUse, match=remedy):
        store.put_manifest(fewer)
    store.put_manifest(manifest)
    assert store.manifest().same(manifest)


NO_JSON = {
    "deep": b"[" * 100_000 + b"}",
    "NaN": b'{"a":NaN}',
    "brackets that do not match": b"{]}",
    "an infinite version": b'{"format_version":1e999}',
    "no UTF-8": b"\xff}",
}


@pytest.mark.parametrize("kind", NO_JSON)
def test_json_that_is_none(tmp_path: Path, kind: str) -> None:
    body = NO_JSON[kind]
    _feature, manifest, folder = sample(tmp_path / "s", "zarr")
    checksum = hashlib.sha256(body).hexdigest().encode()
    (folder / "part.json").write_bytes(body[:-1] + b',"sha256":"%s"}\n' % checksum)

    with pytest.raises(CorruptStore, match=str(folder)):
        open_store(tmp_path / "s")["frames"].load(manifest)


def content_of(corpus: str, votes: Any) -> bytes:
    """A manifest of one utterance."""
    return Manifest.from_rows(corpus, [{"id": "a", "votes": votes}]).content


LYING_MANIFESTS = {
    "no Parquet": (b"PAR1 and then nothing", "not a manifest of a store"),
    "another corpus": (content_of("other", None), "is the manifest of corpus 'other'"),
    "a vote that is null": (content_of("toy", [["ang", None]]), "not a manifest of a store"),
    "a rater that is null": (content_of("toy", [None]), "not a manifest of a store"),
}


@pytest.mark.parametrize("lie", LYING_MANIFESTS)
def test_a_manifest_that_lies(tmp_path: Path, lie: str) -> None:
    content, fault = LYING_MANIFESTS[lie]
    sample(tmp_path / "s", "zarr")
    folder = tmp_path / "s" / "manifests" / "toy"
    digest = hashlib.sha256(content).hexdigest()
    (folder / f"{digest}.parquet").write_bytes(content)
    (folder / "latest").write_text(f"{digest}\n")

    with pytest.raises(CorruptStore, match=fault):
        open_store(tmp_path / "s").manifest()


EVIL_METADATA = {
    "another codec": (b'{"name":"crc32c"}', b'{"name":"crc32c"},{"name":"evil.codec"}'),
    "another fill": (b'"fill_value":"NaN"', b'"fill_value":0.0'),
    "another shape": (b'"shape":[', b'"shape":[1'),
    "another dtype": (b'"float16"', b'"int16"'),
}


@pytest.mark.parametrize("kind", EVIL_METADATA)
def test_zarr_metadata_that_shows_plain_readers_something_else(tmp_path: Path, kind: str) -> None:
    old, new = EVIL_METADATA[kind]
    feature, _, folder = sample(tmp_path / "s", "zarr")
    name = "data.zarr/values/zarr.json"
    content = (folder / name).read_bytes()
    assert old in content
    replace_file(folder, name, content.replace(old, new))
    with pytest.raises(CorruptStore, match=r"another array, codec or fill"):
        check_part(folder, feature.fingerprint)


def test_an_index_that_shows_plain_readers_something_else(tmp_path: Path) -> None:
    feature, _, folder = sample(tmp_path / "s", "zarr")
    name = "data.zarr/values/c/0/0"
    content = (folder / name).read_bytes()

    # The bytes of the block, as they are, and an index that says that the chunk is not there.
    index = struct.pack("<QQ", (1 << 64) - 1, (1 << 64) - 1)
    checksum = struct.pack("<I", crc32c.crc32c(index))
    replace_file(folder, name, content[:-20] + index + checksum)

    values = zarr.open_group(folder / "data.zarr", mode="r")["values"][:]
    assert np.isnan(values).all()
    with pytest.raises(CorruptStore, match=r"values/c/0/0: its index leads Zarr elsewhere"):
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
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["values"] = np.zeros((9, 8), "f2")

    put_values, _ = EVIL_HDF5[kind]
    with h5py.File(path, "w") as file:
        file["offsets"] = np.arange(10)
        put_values(file, str(other))


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

# Files that are read only when their rows are.
DATA = re.compile(r"data\.h5|data\.zarr")


@pytest.fixture
def stored(backend: str, tmp_path: Path) -> tuple[Path, Manifest]:
    store, _, manifest, _ = sample_store(tmp_path / "s", backend, count=4, dim=5, level="token")
    return store.path, manifest


def files_of(path: Path) -> list[Path]:
    """All files."""
    files = []
    for file in path.glob("**/*"):
        if file.is_file():
            files.append(file)
    return sorted(files)


def complaints(path: Path, manifest: Manifest) -> Iterator[str]:
    """What is said when the store is opened and read, and when it is verified.

    Wrong values fail the test.
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


HARMS = ["delete", "empty", "truncate", "grow", "link", "pipe"]

# By the seed of the dice: one bit of each file is flipped.
FLIPS = [pytest.param(seed, id=f"flip-{seed}") for seed in range(3)]
for _seed in range(3, 120):
    FLIPS.append(pytest.param(_seed, id=f"flip-{_seed}", marks=pytest.mark.slow))


def do_harm(
    file: Path, content: bytes, harm: str | int, dice: random.Random, elsewhere: Path
) -> None:
    """Put something else, or nothing, in the place of a file with this content."""
    file.unlink()

    if harm == "empty":
        file.write_bytes(b"")
    elif harm == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "grow":
        file.write_bytes(content + b"\0")
    elif harm == "link":
        elsewhere.write_bytes(content)
        file.symlink_to(elsewhere)
    elif harm == "pipe":
        os.mkfifo(file)
    elif isinstance(harm, int):
        altered = bytearray(content)
        altered[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.write_bytes(altered)


@pytest.mark.parametrize("harm", [*HARMS, *FLIPS])
def test_each_file_in_turn(stored: tuple[Path, Manifest], harm: str | int) -> None:
    path, manifest = stored
    dice = random.Random(harm)
    files = files_of(path)
    assert len(files) >= 5

    for file in files:
        content = file.read_bytes()
        do_harm(file, content, harm, dice, path.parent / "elsewhere")

        said = list(complaints(path, manifest))
        assert said, f"nobody noticed {file}"
        assert all("\n" not in text for text in said)

        # A named error: the file itself, or the part that it belongs to.
        parts = [parent for parent in file.parents if parent.parent.name == "parts"]
        names = [str(name) for name in (file, *parts)]
        named = [text for text in said if any(name in text for name in names)]
        assert named, (file, said)

        # Of the log, a history, only verify is told.
        is_noticed_at_open = isinstance(harm, str) or not DATA.search(str(file))
        is_noticed_at_open &= file.name != LOG
        if is_noticed_at_open:
            with pytest.raises(CorruptStore):
                store = open_store(path)
                store.manifest()
                assert [feature.parts() for feature in store.features()]

        file.unlink(missing_ok=True)
        file.write_bytes(content)

    assert not list(complaints(path, manifest))


def test_each_folder_in_turn(stored: tuple[Path, Manifest]) -> None:
    """Without its whole folder a part or feature is absent, not corrupt: rows are missing."""
    path, manifest = stored
    folders = [folder for folder in path.glob("**/*") if folder.is_dir() and folder.name != "tmp"]

    for folder in sorted(folders):
        aside = path.parent / "aside"
        folder.rename(aside)
        assert list(complaints(path, manifest)), f"nobody noticed {folder}"

        if "data.zarr" in folder.parts:
            folder.symlink_to(aside)
            said = list(complaints(path, manifest))
            assert any("link or a special file" in text for text in said), folder
            folder.unlink()
        aside.rename(folder)

    assert not list(complaints(path, manifest))


def test_a_reader_in_flight_gets_an_error(stored: tuple[Path, Manifest]) -> None:
    """Files that go or change after a feature has been opened."""
    path, manifest = stored
    files = [file for file in files_of(path) if file.name == "data.h5" or "values/c/" in str(file)]

    for file in files:
        kept = file.read_bytes()
        for content in (None, b"", bytes(len(kept))):
            feature = open_store(path)["tokens"]
            feature.parts()
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)

            with pytest.raises(CorruptStore, match=str(file)):
                feature.load(manifest)
            file.write_bytes(kept)
    check_whole(open_store(path)["tokens"], manifest)
