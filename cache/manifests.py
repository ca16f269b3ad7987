"""The manifests of a store: the latest of each corpus, and the log of those that were."""

import contextlib
import datetime
import re
import time
from pathlib import Path

import msgspec

from ser.corpus.manifest import Manifest
from ser.disk.folders import folders_in
from ser.disk.read import read_small
from ser.disk.workspace import put_files
from ser.errors import CorruptStore, StoreError, WrongUse

_LOG = "log.jsonl"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_AGAIN = "run `ser features` to write it again"


class Generation(msgspec.Struct, frozen=True):
    """A manifest that is or was its corpus's latest: one line of the corpus's log."""

    digest: str

    time: str
    """UTC, as in 2026-11-22T13:48:15+00:00."""

    utterances: int | None = None

    command: str | None = None
    """What put it there; None if the log has no line of it."""


def list_corpora(store: Path) -> list[str]:
    """The names of the corpora that have a manifest in a store."""
    return [folder.name for folder in folders_in(store / "manifests")]


def read_manifest(store: Path, corpus: str, digest: str | None = None) -> Manifest:
    """A corpus's manifest by its digest (None: the latest).

    Raises `WrongUse` for an unknown digest and `CorruptStore` for a manifest that cannot be
    trusted.
    """
    folder = store / "manifests" / corpus
    if digest is None:
        digest = _latest_digest(folder)
    elif not _DIGEST.fullmatch(digest) or not (folder / f"{digest}.parquet").exists():
        raise WrongUse(f"{folder}: has no manifest {digest!r}")

    path = folder / f"{digest}.parquet"
    return Manifest.from_content(read_small(path, _AGAIN), digest, str(path), corpus)


def _latest_digest(folder: Path) -> str:
    path = folder / "latest"
    line = read_small(path, _AGAIN).decode(errors="replace")
    digest = line.removesuffix("\n")

    if not _DIGEST.fullmatch(digest) or digest == line:
        raise CorruptStore(f"{path}: altered or cut short; {_AGAIN}")
    return digest


def make_latest(store: Path, manifest: Manifest, command: str) -> None:
    """Make a manifest its corpus's latest, and add a line to the corpus's log.

    It is written if it is missing.
    """
    folder = store / "manifests" / manifest.corpus
    digest = manifest.digest

    log = b""
    with contextlib.suppress(StoreError):
        log = read_small(folder / _LOG)
    line = msgspec.json.encode(Generation(digest, _utc(time.time()), len(manifest), command))

    # In this order: `latest` names a file that is there, and that the log has.
    files = {
        f"{digest}.parquet": manifest.content,
        _LOG: log + line + b"\n",
        "latest": f"{digest}\n".encode(),
    }
    put_files(store, folder, files)


def generations(folder: Path) -> list[Generation]:
    """Every manifest that has been the latest in a corpus's folder, oldest first.

    Each stands there as often as it has been. One without a readable line in the log has the time
    of its file: of two processes that write the log at the same moment, one loses its line.
    """
    past = []
    path = folder / _LOG
    lines = read_small(path).splitlines() if path.exists() else []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            past.append(msgspec.json.decode(line, type=Generation))

    logged = {generation.digest for generation in past}
    for file in folder.glob("*.parquet"):
        if file.stem not in logged:
            past.append(Generation(file.stem, _utc(file.stat().st_mtime)))

    return sorted(past, key=lambda generation: generation.time)


def earlier_digests(folder: Path) -> list[str]:
    """The digests of those that were the latest before it last became so, oldest first."""
    latest = read_small(folder / "latest").decode(errors="replace").strip()
    digests = [generation.digest for generation in generations(folder)]

    if latest in digests:
        last = len(digests) - 1 - digests[::-1].index(latest)
        digests = digests[:last]

    return [digest for digest in digests if digest != latest]


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
