"""Blocks: the stretches of bytes, 1 to 2 MB each, that arrays are read and checked in.

One reader serves every backend. It reads whole blocks, because the checksum needs all of their bytes: straight to where
the rows belong if they belong there together, else to a scratch area from which they are copied.
"""

import bisect
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal, cast

import crc32c
import msgspec
import numpy as np
import numpy.typing as npt

from ser.errors import CorruptStore

from .atomic_io import PIECE, REPAIR, Buffer, plain_file

BLOCK_BYTES = 2 << 20
_THREADED = 8 << 20  # bytes from which threads pay
# What ends the reading of a thread, with `InterruptedError`, within a block.
unwanted: ContextVar[Event | None] = ContextVar("unwanted", default=None)

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
ArrayDtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"
]


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whole rows of one array, one after the other in one file."""

    file: str  # relative to the part's folder
    offset: Count
    bytes: Count
    crc32c: Count


class ArrayRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array: `values` `[rows, dim]`, `offsets` int64 `[n + 1]`, or an extra `[rows]`."""

    dtype: ArrayDtype
    shape: tuple[Count, ...]
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        """Raise `ValueError` unless the blocks are whole rows, and all of them."""
        if not self.shape or not self.row_bytes:
            raise ValueError(f"an array of shape {list(self.shape)}")
        if any(not block.bytes or block.bytes % self.row_bytes for block in self.blocks):
            raise ValueError("a block is empty or cuts a row")
        if sum(block.bytes for block in self.blocks) != self.shape[0] * self.row_bytes:
            raise ValueError("blocks do not add up to their array's shape")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return memoryview(cast(Buffer, array.reshape(-1).view(np.uint8)))


class PiecedArray:
    """An array `[rows, …]` whose rows lie in several places: C-contiguous `pieces` of one dtype, none copied."""

    def __init__(self, pieces: Sequence[npt.NDArray[Any]]) -> None:
        self.pieces, self.dtype = pieces, pieces[0].dtype
        self.shape = (sum(map(len, pieces)), *pieces[0].shape[1:])
        self._ends = list(itertools.accumulate(map(len, pieces)))

    def blocks(self, start: int, stop: int) -> Iterator[list[memoryview]]:
        """Equal blocks of at most 2 MB (at least one row each) of the rows from `start` to `stop`, without a copy."""
        most = max(1, BLOCK_BYTES // (self.dtype.itemsize * math.prod(self.shape[1:])))
        each = math.ceil((stop - start) / max(1, math.ceil((stop - start) / most)))
        for first in range(start, stop, each or 1):
            last, views = min(first + each, stop), list[memoryview]()
            for number in range(bisect.bisect_right(self._ends, first), bisect.bisect_left(self._ends, last) + 1):
                begins = self._ends[number] - len(self.pieces[number])
                views.append(bytes_of(self.pieces[number][max(0, first - begins) : last - begins]))
            yield views


# What is in a file, one after the other: a block of the array that is named, or other bytes (""). None stands for the
# CRC-32C of all before it, four bytes, little-endian.
Content = list[tuple[str, Sequence[Buffer] | None]]


def contents(path: str, content: Content, blocks: Mapping[str, list[Block]]) -> Iterator[Buffer]:
    """The bytes of a file, a piece at a time. Its blocks are noted, by array, when they have gone by."""
    size = whole = 0
    for name, views in content:
        start, checksum = size, 0
        for view in [whole.to_bytes(4, "little")] if views is None else views:
            for at in range(0, len(view), PIECE):
                piece = memoryview(view)[at : at + PIECE]
                size += len(piece)
                checksum, whole = crc32c.crc32c(piece, checksum), crc32c.crc32c(piece, whole)
                yield piece
        if name:
            blocks[name].append(Block(path, start, size - start, checksum))


def usable_cores() -> int:
    """CPU cores that the system lets this process use: fewer than the machine has under taskset, where that exists."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Stretch = tuple[int, int, int]  # first row in the array, row after the last, first row in the target
BlockRead = tuple[str, Block, int, list[Stretch]]  # file, a block in it, the row that it starts with, what is within it


def read_stretches(jobs: Sequence[tuple[Path, ArrayRecord, Sequence[Stretch]]], target: npt.NDArray[Any]) -> None:
    """Read stretches of rows from the same array of several parts (folders) into `target`, each block verified.

    `target` is C-contiguous `[rows, …]`. A block is read once, whatever stretches lie in it.
    Raises `CorruptStore` naming the file whose content is missing, short or altered.
    """
    rows = target.view(np.uint8).reshape(len(target), target.strides[0])
    reads = [read for folder, array, stretches in jobs for read in _by_block(folder, array, stretches)]
    total, ended = sum(block.bytes for _, block, _, _ in reads), unwanted.get() or Event()
    threads = min(8, usable_cores(), len(reads)) if total >= _THREADED else 1
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            # A share per thread, not a future per block, which would cost as much as the checksums.
            try:
                list(pool.map(lambda number: _read_blocks(reads[number::threads], rows, ended), range(threads)))
            except BaseException:  # such as Ctrl-C: the pool waits for its threads
                ended.set()
                raise
    else:
        _read_blocks(reads, rows, ended)


def _by_block(folder: Path, array: ArrayRecord, stretches: Iterable[Stretch]) -> Iterator[BlockRead]:
    """Cut stretches where blocks end, and give each block once, in their order."""
    ends = list(itertools.accumulate(block.bytes // array.row_bytes for block in array.blocks))
    pieces: dict[int, list[Stretch]] = {}
    for start, stop, to in stretches:
        while start < stop:
            number = bisect.bisect_right(ends, start)
            cut = min(stop, ends[number])
            pieces.setdefault(number, []).append((start, cut, to))
            start, to = cut, to + cut - start
    for number, wanted in sorted(pieces.items()):
        block = array.blocks[number]
        yield f"{folder}/{block.file}", block, ends[number] - block.bytes // array.row_bytes, wanted


def _read_blocks(reads: Sequence[BlockRead], target: npt.NDArray[np.uint8], ended: Event) -> None:
    scratch = np.empty(max((block.bytes for _, block, _, _ in reads), default=0), np.uint8)
    for path, block, first, wanted in reads:
        if ended.is_set():
            raise InterruptedError("nobody waits for these blocks any more")
        (start, stop, to), *others = wanted
        rows = scratch[: block.bytes].reshape(-1, target.shape[1])
        together = not others and stop - start == len(rows)
        content = bytes_of(target[to : to + len(rows)] if together else rows)
        with plain_file(path) as file:
            file.seek(block.offset)
            if file.readinto(content) < block.bytes:  # it reads as often as it takes
                raise CorruptStore(f"{path}: cut short; {REPAIR}")
        check_block(path, block, content)
        # Arrays, not memory views: while those are copied, no other thread runs.
        for start, stop, to in () if together else wanted:
            target[to : to + stop - start] = rows[start - first : stop - first]


def check_block(path: str, block: Block, content: Buffer) -> None:
    """Raise `CorruptStore` unless these are the block's bytes."""
    if crc32c.crc32c(content) != block.crc32c:
        raise CorruptStore(f"{path}: altered (bytes {block.offset} to {block.offset + block.bytes}); {REPAIR}")
