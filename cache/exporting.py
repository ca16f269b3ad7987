"""A feature as one file for other programs, and a feature copied into another store or backend."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .durable import faults_named, sync_folder
from .errors import StoreError, WrongUse, unknown
from .features import Feature
from .manifest import Manifest
from .packed import Packed
from .parts import PartRows
from .store import Store

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
    from .zarr_backend import write_group

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
