"""Remove what is not wanted: whole features, and rows that no manifest asks for any more.

What is removed is first moved aside in one step, then deleted: a reader at work gets an error,
never zeros.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ser.cache.feature import Feature, read_part
from ser.cache.part import Part, Quarantine
from ser.cache.publish import publish_part
from ser.cache.store import Store, listed
from ser.corpus.manifest import Key, Manifest
from ser.disk.faults import explain_disk_errors
from ser.disk.folders import extent, remove_folder
from ser.errors import StoreError, WrongUse

from .listing import latest_manifests


def only_feature(store: Store, name: str) -> Path:
    """The folder of the only feature that `name[:variant][@fingerprint]` can mean.

    What is removed is never guessed. A fingerprint may also name a feature that cannot be read.
    Raises `WrongUse` listing them if there are several, `MissingRows` if there is none.
    """
    try:
        features = store.named(name)
    except StoreError:
        feature, _, prefix = name.partition("@")
        folders = [
            folder
            for folder in store.folders()
            if folder.parent.name == feature.partition(":")[0] and folder.name.startswith(prefix)
        ]
        if prefix and len(folders) == 1:
            return folders[0]
        raise

    if len(features) > 1:
        fault = f"there are several {name}, choose one by its fingerprint: {listed(features)}"
        raise WrongUse(f"{store.path}: {fault}")
    return features[0].path


def remove_feature(store: Store, folder: Path) -> int:
    """Remove a feature with all its parts, whether they can be trusted or not; returns bytes."""
    size, _ = extent(folder)
    with explain_disk_errors(f"removing {folder}", store.path):
        remove_folder(folder, store.path)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
    return size


@dataclass(frozen=True)
class KeptRows:
    """What is worth keeping of a part: the numbers of its rows, and quarantined utterances."""

    rows: list[int]
    quarantined: list[Quarantine]

    def is_all_of(self, part: Part) -> bool:
        """Whether nothing of the part is superseded."""
        all_rows = len(self.rows) == len(part.keys)
        return all_rows and len(self.quarantined) == len(part.record.quarantined)


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
        yield from _remove_superseded_of(store, Feature(store.path, folder), dry_run)


def _remove_superseded_of(
    store: Store, feature: Feature, dry_run: bool
) -> Iterator[tuple[Part, int]]:
    """As `remove_superseded`, of one feature."""
    seen: set[str] = set()
    current: set[Key] = set()

    while True:
        part = _next_part(feature, seen)
        if part is None:
            return

        # A corpus without a manifest is nobody's business.
        if part.record.corpus not in store.corpora() or _kept(feature, part, current) is None:
            seen.add(part.folder.name)
            continue

        # Read after the parts are listed: whoever publishes a row has put its manifest before.
        latest = [store.manifest(corpus) for corpus in store.corpora()]
        current = set()
        for manifest in latest:
            current.update(feature.keys(manifest))
        kept = _kept(feature, part, current)
        if kept is None:
            seen.add(part.folder.name)
            continue

        if not dry_run and not _rewrite(store, feature, part, kept, latest):
            # A row of it may be current again: look at it once more.
            continue

        yield part, len(part.keys) - len(kept.rows)
        seen.add(part.folder.name)


def _next_part(feature: Feature, seen: set[str]) -> Part | None:
    """The first part whose name is not among those `seen`; None after the last.

    Parts are listed again each time: others publish parts and remove them, and so does this.
    """
    for part in feature.parts():
        if part.folder.name not in seen:
            return part
    return None


def _kept(feature: Feature, part: Part, current: set[Key]) -> KeptRows | None:
    """What of a part still counts; None where all of it does."""
    rows = []
    for number, key in enumerate(part.keys):
        if key in current and feature.place(key) == (part, number):
            rows.append(number)

    quarantined = []
    for entry in part.record.quarantined:
        key = (part.record.corpus, entry.id, entry.input)
        if key in current and feature.place(key) is None:
            quarantined.append(entry)

    kept = KeptRows(rows, quarantined)
    return None if kept.is_all_of(part) else kept


def _rewrite(
    store: Store, feature: Feature, part: Part, kept: KeptRows, latest: Sequence[Manifest]
) -> bool:
    """Publish what a part keeps, and drop the part.

    Returns False, and the part stays, if `latest` are no longer the latest manifests.
    """
    digests = [manifest.digest for manifest in latest]

    def changed() -> bool:
        # A manifest that cannot be read any more has no digest, so it counts as changed.
        manifests = latest_manifests(store).values()
        return [getattr(manifest, "digest", manifest) for manifest in manifests] != digests

    if kept.rows or kept.quarantined:
        rows = replace(read_part(feature, part, kept.rows), quarantined=kept.quarantined)
        publish_part(feature, rows, part.record.backend, part.record.written_by)

    with explain_disk_errors("removing superseded rows", store.path):
        return remove_folder(part.folder, store.path, changed)
