"""Removing: moved aside first, in one step, then deleted; a reader in flight gets an error, never zeros."""

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ser.errors import CorruptStore, SerError, WrongUse

from .atomic_io import faults_named, make_folder, sync_folder, workspace
from .backends import inspect_hdf5, inspect_zarr
from .blocks import check_blocks
from .feature import Feature
from .manifest import Key, Manifest
from .part import Part, PartRows
from .spec import REPAIR
from .store import Store, listed


@dataclass(frozen=True)
class Listing:
    """One feature and one corpus that has rows of it."""

    feature: str  # with its variant: "hubert:layer=9"
    fingerprint: str
    corpus: str | None  # None: no part yet
    rows: int  # current ones
    of: int | None  # utterances in the corpus's latest manifest
    quarantined: int
    superseded: int  # rows that the latest manifest does not ask for
    bytes: int
    backends: tuple[str, ...]
    modality: str | None
    level: str | None
    dim: int | None
    dtype: str | None
    model: str | None
    random_weights: bool
    complete: bool
    problem: str | None = None  # why it cannot be trusted; then the counts are zero


def list_features(store: Store) -> list[Listing]:
    """Every feature × corpus. One that cannot be trusted is listed too, with its problem."""
    manifests: dict[str, Manifest | str] = {}
    for corpus in store.corpora():
        try:
            manifests[corpus] = store.manifest(corpus)
        except SerError as error:
            manifests[corpus] = str(error)
    return [listing for folder in store.folders() for listing in _of_folder(store, folder, manifests)]


def _of_folder(store: Store, folder: Path, manifests: dict[str, Manifest | str]) -> list[Listing]:
    try:
        feature = Feature(store.path, folder)
        parts = feature.parts()
    except SerError as error:
        return [_broken(folder, str(error))]
    return [
        _listing(feature, corpus, manifests.get(corpus)) for corpus in sorted({p.record.corpus for p in parts})
    ] or [_listing(feature, None, None)]


def _broken(folder: Path, problem: str) -> Listing:
    return Listing(
        feature=folder.parent.name,
        fingerprint=folder.name,
        corpus=None,
        rows=0,
        of=None,
        quarantined=0,
        superseded=0,
        bytes=0,
        backends=(),
        modality=None,
        level=None,
        dim=None,
        dtype=None,
        model=None,
        random_weights=False,
        complete=False,
        problem=problem,
    )


def _listing(feature: Feature, corpus: str | None, manifest: Manifest | str | None) -> Listing:
    spec = feature.spec
    parts = [part for part in feature.parts() if part.record.corpus == corpus]
    known = manifest if isinstance(manifest, Manifest) else None
    rows = feature.rows(known) if known else 0
    quarantined = len(feature.quarantined(known)) if known else 0
    return Listing(
        feature=spec.name,
        fingerprint=feature.fingerprint,
        corpus=corpus,
        rows=rows,
        of=len(known) if known else None,
        quarantined=quarantined,
        superseded=sum(len(part.record.ids) for part in parts) - rows,
        bytes=sum(part.bytes for part in parts),
        backends=tuple(sorted({part.record.backend for part in parts})),
        modality=spec.modality,
        level=spec.level,
        dim=spec.dim,
        dtype=spec.dtype,
        model=spec.provenance.get("model"),
        random_weights=spec.random_weights,
        complete=known is not None and rows + quarantined == len(known),
        problem=manifest if isinstance(manifest, str) else None,
    )


def feature_info(store: Store, feature: Feature) -> dict[str, Any]:
    """How a feature was computed: everything in spec.json, and what each corpus has of it."""
    spec = feature.spec
    corpora: dict[str, Any] = {}
    for corpus in sorted({part.record.corpus for part in feature.parts()}):
        manifest = store.manifest(corpus) if corpus in store.corpora() else None
        listing = _listing(feature, corpus, manifest)
        parts = [part for part in feature.parts() if part.record.corpus == corpus]
        corpora[corpus] = {
            "rows": listing.rows,
            "of": listing.of,
            "complete": listing.complete,
            "superseded": listing.superseded,
            "quarantined": feature.quarantined(manifest) if manifest else {},
            "bytes": listing.bytes,
            "parts": len(parts),
            "backends": dict(Counter(part.record.backend for part in parts)),
            "vectors": sum(part.record.arrays["values"].shape[0] for part in parts),
        }
    return {
        "name": spec.name,
        "fingerprint": feature.fingerprint,
        "path": str(feature.path),
        **spec.identity(),
        "provenance": dict(spec.provenance),
        "corpora": corpora,
    }


JOURNAL = "verify.journal"
_INSPECT = {"zarr": inspect_zarr, "hdf5": inspect_hdf5}
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


@dataclass(frozen=True)
class Removed:
    """What has gone."""

    path: str  # relative to the store
    bytes: int
    rows: int


def drop(store: Store, folder: Path) -> None:
    """Move a folder out of the store, then delete it. One that has gone already is fine."""
    with workspace(store.path) as aside:
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, aside / folder.name)  # noqa: PTH104
        sync_folder(folder.parent)


def only_feature(store: Store, name: str) -> Feature:
    """The one feature that `name[:variant][@fingerprint]` can mean: what is removed is never guessed.

    Raises `WrongUse` listing them if there are several, `MissingRows` if there is none.
    """
    found = store.named(name)
    if len(found) > 1:
        raise WrongUse(f"{store.path}: there are several {name}, choose one by its fingerprint: {listed(found)}")
    return found[0]


def remove_feature(store: Store, feature: Feature) -> Removed:
    """Remove a feature with all its parts."""
    size = sum(path.stat().st_size for path in feature.path.rglob("*") if path.is_file())
    rows = 0
    with contextlib.suppress(OSError):  # one that cannot be trusted may be removed too
        rows = sum(len(part.record.ids) for part in feature.parts())
    with faults_named(f"removing {feature.spec.name}", store.path):
        drop(store, feature.path)
        with contextlib.suppress(OSError):
            feature.path.parent.rmdir()
    return Removed(str(feature.path.relative_to(store.path)), size, rows)


def remove_superseded(store: Store, features: list[Feature] | None = None) -> Iterator[Removed]:
    """Rewrite the parts that hold rows which no corpus's latest manifest asks for, or which stand twice.

    What is kept is published before what holds it is dropped, so that no row is ever away.
    """
    manifests = [store.manifest(corpus) for corpus in store.corpora()]
    for feature in store.features() if features is None else features:
        current = {key for manifest in manifests for key in feature.keys(manifest)}
        for part in feature.parts():
            if part.record.corpus in store.corpora():
                yield from _rewrite(store, feature, part, current)


def _rewrite(store: Store, feature: Feature, part: Part, current: set[Key]) -> Iterator[Removed]:
    record = part.record
    keys = [(record.corpus, id_, digest) for id_, digest in zip(record.ids, record.inputs, strict=True)]
    kept = [i for i, key in enumerate(keys) if key in current and feature.place(key) == (part, i)]
    quarantined = [
        entry
        for entry in record.quarantined
        if (key := (record.corpus, entry.id, entry.input)) in current and feature.place(key) is None
    ]
    if len(kept) == len(keys) and len(quarantined) == len(record.quarantined):
        return
    if kept or quarantined:
        packed = feature.gather([(part, i) for i in kept], [record.ids[i] for i in kept])
        rows = PartRows.from_packed(record.corpus, [record.inputs[i] for i in kept], packed, quarantined)
        feature.publish(rows, record.backend, record.written_by)
    with faults_named("removing superseded rows", store.path):
        drop(store, part.folder)
    yield Removed(str(part.folder.relative_to(store.path)), part.bytes, len(keys) - len(kept))
