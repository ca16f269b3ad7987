"""Look after a store: list what it holds, verify every byte of it, remove what is not wanted.

What is removed is moved aside first, in one step, then deleted; a reader in flight gets an error, never zeros.
"""

import contextlib
import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ser.errors import CorruptStore, SerError, WrongUse

from .atomic_io import REPAIR, explain_disk_errors, make_folder, open_plain, sync_folder, workspace
from .backends import BACKENDS
from .blocks import Block, check_block, usable_cores
from .feature import Feature
from .manifest import Key, Manifest, read_manifest
from .part import Part, PartRows
from .store import Store, listed

JOURNAL = "verify.journal"
_PIECE = 1 << 20
_DAY = 24 * 3600


@dataclass(frozen=True)
class Listing:
    """One feature and one corpus that has rows of it."""

    feature: str  # with its variant: "hubert:layer=9"
    fingerprint: str
    corpus: str | None = None  # None: no part yet
    rows: int = 0  # current ones
    of: int | None = None  # utterances in the corpus's latest manifest
    quarantined: int = 0
    superseded: int = 0  # rows that the latest manifest does not ask for
    bytes: int = 0
    backends: tuple[str, ...] = ()
    modality: str | None = None
    level: str | None = None
    dim: int | None = None
    dtype: str | None = None
    model: str | None = None
    random_weights: bool = False
    complete: bool = False
    problem: str | None = None  # why it cannot be trusted; then the counts are zero


def list_features(store: Store) -> list[Listing]:
    """Every feature × corpus. One that cannot be trusted is listed too, with its problem."""
    manifests: dict[str | None, Manifest | str] = {}
    for corpus in store.corpora():
        try:
            manifests[corpus] = store.manifest(corpus)
        except SerError as error:
            manifests[corpus] = str(error)
    found = []
    for folder in store.folders():
        try:
            feature = Feature(store.path, folder)
            corpora: list[Any] = sorted({part.record.corpus for part in feature.parts()}) or [None]
            found += [_listing(feature, corpus, manifests.get(corpus)) for corpus in corpora]
        except SerError as error:
            found.append(Listing(folder.parent.name, folder.name, problem=str(error)))
    return found


def _listing(feature: Feature, corpus: str | None, manifest: Manifest | str | None) -> Listing:
    spec = feature.spec
    parts = [part for part in feature.parts() if part.record.corpus == corpus]
    known = manifest if isinstance(manifest, Manifest) else None
    rows, quarantined = (feature.rows(known), len(feature.quarantined(known))) if known else (0, 0)
    return Listing(
        feature=spec.name,
        fingerprint=feature.fingerprint,
        corpus=corpus,
        rows=rows,
        of=len(known) if known else None,
        quarantined=quarantined,
        superseded=sum(len(part.keys) for part in parts) - rows,
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
    corpora: dict[str, Any] = {}
    for corpus in sorted({part.record.corpus for part in feature.parts()}):
        manifest = store.manifest(corpus) if corpus in store.corpora() else None
        listing = _listing(feature, corpus, manifest)
        parts = [part for part in feature.parts() if part.record.corpus == corpus]
        corpora[corpus] = {
            **{key: getattr(listing, key) for key in ("rows", "of", "complete", "superseded", "bytes")},
            "quarantined": feature.quarantined(manifest) if manifest else {},
            "parts": len(parts),
            "backends": dict(Counter(part.record.backend for part in parts)),
            "vectors": sum(part.record.arrays["values"].shape[0] for part in parts),
        }
    named = {"name": feature.spec.name, "fingerprint": feature.fingerprint, "path": str(feature.path)}
    return {**named, **feature.spec.to_json(), "corpora": corpora}


@dataclass(frozen=True)
class Checked:
    """One manifest, spec or part that has been checked."""

    path: str  # relative to the store
    bytes: int
    seconds: float  # several are checked at once: these may add up to more than the clock shows
    remaining: int  # things still to check
    problem: str | None = None
    repaired: bool = False  # the bad part has been dropped; `ser features` computes it again
    note: str | None = None  # no fault, but worth knowing


def verify(store: Store, repair: bool = False) -> Iterator[Checked]:
    """Check everything in a store, yielding a record for each manifest, spec and part.

    With `repair`, a part that cannot be trusted is dropped, and nothing else. A pass that was interrupted is resumed
    where it stopped, within a day; in a read-only store each pass starts anew.
    """
    journal = store.path / JOURNAL
    done: set[str] = set()
    with contextlib.suppress(OSError):
        if time.time() - journal.stat().st_mtime < _DAY:  # what was good days ago may be bad now
            done = set(journal.read_text(errors="replace").splitlines())
    todo = [path for path in _things(store) if not done or _stamp(store, path) not in done]
    pool = ThreadPoolExecutor(min(8, usable_cores()))
    log = None
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | (0 if done else os.O_TRUNC)
    with contextlib.suppress(OSError):
        log = os.open(journal, flags, 0o644)
    try:
        for number, checked in enumerate(pool.map(lambda path: _check(store, path, repair), todo), 1):
            if log is not None and checked.problem is None:
                with contextlib.suppress(OSError):
                    os.write(log, f"{_stamp(store, store.path / checked.path)}\n".encode())
            yield replace(checked, remaining=len(todo) - number)
        if log is not None:
            journal.unlink(missing_ok=True)
    finally:
        pool.shutdown(cancel_futures=True)
        if log is not None:
            os.close(log)


def _stamp(store: Store, path: Path) -> str | None:
    """What the journal says of a thing that is good: its name, and when it changed last."""
    with contextlib.suppress(OSError):
        stat = path.stat()
        return f"{path.relative_to(store.path)} {stat.st_ino} {stat.st_mtime_ns}"
    return None


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
    size, problem, note, repaired = 0, None, None, False
    try:
        if path.parent.name == "parts":
            size = check_part(path, path.parent.parent.name)
        elif path.name == "spec.json":
            note = _check_feature(store, path.parent)
        else:
            read_manifest(store.path, path.parent.name, None if path.name == "latest" else path.stem)
        size = size or path.stat().st_size
    except SerError as error:
        problem = str(error)
        # What a newer ser wrote, or may not be read by this user, is not corrupt.
        repaired = repair and isinstance(error, CorruptStore) and _repair(store, path)
    except OSError as error:
        problem = f"{path}: cannot be read ({error.strerror})"
    return Checked(str(path.relative_to(store.path)), size, time.perf_counter() - start, 0, problem, repaired, note)


def _repair(store: Store, path: Path) -> bool:
    """Drop a bad part. A bad spec is written again by `ser features`, and so is what a missing folder held."""
    if path.parent.name == "parts":
        with explain_disk_errors("dropping a bad part", store.path):
            _drop(store, path)
        return True
    if path.name == "spec.json":
        with contextlib.suppress(CorruptStore), explain_disk_errors("making a folder for parts", store.path):
            make_folder(path.parent / "parts")
            _check_feature(store, path.parent)
            return True
    return False


def check_part(folder: Path, fingerprint: str) -> int:
    """Check a part down to its last byte, reading it once. Returns how many it has; raises `CorruptStore`."""
    part = Part(folder, fingerprint)
    blocks = defaultdict[str, list[Block]](list)
    for array in part.record.arrays.values():
        for block in array.blocks:
            blocks[block.file].append(block)
    for name, file in part.record.files.items():
        if _check_blocks(folder / name, sorted(blocks[name], key=lambda block: block.offset)) != file.sha256:
            raise CorruptStore(f"{folder / name}: altered (its sha256 is wrong); {REPAIR}")
    part.offsets  # noqa: B018 (raises if they do not fit)
    if fault := BACKENDS[part.record.backend].inspect(folder, part.record.arrays):
        raise CorruptStore(f"{folder}: {fault}; {REPAIR}")
    return part.bytes


def _check_blocks(path: Path, blocks: list[Block]) -> str:
    """The sha256 of a file, whose blocks are checked on the way."""
    digest = hashlib.sha256()
    with os.fdopen(open_plain(path), "rb", buffering=0) as file:

        def read(size: int) -> bytes:
            content = file.read(size)
            digest.update(content)
            return content

        for block in blocks:
            while (gap := block.offset - file.tell()) > 0 and read(min(gap, _PIECE)):
                pass
            check_block(str(path), block, [read(block.bytes)])
        while read(_PIECE):
            pass
    return digest.hexdigest()


def _check_feature(store: Store, folder: Path) -> str | None:
    """The spec, and whether rows appear twice."""
    feature = Feature(store.path, folder)
    if not (folder / "parts").is_dir():
        raise CorruptStore(f"{folder / 'parts'}: is missing; {REPAIR}")
    keys = Counter[Key]()
    with contextlib.suppress(SerError):  # which part, and why, stands in that part's own record
        keys.update(key for part in feature.parts() for key in part.keys)
    twice = keys.total() - len(keys)
    return f"{twice} rows stand in two parts; `ser cache remove --superseded` rewrites them" if twice else None


@dataclass(frozen=True)
class Removed:
    """What was removed."""

    path: str  # relative to the store
    bytes: int
    rows: int


def _drop(store: Store, folder: Path) -> None:
    """Move a folder out of the store, then delete it. One that is not there any more is fine."""
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
        rows = sum(len(part.keys) for part in feature.parts())
    with explain_disk_errors(f"removing {feature.spec.name}", store.path):
        _drop(store, feature.path)
        with contextlib.suppress(OSError):
            feature.path.parent.rmdir()
    return Removed(str(feature.path.relative_to(store.path)), size, rows)


def remove_superseded(store: Store, features: list[Feature] | None = None) -> Iterator[Removed]:
    """Rewrite the parts that hold rows which no corpus's latest manifest asks for, or which appear twice.

    What is kept is published before what holds it is dropped, so that no row is ever missing.
    """
    manifests = [store.manifest(corpus) for corpus in store.corpora()]
    for feature in store.features() if features is None else features:
        current = {key for manifest in manifests for key in feature.keys(manifest)}
        for part in feature.parts():
            if part.record.corpus in store.corpora():
                yield from _rewrite(store, feature, part, current)


def _rewrite(store: Store, feature: Feature, part: Part, current: set[Key]) -> Iterator[Removed]:
    record = part.record
    kept = [i for i, key in enumerate(part.keys) if key in current and feature.place(key) == (part, i)]
    quarantined = [
        entry
        for entry in record.quarantined
        if (key := (record.corpus, entry.id, entry.input)) in current and feature.place(key) is None
    ]
    if len(kept) == len(part.keys) and len(quarantined) == len(record.quarantined):
        return
    if kept or quarantined:
        packed = feature.gather([(part, i) for i in kept], [record.ids[i] for i in kept])
        rows = PartRows.from_packed(record.corpus, [record.inputs[i] for i in kept], packed, quarantined)
        feature.publish(rows, record.backend, record.written_by)
    with explain_disk_errors("removing superseded rows", store.path):
        _drop(store, part.folder)
    yield Removed(str(part.folder.relative_to(store.path)), part.bytes, len(part.keys) - len(kept))
