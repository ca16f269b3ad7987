"""Parts: how rows are packed, checked, named, published and opened."""

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from ser.cache.spec import Spec
from ser.disk.read import REPAIR
from ser.disk.records import FORMAT_VERSION, checksummed_json, read_checksummed, short_hash
from ser.disk.workspace import workspace
from ser.disk.write import (
    explain_disk_errors,
    move_into_place,
    sync_folder,
    write_file,
    write_folder,
)
from ser.errors import CorruptStore, StoreError, WrongUse, unknown

from .blocks import (
    BACKENDS,
    ArrayDtype,
    ArrayRecord,
    Block,
    Count,
    PiecedArray,
    contents,
    read_stretches,
)

_SMALL = (
    64 << 10
)  # bytes of a piece, below which copying it into a larger one costs less than writing it alone
_FILE = re.compile(
    r"data\.h5|data\.zarr/(zarr\.json|[A-Za-z_][A-Za-z0-9_-]{0,63}/(zarr\.json|c/\d{1,9}(/0)?))"
)


class Quarantine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An utterance that could not be computed, and why."""

    id: str
    input: (
        str | None
    )  # digest of what it would have been computed from; None if there is no such file
    path: str
    reason: str


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the part: its size and the sha256 of its content."""

    bytes: Count
    sha256: str


def file_record(content: bytes) -> FileRecord:
    """The size and sha256 of a file with this content."""
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


class PartRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything in `part.json`."""

    fingerprint: str
    backend: Literal["zarr", "hdf5"]
    corpus: str
    ids: tuple[str, ...]
    inputs: tuple[str | None, ...]  # None: imported rows whose utterance has no such file
    quarantined: tuple[Quarantine, ...]
    arrays: dict[str, ArrayRecord]
    files: dict[str, FileRecord]
    written_by: dict[str, Any]
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Raise `ValueError` for faults that types do not show. A store may come from anywhere:
        nothing is trusted.
        """
        if len(set(self.ids)) != len(self.ids) or len(self.ids) != len(self.inputs):
            raise ValueError("ids appear twice, or have no input digest each")
        for name in self.files:
            if not _FILE.fullmatch(name) or name.startswith("data.h5") != (self.backend == "hdf5"):
                raise ValueError(f"file name {name!r}")
        if not {"values", "offsets"} <= self.arrays.keys():
            raise ValueError("it has no values or no offsets")
        values, offsets = self.arrays["values"], self.arrays["offsets"]
        if (
            len(values.shape) != 2
            or offsets.shape != (len(self.ids) + 1,)
            or offsets.dtype != "int64"
        ):
            raise ValueError("shape of values or offsets")
        for name, array in self.arrays.items():
            if name != "offsets" and array.shape[0] != values.shape[0]:
                raise ValueError(f"number of rows of array {name!r}")
            # Blocks follow one another within real files, so an array is never larger than what is
            # on disk.
            ends: dict[str, int] = {}
            for block in array.blocks:
                if (
                    block.file not in self.files
                    or block.offset + block.bytes > self.files[block.file].bytes
                ):
                    raise ValueError(f"a block of array {name!r} lies outside the part's files")
                if block.offset < ends.get(block.file, 0):
                    raise ValueError(f"blocks of array {name!r} overlap")
                ends[block.file] = block.offset + block.bytes


@dataclass(frozen=True, eq=False)
class Part:
    """A published part. Other files in its folder, such as a `Thumbs.db`, are never read."""

    folder: Path  # its name is a hash of the ids and input digests
    record: PartRecord

    @classmethod
    def open(cls, folder: Path, fingerprint: str) -> "Part":
        """The part in a folder, its record checked against the names, sizes and kinds of the files
        there.

        Raises `CorruptStore` naming the first recorded file that is missing, cut short or not a
        plain file.
        """
        record = read_checksummed(folder / "part.json", PartRecord)
        if record.fingerprint != fingerprint:
            raise CorruptStore(
                f"{folder}: belongs to another fingerprint, {record.fingerprint}; {REPAIR}"
            )
        names = set(record.files)
        for name in record.files:
            while name := name.rpartition("/")[0]:
                names.add(name)
        for name in sorted(names):  # a folder before its files
            file, where = record.files.get(name), f"{folder}/{name}"
            try:
                status = os.lstat(where)
            except (FileNotFoundError, NotADirectoryError):
                raise CorruptStore(f"{where!r}: is missing; {REPAIR}") from None
            except OSError as error:
                raise StoreError(f"{where!r}: cannot be read ({error.strerror})") from error
            if not (stat.S_ISREG if file else stat.S_ISDIR)(status.st_mode):
                raise CorruptStore(
                    f"{where!r}: is a link or a special file, or of another kind; {REPAIR}"
                )
            if file and status.st_size != file.bytes:
                raise CorruptStore(
                    f"{where!r}: has {status.st_size} bytes, part.json records {file.bytes}; {REPAIR}"
                )
        return cls(folder, record)

    @property
    def bytes(self) -> int:
        """Bytes of its files, `part.json` not counted."""
        return sum(file.bytes for file in self.record.files.values())

    @cached_property
    def keys(self) -> list[tuple[str, str, str | None]]:
        """Corpus, id and input digest of each row."""
        return [
            (self.record.corpus, *pair)
            for pair in zip(self.record.ids, self.record.inputs, strict=True)
        ]

    @cached_property
    def offsets(self) -> list[int]:
        """Utterance i is rows `offsets[i]:offsets[i + 1]` of the values. Raises `CorruptStore` if
        they do not fit.
        """
        offsets = np.empty(len(self.record.ids) + 1, np.int64)
        read_stretches(
            [(self.folder, self.record.arrays["offsets"], [(0, len(offsets), 0)])], offsets
        )
        if (
            offsets[0] != 0
            or offsets[-1] != self.record.arrays["values"].shape[0]
            or (np.diff(offsets) < 0).any()
        ):
            raise CorruptStore(f"{self.folder}: its offsets do not fit its rows; {REPAIR}")
        return offsets.tolist()


@dataclass
class Packed:
    """Utterances end to end in one array.

    `values` is `[rows, dim]`; utterance i is `values[offsets[i]:offsets[i + 1]]`. `extras` hold one
    value per row.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64] = field(repr=False)
    ids: list[str] = field(repr=False)
    extras: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """The rows of utterance `index`, `[n, dim]`: a view."""
        index = range(len(self.ids))[index]
        return self.values[self.offsets[index] : self.offsets[index + 1]]


@dataclass
class PartRows:
    """What one part will hold.

    `arrays` are `[n_i, dim]` each; at utterance level `[dim]` or `[1, dim]`. `extras` holds, by
    name, one `[n_i]` array per utterance. A part may hold quarantined utterances only. `finite`:
    the caller has checked `arrays` of the stored dtype for NaN and infinities.
    """

    corpus: str
    ids: list[str] = field(default_factory=list)
    inputs: Sequence[str | None] = field(default_factory=list)
    arrays: list[npt.NDArray[Any]] = field(default_factory=list)
    extras: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    quarantined: list[Quarantine] = field(default_factory=list)
    finite: bool = False

    @classmethod
    def from_packed(
        cls,
        corpus: str,
        inputs: Sequence[str | None],
        packed: Packed,
        quarantined: Sequence[Quarantine] = (),
    ) -> "PartRows":
        """The rows of a `Packed`, one array for each utterance."""
        extras = {
            name: np.split(array, packed.offsets[1:-1]) for name, array in packed.extras.items()
        }
        arrays = [packed[i] for i in range(len(packed))]
        return cls(corpus, packed.ids, inputs, arrays, extras, list(quarantined))


def part_name(part: PartRows | PartRecord) -> str:
    """The first 16 hex digits of a sha256 over what the part is computed from."""
    rows = list(zip(part.ids, part.inputs, strict=True))
    return short_hash([part.corpus, rows, [[one.id, one.input] for one in part.quarantined]])


def pack(rows: PartRows, spec: Spec) -> dict[str, PiecedArray]:
    """The utterances as `values` `[rows, dim]`, `offsets` int64 `[n + 1]` and the extras `[rows]`.

    Raises `StoreError` naming the utterance whose values are not finite, too large for float16, or
    of another shape.
    """
    arrays = [
        _checked(id_, array, spec, rows.finite)
        for id_, array in zip(rows.ids, rows.arrays, strict=True)
    ]
    lengths = [*map(len, arrays)]
    if sum(array.nbytes for array in arrays) < _SMALL * len(arrays) or not arrays:
        arrays = [np.concatenate([np.empty((0, spec.dim), spec.dtype), *arrays])]
    packed = {
        "values": PiecedArray(arrays),
        "offsets": PiecedArray([np.cumsum([0, *lengths], dtype=np.int64)]),
    }
    for name, pieces in rows.extras.items() if rows.ids else ():
        if name in packed or not name.isidentifier() or not name.isascii() or len(name) > 64:
            raise WrongUse(f"an extra array cannot be called {name!r}")
        if [np.shape(piece) for piece in pieces] != [(length,) for length in lengths]:
            raise StoreError(
                f"{spec.name}: extra array '{name}' has another length than the rows beside it"
            )
        joined = np.concatenate(pieces)
        packed[name] = PiecedArray([joined.astype(joined.dtype.newbyteorder("<"), copy=False)])
        if packed[name].dtype.name not in get_args(ArrayDtype):
            raise StoreError(f"{spec.name}: extra array '{name}' has dtype {packed[name].dtype}")
    return packed


def _checked(id_: str, array: npt.NDArray[Any], spec: Spec, finite: bool) -> npt.NDArray[Any]:
    array = np.asarray(array)
    if spec.level == "utterance" and array.ndim == 1:
        array = array[None, :]
    if (
        array.ndim != 2
        or array.shape[1] != spec.dim
        or (spec.level == "utterance" and len(array) != 1)
    ):
        raise StoreError(
            f"{spec.name}: utterance {id_!r} has shape {list(array.shape)}, not [rows, {spec.dim}]"
        )
    if array.dtype.kind != "f":
        raise StoreError(f"{spec.name}: utterance {id_!r} has dtype {array.dtype}, not a float")
    if finite and array.dtype == spec.dtype:
        return np.ascontiguousarray(array)
    if not np.isfinite(array).all():
        raise StoreError(
            f"{spec.name}: utterance {id_!r} has values that are not finite; see what its input holds"
        )
    with np.errstate(over="ignore"):
        stored = array.astype(spec.dtype, copy=False)
    if stored.dtype != array.dtype and not np.isfinite(stored).all():
        raise StoreError(
            f"{spec.name}: utterance {id_!r} has values too large for float16; use --dtype float32"
        )
    return np.ascontiguousarray(stored)


def publish(
    store: Path,
    parent: Path,
    rows: PartRows,
    spec: Spec,
    backend: str,
    written_by: Mapping[str, Any],
) -> str | None:
    """Write a part under `<store>/tmp`, read it back, and rename it into `parent`.

    Returns its name, or None if that part was there already. Raises `StoreError`; then nothing was
    published.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    for id_, times in Counter([*rows.ids, *(entry.id for entry in rows.quarantined)]).items():
        if times > 1:
            raise StoreError(f"corpus {rows.corpus}: utterance {id_!r} appears twice in one part")
        if id_.encode(errors="replace").decode() != id_:
            raise StoreError(
                f"corpus {rows.corpus}: utterance {id_!r} has an id that is not valid Unicode"
            )
    name = part_name(rows)
    if (parent / name / "part.json").exists():
        return None
    arrays = pack(rows, spec)
    files = BACKENDS[backend].encode(arrays)
    buffers = (
        one for content in files.values() for _, views in content for one in views or [bytes(4)]
    )
    needed = sum(memoryview(one).nbytes for one in buffers)
    with (
        explain_disk_errors(f"writing a part of {spec.name}", store, needed),
        workspace(store) as temporary,
    ):
        folder, blocks = temporary / name, {key: list[Block]() for key in arrays}
        written = write_folder(
            folder, {path: contents(path, content, blocks) for path, content in files.items()}
        )
        record = PartRecord(
            fingerprint=spec.fingerprint,
            backend=backend,  # type: ignore[arg-type]
            corpus=rows.corpus,
            ids=tuple(rows.ids),
            inputs=tuple(rows.inputs),
            quarantined=tuple(rows.quarantined),
            arrays={
                key: ArrayRecord(a.dtype.name, a.shape, tuple(blocks[key]))
                for key, a in arrays.items()
            },  # type: ignore[arg-type]
            files={key: FileRecord(*size_and_digest) for key, size_and_digest in written.items()},
            written_by=dict(written_by),
        )
        write_file(folder / "part.json", [checksummed_json(record)])
        sync_folder(folder)
        Part.open(folder, spec.fingerprint)
        return name if move_into_place(folder, parent / name) else None
