"""What a backend lays out: arrays in pieces, cut into blocks, and the files that hold them."""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import crc32c
import numpy as np
import numpy.typing as npt

from ser.disk.write import PIECE, Buffer

from .blocks import BLOCK_BYTES, ArrayRecord, Block, bytes_of


class PiecedArray:
    """An array `[rows, …]` whose rows lie in several places.

    Its `pieces` are C-contiguous and of one dtype, little-endian; none is copied.
    """

    def __init__(self, pieces: Sequence[npt.NDArray[Any]]) -> None:
        lengths = [len(piece) for piece in pieces]
        self.pieces = pieces
        self.dtype = pieces[0].dtype
        self.shape = (sum(lengths), *pieces[0].shape[1:])
        self._ends = list(itertools.accumulate(lengths))

    def blocks(self, start: int, stop: int) -> Iterator[list[memoryview]]:
        """The rows from `start` to `stop` in equal blocks, without a copy.

        A block has at most 2 MB, and at least one row.
        """
        rows = stop - start
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        max_rows = max(1, BLOCK_BYTES // row_bytes)
        count = max(1, math.ceil(rows / max_rows))
        block_rows = max(1, math.ceil(rows / count))

        for first in range(start, stop, block_rows):
            yield self._views(first, min(first + block_rows, stop))

    def _views(self, first: int, last: int) -> list[memoryview]:
        """The bytes of rows `first` to `last`, a view of each piece that holds some of them."""
        views = []
        first_piece = bisect.bisect_right(self._ends, first)
        last_piece = bisect.bisect_left(self._ends, last)

        for number in range(first_piece, last_piece + 1):
            piece = self.pieces[number]
            begins = self._ends[number] - len(piece)
            views.append(bytes_of(piece[max(0, first - begins) : last - begins]))

        return views


@dataclass(frozen=True)
class ArrayBlock:
    """A section of a file: one block of the array of this name."""

    array: str
    buffers: Sequence[memoryview]


@dataclass(frozen=True)
class OtherBytes:
    """A section of a file that is of no array: metadata or padding."""

    content: Buffer


@dataclass(frozen=True)
class Checksum:
    """A section of a file: the CRC-32C of all between the last one, or the file's begin, and it.

    Four bytes, little-endian.
    """


# The sections of a file, in order.
Content = list[ArrayBlock | OtherBytes | Checksum]

# Both by name: a part's arrays, and its files by their paths in its folder.
Arrays = Mapping[str, PiecedArray]
FileContents = dict[str, Content]


class Backend(NamedTuple):
    """How a part's arrays become files."""

    encode: Callable[[Arrays], FileContents]
    """The files, each array's blocks in order."""

    inspect: Callable[[Path, Mapping[str, ArrayRecord]], str | None]
    """What a plain Zarr or HDF5 reader of a part's files would see otherwise than the recorded
    blocks have it, or None."""


def content_bytes(content: Content) -> int:
    """How many bytes a file has."""
    size = 0
    for section in content:
        for buffer in _buffers(section, 0):
            size += memoryview(buffer).nbytes
    return size


def file_pieces(
    path: str, content: Content, blocks: Mapping[str, list[Block]]
) -> Iterator[memoryview]:
    """The bytes of a file, a piece at a time, so that all who read one find it in the cache.

    Each block is added to those of its array, `blocks[array]`, when its bytes are done.
    """
    size = 0
    checksum_of_sections = 0

    for section in content:
        start = size
        checksum = 0

        for buffer in _buffers(section, checksum_of_sections):
            for first in range(0, len(buffer), PIECE):
                piece = memoryview(buffer)[first : first + PIECE]
                size += len(piece)
                checksum = crc32c.crc32c(piece, checksum)
                checksum_of_sections = crc32c.crc32c(piece, checksum_of_sections)
                yield piece

        if isinstance(section, Checksum):
            checksum_of_sections = 0
        if isinstance(section, ArrayBlock):
            blocks[section.array].append(Block(path, start, size - start, checksum))


def _buffers(
    section: ArrayBlock | OtherBytes | Checksum, checksum_of_sections: int
) -> Sequence[Buffer]:
    if isinstance(section, ArrayBlock):
        return section.buffers
    if isinstance(section, OtherBytes):
        return [section.content]
    return [checksum_of_sections.to_bytes(4, "little")]


def padding(rows: int, array: PiecedArray, value: float | int) -> OtherBytes:
    """Rows of one value, which are no rows of the array."""
    return OtherBytes(bytes_of(np.full((rows, *array.shape[1:]), value, array.dtype)))
