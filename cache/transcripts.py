"""Transcripts that a speech recogniser has made, by the audio that they are of: a killed run goes on from them."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ser.errors import CorruptStore

from .atomic_io import put_files
from .spec import FORMAT_VERSION, checksummed_json, read_checksummed, short_hash

TRANSCRIPTS = "transcripts"


class Transcripts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file `<store>/transcripts/<name>.json`: what was made in one way, by the sha256 of the audio."""

    made_by: dict[str, Any]
    texts: dict[str, str]
    format_version: int = FORMAT_VERSION


def put_transcripts(store: Path, made_by: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Keep transcripts, by the sha256 of their audio, durably."""
    name = f"{short_hash(made_by)}-{short_hash(sorted(texts))}.json"
    put_files(store, store / TRANSCRIPTS, {name: checksummed_json(Transcripts(dict(made_by), dict(texts)))})


def read_transcripts(store: Path, made_by: Mapping[str, Any]) -> dict[str, str]:
    """All that were made in this way, by the sha256 of their audio, but for files that cannot be trusted."""
    found: dict[str, str] = {}
    for path in sorted((store / TRANSCRIPTS).glob(f"{short_hash(made_by)}-*.json")):
        with contextlib.suppress(CorruptStore):
            found |= check_transcripts(path)
    return found


def check_transcripts(path: Path) -> dict[str, str]:
    """The texts of one file. Raises `CorruptStore` if it is not what was written."""
    with contextlib.suppress(CorruptStore):
        found = read_checksummed(path, Transcripts)
        if path.stem == f"{short_hash(found.made_by)}-{short_hash(sorted(found.texts))}":
            return found.texts
    raise CorruptStore(f"{path}: altered or cut short; remove it, and `ser features --transcribe` makes it again")
