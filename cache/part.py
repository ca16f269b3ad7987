"""Parts: what `part.json` records of the files beside it, and how a published part is opened."""

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from ser.corpus.manifest import Key
from ser.disk.read import REPAIR
from ser.disk.records import FORMAT_VERSION, read_checksummed
from ser.errors import CorruptStore, StoreError

from .blocks import ArrayRecord, ByteCount, read_array

# The files that a part may have. Nothing else is opened, whatever part.json says.
_ARRAY_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
_ZARR_FILE = rf"zarr\.json|{_ARRAY_NAME}/(zarr\.json|c/\d{{1,9}}(/0)?)"
_FILE = re.compile(rf"data\.h5|data\.zarr/({_ZARR_FILE})")


class Quarantine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An utterance that could not be computed, and why."""

    id: str
    input: str | None
    """Digest of what it would have been computed from; None if there is no such file."""

    path: str
    reason: str


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the part: its size and the sha256 of its content."""

    bytes: ByteCount
    sha256: str


def file_record(content: bytes) -> FileRecord:
    """The size and sha256 of a file with this content."""
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


class PartRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything in `part.json`; FORMAT.md says what each key holds."""

    fingerprint: str
    backend: Literal["zarr", "hdf5"]
    corpus: str
    ids: tuple[str, ...]
    inputs: tuple[str | None, ...]
    """By id; None for imported rows whose utterance has no such file."""

    quarantined: tuple[Quarantine, ...]
    arrays: dict[str, ArrayRecord]
    files: dict[str, FileRecord]
    written_by: dict[str, Any]
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Raise `ValueError` for faults that types do not show.

        A store may come from anywhere: nothing in a record is trusted.
        """
        if len(set(self.ids)) != len(self.ids) or len(self.ids) != len(self.inputs):
            raise ValueError("ids appear twice, or have no input digest each")

        for name in self.files:
            is_hdf5 = name.startswith("data.h5")
            if not _FILE.fullmatch(name) or is_hdf5 != (self.backend == "hdf5"):
                raise ValueError(f"file name {name!r}")

        if not {"values", "offsets"} <= self.arrays.keys():
            raise ValueError("it has no values or no offsets")

        self._check_shapes()
        for name, array in self.arrays.items():
            self._check_blocks(name, array)

    def _check_shapes(self) -> None:
        values = self.arrays["values"]
        offsets = self.arrays["offsets"]

        are_offsets = offsets.shape == (len(self.ids) + 1,) and offsets.dtype == "int64"
        if len(values.shape) != 2 or not are_offsets:
            raise ValueError("shape of values or offsets")

        for name, array in self.arrays.items():
            if name != "offsets" and array.shape[0] != values.shape[0]:
                raise ValueError(f"number of rows of array {name!r}")

    def _check_blocks(self, name: str, array: ArrayRecord) -> None:
        """Blocks follow one another within real files.

        So an array is never larger than what is on disk.
        """
        ends: dict[str, int] = {}

        for block in array.blocks:
            file = self.files.get(block.file)
            end = block.offset + block.bytes
            if file is None or end > file.bytes:
                raise ValueError(f"a block of array {name!r} lies outside the part's files")
            if block.offset < ends.get(block.file, 0):
                raise ValueError(f"blocks of array {name!r} overlap")
            ends[block.file] = end


@dataclass(frozen=True, eq=False)
class Part:
    """A published part. Other files in its folder, such as a `Thumbs.db`, are never read."""

    folder: Path
    """Its name is a hash of the ids and input digests."""

    record: PartRecord

    @classmethod
    def open(cls, folder: Path, fingerprint: str) -> "Part":
        """The part in a folder, its record held against the names, sizes and kinds of its files.

        Raises `CorruptStore` naming the first recorded file that is missing, cut short or not a
        plain file.
        """
        record = read_checksummed(folder / "part.json", PartRecord)
        if record.fingerprint != fingerprint:
            fault = f"belongs to another fingerprint, {record.fingerprint}"
            raise CorruptStore(f"{folder}: {fault}; {REPAIR}")

        # In this order a folder comes before its files.
        for name in sorted(_with_folders(record.files)):
            _check_entry(f"{folder}/{name}", record.files.get(name))

        return cls(folder, record)

    @property
    def bytes(self) -> int:
        """Bytes of its files, `part.json` not counted."""
        return sum(file.bytes for file in self.record.files.values())

    @cached_property
    def keys(self) -> list[Key]:
        """Corpus, id and input digest of each row."""
        rows = zip(self.record.ids, self.record.inputs, strict=True)
        return [(self.record.corpus, id_, digest) for id_, digest in rows]

    @cached_property
    def row_offsets(self) -> npt.NDArray[np.int64]:
        """Utterance i is rows `row_offsets[i]:row_offsets[i + 1]` of the values, `[n + 1]`.

        Raises `CorruptStore` if they do not fit the values.
        """
        offsets = read_array(self.folder, self.record.arrays["offsets"])

        rows = self.record.arrays["values"].shape[0]
        if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
            raise CorruptStore(f"{self.folder}: its offsets do not fit its rows; {REPAIR}")

        return offsets

    @cached_property
    def offsets(self) -> list[int]:
        """The same as a list, of which a single one is taken faster."""
        return self.row_offsets.tolist()


def _with_folders(files: Mapping[str, FileRecord]) -> set[str]:
    """Paths of files, and those of all folders above them in the part."""
    names = set(files)
    for name in files:
        parent = name.rpartition("/")[0]
        while parent:
            names.add(parent)
            parent = parent.rpartition("/")[0]
    return names


def _check_entry(path: str, file: FileRecord | None) -> None:
    """Raise `CorruptStore` unless a plain file of the recorded size, or (None) a folder, is there.

    Raises `StoreError` if it cannot be asked for: that is no fault of the part.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptStore(f"{path!r}: is missing; {REPAIR}") from None
    except OSError as error:
        raise StoreError(f"{path!r}: cannot be read ({error.strerror})") from error

    is_right_kind = stat.S_ISREG if file else stat.S_ISDIR
    if not is_right_kind(status.st_mode):
        fault = "is a link or a special file, or of another kind"
        raise CorruptStore(f"{path!r}: {fault}; {REPAIR}")

    if file and status.st_size != file.bytes:
        fault = f"has {status.st_size} bytes, part.json records {file.bytes}"
        raise CorruptStore(f"{path!r}: {fault}; {REPAIR}")
