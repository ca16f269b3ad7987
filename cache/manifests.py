"""The manifests of a store: the latest of each corpus, and the log of those that were."""

import contextlib
import datetime
import re
import time
from pathlib import Path

import msgspec

from ser.corpus.manifest import Manifest
from ser.disk.read import folders_in, read_small
from ser.disk.workspace import put_files
from ser.errors import CorruptStore, StoreError, WrongUse

LOG = "log.jsonl"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_AGAIN = "run `ser features` to write it again"


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
        latest = read_small(folder / "latest", _AGAIN).decode(errors="replace")
        digest = latest.removesuffix("\n")
        if not _DIGEST.fullmatch(digest) or digest == latest:
            raise CorruptStore(f"{folder / 'latest'}: altered or cut short; {_AGAIN}")
    elif not _DIGEST.fullmatch(digest) or not (folder / f"{digest}.parquet").exists():
        raise WrongUse(f"{folder}: has no manifest {digest!r}")
    path = folder / f"{digest}.parquet"
    return Manifest.from_content(read_small(path, _AGAIN), digest, str(path), corpus)


class Generation(msgspec.Struct, frozen=True):
    """A manifest that is or was its corpus's latest: one line of the corpus's log."""

    digest: str
    time: str  # UTC, as in 2026-11-22T13:48:15+00:00
    utterances: int | None = None
    command: str | None = None  # None: of a version of ser that kept no log


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def make_latest(store: Path, manifest: Manifest, command: str) -> None:
    """Make a manifest its corpus's latest, write it if it is missing, and add a line to the
    corpus's log.
    """
    folder, name, log = store / "manifests" / manifest.corpus, manifest.digest, b""
    with contextlib.suppress(StoreError):
        log = read_small(folder / LOG)
    log += msgspec.json.encode(Generation(name, _utc(time.time()), len(manifest), command)) + b"\n"
    files = {f"{name}.parquet": manifest.content, LOG: log, "latest": f"{name}\n".encode()}
    put_files(store, folder, files)


def generations(folder: Path) -> list[Generation]:
    """Every manifest that has been the latest in a corpus's folder, oldest first, each as often as
    it has been.

    One without a readable line in the log, such as an older ser's, has the time of its file.
    """
    past = []
    for line in read_small(folder / LOG).splitlines() if (folder / LOG).exists() else ():
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            past.append(msgspec.json.decode(line, type=Generation))
    logged = {one.digest for one in past}
    files = [file for file in folder.glob("*.parquet") if file.stem not in logged]
    past += [Generation(file.stem, _utc(file.stat().st_mtime)) for file in files]
    return sorted(past, key=lambda one: one.time)
