"""A part's arrays as a Zarr v3 group, `data.zarr`.

An array is one file, a shard: chunks of whole rows, uncompressed, each followed by its CRC-32C, and
behind them an index of where each lies. What each zarr.json says is fixed by FORMAT.md, and a part
that says anything else is refused. Parts that were written before there were shards have a file for
each chunk.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from ser.disk.read import plain_file, read_small
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

# A larger array has several.
SHARD_BYTES = 256 << 20

_CHECKSUM_BYTES = 4

# What the index says of a chunk that is not there: behind the last row of the array.
_NO_CHUNK = (1 << 64) - 1

_LITTLE_ENDIAN: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_CHECKED: list[dict[str, Any]] = [_LITTLE_ENDIAN, {"name": "crc32c"}]


@dataclass(frozen=True)
class _Shards:
    """How the rows of an array are spread over files."""

    rows: int
    rows_per_chunk: int
    chunks_per_shard: int
    chunk_bytes: int
    """Of a chunk's rows, without its checksum."""

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "_Shards":
        """Those of an array of this shape and dtype."""
        rows_per_chunk = chunk_rows(shape[0])
        chunks = max(1, math.ceil(shape[0] / rows_per_chunk))
        chunk_bytes = rows_per_chunk * dtype.itemsize * math.prod(shape[1:])
        in_a_shard = max(1, SHARD_BYTES // chunk_bytes)
        return cls(shape[0], rows_per_chunk, min(chunks, in_a_shard), chunk_bytes)

    @property
    def rows_per_shard(self) -> int:
        """Rows that a whole shard holds."""
        return self.rows_per_chunk * self.chunks_per_shard

    @property
    def count(self) -> int:
        """How many files there are."""
        return math.ceil(self.rows / self.rows_per_shard)

    def chunks_in(self, shard: int) -> list[tuple[int, int]]:
        """The first row of each chunk of a shard, and the row after its last one."""
        first = shard * self.rows_per_shard
        stop = min(self.rows, first + self.rows_per_shard)
        starts = range(first, stop, self.rows_per_chunk)
        return [(start, min(start + self.rows_per_chunk, stop)) for start in starts]

    def chunk_offset(self, number_in_shard: int) -> int:
        """Where a chunk begins in its file."""
        return number_in_shard * (self.chunk_bytes + _CHECKSUM_BYTES)

    def index(self, shard: int) -> bytes:
        """Where each chunk of a shard lies, and how long it is with its checksum."""
        entries = np.full((self.chunks_per_shard, 2), _NO_CHUNK, "<u8")
        for number in range(len(self.chunks_in(shard))):
            entries[number] = (self.chunk_offset(number), self.chunk_bytes + _CHECKSUM_BYTES)
        return entries.tobytes()


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


def _array_metadata(shape: tuple[int, ...], dtype: np.dtype[Any], sharded: bool) -> bytes:
    """The `zarr.json` of an array; unless `sharded`, with a file for each chunk."""
    fill_value: float | int | str = _fill_value(dtype)
    if dtype.kind == "f":
        fill_value = "NaN"

    shards = _Shards.of(shape, dtype)
    rows_per_file = shards.rows_per_chunk
    codecs = _CHECKED
    if sharded:
        rows_per_file = shards.rows_per_shard
        sharding = {
            "chunk_shape": [shards.rows_per_chunk, *shape[1:]],
            "codecs": _CHECKED,
            "index_codecs": _CHECKED,
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]

    return canonical_json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "attributes": {},
            "shape": shape,
            "data_type": dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [rows_per_file, *shape[1:]]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": codecs,
            "fill_value": fill_value,
        }
    )


def _metadata_file(name: str) -> str:
    return f"{_FOLDER}/{name}/zarr.json"


def _data_file(name: str, number: int, axes: int) -> str:
    """Shard (or chunk) `number` along the first axis; there is one along each other."""
    others = ["0"] * (axes - 1)
    return "/".join([_FOLDER, name, "c", str(number), *others])


def _encode(arrays: Arrays) -> FileContents:
    files: FileContents = {_GROUP_FILE: [OtherBytes(_GROUP)]}

    for name, array in arrays.items():
        metadata = _array_metadata(array.shape, array.dtype, sharded=True)
        files[_metadata_file(name)] = [OtherBytes(metadata)]

        shards = _Shards.of(array.shape, array.dtype)
        for number in range(shards.count):
            shard: Content = []

            for start, stop in shards.chunks_in(number):
                for views in array.blocks(start, stop):
                    shard.append(ArrayBlock(name, views))
                missing_rows = shards.rows_per_chunk - (stop - start)
                shard.append(padding(missing_rows, array, _fill_value(array.dtype)))
                shard.append(Checksum())

            shard.append(OtherBytes(shards.index(number)))
            shard.append(Checksum())
            files[_data_file(name, number, len(array.shape))] = shard

    return files


def _inspect(folder: Path, arrays: Mapping[str, ArrayRecord]) -> str | None:
    if read_small(folder / _GROUP_FILE) != _GROUP:
        return _other_metadata(_GROUP_FILE)

    for name, array in arrays.items():
        dtype = np.dtype(array.dtype)
        metadata = read_small(folder / _metadata_file(name))
        is_sharded = metadata == _array_metadata(array.shape, dtype, sharded=True)
        if not is_sharded and metadata != _array_metadata(array.shape, dtype, sharded=False):
            return _other_metadata(_metadata_file(name))

        if not _is_where_zarr_looks(name, array, is_sharded):
            return f"array '{name}' lies elsewhere for Zarr than for its blocks"

        fault = _inspect_indexes(folder, name, array) if is_sharded else None
        if fault:
            return fault

    return None


def _other_metadata(path: str) -> str:
    return f"{path} describes another array, codec or fill than format version 1 has"


def _is_where_zarr_looks(name: str, array: ArrayRecord, is_sharded: bool) -> bool:
    """Whether every block lies where a plain Zarr reader finds its rows."""
    shards = _Shards.of(array.shape, np.dtype(array.dtype))
    chunks_per_file = shards.chunks_per_shard if is_sharded else 1
    row = 0

    for block in array.blocks:
        chunk, row_in_chunk = divmod(row, shards.rows_per_chunk)
        number, chunk_in_file = divmod(chunk, chunks_per_file)

        file = _data_file(name, number, len(array.shape))
        offset = shards.chunk_offset(chunk_in_file) + row_in_chunk * array.row_bytes
        if (block.file, block.offset) != (file, offset):
            return False
        row += block.bytes // array.row_bytes

    return True


def _inspect_indexes(folder: Path, name: str, array: ArrayRecord) -> str | None:
    """Which shard's index, at its end, leads a plain Zarr reader elsewhere than to its chunks."""
    shards = _Shards.of(array.shape, np.dtype(array.dtype))

    for number in range(shards.count):
        file = _data_file(name, number, len(array.shape))
        index = shards.index(number)
        index += crc32c.crc32c(index).to_bytes(_CHECKSUM_BYTES, "little")

        with plain_file(folder / file) as shard:
            begins = shards.chunk_offset(len(shards.chunks_in(number)))
            shard.seek(begins)
            if shard.read() != index:
                return f"{file}: its index leads Zarr elsewhere than to its blocks"

    return None


ZARR = Backend(_encode, _inspect)
