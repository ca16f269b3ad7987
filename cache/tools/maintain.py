"""Look after a store: list what it holds, verify every byte of it, remove what is not wanted.

What is removed is first moved aside in one step, then deleted: a reader at work gets an error,
never zeros. What cannot be trusted is set aside.
"""

import contextlib
import hashlib
import itertools
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ser.cache.backends import BACKENDS
from ser.cache.blocks import MAX_THREADS, BlockToCheck, check_file
from ser.cache.feature import Feature, part_names, read_part
from ser.cache.manifests import read_manifest
from ser.cache.part import Part, Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import part_name
from ser.cache.spec import Spec
from ser.cache.store import Store, listed
from ser.cache.transcripts import TRANSCRIPTS, check_transcripts
from ser.corpus.manifest import Key, Manifest
from ser.disk.faults import explain_disk_errors
from ser.disk.flags import PLAIN
from ser.disk.folders import extent, remove_folder
from ser.disk.read import REPAIR, read_small
from ser.disk.write import make_folder, sync_folder
from ser.errors import CorruptStore, SerError, StoreError, WrongUse

JOURNAL = "verify.journal"
BAD = "bad"
_TRUSTED = 24 * 3600  # seconds for which the journal of an interrupted pass counts
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | PLAIN
# The keys of a listing, with the values for a feature that has no part yet, or a `problem`: then it
# cannot be trusted.
LISTED: dict[str, Any] = {
    **dict.fromkeys(
        ("feature", "fingerprint", "corpus")
    ),  # the first with its variant: "hubert:layer=9"
    **dict.fromkeys(("rows", "lent"), 0),
    "of": None,
    **dict.fromkeys(("quarantined", "superseded", "bytes"), 0),
    "backends": [],
    **dict.fromkeys(("modality", "level", "dim", "dtype", "model")),
    **dict.fromkeys(("random_weights", "complete"), False),
    "problem": None,
}


def list_features(store: Store) -> list[dict[str, Any]]:
    """Every feature × corpus that has rows of it, by the keys of `LISTED`; counts are as of the
    latest manifest.

    A feature that cannot be trusted is listed with its problem.
    """
    manifests = latest_manifests(store)
    listing: list[dict[str, Any]] = []
    for folder in store.folders():
        try:
            feature = Feature(store.path, folder)
            spec, held = feature.spec, _held(feature, manifests)
            about = {**vars(spec), "feature": spec.name, "fingerprint": feature.fingerprint}
            about |= {"model": spec.provenance.get("model"), "random_weights": spec.random_weights}
            for counts in held.values():
                counts |= {
                    "quarantined": len(counts["quarantined"]),
                    "backends": sorted(counts["backends"]),
                }
            listing += [about | counts | {"corpus": corpus} for corpus, counts in held.items()] or [
                about
            ]
        except (SerError, OSError) as error:
            listing.append(
                {"feature": folder.parent.name, "fingerprint": folder.name, "problem": str(error)}
            )
    return [{key: row.get(key, default) for key, default in LISTED.items()} for row in listing]


def latest_manifests(store: Store) -> dict[str, Manifest | str]:
    """The latest manifest of each corpus, or why it cannot be trusted."""
    manifests: dict[str, Manifest | str] = {}
    for corpus in store.corpora():
        try:
            manifests[corpus] = store.manifest(corpus)
        except SerError as error:
            manifests[corpus] = str(error)
    return manifests


def corpora_of(feature: Feature, manifests: Mapping[str, Manifest | str]) -> list[str]:
    """The corpora that have rows of a feature, their own or their parent's."""
    children = [one for one in manifests.values() if isinstance(one, Manifest) and one.parent]
    own = {part.record.corpus for part in feature.parts()}
    return sorted(own | {child.corpus for child in children if feature.rows(child)})


def _held(feature: Feature, manifests: Mapping[str, Manifest | str]) -> dict[str, dict[str, Any]]:
    """What each corpus has of a feature; rows and quarantined utterances count as of its latest
    manifest.
    """
    held = {}
    for corpus in corpora_of(feature, manifests):
        manifest = manifests.get(corpus)
        known = manifest if isinstance(manifest, Manifest) else None
        parts = [part for part in feature.parts() if part.record.corpus == corpus]
        current = [key for key in feature.keys(known) if feature.place(key)] if known else []
        rows = len(current)
        lent = sum(key[0] != corpus for key in current)
        stored = sum(len(part.keys) for part in parts)
        quarantined = feature.quarantined(known) if known else {}
        held[corpus] = {
            "rows": rows,
            "lent": lent,  # of these, rows of the corpus's parent
            "of": len(known) if known else None,  # utterances in the corpus's latest manifest
            "complete": known is not None and rows + len(quarantined) == len(known),
            "superseded": stored - rows + lent,  # rows that this manifest does not name
            "bytes": sum(part.bytes for part in parts),
            **({"problem": manifest} if isinstance(manifest, str) else {}),
            "quarantined": quarantined,
            "parts": len(parts),
            "backends": dict(Counter(part.record.backend for part in parts)),
            "vectors": sum(part.record.arrays["values"].shape[0] for part in parts),
        }
    return held


def feature_info(feature: Feature, manifests: Mapping[str, Manifest | str]) -> dict[str, Any]:
    """How a feature was computed: everything in spec.json, and what each corpus has of it."""
    named = {
        "name": feature.spec.name,
        "fingerprint": feature.fingerprint,
        "path": str(feature.path),
    }
    return {**named, **feature.spec.to_json(), "corpora": _held(feature, manifests)}


def only_feature(store: Store, name: str) -> Path:
    """The folder of the only feature that `name[:variant][@fingerprint]` can mean: what is removed
    is never guessed.

    A fingerprint may also name a feature that cannot be read. Raises `WrongUse` listing them if
    there are several, `MissingRows` if there is none.
    """
    try:
        features = store.named(name)
    except StoreError:
        feature, _, prefix = name.partition("@")
        folders = [one for one in store.folders() if one.parent.name == feature.partition(":")[0]]
        folders = [one for one in folders if one.name.startswith(prefix)]
        if prefix and len(folders) == 1:
            return folders[0]
        raise
    if len(features) > 1:
        raise WrongUse(
            f"{store.path}: there are several {name}, choose one by its fingerprint: {listed(features)}"
        )
    return features[0].path


def remove_feature(store: Store, folder: Path) -> int:
    """Remove a feature with all its parts, whether they can be trusted or not. Returns how many
    bytes they had.
    """
    size, _ = extent(folder)
    with explain_disk_errors(f"removing {folder}", store.path):
        remove_folder(folder, store.path)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
    return size


def remove_superseded(
    store: Store, folders: Sequence[Path] = (), dry_run: bool = False
) -> Iterator[tuple[Part, int]]:
    """Rewrite the parts with rows that no corpus's latest manifest names, or that appear twice.

    Of the features in these `folders`, or of all features if none are given. What is kept is
    published before the part that holds it is dropped. Other processes may publish manifests and
    parts at the same time: a row that one of them needs at the moment of the drop may have to be
    computed again. Yields each part that is dropped, and how many of its rows are gone. Raises
    `CorruptStore` for a feature that cannot be read.
    """
    for folder in folders or store.folders():
        seen, current, feature = set[str](), set[Key](), Feature(store.path, folder)
        # Listed again each time: others publish parts and remove them, and so does this.
        while part := next(
            (part for part in feature.parts() if part.folder.name not in seen), None
        ):
            if _kept(feature, part, current) and part.record.corpus in store.corpora():
                # Read after the parts are listed: whoever publishes a row has put its manifest
                # before.
                latest = [*map(store.manifest, store.corpora())]
                current = {key for one in latest for key in feature.keys(one)}
                if kept := _kept(feature, part, current):
                    if not dry_run and not _rewrite(
                        store, feature, part, *kept, [one.digest for one in latest]
                    ):
                        continue  # a row of it may be current again
                    yield part, len(part.keys) - len(kept[0])
            seen.add(part.folder.name)


def _kept(
    feature: Feature, part: Part, current: set[Key]
) -> tuple[list[int], list[Quarantine]] | None:
    """The numbers of the rows that a part keeps, and its quarantined utterances that still count;
    None: all.
    """
    record = part.record
    kept = [
        i for i, key in enumerate(part.keys) if key in current and feature.place(key) == (part, i)
    ]
    quarantined = [
        entry
        for entry in record.quarantined
        if (key := (record.corpus, entry.id, entry.input)) in current and feature.place(key) is None
    ]
    whole = len(kept) == len(part.keys) and len(quarantined) == len(record.quarantined)
    return None if whole else (kept, quarantined)


def _rewrite(
    store: Store,
    feature: Feature,
    part: Part,
    kept: list[int],
    quarantined: list[Quarantine],
    latest: list[str],
) -> bool:
    """Publish what a part keeps, and drop it. False, and it stays, if these are no longer the
    latest manifests.
    """

    def changed() -> bool:  # also if one cannot be read any more
        return [getattr(one, "digest", one) for one in latest_manifests(store).values()] != latest

    if kept or quarantined:
        rows = replace(read_part(feature, part, kept), quarantined=quarantined)
        publish_part(feature, rows, part.record.backend, part.record.written_by)
    with explain_disk_errors("removing superseded rows", store.path):
        return remove_folder(part.folder, store.path, changed)


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

    With `repair`, a part that cannot be trusted is moved to `<store>/bad/<feature>/<fingerprint>/`,
    and nothing else is touched. After an interrupted pass, the next one skips the parts found good
    less than a day ago whose files have not changed since, unless it is to be `fresh`; in a
    read-only store each pass starts anew.
    """
    journal, paths, good, now = store.path / JOURNAL, _paths(store), set[str](), time.time()
    with contextlib.suppress(StoreError):
        text = "" if fresh else read_small(journal).decode(errors="replace")
        lines = re.findall("^([0-9]{1,12}) ([0-9a-f]{64})$", text, re.MULTILINE)
        good = {stamp for checked, stamp in lines if 0 <= now - int(checked) < _TRUSTED}
    with contextlib.suppress(OSError):  # here and below: of a read-only store
        if not good:
            journal.unlink()
    pool = ThreadPoolExecutor(MAX_THREADS)
    try:
        results = pool.map(lambda path: _checked(store, path, repair, good), paths)
        for number, (checked, stamp) in enumerate(results, 1):
            if stamp and not checked.problem:
                with (
                    contextlib.suppress(OSError),
                    os.fdopen(os.open(journal, _APPEND, 0o644), "ab") as file,
                ):
                    file.write(f"{int(time.time())} {stamp}\n".encode())
            yield replace(checked, remaining=len(paths) - number)
    finally:
        pool.shutdown(cancel_futures=True)
    with contextlib.suppress(OSError):
        journal.unlink()


def _stamp(part: Path) -> str | None:
    """A hash of a part's record and of what changes when one of its files is written to."""
    try:
        stats = [(str(path), path.lstat()) for path in sorted(part.rglob("*"))]
        facts = [
            (path, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for path, one in stats
        ]
        return hashlib.sha256(read_small(part / "part.json") + repr(facts).encode()).hexdigest()
    except OSError:
        return None


def _paths(store: Store) -> list[Path]:
    """What is to be checked, each part after its spec."""
    paths = []
    for corpus in store.corpora():
        folder = store.path / "manifests" / corpus
        paths += [folder / "latest", *sorted(folder.glob("*.parquet"))]
    paths += sorted((store.path / TRANSCRIPTS).glob("*.json"))
    for folder in store.folders():
        paths.append(folder / "spec.json")
        with contextlib.suppress(OSError):
            paths += [folder / "parts" / name for name in sorted(part_names(folder))]
    return paths


def _checked(
    store: Store, path: Path, repair: bool, good: Container[str | None]
) -> tuple[Checked, str | None]:
    """The result for one path, and its stamp."""
    name, size, note, problem, repaired = str(path.relative_to(store.path)), 0, None, None, None
    stamp = (
        _stamp(path) if path.parent.name == "parts" else None
    )  # first: a later change gives another
    if stamp in good:
        return Checked(name, 0, 0, skipped=True), None
    try:
        match path.relative_to(store.path).parts:
            case "manifests", corpus, file:
                read_manifest(store.path, corpus, None if file == "latest" else path.stem)
            case "transcripts", _:
                check_transcripts(path)
            case _, _, "spec.json":
                feature, keys = Feature(store.path, path.parent), Counter[Key]()
                part_names(feature.path)  # raises if they lie on a disk that is away
                with contextlib.suppress(SerError):  # the part's own record says which one, and why
                    keys.update(key for part in feature.parts() for key in part.keys)
                if twice := keys.total() - len(keys):
                    note = f"{twice} rows stand in two parts; `ser cache remove --superseded` rewrites them"
            case _, fingerprint, _, _:
                spec = None
                with contextlib.suppress(SerError):  # a bad spec has a record of its own
                    spec = Feature(store.path, path.parent.parent).spec
                size = check_part(path, fingerprint, spec).bytes
        size = size or path.stat().st_size
    except SerError as error:
        gone = not os.path.lexists(
            path if path.parent.name == "parts" else path.parent
        )  # since it was listed
        problem = None if gone else str(error)
        # What a newer ser wrote, or this user may not read, is not corrupt.
        if repair and not gone and isinstance(error, CorruptStore):
            repaired = _repair(store, path)
    except OSError as error:
        problem = f"{path}: cannot be read ({error.strerror or error})"
    return Checked(name, size, 0, problem, repaired, note), stamp


def _repair(store: Store, path: Path) -> str | None:
    """Move a bad part to `<store>/bad/<feature>/<fingerprint>/<part>-<n>`.

    `ser features` writes a bad spec again. Nothing is touched if the spec is missing, or if `bad/`
    is a link.
    """
    feature = path.parent.parent
    if (
        path.parent.name != "parts"
        or not (feature / "spec.json").exists()
        or (store.path / BAD).is_symlink()
    ):
        return None
    folder = store.path / BAD / feature.relative_to(store.path)
    names = (folder / f"{path.name}-{number}" for number in itertools.count(1))
    place = next(name for name in names if not os.path.lexists(name))
    with explain_disk_errors("repairing it", store.path):
        make_folder(folder)
        with contextlib.suppress(FileNotFoundError):  # another process has moved it
            path.rename(place)
        sync_folder(folder)
        sync_folder(path.parent)
    return f"moved to {place.relative_to(store.path)}"


def check_part(folder: Path, fingerprint: str, spec: Spec | None = None) -> Part:
    """Check a part down to its last byte, reading values once, and against its feature's spec.

    Raises `CorruptStore` for a file that is missing or altered, and for a record that fits its
    files but not the format: another name, dimension, dtype or level, or values that are not
    finite.
    """
    part = Part.open(folder, fingerprint)
    record, values = part.record, part.record.arrays["values"]
    if folder.name != part_name(record):
        raise CorruptStore(f"{folder}: holds other utterances than its name says; {REPAIR}")
    if spec and (values.shape[1], values.dtype) != (spec.dim, spec.dtype):
        has, says = f"{values.shape[1]} × {values.dtype}", f"{spec.dim} × {spec.dtype}"
        raise CorruptStore(f"{folder}: holds {has}, its spec says {says}; {REPAIR}")
    blocks = defaultdict[str, list[BlockToCheck]](list)
    for name, array in record.arrays.items():
        for block in array.blocks:
            blocks[block.file].append(BlockToCheck(block, name == "values"))
    for file, known in record.files.items():
        if (
            check_file(
                folder / file, sorted(blocks[file], key=lambda one: one.block.offset), values.dtype
            )
            != known.sha256
        ):
            raise CorruptStore(f"{folder / file}: altered (its sha256 is wrong); {REPAIR}")
    one_each = part.offsets == [*range(len(record.ids) + 1)]  # raises if they do not fit the rows
    if spec and spec.level == "utterance" and not one_each:
        raise CorruptStore(
            f"{folder}: has utterances that are not one row each, as its spec says; {REPAIR}"
        )
    if fault := BACKENDS[record.backend].inspect(folder, record.arrays):
        raise CorruptStore(f"{folder}: {fault}; {REPAIR}")
    return part
