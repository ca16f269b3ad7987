"""Arrays as one HDF5 file of contiguous, unfiltered datasets."""

import io
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .blocks import Block, bytes_of, checksum, row_stretches
from .durable import Buffer
from .layout import ArrayRecord

FILE = "data.h5"
_FILTERS = {1, 2, 3}  # HDF5's own deflate, shuffle, fletcher32


def encode(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, list[Buffer]], dict[str, list[Block]]]:
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


def inspect(folder: Path, arrays: Mapping[str, ArrayRecord]) -> str | None:
    """What a plain HDF5 reader would see differently from the blocks, or None."""
    import h5py

    with h5py.File(folder / FILE, "r") as file:
        if set(file) != set(arrays):
            return f"{FILE} holds {sorted(file)} where {sorted(arrays)} are recorded"
        for name in arrays:
            if fault := foreign(file, name):
                return f"{FILE}: {fault}"
        for name, array in arrays.items():
            dataset = file[name]
            offset = array.blocks[0].offset if array.blocks else dataset.id.get_offset()
            if (dataset.shape, dataset.dtype, dataset.id.get_offset()) != (array.shape, array.dtype, offset):
                return f"{FILE}: '{name}' is another for HDF5 than for its blocks"
            if dataset.chunks or any(a.offset + a.bytes != b.offset for a, b in itertools.pairwise(array.blocks)):
                return f"{FILE}: '{name}' is not contiguous"
    return None


def foreign(file: Any, name: str) -> str | None:
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
