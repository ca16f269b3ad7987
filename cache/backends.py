"""The two ways of laying arrays out in files: a Zarr group, or one HDF5 file. Both are read through their blocks."""

import io
import itertools
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .blocks import ArrayRecord, Content, PiecedArray, bytes_of
from .spec import canonical_json

Arrays = Mapping[str, PiecedArray]  # little-endian
Files = dict[str, Content]  # by path in the part's folder


class Backend(NamedTuple):
    """How a part's arrays become files.

    `encode` gives the files, each array's blocks in their order; `inspect` says what a plain Zarr or HDF5 reader of
    those files would see differently from the blocks, or None.
    """

    encode: Callable[[Arrays], Files]
    inspect: Callable[[Path, Mapping[str, ArrayRecord]], str | None]


ZARR = "data.zarr"
_SAYS = tomllib.loads(Path(__file__).with_name("zarr.toml").read_text(encoding="utf-8"))
_GROUP = canonical_json(_SAYS["group"])


def chunk_rows(rows: int) -> int:
    """Rows per chunk: at most 1024, spread evenly, so that the last chunk is hardly padded."""
    return math.ceil(rows / math.ceil(rows / 1024)) if rows else 1


def _fill_value(dtype: np.dtype[Any]) -> float | int:
    """What a missing chunk would read as: something that no feature contains."""
    return {"f": math.nan, "i": -1}[dtype.kind] if dtype.kind in "fi" else int(np.iinfo(dtype).max)


def _array_metadata(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The `zarr.json` of an array."""
    chunks = {"name": "regular", "configuration": {"chunk_shape": [chunk_rows(shape[0]), *shape[1:]]}}
    fill = "NaN" if dtype.kind == "f" else _fill_value(dtype)
    own = {"shape": shape, "data_type": dtype.name, "chunk_grid": chunks, "fill_value": fill}
    return canonical_json(_SAYS["array"] | own)


def _chunk_file(name: str, number: int, axes: int) -> str:
    return f"{ZARR}/{name}/c/{number}" + "/0" * (axes - 1)


def _encode_zarr(arrays: Arrays) -> Files:
    """A Zarr v3 group: uncompressed chunks of whole rows, each followed by its CRC-32C."""
    files: Files = {f"{ZARR}/zarr.json": [("", [_GROUP])]}
    for name, array in arrays.items():
        rows, *row = array.shape
        files[f"{ZARR}/{name}/zarr.json"] = [("", [_array_metadata(array.shape, array.dtype)])]
        each = chunk_rows(rows)
        for number, start in enumerate(range(0, rows, each)):
            stop = min(start + each, rows)
            blocks = [(name, views) for views in array.blocks(start, stop)]
            padding = np.full((each - (stop - start), *row), _fill_value(array.dtype), array.dtype)
            files[_chunk_file(name, number, 1 + len(row))] = [*blocks, ("", [bytes_of(padding)]), ("", None)]
    return files


def _inspect_zarr(folder: Path, arrays: Mapping[str, ArrayRecord]) -> str | None:
    metadata = {f"{ZARR}/zarr.json": _GROUP}
    for name, array in arrays.items():
        metadata[f"{ZARR}/{name}/zarr.json"] = _array_metadata(array.shape, np.dtype(array.dtype))
        each = chunk_rows(array.shape[0])
        row = 0
        for block in array.blocks:
            place = (_chunk_file(name, row // each, len(array.shape)), row % each * array.row_bytes)
            if (block.file, block.offset) != place:
                return f"array '{name}' lies elsewhere for Zarr than for its blocks"
            row += block.bytes // array.row_bytes
    for path, content in metadata.items():
        if (folder / path).read_bytes() != content:
            return f"{path} describes another array, codec or fill than format version 1 has"
    return None


HDF5 = "data.h5"
_FILTERS = {1, 2, 3}  # HDF5's own deflate, shuffle, fletcher32


def _encode_hdf5(arrays: Arrays) -> Files:
    """One file of contiguous, unfiltered datasets.

    It is made in memory, which takes as much again, because the HDF5 library reports a full disk late or not at all.
    """
    import h5py

    image, offsets, at = io.BytesIO(), dict[str, int](), 0
    content: Content = []
    with h5py.File(image, "w") as file:
        for name, array in arrays.items():
            dataset = file.create_dataset(name, array.shape, array.dtype)
            dataset[:1] = 0  # which gives all of it its place; what it holds comes from the array
            file.flush()
            offsets[name] = dataset.id.get_offset() or 0
    for name in sorted(offsets, key=offsets.__getitem__):
        content.append(("", [image.getbuffer()[at : offsets[name]]]))
        content += [(name, views) for views in arrays[name].blocks(0, arrays[name].shape[0])]
        at = offsets[name] + sum(piece.nbytes for piece in arrays[name].pieces)
    return {HDF5: [*content, ("", [image.getbuffer()[at:]])]}


def _inspect_hdf5(folder: Path, arrays: Mapping[str, ArrayRecord]) -> str | None:
    import h5py

    with h5py.File(folder / HDF5, "r") as file:
        if set(file) != set(arrays):
            return f"{HDF5} holds {sorted(file)} where {sorted(arrays)} are recorded"
        if fault := next(filter(None, (foreign_hdf5(file, name) for name in arrays)), None):
            return f"{HDF5}: {fault}"
        for name, array in arrays.items():
            dataset = file[name]
            places = itertools.accumulate((block.bytes for block in array.blocks), initial=dataset.id.get_offset())
            elsewhere = any(block.offset != place for block, place in zip(array.blocks, places, strict=False))
            if elsewhere or (dataset.shape, dataset.dtype, dataset.chunks) != (array.shape, array.dtype, None):
                return f"{HDF5}: '{name}' is another for HDF5 than for its blocks"
    return None


def foreign_hdf5(file: Any, name: str) -> str | None:
    """Why a dataset's bytes may lie outside its file or need foreign code, or None.

    `file` is an open `h5py.File` or group. Links are examined before they are followed.
    """
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        return f"'{name}' is a group, or a link to elsewhere"
    created = file[name].id.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
        return f"'{name}' keeps its values elsewhere"
    if {created.get_filter(i)[0] for i in range(created.get_nfilters())} - _FILTERS:
        return f"'{name}' uses a filter other than gzip, shuffle and fletcher32"
    return None


BACKENDS = {"zarr": Backend(_encode_zarr, _inspect_zarr), "hdf5": Backend(_encode_hdf5, _inspect_hdf5)}
