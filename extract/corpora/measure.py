"""The audio files of a corpus: hashed and measured, and what is wrong with each."""

import hashlib
import os
import shlex
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ser.errors import CodedAudio, UtteranceError

from ..audio import open_audio, read_bytes
from ..audio_header import Header
from .audio_paths import files_meant, is_there
from .reading import Problem


@dataclass(frozen=True)
class Probe:
    """What an audio file is by its bytes and its header."""

    sha256: str | None = None
    """None if the file cannot be read."""
    duration: float | None = None
    """In seconds; None if the header is wrong."""
    fault: UtteranceError | None = None
    """Why it cannot be used."""
    header: Header | None = None
    """What its header says of its length."""


def probe(path: Path) -> Probe:
    """Hash an audio file and measure it by its header. A fault of the file is returned, not raised.

    Raises `CorpusError` if the disk, the mount or the memory fails. The whole file is read every
    time: size and modification time do not show changed bytes.
    """
    sha256 = None
    duration = None
    try:
        data = read_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        file, header = open_audio(data, path.name)
        with file:
            duration = file.frames / file.samplerate
    except UtteranceError as fault:
        # A new one, without its traceback, which holds the file.
        return Probe(sha256, duration, type(fault)(str(fault)))
    # Without the bytes, which are not needed any more.
    return Probe(sha256, duration, header=replace(header, data=b""))


@dataclass(frozen=True)
class Measured:
    """The rows of a corpus with what their audio files say."""

    rows: list[dict[str, Any]]
    """With `audio_sha256` and `duration`."""
    problems: list[Problem]
    """Of files that cannot be used."""
    warnings: list[str]
    """Of files that are odd, but can."""


def measure(rows: list[dict[str, Any]], root: Path) -> Measured:
    """Hash and measure the audio file of each row."""
    # Reading and hashing release the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        probes = list(pool.map(lambda row: probe(root / row["audio"]), rows))

    missing = [row["audio"] for row in rows if not is_there(root / row["audio"])]
    meant = files_meant(root, missing) if missing else {}

    measured = []
    problems = []
    coded = []
    readable = 0
    for row, result in zip(rows, probes, strict=True):
        measured.append({**row, "audio_sha256": result.sha256, "duration": result.duration})
        if result.sha256 is not None:
            readable += 1
        if result.fault is not None:
            reason = str(result.fault)
            if row["audio"] in meant:
                reason += f"; did you mean {meant[row['audio']]}?"
            problems.append(Problem(row["id"], row["audio"], reason, "audio"))
        if isinstance(result.fault, CodedAudio):
            coded.append(row["audio"])

    # Where no file at all can be decoded, one line of shell is more use than a thousand problems.
    if coded and len(coded) == readable:
        reason = f"no file here can be decoded as it is: {_how_to_convert(coded, root)}"
        problems.insert(0, Problem(None, str(root), reason, "audio"))
    warnings = _warn_of_headers(rows, probes)
    return Measured(measured, problems, warnings)


def _warn_of_headers(rows: list[dict[str, Any]], probes: list[Probe]) -> list[str]:
    """One warning each for what headers do not count: how many files, and how many bytes."""
    uncounted: dict[str, int] = {}
    trailing: dict[str, int] = {}
    for row, result in zip(rows, probes, strict=True):
        if result.header is not None and result.header.uncounted:
            uncounted[row["audio"]] = result.header.uncounted
        if result.header is not None and result.header.trailing:
            trailing[row["audio"]] = result.header.trailing

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
