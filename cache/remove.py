"""Removing: moved aside first, in one step, then deleted; a reader in flight gets an error, never zeros."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .durable import faults_named, sync_folder, workspace
from .errors import WrongUse
from .features import Feature
from .layout import Part
from .manifest import Key
from .parts import PartRows
from .store import Store, listed


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
