"""Arrays as one HDF5 file of contiguous, unfiltered datasets."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .blocks import Block, bytes_of, checksum, row_stretches
from .durable import Buffer

FILE = "data.h5"


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
