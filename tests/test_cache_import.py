"""Bring your own features, take them elsewhere: round trips are equal, and files that lie are
refused.
"""

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import zarr

from ser.cache.store import Store, open_store
from ser.cache.tools import in_memory
from ser.cache.tools.exporting import export
from ser.cache.tools.importing import import_feature, read_ids
from ser.corpus.manifest import Manifest
from ser.errors import MissingRows, SerError, StoreError, WrongUse
from ser.tests.command_line import in_a_process
from ser.tests.store_samples import manifest_of, sample_store
from ser.tests.test_cache_hostile import EVIL_HDF5, evil_hdf5

# By suffix, what a plain reader finds in an export, and its ids.
PLAIN: dict[str, Callable[[Path], tuple[Any, Callable[[Any], Any]]]] = {
    ".h5": lambda path: (h5py.File(path), lambda data: data["ids"][:]),
    ".npz": lambda path: (np.load(path), lambda data: data["ids"]),
    ".safetensors": lambda path: (
        safetensors.numpy.load_file(path),
        lambda _: json.loads(Path(f"{path}.json").read_text())["ids"],
    ),
    ".zarr": lambda path: (zarr.open_group(path, mode="r"), lambda data: data.attrs["ids"]),
}
VALUES = np.random.default_rng(1).normal(size=(12, 5)).astype("f4")


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return open_store(tmp_path / "s", create=True)


@pytest.mark.parametrize(
    ("suffix", "level", "dtype", "parts"),
    [
        *((suffix, "token", "float32", 1) for suffix in PLAIN),
        (".h5", "frame", "float16", 1),
        (".npz", "utterance", "float32", 1),
        (".h5", "token", "float32", 10),
    ],
)
def test_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, level: str, dtype: str, parts: int
) -> None:
    """What is exported opens with the format's own library too."""
    if parts > 1:
        monkeypatch.setattr(in_memory, "MAX_BYTES", 1)  # an utterance each
    _, feature, manifest, _ = sample_store(tmp_path / "a", "zarr", level=level, dtype=dtype)
    path = export(feature, manifest, tmp_path / f"out{suffix}")
    packed, (data, ids) = feature.load(manifest), PLAIN[suffix](path)
    for name, array in {
        "values": packed.values,
        "offsets": packed.offsets,
        **packed.extras,
    }.items():
        assert np.array_equal(data[name][:].reshape(array.shape), array)
    assert [id_.decode() if isinstance(id_, bytes) else id_ for id_ in ids(data)] == manifest.ids
    back = open_store(tmp_path / "b", create=True)
    done = import_feature(back, "mine", path, feature.spec.modality, manifest, backend="hdf5")
    assert [done.rows, done.missing, done.parts] == [10, 0, parts]
    mine = back["mine"]
    assert (mine.spec.level, mine.spec.dtype, mine.spec.dim) == (level, dtype, 8)
    old, new = feature.load(manifest), mine.load(back.manifest())
    assert old.values.tobytes() == new.values.tobytes()
    np.testing.assert_equal(vars(old), vars(new))
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]
    with pytest.raises(WrongUse, match="exists already"):
        export(feature, manifest, path)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "a", "hdf5")
    with pytest.raises(MissingRows, match="lacks 2 of 12"):
        export(feature, manifest_of(12), tmp_path / "out.h5")
    for file, reason in {
        "nowhere/x.h5": "no such folder",
        "x.pkl": r"known: \.csv, \.h5, .*, \.zarr",
    }.items():
        with pytest.raises(WrongUse, match=reason):
            export(feature, manifest, tmp_path / file)
    odd = Manifest.from_rows("odd", [{"id": "nul\0", "audio_sha256": "0" * 64}])
    store.put_manifest(odd)
    np.save(tmp_path / "one.npy", VALUES[:1])
    import_feature(store, "mine", tmp_path / "one.npy", "audio", odd)
    with pytest.raises(StoreError, match="NUL"):
        export(store["mine"], odd, tmp_path / "out.npz")
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "one.npy"}


WRITERS: dict[str, Callable[[Path, list[str]], Any]] = {
    "plain.npy": lambda path, ids: np.save(path, VALUES),
    "fortran.npy": lambda path, ids: np.save(path, np.asfortranarray(VALUES)),
    "double.npy": lambda path, ids: np.save(path, VALUES.astype("f8")),
    "bigendian.npy": lambda path, ids: np.save(path, VALUES.astype(">f4")),
    "values.npz": lambda path, ids: np.savez(path, values=VALUES),
    "packed.npz": lambda path, ids: np.savez_compressed(path, values=VALUES, ids=ids),
    "by-id.npz": lambda path, ids: np.savez(path, **dict(zip(ids, VALUES, strict=True))),  # type: ignore[arg-type]
    "values.h5": lambda path, ids: h5py.File(path, "w").create_dataset(
        "values", data=VALUES, compression="gzip"
    ),
    "by-id.hdf5": lambda path, ids: [
        h5py.File(path, "a").__setitem__(i, v) for i, v in zip(ids, VALUES, strict=True)
    ],
    "by-id.safetensors": lambda path, ids: safetensors.numpy.save_file(
        dict(zip(ids, VALUES, strict=True)), path
    ),
    "ids.csv": lambda path, ids: pd.DataFrame(VALUES, ids).to_csv(path, index_label="id"),
    "noids.csv": lambda path, ids: pd.DataFrame(VALUES).add_prefix("f").to_csv(path, index=False),
    "bare.tsv": lambda path, ids: pd.DataFrame(VALUES).to_csv(
        path, sep="\t", index=False, header=False
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_others_write(tmp_path: Path, empty: Store, name: str) -> None:
    manifest = manifest_of(12)
    WRITERS[name](tmp_path / name, manifest.ids)
    import_feature(empty, "mine", tmp_path / name, "audio", manifest)
    packed = empty["mine"].load(manifest)
    assert np.array_equal(packed.values, VALUES) and packed.values.dtype == np.float32
    assert empty["mine"].spec.level == "utterance" and empty["mine"].spec.config["sha256"]
    done = import_feature(empty, "mine", tmp_path / name, "audio", manifest)
    assert done.parts == 0 and len(empty.features()) == 1


def test_ids_in_another_order_and_some_missing(tmp_path: Path, empty: Store) -> None:
    manifest = manifest_of(12)
    np.save(tmp_path / "x.npy", VALUES[:7])
    ids = manifest.ids[::-1][:7]
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n")
    assert read_ids(tmp_path / "ids.txt") == ids
    done = import_feature(empty, "mine", tmp_path / "x.npy", "audio", manifest, ids=ids)
    assert (done.rows, done.missing) == (7, 5)
    assert np.array_equal(empty["mine"]["u010"], VALUES[1])
    assert empty["mine"].missing(manifest) == [0, 1, 2, 3, 4]


SPOT = np.arange(60).reshape(12, 5) == 33


@pytest.mark.parametrize(
    ("arrays", "ids", "match"),
    [
        ({"values": VALUES[:11]}, None, "11 rows for 12 utterances in the manifest"),
        ({"values": VALUES}, ["a"], "12 rows for 1 ids"),
        ({"values": VALUES[:2]}, ["u000", "u000"], "'u000' appears twice"),
        ({"values": VALUES[:2]}, ["u000", "who"], "1 of 2 ids are not in corpus toy.*'who'"),
        ({"values": VALUES.reshape(-1)}, None, "shape"),
        ({"values": VALUES.astype("c8")}, None, "not numbers"),
        ({"values": np.array([["a"] * 5] * 12)}, None, "not numbers"),
        ({"values": np.where(SPOT, np.nan, VALUES)}, None, "'u006'.*not finite"),
        ({"values": np.where(SPOT, np.float64(1e300), VALUES)}, None, "'u006'.*not finite"),
        ({"values": VALUES, "offsets": np.arange(12)}, None, "offsets"),
        (
            {"values": VALUES, "offsets": np.array([0, 9, 5, 12])},
            ["u000", "u001", "u002"],
            "offsets",
        ),
        (
            {"values": VALUES, "offsets": np.array([0, 5, 5, 12])},
            ["u000", "u001", "u002"],
            "'u001' has no rows",
        ),
        ({"values": VALUES, "offsets": np.array([0.0, 12.0])}, ["u000"], "offsets"),
        ({"u000": VALUES[0], "u001": VALUES[1, :3]}, None, "no `values`, and 'u001' has shape"),
        ({"u000": VALUES[0], "u001": VALUES[1]}, ["u001", "u002"], "named by other ids"),
        ({}, None, "no arrays"),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, empty: Store, arrays: Any, ids: list[str] | None, match: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(StoreError, match=match):
        import_feature(empty, "mine", tmp_path / "x.npz", "audio", manifest_of(12), ids=ids)
    assert empty.features() == [] and empty.corpora() == []


class Evil:
    """What a pickle can do when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pickle-was-opened",)  # in the working folder


def npy_claiming(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        sink, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return sink.getvalue() + content


def made_zarr(path: Path, **said: Any) -> Path:
    """Three chunks under metadata that say something else. Returns the file of the second one."""
    zarr.create_group(path).create_array("values", data=VALUES, chunks=(4, 5), compressors=None)
    metadata = json.loads((path / "values/zarr.json").read_text())
    (path / "values/zarr.json").write_text(json.dumps({**metadata, **said}))
    return path / "values/c/1/0"


def dataset(path: Path, *args: Any, **more: Any) -> Any:
    return h5py.File(path, "w").create_dataset("values", *args, **more)


def spoil(path: Path) -> None:
    """A chunk that gzip cannot unpack, which shows when its rows are read."""
    with h5py.File(path, "w") as file:
        made = file.create_dataset("values", data=VALUES, compression="gzip", chunks=(4, 5))
        made.id.write_direct_chunk((8, 0), b"spoilt")


def bomb_npz(path: Path) -> None:
    """A header that is true to the member's size, and a member that unpacks to more than any
    memory.
    """
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("values.npy", npy_claiming((1 << 40, 5)))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(content)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
CODEC = {"name": "numcodecs.pickle", "configuration": {}}
GRID = {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 5]}}
EVIL: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "pickled npy": (
        "x.npy",
        lambda p: np.save(p, np.array([Evil()], object), allow_pickle=True),
        "Python objects",
    ),
    "pickle called npy": (
        "x.npy",
        lambda p: p.write_bytes(pickle.dumps(Evil())),
        "cannot be read as npy",
    ),
    "npy that claims 2 TB": (
        "x.npy",
        lambda p: p.write_bytes(npy_claiming((1 << 36, 5))),
        "greater than file size",
    ),
    "npy with a negative shape": (
        "x.npy",
        lambda p: p.write_bytes(npy_claiming((-12, -5), bytes(240))),
        "x.npy",
    ),
    "npz with a pickle": (
        "x.npz",
        lambda p: np.savez(p, values=np.array([Evil()], object)),
        "allow_pickle=False",
    ),
    "npz bomb": ("x.npz", bomb_npz, "claims|cannot be read"),
    "npz with more": (
        "x.npz",
        lambda p: zipfile.ZipFile(p, "w").writestr("values.pkl", "x"),
        "not a single .npy",
    ),
    "lfs pointer": ("x.h5", lambda p: p.write_text(LFS), "cannot be read as h5"),
    "html page": (
        "x.safetensors",
        lambda p: p.write_text("<html>sign in</html>"),
        "cannot be read as safetensors",
    ),
    "csv with text": (
        "x.csv",
        lambda p: p.write_text("id,a\nu000,=cmd|'/c calc'!A0\n"),
        "not a number",
    ),
    "csv with a hole": ("x.csv", lambda p: p.write_text("id,a,b\nu000,1,\n"), "not a number"),
    "csv with ragged rows": (
        "x.csv",
        lambda p: p.write_text("id,a\nu000,1,2\n"),
        "cannot be read as csv",
    ),
    "zarr with a missing chunk": ("x.zarr", lambda p: made_zarr(p).unlink(), "2 of 3 chunks"),
    "zarr with a linked chunk": (
        "x.zarr",
        lambda p: (p / "values/c/1/0").symlink_to(made_zarr(p).rename(p.with_name("chunk"))),
        "symbolic link",
    ),
    "zarr that claims 2 TB": (
        "x.zarr",
        lambda p: made_zarr(p, shape=[1 << 37, 5]),
        "3 of .* chunks",
    ),
    "zarr chunk bomb": ("x.zarr", lambda p: made_zarr(p, chunk_grid=GRID), "claims"),
    "zarr codec": ("x.zarr", lambda p: made_zarr(p, codecs=[CODEC]), r"numcodecs\.pickle"),
    "zarr with v2 metadata": ("x.zarr", lambda p: made_zarr(p, zarr_format=2), "be read as zarr"),
    "hdf5 never written": ("x.h5", lambda p: dataset(p, (1 << 40, 5), "f4"), "does not hold"),
    "hdf5 with holes": (
        "x.h5",
        lambda p: dataset(p, (9, 5), "f4", chunks=(2, 5)).__setitem__(0, 1),
        "does not hold",
    ),
    "hdf5 with a chunk that cannot be unpacked": ("x.h5", spoil, "cannot be read as h5"),
    "hdf5 with objects": ("x.h5", lambda p: dataset(p, (2, 2), h5py.ref_dtype), "x.h5"),
    "a folder called npy": ("x.npy", lambda p: p.mkdir(), "not a plain file"),
    "a pipe called npy": ("x.npy", os.mkfifo, "not a plain file"),
    "another kind of file": (
        "x.pkl",
        lambda p: p.write_bytes(pickle.dumps(Evil())),
        "unknown feature file format",
    ),
    "nothing": ("x.npy", lambda p: None, "does not exist"),
}
EVIL |= {kind: ("x.h5", partial(evil_hdf5, kind), word) for kind, (_, word) in EVIL_HDF5.items()}


@pytest.mark.parametrize("kind", EVIL)
def test_evil_files(
    tmp_path: Path, empty: Store, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, make, match = EVIL[kind]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / name)
    with pytest.raises(SerError, match=match) as caught:
        import_feature(empty, "mine", tmp_path / "in" / name, "audio", manifest_of(12), ids=None)
    assert "\n" not in str(caught.value)
    assert empty.features() == [] and not Path("pickle-was-opened").exists()


def bounded(where: str) -> None:
    """Import files, one of which is another one's export, and export what came of them, in blocks
    of 4 MB.

    Prints after each how large the process has been, in kB.
    """
    folder, manifest, in_memory.MAX_BYTES = Path(where), manifest_of(500), 4 << 20
    for file in ("small.h5", "byid.h5", "out-byid.h5", "packed.safetensors"):
        store = open_store(folder / f"store-{file}", create=True)
        import_feature(store, "mine", folder / file, "audio", manifest)
        export(store["mine"], manifest, folder / f"out-{file}")
        print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the mark")
def test_files_larger_than_memory_go_through_it(tmp_path: Path) -> None:
    """100 MB of values of 500 utterances within 40 MB, and their numbers unchanged."""
    rng, ids = np.random.default_rng(0), manifest_of(500).ids
    values = rng.random((50_000, 500), np.float32)
    offsets = np.array([0, *sorted(rng.choice(np.arange(1, 50_000), 499, replace=False)), 50_000])
    with (
        h5py.File(tmp_path / "small.h5", "w") as small,
        h5py.File(tmp_path / "byid.h5", "w") as file,
    ):
        for number, id_ in enumerate(ids):
            small[id_] = values[number : number + 1]
            file[id_] = values[offsets[number] : offsets[number + 1]]
    safetensors.numpy.save_file(
        {"values": values, "offsets": offsets}, tmp_path / "packed.safetensors"
    )
    small, *_, most = map(int, in_a_process(bounded, tmp_path).split())
    assert most - small < 40_000
    with h5py.File(tmp_path / "out-out-byid.h5") as file:
        assert np.array_equal(file["values"], values) and np.array_equal(file["offsets"], offsets)
    found = safetensors.numpy.load_file(tmp_path / "out-packed.safetensors")
    assert np.array_equal(found["values"], values)
