"""What a part's `part.json` says, and the checks that it must pass before a byte is read on its word."""

import errno
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .blocks import Block, Source, read_rows
from .errors import CorruptStore, SerError, StoreError
from .sealed import REPAIR, unseal
from .spec import FORMAT_VERSION, check_version

BACKENDS = ("zarr", "hdf5")
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FILE = re.compile(r"data\.h5|data\.zarr/(zarr\.json|[A-Za-z_][A-Za-z0-9_-]{0,63}/(zarr\.json|c/\d{1,9}(/0)?))")
_MOST = 1 << 48


@dataclass(frozen=True)
class Quarantine:
    """An utterance that could not be computed, and why."""

    id: str
    input: str | None  # digest of what it would have been computed from; None where there is no such file
    path: str
    reason: str


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


@dataclass(frozen=True)
class FileRecord:
    """One file of the part: its size and the sha256 of its content."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class PartRecord:
    """Everything in `part.json`."""

    fingerprint: str
    backend: str
    corpus: str
    ids: tuple[str, ...]
    inputs: tuple[str | None, ...]  # None: imported rows whose utterance has no such file
    quarantined: tuple[Quarantine, ...]
    arrays: Mapping[str, ArrayRecord]
    files: Mapping[str, FileRecord]
    written_by: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> "PartRecord":
        """From JSON values. Raises `StoreError` for a newer format and `CorruptStore` for one that lies."""
        check_version(record.get("format_version"), where)
        try:
            part = cls(
                fingerprint=record["fingerprint"],
                backend=record["backend"],
                corpus=record["corpus"],
                ids=tuple(record["ids"]),
                inputs=tuple(record["inputs"]),
                quarantined=tuple(Quarantine(**entry) for entry in record["quarantined"]),
                arrays={name: _array(entry) for name, entry in record["arrays"].items()},
                files={name: FileRecord(**entry) for name, entry in record["files"].items()},
                written_by=record["written_by"],
            )
            fault = _fault(part)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            raise CorruptStore(f"{where}: not a part of a store ({fault}); {REPAIR}")
        return part


def _array(entry: Mapping[str, Any]) -> ArrayRecord:
    return ArrayRecord(entry["dtype"], tuple(entry["shape"]), tuple(Block(**block) for block in entry["blocks"]))


def _fault(part: PartRecord) -> str | None:
    """What is wrong with a part's record, or None. Types first: nothing here was written by a friend."""
    inputs = [digest for digest in part.inputs if digest is not None]
    texts = [part.fingerprint, part.corpus, *part.ids, *inputs, *(entry.id for entry in part.quarantined)]
    if not all(isinstance(text, str) for text in texts) or part.backend not in BACKENDS:
        return "a text is none, or the backend is unknown"
    if len(set(part.ids)) != len(part.ids) or len(part.ids) != len(part.inputs):
        return "ids stand twice, or have no input digest each"
    for name, file in part.files.items():
        if not _FILE.fullmatch(name) or name.startswith("data.h5") != (part.backend == "hdf5"):
            return f"file name {name!r}"
        if not _count(file.bytes) or not isinstance(file.sha256, str):
            return f"record of file {name!r}"
    if not {"values", "offsets"} <= set(part.arrays):
        return "it has no values or no offsets"
    rows = part.arrays["values"].shape[0]
    for name, array in part.arrays.items():
        if array.dtype not in DTYPES or not array.shape or not all(map(_count, array.shape)) or not array.row_bytes:
            return f"dtype or shape of array {name!r}"
        if array.shape[0] != (len(part.ids) + 1 if name == "offsets" else rows):
            return f"number of rows of array {name!r}"
        if fault := _blocks_fault(array, part.files):
            return f"array {name!r}: {fault}"
    if len(part.arrays["values"].shape) != 2 or part.arrays["offsets"] != _of_offsets(part.arrays["offsets"]):
        return "shape of values or offsets"
    return None


def _of_offsets(array: ArrayRecord) -> ArrayRecord:
    return ArrayRecord("int64", array.shape[:1], array.blocks)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _blocks_fault(array: ArrayRecord, files: Mapping[str, FileRecord]) -> str | None:
    """Blocks follow one another and lie within real files, so an array is never larger than what is on disk."""
    ends: dict[str, int] = {}
    total = 0
    for block in array.blocks:
        if not all(map(_count, (block.offset, block.bytes, block.crc32c))) or block.file not in files:
            return "a block is malformed"
        if block.bytes == 0 or block.bytes % array.row_bytes or block.offset < ends.get(block.file, 0):
            return "blocks overlap or cut a row"
        ends[block.file] = block.offset + block.bytes
        if ends[block.file] > files[block.file].bytes:
            return "a block lies past the end of its file"
        total += block.bytes
    return None if total == array.shape[0] * array.row_bytes else "its blocks do not add up to its shape"


class Part:
    """A published part: its record, checked against the files that are really there."""

    def __init__(self, folder: Path, record: PartRecord) -> None:
        self.folder = folder
        self.record = record

    @classmethod
    def open(cls, folder: Path, fingerprint: str) -> "Part":
        """Read and check `part.json`, and the names, sizes and kinds of all files.

        Raises `CorruptStore` naming the first file that is missing, too many, cut short or not a plain file.
        """
        path = folder / "part.json"
        record = PartRecord.from_json(unseal(read_small(path), str(path)), str(path))
        if record.fingerprint != fingerprint:
            raise CorruptStore(f"{path}: belongs to fingerprint {record.fingerprint}, not {fingerprint}; {REPAIR}")
        found = _inventory(folder)
        found.pop("part.json", None)
        for name in sorted(record.files.keys() | found.keys()):
            if name not in found:
                raise CorruptStore(f"{folder / name}: is missing; {REPAIR}")
            if name not in record.files:
                raise CorruptStore(f"{str(folder / name)!r}: does not belong to this part; {REPAIR}")
            if found[name] != record.files[name].bytes:
                raise CorruptStore(
                    f"{folder / name}: has {found[name]} bytes and should have {record.files[name].bytes}; {REPAIR}"
                )
        return cls(folder, record)

    @property
    def name(self) -> str:
        """The part's name: a hash of its ids and input digests."""
        return self.folder.name

    @property
    def bytes(self) -> int:
        """Bytes of its files, `part.json` not counted."""
        return sum(file.bytes for file in self.record.files.values())

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Utterance i is rows `offsets[i]:offsets[i + 1]` of the values. Raises `CorruptStore` if it cannot be."""
        array = self.record.arrays["offsets"]
        offsets = np.empty(array.shape, np.int64)
        read_rows(self.source("offsets"), offsets)
        if offsets[0] != 0 or offsets[-1] != self.record.arrays["values"].shape[0] or (np.diff(offsets) < 0).any():
            raise CorruptStore(f"{self.folder}: its offsets do not fit its rows; {REPAIR}")
        return offsets

    def source(self, name: str) -> Source:
        """One array, for the reader."""
        array = self.record.arrays[name]
        return Source(str(self.folder), array.shape[0], array.row_bytes, array.blocks)


def read_small(path: Path) -> bytes:
    """Read a small file whole. Raises `CorruptStore` if it is missing or no plain file, `StoreError` if unreadable."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor, not a path)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CorruptStore(f"{path}: is a link or a special file; {REPAIR}")
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptStore(f"{path}: is missing; {REPAIR}") from None
    except SerError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise CorruptStore(f"{path}: is a link or a special file; {REPAIR}") from error
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error


def _inventory(folder: Path) -> dict[str, int]:
    """Every file below a folder with its size, but for hidden ones (`.nfs0001`, `.DS_Store`), which nobody reads.

    Raises `CorruptStore` at a link or special file.
    """
    sizes: dict[str, int] = {}
    pending = [""]
    while pending:
        inside = pending.pop()
        with _scan(f"{folder}/{inside}") as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = inside + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                elif entry.is_file(follow_symlinks=False):
                    sizes[name] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise CorruptStore(f"{str(folder / name)!r}: is a link or a special file; {REPAIR}")
    return sizes


def _scan(folder: str) -> Any:
    try:
        return os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptStore(f"{folder}: is missing or no folder; {REPAIR}") from None
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read ({error.strerror})") from error
