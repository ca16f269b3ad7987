"""Transcripts of a speech recogniser, by the audio that they are of: a killed run goes on from
them.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ser.disk.records import FORMAT_VERSION, checksummed_json, read_checksummed, short_hash
from ser.disk.workspace import put_files
from ser.errors import CorruptStore

TRANSCRIPTS = "transcripts"


class Transcripts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file `<store>/transcripts/<name>.json`: transcripts made in one way, by the sha256 of the
    audio.
    """

    made_by: dict[str, Any]
    texts: dict[str, str]
    format_version: int = FORMAT_VERSION


def put_transcripts(store: Path, made_by: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Store transcripts durably, by the sha256 of their audio."""
    name = f"{short_hash(made_by)}-{short_hash(sorted(texts))}.json"
    put_files(
        store,
        store / TRANSCRIPTS,
        {name: checksummed_json(Transcripts(dict(made_by), dict(texts)))},
    )


def read_transcripts(store: Path, made_by: Mapping[str, Any]) -> dict[str, str]:
    """All transcripts made in this way, by the sha256 of their audio, without files that cannot be
    trusted.
    """
    texts: dict[str, str] = {}
    for path in sorted((store / TRANSCRIPTS).glob(f"{short_hash(made_by)}-*.json")):
        with contextlib.suppress(CorruptStore):
            texts |= check_transcripts(path)
    return texts


def check_transcripts(path: Path) -> dict[str, str]:
    """The texts of one file. Raises `CorruptStore` if it is not what was written."""
    with contextlib.suppress(CorruptStore):
        record = read_checksummed(path, Transcripts)
        if path.stem == f"{short_hash(record.made_by)}-{short_hash(sorted(record.texts))}":
            return record.texts
    raise CorruptStore(
        f"{path}: altered or cut short; remove it, and `ser features --transcribe` makes it again"
    )
