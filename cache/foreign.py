"""Arrays from files of others, which may lie: nothing is unpickled, and no size is believed before it is checked."""

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ser.errors import SerError, StoreError, WrongUse, unknown

from .atomic_io import LARGE, read_named
from .backends import foreign_hdf5

Arrays = dict[str, npt.NDArray[Any]]

# Blosc, zstd and gzip bound what they unpack by the chunk's shape; sharding hides missing chunks, so it is not here.
_CODECS = {"bytes", "crc32c", "zstd", "gzip", "blosc"}


def read_arrays(path: Path) -> Arrays:
    """Every array in a file, by name: `values`, `offsets`, `ids` and extras, or one array per utterance id.

    An .npy file and a CSV give `values` (and `ids` from a CSV's first column, when it is called id).
    Raises `WrongUse` for an unknown kind of file and `StoreError` for one that cannot be trusted.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise unknown("feature file format", suffix or path.name, _READERS)
    if not (path.is_dir() if suffix == ".zarr" else path.is_file()):
        kind = "folder" if suffix == ".zarr" else "plain file"
        raise WrongUse(f"{path}: {f'is not a {kind}' if path.exists() else 'does not exist'}")
    try:
        return _READERS[suffix](path)
    except SerError:
        raise
    except Exception as error:  # these libraries raise nearly every kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        fault = f"cannot be read as {suffix[1:]} ({reason}); save it again, or in another format"
        raise StoreError(f"{path}: {fault}") from error


def _check_size(path: Path, size: int) -> None:
    """Refuse what could not be held in memory anyway."""
    if hasattr(os, "sysconf") and size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise StoreError(f"{path}: claims {size / 1e9:.0f} GB of values, more than this machine's memory")


def _chunks(array: Any) -> int:
    return math.prod(math.ceil(size / chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))


def _read_npy(path: Path) -> Arrays:
    # Mapped first, because that holds the header against the file's size before it allocates anything.
    return {"values": np.array(np.load(path, mmap_mode="r", allow_pickle=False))}


def _read_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        _check_size(path, sum(member.file_size for member in archive.zip.infolist()))
        arrays = {name: archive[name] for name in archive.files}
        for name, times in Counter(archive.files).items():
            if times > 1 or not isinstance(arrays[name], np.ndarray):
                raise StoreError(f"{path}: holds {name!r}, which is not a single .npy member")
    return arrays


def _read_hdf5(path: Path) -> Arrays:
    import h5py

    arrays: Arrays = {}
    with h5py.File(path, "r") as file:
        for name in file:
            if fault := foreign_hdf5(file, name):
                raise StoreError(f"{path}: {fault}; copy its values into plain datasets first")
            dataset = file[name]
            if dataset.chunks is None:
                whole = dataset.id.get_storage_size() >= dataset.nbytes
            else:
                whole = dataset.id.get_num_chunks() == _chunks(dataset)
            if dataset.size and not whole:  # HDF5 reads values that were never written as zeros
                raise StoreError(f"{path}: '{name}' claims {dataset.size} values that the file does not hold")
            _check_size(path, dataset.nbytes)
            text = h5py.check_string_dtype(dataset.dtype) is not None
            arrays[name] = np.asarray(dataset.asstr()[()], str) if text else np.asarray(dataset[()])
    return arrays


def index_of(path: Path) -> Path:
    """The JSON file beside a safetensors file that names its rows."""
    return path.with_name(path.name + ".json")


def _read_safetensors(path: Path) -> Arrays:
    from safetensors.numpy import load_file

    arrays: Arrays = load_file(path)
    if index_of(path).exists() and "ids" not in arrays:
        arrays["ids"] = np.array(json.loads(read_named(index_of(path)))["ids"], str)
    return arrays


def _read_csv(path: Path) -> Arrays:
    import pyarrow.csv as csv

    layout = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    kinds = csv.ConvertOptions(column_types={name: pa.string() for name in ("id", "ID", "Id")})
    content = pa.py_buffer(read_named(path, LARGE))
    table = csv.read_csv(pa.BufferReader(content), parse_options=layout, convert_options=kinds)
    with contextlib.suppress(ValueError):
        _ = [float(name) for name in table.column_names]
        # What seemed to be names are numbers.
        table = csv.read_csv(pa.BufferReader(content), csv.ReadOptions(autogenerate_column_names=True), layout, kinds)
    ids = table.column(0) if table.column_names[0].lower() == "id" else None
    numbers = table if ids is None else table.remove_column(0)
    for name, column in zip(numbers.column_names, numbers.columns, strict=True):
        if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise StoreError(f"{path}: column {name!r} holds something that is not a number")
    arrays: Arrays = {"values": np.stack([column.to_numpy().astype(np.float64) for column in numbers.columns], axis=1)}
    return arrays if ids is None else {**arrays, "ids": np.array(ids.to_pylist(), str)}


def _read_zarr(path: Path) -> Arrays:
    import zarr

    if strange := [entry for entry in path.rglob("*") if entry.is_symlink() or not (entry.is_dir() or entry.is_file())]:
        raise StoreError(f"{path}: holds a symbolic link or a special file ({strange[0].name!r})")
    ids = zarr.open_group(path, mode="r", zarr_format=3).attrs.get("ids")
    arrays: Arrays = {} if ids is None else {"ids": np.array(ids, str)}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        array = zarr.open_array(folder, mode="r", zarr_format=3)
        used: Any = array.metadata.to_dict()["codecs"]
        codecs = {codec["name"] for codec in used}
        if codecs - _CODECS:
            raise StoreError(f"{folder}: uses codec {sorted(codecs - _CODECS)}; allowed: {', '.join(sorted(_CODECS))}")
        _check_size(folder, max(math.prod(array.shape), math.prod(array.chunks)) * array.dtype.itemsize)
        if (held := sum(entry.is_file() for entry in (folder / "c").rglob("*"))) != _chunks(array):
            raise StoreError(f"{folder}: has {held} of {_chunks(array)} chunks; Zarr would fill the rest silently")
        arrays[folder.name] = np.asarray(array[...])
    return arrays


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".safetensors": _read_safetensors,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".zarr": _read_zarr,
}
