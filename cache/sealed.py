"""Sealed JSON: canonical JSON whose last key is the sha256 of everything before it.

The checksum covers the bytes of the file, not just the values, so that any flipped bit is seen.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .errors import CorruptStore
from .spec import canonical_json

_SEAL = b',"sha256":"%s"}\n'
_LENGTH = len(_SEAL % (b"0" * 64))


def seal(record: Mapping[str, Any]) -> bytes:
    """Canonical JSON of `record`, with `"sha256"` (of those bytes) put in as its last key, and a newline."""
    body = canonical_json(record)
    return body[:-1] + _SEAL % hashlib.sha256(body).hexdigest().encode()


def unseal(content: bytes, where: str) -> dict[str, Any]:
    """The record that `seal` wrote. Raises `CorruptStore` if one bit of it has changed."""
    body = content[:-_LENGTH] + b"}"
    if content[-_LENGTH:] != _SEAL % hashlib.sha256(body).hexdigest().encode():
        raise CorruptStore(f"{where}: altered or cut short (its checksum is wrong); {REPAIR}")
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise CorruptStore(f"{where}: not a JSON object; {REPAIR}")
    return record


REPAIR = "run `ser cache verify --repair`, then `ser features` again"
