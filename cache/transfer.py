"""A manifest, or a feature with one row per utterance, as a pandas table."""

import datetime
import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ser.errors import CorpusError, SerError, StoreError, WrongUse, unknown

from .atomic_io import faults_named, sync_folder
from .backends import foreign_hdf5
from .manifest import SCHEMA, IdsSeen, Manifest, id_fault
from .part import Packed, PartRows
from .spec import Level, Modality, Spec, canonical_json
from .store import Feature, Store

if TYPE_CHECKING:
    import pandas as pd


_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_manifest_table(path: Path, corpus: str) -> Manifest:
    """Read a CSV, TSV or Parquet table, rows in the file's order.

    Columns are those of the manifest; only `id` must be there, others are left out. Empty fields are nulls. In a text
    table `votes` is JSON: one list of categories per rater.
    Raises `WrongUse` if the file is no such table and `CorpusError` naming the row that is wrong.
    """
    if not path.is_file():
        raise WrongUse(f"{path}: does not exist")
    table = _read(path)
    if "id" not in table.column_names:
        raise WrongUse(f"{path}: has no column 'id'; columns: {', '.join(table.column_names)}")
    names = [name for name in SCHEMA.names if name in table.column_names]
    rows = [_typed(path, number, row) for number, row in enumerate(table.select(names).to_pylist(), 1)]
    seen = IdsSeen()
    for number, row in enumerate(rows, 1):
        if fault := id_fault(row["id"]) or seen.fault(row["id"]):
            raise CorpusError(f"{path}: row {number}: {fault}")
    try:
        return Manifest.from_rows(corpus, rows)
    except (pa.ArrowException, TypeError) as error:
        raise CorpusError(f"{path}: cannot be a manifest ({str(error).splitlines()[0]})") from error


def _read(path: Path) -> pa.Table:
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return pq.ParquetFile(path).read()
        if suffix not in _SEPARATORS:
            raise unknown("table format", suffix or path.name, [*_SEPARATORS, ".parquet"])
        with path.open(encoding="utf-8") as file:
            names = [name.strip().strip('"\ufeff') for name in file.readline().rstrip("\n").split(_SEPARATORS[suffix])]
        return csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter=_SEPARATORS[suffix], newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=[""]
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]})") from error


def _typed(path: Path, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's fields in the manifest's types; text tables come as text."""
    typed: dict[str, Any] = {}
    for name, value in row.items():
        kind = SCHEMA.field(name).type
        try:
            if value is None or value == "":
                typed[name] = None
            elif name == "votes":
                typed[name] = json.loads(value) if isinstance(value, str) else value
            elif pa.types.is_integer(kind):
                typed[name] = int(value)
            elif pa.types.is_floating(kind):
                typed[name] = float(value)
            else:
                typed[name] = str(value)
        except (TypeError, ValueError) as error:
            raise CorpusError(f"{path}: row {number}, column '{name}': {value!r} is not valid") from error
    if typed.get("id") is None:
        raise CorpusError(f"{path}: row {number} has no id")
    return typed


Arrays = dict[str, npt.NDArray[Any]]

# Blosc, zstd and gzip bound what they unpack by the chunk's shape; sharding hides missing chunks, so it is not here.
_CODECS = {"bytes", "crc32c", "zstd", "gzip", "blosc"}


def read_arrays(path: Path) -> Arrays:
    """Every array in a file, by name: `values`, `offsets`, `ids` and extras, or one array per utterance id.

    An .npy file and a CSV give `values` (and `ids` from a CSV's first column, when it is called id).
    Raises `WrongUse` for an unknown kind of file and `StoreError` for one that cannot be trusted.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise unknown("feature file format", suffix or path.name, _READERS)
    if not path.exists():
        raise WrongUse(f"{path}: does not exist")
    if path.is_dir() != (suffix == ".zarr"):
        raise WrongUse(f"{path}: is {'a folder' if path.is_dir() else 'no folder'}, not what its name says")
    if not (path.is_dir() or path.is_file()):
        raise WrongUse(f"{path}: is no plain file")
    try:
        return _READERS[suffix](path)
    except SerError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path}: cannot be read as {suffix[1:]} ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _check_size(path: Path, size: int) -> None:
    """Refuse what could not be held in memory anyway."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise StoreError(f"{path}: claims {size / 1e9:.0f} GB of values, more than this machine's memory")


def _read_npy(path: Path) -> Arrays:
    with path.open("rb") as file:
        return {"values": _npy(path, file, path.stat().st_size)}


def _npy(path: Path, file: Any, size: int) -> npt.NDArray[Any]:
    """One .npy stream of `size` bytes. The header is held against the size before anything is allocated."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise StoreError(f"{path}: is of .npy version {version}; save it again with numpy.save")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise StoreError(f"{path}: holds pickled objects, which could run code; save it as plain numbers")
    bytes_ = math.prod(shape) * dtype.itemsize
    if bytes_ > size:
        raise StoreError(f"{path}: claims {bytes_} bytes of values and has {size}")
    content = file.read(bytes_)
    if len(content) != bytes_:
        raise StoreError(f"{path}: cut short")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _read_npz(path: Path) -> Arrays:
    arrays: Arrays = {}
    with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            if not member.filename.endswith(".npy") or member.filename[:-4] in arrays:
                raise StoreError(f"{path}: holds {member.filename!r}, no or no single .npy member")
            with archive.open(member) as file:
                arrays[member.filename[:-4]] = _npy(path, file, member.file_size)
    return arrays


def _read_hdf5(path: Path) -> Arrays:
    import h5py

    arrays: Arrays = {}
    with h5py.File(path, "r") as file:
        for name in file:
            if fault := foreign_hdf5(file, name):
                raise StoreError(f"{path}: {fault}; copy its values into plain datasets first")
            dataset = file[name]
            if (size := dataset.size or 0) and not _stored_whole(dataset):
                raise StoreError(f"{path}: '{name}' claims {size} values that the file does not hold")
            _check_size(path, dataset.nbytes)
            read = dataset[()]
            text = h5py.check_string_dtype(dataset.dtype) is not None
            arrays[name] = np.asarray(dataset.asstr()[()], str) if text else np.asarray(read)
    return arrays


def _stored_whole(dataset: Any) -> bool:
    """Whether bytes were ever written for every value; HDF5 reads what is not there as zeros."""
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size() >= dataset.nbytes)
    chunks = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    return bool(dataset.id.get_num_chunks() == chunks)


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: Arrays = load_file(path)
    except SafetensorError as error:
        raise StoreError(f"{path}: no sound safetensors file ({_first_line(error)})") from error
    if index_of(path).exists() and "ids" not in arrays:
        arrays["ids"] = np.array(json.loads(index_of(path).read_bytes())["ids"], str)
    return arrays


def _read_csv(path: Path) -> Arrays:
    import pyarrow.csv as csv

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open("rb") as file:
        first = file.readline(1 << 24).decode(errors="replace").rstrip("\r\n").split(separator)
    names = [name.strip().strip('"') for name in first]
    headed = not all(_is_number(name) for name in names)
    keyed = headed and names[0].lower() == "id"
    table = csv.read_csv(
        path,
        read_options=csv.ReadOptions(autogenerate_column_names=not headed),
        parse_options=csv.ParseOptions(delimiter=separator),
        convert_options=csv.ConvertOptions(column_types={names[0]: "string"} if keyed else None),
    )
    columns = table.columns[1:] if keyed else table.columns
    for name, column in zip(table.column_names[1:] if keyed else table.column_names, columns, strict=True):
        if column.null_count or not re.match(r"u?int|float|double", str(column.type)):
            raise StoreError(f"{path}: column {name!r} holds something that is no number")
    arrays: Arrays = {"values": np.stack([column.to_numpy().astype(np.float64) for column in columns], axis=1)}
    if keyed:
        arrays["ids"] = np.array(table.column(0).to_pylist(), str)
    return arrays


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_zarr(path: Path) -> Arrays:
    group = _metadata(path)
    if group.get("node_type") != "group":
        raise StoreError(f"{path}: no Zarr v3 group")
    _no_links(path)
    arrays = {folder.name: _zarr_array(folder) for folder in sorted(path.iterdir()) if folder.is_dir()}
    ids = group.get("attributes", {}).get("ids")
    if ids is not None and "ids" not in arrays:
        arrays["ids"] = np.array(ids, str)
    return arrays


def _metadata(folder: Path) -> dict[str, Any]:
    metadata = json.loads((folder / "zarr.json").read_bytes())
    if not isinstance(metadata, dict) or metadata.get("zarr_format") != 3:
        raise StoreError(f"{folder}: no Zarr v3 metadata")
    return metadata


def _no_links(path: Path) -> None:
    for root, folders, files in os.walk(path):
        for name in [*folders, *files]:
            if os.path.islink(os.path.join(root, name)):  # noqa: PTH114, PTH118
                raise StoreError(f"{path}: holds a symbolic link ({name!r})")


def _zarr_array(folder: Path) -> npt.NDArray[Any]:
    metadata = _metadata(folder)
    codecs = {codec if isinstance(codec, str) else codec["name"] for codec in metadata["codecs"]}
    if codecs - _CODECS:
        raise StoreError(f"{folder}: uses codec {sorted(codecs - _CODECS)}; allowed: {', '.join(sorted(_CODECS))}")
    if metadata.get("storage_transformers"):
        raise StoreError(f"{folder}: uses storage transformers, which are not read here")
    shape, chunk = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
    itemsize = np.dtype(metadata["data_type"]).itemsize
    _check_size(folder, max(math.prod(shape), math.prod(chunk)) * itemsize)
    grid = [-(-size // each) for size, each in zip(shape, chunk, strict=True)]
    if metadata["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "/"}}:
        raise StoreError(f"{folder}: names its chunks in another way than c/0/0")
    held = sum(1 for entry in (folder / "c").rglob("*") if entry.is_file()) if (folder / "c").is_dir() else 0
    if held != math.prod(grid):
        raise StoreError(f"{folder}: has {held} of {math.prod(grid)} chunks; Zarr would fill the rest silently")
    import zarr

    return np.asarray(zarr.open_array(folder, mode="r")[...])


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".safetensors": _read_safetensors,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".zarr": _read_zarr,
}


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


SUFFIXES = {".h5": "hdf5", ".hdf5": "hdf5", ".zarr": "zarr", ".npz": "npz", ".safetensors": "safetensors"}


def export(feature: Feature, manifest: Manifest, path: Path, kind: str | None = None) -> Path:
    """Write all utterances of a manifest, in its order, to one file (for Zarr: one folder).

    It holds `values` `[rows, dim]`, `offsets` int64 `[n + 1]`, the extras `[rows]`, the ids, and the spec as JSON;
    safetensors keeps ids and spec in `<path>.json`. `kind` is hdf5, zarr, npz or safetensors (None: by the suffix).
    Raises `WrongUse` if `path` exists, `MissingRows` if an utterance is not in the store.
    """
    if kind is None and path.suffix.lower() not in SUFFIXES:
        raise unknown("export format", path.suffix or path.name, SUFFIXES)
    kind = kind or SUFFIXES[path.suffix.lower()]
    if kind not in _WRITERS:
        raise unknown("export format", kind, _WRITERS)
    if not path.parent.is_dir():
        raise WrongUse(f"{path.parent}: there is no such folder; make it first, or name another file")
    if path.exists() or index_of(path).exists():
        raise WrongUse(f"{path}: exists already; name another file")
    packed = feature.load(manifest)
    _check_ids(packed.ids, path)
    about = {
        "corpus": manifest.corpus,
        "manifest": manifest.digest,
        "fingerprint": feature.fingerprint,
        "spec": {**feature.spec.identity(), "provenance": dict(feature.spec.provenance)},
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with faults_named(f"exporting to {path}", path.parent, packed.values.nbytes):
        try:
            _WRITERS[kind](partial, packed, about)
            if index_of(partial).exists():
                os.replace(index_of(partial), index_of(path))  # noqa: PTH105
            os.rename(partial, path)  # noqa: PTH104
            sync_folder(path.parent)
        finally:
            _discard(partial)
    return path


def index_of(path: Path) -> Path:
    """The JSON file beside a safetensors file that names its rows."""
    return path.with_name(path.name + ".json")


def _check_ids(ids: list[str], path: Path) -> None:
    for id_ in ids:
        if "\0" in id_:
            raise StoreError(f"{path}: id {id_!r} holds a NUL, which these formats cut off; rename the utterance")


def _discard(partial: Path) -> None:
    import shutil

    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)
    index_of(partial).unlink(missing_ok=True)


def _arrays(packed: Packed) -> dict[str, np.ndarray]:
    return {"values": packed.values, "offsets": packed.offsets, **packed.extras}


def _write_hdf5(path: Path, packed: Packed, about: Mapping[str, Any]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in _arrays(packed).items():
            file.create_dataset(name, data=array)
        file.create_dataset("ids", data=packed.ids, dtype=h5py.string_dtype(), shape=(len(packed),))
        # A dataset, since an attribute may hold no more than 64 KB.
        file.create_dataset("about", data=json.dumps(about), dtype=h5py.string_dtype())


def _write_zarr(path: Path, packed: Packed, about: Mapping[str, Any]) -> None:
    from .backends import write_group

    write_group(path, _arrays(packed), {"ids": packed.ids, **about})


def _write_npz(path: Path, packed: Packed, about: Mapping[str, Any]) -> None:
    with path.open("xb") as file:
        np.savez(file, allow_pickle=False, ids=np.array(packed.ids, str), about=json.dumps(about), **_arrays(packed))


def _write_safetensors(path: Path, packed: Packed, about: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    save_file(_arrays(packed), path)
    index_of(path).write_text(json.dumps({"ids": packed.ids, **about}))


_WRITERS: dict[str, Callable[[Path, Packed, Mapping[str, Any]], None]] = {
    "hdf5": _write_hdf5,
    "zarr": _write_zarr,
    "npz": _write_npz,
    "safetensors": _write_safetensors,
}


def copy(feature: Feature, target: Store, backend: str | None = None) -> list[str]:
    """Copy all parts of a feature into another store, in another backend if one is named.

    Bit for bit, rows that no manifest asks for and quarantined utterances included; the fingerprint stays. Returns the
    names of the parts that were not there yet. Manifests are copied too where the target lacks them. Raises `WrongUse`
    if the target is the feature's own store.
    """
    from .store import open_store

    if target.path.resolve() == feature.store.resolve():
        raise WrongUse(f"{target.path}: is the store that {feature.spec.name} is in; name another folder")
    source = open_store(feature.store)
    copied = []
    made = target.add(feature.spec)
    for part in feature.parts():
        record = part.record
        if record.corpus in source.corpora() and record.corpus not in target.corpora():
            target.put_manifest(source.manifest(record.corpus))
        packed = feature.gather([(part, i) for i in range(len(record.ids))], list(record.ids))
        rows = PartRows.from_packed(record.corpus, record.inputs, packed, record.quarantined)
        name = made.publish(rows, backend or record.backend, record.written_by)
        if name is not None:
            copied.append(name)
    return copied


def utterances(manifest: Manifest) -> "pd.DataFrame":
    """The manifest's columns, indexed by `id`. Raises `SerError` where pandas is not installed."""
    _pandas()
    return manifest.table.to_pandas().set_index("id")


def pooled(feature: Feature, manifest: Manifest, pool: Literal["mean", "meanstd"] = "mean") -> "pd.DataFrame":
    """One float32 row per utterance: the mean over its frames or tokens, or mean and standard deviation.

    Columns are `mean.0`, `mean.1`, … (and `std.0`, …), or `0`, `1`, … of a feature that is one vector already; the
    index holds the ids in the manifest's order, quarantined ones left out. Raises `MissingRows` if others lack.
    """
    pandas = _pandas()
    held = feature.quarantined(manifest)
    packed = feature.load(manifest, [row for row, id_ in enumerate(manifest.ids) if id_ not in held])
    ids = pandas.Index(packed.ids, name="id")
    if feature.spec.level == "utterance":
        return pandas.DataFrame(packed.values.astype(np.float32), ids, [str(k) for k in range(feature.spec.dim)])
    statistics = ("mean", "std")[: 2 if pool == "meanstd" else 1]
    table = np.empty((len(packed), len(statistics) * feature.spec.dim), np.float32)
    for number, row in enumerate(table):
        values = packed[number].astype(np.float32)
        row[:] = np.concatenate([getattr(values, statistic)(axis=0) for statistic in statistics])
    return pandas.DataFrame(table, ids, [f"{name}.{k}" for name in statistics for k in range(feature.spec.dim)])


def _pandas():  # type: ignore[no-untyped-def]  # a module
    try:
        import pandas
    except ImportError:
        raise SerError("tables need pandas: pip install pandas") from None
    return pandas
