"""Arrays from files that ser did not write: nothing is unpickled, no size is used unchecked.

Arrays that may be larger than memory stay in their file, as `StoredArray`, and are read by rows; an
.npz (a zip archive, checked as a whole) and a CSV are read at once.
"""

import bisect
import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
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

# The arrays of an open file by name, each of which is read when it is indexed.
OpenFile = AbstractContextManager[Mapping[str, Any]]

# Each a numpy array, or a `StoredArray`.
ForeignArrays = dict[str, Any]

# Blosc, zstd and gzip unpack at most the chunk's shape; sharding is not here, as it hides missing
# chunks.
ZARR_CODECS = {"bytes", "crc32c", "zstd", "gzip", "blosc"}


@dataclass(frozen=True)
class StoredArray:
    """Arrays of a file end to end, `[rows, dim]`, read when indexed; one of one axis is one row."""

    path: Path
    open: Callable[[], OpenFile]
    names: list[str]
    # The first row of each.
    starts: list[int]
    shape: tuple[int, ...]
    dtype: npt.DTypeLike

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        first_array = bisect.bisect_right(self.starts, start) - 1
        end_array = bisect.bisect_left(self.starts, stop)

        pieces = [np.empty((0, *self.shape[1:]), self.dtype)]
        with explain_foreign(self.path), self.open() as arrays:
            for number in range(first_array, end_array):
                array = arrays[self.names[number]]
                if len(array.shape) == 1:
                    array = np.asarray(array[...])[None]
                first_row = self.starts[number]
                pieces.append(np.asarray(array[max(0, start - first_row) : stop - first_row]))

        # What does not fit the dtype becomes infinite, which is refused.
        with np.errstate(over="ignore"):
            return np.concatenate(pieces, dtype=self.dtype)


def read_arrays(path: Path, has_header: bool = True) -> ForeignArrays:
    """Every array in a file, by name.

    They are `values`, `offsets`, `ids` and extras, or one array per utterance id. An .npy file and
    a CSV give `values` (and `ids` from a CSV's column that is called id). `has_header` is False for
    a CSV whose first line is a row. Raises `WrongUse` for an unknown kind of file and `StoreError`
    for one that cannot be trusted.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise unknown("feature file format", suffix or path.name, READERS)

    is_folder = suffix == ".zarr"
    if not (path.is_dir() if is_folder else path.is_file()):
        kind = "folder" if is_folder else "plain file"
        fault = f"is not a {kind}" if path.exists() else "does not exist"
        raise WrongUse(f"{path}: {fault}; name a {kind} that is there")

    is_csv = suffix in (".csv", ".tsv")
    if not has_header and not is_csv:
        raise WrongUse(f"{path}: only a .csv or .tsv has a header; leave --no-header out")

    with explain_foreign(path):
        return read_csv(path, has_header) if is_csv else READERS[suffix](path)


@contextlib.contextmanager
def explain_foreign(path: Path) -> Iterator[None]:
    """Turn what a library raises on a bad file, nearly every kind of error, into one sentence."""
    try:
        yield
    except SerError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        fault = f"cannot be read as {path.suffix.lower()[1:]} ({reason})"
        raise StoreError(f"{path}: {fault}; save it again, or in another format") from error


def check_size(path: Path, size: int) -> None:
    """Raise `StoreError` for more bytes than this machine's memory holds."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        claim = f"claims {size / 1e9:.0f} GB of values, more than this machine's memory"
        raise StoreError(f"{path}: {claim}")


def leave_values_in_file(path: Path, open_file: Callable[[], OpenFile]) -> ForeignArrays:
    """All arrays of a file; the values, or the one of each utterance, stay there until indexed."""
    with open_file() as arrays:
        stay_there = {"values"} if "values" in arrays else set(arrays)

        result = ForeignArrays()
        for name, array in arrays.items():
            dtype = np.dtype(array.dtype)
            if name in stay_there and array.shape:
                shape = tuple(array.shape)
                result[name] = StoredArray(path, open_file, [name], [0], shape, dtype)
            else:
                check_size(path, math.prod(array.shape) * dtype.itemsize)
                result[name] = np.asarray(array[...])
        return result


def count_chunks(array: Any) -> int:
    """How many chunks the shape of an HDF5 dataset or Zarr array needs."""
    along_axes = [
        math.ceil(size / chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)
    ]
    return math.prod(along_axes)


def read_npy(path: Path) -> ForeignArrays:
    """An .npy file: its one array is `values`."""

    def open_file() -> OpenFile:
        # Mapping compares the header with the file's size.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        return contextlib.nullcontext({"values": values})

    return leave_values_in_file(path, open_file)


def read_npz(path: Path) -> ForeignArrays:
    """An .npz archive, read at once."""
    with np.load(path, allow_pickle=False) as archive:
        check_size(path, sum(member.file_size for member in archive.zip.infolist()))
        arrays = {name: archive[name] for name in archive.files}
        for name, times in Counter(archive.files).items():
            if times > 1 or not isinstance(arrays[name], np.ndarray):
                raise StoreError(f"{path}: holds {name!r}, which is not a single .npy member")
    return leave_values_in_file(path, lambda: contextlib.nullcontext(arrays))


def read_hdf5(path: Path) -> ForeignArrays:
    """An HDF5 file: datasets in its root, texts among them."""
    import h5py

    texts: ForeignArrays = {}
    with h5py.File(path, "r") as file:
        for name in file:
            fault = foreign_hdf5(file, name)
            if fault:
                raise StoreError(f"{path}: {fault}; copy its values into plain datasets first")

            dataset = file[name]
            # HDF5 would read zeros for values that were never written.
            if dataset.size and not _holds_all_values(dataset):
                claim = f"'{name}' claims {dataset.size} values that the file does not hold"
                raise StoreError(f"{path}: {claim}")

            check_size(path, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize)
            if h5py.check_string_dtype(dataset.dtype) is not None:
                check_size(path, dataset.nbytes)
                texts[name] = np.asarray(dataset.asstr()[()], str)

    return {**leave_values_in_file(path, partial(h5py.File, path, "r")), **texts}


def _holds_all_values(dataset: Any) -> bool:
    if dataset.chunks is None:
        return dataset.id.get_storage_size() >= dataset.nbytes
    return dataset.id.get_num_chunks() == count_chunks(dataset)


def index_of(path: Path) -> Path:
    """The JSON file beside a safetensors file that names its rows."""
    return path.with_name(path.name + ".json")


def read_safetensors(path: Path) -> ForeignArrays:
    """A safetensors file, with ids from the index beside it."""
    from safetensors import safe_open

    @contextlib.contextmanager
    def open_file() -> Iterator[Mapping[str, Any]]:
        with safe_open(path, "np") as file:
            names = file.keys()
            yield {name: TensorSlice(file.get_slice(name)) for name in names}

    arrays = leave_values_in_file(path, open_file)
    if index_of(path).exists() and "ids" not in arrays:
        index = json.loads(read_named(index_of(path)))
        arrays["ids"] = np.array(index["ids"], str)
    return arrays


class TensorSlice:
    """A tensor of an open safetensors file, with the attributes of an array."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.get_shape())
        self.dtype = tensor[0:0].dtype if self.shape else None

    def __getitem__(self, rows: Any) -> Any:
        return self.tensor[rows]


def read_csv(path: Path, has_header: bool = True) -> ForeignArrays:
    """A CSV or TSV of numbers, read at once; a column called id holds the ids.

    A file whose first line is numbers has no header, unless they are 0, 1, 2, …: those may be the
    numbers of its columns, as pandas writes them. Without `has_header` the first line is a row.
    """
    import pyarrow.csv as csv

    is_tsv = path.suffix.lower() == ".tsv"
    layout = csv.ParseOptions(delimiter="\t") if is_tsv else csv.ParseOptions()
    if is_tsv:
        # TSV knows no quotation.
        layout.quote_char = False
    nameless = csv.ReadOptions(autogenerate_column_names=True)
    kinds = csv.ConvertOptions(column_types={name: pa.string() for name in ID_COLUMNS})
    content = pa.py_buffer(read_named(path, LARGE))

    if has_header:
        table = csv.read_csv(pa.BufferReader(content), parse_options=layout, convert_options=kinds)
        names = table.column_names
        _check_header(path, names)
        has_header = not _are_numbers(names)
    if not has_header:
        table = csv.read_csv(pa.BufferReader(content), nameless, layout, kinds)

    arrays: ForeignArrays = {}
    for number, name in enumerate(table.column_names):
        if name in ID_COLUMNS:
            arrays["ids"] = np.array(table.column(number).to_pylist(), str)
            table = table.remove_column(number)
            break
    _check_first_column(path, table, has_header)

    for name, column in zip(table.column_names, table.columns, strict=True):
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        if column.null_count or not is_number:
            raise StoreError(f"{path}: column {name!r} holds something that is not a number")

    columns = [column.to_numpy().astype(np.float64) for column in table.columns]
    arrays["values"] = np.stack(columns, axis=1)
    return leave_values_in_file(path, lambda: contextlib.nullcontext(arrays))


def _check_header(path: Path, names: list[str]) -> None:
    """Raise `StoreError` for a header that may be an index, or the numbers of the columns."""
    for number, name in enumerate(names, 1):
        if not name.strip() or name.startswith("Unnamed:"):
            raise StoreError(
                f"{path}: column {number} has no name, and may be the index of a table; call it id "
                "if it holds the ids, or save the table without it (in pandas index=False)"
            )
    for start in (0, 1):
        if names == [str(start + number) for number in range(len(names))]:
            raise StoreError(
                f"{path}: its first line is {start}, {start + 1}, …: the numbers of the columns, "
                "or a row of features; remove the line, or say --no-header if it is a row"
            )


def _check_first_column(path: Path, table: pa.Table, has_header: bool) -> None:
    """Raise `StoreError` for a first column that counts the rows, and has no name but index."""
    if has_header and table.column_names[0].strip().lower() != "index":
        return

    values = table.column(0)
    if len(values) < 2 or not pa.types.is_integer(values.type) or values.null_count:
        return
    counted = values.to_numpy() - values[0].as_py()
    if values[0].as_py() in (0, 1) and np.array_equal(counted, np.arange(len(values))):
        raise StoreError(
            f"{path}: its first column counts the rows, and may be the index of a table; give the "
            "columns names, and call it id if it holds the ids, or save the table without it"
        )


def _are_numbers(texts: list[str]) -> bool:
    try:
        for text in texts:
            float(text)
    except ValueError:
        return False
    return True


def read_zarr(path: Path) -> ForeignArrays:
    """A Zarr 3 group with its arrays; ids are an attribute of the group."""
    import zarr

    for entry in path.rglob("*"):
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise StoreError(f"{path}: holds a symbolic link or a special file ({entry.name!r})")

    ids = zarr.open_group(path, mode="r", zarr_format=3).attrs.get("ids")

    stored: ForeignArrays = {}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        array = zarr.open_array(folder, mode="r", zarr_format=3)
        _check_zarr_array(folder, array)
        stored[folder.name] = array

    arrays = leave_values_in_file(path, lambda: contextlib.nullcontext(stored))
    if ids is not None:
        arrays["ids"] = np.array(ids, str)
    return arrays


def _check_zarr_array(folder: Path, array: Any) -> None:
    """Raise `StoreError` for a codec that is not allowed, or a chunk that is not there."""
    metadata: Any = array.metadata.to_dict()
    refused = sorted({codec["name"] for codec in metadata["codecs"]} - ZARR_CODECS)
    if refused:
        allowed = ", ".join(sorted(ZARR_CODECS))
        raise StoreError(f"{folder}: uses codec {refused}; allowed: {allowed}")

    check_size(folder, math.prod(array.chunks) * array.dtype.itemsize)

    present = sum(entry.is_file() for entry in (folder / "c").rglob("*"))
    needed = count_chunks(array)
    if present != needed:
        fault = f"has {present} of {needed} chunks; Zarr would fill the rest silently"
        raise StoreError(f"{folder}: {fault}")


# What the column of the ids is called.
ID_COLUMNS = ("id", "ID", "Id")

READERS: dict[str, Callable[[Path], ForeignArrays]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".safetensors": read_safetensors,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".zarr": read_zarr,
}
