"""The records of a store: canonical JSON with its own checksum, and the version of the format."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ser.errors import CorruptStore, StoreError

from .read import REPAIR, read_small

# Of specs, parts and manifests without a parent; fingerprints hash it.
FORMAT_VERSION = 1

RecordType = TypeVar("RecordType")

_CHECKSUM = b',"sha256":"%s"}\n'
_CHECKSUM_LENGTH = len(_CHECKSUM % (b"0" * 64))


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, no NaN, and ? for lone surrogates.

    Equal values give equal bytes.
    """
    text = json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=msgspec.structs.asdict,
    )
    return text.encode(errors="replace")


def short_hash(value: Any) -> str:
    """The first 16 hex digits of the sha256 of its canonical JSON.

    It is the name of a part, a feature or a run.
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def checksummed_json(record: Any) -> bytes:
    """Canonical JSON of `record` with its own sha256 as one more, last key, and a newline."""
    body = canonical_json(record)
    return body[:-1] + _checksum(body)


def _checksum(body: bytes) -> bytes:
    return _CHECKSUM % hashlib.sha256(body).hexdigest().encode()


def read_checksummed(path: Path, kind: type[RecordType]) -> RecordType:
    """The record in a file that `checksummed_json` wrote. Raises as `parse_checksummed` does."""
    return parse_checksummed(read_small(path), kind, str(path))


def parse_checksummed(content: bytes, kind: type[RecordType], source: str) -> RecordType:
    """The record that `checksummed_json` wrote, as an instance of `kind`; `source` is for messages.

    Raises `CorruptStore` if one bit of it has changed or it is no `kind`, and `StoreError` for a
    newer format.
    """
    body = content[:-_CHECKSUM_LENGTH] + b"}"
    if content[-_CHECKSUM_LENGTH:] != _checksum(body):
        raise CorruptStore(f"{source}: altered or cut short (its checksum is wrong); {REPAIR}")
    return to_record(body, kind, source)


def to_record(record: bytes | Mapping[str, Any], kind: type[RecordType], source: str) -> RecordType:
    """A record, or its JSON, as an instance of `kind`. Raises as `parse_checksummed` does."""
    try:
        values = msgspec.json.decode(record, type=dict) if isinstance(record, bytes) else record
        check_version(values.get("format_version"), source)
        return msgspec.convert(values, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptStore(f"{source}: not a record of a store ({error}); {REPAIR}") from None


def check_version(version: Any, source: str, newest: int = FORMAT_VERSION) -> None:
    """Raise `StoreError` for a version of the format that is newer than the `newest` known here.

    Raises `CorruptStore` for what is no version.
    """
    if type(version) is int and version > newest:
        remedy = f"newer than this ser's {newest}; update ser"
        raise StoreError(f"{source}: has format version {version}, {remedy}")

    if version not in range(FORMAT_VERSION, newest + 1):
        raise CorruptStore(f"{source}: has no valid format version; {REPAIR}")
