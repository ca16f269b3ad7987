"""Blocks: the stretches of bytes, 1 to 2 MB each, that arrays are read and checked in.

One reader serves every backend. It reads straight into where the rows belong and runs the checksum over them there;
a byte that nobody asked for goes to a scratch area, because the checksum needs it too.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import crc32c
import numpy as np
import numpy.typing as npt

from ser.errors import CorruptStore, StoreError

from .atomic_io import Buffer
from .spec import REPAIR

BLOCK_BYTES = 2 << 20
_MANY = 256  # pieces of a block above which one gather is cheaper than as many small reads
_THREADED = 8 << 20  # bytes from which threads pay


@dataclass(frozen=True)
class Block:
    """Whole rows of one array, one after the other in one file."""

    file: str  # relative to the part's folder
    offset: int
    bytes: int
    crc32c: int


@dataclass(frozen=True)
class ArrayRecord:
    """One array: `values` `[rows, dim]`, `offsets` int64 `[n + 1]`, or an extra `[rows]`."""

    dtype: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])


def row_stretches(start: int, stop: int, row_bytes: int) -> list[tuple[int, int]]:
    """Cut rows `start:stop` into equal stretches of at most 2 MB (at least one row each)."""
    rows = stop - start
    if rows <= 0:
        return []
    most = max(1, BLOCK_BYTES // max(1, row_bytes))
    each = -(-rows // -(-rows // most))
    return [(first, min(first + each, stop)) for first in range(start, stop, each)]


def checksum(data: Any, before: int = 0) -> int:
    """CRC-32C (Castagnoli) of a buffer, continued from that of what came before it."""
    return int(crc32c.crc32c(data, before))


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return memoryview(cast(Buffer, array.reshape(-1).view(np.uint8)))


@dataclass(frozen=True)
class Source:
    """One array of one part, as the reader sees it."""

    folder: str
    rows: int
    row_bytes: int
    blocks: Sequence[Block]

    def first_rows(self) -> npt.NDArray[np.int64]:
        """The row that each block starts with, and the number of rows at the end."""
        return np.cumsum([0, *(block.bytes // self.row_bytes for block in self.blocks)])


# [k, 3]: first row in the source, row after the last, first row in the target
Stretches = npt.NDArray[np.int64]
# A block, the row that it starts with, and the stretches within it
Task = tuple[Source, Block, int, list[list[int]]]


def read_stretches(jobs: Sequence[tuple[Source, Stretches]], target: npt.NDArray[Any]) -> None:
    """Read stretches of rows from several sources into `target`, each block's checksum verified.

    `target` is C-contiguous `[rows, …]`. The stretches of a source are sorted, not empty, and do not overlap.
    Raises `CorruptStore` naming the file whose content is missing, short or altered.
    """
    view = bytes_of(target)
    tasks = [task for source, stretches in jobs for task in _by_block(source, stretches)]
    total = sum(block.bytes for _, block, _, _ in tasks)
    threads = min(8, len(os.sched_getaffinity(0)), len(tasks)) if total >= _THREADED else 1
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            # A share per thread, not a future per block, which would cost as much as the checksums.
            list(pool.map(lambda number: _read_blocks(tasks[number::threads], view), range(threads)))
    else:
        _read_blocks(tasks, view)


def read_rows(source: Source, target: npt.NDArray[Any]) -> None:
    """Read a whole array."""
    read_stretches([(source, np.array([[0, source.rows, 0]][: source.rows]).reshape(-1, 3))], target)


def check_blocks(source: Source) -> None:
    """Read an array for its checksums alone. Raises `CorruptStore`."""
    scratch = memoryview(bytearray(max((block.bytes for block in source.blocks), default=0)))
    for block in source.blocks:
        _read_exactly(f"{source.folder}/{block.file}", block, [scratch[: block.bytes]])


def _by_block(source: Source, stretches: Stretches) -> list[Task]:
    """Cut stretches where blocks end."""
    if not len(stretches):
        return []
    firsts = source.first_rows()
    starts, stops, to = stretches.T
    block = np.searchsorted(firsts, starts, side="right") - 1
    count = np.searchsorted(firsts, stops - 1, side="right") - block
    whole = np.repeat(np.arange(len(starts)), count)
    block = block[whole] + np.arange(len(whole)) - np.repeat(np.cumsum(count) - count, count)
    start = np.maximum(starts[whole], firsts[block])
    stop = np.minimum(stops[whole], firsts[block + 1])
    pieces = np.stack([start, stop, to[whole] + start - starts[whole]], axis=1)
    cuts = np.flatnonzero(np.diff(block)) + 1
    numbers = block[np.concatenate([[0], cuts])].tolist()
    return [
        (source, source.blocks[number], int(firsts[number]), group.tolist())
        for number, group in zip(numbers, np.split(pieces, cuts), strict=True)
    ]


def _read_blocks(tasks: Sequence[Task], target: memoryview) -> None:
    for source, block, first, wanted in tasks:
        _read_block(source, block, first, wanted, target)


def _read_block(source: Source, block: Block, first: int, wanted: list[list[int]], target: memoryview) -> None:
    path = f"{source.folder}/{block.file}"
    size = source.row_bytes
    if len(wanted) > _MANY:
        scratch = memoryview(bytearray(block.bytes))
        _read_exactly(path, block, [scratch])
        for start, stop, to in wanted:
            target[to * size : (to + stop - start) * size] = scratch[(start - first) * size : (stop - first) * size]
        return
    pieces = []
    at = first
    for start, stop, to in wanted:
        if start > at:
            pieces.append(memoryview(bytearray((start - at) * size)))
        pieces.append(target[to * size : (to + stop - start) * size])
        at = stop
    after = first + block.bytes // size
    if after > at:
        pieces.append(memoryview(bytearray((after - at) * size)))
    _read_exactly(path, block, pieces)


def _read_exactly(path: str, block: Block, pieces: list[memoryview]) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CorruptStore(f"{path}: is missing; {REPAIR}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened ({error.strerror})") from error
    try:
        _fill(descriptor, block.offset, pieces)
    except EOFError:
        raise CorruptStore(f"{path}: cut short; {REPAIR}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); check the disk") from error
    finally:
        os.close(descriptor)
    _check(path, block, pieces)


def _check(path: str, block: Block, pieces: list[memoryview]) -> None:
    value = 0
    for piece in pieces:
        value = checksum(piece, value)
    if value != block.crc32c:
        raise CorruptStore(f"{path}: altered (bytes {block.offset} to {block.offset + block.bytes}); {REPAIR}")


def _fill(descriptor: int, offset: int, pieces: list[memoryview]) -> None:
    left = list(pieces)
    while left:
        read = os.preadv(descriptor, left, offset)
        if not read:
            raise EOFError
        offset += read
        while left and read >= len(left[0]):
            read -= len(left.pop(0))
        if left and read:
            left[0] = left[0][read:]
