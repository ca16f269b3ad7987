"""The manifests of a store: the latest of each corpus, and how another becomes it."""

import re
from pathlib import Path

from ser.corpus.manifest import Manifest
from ser.disk.folders import folders_in
from ser.disk.read import read_small
from ser.disk.workspace import put_files
from ser.errors import CorruptStore, WrongUse

from .manifest_log import LOG, read_log, with_line

_DIGEST = re.compile(r"[0-9a-f]{64}")
_AGAIN = "run the `ser features` command of this corpus again, which writes it again"


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
        latest = folder / f"{digest}.parquet"
        if not latest.exists():
            # One of the two is damaged.
            names = f"{folder / 'latest'} names it"
            raise CorruptStore(f"{latest}: is missing, and {names}; {_AGAIN}")
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

    # In this order: `latest` names a file that is there, and that the log has.
    files = {
        f"{digest}.parquet": manifest.content,
        LOG: with_line(read_log(folder), digest, len(manifest), command),
        "latest": f"{digest}\n".encode(),
    }
    put_files(store, folder, files)

    # Of two processes that write the log at the same moment one loses its line: it adds it again.
    log = read_log(folder)
    if digest.encode() not in log:
        put_files(store, folder, {LOG: with_line(log, digest, len(manifest), command)})
