"""The seal of a run's files: each names its run, and carries its own sha256.

JSON and safetensors files have two keys more: `run`, the name of the run folder, and `sha256`, in
hex, reckoned over the whole file with 64 zeros in its place. `sha256` is the last key of a JSON
file, and the first of the metadata of a safetensors file, so its place is known without parsing.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ser.disk.write import Buffer
from ser.errors import CorruptStore

# The keys of the seal.
SEAL = ("run", "sha256")
AGAIN = "remove the run folder and train again"
_ZEROS = b"0" * 64
# Behind the digest of a JSON file, at its end.
_BEHIND_DIGEST = b'"\n}\n'
# Before the digest of a safetensors file, after its first 8 bytes.
_BEFORE_DIGEST = b'{"__metadata__":{"sha256":"'


def sealed_json(values: Mapping[str, Any], run: str) -> tuple[Buffer, ...]:
    """A JSON object as a sealed file of that run, in pieces; for people to read too."""
    sealed = {**values, "run": run, "sha256": _ZEROS.decode()}
    text = json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False)
    content = text.encode(errors="replace") + b"\n"

    place = _place_in_json(content)
    digest = _digest(content, place)
    return content[:place], digest, content[place + len(_ZEROS) :]


def sealed_tensors(content: bytes, run: str) -> tuple[Buffer, ...]:
    """A safetensors file as a sealed file of that run, in pieces; the tensors are not copied."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    tensors = memoryview(content)[8 + size :]

    metadata = {"sha256": _ZEROS.decode(), "run": run, **header.pop("__metadata__", {})}
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text

    place = _place_in_tensors()
    digest = _digest(head, place, tensors)
    return head[:place], digest, head[place + len(_ZEROS) :], tensors


def check_json(content: bytes, values: Mapping[str, Any], run: str, file: object) -> None:
    """Raise `CorruptStore` unless a JSON file, which holds these values, has that run's seal."""
    _check(content, _place_in_json(content), values.get("run"), run, file)


def check_tensors(content: bytes, metadata: Mapping[str, Any], run: str, file: object) -> None:
    """Raise `CorruptStore` unless a safetensors file of that metadata has the seal of that run."""
    _check(content, _place_in_tensors(), metadata.get("run"), run, file)


def _check(content: bytes, place: int, named: object, run: str, file: object) -> None:
    if content[place : place + len(_ZEROS)] != _digest(content, place):
        raise CorruptStore(f"{file}: altered or cut short (its checksum is wrong); {AGAIN}")
    if named != run:
        raise CorruptStore(f"{file}: belongs to run {named}; name the folder so, or {AGAIN}")


def _place_in_json(content: bytes) -> int:
    """Where the digest of a JSON file begins."""
    return len(content) - len(_BEHIND_DIGEST) - len(_ZEROS)


def _place_in_tensors() -> int:
    """Where the digest of a safetensors file begins."""
    return 8 + len(_BEFORE_DIGEST)


def _digest(content: bytes, place: int, rest: Buffer = b"") -> bytes:
    """The sha256 in hex of a file, `content` and `rest`, with zeros where its digest stands."""
    digest = hashlib.sha256(content[:place] + _ZEROS)
    digest.update(memoryview(content)[place + len(_ZEROS) :])
    digest.update(rest)
    return digest.hexdigest().encode()
