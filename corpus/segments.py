"""Segments: utterances that are parts of a recording, and how a store tells them apart."""

import hashlib
from pathlib import PurePosixPath

from ser.disk.records import canonical_json

from .manifest import Manifest


def segment_digest(recording_sha256: str, first: int, end: int, frames: int) -> str:
    """What stands for the audio of a segment, in place of the sha256 of a file.

    The hex sha256 of the canonical JSON of `[sha256 of the file, first sample, the one after the
    last]`, samples counted at the file's own rate. A segment that is the whole file, of `frames`
    samples, has the file's own.
    """
    if first == 0 and end == frames:
        return recording_sha256
    return hashlib.sha256(canonical_json([recording_sha256, first, end])).hexdigest()


def segment_id(audio: str, start: float | None, end: float | None) -> str:
    """The id of a segment that has none: its recording and its place there, in seconds.

    >>> segment_id("a/long.wav", 1.5, 3.0), segment_id("a/long.wav", 3.0, None)
    ('a/long_1.500_3.000', 'a/long_3.000_end')
    """
    recording = PurePosixPath(audio.replace("\\", "/")).with_suffix("")
    return f"{recording}_{_in_words(start or 0.0)}_{'end' if end is None else _in_words(end)}"


def _in_words(seconds: float) -> str:
    """Seconds with at least three decimals, and as many as they have."""
    exact = repr(float(seconds))
    _, _, decimals = exact.partition(".")
    return f"{seconds:.3f}" if "e" in exact or len(decimals) <= 3 else exact


def has_segments(manifest: Manifest) -> bool:
    """Whether `start` and `end` are places in the audio files.

    The manifest says so, or, if its audio was never read, has several rows of one file.
    """
    if manifest.is_segmented:
        return True
    paths = manifest.column("audio")
    places = set(zip(paths, manifest.column("start"), manifest.column("end"), strict=True))
    files = {path for path, _, _ in places if path is not None}
    return sum(path is not None for path, _, _ in places) > len(files)


def places_of(manifest: Manifest) -> list[tuple[float, float | None]]:
    """Where each segment begins and ends in its file, in seconds.

    The end of one that ends with its file comes from its duration, and is None if that is unknown.
    """
    places: list[tuple[float, float | None]] = []
    columns = (manifest.column(name) for name in ("start", "end", "duration"))
    for start, end, duration in zip(*columns, strict=True):
        begin = start or 0.0
        if end is None and duration is not None:
            end = begin + duration
        places.append((begin, end))
    return places
