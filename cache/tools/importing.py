"""Import features that other tools computed."""

import dataclasses
import datetime
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ser.cache.publish import publish_part
from ser.cache.rows import Packed, PartRows
from ser.cache.spec import Level, Spec
from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.corpus.names import Modality, check_name
from ser.corpus.segments import has_segments, places_of
from ser.disk.memory import name_what_does_not_fit
from ser.disk.read import read_named
from ser.disk.records import canonical_json
from ser.errors import StoreError, WrongUse

from .foreign import ForeignArrays, StoredArray, read_arrays
from .in_memory import utterances_in_memory

# ForeignArrays of a feature file that are no extras of its rows.
NO_EXTRAS = {"values", "offsets", "ids", "paths", "places", "about"}
# Decimals of a second that two notations of one place have in common.
SAME_PLACE = 3


@dataclass(frozen=True)
class Imported:
    """What an import did, as `ser cache import --json` prints it."""

    feature: str
    fingerprint: str
    rows: int
    # Utterances of the manifest that the file does not have.
    missing: int
    # Parts published now; 0 if all were there.
    parts: int
    # Numbers in a row.
    dim: int
    # "id", or "manifest order" where the file names no ids.
    joined_by: str


def read_ids(path: Path) -> list[str]:
    """Ids from a file, one per line."""
    try:
        with name_what_does_not_fit(path, WrongUse):
            text = read_named(path).decode()
    except WrongUse:
        raise
    except OSError as error:
        fault = f"cannot be read as ids ({error.strerror}); give one id per line"
        raise WrongUse(f"{path}: {fault}") from None
    except ValueError as error:
        raise StoreError(f"{path}: not a list of ids ({error})") from error
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")


def import_feature(
    store: Store,
    name: str,
    path: Path,
    modality: Modality,
    manifest: Manifest,
    ids: Sequence[str] | None = None,
    backend: str = "zarr",
    replace: bool = False,
    has_header: bool = True,
) -> Imported:
    """Publish the rows of a feature file.

    The file holds `values` `[rows, dim]`, with `offsets` `[n + 1]` where an utterance has several
    rows, and `ids`; or one array per utterance, named by its id. Without any ids the rows are in
    the manifest's order, one per utterance. `manifest` becomes the corpus's latest when all rows
    are published; one that differs from the corpus's in the store is refused, unless it may
    `replace` that. `has_header` is False for a CSV whose first line is a row. Raises `StoreError`
    or `WrongUse` for wrong shapes, ids or values; then nothing is published.
    """
    _check_manifest(store, manifest, replace)

    rows, joined_by_id = _arrange(path, read_arrays(path, has_header), manifest, ids)
    _check_finite(path, rows)

    spec = _spec_of_import(name, path, modality, rows, joined_by_id)
    feature = store.add(spec)

    digests = dict(zip(manifest.ids, manifest.inputs(modality), strict=True))
    parts = 0
    for packed in utterances_in_memory(rows):
        part = PartRows.from_packed(manifest.corpus, [digests[id_] for id_ in packed.ids], packed)
        if publish_part(feature, part, backend, {"command": "import"}) is not None:
            parts += 1

    store.put_manifest(manifest, replace, "cache import")
    missing = len(manifest) - len(rows)
    return Imported(
        spec.name,
        spec.fingerprint,
        len(rows),
        missing,
        parts,
        spec.dim,
        str(spec.config["joined_by"]),
    )


def _check_manifest(store: Store, manifest: Manifest, replace: bool) -> None:
    """Refuse a manifest that would supersede rows, and change labels, of the corpus."""
    if check_name("corpus", manifest.corpus) not in store.corpora() or replace:
        return
    if not store.manifest(manifest.corpus).same(manifest):
        fault = (
            f"corpus {manifest.corpus} has another manifest than the table; leave --manifest out"
        )
        remedy = "give the table another --corpus-name, or let it take that place with --replace"
        raise WrongUse(f"{store.path}: {fault}, {remedy}")


def _spec_of_import(
    name: str, path: Path, modality: Modality, rows: Packed, joined_by_id: bool
) -> Spec:
    """The spec of an imported feature: the file's content and ids, and how rows were joined."""
    level: Level = "frame" if modality == "audio" else "token"
    if (np.diff(rows.offsets) == 1).all():
        level = "utterance"

    return Spec(
        feature=name,
        modality=modality,
        level=level,
        dim=rows.values.shape[1],
        dtype="float16" if rows.values.dtype == np.float16 else "float32",
        extractor="import",
        version=1,
        config={
            "sha256": file_digest(path),
            "ids_sha256": hashlib.sha256(canonical_json(rows.ids)).hexdigest(),
            "joined_by": "id" if joined_by_id else "manifest order",
        },
        provenance={
            "file": path.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )


def _arrange(
    path: Path, arrays: ForeignArrays, manifest: Manifest, ids: Sequence[str] | None
) -> tuple[Packed, bool]:
    """The file's rows, with `values` that are read when indexed, and whether ids name them."""
    if "values" not in arrays:
        ids, arrays = _join_arrays_of_utterances(path, arrays, ids)
    elif ids is None and "ids" in arrays:
        ids = [_id_of(id_) for id_ in arrays["ids"].reshape(-1)]
    elif ids is None and "paths" in arrays:
        paths = arrays["paths"].tolist()
        if "places" in arrays and has_segments(manifest):
            ids = _ids_of_segments(path, paths, arrays["places"], manifest)
        else:
            ids = _names_below(paths, set(manifest.ids))

    values = _check_values(path, arrays["values"])
    offsets = _check_offsets(path, arrays.get("offsets"), values.shape[0])
    names = list(manifest.ids if ids is None else ids)
    _check_ids(path, names, offsets, manifest, named=ids is not None)

    extras = {}
    for name, array in arrays.items():
        one_value_a_row = array.shape == values.shape[:1]
        if name not in NO_EXTRAS and one_value_a_row and name.isidentifier():
            extras[name] = array

    return Packed(values, offsets.astype(np.int64), names, extras), ids is not None


def _id_of(value: Any) -> str:
    """An id as a text; some tools write bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def _names_below(paths: Sequence[str], known: set[str]) -> list[str]:
    """What of each audio path, without its ending, is a known name.

    `/data/wav/a` is the utterance `wav/a`, or else `a`; a path that is neither stays as it is.
    """
    ids = []
    for path in paths:
        below = path
        while below not in known and "/" in below:
            below = below.partition("/")[2]
        ids.append(below if below in known else path)
    return ids


def _ids_of_segments(
    path: Path, paths: Sequence[str], places: Any, manifest: Manifest
) -> list[str]:
    """The ids of the segments that have these audio paths, without endings, and `places` `[n, 2]`.

    Places are compared by their milliseconds. Raises `StoreError` for one that no segment has, or
    several.
    """
    files = [str(PurePosixPath(name or "").with_suffix("")) for name in manifest.column("audio")]
    by_place: dict[tuple[str, float, float | None], list[str]] = {}
    for file, (start, end), id_ in zip(files, places_of(manifest), manifest.ids, strict=True):
        by_place.setdefault(_rounded(file, start, end), []).append(id_)
        if end is not None:
            # What ends with the file may say so.
            by_place.setdefault(_rounded(file, start, None), []).append(id_)

    ids = []
    rows = zip(paths, _names_below(paths, set(files)), places.tolist(), strict=True)
    for written, file, (start, end) in rows:
        found = by_place.get(_rounded(file, start, None if math.isnan(end) else end), [])
        if len(found) != 1:
            fault = f"{len(found) or 'no'} utterances of corpus {manifest.corpus} are the part"
            raise StoreError(
                f"{path}: {fault} of {written} from {start:g} to {end:g} s; name each by a column "
                "id"
            )
        ids += found
    return ids


def _rounded(file: str, start: float, end: float | None) -> tuple[str, float, float | None]:
    return file, round(start, SAME_PLACE), None if end is None else round(end, SAME_PLACE)


def _join_arrays_of_utterances(
    path: Path, arrays: ForeignArrays, ids: Sequence[str] | None
) -> tuple[list[str], ForeignArrays]:
    """The ids and the joined values of a file with one array per utterance, named by its id."""
    if not arrays:
        raise StoreError(f"{path}: holds no arrays")
    if ids is not None and sorted(ids) != sorted(arrays):
        fault = "its arrays are named by other ids than those given; leave --ids out"
        raise StoreError(f"{path}: {fault}")

    first = next(iter(arrays.values()))
    dim = first.shape[-1:] or (0,)
    for id_, array in arrays.items():
        is_rows = len(array.shape) in (1, 2) and array.shape[-1:] == dim
        if not is_rows or not _is_number(array.dtype):
            shape = f"shape {list(array.shape)}, not [rows, {dim[0]}]"
            raise StoreError(f"{path}: no `values`, and {id_!r} has {shape}")

    lengths = [math.prod(array.shape[:-1]) for array in arrays.values()]
    offsets = np.cumsum([0, *lengths])
    dtype = np.result_type(*{array.dtype for array in arrays.values()})
    shape_of_all = (int(offsets[-1]), *dim)
    joined = StoredArray(path, first.open, list(arrays), offsets.tolist(), shape_of_all, dtype)
    return list(arrays), {"values": joined, "offsets": offsets}


def _is_number(dtype: Any) -> bool:
    return np.dtype(dtype).kind in "fiu"


def _check_values(path: Path, values: Any) -> Any:
    """The values `[rows, dim]`, as float16 or float32."""
    shape = list(values.shape)
    if len(shape) != 2 or shape[1] < 1 or not _is_number(values.dtype):
        fault = f"values have shape {shape} ({values.dtype}), not numbers [rows, dim]"
        raise StoreError(f"{path}: {fault}")

    if values.dtype in (np.float16, np.float32):
        return values
    return dataclasses.replace(values, dtype=np.dtype(np.float32))


def _check_offsets(path: Path, offsets: Any, rows: int) -> Any:
    """The offsets `[n + 1]` from 0 to the number of rows; without any, each row is an utterance."""
    if offsets is None:
        return np.arange(rows + 1)

    is_integers = offsets.ndim == 1 and offsets.dtype.kind in "iu"
    fits = is_integers and [*offsets[:1], *offsets[-1:]] == [0, rows]
    if not fits or (offsets[1:] < offsets[:-1]).any():
        fault = f"offsets do not rise from 0 to the {rows} rows of its values"
        raise StoreError(f"{path}: {fault}")
    return offsets


def _check_ids(path: Path, names: list[str], offsets: Any, manifest: Manifest, named: bool) -> None:
    """Raise `StoreError` unless each id names one utterance of the manifest, with its rows.

    `named`: the ids stand in a file, and are not those of the manifest in its order.
    """
    if len(names) != len(offsets) - 1:
        order = "ids" if named else "utterances in the manifest; give ids with --ids"
        raise StoreError(f"{path}: has {len(offsets) - 1} rows for {len(names)} {order}")

    for id_, times in Counter(names).items():
        if times > 1:
            raise StoreError(f"{path}: id {id_!r} appears twice")

    strangers = sorted(set(names) - set(manifest.ids))
    if strangers:
        count = f"{len(strangers)} of {len(names)} ids"
        fault = f"{count} are not in corpus {manifest.corpus} (such as {strangers[0]!r})"
        raise StoreError(f"{path}: {fault}")

    lengths = np.diff(offsets)
    if not lengths.all():
        raise StoreError(f"{path}: utterance {names[int(lengths.argmin())]!r} has no rows")


def _check_finite(path: Path, rows: Packed) -> None:
    """Raise `StoreError` naming the first utterance with a value that is not finite."""
    for packed in utterances_in_memory(rows):
        if np.isfinite(packed.values).all():
            continue
        for number, id_ in enumerate(packed.ids):
            if not np.isfinite(packed[number]).all():
                raise StoreError(f"{path}: utterance {id_!r} has values that are not finite")


def file_digest(path: Path) -> str:
    """Sha256 of a file; of a folder, of the names and digests of its files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        named = [[str(file.relative_to(path)), file_digest(file)] for file in files]
        return hashlib.sha256(canonical_json(named)).hexdigest()

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
