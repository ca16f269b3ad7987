"""Bring your own features: rows that others computed, joined to a manifest and published like any others."""

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StoreError, WrongUse
from .foreign import Arrays, read_arrays
from .manifest import Manifest
from .packed import Packed
from .parts import PartRows
from .spec import Level, Modality, Spec, canonical_json
from .store import Feature, Store

_PART_BYTES = 64 << 20
_BESIDE = {"values", "offsets", "ids", "about"}


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    feature: str
    fingerprint: str
    rows: int
    missing: int  # utterances of the manifest that the file does not have
    parts: int  # published now; 0 if all was there already


def import_feature(
    store: Store,
    name: str,
    path: Path,
    modality: Modality,
    manifest: Manifest,
    ids: Sequence[str] | None = None,
    backend: str = "zarr",
    **provenance: Any,
) -> Imported:
    """Publish the rows of a feature file.

    The file holds `values` `[rows, dim]`, with `offsets` `[n + 1]` where an utterance has several rows, and `ids`; or
    one array per utterance, named by its id. Without ids anywhere the rows are in the manifest's order, one utterance
    each. `manifest` becomes the corpus's latest; one without the audio that the corpus has in the store is refused.
    Raises `StoreError` or `WrongUse` if shapes, ids or values are not what they should be; then nothing is published.
    """
    _check_keeps_audio(store, manifest)
    packed, by_id = _arrange(path, read_arrays(path), manifest, ids)
    rows = _rows_of(path, packed.ids, manifest)
    _check_finite(path, packed)
    spec = Spec(
        feature=name,
        modality=modality,
        level=_level(packed, modality),
        dim=packed.values.shape[1],
        dtype="float16" if packed.values.dtype == np.float16 else "float32",
        extractor="import",
        version=1,
        config={
            "sha256": _file_digest(path),
            "ids_sha256": hashlib.sha256(canonical_json(packed.ids)).hexdigest(),
            "joined_by": "id" if by_id else "manifest order",
        },
        provenance={
            "file": path.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **provenance,
        },
    )
    _check_range(path, packed, spec)
    feature = store.add(spec)
    store.put_manifest(manifest)
    digests = manifest.inputs(modality)
    inputs = [digests[row] for row in rows]
    parts = _publish(feature, manifest.corpus, packed, inputs, backend)
    return Imported(spec.name, spec.fingerprint, len(packed), len(manifest) - len(packed), parts)


def _check_keeps_audio(store: Store, manifest: Manifest) -> None:
    """A table that knows nothing of a corpus's audio would leave all that was computed from it superseded."""
    if manifest.corpus not in store.corpora():
        return
    known = store.manifest(manifest.corpus)
    kept = dict(zip(manifest.ids, manifest.inputs("audio"), strict=True))
    lost = [
        id_ for id_, digest in zip(known.ids, known.inputs("audio"), strict=True) if digest and kept.get(id_) != digest
    ]
    if lost:
        raise WrongUse(
            f"{store.path}: corpus {manifest.corpus} has audio (such as {lost[0]!r}) that the table does not name, so "
            "its features would count no more; leave --manifest out, or give the table another --corpus-name"
        )


def _arrange(path: Path, arrays: Arrays, manifest: Manifest, ids: Sequence[str] | None) -> tuple[Packed, bool]:
    """The file's arrays as packed utterances, and whether ids name them."""
    if "values" not in arrays:
        return _one_per_id(path, arrays), True
    values = arrays["values"]
    if ids is None and "ids" in arrays:
        ids = [str(id_) for id_ in arrays["ids"].reshape(-1)]
    names = list(manifest.ids if ids is None else ids)
    if "offsets" in arrays:
        offsets = _offsets(path, arrays["offsets"], len(values))
    else:
        offsets = np.arange(len(values) + 1, dtype=np.int64)
    if values.ndim != 2 or values.shape[1] < 1 or values.dtype.kind not in "fiu":
        raise StoreError(f"{path}: values have shape {list(values.shape)} ({values.dtype}), not numbers [rows, dim]")
    if len(names) != len(offsets) - 1:
        order = "utterances in the manifest; give ids with --ids" if ids is None else "ids"
        raise StoreError(f"{path}: has {len(offsets) - 1} rows for {len(names)} {order}")
    extras = {
        name: array
        for name, array in arrays.items()
        if name not in _BESIDE and array.shape == values.shape[:1] and name.isidentifier()
    }
    return Packed(_floats(values), offsets, names, extras), ids is not None


def _one_per_id(path: Path, arrays: Arrays) -> Packed:
    pieces = [np.atleast_2d(array) for array in arrays.values()]
    if not pieces:
        raise StoreError(f"{path}: holds no arrays")
    for id_, piece in zip(arrays, pieces, strict=True):
        if piece.ndim != 2 or piece.shape[1] != pieces[0].shape[1] or piece.dtype.kind not in "fiu":
            raise StoreError(f"{path}: {id_!r} has shape {list(piece.shape)} ({piece.dtype}), not numbers [rows, dim]")
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    return Packed(_floats(np.concatenate(pieces)), offsets, list(arrays), {})


def _offsets(path: Path, offsets: npt.NDArray[Any], rows: int) -> npt.NDArray[np.int64]:
    if (
        offsets.ndim != 1
        or offsets.dtype.kind not in "iu"
        or len(offsets) < 1
        or offsets[0] != 0
        or offsets[-1] != rows
        or (offsets[1:] < offsets[:-1]).any()
    ):
        raise StoreError(f"{path}: offsets do not rise from 0 to the {rows} rows of its values")
    return offsets.astype(np.int64)


def _floats(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        return values if values.dtype in (np.float16, np.float32) else values.astype(np.float32)


def _rows_of(path: Path, ids: list[str], manifest: Manifest) -> list[int]:
    numbers = {id_: number for number, id_ in enumerate(manifest.ids)}
    if len(set(ids)) != len(ids):
        twice = next(id_ for number, id_ in enumerate(ids) if id_ in ids[:number])
        raise StoreError(f"{path}: id {twice!r} stands twice")
    strange = [id_ for id_ in ids if id_ not in numbers]
    if strange:
        raise StoreError(
            f"{path}: {len(strange)} of {len(ids)} ids are not in corpus {manifest.corpus} (such as {strange[0]!r})"
        )
    return [numbers[id_] for id_ in ids]


def _check_finite(path: Path, packed: Packed) -> None:
    if not np.isfinite(packed.values).all():
        row = int(np.nonzero(~np.isfinite(packed.values).all(axis=1))[0][0])
        number = int(np.searchsorted(packed.offsets, row, side="right")) - 1
        raise StoreError(f"{path}: utterance {packed.ids[number]!r} has values that are not finite")


def _level(packed: Packed, modality: Modality) -> Level:
    if (np.diff(packed.offsets) == 1).all():
        return "utterance"
    return "frame" if modality == "audio" else "token"


def _check_range(path: Path, packed: Packed, spec: Spec) -> None:
    if spec.level != "utterance" and (np.diff(packed.offsets) == 0).any():
        empty = int(np.nonzero(np.diff(packed.offsets) == 0)[0][0])
        raise StoreError(f"{path}: utterance {packed.ids[empty]!r} has no rows")


def _publish(feature: Feature, corpus: str, packed: Packed, inputs: list[str | None], backend: str) -> int:
    published = 0
    start = 0
    row_bytes = packed.values.shape[1] * packed.values.itemsize
    while start < len(packed):
        most = packed.offsets[start] + _PART_BYTES // row_bytes
        stop = max(start + 1, int(np.searchsorted(packed.offsets, most, side="right")) - 1)
        first, last = packed.offsets[start], packed.offsets[stop]
        piece = Packed(
            packed.values[first:last],
            packed.offsets[start : stop + 1] - first,
            packed.ids[start:stop],
            {name: array[first:last] for name, array in packed.extras.items()},
        )
        rows = PartRows.from_packed(corpus, inputs[start:stop], piece)
        published += feature.publish(rows, backend, {"command": "import"}) is not None
        start = stop
    return published


def _file_digest(path: Path) -> str:
    """Sha256 of a file; of a folder, of the names and digests of its files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return hashlib.sha256(
            canonical_json([[str(file.relative_to(path)), _file_digest(file)] for file in files])
        ).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_ids(path: Path) -> list[str]:
    """Ids from a file: a JSON list (.json), or one per line."""
    if not path.is_file():
        raise WrongUse(f"{path}: does not exist")
    try:
        text = path.read_text(encoding="utf-8")
        ids = json.loads(text) if path.suffix == ".json" else text.removesuffix("\n").replace("\r\n", "\n").split("\n")
    except ValueError as error:
        raise StoreError(f"{path}: no list of ids ({error})") from error
    if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
        raise StoreError(f"{path}: no list of ids")
    return ids
