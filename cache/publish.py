"""Publication: how rows are checked, packed and written, and appear in a store as one part."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ser.disk.faults import explain_disk_errors
from ser.disk.records import checksummed_json
from ser.disk.workspace import workspace
from ser.disk.write import move_into_place, sync_folder, write_file, write_folder
from ser.errors import StoreError, WrongUse, unknown

from .backends import BACKENDS
from .blocks import ArrayDtype, ArrayRecord, Block
from .feature import Feature
from .layout import FileContents, PiecedArray, content_bytes, file_pieces
from .part import FileRecord, Part, PartRecord
from .rows import PartRows, part_name
from .spec import Spec

# Arrays that are smaller on average, in bytes, are copied into one: that costs less than writing
# each alone.
_SMALL = 64 << 10


def publish_part(
    feature: Feature,
    rows: PartRows,
    backend: str = "zarr",
    written_by: Mapping[str, Any] | None = None,
) -> str | None:
    """Write a part under `<store>/tmp`, read it back, and rename it to its place: whole or not.

    Returns its name, or None if that part was there already. `written_by` is recorded in it, for
    people. Raises `StoreError`; then nothing was published.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    _check_ids(rows)

    name = part_name(rows)
    target = feature.path / "parts" / name
    if (target / "part.json").exists():
        return None

    spec = feature.spec
    arrays = pack(rows, spec)
    files = BACKENDS[backend].encode(arrays)
    needed = sum(content_bytes(content) for content in files.values())

    with (
        explain_disk_errors(f"writing a part of {spec.name}", feature.store, needed),
        workspace(feature.store) as temporary,
    ):
        folder = temporary / name
        array_records, file_records = _write_files(folder, files, arrays)

        record = PartRecord(
            fingerprint=spec.fingerprint,
            backend=backend,  # type: ignore[arg-type]
            corpus=rows.corpus,
            ids=tuple(rows.ids),
            inputs=tuple(rows.inputs),
            quarantined=tuple(rows.quarantined),
            arrays=array_records,
            files=file_records,
            written_by=dict(written_by or {}),
        )
        write_file(folder / "part.json", [checksummed_json(record)])
        sync_folder(folder)

        # As every reader will, before any can.
        Part.open(folder, spec.fingerprint)
        return name if move_into_place(folder, target) else None


def _check_ids(rows: PartRows) -> None:
    """Raise `StoreError` for an id that stands twice, or that UTF-8 cannot hold."""
    quarantined = [entry.id for entry in rows.quarantined]

    for id_, times in Counter([*rows.ids, *quarantined]).items():
        if times > 1:
            raise StoreError(f"corpus {rows.corpus}: utterance {id_!r} appears twice in one part")
        if id_.encode(errors="replace").decode() != id_:
            fault = f"utterance {id_!r} has an id that is not valid Unicode"
            raise StoreError(f"corpus {rows.corpus}: {fault}")


def _write_files(
    folder: Path, files: FileContents, arrays: Mapping[str, PiecedArray]
) -> tuple[dict[str, ArrayRecord], dict[str, FileRecord]]:
    """Write a part's files. Returns what part.json records of its arrays and of its files."""
    blocks: dict[str, list[Block]] = {name: [] for name in arrays}
    pieces = {path: file_pieces(path, content, blocks) for path, content in files.items()}
    written = write_folder(folder, pieces)

    array_records = {}
    for name, array in arrays.items():
        dtype: Any = array.dtype.name
        array_records[name] = ArrayRecord(dtype, array.shape, tuple(blocks[name]))

    file_records = {}
    for path, file in written.items():
        file_records[path] = FileRecord(file.size, file.sha256)

    return array_records, file_records


def pack(rows: PartRows, spec: Spec) -> dict[str, PiecedArray]:
    """The utterances as `values` `[rows, dim]`, `offsets` int64 `[n + 1]` and the extras `[rows]`.

    Raises `StoreError` naming the utterance whose values are not finite, too large for float16, or
    of another shape.
    """
    pieces = []
    for id_, array in zip(rows.ids, rows.arrays, strict=True):
        pieces.append(_as_stored(id_, array, spec, rows.finite))

    lengths = [len(piece) for piece in pieces]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)

    if not pieces or sum(piece.nbytes for piece in pieces) < _SMALL * len(pieces):
        pieces = [np.concatenate([np.empty((0, spec.dim), spec.dtype), *pieces])]

    packed = {"values": PiecedArray(pieces), "offsets": PiecedArray([offsets])}
    if rows.ids:
        for name, extras in rows.extras.items():
            if name in packed or not _is_array_name(name):
                raise WrongUse(f"an extra array cannot be called {name!r}")
            packed[name] = PiecedArray([_pack_extra(name, extras, lengths, spec)])

    return packed


def _is_array_name(name: str) -> bool:
    return name.isidentifier() and name.isascii() and len(name) <= 64


def _pack_extra(
    name: str, extras: list[npt.NDArray[Any]], lengths: list[int], spec: Spec
) -> npt.NDArray[Any]:
    """An extra of all utterances, end to end, little-endian: `[rows]`."""
    shapes = [np.shape(extra) for extra in extras]
    if shapes != [(length,) for length in lengths]:
        fault = "has another length than the rows beside it"
        raise StoreError(f"{spec.name}: extra array '{name}' {fault}")

    joined = np.concatenate(extras)
    joined = joined.astype(joined.dtype.newbyteorder("<"), copy=False)
    if joined.dtype.name not in get_args(ArrayDtype):
        raise StoreError(f"{spec.name}: extra array '{name}' has dtype {joined.dtype}")

    return joined


def _as_stored(id_: str, array: npt.NDArray[Any], spec: Spec, finite: bool) -> npt.NDArray[Any]:
    """An utterance's values as its part holds them: `[n, dim]`, C-contiguous, in the spec's dtype.

    `finite`: the caller has checked values of that dtype.
    """
    utterance = f"{spec.name}: utterance {id_!r}"

    array = np.asarray(array)
    if spec.level == "utterance" and array.ndim == 1:
        array = array[None, :]

    is_table = array.ndim == 2 and array.shape[1] == spec.dim
    if not is_table or (spec.level == "utterance" and len(array) != 1):
        raise StoreError(f"{utterance} has shape {list(array.shape)}, not [rows, {spec.dim}]")
    if array.dtype.kind != "f":
        raise StoreError(f"{utterance} has dtype {array.dtype}, not a float")

    if finite and array.dtype == spec.dtype:
        return np.ascontiguousarray(array)

    if not np.isfinite(array).all():
        raise StoreError(f"{utterance} has values that are not finite; see what its input holds")

    with np.errstate(over="ignore"):
        stored = array.astype(spec.dtype, copy=False)
    if stored.dtype != array.dtype and not np.isfinite(stored).all():
        raise StoreError(f"{utterance} has values too large for float16; use --dtype float32")

    return np.ascontiguousarray(stored)
