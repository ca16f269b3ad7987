"""Arrays as one HDF5 file of contiguous, unfiltered datasets."""

import io
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .atomic_io import Buffer, write_file
from .blocks import ArrayRecord, Block, bytes_of, checksum, row_stretches
from .spec import canonical_json

FOLDER = "data.zarr"
_ROWS = 1024


def chunk_rows(rows: int) -> int:
    """Rows per chunk: at most 1024, spread evenly, so that the last chunk is hardly padded."""
    return math.ceil(rows / math.ceil(rows / _ROWS)) if rows else 1


def fill_value(dtype: np.dtype[Any]) -> float | int:
    """What a missing chunk would read as: something that no feature contains."""
    if dtype.kind == "f":
        return math.nan
    return -1 if dtype.kind == "i" else int(np.iinfo(dtype).max)


def array_metadata(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The `zarr.json` of an array."""
    fill = fill_value(dtype)
    return canonical_json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [chunk_rows(shape[0]), *shape[1:]]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN" if dtype.kind == "f" else fill,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "attributes": {},
        }
    )


def group_metadata(attributes: Mapping[str, Any] | None = None) -> bytes:
    """The `zarr.json` of the group."""
    return canonical_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})})


def chunk_file(name: str, number: int, axes: int) -> str:
    """Where a chunk lies, relative to the part's folder."""
    return "/".join([FOLDER, name, "c", str(number), *["0"] * (axes - 1)])


def encode_zarr(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, list[Buffer]], dict[str, list[Block]]]:
    """The files of a group (path → content) and the blocks of each array."""
    files: dict[str, list[Buffer]] = {f"{FOLDER}/zarr.json": [group_metadata()]}
    blocks: dict[str, list[Block]] = {}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        files[f"{FOLDER}/{name}/zarr.json"] = [array_metadata(array.shape, array.dtype)]
        blocks[name] = []
        rows, each = len(array), chunk_rows(len(array))
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        for number, start in enumerate(range(0, rows, each)):
            stop = min(start + each, rows)
            path = chunk_file(name, number, array.ndim)
            chunk = bytes_of(array[start:stop])
            padding = bytes_of(np.full((each - (stop - start), *array.shape[1:]), fill_value(array.dtype), array.dtype))
            files[path] = [chunk, padding, checksum(padding, checksum(chunk)).to_bytes(4, "little")]
            for first, last in row_stretches(start, stop, row_bytes):
                offset, end = (first - start) * row_bytes, (last - start) * row_bytes
                blocks[name].append(Block(path, offset, end - offset, checksum(chunk[offset:end])))
    return files, blocks


def write_group(path: Path, arrays: Mapping[str, npt.NDArray[Any]], attributes: Mapping[str, Any]) -> None:
    """Write a group of its own, outside any store."""
    files, _ = encode_zarr(arrays)
    files[f"{FOLDER}/zarr.json"] = [group_metadata(attributes)]
    for name, buffers in files.items():
        target = path / name.removeprefix(f"{FOLDER}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, buffers)


def inspect_zarr(folder: Path, arrays: Mapping[str, ArrayRecord]) -> str | None:
    """What a plain Zarr reader would see differently from the blocks, or None."""
    metadata = {f"{FOLDER}/zarr.json": group_metadata()}
    for name, array in arrays.items():
        metadata[f"{FOLDER}/{name}/zarr.json"] = array_metadata(array.shape, np.dtype(array.dtype))
        each = chunk_rows(array.shape[0])
        row = 0
        for block in array.blocks:
            place = (chunk_file(name, row // each, len(array.shape)), row % each * array.row_bytes)
            if (block.file, block.offset) != place:
                return f"array '{name}' lies elsewhere for Zarr than for its blocks"
            row += block.bytes // array.row_bytes
    for path, content in metadata.items():
        if (folder / path).read_bytes() != content:
            return f"{path} describes another array, codec or fill than format version 1 has"
    return None


FILE = "data.h5"
_FILTERS = {1, 2, 3}  # HDF5's own deflate, shuffle, fletcher32


def encode_hdf5(
    arrays: Mapping[str, npt.NDArray[Any]],
) -> tuple[dict[str, list[Buffer]], dict[str, list[Block]]]:
    """The file (path → content) and the blocks of each array.

    The file is made in memory, because the HDF5 library reports a full disk late or not at all.
    """
    import h5py

    image = io.BytesIO()
    offsets: dict[str, int] = {}
    with h5py.File(image, "w") as file:
        for name, array in arrays.items():
            dataset = file.create_dataset(name, data=array.astype(array.dtype.newbyteorder("<"), copy=False))
            file.flush()
            offsets[name] = dataset.id.get_offset() or 0
    blocks = {name: _blocks(array, offsets[name]) for name, array in arrays.items()}
    return {FILE: [image.getbuffer()]}, blocks


def _blocks(array: npt.NDArray[Any], offset: int) -> list[Block]:
    data = bytes_of(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")))
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    blocks = []
    for first, last in row_stretches(0, len(array), row_bytes):
        start, end = first * row_bytes, last * row_bytes
        blocks.append(Block(FILE, offset + start, end - start, checksum(data[start:end])))
    return blocks


def inspect_hdf5(folder: Path, arrays: Mapping[str, ArrayRecord]) -> str | None:
    """What a plain HDF5 reader would see differently from the blocks, or None."""
    import h5py

    with h5py.File(folder / FILE, "r") as file:
        if set(file) != set(arrays):
            return f"{FILE} holds {sorted(file)} where {sorted(arrays)} are recorded"
        for name in arrays:
            if fault := foreign_hdf5(file, name):
                return f"{FILE}: {fault}"
        for name, array in arrays.items():
            dataset = file[name]
            offset = array.blocks[0].offset if array.blocks else dataset.id.get_offset()
            if (dataset.shape, dataset.dtype, dataset.id.get_offset()) != (array.shape, array.dtype, offset):
                return f"{FILE}: '{name}' is another for HDF5 than for its blocks"
            if dataset.chunks or any(a.offset + a.bytes != b.offset for a, b in itertools.pairwise(array.blocks)):
                return f"{FILE}: '{name}' is not contiguous"
    return None


def foreign_hdf5(file: Any, name: str) -> str | None:
    """Why a dataset's bytes may lie outside its file or need foreign code, or None.

    `file` is an open `h5py.File` or group. Looks at links before it follows them.
    """
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return f"'{name}' is a link to elsewhere"
    if not isinstance(file[name], h5py.Dataset):
        return f"'{name}' is no dataset"
    created = file[name].id.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL:
        return f"'{name}' is a virtual dataset"
    if created.get_external_count():
        return f"'{name}' keeps its values in another file"
    filters = {created.get_filter(i)[0] for i in range(created.get_nfilters())}
    if filters - _FILTERS:
        return f"'{name}' uses a filter other than gzip, shuffle and fletcher32"
    return None
