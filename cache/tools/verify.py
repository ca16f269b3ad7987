"""Verify a store: every byte of every manifest, spec and part, in one pass.

What cannot be trusted is named and, if that is asked for, set aside, never deleted.
"""

import contextlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ser.cache.backends import BACKENDS
from ser.cache.blocks import MAX_THREADS, BlockToCheck, check_file
from ser.cache.feature import Feature, part_names
from ser.cache.manifest_log import LOG, check_log, rewritten_log
from ser.cache.manifests import read_manifest
from ser.cache.part import Part
from ser.cache.rows import part_name
from ser.cache.spec import Spec
from ser.cache.store import Store
from ser.cache.transcripts import TRANSCRIPTS, check_transcripts
from ser.corpus.manifest import Key
from ser.disk.faults import explain_disk_errors
from ser.disk.read import REPAIR
from ser.disk.workspace import put_files
from ser.disk.write import make_folder, sync_folder
from ser.errors import CorruptStore, SerError, ser_command

from .published import LATEST

# The folder of a store to which bad parts are moved.
BAD = "bad"


@dataclass(frozen=True)
class Checked:
    """One manifest, spec or part that has been checked."""

    # Relative to the store.
    path: str
    bytes: int = 0
    # How many things are still to check.
    remaining: int = 0
    problem: str | None = None
    # What was done about the problem.
    repaired: str | None = None
    # No fault, but worth knowing.
    note: str | None = None


def verify(store: Store, repair: bool = False) -> Iterator[Checked]:
    """Check everything in a store, yielding a record for each manifest, spec and part.

    With `repair`, a part that cannot be trusted is moved to `<store>/bad/<feature>/<fingerprint>/`,
    a corpus's log to `<store>/bad/manifests/<corpus>/`, which is then written again from what can
    be read; nothing else is touched.
    """
    paths = _paths_to_check(store)
    pool = ThreadPoolExecutor(MAX_THREADS)
    try:
        for number, checked in enumerate(pool.map(partial(_check, store, repair), paths), 1):
            yield Checked(
                checked.path,
                checked.bytes,
                len(paths) - number,
                checked.problem,
                checked.repaired,
                checked.note,
            )
    finally:
        pool.shutdown(cancel_futures=True)


def _paths_to_check(store: Store) -> list[Path]:
    """What is to be checked, each part after its spec."""
    paths = []
    for corpus in store.corpora():
        folder = store.path / "manifests" / corpus
        paths += [folder / "latest", *sorted(folder.glob("*.parquet"))]
        # What `ser cache push` has published has no log.
        if os.path.lexists(folder / LOG) or not (store.path / LATEST).exists():
            paths.append(folder / LOG)

    paths += sorted((store.path / TRANSCRIPTS).glob("*.json"))

    for folder in store.folders():
        paths.append(folder / "spec.json")
        with contextlib.suppress(OSError):
            paths += [folder / "parts" / name for name in sorted(part_names(folder))]
    return paths


def _check(store: Store, repair: bool, path: Path) -> Checked:
    """Check one manifest, spec or part."""
    name = str(path.relative_to(store.path))
    try:
        size, note = _check_content(store, path)
        return Checked(name, size or path.stat().st_size, note=note)
    except SerError as error:
        is_part = path.parent.name == "parts"
        if not os.path.lexists(path if is_part else path.parent):
            # Another process has removed it since it was listed.
            return Checked(name)

        # What a newer ser wrote, or this user may not read, is not corrupt.
        repaired = None
        if repair and isinstance(error, CorruptStore):
            repaired = _repair_log(store, path) if path.name == LOG else _set_aside(store, path)
        return Checked(name, problem=str(error), repaired=repaired)
    except OSError as error:
        return Checked(name, problem=f"{path}: cannot be read ({error.strerror or error})")


def _check_content(store: Store, path: Path) -> tuple[int, str | None]:
    """Check one path by what it is: the bytes of a part (0: see the file), and a note.

    Raises `SerError` for what cannot be trusted.
    """
    match path.relative_to(store.path).parts:
        case "manifests", corpus, file:
            if file == LOG:
                return 0, check_log(path.parent)
            read_manifest(store.path, corpus, None if file == "latest" else path.stem)
            return 0, None

        case "transcripts", _:
            check_transcripts(path)
            return 0, None

        case _, _, "spec.json":
            return 0, _note_rows_twice(Feature(store.path, path.parent))

        case _, fingerprint, _, _:
            spec = None
            # A bad spec has a record of its own.
            with contextlib.suppress(SerError):
                spec = Feature(store.path, path.parent.parent).spec
            return check_part(path, fingerprint, spec).bytes, None

    raise AssertionError(f"{path}: is none of what `_paths_to_check` lists")


def _note_rows_twice(feature: Feature) -> str | None:
    """A note if rows of a feature stand in two parts.

    Raises `CorruptStore` if the parts lie on a disk that is away.
    """
    part_names(feature.path)

    keys = Counter[Key]()
    # A part that cannot be opened has a record of its own, which says why.
    with contextlib.suppress(SerError):
        for part in feature.parts():
            keys.update(part.keys)

    twice = keys.total() - len(keys)
    if not twice:
        return None
    command = ser_command("cache", "remove", "--superseded", "--store", feature.store)
    return f"{twice} rows stand in two parts; {command} rewrites them"


def _set_aside(store: Store, path: Path) -> str | None:
    """Move a bad part to `<store>/bad/<feature>/<fingerprint>/<part>-<n>`, and say so.

    A bad spec stays: `ser features` writes it again. Nothing is touched if the spec is missing, or
    if `bad/` is a link.
    """
    feature = path.parent.parent
    is_part = path.parent.name == "parts"
    if not is_part or not (feature / "spec.json").exists() or (store.path / BAD).is_symlink():
        return None

    folder = store.path / BAD / feature.relative_to(store.path)
    place = _free_name(folder, path.name)
    with explain_disk_errors("repairing it", store.path):
        make_folder(folder)
        # Another process may have moved it.
        with contextlib.suppress(FileNotFoundError):
            path.rename(place)
        sync_folder(folder)
        sync_folder(path.parent)
    return f"moved to {place.relative_to(store.path)}"


def _repair_log(store: Store, path: Path) -> str | None:
    """Write a corpus's log again from what can be read, and keep the old one in `bad/`.

    Nothing is touched if `bad/` is a link.
    """
    if (store.path / BAD).is_symlink():
        return None

    content = rewritten_log(path.parent)
    folder = store.path / BAD / path.parent.relative_to(store.path)
    with explain_disk_errors("repairing it", store.path):
        make_folder(folder)
        place = _free_name(folder, path.name)
        with contextlib.suppress(FileNotFoundError):
            path.rename(place)
        sync_folder(folder)
    put_files(store.path, path.parent, {LOG: content})
    return "written again from what can be read of it"


def _free_name(folder: Path, name: str) -> Path:
    """The path of `<name>-<n>` in a folder that nothing has yet."""
    for number in itertools.count(1):
        place = folder / f"{name}-{number}"
        if not os.path.lexists(place):
            return place
    raise AssertionError("numbers do not end")


def check_part(folder: Path, fingerprint: str, spec: Spec | None = None) -> Part:
    """Check a part down to its last byte, reading values once, and against its feature's spec.

    Raises `CorruptStore` for a file that is missing or altered, and for a record that fits its
    files but not the format: another name, dimension, dtype or level, or values that are not
    finite.
    """
    part = Part.open(folder, fingerprint)
    record = part.record
    values = record.arrays["values"]

    if folder.name != part_name(record):
        raise CorruptStore(f"{folder}: holds other utterances than its name says; {REPAIR}")

    if spec and (values.shape[1], values.dtype) != (spec.dim, spec.dtype):
        stored = f"{values.shape[1]} × {values.dtype}"
        specified = f"{spec.dim} × {spec.dtype}"
        raise CorruptStore(f"{folder}: holds {stored}, its spec says {specified}; {REPAIR}")

    _check_files(part)

    # The offsets raise if they do not fit the rows.
    one_row_each = part.offsets == [*range(len(record.ids) + 1)]
    if spec and spec.level == "utterance" and not one_row_each:
        fault = "has utterances that are not one row each, as its spec says"
        raise CorruptStore(f"{folder}: {fault}; {REPAIR}")

    layout_fault = BACKENDS[record.backend].inspect(folder, record.arrays)
    if layout_fault:
        raise CorruptStore(f"{folder}: {layout_fault}; {REPAIR}")
    return part


def _check_files(part: Part) -> None:
    """Read every file of a part once: its sha256, its blocks, and that values are finite."""
    record = part.record
    dtype = record.arrays["values"].dtype

    blocks_by_file = defaultdict[str, list[BlockToCheck]](list)
    for name, array in record.arrays.items():
        for block in array.blocks:
            blocks_by_file[block.file].append(BlockToCheck(block, name == "values"))

    for file, known in record.files.items():
        in_order = sorted(blocks_by_file[file], key=lambda entry: entry.block.offset)
        if check_file(part.folder / file, in_order, dtype) != known.sha256:
            fault = "altered (its sha256 is wrong)"
            raise CorruptStore(f"{part.folder / file}: {fault}; {REPAIR}")
