"""The records of a store: canonical JSON with its own checksum, and the version of the format."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ser.errors import CorruptStore, StoreError

from .read import REPAIR, read_small

FORMAT_VERSION = 1  # of specs, parts and manifests without a parent; fingerprints hash it
Json = TypeVar("Json")
_CHECKSUM = b',"sha256":"%s"}\n'
_LENGTH = len(_CHECKSUM % (b"0" * 64))


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, no NaN, and ? for lone surrogates: equal values give
    equal bytes.
    """
    plain = msgspec.structs.asdict
    text = json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=plain,
    )
    return text.encode(errors="replace")


def short_hash(value: Any) -> str:
    """The first 16 hex digits of the sha256 of its canonical JSON: the name of a part, feature or
    run.
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def checksummed_json(record: Any) -> bytes:
    """Canonical JSON of `record` with its own sha256 as an additional last key, `"sha256"`, and a
    newline.
    """
    body = canonical_json(record)
    return body[:-1] + _CHECKSUM % hashlib.sha256(body).hexdigest().encode()


def read_checksummed(path: Path | str, kind: type[Json], content: bytes | None = None) -> Json:
    """The record that `checksummed_json` wrote, as an instance of `kind`: from `content` if given,
    else from the file.

    Raises `CorruptStore` if one bit of it has changed or it is no `kind`, and `StoreError` for a
    newer format.
    """
    content = read_small(path) if content is None else content
    body = content[:-_LENGTH] + b"}"
    if content[-_LENGTH:] != _CHECKSUM % hashlib.sha256(body).hexdigest().encode():
        raise CorruptStore(f"{path}: altered or cut short (its checksum is wrong); {REPAIR}")
    return to_record(body, kind, str(path))


def to_record(record: bytes | Mapping[str, Any], kind: type[Json], where: str) -> Json:
    """A record, or the JSON of one, as an instance of `kind`. Raises as `read_checksummed` does."""
    try:
        values = msgspec.json.decode(record, type=dict) if isinstance(record, bytes) else record
        check_version(values.get("format_version"), where)
        return msgspec.convert(values, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptStore(f"{where}: not a record of a store ({error}); {REPAIR}") from None


def check_version(version: Any, where: str, newest: int = FORMAT_VERSION) -> None:
    """Raise `StoreError` for a version of the format that this ser cannot read: it reads up to the
    `newest`.
    """
    if type(version) is int and version > newest:
        raise StoreError(
            f"{where}: has format version {version}, newer than this ser's {newest}; update ser"
        )
    if version not in range(FORMAT_VERSION, newest + 1):
        raise CorruptStore(f"{where}: has no valid format version; run `ser cache verify`")
