"""Parts: how rows are packed, checked, named and published."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import hdf5_backend, zarr_backend
from .blocks import read_rows
from .durable import Buffer, faults_named, make_folder, move_into_place, sync_folder, workspace, write_file
from .errors import StoreError, WrongUse, unknown
from .layout import DTYPES, ArrayRecord, FileRecord, Part, PartRecord, Quarantine
from .packed import Packed
from .sealed import seal
from .spec import Spec, canonical_json

ENCODERS = {"zarr": zarr_backend.encode, "hdf5": hdf5_backend.encode}
_FLOAT16_LIMIT = 65504


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
