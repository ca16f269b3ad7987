"""Arrays from files that ser did not write: nothing is unpickled, and no size is used before it is
checked.

Arrays that may be larger than memory stay in their file, as `Stored`, and are read by rows; an .npz
(a zip archive, checked as a whole) and a CSV are read at once.
"""

import bisect
import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ser.cache.hdf5_layout import foreign_hdf5
from ser.disk.read import LARGE, read_named
from ser.errors import SerError, StoreError, WrongUse, unknown

Opened = contextlib.AbstractContextManager[
    Mapping[str, Any]
]  # arrays by name, which are read when indexed


@dataclass(frozen=True)
class Stored:
    """Arrays of a file end to end, `[rows, dim]`, each read when it is indexed; one of a single
    axis is one row.
    """

    path: Path
    open: Callable[[], Opened]
    names: list[str]
    starts: list[int]  # the first row of each
    shape: tuple[int, ...]
    dtype: npt.DTypeLike

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        pieces = [np.empty((0, *self.shape[1:]), self.dtype)]
        with _explained(self.path), self.open() as arrays:
            for number in range(
                bisect.bisect_right(self.starts, start) - 1, bisect.bisect_left(self.starts, stop)
            ):
                array, first = arrays[self.names[number]], self.starts[number]
                if len(array.shape) == 1:
                    array = np.asarray(array[...])[None]
                pieces.append(np.asarray(array[max(0, start - first) : stop - first]))
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return np.concatenate(pieces, dtype=self.dtype)


Arrays = dict[str, Any]  # each a numpy array, or `Stored`

# Blosc, zstd and gzip unpack at most the chunk's shape; sharding is not here, as it hides missing
# chunks.
_CODECS = {"bytes", "crc32c", "zstd", "gzip", "blosc"}


def read_arrays(path: Path) -> Arrays:
    """Every array in a file, by name: `values`, `offsets`, `ids` and extras, or one array per
    utterance id.

    An .npy file and a CSV give `values` (and `ids` from a CSV's first column, when it is called
    id). Raises `WrongUse` for an unknown kind of file and `StoreError` for one that cannot be
    trusted.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise unknown("feature file format", suffix or path.name, _READERS)
    if not (path.is_dir() if suffix == ".zarr" else path.is_file()):
        kind = "folder" if suffix == ".zarr" else "plain file"
        fault = f"is not a {kind}" if path.exists() else "does not exist"
        raise WrongUse(f"{path}: {fault}; name a {kind} that is there")
    with _explained(path):
        return _READERS[suffix](path)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except SerError:
        raise
    except Exception as error:  # these libraries raise nearly every kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        fault = f"cannot be read as {path.suffix.lower()[1:]} ({reason}); save it again, or in another format"
        raise StoreError(f"{path}: {fault}") from error


def _check_size(path: Path, size: int) -> None:
    """Refuse what this machine's memory could not hold."""
    if hasattr(os, "sysconf") and size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise StoreError(
            f"{path}: claims {size / 1e9:.0f} GB of values, more than this machine's memory"
        )


def _kept(path: Path, open_: Callable[[], Opened]) -> Arrays:
    """The values, or one array per utterance if there are none, stay in the file; the rest is read."""
    with open_() as arrays:
        large, kept = {"values"} if "values" in arrays else set(arrays), Arrays()
        for name, array in arrays.items():
            dtype = np.dtype(array.dtype)
            if name in large and array.shape:
                kept[name] = Stored(path, open_, [name], [0], tuple(array.shape), dtype)
            else:
                _check_size(path, math.prod(array.shape) * dtype.itemsize)
                kept[name] = np.asarray(array[...])
        return kept


def _chunks(array: Any) -> int:
    return math.prod(
        math.ceil(size / chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)
    )


def _read_npy(path: Path) -> Arrays:
    # Mapping compares the header with the file's size.
    return _kept(
        path,
        lambda: contextlib.nullcontext(
            {"values": np.load(path, mmap_mode="r", allow_pickle=False)}
        ),
    )


def _read_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        _check_size(path, sum(member.file_size for member in archive.zip.infolist()))
        arrays = {name: archive[name] for name in archive.files}
        for name, times in Counter(archive.files).items():
            if times > 1 or not isinstance(arrays[name], np.ndarray):
                raise StoreError(f"{path}: holds {name!r}, which is not a single .npy member")
    return _kept(path, lambda: contextlib.nullcontext(arrays))


def _read_hdf5(path: Path) -> Arrays:
    import h5py

    texts: Arrays = {}
    with h5py.File(path, "r") as file:
        for name in file:
            if fault := foreign_hdf5(file, name):
                raise StoreError(f"{path}: {fault}; copy its values into plain datasets first")
            dataset = file[name]
            if dataset.chunks is None:
                whole = dataset.id.get_storage_size() >= dataset.nbytes
            else:
                whole = dataset.id.get_num_chunks() == _chunks(dataset)
            if (
                dataset.size and not whole
            ):  # HDF5 would read zeros for values that were never written
                raise StoreError(
                    f"{path}: '{name}' claims {dataset.size} values that the file does not hold"
                )
            _check_size(path, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize)
            if h5py.check_string_dtype(dataset.dtype) is not None:
                _check_size(path, dataset.nbytes)
                texts[name] = np.asarray(dataset.asstr()[()], str)
    return {**_kept(path, partial(h5py.File, path, "r")), **texts}


def index_of(path: Path) -> Path:
    """The JSON file beside a safetensors file that names its rows."""
    return path.with_name(path.name + ".json")


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import safe_open

    @contextlib.contextmanager
    def opened() -> Iterator[Mapping[str, Any]]:
        with safe_open(path, "np") as file:
            yield {name: _Slice(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118

    arrays = _kept(path, opened)
    if index_of(path).exists() and "ids" not in arrays:
        arrays["ids"] = np.array(json.loads(read_named(index_of(path)))["ids"], str)
    return arrays


class _Slice:
    """A tensor of an open safetensors file, with the attributes of an array."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.shape = tensor, tuple(tensor.get_shape())
        self.dtype = tensor[0:0].dtype if self.shape else None

    def __getitem__(self, rows: Any) -> Any:
        return self.tensor[rows]


def _read_csv(path: Path) -> Arrays:
    import pyarrow.csv as csv

    layout = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    kinds = csv.ConvertOptions(column_types={name: pa.string() for name in ("id", "ID", "Id")})
    content = pa.py_buffer(read_named(path, LARGE))
    table = csv.read_csv(pa.BufferReader(content), parse_options=layout, convert_options=kinds)
    with contextlib.suppress(ValueError):
        for name in table.column_names:
            float(name)
        # All are numbers: the file has no line of names.
        table = csv.read_csv(
            pa.BufferReader(content), csv.ReadOptions(autogenerate_column_names=True), layout, kinds
        )
    ids = table.column(0) if table.column_names[0].lower() == "id" else None
    numbers = table if ids is None else table.remove_column(0)
    for name, column in zip(numbers.column_names, numbers.columns, strict=True):
        if column.null_count or not (
            pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        ):
            raise StoreError(f"{path}: column {name!r} holds something that is not a number")
    arrays = {
        "values": np.stack(
            [column.to_numpy().astype(np.float64) for column in numbers.columns], axis=1
        )
    }
    arrays |= {} if ids is None else {"ids": np.array(ids.to_pylist(), str)}
    return _kept(path, lambda: contextlib.nullcontext(arrays))


def _read_zarr(path: Path) -> Arrays:
    import zarr

    for entry in path.rglob("*"):
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise StoreError(f"{path}: holds a symbolic link or a special file ({entry.name!r})")
    ids = zarr.open_group(path, mode="r", zarr_format=3).attrs.get("ids")
    names: Arrays = {} if ids is None else {"ids": np.array(ids, str)}
    arrays: dict[str, Any] = {}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        array = zarr.open_array(folder, mode="r", zarr_format=3)
        used: Any = array.metadata.to_dict()["codecs"]
        refused = sorted({codec["name"] for codec in used} - _CODECS)
        if refused:
            raise StoreError(
                f"{folder}: uses codec {refused}; allowed: {', '.join(sorted(_CODECS))}"
            )
        _check_size(folder, math.prod(array.chunks) * array.dtype.itemsize)
        present = sum(entry.is_file() for entry in (folder / "c").rglob("*"))
        if present != _chunks(array):
            raise StoreError(
                f"{folder}: has {present} of {_chunks(array)} chunks; Zarr would fill the rest silently"
            )
        arrays[folder.name] = array
    return {**_kept(path, lambda: contextlib.nullcontext(arrays)), **names}


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
