"""How a feature was computed: everything that its fingerprint hashes, in the clear."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from ser.errors import CorruptStore, StoreError

FORMAT_VERSION = 1

Modality = Literal["audio", "text"]
Level = Literal["frame", "token", "utterance"]
Dtype = Literal["float16", "float32"]
_KNOWN = {"modality": get_args(Modality), "level": get_args(Level), "dtype": get_args(Dtype)}


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, and no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def check_version(version: Any, where: str) -> None:
    """Raise `StoreError` unless this version of ser reads that version of the format."""
    if type(version) is int and version > FORMAT_VERSION:
        raise StoreError(
            f"{where}: is of format version {version}, and this ser reads up to {FORMAT_VERSION}; update ser"
        )
    if version != FORMAT_VERSION:
        raise CorruptStore(f"{where}: says no format version; run `ser cache verify`")


@dataclass(frozen=True)
class Spec:
    """One way of computing one feature.

    Everything but `provenance` is hashed into `fingerprint`, so two specs that could give different
    numbers never share a folder.
    """

    feature: str  # "hubert"
    modality: Modality
    level: Level
    dim: int
    dtype: Dtype
    extractor: str  # the code that computes it: "speech", "text", "smile", "mel", "import"
    version: int  # of that code; raised when its numbers change
    variant: str = ""  # "layer=9": the settings asked for after the feature's name, in sorted order
    hop: float | None = None  # seconds between frames
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)  # {"digest": sha256, "random": bool, …}; no paths
    provenance: Mapping[str, Any] = field(default_factory=dict)  # {"model", "versions", "command", "created", …}

    @property
    def name(self) -> str:
        """The name as asked for on the command line, such as `hubert:layer=9`."""
        return f"{self.feature}:{self.variant}" if self.variant else self.feature

    def identity(self) -> dict[str, Any]:
        """What the fingerprint hashes."""
        values = asdict(self)
        del values["provenance"]
        return {"format_version": FORMAT_VERSION, **values}

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 of the canonical JSON of `identity()`."""
        return hashlib.sha256(canonical_json(self.identity())).hexdigest()[:16]

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> "Spec":
        """Read back what `identity()` and the provenance were written as. Raises `StoreError`."""
        check_version(record.get("format_version"), where)
        values = {key: value for key, value in record.items() if key != "format_version"}
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise CorruptStore(f"{where}: not a spec (keys {sorted(set(values) ^ known)} are missing or unknown)")
        spec = cls(**values)
        for name, known_values in _KNOWN.items():
            if getattr(spec, name) not in known_values:
                raise CorruptStore(f"{where}: not a spec ({name} {getattr(spec, name)!r})")
        if type(spec.dim) is not int or spec.dim < 1:
            raise CorruptStore(f"{where}: not a spec (dim {spec.dim!r})")
        return spec

    @property
    def random_weights(self) -> bool:
        """Whether the feature comes from an untrained encoder: it shows that the pipeline works, not accuracy."""
        return bool(self.checkpoint.get("random", False))


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
