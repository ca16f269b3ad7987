"""Blocks: the pieces of 1 to 2 MB in which arrays lie on disk, are read and are checked.

One reader serves both backends. It reads whole blocks, since a checksum needs all of a block's
bytes, and neighbours of one file at once: straight into the target if all their rows go there in
order, else into a scratch area.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
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

# Neighbours in a file are read at once, up to so many bytes: what is checked and copied then is
# still in the processor's cache.
_READ_BYTES = 2 * BLOCK_BYTES

# So many bytes between two blocks are read with them: a checksum, an array's header.
_GAP = 4096

# Bytes of the target for each thread: scratch areas take at most half of that.
_BYTES_PER_THREAD = 2 * _READ_BYTES

# Bytes of a row: copying such ones takes less time than naming each.
_SMALL_ROW = 4096

# Of memory, in bytes.
_PAGE = 4096

# Where arrays begin in a page: far behind its begin, where blocks and rows mostly begin in theirs,
# but as far from a line of the processor's cache as numpy's own arrays, so that copies between the
# two are as fast as numpy's.
_PLACE_IN_PAGE = 400


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


class Stretches(NamedTuple):
    """Rows that follow one another, both in an array and in the target that they are read into.

    All three are int64 `[k]`.
    """

    starts: npt.NDArray[np.int64]
    """The first row of each in the array."""

    stops: npt.NDArray[np.int64]
    """The row after the last of each in the array."""

    targets: npt.NDArray[np.int64]
    """The first row of each in the target."""


class ArrayRead(NamedTuple):
    """What to read from one array of one part."""

    folder: Path
    array: ArrayRecord
    stretches: Stretches


class _BlockRead(NamedTuple):
    """What to read from one block."""

    path: str
    block: Block
    first_row: int
    """The array's row with which the block begins."""

    stretches: Stretches

    @property
    def end(self) -> int:
        """Where the block ends in its file."""
        return self.block.offset + self.block.bytes

    @property
    def rows(self) -> int:
        """How many rows are wanted of the block."""
        return int((self.stretches.stops - self.stretches.starts).sum())


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return memoryview(cast(Buffer, array.reshape(-1).view(np.uint8)))


def empty_to_read_into(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array without values yet, C-contiguous, into which files are read fast.

    numpy's own large arrays begin 16 bytes behind a page of memory. Less than 64 bytes behind the
    place in a page that they are copied from, AMD's processors copy at two thirds of their speed.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    memory = np.empty(size + _PAGE, np.uint8)
    start = (_PLACE_IN_PAGE - memory.ctypes.data) % _PAGE
    return memory[start : start + size].view(dtype).reshape(shape)


def read_array(folder: Path, array: ArrayRecord) -> npt.NDArray[Any]:
    """A whole array of the part in a folder, each block verified. Raises as `read_stretches`."""
    values = empty_to_read_into(array.shape, array.dtype)
    whole = Stretches(np.array([0]), np.array([len(values)]), np.array([0]))
    read_stretches([ArrayRead(folder, array, whole)], values)
    return values


def read_stretches(reads: Sequence[ArrayRead], target: npt.NDArray[Any]) -> None:
    """Read rows of the same array of several parts into `target`, each block verified.

    `target` is C-contiguous `[rows, …]`, best of `empty_to_read_into`. A block is read once,
    whatever stretches lie in it. Raises `CorruptStore` naming the file whose content is missing,
    short or altered.
    """
    target_bytes = target.view(np.uint8).reshape(len(target), target.strides[0])

    runs: list[list[_BlockRead]] = []
    for read in reads:
        runs.extend(_join_neighbours(_cut_at_blocks(read), read.array.row_bytes))

    stop = stop_reading.get() or Event()
    threads = min(MAX_THREADS, len(runs), target.nbytes // _BYTES_PER_THREAD)

    if threads <= 1:
        _read_runs(runs, target_bytes, stop)
        return

    def read_share(number: int) -> None:
        # Neighbours stay together: two threads would both clear a new page that both come to.
        first = number * len(runs) // threads
        last = (number + 1) * len(runs) // threads
        _read_runs(runs[first:last], target_bytes, stop)

    with ThreadPoolExecutor(threads) as pool:
        try:
            # A share per thread, not a future per run, which would cost as much as the checksums.
            list(pool.map(read_share, range(threads)))
        except BaseException:
            # Such as Ctrl-C: the pool's end waits for its threads.
            stop.set()
            raise


def _cut_at_blocks(read: ArrayRead) -> Iterator[_BlockRead]:
    """Cut stretches at the ends of blocks; each block comes once, in order."""
    row_bytes = read.array.row_bytes
    block_rows = [block.bytes // row_bytes for block in read.array.blocks]
    ends = np.cumsum([0, *block_rows])
    starts, stops, targets = read.stretches

    # An utterance may have no rows.
    numbers = np.searchsorted(ends, starts, "right") - 1
    lasts = np.where(stops > starts, np.searchsorted(ends, stops, "left") - 1, numbers - 1)

    if (numbers != lasts).any():
        # Each stretch comes as often as it has blocks.
        counts = lasts - numbers + 1
        stretch = np.repeat(np.arange(len(counts)), counts)
        number_in_stretch = np.arange(len(stretch)) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = numbers[stretch] + number_in_stretch

        begins = np.maximum(starts[stretch], ends[numbers])
        targets = targets[stretch] + begins - starts[stretch]
        stops = np.minimum(stops[stretch], ends[numbers + 1])
        starts = begins

    by_block = np.argsort(numbers, kind="stable")
    changes = np.flatnonzero(np.diff(numbers[by_block])) + 1
    bounds = [0, *changes.tolist(), len(by_block)]

    for first, last in itertools.pairwise(bounds):
        of_block = by_block[first:last]
        if not len(of_block):
            continue
        number = int(numbers[of_block[0]])
        block = read.array.blocks[number]
        stretches = Stretches(starts[of_block], stops[of_block], targets[of_block])
        yield _BlockRead(f"{read.folder}/{block.file}", block, int(ends[number]), stretches)


def _join_neighbours(reads: Iterable[_BlockRead], row_bytes: int) -> Iterator[list[_BlockRead]]:
    """Runs of blocks that lie side by side in one file, to be read at once.

    A block of which less than half is wanted stays alone: one utterance needs no more memory, to
    read it into, than a block has.
    """
    run: list[_BlockRead] = []
    joins = False

    for read in reads:
        could_join = 2 * read.rows * row_bytes >= read.block.bytes
        if run:
            is_near = run[-1].path == read.path and 0 <= read.block.offset - run[-1].end <= _GAP
            fits = read.end - run[0].block.offset <= _READ_BYTES
            if not (joins and could_join and is_near and fits):
                yield run
                run = []
        run.append(read)
        joins = could_join

    if run:
        yield run


def _read_runs(
    runs: Sequence[list[_BlockRead]], target: npt.NDArray[np.uint8], stop: Event
) -> None:
    """Read and check blocks, and put their rows into the target, `[rows, bytes of a row]`."""
    largest = max((run[-1].end - run[0].block.offset for run in runs), default=0)
    scratch = empty_to_read_into([largest], np.uint8)

    for run in runs:
        if stop.is_set():
            raise InterruptedError("these blocks are no longer wanted")

        path = run[0].path
        begin = run[0].block.offset
        size = run[-1].end - begin

        content = scratch[:size]
        first_row = _first_target_row(run, target.shape[1])
        if first_row is not None:
            rows = size // target.shape[1]
            content = target[first_row : first_row + rows].reshape(-1)

        with plain_file(path) as file:
            file.seek(begin)
            # It is short only at the end of the file.
            if file.readinto(bytes_of(content)) < size:
                raise CorruptStore(f"{path}: cut short; {REPAIR}")

        for read in run:
            block_bytes = content[read.block.offset - begin : read.end - begin]
            check_block(path, read.block, bytes_of(block_bytes))
            if first_row is None:
                _copy_rows(read, block_bytes.reshape(-1, target.shape[1]), target)


def _first_target_row(run: Sequence[_BlockRead], row_bytes: int) -> int | None:
    """The row of the target with which a run begins that goes there whole and in order, or None."""
    first_row = int(run[0].stretches.targets[0])
    row = first_row
    place = run[0].block.offset

    for read in run:
        stretches = read.stretches
        is_one = len(stretches.starts) == 1 and read.rows * row_bytes == read.block.bytes
        if not is_one or (int(stretches.targets[0]), read.block.offset) != (row, place):
            return None
        row += read.rows
        place = read.end

    return first_row


def _copy_rows(
    read: _BlockRead, rows: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]
) -> None:
    """Copy what is wanted of a block's rows. Arrays, not memory views, whose copy holds the GIL."""
    starts = read.stretches.starts - read.first_row
    stops = read.stretches.stops - read.first_row
    targets = read.stretches.targets

    if read.rows == len(starts) and rows.shape[1] <= _SMALL_ROW:
        # Short rows, one by one. numpy takes them all to a place of their own first.
        target[targets] = rows[starts]
        return

    for start, end, to in zip(starts.tolist(), stops.tolist(), targets.tolist(), strict=True):
        target[to : to + end - start] = rows[start:end]


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
