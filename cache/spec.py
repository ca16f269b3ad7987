"""How a feature was computed, and the checksummed JSON that specs and parts are recorded in."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from ser.errors import CorruptStore, StoreError, WrongUse

from .atomic_io import REPAIR, read_small

FORMAT_VERSION = 1  # of specs, parts and manifests without a parent; fingerprints hash it

Modality = Literal["audio", "text"]
Level = Literal["frame", "token", "utterance"]
Dtype = Literal["float16", "float32"]
Seconds = Annotated[int, msgspec.Meta(gt=0)] | Annotated[float, msgspec.Meta(gt=0)]
Json = TypeVar("Json")

_CHECKSUM = b',"sha256":"%s"}\n'
_LENGTH = len(_CHECKSUM % (b"0" * 64))


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, no NaN, and ? for a lone surrogate: equal values give equal bytes."""
    plain = msgspec.structs.asdict
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=plain)
    return text.encode(errors="replace")


def short_hash(value: Any) -> str:
    """The first 16 hex digits of the sha256 of its canonical JSON: what names parts, features and runs."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def checksummed_json(record: Any) -> bytes:
    """Canonical JSON of `record`, with `"sha256"` (of those bytes) put in as its last key, and a newline."""
    body = canonical_json(record)
    return body[:-1] + _CHECKSUM % hashlib.sha256(body).hexdigest().encode()


def read_checksummed(path: Path | str, kind: type[Json], content: bytes | None = None) -> Json:
    """The record that `checksummed_json` wrote, as an instance of `kind`: from `content` if given, else from the file.

    Raises `CorruptStore` if one bit of it has changed or it says something else, and `StoreError` for a newer format.
    """
    content = read_small(path) if content is None else content
    body = content[:-_LENGTH] + b"}"
    if content[-_LENGTH:] != _CHECKSUM % hashlib.sha256(body).hexdigest().encode():
        raise CorruptStore(f"{path}: altered or cut short (its checksum is wrong); {REPAIR}")
    return to_record(body, kind, str(path))


def to_record(record: bytes | Mapping[str, Any], kind: type[Json], where: str) -> Json:
    """A record, or the JSON of one, as an instance of `kind`. Raises as `read_checksummed` does."""
    try:
        found = msgspec.json.decode(record, type=dict) if isinstance(record, bytes) else record
        check_version(found.get("format_version"), where)
        return msgspec.convert(found, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptStore(f"{where}: not a record of a store ({error}); {REPAIR}") from None


def check_version(version: Any, where: str, newest: int = FORMAT_VERSION) -> None:
    """Raise `StoreError` unless this version of ser reads that version of the format, up to the `newest`."""
    if type(version) is int and version > newest:
        raise StoreError(f"{where}: has format version {version}, newer than this ser's {newest}; update ser")
    if version not in range(FORMAT_VERSION, newest + 1):
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
    dim: Annotated[int, msgspec.Meta(ge=1, lt=1 << 48)]
    dtype: Dtype
    extractor: str  # the code that computes it: "speech", "text", "smile", "mel", "import"
    version: int  # of that code; raised when its numbers change
    variant: str = ""  # "layer=9": the settings asked for after the feature's name, in sorted order
    hop: Seconds | None = None  # between frames
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)  # {"digest": sha256, "random": bool, …}; no paths
    provenance: Mapping[str, Any] = field(default_factory=dict)  # {"model", "versions", "command", "created", …}

    @property
    def name(self) -> str:
        """The name as asked for on the command line, such as `hubert:layer=9`."""
        return f"{self.feature}:{self.variant}" if self.variant else self.feature

    def identity(self) -> dict[str, Any]:
        """What the fingerprint hashes."""
        values = {"format_version": FORMAT_VERSION, **asdict(self)}
        del values["provenance"]
        return values

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 of the canonical JSON of `identity()`."""
        return short_hash(self.identity())

    @property
    def folder(self) -> str:
        """The feature's folder in a store."""
        return f"{self.feature}/{self.fingerprint}"

    def to_json(self) -> dict[str, Any]:
        """The content of `spec.json`."""
        return {**self.identity(), "provenance": self.provenance}

    def check(self) -> None:
        """Raise `WrongUse` unless what `to_json` gives can be read back."""
        try:
            msgspec.json.decode(canonical_json(self.to_json()), type=type(self))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise WrongUse(f"{self.name}: no store can hold a feature that is specified so ({error})") from None

    @property
    def random_weights(self) -> bool:
        """Whether the feature comes from an untrained encoder: it shows that the pipeline works, not accuracy."""
        return bool(self.checkpoint.get("random", False))


OWN_HOP = ("logmel", "mfcc")  # whose `hop` is one of their extraction's options, and so another feature


def parse_name(name: str) -> tuple[str, list[str], dict[str, str], str]:
    """The name of a feature to train on, in its parts, among them what is done when it is read.

    Of `bert:layer=9,pool=meanstd@3f2a`, or `bert@3f2a:layer=9,pool=meanstd`: "bert", ["layer=9"], {"pool": "meanstd"}
    and "3f2a".
    """
    plain, _, rest = name.strip().partition("@")
    fingerprint, _, after = rest.partition(":")
    feature, _, before = plain.partition(":")
    items = [item for item in f"{before},{after}".split(",") if item]
    ways = ("pool=",) if feature in OWN_HOP else ("pool=", "hop=")
    read = dict(item.split("=", 1) for item in items if item.startswith(ways))
    return feature, [item for item in items if not item.startswith(ways)], read, fingerprint
