"""Look after a store: list what it holds, remove what is not wanted.

What is removed is moved aside first, in one step, then deleted; a reader in flight gets an error, never zeros.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ser.errors import SerError, StoreError, WrongUse

from .atomic_io import explain_disk_errors, remove_folder
from .feature import Feature
from .manifest import Key, Manifest
from .part import Part, PartRows, Quarantine
from .store import Store, listed

# The keys of a listing, and what it says of a feature that has no part yet, or has a `problem`: it cannot be trusted.
LISTED: dict[str, Any] = {
    "feature": "",  # with its variant: "hubert:layer=9"
    "fingerprint": "",
    "corpus": None,
    **dict.fromkeys(("rows", "lent"), 0),
    "of": None,
    **dict.fromkeys(("quarantined", "superseded", "bytes"), 0),
    "backends": [],
    **dict.fromkeys(("modality", "level", "dim", "dtype", "model")),
    **dict.fromkeys(("random_weights", "complete"), False),
    "problem": None,
}


def list_features(store: Store) -> list[dict[str, Any]]:
    """Every feature × corpus that has rows of it, by the keys of `LISTED`; counts are as of the latest manifest.

    One that cannot be trusted is listed too, with its problem.
    """
    manifests = latest_manifests(store)
    found: list[dict[str, Any]] = []
    for folder in store.folders():
        try:
            feature = Feature(store.path, folder)
            spec = feature.spec
            about = {**vars(spec), "feature": spec.name, "fingerprint": feature.fingerprint}
            about |= {"model": spec.provenance.get("model"), "random_weights": spec.random_weights}
            held = _held(feature, manifests)
            for one in held.values():
                one |= {"quarantined": len(one["quarantined"]), "backends": sorted(one["backends"])}
            found += [{**about, **one, "corpus": corpus} for corpus, one in held.items()] or [about]
        except (SerError, OSError) as error:
            found.append({"feature": folder.parent.name, "fingerprint": folder.name, "problem": str(error)})
    return [{name: one.get(name, nothing) for name, nothing in LISTED.items()} for one in found]


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
    """What each corpus has of a feature, all current rows and quarantined utterances as of its latest manifest."""
    found = {}
    for corpus in corpora_of(feature, manifests):
        manifest = manifests.get(corpus)
        known = manifest if isinstance(manifest, Manifest) else None
        parts = [part for part in feature.parts() if part.record.corpus == corpus]
        current = [key for key in feature.keys(known) if feature.place(key)] if known else []
        rows = len(current)
        lent = sum(key[0] != corpus for key in current)
        stored = sum(len(part.keys) for part in parts)
        quarantined = feature.quarantined(known) if known else {}
        found[corpus] = {
            "rows": rows,
            "lent": lent,  # of these, rows of the parent of this corpus
            "of": len(known) if known else None,  # utterances in the corpus's latest manifest
            "complete": known is not None and rows + len(quarantined) == len(known),
            "superseded": stored - rows + lent,  # what this manifest does not ask for
            "bytes": sum(part.bytes for part in parts),
            **({"problem": manifest} if isinstance(manifest, str) else {}),
            "quarantined": quarantined,
            "parts": len(parts),
            "backends": dict(Counter(part.record.backend for part in parts)),
            "vectors": sum(part.record.arrays["values"].shape[0] for part in parts),
        }
    return found


def feature_info(feature: Feature, manifests: Mapping[str, Manifest | str]) -> dict[str, Any]:
    """How a feature was computed: everything in spec.json, and what each corpus has of it."""
    named = {"name": feature.spec.name, "fingerprint": feature.fingerprint, "path": str(feature.path)}
    return {**named, **feature.spec.to_json(), "corpora": _held(feature, manifests)}


def only_feature(store: Store, name: str) -> Path:
    """The folder of the one feature that `name[:variant][@fingerprint]` can mean: what is removed is never guessed.

    By its fingerprint it may also be one that cannot be read. Raises `WrongUse` listing them if there are several,
    `MissingRows` if there is none.
    """
    feature, _, prefix = name.partition("@")
    try:
        found = store.named(name)
    except StoreError:
        near = [one for one in store.folders() if one.parent.name == feature.partition(":")[0]]
        if prefix and len(near := [one for one in near if one.name.startswith(prefix)]) == 1:
            return near[0]
        raise
    if len(found) > 1:
        raise WrongUse(f"{store.path}: there are several {name}, choose one by its fingerprint: {listed(found)}")
    return found[0].path


def remove_feature(store: Store, folder: Path) -> int:
    """Remove a feature with all its parts, whether they can be trusted or not. Returns how many bytes they had."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    with explain_disk_errors(f"removing {folder}", store.path):
        remove_folder(folder, store.path)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
    return size


Dropped = tuple[Part, int]  # a part that is removed, and how many of its rows are gone then


def remove_superseded(store: Store, folders: list[Path] | None = None, dry_run: bool = False) -> Iterator[Dropped]:
    """Rewrite the parts that hold rows which no corpus's latest manifest asks for, or which appear twice.

    What is kept is published before what holds it is dropped. Other processes may publish manifests and parts
    meanwhile: a row that one asks for in the moment of the drop may have to be computed again. `folders` None: of all
    features. Raises `CorruptStore` for one that cannot be read.
    """
    for folder in store.folders() if folders is None else folders:
        seen, feature = set[str](), Feature(store.path, folder)
        current = {key for manifest in _latest(store) for key in feature.keys(manifest)}
        # Anew each time: others publish parts and remove them, and so does this.
        while part := next((part for part in feature.parts() if part.name not in seen), None):
            seen.add(part.name)
            if _kept(feature, part, current) and part.record.corpus in store.corpora():
                yield from _rewrite(store, feature, part, dry_run)


def _latest(store: Store) -> list[Manifest]:
    """The manifests whose rows are current. Whoever publishes a row has put the one that asks for it."""
    return [*map(store.manifest, store.corpora())]


def _kept(feature: Feature, part: Part, current: set[Key]) -> tuple[list[int], list[Quarantine]] | None:
    """The numbers of the rows that a part keeps, and its quarantined utterances that still count; None: all."""
    record = part.record
    kept = [i for i, key in enumerate(part.keys) if key in current and feature.place(key) == (part, i)]
    quarantined = [
        entry
        for entry in record.quarantined
        if (key := (record.corpus, entry.id, entry.input)) in current and feature.place(key) is None
    ]
    whole = len(kept) == len(part.keys) and len(quarantined) == len(record.quarantined)
    return None if whole else (kept, quarantined)


def _rewrite(store: Store, feature: Feature, part: Part, dry_run: bool) -> Iterator[Dropped]:
    latest = _latest(store)  # again, the parts having been listed: another process may have put one since

    def changed() -> bool:  # also where one cannot be read any more
        now = latest_manifests(store).values()
        return [getattr(one, "digest", one) for one in now] != [one.digest for one in latest]

    if (found := _kept(feature, part, {key for one in latest for key in feature.keys(one)})) is None:
        return
    record, (kept, quarantined) = part.record, found
    if not dry_run:
        if kept or quarantined:
            packed = feature.gather([(part, i) for i in kept], [record.ids[i] for i in kept])
            rows = PartRows.from_packed(record.corpus, [record.inputs[i] for i in kept], packed, quarantined)
            feature.publish(rows, record.backend, record.written_by)
        with explain_disk_errors("removing superseded rows", store.path):
            gone = remove_folder(part.folder, store.path, changed)
        if not gone:  # a row of it may be current again
            yield from _rewrite(store, feature, part, dry_run)
            return
    yield part, len(part.keys) - len(kept)
