"""A part's arrays as a Zarr v3 group, `data.zarr`.

Chunks of whole rows, uncompressed, each followed by its CRC-32C; what each zarr.json says is fixed
by FORMAT.md, and a part that says anything else is refused.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ser.disk.records import canonical_json

from .blocks import ArrayRecord
from .layout import (
    ArrayBlock,
    Arrays,
    Backend,
    Checksum,
    Content,
    FileContents,
    OtherBytes,
    padding,
)

_FOLDER = "data.zarr"
_GROUP_FILE = f"{_FOLDER}/zarr.json"
_GROUP = canonical_json({"zarr_format": 3, "node_type": "group", "attributes": {}})


def chunk_rows(rows: int) -> int:
    """Rows per chunk: at most 1024, spread evenly so that the last chunk has little padding."""
    if rows == 0:
        return 1
    return math.ceil(rows / math.ceil(rows / 1024))


def _fill_value(dtype: np.dtype[Any]) -> float | int:
    """The value of a missing chunk: one that no feature contains."""
    if dtype.kind == "f":
        return math.nan
    if dtype.kind == "i":
        return -1
    return int(np.iinfo(dtype).max)


def _array_metadata(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The `zarr.json` of an array."""
    fill_value: float | int | str = _fill_value(dtype)
    if dtype.kind == "f":
        fill_value = "NaN"

    return canonical_json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "attributes": {},
            "shape": shape,
            "data_type": dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [chunk_rows(shape[0]), *shape[1:]]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "fill_value": fill_value,
        }
    )


def _metadata_file(name: str) -> str:
    return f"{_FOLDER}/{name}/zarr.json"


def _chunk_file(name: str, number: int, axes: int) -> str:
    """Chunk `number` along the first axis; there is one along each other."""
    others = ["0"] * (axes - 1)
    return "/".join([_FOLDER, name, "c", str(number), *others])


def _encode(arrays: Arrays) -> FileContents:
    files: FileContents = {_GROUP_FILE: [OtherBytes(_GROUP)]}

    for name, array in arrays.items():
        metadata = _array_metadata(array.shape, array.dtype)
        files[_metadata_file(name)] = [OtherBytes(metadata)]

        rows = array.shape[0]
        rows_per_chunk = chunk_rows(rows)

        for number, start in enumerate(range(0, rows, rows_per_chunk)):
            stop = min(start + rows_per_chunk, rows)
            chunk: Content = [ArrayBlock(name, views) for views in array.blocks(start, stop)]
            missing_rows = rows_per_chunk - (stop - start)
            chunk.append(padding(missing_rows, array, _fill_value(array.dtype)))
            chunk.append(Checksum())
            files[_chunk_file(name, number, len(array.shape))] = chunk

    return files


def _inspect(folder: Path, arrays: Mapping[str, ArrayRecord]) -> str | None:
    for name, array in arrays.items():
        rows_per_chunk = chunk_rows(array.shape[0])
        row = 0
        for block in array.blocks:
            file = _chunk_file(name, row // rows_per_chunk, len(array.shape))
            offset = row % rows_per_chunk * array.row_bytes
            if (block.file, block.offset) != (file, offset):
                return f"array '{name}' lies elsewhere for Zarr than for its blocks"
            row += block.bytes // array.row_bytes

    metadata = {_GROUP_FILE: _GROUP}
    for name, array in arrays.items():
        metadata[_metadata_file(name)] = _array_metadata(array.shape, np.dtype(array.dtype))

    for path, content in metadata.items():
        if (folder / path).read_bytes() != content:
            return f"{path} describes another array, codec or fill than format version 1 has"

    return None


ZARR = Backend(_encode, _inspect)
