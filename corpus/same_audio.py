"""Recordings that stand in a corpus under several ids: equal bytes, or equal samples."""

from collections.abc import Sequence
from typing import Any

from .manifest import Manifest
from .segments import places_of

# Ids that a warning names before it counts the rest.
MAX_NAMED = 3


def sounds_of(manifest: Manifest) -> list[str | None]:
    """What each row sounds like: equal for equal audio, None where there is none.

    Files of the same samples in other bytes sound alike (see `Manifest.sounds`). Rows that are
    spans of one file are equal if they begin and end alike.
    """
    digests = _by_samples(manifest)
    paths = manifest.column("audio")

    files_of: dict[str, list[str]] = {}
    for digest, path in zip(digests, paths, strict=True):
        if digest is not None:
            files_of.setdefault(digest, []).append(path)

    sounds: list[str | None] = []
    for digest, place in zip(digests, places_of(manifest), strict=True):
        sound = digest
        # In a corpus of one file each, start and end are places in a dialogue.
        if digest is not None and len(set(files_of[digest])) < len(files_of[digest]):
            sound = f"{digest} {place}"
        sounds.append(sound)
    return sounds


def _by_samples(manifest: Manifest) -> list[str | None]:
    """The digest of each row's audio, or what stands for all files of the same samples."""
    digests = manifest.column("audio_sha256")
    if not manifest.sounds:
        return digests

    by_samples: list[str | None] = []
    rows = zip(digests, manifest.recording_digests(), places_of(manifest), strict=True)
    for digest, recording, place in rows:
        sound = None if recording is None else manifest.sounds.get(recording)
        if sound is None:
            by_samples.append(digest)
        elif digest == recording:
            by_samples.append(sound)
        else:
            by_samples.append(f"{sound} {place}")
    return by_samples


def rows_by_sound(sounds: Sequence[str | None]) -> list[list[int]]:
    """The rows of each sound that stands in several, in order."""
    rows: dict[str, list[int]] = {}
    for row, sound in enumerate(sounds):
        if sound is not None:
            rows.setdefault(sound, []).append(row)
    return [copies for copies in rows.values() if len(copies) > 1]


def warn_of_copies(manifest: Manifest) -> list[str]:
    """A warning each for audio under several ids, and for copies whose labels differ."""
    labels = manifest.column("label")
    copies = rows_by_sound(sounds_of(manifest))
    conflicts = []
    for rows in copies:
        if len({labels[row] for row in rows} - {None}) > 1:
            conflicts.append(rows)

    warnings = []
    if copies:
        warnings.append(
            f"{len(copies)} recordings stand under several ids ({_named(manifest, copies, None)}): "
            "train and test may hold the same audio"
        )
    if conflicts:
        warnings.append(
            f"{len(conflicts)} recordings have different labels under several ids "
            f"({_named(manifest, conflicts, labels)}): correct the labels, or leave one out"
        )
    return warnings


def _named(
    manifest: Manifest, copies: Sequence[Sequence[int]], labels: Sequence[Any] | None
) -> str:
    groups = []
    for rows in copies[:MAX_NAMED]:
        names = []
        for row in rows:
            label = f" {labels[row]}" if labels else ""
            names.append(f"{manifest.ids[row]}{label}")
        groups.append(" = ".join(names[:MAX_NAMED]))
    more = len(copies) - MAX_NAMED
    return "; ".join(groups) + (f"; and {more} more" if more > 0 else "")
