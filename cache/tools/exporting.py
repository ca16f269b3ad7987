"""Export a feature: to one file of a format that other tools read, or to another store."""

import contextlib
import dataclasses
import gc
import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ser.cache.blocks import bytes_of
from ser.cache.feature import Feature, read_part
from ser.cache.publish import publish_part
from ser.cache.rows import Packed
from ser.cache.store import Store, open_store
from ser.cache.zarr_layout import chunk_rows
from ser.corpus.manifest import Manifest
from ser.corpus.sheet import Sheet
from ser.disk.faults import explain_disk_errors
from ser.disk.paths import real_path
from ser.disk.read import read_named
from ser.disk.workspace import workspace_beside
from ser.disk.write import sync_folder, sync_tree
from ser.errors import SerError, StoreError, WrongUse, unknown

from .foreign import index_of
from .in_memory import utterances_in_memory
from .listing import corpora_of, latest_manifests
from .table_index import audformat_index, index_of_table


@dataclass(frozen=True)
class ExportedFeature:
    """What is written to a file: the rows without their values, and the values in batches."""

    # Its `values` have the right shape and dtype, and take no memory: they are not the values.
    rows: Packed
    batches: Iterator[Packed]
    # Corpus, manifest, fingerprint and spec, as JSON.
    origin: dict[str, Any]
    # The names of the dimensions.
    columns: Sequence[str]
    # Columns of the manifest, by name, with a value for each utterance.
    beside: Mapping[str, Sequence[Any]]
    # Of the numbers of a table: a point, or a comma.
    decimal: str = "."
    # Of a table, the columns before the values, by name, with a value for each utterance.
    before: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

    @property
    def arrays_beside_values(self) -> dict[str, npt.NDArray[Any]]:
        """The offsets `[n + 1]`, and the extras `[rows]`."""
        return {"offsets": self.rows.offsets, **self.rows.extras}

    def values(self) -> Iterator[npt.NDArray[Any]]:
        """The values `[rows, dim]`, a batch at a time."""
        return (batch.values for batch in self.batches)


def export(
    feature: Feature,
    manifest: Manifest,
    path: Path,
    columns: Sequence[str] | None = None,
    beside: Sequence[str] = (),
    decimal: str = ".",
    audformat: bool = False,
) -> Path:
    """Write a manifest's utterances, in its order and without the quarantined, to one file.

    The suffix is the format. The file holds `values` `[rows, dim]`, `offsets` int64 `[n + 1]`, the
    extras `[rows]`, the ids, and the spec as JSON; .zarr is a folder, .safetensors has ids and spec
    in `<path>.json`, and .csv names the values by `columns`, if given, has the columns `beside` of
    the manifest behind the id, and numbers with a `decimal` point or comma. That of segments begins
    with `file`, `start` and `end`; with `audformat` it has the index of that format in place of an
    id. Raises `WrongUse` if `path` exists, `MissingRows` if an utterance is not in the store.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise unknown("export format", path.suffix or path.name, WRITERS)
    if beside and suffix != ".csv":
        raise WrongUse(f"{path}: --with is for a table; name a .csv file, or leave --with out")
    if decimal != "." and suffix != ".csv":
        raise WrongUse(f"{path}: --decimal is for a table; name a .csv file, or leave it out")
    if audformat:
        _check_audformat(path, feature, manifest, decimal)
    for name in beside:
        if name == "id" or name not in manifest.table.column_names:
            known = [column for column in manifest.table.column_names if column != "id"]
            raise unknown("column of --with", name, known)
    if not path.parent.is_dir():
        raise WrongUse(f"{path.parent}: no such folder; make it first, or name another file")
    if path.exists():
        raise WrongUse(f"{path}: exists already; name another file")
    if _is_foreign(index_of(path)):
        raise WrongUse(f"{index_of(path)}: exists already; name another file than {path.name}")

    exported = _prepare_export(feature, manifest, columns, beside, decimal, audformat)
    _check_no_nul(path, exported.rows.ids)

    size = exported.rows.values.nbytes
    workspace = workspace_beside(path)
    with explain_disk_errors(f"exporting to {path}", path.parent, size), workspace as folder:
        WRITERS[suffix](folder / path.name, exported)
        sync_tree(folder)

        _put_in_place(folder, path)
        sync_folder(path.parent)
    return path


def _put_in_place(folder: Path, path: Path) -> None:
    """Rename what was written to its place: an index comes before its file.

    Alone it counts as nothing there: what is killed in between can be run again.
    """
    index = folder / index_of(path).name
    if not index.exists():
        os.rename(folder / path.name, path)  # noqa: PTH104
        return

    os.replace(index, index_of(path))  # noqa: PTH105
    try:
        os.rename(folder / path.name, path)  # noqa: PTH104
    except OSError:
        index_of(path).unlink(missing_ok=True)
        raise


def _is_foreign(index: Path) -> bool:
    """Whether something lies at the place of an index that no export has left alone there."""
    if not os.path.lexists(index):
        return False

    try:
        record = json.loads(read_named(index))
    except (SerError, OSError, ValueError, RecursionError):
        return True
    return not isinstance(record, dict) or not record.keys() >= {"ids", "fingerprint", "spec"}


def _prepare_export(
    feature: Feature,
    manifest: Manifest,
    columns: Sequence[str] | None,
    beside: Sequence[str],
    decimal: str,
    audformat: bool,
) -> ExportedFeature:
    """Find the rows of every utterance that is not quarantined."""
    origin = {
        "corpus": manifest.corpus,
        "manifest": manifest.digest,
        "fingerprint": feature.fingerprint,
        "spec": feature.spec.to_json(),
    }

    is_exported = np.isin(manifest.ids, list(feature.quarantined(manifest)), invert=True)
    manifest = dataclasses.replace(manifest, table=manifest.table.filter(is_exported))

    places = feature.places(manifest, range(len(manifest)))
    rows = feature.gather(places, manifest.ids, values=False)
    zero = rows.values.dtype.type(0)
    rows.values = np.broadcast_to(zero, (rows.offsets[-1], feature.spec.dim))

    def read_values(utterances: slice) -> npt.NDArray[Any]:
        return feature.gather(places[utterances], [], extras=False).values

    names = columns or [f"{feature.spec.name}.{number}" for number in range(feature.spec.dim)]
    of_manifest = {name: manifest.column(name) for name in beside}
    batches = utterances_in_memory(rows, read_values)
    before = audformat_index(manifest) if audformat else index_of_table(manifest)
    return ExportedFeature(rows, batches, origin, names, of_manifest, decimal, before)


def _check_audformat(path: Path, feature: Feature, manifest: Manifest, decimal: str) -> None:
    """Raise `WrongUse` for what a table of audformat cannot hold."""
    if path.suffix.lower() != ".csv":
        raise WrongUse(f"{path}: a table of audformat is a .csv file; name one")
    if decimal != ".":
        raise WrongUse(f"{path}: audformat has decimal points; leave --decimal out")
    if feature.spec.level != "utterance":
        raise WrongUse(
            f"{feature.spec.name} has a row for each {feature.spec.level}, a table of audformat "
            "one for each utterance; export such a feature, as egemaps or hubert:pool=mean"
        )
    if manifest.table.column("audio").null_count:
        raise WrongUse(
            f"corpus {manifest.corpus} does not say which audio file each utterance is, which is "
            "the index of audformat; leave --format out"
        )


def _check_no_nul(path: Path, ids: list[str]) -> None:
    for id_ in ids:
        if "\0" in id_:
            fault = f"id {id_!r} holds a NUL, which these formats cut off; rename the utterance"
            raise StoreError(f"{path}: {fault}")


def write_npz(path: Path, exported: ExportedFeature) -> None:
    """A zip archive of .npy files, the last of them the ids, and `about`, the spec as JSON."""
    rows = exported.rows
    arrays = {
        **exported.arrays_beside_values,
        "values": rows.values,
        "ids": np.array(rows.ids, str),
        "about": np.array(json.dumps(exported.origin)),
    }

    with zipfile.ZipFile(path, "x") as archive:
        for name, array in arrays.items():
            header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
            pieces = exported.values() if name == "values" else [array]
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                member.writelines(bytes_of(piece) for piece in pieces)


def write_safetensors(path: Path, exported: ExportedFeature) -> None:
    """A safetensors file, with ids and spec in `<path>.json` beside it."""
    arrays = {**exported.arrays_beside_values, "values": exported.rows.values}

    # The widest first, so that each is aligned.
    by_width = sorted(arrays.items(), key=lambda entry: -entry[1].dtype.itemsize)
    header: dict[str, Any] = {}
    end = 0
    for name, array in by_width:
        begin = end
        end += array.nbytes
        header[name] = {
            "dtype": f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}",
            "shape": array.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in by_width:
            pieces = exported.values() if name == "values" else [array]
            file.writelines(bytes_of(piece) for piece in pieces)

    index = {"ids": exported.rows.ids, **exported.origin}
    index_of(path).write_text(json.dumps(index))


def write_zarr(path: Path, exported: ExportedFeature) -> None:
    """A Zarr 3 group, with ids and spec as its attributes.

    A missing chunk must not read as zero: the fill value is one that no offset or word has, and no
    chunk is left out.
    """
    with _quiet_zarr():
        _write_zarr(path, exported)


@contextlib.contextmanager
def _quiet_zarr() -> Iterator[None]:
    """Let the first fault of zarr stand for all.

    Asyncio would log a task that failed when it is collected.
    """
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except OSError as error:
        # Without its traceback, which holds the tasks: they are collected here.
        fault = OSError(error.errno, error.strerror, error.filename)
        raise fault from None
    finally:
        gc.collect()
        logger.setLevel(level)


def _write_zarr(path: Path, exported: ExportedFeature) -> None:
    import zarr

    no_chunk_left_out: dict[str, Any] = {"config": {"write_empty_chunks": True}}
    rows, dim = exported.rows.values.shape
    group = zarr.create_group(path, attributes={"ids": exported.rows.ids, **exported.origin})

    values = group.create_array(
        "values",
        shape=(rows, dim),
        chunks=(chunk_rows(rows), dim),
        dtype=exported.rows.values.dtype,
        fill_value=np.nan,
        **no_chunk_left_out,
    )
    end = 0
    for batch in exported.values():
        write_by_chunks(values, end, batch)
        end += len(batch)

    for name, array in exported.arrays_beside_values.items():
        fill_value = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max
        beside = group.create_array(
            name, shape=array.shape, dtype=array.dtype, fill_value=fill_value, **no_chunk_left_out
        )
        write_by_chunks(beside, 0, array)


def write_by_chunks(array: Any, first: int, rows: npt.NDArray[Any]) -> None:
    """Write rows into a Zarr array, from row `first` on, one chunk after the other.

    Several at once are tasks that go on after one of them has failed: they would write into what is
    being removed, and asyncio would tell of each.
    """
    size = array.chunks[0]
    end = first + len(rows)
    while first < end:
        after = min(end, (first // size + 1) * size)
        array[first:after] = rows[: after - first]
        rows = rows[after - first :]
        first = after


def write_csv(path: Path, exported: ExportedFeature) -> None:
    """A line for each row.

    What names the utterance, columns of the manifest, the number of the frame or token, and the
    values.
    """
    level = exported.origin["spec"]["level"]
    is_vector = level == "utterance"
    number_columns = [] if is_vector else [level]

    with path.open("x", encoding="utf-8", newline="") as sink:
        table = Sheet(sink, exported.decimal, line_end="\r\n")
        leading = {**exported.before, **exported.beside}
        table.write_row([*leading, *number_columns, *exported.columns])
        cells = zip(*leading.values(), strict=True)
        for batch in exported.batches:
            for utterance in range(len(batch)):
                of_utterance = list(map(_as_text, next(cells)))
                for number, row in enumerate(batch[utterance].astype(str)):
                    numbers = [] if is_vector else [number]
                    values = map(table.number, row)
                    table.write_row([*of_utterance, *numbers, *values])


def _as_text(value: Any) -> Any:
    """A value of a manifest in a table: nothing where it is not known, votes as JSON."""
    if isinstance(value, list):
        return json.dumps(value)
    return value


def write_hdf5(path: Path, exported: ExportedFeature) -> None:
    """An HDF5 file, whose values are all that follows its other content."""
    with path.open("xb") as file:
        file.write(_hdf5_before_values(exported))
        file.writelines(bytes_of(batch) for batch in exported.values())


def _hdf5_before_values(exported: ExportedFeature) -> memoryview:
    """An HDF5 file up to its values.

    It is made in memory, because the HDF5 library reports a full disk late, and crashes where one
    fails.
    """
    import h5py

    rows = exported.rows
    image = io.BytesIO()
    with h5py.File(image, "w") as hdf5:
        for name, array in exported.arrays_beside_values.items():
            hdf5.create_dataset(name, data=array)

        texts = h5py.string_dtype()
        hdf5.create_dataset("ids", data=rows.ids, dtype=texts, shape=(len(rows),))
        # A dataset, since an attribute may hold no more than 64 KB.
        hdf5.create_dataset("about", data=json.dumps(exported.origin), dtype=texts)

        # Allocated, but nothing is written.
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        dtype = h5py.h5t.py_create(rows.values.dtype)
        space = h5py.h5s.create_simple(rows.values.shape)
        values = h5py.h5d.create(hdf5.id, b"values", dtype, space, properties)
        start_of_values = values.get_offset()

    return image.getbuffer()[:start_of_values]


WRITERS: dict[str, Callable[[Path, ExportedFeature], None]] = {
    ".h5": write_hdf5,
    ".hdf5": write_hdf5,
    ".zarr": write_zarr,
    ".npz": write_npz,
    ".safetensors": write_safetensors,
    ".csv": write_csv,
}


def copy_feature(feature: Feature, target: Store, backend: str) -> int:
    """Copy all parts of a feature into another store, in this backend.

    Bit for bit, with rows that no manifest names and quarantined utterances; the fingerprint stays.
    Missing manifests of the corpora that have rows of it, their own or their parent's, are copied
    too. Returns how many parts were missing. Raises `WrongUse` if the target is the feature's own
    store.
    """
    if real_path(target.path) == real_path(feature.store):
        fault = f"is the store that {feature.spec.name} is in; name another folder"
        raise WrongUse(f"{target.path}: {fault}")

    source = open_store(feature.store)
    copy = target.add(feature.spec)
    for corpus in corpora_of(feature, latest_manifests(source)):
        if corpus in source.corpora() and corpus not in target.corpora():
            target.put_manifest(source.manifest(corpus), command="cache export")

    copied = 0
    for part in feature.parts():
        rows = read_part(feature, part)
        if publish_part(copy, rows, backend, part.record.written_by) is not None:
            copied += 1
    return copied
