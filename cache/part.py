"""Parts: how rows are packed, checked, named and published."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ser.errors import CorruptStore, SerError, StoreError, WrongUse, unknown

from .atomic_io import Buffer, faults_named, make_folder, move_into_place, sync_folder, workspace, write_file
from .backends import encode_hdf5, encode_zarr
from .blocks import ArrayRecord, Block, Source, read_rows
from .spec import FORMAT_VERSION, REPAIR, Spec, canonical_json, check_version, seal, unseal

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


ENCODERS = {"zarr": encode_zarr, "hdf5": encode_hdf5}
_FLOAT16_LIMIT = 65504


@dataclass
class Packed:
    """Utterances end to end in one array.

    `values` is `[rows, dim]`; utterance i is `values[offsets[i]:offsets[i + 1]]`. `extras` hold one value per row.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    ids: list[str]
    extras: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """The rows of utterance `index`, `[n, dim]`: a view."""
        if index < 0:
            index += len(self.ids)
        if not 0 <= index < len(self.ids):
            raise IndexError(index)
        return self.values[self.offsets[index] : self.offsets[index + 1]]


@dataclass
class PartRows:
    """What one part will hold.

    `arrays` are `[n_i, dim]` each; at utterance level `[dim]` or `[1, dim]`. `extras` holds, by name, one `[n_i]` array
    per utterance. A part may hold quarantined utterances only.
    """

    corpus: str
    ids: list[str] = field(default_factory=list)
    inputs: Sequence[str | None] = field(default_factory=list)
    arrays: list[npt.NDArray[Any]] = field(default_factory=list)
    extras: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    quarantined: list[Quarantine] = field(default_factory=list)

    @classmethod
    def from_packed(
        cls, corpus: str, inputs: Sequence[str | None], packed: Packed, quarantined: Sequence[Quarantine] = ()
    ) -> "PartRows":
        """Rows that lie in memory already."""
        cuts = packed.offsets[1:-1]
        return cls(
            corpus=corpus,
            ids=packed.ids,
            inputs=inputs,
            arrays=[packed[i] for i in range(len(packed))],
            extras={name: np.split(array, cuts) if packed.ids else [] for name, array in packed.extras.items()},
            quarantined=list(quarantined),
        )


def part_name(
    corpus: str, ids: Iterable[str], inputs: Iterable[str | None], quarantined: Iterable[tuple[str, str | None]] = ()
) -> str:
    """The first 16 hex digits of a sha256 over what the part is computed from."""
    key = [corpus, list(zip(ids, inputs, strict=True)), [list(pair) for pair in quarantined]]
    return hashlib.sha256(canonical_json(key)).hexdigest()[:16]


def pack(rows: PartRows, spec: Spec) -> dict[str, npt.NDArray[Any]]:
    """Join the utterances into `values` `[rows, dim]`, `offsets` int64 `[n + 1]` and the extras `[rows]`.

    Raises `StoreError` naming the utterance whose values are not finite, too large for float16, or of another shape.
    """
    arrays = [_checked(id_, array, spec) for id_, array in zip(rows.ids, rows.arrays, strict=True)]
    lengths = [len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = np.concatenate(arrays) if arrays else np.empty((0, spec.dim), spec.dtype)
    packed = {"values": values, "offsets": offsets}
    for name, pieces in rows.extras.items() if arrays else ():
        if name in packed or not name.isidentifier() or not name.isascii() or len(name) > 64:
            raise WrongUse(f"an extra array cannot be called {name!r}")
        if [np.shape(piece) for piece in pieces] != [(length,) for length in lengths]:
            raise StoreError(f"{spec.name}: extra array '{name}' has another length than the rows beside it")
        packed[name] = np.concatenate([np.asarray(piece) for piece in pieces])
        if packed[name].dtype.name not in DTYPES:
            raise StoreError(f"{spec.name}: extra array '{name}' has dtype {packed[name].dtype}")
    return packed


def _check_ids(rows: PartRows) -> None:
    """Raise `StoreError` unless each id is a text, stands once, and has one digest and one array."""
    every = [*rows.ids, *(entry.id for entry in rows.quarantined)]
    if not all(isinstance(id_, str) for id_ in every):
        raise StoreError(f"corpus {rows.corpus}: an utterance's id is not a text")
    if (bad := next((id_ for id_ in every if not _encodable(id_)), None)) is not None:
        raise StoreError(f"corpus {rows.corpus}: utterance {bad!r} has an id that is not valid Unicode")
    if len(set(every)) != len(every):
        twice = next(id_ for id_ in every if every.count(id_) > 1)
        raise StoreError(f"corpus {rows.corpus}: utterance {twice!r} stands twice in one part")
    if not len(rows.ids) == len(rows.inputs) == len(rows.arrays):
        raise StoreError(f"corpus {rows.corpus}: a part needs one input digest and one array per utterance")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(id_: str, array: npt.NDArray[Any], spec: Spec) -> npt.NDArray[Any]:
    array = np.asarray(array)
    if spec.level == "utterance" and array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2 or array.shape[1] != spec.dim or (spec.level == "utterance" and len(array) != 1):
        raise StoreError(f"{spec.name}: utterance {id_!r} has shape {list(array.shape)}, not [rows, {spec.dim}]")
    if array.dtype.kind != "f":
        raise StoreError(f"{spec.name}: utterance {id_!r} has dtype {array.dtype}, not a float")
    if not np.isfinite(array).all():
        raise StoreError(f"{spec.name}: utterance {id_!r} has values that are not finite; see what its input holds")
    with np.errstate(over="ignore"):
        stored = array.astype(spec.dtype, copy=False)
    if stored.dtype != array.dtype and not np.isfinite(stored).all():
        raise StoreError(
            f"{spec.name}: utterance {id_!r} has values beyond {_FLOAT16_LIMIT} that float16 cannot hold; "
            "use --dtype float32"
        )
    return stored


def publish(
    store: Path, parent: Path, rows: PartRows, spec: Spec, backend: str, written_by: Mapping[str, Any]
) -> str | None:
    """Write a part under `<store>/tmp`, read it back, and rename it into `parent`.

    Returns its name, or None if that part was there already. Raises `StoreError`; then nothing was published.
    """
    if backend not in ENCODERS:
        raise unknown("backend", backend, ENCODERS)
    _check_ids(rows)
    name = part_name(rows.corpus, rows.ids, rows.inputs, [(entry.id, entry.input) for entry in rows.quarantined])
    if (parent / name / "part.json").exists():
        return None
    arrays = pack(rows, spec)
    files, blocks = ENCODERS[backend](arrays)
    needed = sum(memoryview(buffer).nbytes for buffers in files.values() for buffer in buffers)
    with faults_named(f"writing a part of {spec.name}", store, needed):
        make_folder(parent)
        with workspace(store) as temporary:
            folder = temporary / name
            written = _write_files(folder, files)
            record = PartRecord(
                fingerprint=spec.fingerprint,
                backend=backend,
                corpus=rows.corpus,
                ids=tuple(rows.ids),
                inputs=tuple(rows.inputs),
                quarantined=tuple(rows.quarantined),
                arrays={
                    key: ArrayRecord(array.dtype.name, array.shape, tuple(blocks[key])) for key, array in arrays.items()
                },
                files=written,
                written_by=dict(written_by),
            )
            write_file(folder / "part.json", [seal(record.to_json())])
            sync_folder(folder)
            _prove(Part.open(folder, spec.fingerprint), arrays)
            return name if move_into_place(folder, parent / name) else None


def _write_files(folder: Path, files: Mapping[str, Sequence[Buffer]]) -> dict[str, FileRecord]:
    folder.mkdir()
    for inside in sorted({os.path.dirname(name) for name in files}):  # noqa: PTH120 (a key, not a path)
        (folder / inside).mkdir(parents=True, exist_ok=True)
    written = {name: FileRecord(*write_file(folder / name, buffers)) for name, buffers in files.items()}
    for root, _, _ in os.walk(folder):
        sync_folder(Path(root))
    return written


def _prove(part: Part, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """What a reader will get is what was meant, bit for bit."""
    for name, array in arrays.items():
        read = np.empty(array.shape, array.dtype)
        read_rows(part.source(name), read)
        if read.tobytes() != array.tobytes():
            raise StoreError(f"{part.folder}: array '{name}' reads back other than it was written; check the disk")
