"""Blocks: the pieces of 1 to 2 MB in which arrays lie on disk, are read and are checked.

One reader serves both backends. It reads whole blocks, since a checksum needs all of a block's
bytes: straight into the target if all its rows go there together, else into a scratch area.
"""

import bisect
import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal, NamedTuple, cast

import crc32c
import msgspec
import numpy as np
import numpy.typing as npt

from ser.disk.read import REPAIR, plain_file
from ser.disk.write import PIECE, Buffer
from ser.errors import CorruptStore

BLOCK_BYTES = 2 << 20

# Bytes of the target for each thread: scratch areas take at most half of that.
_BYTES_PER_THREAD = 2 * BLOCK_BYTES


def _count_cores() -> int:
    """The cores that this process may use: fewer than the machine has under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


MAX_THREADS = min(8, _count_cores())

# Once it is set, a thread's reading ends with `InterruptedError` at the next block.
stop_reading: ContextVar[Event | None] = ContextVar("stop_reading", default=None)

# No file or array is larger: what claims to be is refused before memory is taken for it.
ByteCount = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
Length = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]

ArrayDtype = Literal[
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whole rows of one array, one after the other in one file."""

    file: str
    """Path of the file, relative to the part's folder."""

    offset: ByteCount
    """Where it begins in the file."""

    bytes: ByteCount
    """How long it is."""

    crc32c: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    """The CRC-32C (Castagnoli) of its bytes."""


class ArrayRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array: `values` `[rows, dim]`, `offsets` int64 `[n + 1]`, or an extra `[rows]`."""

    dtype: ArrayDtype
    shape: tuple[Length, ...]
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        """Raise `ValueError` unless the blocks are whole rows, and all of them."""
        if not self.shape or not self.row_bytes:
            raise ValueError(f"an array of shape {list(self.shape)}")

        for block in self.blocks:
            if not block.bytes or block.bytes % self.row_bytes:
                raise ValueError("a block is empty or cuts a row")

        if sum(block.bytes for block in self.blocks) != self.shape[0] * self.row_bytes:
            raise ValueError("blocks do not add up to their array's shape")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])


class Stretch(NamedTuple):
    """Rows that follow one another, both in an array and in the target that they are read into."""

    start: int
    """The first row in the array."""

    stop: int
    """The row after the last in the array."""

    target: int
    """The first row in the target."""


class ArrayRead(NamedTuple):
    """What to read from one array of one part."""

    folder: Path
    array: ArrayRecord
    stretches: Sequence[Stretch]


class _BlockRead(NamedTuple):
    """What to read from one block."""

    path: str
    block: Block
    first_row: int
    """The array's row with which the block begins."""

    stretches: list[Stretch]


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return memoryview(cast(Buffer, array.reshape(-1).view(np.uint8)))


def read_stretches(reads: Sequence[ArrayRead], target: npt.NDArray[Any]) -> None:
    """Read rows of the same array of several parts into `target`, each block verified.

    `target` is C-contiguous `[rows, …]`. A block is read once, whatever stretches lie in it.
    Raises `CorruptStore` naming the file whose content is missing, short or altered.
    """
    target_bytes = target.view(np.uint8).reshape(len(target), target.strides[0])

    block_reads: list[_BlockRead] = []
    for read in reads:
        block_reads.extend(_cut_at_blocks(read))

    stop = stop_reading.get() or Event()
    threads = min(MAX_THREADS, len(block_reads), target.nbytes // _BYTES_PER_THREAD)

    if threads <= 1:
        _read_blocks(block_reads, target_bytes, stop)
        return

    def read_share(number: int) -> None:
        _read_blocks(block_reads[number::threads], target_bytes, stop)

    with ThreadPoolExecutor(threads) as pool:
        try:
            # A share per thread, not a future per block, which would cost as much as the checksums.
            list(pool.map(read_share, range(threads)))
        except BaseException:
            # Such as Ctrl-C: the pool's end waits for its threads.
            stop.set()
            raise


def _cut_at_blocks(read: ArrayRead) -> Iterator[_BlockRead]:
    """Cut stretches at the ends of blocks; each block comes once, in order."""
    row_bytes = read.array.row_bytes
    block_rows = [block.bytes // row_bytes for block in read.array.blocks]
    ends = list(itertools.accumulate(block_rows))
    by_block: dict[int, list[Stretch]] = {}

    for start, stop, target in read.stretches:
        while start < stop:
            number = bisect.bisect_right(ends, start)
            cut = min(stop, ends[number])
            by_block.setdefault(number, []).append(Stretch(start, cut, target))
            target += cut - start
            start = cut

    for number, stretches in sorted(by_block.items()):
        block = read.array.blocks[number]
        first_row = ends[number] - block_rows[number]
        yield _BlockRead(f"{read.folder}/{block.file}", block, first_row, stretches)


def _read_blocks(reads: Sequence[_BlockRead], target: npt.NDArray[np.uint8], stop: Event) -> None:
    """Read and check blocks, and put their rows into the target, `[rows, bytes of a row]`."""
    largest = max((read.block.bytes for read in reads), default=0)
    scratch = np.empty(largest, np.uint8)

    for path, block, first_row, stretches in reads:
        if stop.is_set():
            raise InterruptedError("these blocks are no longer wanted")

        rows = scratch[: block.bytes].reshape(-1, target.shape[1])
        first = stretches[0]
        whole = len(stretches) == 1 and first.stop - first.start == len(rows)
        if whole:
            rows = target[first.target : first.target + len(rows)]

        content = bytes_of(rows)
        with plain_file(path) as file:
            file.seek(block.offset)
            # It is short only at the end of the file.
            if file.readinto(content) < block.bytes:
                raise CorruptStore(f"{path}: cut short; {REPAIR}")
        check_block(path, block, content)

        if whole:
            continue
        # Arrays, not memory views: copying those holds the GIL.
        for start, end, to in stretches:
            target[to : to + end - start] = rows[start - first_row : end - first_row]


def check_block(path: str, block: Block, content: Buffer) -> None:
    """Raise `CorruptStore` unless these are the block's bytes."""
    if crc32c.crc32c(content) != block.crc32c:
        end = block.offset + block.bytes
        raise CorruptStore(f"{path}: altered (bytes {block.offset} to {end}); {REPAIR}")


class BlockToCheck(NamedTuple):
    """A block of a file that is checked, and whether its values must be finite."""

    block: Block
    finite: bool


def check_file(path: Path, blocks: Sequence[BlockToCheck], dtype: str) -> str:
    """The sha256 of a file, whose blocks are checked on the way. They are in the file's order.

    `dtype` is that of the values that must be finite. Raises `CorruptStore` for a block that is
    not what is recorded, or not finite.
    """
    digest = hashlib.sha256()

    with plain_file(path) as file:

        def read(size: int) -> bytes:
            content = file.read(size)
            digest.update(content)
            return content

        for block, finite in blocks:
            while (gap := block.offset - file.tell()) > 0:
                if not read(min(gap, PIECE)):
                    break
            content = read(block.bytes)
            check_block(str(path), block, content)
            if finite and not _is_finite(content, dtype):
                raise CorruptStore(f"{path}: holds values that are not finite; {REPAIR}")

        while read(PIECE):
            pass

    return digest.hexdigest()


def _is_finite(content: bytes, dtype: str) -> bool:
    if dtype == "float16":
        # An exponent of ones is NaN or infinite. numpy's own way takes 20 times as long.
        exponents = np.frombuffer(content, np.uint16) & 0x7C00
        return bool((exponents < 0x7C00).all())
    return bool(np.isfinite(np.frombuffer(content, dtype)).all())
