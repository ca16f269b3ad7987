"""Transcripts that a speech recogniser has made, by the audio that they are of: what an interrupted run goes on from.

    <store>/transcripts/<made by>-<name>.json    checksummed JSON, never changed; see FORMAT.md
"""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ser.errors import CorruptStore

from .atomic_io import explain_disk_errors, make_folder, replace_file
from .spec import FORMAT_VERSION, canonical_json, checksummed_json, read_checksummed

FOLDER = "transcripts"


class Transcripts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: transcripts that were made in one way, by the sha256 of the audio."""

    made_by: dict[str, Any]
    texts: dict[str, str]
    format_version: int = FORMAT_VERSION


def fingerprint(made_by: Mapping[str, Any]) -> str:
    """Of how transcripts are made: the first 16 hex digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(made_by)).hexdigest()[:16]


def put_transcripts(store: Path, made_by: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Keep transcripts, by the sha256 of their audio, durably."""
    name = hashlib.sha256(canonical_json(sorted(texts))).hexdigest()[:16]
    with explain_disk_errors("writing transcripts", store):
        make_folder(store / FOLDER)
        content = checksummed_json(Transcripts(dict(made_by), dict(texts)))
        replace_file(store / FOLDER / f"{fingerprint(made_by)}-{name}.json", content, store)


def read_transcripts(store: Path, made_by: Mapping[str, Any]) -> dict[str, str]:
    """All that were made in this way, by the sha256 of their audio. A file that cannot be trusted counts for nothing."""
    found: dict[str, str] = {}
    for path in sorted((store / FOLDER).glob(f"{fingerprint(made_by)}-*.json")):
        with contextlib.suppress(CorruptStore):
            found |= check_transcripts(path).texts
    return found


def check_transcripts(path: Path) -> Transcripts:
    """One file of them. Raises `CorruptStore` if it is not what was written."""
    try:
        found = read_checksummed(path, Transcripts)
    except CorruptStore:
        found = None
    if found is None or not path.name.startswith(fingerprint(found.made_by)):
        raise CorruptStore(f"{path}: altered or cut short; remove it, and `ser features --transcribe` makes it again")
    return found
