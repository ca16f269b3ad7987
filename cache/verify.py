"""Checking a whole store: every file against its sha256, and what plain readers would see against what ours sees."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from . import hdf5_backend, zarr_backend
from .blocks import check_blocks
from .durable import faults_named, make_folder
from .errors import CorruptStore, SerError
from .features import Feature
from .layout import Part
from .manifest import Manifest
from .remove import drop
from .sealed import REPAIR
from .store import Store

JOURNAL = "verify.journal"
_INSPECT = {"zarr": zarr_backend.inspect, "hdf5": hdf5_backend.inspect}
_PIECE = 1 << 20
_DAY = 24 * 3600


@dataclass(frozen=True)
class Checked:
    """One manifest, spec or part that has been looked at."""

    path: str  # relative to the store
    bytes: int
    seconds: float  # several are looked at at once: these may add up to more than the clock shows
    remaining: int  # things still to look at
    problem: str | None = None
    repaired: bool = False  # the bad part has been dropped; `ser features` computes it again
    note: str | None = None  # no fault, but worth knowing


def verify(store: Store, repair: bool = False, resume: bool = True) -> Iterator[Checked]:
    """Check everything in a store, yielding a record for each manifest, spec and part.

    With `repair`, a part that cannot be trusted is dropped, and nothing else. A pass that was interrupted is taken up
    where it stopped, unless `resume` is false; in a read-only store each pass starts anew.
    """
    paths = _things(store)
    pool = ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))))
    try:
        with _Journal(store, resume) as journal:
            todo = [path for path in paths if not journal.has(path)]
            for number, checked in enumerate(pool.map(lambda path: _check(store, path, repair), todo), 1):
                if checked.problem is None:
                    journal.add(store.path / checked.path)
                yield replace(checked, remaining=len(todo) - number)
            journal.finish()
    finally:
        pool.shutdown(cancel_futures=True)


def _things(store: Store) -> list[Path]:
    """What there is to check, each part after its spec."""
    things = []
    for corpus in store.corpora():
        folder = store.path / "manifests" / corpus
        things += [folder / "latest", *sorted(folder.glob("*.parquet"))]
    for folder in store.folders():
        things.append(folder / "spec.json")
        with contextlib.suppress(OSError):
            things += sorted(entry for entry in (folder / "parts").iterdir() if not entry.name.startswith("."))
    return things


def _check(store: Store, path: Path, repair: bool) -> Checked:
    start = time.perf_counter()
    size, problem, note, corrupt = 0, None, None, False
    try:
        if path.parent.name == "parts":
            size = check_part(path, path.parent.parent.name)
        elif path.name == "spec.json":
            size, note = _check_feature(store, path.parent)
        else:
            size = _check_manifest(store, path)
    except SerError as error:
        # What a newer ser wrote, or may not be read by this user, is not corrupt.
        problem, corrupt = str(error), isinstance(error, CorruptStore)
    except OSError as error:
        problem = f"{path}: cannot be read ({error.strerror})"
    repaired = corrupt and repair and path.parent.name == "parts"
    if repaired:
        with faults_named("dropping a bad part", store.path):
            drop(store, path)
    if corrupt and repair and path.name == "spec.json":
        # What a missing folder held can be computed again; a bad spec is written again by `ser features`.
        with contextlib.suppress(CorruptStore), faults_named("making a folder for parts", store.path):
            make_folder(path.parent / "parts")
            _check_feature(store, path.parent)
            repaired = True
    name = str(path.relative_to(store.path))
    return Checked(name, size, time.perf_counter() - start, 0, problem, repaired, note)


def check_part(folder: Path, fingerprint: str) -> int:
    """Check a part down to its last byte. Returns how many it has; raises `CorruptStore`."""
    part = Part.open(folder, fingerprint)
    for name, file in part.record.files.items():
        if _sha256(folder / name) != file.sha256:
            raise CorruptStore(f"{folder / name}: altered (its sha256 is wrong); {REPAIR}")
    for name in part.record.arrays:
        check_blocks(part.source(name))
    part.offsets  # noqa: B018 (raises if they do not fit)
    if fault := _INSPECT[part.record.backend](folder, part.record.arrays):
        raise CorruptStore(f"{folder}: {fault}; {REPAIR}")
    return part.bytes


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _check_feature(store: Store, folder: Path) -> tuple[int, str | None]:
    """The spec, and whether rows stand twice."""
    feature = Feature(store.path, folder)
    if not (folder / "parts").is_dir():
        raise CorruptStore(f"{folder / 'parts'}: is missing; {REPAIR}")
    seen: set[tuple[str, str, str | None]] = set()
    twice = 0
    with contextlib.suppress(SerError):  # which part, and why, stands in that part's own record
        for part in feature.parts():
            for id_, digest in zip(part.record.ids, part.record.inputs, strict=True):
                key = (part.record.corpus, id_, digest)
                twice += key in seen
                seen.add(key)
    note = f"{twice} rows stand in two parts; `ser cache remove --superseded` rewrites them" if twice else None
    return (folder / "spec.json").stat().st_size, note


def _check_manifest(store: Store, path: Path) -> int:
    if path.name == "latest":
        store.manifest(path.parent.name)
    else:
        Manifest.from_content(path.read_bytes(), path.stem, str(path))
    return path.stat().st_size


class _Journal:
    """What an interrupted pass has found good, by name and time of last change."""

    def __init__(self, store: Store, resume: bool) -> None:
        self.store = store
        self.path = store.path / JOURNAL
        self.resume = resume
        self.done: set[str] = set()
        self.descriptor: int | None = None

    def __enter__(self) -> "_Journal":
        if self.resume and self._fresh():
            self.done = set(self.path.read_text(errors="replace").splitlines())
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | (0 if self.done else os.O_TRUNC)
        with contextlib.suppress(OSError):
            self.descriptor = os.open(self.path, flags, 0o644)
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)

    def _fresh(self) -> bool:
        """What was good days ago may be bad now."""
        with contextlib.suppress(OSError):
            return time.time() - self.path.stat().st_mtime < _DAY
        return False

    def has(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.done) and self._line(path) in self.done
        return False

    def add(self, path: Path) -> None:
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self.descriptor, f"{self._line(path)}\n".encode())

    def _line(self, path: Path) -> str:
        stat = path.stat()
        return f"{path.relative_to(self.store.path)} {stat.st_ino} {stat.st_mtime_ns}"

    def finish(self) -> None:
        if self.descriptor is not None:
            self.path.unlink(missing_ok=True)
