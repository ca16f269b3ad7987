"""Blocks: the pieces of 1 to 2 MB in which arrays are laid out, read and checked.

Arrays are laid out as a Zarr group, or in one HDF5 file. One reader serves both. It reads whole
blocks, since the checksum needs all their bytes: straight into the target if all rows go there
together, else into a scratch area.
"""

import bisect
import hashlib
import io
import itertools
import math
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ser.disk.records import canonical_json
from ser.disk.write import PIECE, Buffer
from ser.errors import CorruptStore

BLOCK_BYTES = 2 << 20
_PER_THREAD = (
    2 * BLOCK_BYTES
)  # bytes of the target for each thread: scratch areas take at most half of that
# The cores that this process may use: fewer than the machine has under taskset, on systems that
# have it.
MOST_THREADS = min(
    8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
# Once it is set, a thread's reading ends with `InterruptedError` at the next block.
unwanted: ContextVar[Event | None] = ContextVar("unwanted", default=None)

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
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
    """An array `[rows, …]` whose rows lie in several places: C-contiguous `pieces` of one dtype,
    none copied.
    """

    def __init__(self, pieces: Sequence[npt.NDArray[Any]]) -> None:
        self.pieces, self.dtype = pieces, pieces[0].dtype
        self.shape = (sum(map(len, pieces)), *pieces[0].shape[1:])
        self._ends = list(itertools.accumulate(map(len, pieces)))

    def blocks(self, start: int, stop: int) -> Iterator[list[memoryview]]:
        """Equal blocks of at most 2 MB (at least one row each) of the rows from `start` to `stop`,
        without a copy.
        """
        most = max(1, BLOCK_BYTES // (self.dtype.itemsize * math.prod(self.shape[1:])))
        each = math.ceil((stop - start) / max(1, math.ceil((stop - start) / most)))
        for first in range(start, stop, each or 1):
            last, views = min(first + each, stop), list[memoryview]()
            for number in range(
                bisect.bisect_right(self._ends, first), bisect.bisect_left(self._ends, last) + 1
            ):
                begins = self._ends[number] - len(self.pieces[number])
                views.append(bytes_of(self.pieces[number][max(0, first - begins) : last - begins]))
            yield views


# The content of a file in order: blocks of the named array, or other bytes (""). None stands for
# the CRC-32C of all before it, four bytes, little-endian.
Content = list[tuple[str, Sequence[Buffer] | None]]


def contents(path: str, content: Content, blocks: Mapping[str, list[Block]]) -> Iterator[Buffer]:
    """The bytes of a file, a piece at a time. Each block is added to those of its array when its
    bytes are done.
    """
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


Arrays = Mapping[str, PiecedArray]  # little-endian
Files = dict[str, Content]  # by path in the part's folder


class Backend(NamedTuple):
    """How a part's arrays become files.

    `encode` returns the files, each array's blocks in order; `inspect` what a plain Zarr or HDF5
    reader of these files would see otherwise than the blocks have it, or None.
    """

    encode: Callable[[Arrays], Files]
    inspect: Callable[[Path, Mapping[str, ArrayRecord]], str | None]


ZARR = "data.zarr"
_METADATA = tomllib.loads(Path(__file__).with_name("zarr.toml").read_text(encoding="utf-8"))
_GROUP = canonical_json(_METADATA["group"])


def chunk_rows(rows: int) -> int:
    """Rows per chunk: at most 1024, spread evenly so that the last chunk has little padding."""
    return math.ceil(rows / math.ceil(rows / 1024)) if rows else 1


def _fill_value(dtype: np.dtype[Any]) -> float | int:
    """The value of a missing chunk: one that no feature contains."""
    return {"f": math.nan, "i": -1}[dtype.kind] if dtype.kind in "fi" else int(np.iinfo(dtype).max)


def _array_metadata(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The `zarr.json` of an array."""
    chunks = {
        "name": "regular",
        "configuration": {"chunk_shape": [chunk_rows(shape[0]), *shape[1:]]},
    }
    fill = "NaN" if dtype.kind == "f" else _fill_value(dtype)
    own = {"shape": shape, "data_type": dtype.name, "chunk_grid": chunks, "fill_value": fill}
    return canonical_json(_METADATA["array"] | own)


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
            files[_chunk_file(name, number, 1 + len(row))] = [
                *blocks,
                ("", [bytes_of(padding)]),
                ("", None),
            ]
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

    It is made in memory, which takes as much again, because the HDF5 library reports a full disk
    late or not at all.
    """
    import h5py

    image, offsets, at = io.BytesIO(), dict[str, int](), 0
    content: Content = []
    with h5py.File(image, "w") as file:
        for name, array in arrays.items():
            dataset = file.create_dataset(name, array.shape, array.dtype)
            dataset[:1] = 0  # allocates all of it; the array's bytes take its place in the file
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
        for name in arrays:  # all before any is compared: one that lies elsewhere moves the others
            if fault := foreign_hdf5(file, name):
                return f"{HDF5}: {fault}"
        for name, array in arrays.items():
            dataset = file[name]
            places = itertools.accumulate(
                (block.bytes for block in array.blocks), initial=dataset.id.get_offset()
            )
            elsewhere = any(
                block.offset != place for block, place in zip(array.blocks, places, strict=False)
            )
            if elsewhere or (dataset.shape, dataset.dtype, dataset.chunks) != (
                array.shape,
                array.dtype,
                None,
            ):
                return f"{HDF5}: array '{name}' is another for HDF5 than for its blocks"
    return None


def foreign_hdf5(file: Any, name: str) -> str | None:
    """Why a dataset's bytes may lie outside its file or need foreign code, or None.

    `file` is an open `h5py.File` or group. Links are examined before they are followed.
    """
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(
        file[name], h5py.Dataset
    ):
        return f"'{name}' is a group, or a link to elsewhere"
    created = file[name].id.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
        return f"'{name}' keeps its values elsewhere"
    if {created.get_filter(i)[0] for i in range(created.get_nfilters())} - _FILTERS:
        return f"'{name}' uses a filter other than gzip, shuffle and fletcher32"
    return None


BACKENDS = {
    "zarr": Backend(_encode_zarr, _inspect_zarr),
    "hdf5": Backend(_encode_hdf5, _inspect_hdf5),
}


Stretch = tuple[
    int, int, int
]  # first row in the array, row after the last, first row in the target
BlockRead = tuple[
    str, Block, int, list[Stretch]
]  # file, a block in it, its first row, the stretches within it


def read_stretches(
    jobs: Sequence[tuple[Path, ArrayRecord, Sequence[Stretch]]], target: npt.NDArray[Any]
) -> None:
    """Read stretches of rows from the same array of several parts (folders) into `target`, each
    block verified.

    `target` is C-contiguous `[rows, …]`. A block is read once, whatever stretches lie in it.
    Raises `CorruptStore` naming the file whose content is missing, short or altered.
    """
    rows = target.view(np.uint8).reshape(len(target), target.strides[0])
    reads = [
        read for folder, array, stretches in jobs for read in _by_block(folder, array, stretches)
    ]
    ended, threads = (
        unwanted.get() or Event(),
        min(MOST_THREADS, len(reads), target.nbytes // _PER_THREAD),
    )
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            # A share per thread, not a future per block, which would cost as much as the checksums.
            try:
                list(
                    pool.map(
                        lambda number: _read_blocks(reads[number::threads], rows, ended),
                        range(threads),
                    )
                )
            except BaseException:  # such as Ctrl-C: the pool's end waits for its threads
                ended.set()
                raise
    else:
        _read_blocks(reads, rows, ended)


def _by_block(
    folder: Path, array: ArrayRecord, stretches: Iterable[Stretch]
) -> Iterator[BlockRead]:
    """Cut stretches at the ends of blocks; each block comes once, in order."""
    ends = list(itertools.accumulate(block.bytes // array.row_bytes for block in array.blocks))
    within: dict[int, list[Stretch]] = {}
    for start, stop, to in stretches:
        while start < stop:
            number = bisect.bisect_right(ends, start)
            cut = min(stop, ends[number])
            within.setdefault(number, []).append((start, cut, to))
            start, to = cut, to + cut - start
    for number, cut_stretches in sorted(within.items()):
        block = array.blocks[number]
        yield (
            f"{folder}/{block.file}",
            block,
            ends[number] - block.bytes // array.row_bytes,
            cut_stretches,
        )


def _read_blocks(reads: Sequence[BlockRead], target: npt.NDArray[np.uint8], ended: Event) -> None:
    scratch = np.empty(max((block.bytes for _, block, _, _ in reads), default=0), np.uint8)
    for path, block, first, stretches in reads:
        if ended.is_set():
            raise InterruptedError("these blocks are no longer wanted")
        (start, stop, to), *others = stretches
        rows = scratch[: block.bytes].reshape(-1, target.shape[1])
        together = not others and stop - start == len(rows)
        content = bytes_of(target[to : to + len(rows)] if together else rows)
        with plain_file(path) as file:
            file.seek(block.offset)
            if file.readinto(content) < block.bytes:  # short only at the end of the file
                raise CorruptStore(f"{path}: cut short; {REPAIR}")
        check_block(path, block, content)
        # Arrays, not memory views: copying those holds the GIL.
        for start, stop, to in () if together else stretches:
            target[to : to + stop - start] = rows[start - first : stop - first]


def check_block(path: str, block: Block, content: Buffer) -> None:
    """Raise `CorruptStore` unless these are the block's bytes."""
    if crc32c.crc32c(content) != block.crc32c:
        raise CorruptStore(
            f"{path}: altered (bytes {block.offset} to {block.offset + block.bytes}); {REPAIR}"
        )


def _finite(content: bytes, dtype: str) -> bool:
    if (
        dtype == "float16"
    ):  # numpy's own way takes 20 times as long; an exponent of ones is NaN or infinite
        return bool(((np.frombuffer(content, np.uint16) & 0x7C00) < 0x7C00).all())
    return bool(np.isfinite(np.frombuffer(content, dtype)).all())


def read_file(path: Path, blocks: list[tuple[Block, bool]], dtype: str) -> str:
    """The sha256 of a file. Its blocks are checked on the way; those with True must hold finite
    values of `dtype`.
    """
    digest = hashlib.sha256()
    with plain_file(path) as file:

        def read(size: int) -> bytes:
            content = file.read(size)
            digest.update(content)
            return content

        for block, is_values in blocks:
            while (gap := block.offset - file.tell()) > 0 and read(min(gap, PIECE)):
                pass
            content = read(block.bytes)
            check_block(str(path), block, content)
            if is_values and not _finite(content, dtype):
                raise CorruptStore(f"{path}: holds values that are not finite; {REPAIR}")
        while read(PIECE):
            pass
    return digest.hexdigest()
