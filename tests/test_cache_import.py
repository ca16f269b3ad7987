"""Bring your own features, take them elsewhere: round trips are equal, and files that lie are
refused.
"""

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
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


def open_hdf5(path: Path) -> tuple[Any, Sequence[Any]]:
    file = h5py.File(path)
    return file, [id_.decode() for id_ in file["ids"][:]]


def open_npz(path: Path) -> tuple[Any, Sequence[Any]]:
    file = np.load(path)
    return file, file["ids"].tolist()


def open_safetensors(path: Path) -> tuple[Any, Sequence[Any]]:
    ids = json.loads(Path(f"{path}.json").read_text())["ids"]
    return safetensors.numpy.load_file(path), ids


def open_zarr(path: Path) -> tuple[Any, Sequence[Any]]:
    group = zarr.open_group(path, mode="r")
    return group, group.attrs["ids"]


# By suffix, what a plain reader finds in an export: its arrays, and its ids.
PLAIN: dict[str, Callable[[Path], tuple[Any, Sequence[Any]]]] = {
    ".h5": open_hdf5,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    ".zarr": open_zarr,
}
VALUES = np.random.default_rng(1).normal(size=(12, 5)).astype("f4")


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return open_store(tmp_path / "s", create=True)


@pytest.mark.parametrize(
    ("suffix", "level", "dtype", "parts"),
    [
        (".h5", "token", "float32", 1),
        (".npz", "token", "float32", 1),
        (".safetensors", "token", "float32", 1),
        (".zarr", "token", "float32", 1),
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
        # An utterance each.
        monkeypatch.setattr(in_memory, "MAX_BYTES", 1)
    _, feature, manifest, _ = sample_store(tmp_path / "a", "zarr", level=level, dtype=dtype)

    path = export(feature, manifest, tmp_path / f"out{suffix}")

    packed = feature.load(manifest)
    arrays, ids = PLAIN[suffix](path)
    expected = {"values": packed.values, "offsets": packed.offsets, **packed.extras}
    for name, array in expected.items():
        assert np.array_equal(arrays[name][:].reshape(array.shape), array)
    assert list(ids) == manifest.ids

    back = open_store(tmp_path / "b", create=True)
    done = import_feature(back, "mine", path, feature.spec.modality, manifest, backend="hdf5")
    assert done.rows == 10
    assert done.missing == 0
    assert done.parts == parts
    mine = back["mine"]
    assert mine.spec.level == level
    assert mine.spec.dtype == dtype
    assert mine.spec.dim == 8
    imported = mine.load(back.manifest())
    assert packed.values.tobytes() == imported.values.tobytes()
    np.testing.assert_equal(vars(packed), vars(imported))

    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]
    with pytest.raises(WrongUse, match="exists already"):
        export(feature, manifest, path)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    store, feature, manifest, _ = sample_store(tmp_path / "a", "hdf5")
    with pytest.raises(MissingRows, match="lacks 2 of 12"):
        export(feature, manifest_of(12), tmp_path / "out.h5")
    with pytest.raises(WrongUse, match="no such folder"):
        export(feature, manifest, tmp_path / "nowhere/x.h5")
    with pytest.raises(WrongUse, match=r"known: \.csv, \.h5, .*, \.zarr"):
        export(feature, manifest, tmp_path / "x.pkl")

    odd = Manifest.from_rows("odd", [{"id": "nul\0", "audio_sha256": "0" * 64}])
    store.put_manifest(odd)
    np.save(tmp_path / "one.npy", VALUES[:1])
    import_feature(store, "mine", tmp_path / "one.npy", "audio", odd)
    with pytest.raises(StoreError, match="NUL"):
        export(store["mine"], odd, tmp_path / "out.npz")

    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "one.npy"}


def vectors_by_id(ids: Sequence[str]) -> dict[str, np.ndarray]:
    return dict(zip(ids, VALUES, strict=True))


def write_packed_hdf5(path: Path, ids: list[str]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("values", data=VALUES, compression="gzip")


def write_hdf5_by_id(path: Path, ids: list[str]) -> None:
    with h5py.File(path, "w") as file:
        for id_, values in vectors_by_id(ids).items():
            file[id_] = values


def write_csv_with_ids(path: Path, ids: list[str]) -> None:
    pd.DataFrame(VALUES, ids).to_csv(path, index_label="id")


def write_csv_with_a_header(path: Path, ids: list[str]) -> None:
    pd.DataFrame(VALUES).add_prefix("f").to_csv(path, index=False)


def write_bare_tsv(path: Path, ids: list[str]) -> None:
    pd.DataFrame(VALUES).to_csv(path, sep="\t", index=False, header=False)


WRITERS: dict[str, Callable[[Path, list[str]], Any]] = {
    "plain.npy": lambda path, ids: np.save(path, VALUES),
    "fortran.npy": lambda path, ids: np.save(path, np.asfortranarray(VALUES)),
    "double.npy": lambda path, ids: np.save(path, VALUES.astype("f8")),
    "bigendian.npy": lambda path, ids: np.save(path, VALUES.astype(">f4")),
    "values.npz": lambda path, ids: np.savez(path, values=VALUES),
    "packed.npz": lambda path, ids: np.savez_compressed(path, values=VALUES, ids=ids),
    "by-id.npz": lambda path, ids: np.savez(path, **vectors_by_id(ids)),  # type: ignore[arg-type]
    "values.h5": write_packed_hdf5,
    "by-id.hdf5": write_hdf5_by_id,
    "by-id.safetensors": lambda path, ids: safetensors.numpy.save_file(vectors_by_id(ids), path),
    "ids.csv": write_csv_with_ids,
    "noids.csv": write_csv_with_a_header,
    "bare.tsv": write_bare_tsv,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_others_write(tmp_path: Path, empty: Store, name: str) -> None:
    manifest = manifest_of(12)
    path = tmp_path / name
    WRITERS[name](path, manifest.ids)

    import_feature(empty, "mine", path, "audio", manifest)

    packed = empty["mine"].load(manifest)
    assert np.array_equal(packed.values, VALUES)
    assert packed.values.dtype == np.float32
    assert empty["mine"].spec.level == "utterance"
    assert empty["mine"].spec.config["sha256"]

    again = import_feature(empty, "mine", path, "audio", manifest)
    assert again.parts == 0
    assert len(empty.features()) == 1


def test_ids_in_another_order_and_some_missing(tmp_path: Path, empty: Store) -> None:
    manifest = manifest_of(12)
    np.save(tmp_path / "x.npy", VALUES[:7])
    ids = manifest.ids[::-1][:7]
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n")
    assert read_ids(tmp_path / "ids.txt") == ids

    done = import_feature(empty, "mine", tmp_path / "x.npy", "audio", manifest, ids=ids)

    assert done.rows == 7
    assert done.missing == 5
    assert np.array_equal(empty["mine"]["u010"], VALUES[1])
    assert empty["mine"].missing(manifest) == [0, 1, 2, 3, 4]


# One value of u006.
SPOT = np.arange(60).reshape(12, 5) == 33


THREE_IDS = ["u000", "u001", "u002"]


MISFITS: dict[str, tuple[dict[str, Any], list[str] | None, str]] = {
    "too few rows": ({"values": VALUES[:11]}, None, "11 rows for 12 utterances in the manifest"),
    "too few ids": ({"values": VALUES}, ["a"], "12 rows for 1 ids"),
    "an id twice": ({"values": VALUES[:2]}, ["u000", "u000"], "'u000' appears twice"),
    "an id of nobody": (
        {"values": VALUES[:2]},
        ["u000", "who"],
        "1 of 2 ids are not in corpus toy.*'who'",
    ),
    "one dimension": ({"values": VALUES.reshape(-1)}, None, "shape"),
    "complex numbers": ({"values": VALUES.astype("c8")}, None, "not numbers"),
    "texts": ({"values": np.array([["a"] * 5] * 12)}, None, "not numbers"),
    "NaN": ({"values": np.where(SPOT, np.nan, VALUES)}, None, "'u006'.*not finite"),
    "a number too large": (
        {"values": np.where(SPOT, np.float64(1e300), VALUES)},
        None,
        "'u006'.*not finite",
    ),
    "offsets of as many": ({"values": VALUES, "offsets": np.arange(12)}, None, "offsets"),
    "offsets that fall": (
        {"values": VALUES, "offsets": np.array([0, 9, 5, 12])},
        THREE_IDS,
        "offsets",
    ),
    "an utterance of no rows": (
        {"values": VALUES, "offsets": np.array([0, 5, 5, 12])},
        THREE_IDS,
        "'u001' has no rows",
    ),
    "offsets with a point": (
        {"values": VALUES, "offsets": np.array([0.0, 12.0])},
        ["u000"],
        "offsets",
    ),
    "vectors of two lengths": (
        {"u000": VALUES[0], "u001": VALUES[1, :3]},
        None,
        "no `values`, and 'u001' has shape",
    ),
    "other ids": (
        {"u000": VALUES[0], "u001": VALUES[1]},
        ["u001", "u002"],
        "named by other ids",
    ),
    "nothing": ({}, None, "no arrays"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit(tmp_path: Path, empty: Store, kind: str) -> None:
    arrays, ids, fault = MISFITS[kind]
    np.savez(tmp_path / "x.npz", **arrays)

    with pytest.raises(StoreError, match=fault):
        import_feature(empty, "mine", tmp_path / "x.npz", "audio", manifest_of(12), ids=ids)

    assert empty.features() == []
    assert empty.corpora() == []


class Evil:
    """What a pickle can do when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        # In the working folder.
        return os.system, ("touch pickle-was-opened",)


def npy_claiming(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    """An npy file whose header says this shape."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, header)
    return sink.getvalue() + content


def made_zarr(path: Path, **metadata: Any) -> Path:
    """Three chunks under metadata that say something else. Returns the file of the second one."""
    zarr.create_group(path).create_array("values", data=VALUES, chunks=(4, 5), compressors=None)
    file = path / "values/zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **metadata}))
    return path / "values/c/1/0"


def link_a_chunk(path: Path) -> None:
    chunk = made_zarr(path)
    elsewhere = chunk.rename(path.with_name("chunk"))
    chunk.symlink_to(elsewhere)


def dataset(path: Path, *args: Any, **more: Any) -> Any:
    return h5py.File(path, "w").create_dataset("values", *args, **more)


def write_holes(path: Path) -> None:
    """A dataset of which one row was written."""
    dataset(path, (9, 5), "f4", chunks=(2, 5))[0] = 1


def spoil(path: Path) -> None:
    """A chunk that gzip cannot unpack, which shows when its rows are read."""
    with h5py.File(path, "w") as file:
        values = file.create_dataset("values", data=VALUES, compression="gzip", chunks=(4, 5))
        values.id.write_direct_chunk((8, 0), b"spoilt")


def bomb_npz(path: Path) -> None:
    """A header that is true to the member's size, and a member that unpacks to more than any
    memory.
    """
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("values.npy", npy_claiming((1 << 40, 5)))

    content = bytearray(path.read_bytes())
    size = content.index(b"PK\x01\x02") + 24
    content[size : size + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(content)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
CODEC = {"name": "numcodecs.pickle", "configuration": {}}
GRID = {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 5]}}
EVIL_NUMPY: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "pickled npy": (
        "x.npy",
        lambda path: np.save(path, np.array([Evil()], object), allow_pickle=True),
        "Python objects",
    ),
    "pickle called npy": ("x.npy", pickled, "cannot be read as npy"),
    "npy that claims 2 TB": (
        "x.npy",
        lambda path: path.write_bytes(npy_claiming((1 << 36, 5))),
        "greater than file size",
    ),
    "npy with a negative shape": (
        "x.npy",
        lambda path: path.write_bytes(npy_claiming((-12, -5), bytes(240))),
        "x.npy",
    ),
    "npz with a pickle": (
        "x.npz",
        lambda path: np.savez(path, values=np.array([Evil()], object)),
        "allow_pickle=False",
    ),
    "npz bomb": ("x.npz", bomb_npz, "claims|cannot be read|does not fit"),
    "npz with more": (
        "x.npz",
        lambda path: zipfile.ZipFile(path, "w").writestr("values.pkl", "x"),
        "not a single .npy",
    ),
    "a folder called npy": ("x.npy", lambda path: path.mkdir(), "not a plain file"),
    "a pipe called npy": ("x.npy", os.mkfifo, "not a plain file"),
    "nothing": ("x.npy", lambda path: None, "does not exist"),
}


EVIL_TEXT: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "lfs pointer": ("x.h5", lambda path: path.write_text(LFS), "cannot be read as h5"),
    "html page": (
        "x.safetensors",
        lambda path: path.write_text("<html>sign in</html>"),
        "cannot be read as safetensors",
    ),
    "csv with text": (
        "x.csv",
        lambda path: path.write_text("id,a\nu000,=cmd|'/c calc'!A0\n"),
        "not a number",
    ),
    "csv with a hole": ("x.csv", lambda path: path.write_text("id,a,b\nu000,1,\n"), "not a number"),
    "csv with ragged rows": (
        "x.csv",
        lambda path: path.write_text("id,a\nu000,1,2\n"),
        "line 2 has 3 columns where the first line has 2",
    ),
    "another kind of file": ("x.pkl", pickled, "unknown feature file format"),
}


EVIL_ZARR: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "zarr with a missing chunk": ("x.zarr", lambda path: made_zarr(path).unlink(), "2 of 3 chunks"),
    "zarr with a linked chunk": ("x.zarr", link_a_chunk, "symbolic link"),
    "zarr that claims 2 TB": (
        "x.zarr",
        lambda path: made_zarr(path, shape=[1 << 37, 5]),
        "3 of .* chunks",
    ),
    "zarr chunk bomb": ("x.zarr", lambda path: made_zarr(path, chunk_grid=GRID), "claims"),
    "zarr codec": (
        "x.zarr",
        lambda path: made_zarr(path, codecs=[CODEC]),
        r"numcodecs\.pickle",
    ),
    "zarr with v2 metadata": (
        "x.zarr",
        lambda path: made_zarr(path, zarr_format=2),
        "be read as zarr",
    ),
}


EVIL_H5: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "hdf5 never written": ("x.h5", lambda path: dataset(path, (1 << 40, 5), "f4"), "does not hold"),
    "hdf5 with holes": ("x.h5", write_holes, "does not hold"),
    "hdf5 with a chunk that cannot be unpacked": ("x.h5", spoil, "cannot be read as h5"),
    "hdf5 with objects": ("x.h5", lambda path: dataset(path, (2, 2), h5py.ref_dtype), "x.h5"),
}


def evil_hdf5_files() -> dict[str, tuple[str, Callable[[Path], Any], str]]:
    """The files of test_cache_hostile, whose values are not in them."""
    files: dict[str, tuple[str, Callable[[Path], Any], str]] = {}
    for kind, (_, fault) in EVIL_HDF5.items():
        files[kind] = ("x.h5", partial(evil_hdf5, kind), fault)
    return files


EVIL = {**EVIL_NUMPY, **EVIL_TEXT, **EVIL_ZARR, **EVIL_H5, **evil_hdf5_files()}


@pytest.mark.parametrize("kind", EVIL)
def test_evil_files(
    tmp_path: Path, empty: Store, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, make, fault = EVIL[kind]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / name)

    with pytest.raises(SerError, match=fault) as caught:
        import_feature(empty, "mine", tmp_path / "in" / name, "audio", manifest_of(12), ids=None)

    assert "\n" not in str(caught.value)
    assert empty.features() == []
    assert not Path("pickle-was-opened").exists()


def bounded(where: str) -> None:
    """Import files, one of which is another one's export, and export what came of them, in blocks
    of 4 MB.

    Prints after each how large the process has been, in kB.
    """
    folder = Path(where)
    manifest = manifest_of(500)
    in_memory.MAX_BYTES = 4 << 20

    for file in ("small.h5", "byid.h5", "out-byid.h5", "packed.safetensors"):
        store = open_store(folder / f"store-{file}", create=True)
        import_feature(store, "mine", folder / file, "audio", manifest)
        export(store["mine"], manifest, folder / f"out-{file}")

        status = Path("/proc/self/status").read_text()
        print(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the mark")
def test_files_larger_than_memory_go_through_it(tmp_path: Path) -> None:
    """50 MB of values of 500 utterances within 30 MB, and their numbers unchanged."""
    rng = np.random.default_rng(0)
    ids = manifest_of(500).ids
    values = rng.random((25_000, 500), np.float32)
    cuts = sorted(rng.choice(np.arange(1, 25_000), 499, replace=False))
    offsets = np.array([0, *cuts, 25_000])
    packed = {"values": values, "offsets": offsets}
    safetensors.numpy.save_file(packed, tmp_path / "packed.safetensors")
    with (
        h5py.File(tmp_path / "small.h5", "w") as small_file,
        h5py.File(tmp_path / "byid.h5", "w") as file,
    ):
        for number, id_ in enumerate(ids):
            small_file[id_] = values[number : number + 1]
            file[id_] = values[offsets[number] : offsets[number + 1]]

    peaks = [int(line) for line in in_a_process(bounded, tmp_path).split()]

    assert peaks[-1] - peaks[0] < 30_000
    with h5py.File(tmp_path / "out-out-byid.h5") as file:
        assert np.array_equal(file["values"], values)
        assert np.array_equal(file["offsets"], offsets)
    exported = safetensors.numpy.load_file(tmp_path / "out-packed.safetensors")
    assert np.array_equal(exported["values"], values)
