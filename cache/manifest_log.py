"""`log.jsonl` of a corpus: every manifest that has been its latest, in the order of its lines.

The order of the lines decides, never their times: the clocks of two machines differ, and one may be
set back. Each line carries a checksum over itself and all before it, so that a line that is altered
or missing shows.
"""

import contextlib
import datetime
import hashlib
import re
import time
from pathlib import Path

import msgspec

from ser.disk.read import read_small
from ser.disk.records import canonical_json
from ser.errors import CorruptStore, StoreError

LOG = "log.jsonl"

_DIGEST = re.compile(r"[0-9a-f]{64}")

# What ends a line: the checksum, as the last key of its JSON.
_CHECKSUM = b',"sha256":"%s"}'
_CHECKSUM_LENGTH = len(_CHECKSUM % (b"0" * 64))

_MEND = (
    "run `ser cache verify --repair --store STORE`, which writes the log again from what can be "
    "read of it; the manifests themselves are not touched"
)


class Generation(msgspec.Struct, frozen=True):
    """A manifest that is or was its corpus's latest: one line of the corpus's log."""

    digest: str

    time: str
    """UTC, as in 2026-11-22T13:48:15+00:00; by the clock of the machine that wrote it."""

    utterances: int | None = None

    command: str | None = None
    """What put it there; None if the log has no line of it."""


class _Line(Generation, frozen=True, forbid_unknown_fields=True):
    """A line as verify reads it; those that an earlier ser wrote have no checksum."""

    sha256: str | None = None


def with_line(log: bytes, digest: str, utterances: int, command: str | None) -> bytes:
    """A log with one more line, of now."""
    if log and not log.endswith(b"\n"):
        # A line that was cut short must not take the new one with it.
        log += b"\n"

    generation = Generation(digest, _utc(time.time()), utterances, command)
    return log + _checksummed(log, generation)


def _checksummed(log: bytes, generation: Generation) -> bytes:
    """The line of a manifest after this log, with its newline."""
    body = canonical_json(generation)
    return body[:-1] + _checksum(log, body) + b"\n"


def _checksum(log: bytes, body: bytes) -> bytes:
    return _CHECKSUM % hashlib.sha256(log + body).hexdigest().encode()


def read_log(folder: Path) -> bytes:
    """The log in a corpus's folder; empty if it is missing or cannot be read."""
    with contextlib.suppress(StoreError):
        return read_small(folder / LOG)
    return b""


def generations(folder: Path) -> list[Generation]:
    """Every manifest that has been the latest in a corpus's folder, oldest first.

    Each stands there as often as it has been, in the order of the log. One without a readable line
    there comes before all others, with the time of its file.
    """
    logged = []
    for line in read_log(folder).splitlines():
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            logged.append(msgspec.json.decode(line, type=Generation))

    known = {generation.digest for generation in logged}
    unlogged = []
    for file in folder.glob("*.parquet"):
        if file.stem not in known:
            unlogged.append(Generation(file.stem, _utc(file.stat().st_mtime)))

    unlogged.sort(key=lambda generation: generation.time)
    return unlogged + logged


def earlier_digests(folder: Path) -> list[str]:
    """The digests of those that were the latest before it last became so, oldest first."""
    latest = _latest(folder)
    digests = [generation.digest for generation in generations(folder)]

    if latest in digests:
        last = len(digests) - 1 - digests[::-1].index(latest)
        digests = digests[:last]

    return [digest for digest in digests if digest != latest]


def check_log(folder: Path) -> str | None:
    """Hold a corpus's log against its checksums and `latest`; returns a note, or None.

    Raises `CorruptStore` for a log that is missing, altered or cut, or in which no line names
    `latest`. It is only worth a note that the last line names another: a process may have been
    killed between the two.
    """
    path = folder / LOG
    log = read_small(path, _MEND)

    named = []
    position = 0
    is_checksummed = False
    for number, line in enumerate(log.splitlines(keepends=True), 1):
        entry = _parse(line)
        # Lines of an earlier ser stand before all that have a checksum.
        if entry is not None and (is_checksummed or entry.sha256 is not None):
            is_checksummed = True
            body = line[: -_CHECKSUM_LENGTH - 1] + b"}"
            if line[-_CHECKSUM_LENGTH - 1 : -1] != _checksum(log[:position], body):
                entry = None
        if entry is None:
            raise CorruptStore(f"{path}: altered or cut short at line {number}; {_MEND}")

        named.append(entry.digest)
        position += len(line)

    if not named:
        raise CorruptStore(f"{path}: is empty; {_MEND}")

    latest = _latest(folder)
    if not (folder / f"{latest}.parquet").exists():
        # That is a fault of `latest`, or of the manifest.
        return None
    if latest not in named:
        raise CorruptStore(f"{path}: has no line of the latest manifest; {_MEND}")
    if named[-1] != latest:
        return "its last line is not of `latest`: a command was killed, or a line is cut off"
    return None


def _parse(line: bytes) -> _Line | None:
    """A whole line of the log; None if it is not one."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = msgspec.json.decode(line, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return entry if _DIGEST.fullmatch(entry.digest) else None


def rewritten_log(folder: Path) -> bytes:
    """The log written again from what can be read of it, and of the manifests beside it.

    Its last line names `latest`.
    """
    past = generations(folder)
    latest = _latest(folder)

    of_latest = [generation for generation in past if generation.digest == latest]
    if of_latest and past[-1].digest != latest:
        if of_latest[-1].command is None:
            # It has no line, so that its place is not known, but for this.
            past.remove(of_latest[-1])
        past.append(of_latest[-1])

    log = b""
    for generation in past:
        log += _checksummed(log, generation)
    return log


def _latest(folder: Path) -> str:
    """What `latest` names; empty if it cannot be read, which verify says of itself."""
    with contextlib.suppress(StoreError):
        return read_small(folder / "latest").decode(errors="replace").strip()
    return ""


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
