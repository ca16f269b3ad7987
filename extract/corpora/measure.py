"""The audio files of a corpus: hashed and measured, and what is wrong with each."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ser.errors import CodedAudio, UtteranceError

from ..recording import ROUNDED_BY
from .audio_paths import files_meant, is_there
from .probe import Probe, probe
from .reading import Problem, Reading
from .same_samples import find_same_samples
from .segments import are_segments, has_place, is_cut_out, segment_of, share_files


@dataclass(frozen=True)
class Measured:
    """The rows of a corpus with what their audio files say."""

    rows: list[dict[str, Any]]
    """With `audio_sha256` and `duration`."""
    problems: list[Problem]
    """Of files that cannot be used."""
    warnings: list[str]
    """Of files that are odd, but can."""
    recordings: dict[str, str]
    """If the rows are segments, the sha256 of each file, by its path."""
    sounds: dict[str, str]
    """What stands for files of the same samples in other bytes, by the sha256 of each."""


def measure(reading: Reading, rows: list[dict[str, Any]]) -> Measured:
    """Hash and measure the audio file of each row, each file once.

    Of a segment, `audio_sha256` and `duration` are those of its part of the file.
    """
    root = reading.root
    files = list(dict.fromkeys(row["audio"] for row in rows))
    # Reading and hashing release the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda audio: probe(root / audio), files)
        probes = dict(zip(files, results, strict=True))

    are_parts = reading.places == "segments" and any(has_place(row) for row in rows)
    if reading.places == "measured":
        # By all rows: a few of them, as --limit takes, may be one of each file.
        are_parts = share_files(reading.rows) or are_segments(rows, probes)

    missing = [audio for audio in files if not is_there(root / audio)]
    meant = files_meant(root, missing) if missing else {}
    faults = Faults(probes, meant)

    measured = []
    shortened = []
    for row in rows:
        result = probes[row["audio"]]
        digest = result.sha256
        duration = result.duration
        fault = result.fault
        if are_parts and result.unreadable is None:
            try:
                segment = segment_of(row, result)
            except UtteranceError as error:
                fault = error
                duration = None
            else:
                fault = None
                digest = segment.digest
                duration = segment.duration
                if segment.is_shortened:
                    shortened.append(row["id"])
        measured.append({**row, "audio_sha256": digest, "duration": duration})
        if fault is not None:
            faults.add(row, fault)

    problems = faults.of_all(root)
    warnings = _warn_of_headers(probes)
    warnings += _warn_of_places(rows, probes, are_parts, shortened)
    recordings = {}
    if are_parts:
        for audio, result in probes.items():
            if result.sha256 is not None:
                recordings[audio] = result.sha256
    sounds = find_same_samples(root, probes)
    return Measured(measured, problems, warnings, recordings, sounds)


class Faults:
    """Why rows cannot be used, as problems."""

    def __init__(self, probes: Mapping[str, Probe], meant: Mapping[str, str]) -> None:
        self.meant = meant
        self.problems: list[Problem] = []
        self.readable = sum(result.sha256 is not None for result in probes.values())
        self.coded: dict[str, None] = {}

    def add(self, row: Mapping[str, Any], fault: UtteranceError) -> None:
        """Name why a row cannot be used."""
        audio = row["audio"]
        reason = str(fault)
        if audio in self.meant:
            reason += f"; did you mean {self.meant[audio]}?"
        self.problems.append(Problem(row["id"], audio, reason, "audio"))
        if isinstance(fault, CodedAudio):
            self.coded[audio] = None

    def of_all(self, root: Path) -> list[Problem]:
        """All problems; first one line of shell, where no file at all can be decoded."""
        if not self.coded or len(self.coded) != self.readable:
            return self.problems
        reason = f"no file here can be decoded as it is: {_how_to_convert(self.coded, root)}"
        return [Problem(None, str(root), reason, "audio"), *self.problems]


def _warn_of_places(
    rows: Sequence[Mapping[str, Any]],
    probes: Mapping[str, Probe],
    are_parts: bool,
    shortened: Sequence[str],
) -> list[str]:
    """What `start` and `end` are taken for, where that is not plain."""
    with_places = [row for row in rows if has_place(row)]
    if not with_places:
        return []
    if are_parts:
        warnings = []
        files = {row["audio"] for row in rows}
        if len(files) == len(rows):
            warnings.append(
                "start and end are taken for places in the audio files, most of which are longer "
                "than they say: each utterance is a part of its file"
            )
        if shortened:
            warnings.append(
                f"{len(shortened)} segments, such as {shortened[0]}, end up to {ROUNDED_BY} s "
                "after their file, as rounded times do: they end with it"
            )
        return warnings

    odd = []
    for row in with_places:
        if not is_cut_out(row, probes[row["audio"]]):
            odd.append(row["id"])
    if not odd:
        return []
    return [
        f"start and end are taken for places in a dialogue, and each file for a whole utterance; "
        f"{len(odd)} files, such as that of {odd[0]}, are not as long as they say"
    ]


def _warn_of_headers(probes: Mapping[str, Probe]) -> list[str]:
    """One warning each for what headers do not count: how many files, and how many bytes."""
    uncounted: dict[str, int] = {}
    trailing: dict[str, int] = {}
    for audio, result in probes.items():
        if result.header is not None and result.header.uncounted:
            uncounted[audio] = result.header.uncounted
        if result.header is not None and result.header.trailing:
            trailing[audio] = result.header.trailing

    warnings = []
    if uncounted:
        warnings.append(
            f"{len(uncounted)} files, such as {next(iter(uncounted))}, hold "
            f"{sum(uncounted.values())} bytes of samples that their headers do not count: they "
            "are read to the end"
        )
    if trailing:
        warnings.append(
            f"{len(trailing)} files, such as {next(iter(trailing))}, hold {sum(trailing.values())} "
            "bytes after their samples that are no audio: they are not read"
        )
    return warnings


def _how_to_convert(paths: Iterable[str], root: Path) -> str:
    """The command that makes WAV files of all files with the endings of these `paths`."""
    endings = {shlex.quote(f"*{PurePosixPath(path).suffix}") for path in paths}
    named = " -o ".join(f"-name {ending}" for ending in sorted(endings))
    convert = """sh -c 'ffmpeg -i "$1" -vn "$1.wav" && mv "$1.wav" "${1%.*}.wav"' _ {}"""
    return (
        f"convert them with `find -L {shlex.quote(str(root))}/ \\( {named} \\) -exec {convert} \\;`"
    )
