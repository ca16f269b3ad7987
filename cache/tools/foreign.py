"""Arrays from files that ser did not write: nothing is unpickled, no size is used unchecked.

Arrays that may be larger than memory stay in their file, as `StoredArray`, and are read by rows; an
.npz (a zip archive, checked as a whole) and a CSV are read at once.
"""

import bisect
import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ser.cache.hdf5_layout import foreign_hdf5
from ser.disk.memory import does_not_fit, is_out_of_memory
from ser.disk.read import TOO_LARGE, machine_memory, read_named
from ser.errors import SerError, StoreError, WrongUse, unknown

from .feature_table import read_feature_table

# The arrays of an open file by name, each of which is read when it is indexed.
OpenFile = AbstractContextManager[Mapping[str, Any]]

# Each a numpy array, or a `StoredArray`.
ForeignArrays = dict[str, Any]

# Blosc, zstd and gzip unpack at most the chunk's shape; sharding is not here, as it hides missing
# chunks.
ZARR_CODECS = {"bytes", "crc32c", "zstd", "gzip", "blosc"}

# What an array is called that is not named by an utterance's id.
ARRAYS = {"values", "offsets", "ids", "about"}

# Of the groups of an HDF5 file, within each other: the folders of an audio path.
MAX_DEPTH = 20


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
        if is_out_of_memory(error):
            raise StoreError(does_not_fit(path)) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        fault = f"cannot be read as {path.suffix.lower()[1:]} ({reason})"
        raise StoreError(f"{path}: {fault}; save it again, or in another format") from error


def check_size(path: Path, size: int) -> None:
    """Raise `StoreError` for more bytes than this machine's memory holds."""
    memory = machine_memory()
    if memory is not None and size > memory:
        raise StoreError(f"{path}: claims {size / 1e9:.0f} GB of values, {TOO_LARGE}")


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
    """An HDF5 file: its datasets, texts among them.

    HDF5 makes a group of what stands before a slash in a name: the dataset `wav/a` of a group `wav`
    is the utterance `wav/a`.
    """
    import h5py

    texts: ForeignArrays = {}
    names = []
    with h5py.File(path, "r") as file:
        for name in _dataset_names(path, file):
            names.append(name)
            dataset = file[name]
            # HDF5 would read zeros for values that were never written.
            if dataset.size and not _holds_all_values(dataset):
                claim = f"'{name}' claims {dataset.size} values that the file does not hold"
                raise StoreError(f"{path}: {claim}")

            check_size(path, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize)
            if h5py.check_string_dtype(dataset.dtype) is not None:
                check_size(path, dataset.nbytes)
                texts[name] = np.asarray(dataset.asstr()[()], str)

    @contextlib.contextmanager
    def open_file() -> Iterator[Mapping[str, Any]]:
        with h5py.File(path, "r") as file:
            yield {name: file[name] for name in names}

    return {**leave_values_in_file(path, open_file), **texts}


def _dataset_names(path: Path, group: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """The names of all datasets of an HDF5 group, with those of the groups that they are in.

    Raises `StoreError` for one that lies elsewhere or needs foreign code.
    """
    import h5py

    for name in group:
        # Links are examined before they are followed: a group may hold itself.
        link = group.get(name, getlink=True)
        is_group = isinstance(link, h5py.HardLink) and isinstance(group[name], h5py.Group)
        is_folder = is_group and name not in ARRAYS and len(group[name]) > 0
        if is_folder and depth < MAX_DEPTH:
            yield from _dataset_names(path, group[name], f"{prefix}{name}/", depth + 1)
            continue

        fault = foreign_hdf5(group, name)
        if fault:
            raise StoreError(f"{path}: {fault}; copy its values into plain datasets first")
        yield f"{prefix}{name}"


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
            tensors: dict[str, Any] = {}
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                if tensor.get_dtype() == "BF16":
                    tensors[name] = Bfloat16Slice(path, name)
                else:
                    tensors[name] = TensorSlice(tensor)
            yield tensors

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


class Bfloat16Slice:
    """A tensor of bfloat16 of a safetensors file, as an array of float32: numpy has no such type.

    A bfloat16 is the first half of a float32. The file has been opened, so its header is right.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, path: Path, name: str) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(length))[name]
        self.shape = tuple(entry["shape"])
        start = 8 + length + entry["data_offsets"][0]
        self.halves = np.memmap(path, "<u2", mode="r", offset=start, shape=self.shape)

    def __getitem__(self, rows: Any) -> Any:
        return (self.halves[rows].astype(np.uint32) << 16).view(np.float32)


def read_csv(path: Path, has_header: bool = True) -> ForeignArrays:
    """A CSV or TSV of numbers, read at once: see `read_feature_table`."""
    table = read_feature_table(path, has_header)
    arrays: ForeignArrays = {"values": table.values}
    if table.ids is not None:
        arrays["paths" if table.ids_are_paths else "ids"] = np.array(table.ids, str)
    if table.places is not None and table.ids_are_paths:
        # NaN: the end of the file.
        arrays["places"] = np.array(table.places, np.float64)
    return leave_values_in_file(path, lambda: contextlib.nullcontext(arrays))


def read_zarr(path: Path) -> ForeignArrays:
    """A Zarr 3 group with its arrays; ids are an attribute of the group."""
    import zarr

    for entry in path.rglob("*"):
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise StoreError(f"{path}: holds a symbolic link or a special file ({entry.name!r})")

    if not (path / "zarr.json").exists() and (path / ".zgroup").exists():
        raise StoreError(
            f"{path}: is in the format Zarr 2; save it in Zarr 3 (zarr_format=3), or as .npz or .h5"
        )
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
        remedy = 'if they are all zeros, save them with config={"write_empty_chunks": True}'
        raise StoreError(f"{folder}: {fault}; {remedy}")


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
