"""Transcripts of a speech recogniser, by their audio: a killed run goes on from them."""

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
    """One file `<store>/transcripts/<name>.json`: transcripts made in one way."""

    made_by: dict[str, Any]
    """The way: recogniser, its version, the digests of its files, language, window …"""

    texts: dict[str, str]
    """By the sha256 of the audio."""

    format_version: int = FORMAT_VERSION

    @property
    def name(self) -> str:
        """The file's name without its suffix: a hash of the way, and one of what was heard."""
        return f"{short_hash(self.made_by)}-{short_hash(sorted(self.texts))}"


def put_transcripts(store: Path, made_by: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Store transcripts durably, by the sha256 of their audio."""
    transcripts = Transcripts(dict(made_by), dict(texts))
    files = {f"{transcripts.name}.json": checksummed_json(transcripts)}
    put_files(store, store / TRANSCRIPTS, files)


def read_transcripts(store: Path, made_by: Mapping[str, Any]) -> dict[str, str]:
    """All transcripts made in this way, by the sha256 of their audio.

    Files that cannot be trusted are left out.
    """
    texts: dict[str, str] = {}
    for path in sorted((store / TRANSCRIPTS).glob(f"{short_hash(made_by)}-*.json")):
        with contextlib.suppress(CorruptStore):
            texts.update(check_transcripts(path))
    return texts


def check_transcripts(path: Path) -> dict[str, str]:
    """The texts of one file. Raises `CorruptStore` if it is not what was written."""
    with contextlib.suppress(CorruptStore):
        transcripts = read_checksummed(path, Transcripts)
        if path.stem == transcripts.name:
            return transcripts.texts

    remedy = "remove it, and `ser features CORPUS --transcribe whisper` makes it again"
    raise CorruptStore(f"{path}: altered or cut short; {remedy}")
