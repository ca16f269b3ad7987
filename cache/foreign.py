"""Reading feature files that others made: npy, npz, HDF5, safetensors, CSV, and Zarr, none of them trusted.

Nothing is unpickled, no link is followed out of the file, and no shape is believed before the bytes behind it are seen.
"""

import json
import math
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import hdf5_backend
from .errors import SerError, StoreError, WrongUse, unknown
from .exporting import index_of

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
    if not path.exists():
        raise WrongUse(f"{path}: does not exist")
    if path.is_dir() != (suffix == ".zarr"):
        raise WrongUse(f"{path}: is {'a folder' if path.is_dir() else 'no folder'}, not what its name says")
    if not (path.is_dir() or path.is_file()):
        raise WrongUse(f"{path}: is no plain file")
    try:
        return _READERS[suffix](path)
    except SerError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path}: cannot be read as {suffix[1:]} ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _check_size(path: Path, size: int) -> None:
    """Refuse what could not be held in memory anyway."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise StoreError(f"{path}: claims {size / 1e9:.0f} GB of values, more than this machine's memory")


def _read_npy(path: Path) -> Arrays:
    with path.open("rb") as file:
        return {"values": _npy(path, file, path.stat().st_size)}


def _npy(path: Path, file: Any, size: int) -> npt.NDArray[Any]:
    """One .npy stream of `size` bytes. The header is held against the size before anything is allocated."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise StoreError(f"{path}: is of .npy version {version}; save it again with numpy.save")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise StoreError(f"{path}: holds pickled objects, which could run code; save it as plain numbers")
    bytes_ = math.prod(shape) * dtype.itemsize
    if bytes_ > size:
        raise StoreError(f"{path}: claims {bytes_} bytes of values and has {size}")
    content = file.read(bytes_)
    if len(content) != bytes_:
        raise StoreError(f"{path}: cut short")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _read_npz(path: Path) -> Arrays:
    arrays: Arrays = {}
    with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            if not member.filename.endswith(".npy") or member.filename[:-4] in arrays:
                raise StoreError(f"{path}: holds {member.filename!r}, no or no single .npy member")
            with archive.open(member) as file:
                arrays[member.filename[:-4]] = _npy(path, file, member.file_size)
    return arrays


def _read_hdf5(path: Path) -> Arrays:
    import h5py

    arrays: Arrays = {}
    with h5py.File(path, "r") as file:
        for name in file:
            if fault := hdf5_backend.foreign(file, name):
                raise StoreError(f"{path}: {fault}; copy its values into plain datasets first")
            dataset = file[name]
            if (size := dataset.size or 0) and not _stored_whole(dataset):
                raise StoreError(f"{path}: '{name}' claims {size} values that the file does not hold")
            _check_size(path, dataset.nbytes)
            read = dataset[()]
            text = h5py.check_string_dtype(dataset.dtype) is not None
            arrays[name] = np.asarray(dataset.asstr()[()], str) if text else np.asarray(read)
    return arrays


def _stored_whole(dataset: Any) -> bool:
    """Whether bytes were ever written for every value; HDF5 reads what is not there as zeros."""
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size() >= dataset.nbytes)
    chunks = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    return bool(dataset.id.get_num_chunks() == chunks)


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: Arrays = load_file(path)
    except SafetensorError as error:
        raise StoreError(f"{path}: no sound safetensors file ({_first_line(error)})") from error
    if index_of(path).exists() and "ids" not in arrays:
        arrays["ids"] = np.array(json.loads(index_of(path).read_bytes())["ids"], str)
    return arrays


def _read_csv(path: Path) -> Arrays:
    import pyarrow.csv as csv

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open("rb") as file:
        first = file.readline(1 << 24).decode(errors="replace").rstrip("\r\n").split(separator)
    names = [name.strip().strip('"') for name in first]
    headed = not all(_is_number(name) for name in names)
    keyed = headed and names[0].lower() == "id"
    table = csv.read_csv(
        path,
        read_options=csv.ReadOptions(autogenerate_column_names=not headed),
        parse_options=csv.ParseOptions(delimiter=separator),
        convert_options=csv.ConvertOptions(column_types={names[0]: "string"} if keyed else None),
    )
    columns = table.columns[1:] if keyed else table.columns
    for name, column in zip(table.column_names[1:] if keyed else table.column_names, columns, strict=True):
        if column.null_count or not re.match(r"u?int|float|double", str(column.type)):
            raise StoreError(f"{path}: column {name!r} holds something that is no number")
    arrays: Arrays = {"values": np.stack([column.to_numpy().astype(np.float64) for column in columns], axis=1)}
    if keyed:
        arrays["ids"] = np.array(table.column(0).to_pylist(), str)
    return arrays


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_zarr(path: Path) -> Arrays:
    group = _metadata(path)
    if group.get("node_type") != "group":
        raise StoreError(f"{path}: no Zarr v3 group")
    _no_links(path)
    arrays = {folder.name: _zarr_array(folder) for folder in sorted(path.iterdir()) if folder.is_dir()}
    ids = group.get("attributes", {}).get("ids")
    if ids is not None and "ids" not in arrays:
        arrays["ids"] = np.array(ids, str)
    return arrays


def _metadata(folder: Path) -> dict[str, Any]:
    metadata = json.loads((folder / "zarr.json").read_bytes())
    if not isinstance(metadata, dict) or metadata.get("zarr_format") != 3:
        raise StoreError(f"{folder}: no Zarr v3 metadata")
    return metadata


def _no_links(path: Path) -> None:
    for root, folders, files in os.walk(path):
        for name in [*folders, *files]:
            if os.path.islink(os.path.join(root, name)):  # noqa: PTH114, PTH118
                raise StoreError(f"{path}: holds a symbolic link ({name!r})")


def _zarr_array(folder: Path) -> npt.NDArray[Any]:
    metadata = _metadata(folder)
    codecs = {codec if isinstance(codec, str) else codec["name"] for codec in metadata["codecs"]}
    if codecs - _CODECS:
        raise StoreError(f"{folder}: uses codec {sorted(codecs - _CODECS)}; allowed: {', '.join(sorted(_CODECS))}")
    if metadata.get("storage_transformers"):
        raise StoreError(f"{folder}: uses storage transformers, which are not read here")
    shape, chunk = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
    itemsize = np.dtype(metadata["data_type"]).itemsize
    _check_size(folder, max(math.prod(shape), math.prod(chunk)) * itemsize)
    grid = [-(-size // each) for size, each in zip(shape, chunk, strict=True)]
    if metadata["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "/"}}:
        raise StoreError(f"{folder}: names its chunks in another way than c/0/0")
    held = sum(1 for entry in (folder / "c").rglob("*") if entry.is_file()) if (folder / "c").is_dir() else 0
    if held != math.prod(grid):
        raise StoreError(f"{folder}: has {held} of {math.prod(grid)} chunks; Zarr would fill the rest silently")
    import zarr

    return np.asarray(zarr.open_array(folder, mode="r")[...])


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
