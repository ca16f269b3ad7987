"""Files that hold the same samples in other bytes: a WAV and a FLAC, other headers or widths.

What sounds alike has the same length, rate and first samples; only files that agree in these are
decoded whole. So a corpus without copies costs a few thousand samples a file.
"""

from collections.abc import Mapping
from pathlib import Path

from ser.disk.memory import name_what_does_not_fit
from ser.errors import CorpusError, UtteranceError

from ..recording import BLOCK, Recording
from .probe import Probe
from .sample_digest import SampleDigest


def find_same_samples(root: Path, probes: Mapping[str, Probe]) -> dict[str, str]:
    """A digest of the samples of each file that has those of another file in other bytes.

    By the sha256 of the file. `probes` are the files of a corpus, by their path under `root`.
    """
    alike: dict[tuple[int | None, str], dict[str, str]] = {}
    for audio, result in probes.items():
        if result.opening and result.sha256:
            alike.setdefault((result.frames, result.opening), {})[result.sha256] = audio

    sounds: dict[str, str] = {}
    for files in alike.values():
        if len(files) > 1:
            sounds.update(_with_equal_samples(root, files))
    return sounds


def _with_equal_samples(root: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Of files, by their sha256, those whose samples are those of another, with their digest."""
    by_samples: dict[str, list[str]] = {}
    for sha256, audio in files.items():
        digest = _samples_of(root / audio)
        if digest:
            by_samples.setdefault(digest, []).append(sha256)

    return {
        sha256: digest
        for digest, copies in by_samples.items()
        if len(copies) > 1
        for sha256 in copies
    }


def _samples_of(path: Path) -> str:
    """A digest of all samples of a file; empty if they cannot be decoded."""
    try:
        with name_what_does_not_fit(path, CorpusError), Recording(path) as recording:
            recording.open()
            samples = SampleDigest(recording.rate)
            for first in range(0, recording.frames, BLOCK):
                samples.update(recording.read(first, min(first + BLOCK, recording.frames)))
    except UtteranceError:
        return ""
    return samples.hexdigest()
