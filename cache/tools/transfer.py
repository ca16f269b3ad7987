"""Import features of other tools into a store, and export features: to files, another store, or
pandas.
"""

import csv
import dataclasses
import datetime
import hashlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ser.cache.blocks import bytes_of
from ser.cache.feature import Feature, read_part
from ser.cache.publish import publish_part
from ser.cache.rows import Packed, PartRows
from ser.cache.spec import Level, Spec
from ser.cache.store import Store, open_store
from ser.cache.zarr_layout import chunk_rows
from ser.corpus.manifest import Manifest
from ser.corpus.names import Modality, check_name
from ser.disk.faults import explain_disk_errors
from ser.disk.read import read_named
from ser.disk.records import canonical_json
from ser.disk.write import sync_folder, sync_tree
from ser.errors import StoreError, WrongUse, unknown

from .foreign import Arrays, Stored, index_of, read_arrays
from .maintain import corpora_of, latest_manifests

__all__ = ["pooled", "utterances"]

if TYPE_CHECKING:
    import pandas as pd

_PART_BYTES = 64 << 20
_BESIDE = {"values", "offsets", "ids", "about"}
_EXPORTS = (".h5", ".hdf5", ".zarr", ".npz", ".safetensors", ".csv")


def read_ids(path: Path) -> list[str]:
    """Ids from a file, one per line."""
    try:
        return read_named(path).decode().removesuffix("\n").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise WrongUse(
            f"{path}: cannot be read as ids ({error.strerror}); give one id per line"
        ) from None
    except ValueError as error:
        raise StoreError(f"{path}: not a list of ids ({error})") from error


def import_feature(
    store: Store,
    name: str,
    path: Path,
    modality: Modality,
    manifest: Manifest,
    ids: Sequence[str] | None = None,
    backend: str = "zarr",
    replace: bool = False,
) -> dict[str, Any]:
    """Publish the rows of a feature file.

    Returns `feature`, `fingerprint`, `rows`, `missing` (utterances of the manifest that the file
    does not have) and `parts` (published now; 0 if all were there).

    The file holds `values` `[rows, dim]`, with `offsets` `[n + 1]` where an utterance has several
    rows, and `ids`; or one array per utterance, named by its id. Without any ids the rows are in
    the manifest's order, one per utterance. `manifest` becomes the corpus's latest when all rows
    are published; one that differs from the corpus's in the store is refused, unless it may
    `replace` that. Raises `StoreError` or `WrongUse` for wrong shapes, ids or values; then nothing
    is published.
    """
    known = check_name("corpus", manifest.corpus) in store.corpora() and not replace
    if known and not store.manifest(manifest.corpus).same(
        manifest
    ):  # it would supersede rows, and change labels
        fault = (
            f"corpus {manifest.corpus} has another manifest than the table; leave --manifest out"
        )
        remedy = "give the table another --corpus-name, or let it take that place with --replace"
        raise WrongUse(f"{store.path}: {fault}, {remedy}")
    rows, by_id = _arrange(path, read_arrays(path), manifest, ids)
    level: Level = "frame" if modality == "audio" else "token"
    spec = Spec(
        feature=name,
        modality=modality,
        level="utterance" if (np.diff(rows.offsets) == 1).all() else level,
        dim=rows.values.shape[1],
        dtype="float16" if rows.values.dtype == np.float16 else "float32",
        extractor="import",
        version=1,
        config={
            "sha256": file_digest(path),
            "ids_sha256": hashlib.sha256(canonical_json(rows.ids)).hexdigest(),
            "joined_by": "id" if by_id else "manifest order",
        },
        provenance={
            "file": path.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )
    feature = store.add(spec)
    digests = dict(zip(manifest.ids, manifest.inputs(modality), strict=True))
    parts = 0
    for packed in _batches(rows):
        part = PartRows.from_packed(manifest.corpus, [digests[id_] for id_ in packed.ids], packed)
        parts += publish_part(feature, part, backend, {"command": "import"}) is not None
    store.put_manifest(manifest, replace, "cache import")
    counts = {"rows": len(rows), "missing": len(manifest) - len(rows), "parts": parts}
    return {"feature": spec.name, "fingerprint": spec.fingerprint, **counts}


def _arrange(
    path: Path, arrays: Arrays, manifest: Manifest, ids: Sequence[str] | None
) -> tuple[Packed, bool]:
    """The file's rows, whose `values` are read when indexed, and whether ids name the utterances."""
    if "values" not in arrays:  # one array per utterance
        if not arrays:
            raise StoreError(f"{path}: holds no arrays")
        if ids is not None and sorted(ids) != sorted(arrays):
            raise StoreError(
                f"{path}: its arrays are named by other ids than those given; leave --ids out"
            )
        first = next(iter(arrays.values()))
        dim = first.shape[-1:] or (0,)
        for id_, piece in arrays.items():
            if (
                len(piece.shape) not in (1, 2)
                or piece.shape[-1:] != dim
                or np.dtype(piece.dtype).kind not in "fiu"
            ):
                fault = (
                    f"no `values`, and {id_!r} has shape {list(piece.shape)}, not [rows, {dim[0]}]"
                )
                raise StoreError(f"{path}: {fault}")
        offsets = np.cumsum([0, *(math.prod(piece.shape[:-1]) for piece in arrays.values())])
        ids = list(arrays)
        dtype = np.result_type(*{piece.dtype for piece in arrays.values()})
        whole = Stored(path, first.open, ids, offsets.tolist(), (int(offsets[-1]), *dim), dtype)
        arrays = {"values": whole, "offsets": offsets}
    elif ids is None and "ids" in arrays:
        ids = [str(id_) for id_ in arrays["ids"].reshape(-1)]
    names = list(manifest.ids if ids is None else ids)
    values: Any = arrays["values"]
    if len(values.shape) != 2 or values.shape[1] < 1 or np.dtype(values.dtype).kind not in "fiu":
        raise StoreError(
            f"{path}: values have shape {list(values.shape)} ({values.dtype}), not numbers [rows, dim]"
        )
    if values.dtype not in (np.float16, np.float32):
        values = dataclasses.replace(values, dtype=np.dtype(np.float32))
    rows = values.shape[0]
    offsets = arrays.get("offsets", np.arange(rows + 1))
    fits = (
        offsets.ndim == 1
        and offsets.dtype.kind in "iu"
        and [*offsets[:1], *offsets[-1:]] == [0, rows]
    )
    if not fits or (offsets[1:] < offsets[:-1]).any():
        raise StoreError(f"{path}: offsets do not rise from 0 to the {rows} rows of its values")
    if len(names) != len(offsets) - 1:
        order = "utterances in the manifest; give ids with --ids" if ids is None else "ids"
        raise StoreError(f"{path}: has {len(offsets) - 1} rows for {len(names)} {order}")
    if twice := [id_ for id_, times in Counter(names).items() if times > 1]:
        raise StoreError(f"{path}: id {twice[0]!r} appears twice")
    if others := sorted(set(names) - set(manifest.ids)):
        count = f"{len(others)} of {len(names)} ids"
        raise StoreError(
            f"{path}: {count} are not in corpus {manifest.corpus} (such as {others[0]!r})"
        )
    if not (lengths := np.diff(offsets)).all():
        raise StoreError(f"{path}: utterance {names[int(lengths.argmin())]!r} has no rows")
    extras = {
        name: array
        for name, array in arrays.items()
        if name not in _BESIDE and array.shape == values.shape[:1] and name.isidentifier()
    }
    rows_of_file = Packed(values, offsets.astype(np.int64), names, extras)
    for packed in _batches(rows_of_file):
        if not np.isfinite(packed.values).all():
            bad = next(
                id_
                for number, id_ in enumerate(packed.ids)
                if not np.isfinite(packed[number]).all()
            )
            raise StoreError(f"{path}: utterance {bad!r} has values that are not finite")
    return rows_of_file, ids is not None


def _batches(
    rows: Packed, read: Callable[[slice], npt.NDArray[Any]] | None = None
) -> Iterator[Packed]:
    """Utterances in memory, at most `_PART_BYTES` of values at once, or one; `read` reads the
    values of a slice.
    """
    start, offsets, values = 0, rows.offsets, rows.values
    most = _PART_BYTES // (values.shape[1] * np.dtype(values.dtype).itemsize)
    while start < len(rows):
        stop = max(
            start + 1, int(np.searchsorted(offsets, offsets[start] + most, side="right")) - 1
        )
        here = slice(offsets[start], offsets[stop])
        extras = {name: array[here] for name, array in rows.extras.items()}
        batch = read(slice(start, stop)) if read else values[here]
        yield Packed(
            batch, offsets[start : stop + 1] - offsets[start], rows.ids[start:stop], extras
        )
        start = stop


def file_digest(path: Path) -> str:
    """Sha256 of a file; of a folder, of the names and digests of its files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        named = [[str(file.relative_to(path)), file_digest(file)] for file in files]
        return hashlib.sha256(canonical_json(named)).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(
    path: Path,
    rows: Packed,
    batches: Iterator[Packed],
    about: dict[str, Any],
    columns: Sequence[str],
) -> None:
    suffix, small = path.suffix.lower(), {"offsets": rows.offsets, **rows.extras}
    arrays: dict[str, Any] = {**small, "values": rows.values}
    blocks = (batch.values for batch in batches)
    if suffix == ".npz":
        arrays |= {"ids": np.array(rows.ids, str), "about": np.array(json.dumps(about))}
        with zipfile.ZipFile(path, "x") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    kind = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                    np.lib.format.write_array_header_1_0(member, kind)
                    member.writelines(map(bytes_of, blocks if name == "values" else [array]))
    elif suffix == ".safetensors":
        header, end = dict[str, Any](), 0
        for name, array in sorted(
            arrays.items(), key=lambda one: -one[1].dtype.itemsize
        ):  # so that each is aligned
            begin, end = end, end + array.nbytes
            kind_and_bits = f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
            header[name] = {
                "dtype": kind_and_bits,
                "shape": array.shape,
                "data_offsets": [begin, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in header:
                file.writelines(map(bytes_of, blocks if name == "values" else [arrays[name]]))
        index_of(path).write_text(json.dumps({"ids": rows.ids, **about}))
    elif suffix == ".zarr":
        import zarr

        group = zarr.create_group(path, attributes={"ids": rows.ids, **about})
        options: dict[str, Any] = {"config": {"write_empty_chunks": True}}
        # A missing value must not read as zero: a fill value that no offset or word has, and no
        # chunk is left out.
        shape, dtype = rows.values.shape, rows.values.dtype
        chunks, end = (chunk_rows(shape[0]), shape[1]), 0
        values = group.create_array(
            "values", shape=shape, chunks=chunks, dtype=dtype, fill_value=np.nan, **options
        )
        for block in blocks:
            values[end : end + len(block)] = block
            end += len(block)
        for name, array in small.items():
            fill = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max
            group.create_array(name, data=array, fill_value=fill, **options)
    elif suffix == ".csv":
        beside = ["id"] if (level := about["spec"]["level"]) == "utterance" else ["id", level]
        with path.open("x", encoding="utf-8", newline="") as sheet:
            table = csv.writer(sheet)
            table.writerow([*beside, *columns])
            for batch in batches:
                for number, id_ in enumerate(batch.ids):
                    lines = enumerate(batch[number].astype(str))
                    table.writerows([*[id_, k][: len(beside)], *line] for k, line in lines)
    else:
        with path.open("xb") as file:
            file.write(_hdf5(rows, small, about))
            file.writelines(map(bytes_of, blocks))


def _hdf5(
    rows: Packed, small: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]
) -> memoryview:
    """An HDF5 file up to its values, which are all that follows.

    It is made in memory, because the HDF5 library reports a full disk late, and crashes where one
    fails.
    """
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w") as hdf5:
        for name, array in small.items():
            hdf5.create_dataset(name, data=array)
        hdf5.create_dataset("ids", data=rows.ids, dtype=h5py.string_dtype(), shape=(len(rows),))
        # A dataset, since an attribute may hold no more than 64 KB.
        hdf5.create_dataset("about", data=json.dumps(about), dtype=h5py.string_dtype())
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)  # allocated, but nothing is written
        made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        kind, space = (
            h5py.h5t.py_create(rows.values.dtype),
            h5py.h5s.create_simple(rows.values.shape),
        )
        offset = h5py.h5d.create(hdf5.id, b"values", kind, space, made).get_offset()
    return image.getbuffer()[:offset]


def export(
    feature: Feature, manifest: Manifest, path: Path, columns: Sequence[str] | None = None
) -> Path:
    """Write a manifest's utterances, in its order and without the quarantined, to one file, in the
    suffix's format.

    It holds `values` `[rows, dim]`, `offsets` int64 `[n + 1]`, the extras `[rows]`, the ids, and
    the spec as JSON; .zarr is a folder, .safetensors has ids and spec in `<path>.json`, and .csv
    names the values by `columns`, if given. Raises `WrongUse` if `path` exists, `MissingRows` if an
    utterance is not in the store.
    """
    if path.suffix.lower() not in _EXPORTS:
        raise unknown("export format", path.suffix or path.name, _EXPORTS)
    if not path.parent.is_dir():
        raise WrongUse(f"{path.parent}: no such folder; make it first, or name another file")
    if path.exists() or index_of(path).exists():
        raise WrongUse(f"{path}: exists already; name another file")
    origin = {
        "corpus": manifest.corpus,
        "manifest": manifest.digest,
        "fingerprint": feature.fingerprint,
    }
    about = {**origin, "spec": feature.spec.to_json()}
    kept = np.isin(manifest.ids, [*feature.quarantined(manifest)], invert=True)
    manifest = dataclasses.replace(manifest, table=manifest.table.filter(kept))
    places = feature.places(manifest, range(len(manifest)))
    rows = feature.gather(places, manifest.ids, values=False)
    # Only shape and dtype, as zeros that take no memory; the values are read as they are written.
    rows.values = np.broadcast_to(rows.values.dtype.type(0), (rows.offsets[-1], feature.spec.dim))
    batches = _batches(rows, lambda some: feature.gather(places[some], [], extras=False).values)
    if cut := [id_ for id_ in manifest.ids if "\0" in id_]:
        raise StoreError(
            f"{path}: id {cut[0]!r} holds a NUL, which these formats cut off; rename the utterance"
        )
    with (
        explain_disk_errors(f"exporting to {path}", path.parent, rows.values.nbytes),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary,
    ):
        columns = columns or [f"{feature.spec.name}.{k}" for k in range(feature.spec.dim)]
        _write(Path(temporary) / path.name, rows, batches, about, columns)
        sync_tree(Path(temporary))
        for file in sorted(
            Path(temporary).iterdir(), reverse=True
        ):  # an index comes before its file
            os.rename(file, path.with_name(file.name))  # noqa: PTH104
        sync_folder(path.parent)
    return path


def copy(feature: Feature, target: Store, backend: str) -> int:
    """Copy all parts of a feature into another store, in this backend.

    Bit for bit, with rows that no manifest names and quarantined utterances; the fingerprint stays.
    Missing manifests of the corpora that have rows of it, their own or their parent's, are copied
    too. Returns how many parts were missing. Raises `WrongUse` if the target is the feature's own
    store.
    """
    if target.path.resolve() == feature.store.resolve():
        raise WrongUse(
            f"{target.path}: is the store that {feature.spec.name} is in; name another folder"
        )
    source, made, copied = open_store(feature.store), target.add(feature.spec), 0
    for corpus in corpora_of(feature, latest_manifests(source)):
        if corpus in source.corpora() and corpus not in target.corpora():
            target.put_manifest(source.manifest(corpus), command="cache export")
    for part in feature.parts():
        copied += (
            publish_part(made, read_part(feature, part), backend, part.record.written_by)
            is not None
        )
    return copied


def utterances(manifest: Manifest) -> "pd.DataFrame":
    """The manifest's columns, indexed by `id`."""
    return manifest.table.to_pandas().set_index("id")


def pooled(
    feature: Feature, manifest: Manifest, pool: Literal["mean", "meanstd"] = "mean"
) -> "pd.DataFrame":
    """One float32 row per utterance: the mean over its frames or tokens, or mean and standard
    deviation.

    Columns are `mean.0`, `mean.1`, … (and `std.0`, …), or `0`, `1`, … of a feature that is one
    vector already; the index holds the ids in the manifest's order, without quarantined ones.
    Raises `MissingRows` if others are missing.
    """
    import pandas as pd

    held = feature.quarantined(manifest)
    packed = feature.load(
        manifest, [row for row, id_ in enumerate(manifest.ids) if id_ not in held]
    )
    ids = pd.Index(packed.ids, name="id")
    columns = [str(k) for k in range(feature.spec.dim)]
    if feature.spec.level == "utterance":
        return pd.DataFrame(packed.values.astype(np.float32), ids, columns)
    statistics = ("mean", "std") if pool == "meanstd" else ("mean",)
    table = np.empty((len(packed), len(statistics) * feature.spec.dim), np.float32)
    for number, row in enumerate(table):
        values = packed[number].astype(np.float32)
        row[:] = np.concatenate([getattr(values, statistic)(axis=0) for statistic in statistics])
    return pd.DataFrame(table, ids, [f"{name}.{k}" for name in statistics for k in columns])
