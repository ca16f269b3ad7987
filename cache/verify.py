"""Verify every byte of a store, and set aside what cannot be trusted."""

import contextlib
import hashlib
import itertools
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ser.errors import CorruptStore, SerError, StoreError

from .atomic_io import DAY, PIECE, PLAIN, REPAIR, explain_disk_errors, make_folder, plain_file, read_small, sync_folder
from .blocks import BACKENDS, Block, check_block, usable_cores
from .feature import Feature, part_names
from .manifest import Key, read_manifest
from .part import Part, part_name
from .spec import Spec
from .store import Store
from .transcripts import FOLDER, check_transcripts

JOURNAL = "verify.journal"
BAD = "bad"
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | PLAIN


@dataclass(frozen=True)
class Checked:
    """One manifest, spec or part that has been checked."""

    path: str  # relative to the store
    bytes: int
    remaining: int  # things still to check
    problem: str | None = None
    repaired: str | None = None  # what was done about it: `ser features` computes it again
    note: str | None = None  # no fault, but worth knowing
    skipped: bool = False  # a part that an interrupted pass found good less than a day ago, and that has not changed


def verify(store: Store, repair: bool = False, fresh: bool = False) -> Iterator[Checked]:
    """Check everything in a store, yielding a record for each manifest, spec and part.

    With `repair`, a part that cannot be trusted is moved to `<store>/bad/<feature>/<fingerprint>/`, and nothing else
    is touched. Where a pass was interrupted, the next one skips the parts that it found good less than a day ago and
    none of whose files has changed since, unless it is to be `fresh`; in a read-only store each pass starts anew.
    """
    journal, things = store.path / JOURNAL, _things(store)
    good = set() if fresh else _recently_good(journal)
    with contextlib.suppress(OSError):  # here and below: of a read-only store
        if not good:
            journal.unlink()
    pool = ThreadPoolExecutor(min(8, usable_cores()))
    try:
        results = pool.map(lambda thing: _checked(store, thing, repair, good), things)
        for number, (checked, stamp) in enumerate(results, 1):
            if stamp and not checked.problem:
                with contextlib.suppress(OSError), os.fdopen(os.open(journal, _APPEND, 0o644), "ab") as lines:
                    lines.write(f"{int(time.time())} {stamp}\n".encode())
            yield replace(checked, remaining=len(things) - number)
    finally:
        pool.shutdown(cancel_futures=True)
    with contextlib.suppress(OSError):
        journal.unlink()


def _recently_good(journal: Path) -> set[str]:
    """The stamps of the parts that were found good less than a day ago: what was good earlier may be bad now."""
    lines, now = list[tuple[str, str]](), time.time()
    with contextlib.suppress(StoreError):
        lines = re.findall("^([0-9]{1,12}) ([0-9a-f]{64})$", read_small(journal).decode(errors="replace"), re.MULTILINE)
    return {stamp for checked, stamp in lines if 0 <= now - int(checked) < DAY}


def _stamp(part: Path) -> str | None:
    """A hash over a part's record and over all that tells whether one of its files was written to since."""
    try:
        found = [(str(path), path.lstat()) for path in sorted(part.rglob("*"))]
        facts = [(path, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for path, one in found]
        return hashlib.sha256(read_small(part / "part.json") + repr(facts).encode()).hexdigest()
    except OSError:
        return None


def _things(store: Store) -> list[Path]:
    """What there is to check, each part after its spec."""
    things = [store.path / "manifests" / corpus / "latest" for corpus in store.corpora()]
    things = [path for latest in things for path in (latest, *sorted(latest.parent.glob("*.parquet")))]
    things += sorted((store.path / FOLDER).glob("*.json"))
    for folder in store.folders():
        things.append(folder / "spec.json")
        with contextlib.suppress(OSError):
            things += [folder / "parts" / name for name in sorted(part_names(folder))]
    return things


def _checked(store: Store, path: Path, repair: bool, good: Container[str | None]) -> tuple[Checked, str | None]:
    """What came of checking one thing, and its stamp."""
    name, size, note, problem, repaired = str(path.relative_to(store.path)), 0, None, None, None
    stamp = _stamp(path) if path.parent.name == "parts" else None  # first: a change meanwhile gives another
    if stamp in good:
        return Checked(name, 0, 0, skipped=True), None
    try:
        size, note = _check(store, path)
    except SerError as error:
        gone = path.parent.name == "parts" and not os.path.lexists(path)  # since it was listed
        problem = None if gone else str(error)
        # What a newer ser wrote, or may not be read by this user, is not corrupt.
        if repair and not gone and isinstance(error, CorruptStore):
            repaired = _repair(store, path)
    except OSError as error:
        problem = f"{path}: cannot be read ({error.strerror or error})"
    return Checked(name, size, 0, problem, repaired, note), stamp


def _check(store: Store, path: Path) -> tuple[int, str | None]:
    """The bytes of one thing, and a note on it. Raises what is wrong with it."""
    note = None
    match path.relative_to(store.path).parts:
        case "manifests", corpus, name:
            read_manifest(store.path, corpus, None if name == "latest" else path.stem)
        case "transcripts", _:
            check_transcripts(path)
        case _, _, "spec.json":
            feature, keys = Feature(store.path, path.parent), Counter[Key]()
            part_names(feature.path)  # says if they lead nowhere
            with contextlib.suppress(SerError):  # which part, and why, stands in that part's own record
                keys.update(key for part in feature.parts() for key in part.keys)
            if twice := keys.total() - len(keys):
                note = f"{twice} rows stand in two parts; `ser cache remove --superseded` rewrites them"
        case _, fingerprint, _, _:
            spec = None
            with contextlib.suppress(SerError):  # that the spec is bad stands in its own record
                spec = Feature(store.path, path.parent.parent).spec
            return check_part(path, fingerprint, spec).bytes, None
    return path.stat().st_size, note


def _repair(store: Store, path: Path) -> str | None:
    """Move a bad part to `<store>/bad/<feature>/<fingerprint>/<part>-<n>`.

    A bad spec is written again by `ser features`. Nothing is touched where there is none, or where
    `bad/` is a link: that folder is somebody's.
    """
    feature = path.parent.parent
    if path.parent.name != "parts" or not (feature / "spec.json").exists() or (store.path / BAD).is_symlink():
        return None
    with explain_disk_errors("repairing it", store.path):
        folder = store.path / BAD / feature.relative_to(store.path)
        make_folder(folder)
        names = (folder / f"{path.name}-{number}" for number in itertools.count(1))
        place = next(name for name in names if not os.path.lexists(name))
        with contextlib.suppress(FileNotFoundError):  # another process did
            os.rename(path, place)  # noqa: PTH104
        sync_folder(folder)
        sync_folder(path.parent)
    return f"moved to {place.relative_to(store.path)}"


def check_part(folder: Path, fingerprint: str, spec: Spec | None = None) -> Part:
    """Check a part down to its last byte, reading values once, and against its feature's spec.

    Raises `CorruptStore` for a file that is missing or altered, and for a record that is true to its files but not to
    the format: another name, dimension, dtype or level, or values that are not finite.
    """
    part = Part.open(folder, fingerprint)
    record, values = part.record, part.record.arrays["values"]
    if folder.name != part_name(record):
        raise CorruptStore(f"{folder}: holds other utterances than its name says; {REPAIR}")
    if spec and (values.shape[1], values.dtype) != (spec.dim, spec.dtype):
        has, says = f"{values.shape[1]} × {values.dtype}", f"{spec.dim} × {spec.dtype}"
        raise CorruptStore(f"{folder}: holds {has}, its spec says {says}; {REPAIR}")
    blocks = defaultdict[str, list[tuple[Block, bool]]](list)
    for name, array in record.arrays.items():
        for block in array.blocks:
            blocks[block.file].append((block, name == "values"))
    for file, known in record.files.items():
        if _read_file(folder / file, sorted(blocks[file], key=lambda one: one[0].offset), values.dtype) != known.sha256:
            raise CorruptStore(f"{folder / file}: altered (its sha256 is wrong); {REPAIR}")
    lengths = np.diff(part.offsets)
    if spec and spec.level == "utterance" and (lengths != 1).any():
        raise CorruptStore(f"{folder}: has utterances that are not one row each, as its spec says; {REPAIR}")
    if fault := BACKENDS[record.backend].inspect(folder, record.arrays):
        raise CorruptStore(f"{folder}: {fault}; {REPAIR}")
    return part


def _finite(content: bytes, dtype: str) -> bool:
    if dtype == "float16":  # numpy's own way takes 20 times as long; an exponent of ones is NaN or infinite
        return bool(((np.frombuffer(content, np.uint16) & 0x7C00) < 0x7C00).all())
    return bool(np.isfinite(np.frombuffer(content, dtype)).all())


def _read_file(path: Path, blocks: list[tuple[Block, bool]], dtype: str) -> str:
    """The sha256 of a file, whose blocks are checked on the way; those marked hold finite values of this dtype."""
    digest = hashlib.sha256()
    with plain_file(path) as file:

        def read(size: int) -> bytes:
            content = file.read(size)
            digest.update(content)
            return content

        for block, is_values in blocks:
            while (gap := block.offset - file.tell()) > 0 and read(min(gap, PIECE)):
                pass
            content = read(block.bytes)
            check_block(str(path), block, content)
            if is_values and not _finite(content, dtype):
                raise CorruptStore(f"{path}: holds values that are not finite; {REPAIR}")
        while read(PIECE):
            pass
    return digest.hexdigest()
