"""How a feature was computed, and the checksummed JSON of specs and parts."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from ser.errors import CorruptStore, StoreError

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


@dataclass(frozen=True)
class Spec:
    """One way of computing one feature.

    Everything but `provenance` is hashed into `fingerprint`: specs that could give other numbers
    never share a folder.
    """

    feature: str  # "hubert"
    modality: Modality
    level: Level
    dim: Annotated[int, msgspec.Meta(ge=1, lt=1 << 48)]
    dtype: Dtype
    extractor: str  # the code that computes it: "speech", "text", "smile", "mel", "import"
    version: int  # of that code; raised when its numbers change
    variant: str = ""  # "layer=9": the settings after the feature's name, sorted
    hop: Seconds | None = None  # between frames
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(
        default_factory=dict
    )  # {"digest": sha256, "random": bool, …}; no paths
    provenance: Mapping[str, Any] = field(
        default_factory=dict
    )  # {"model", "versions", "command", "created", …}

    @property
    def name(self) -> str:
        """The name on the command line, such as `hubert:layer=9`."""
        return f"{self.feature}:{self.variant}" if self.variant else self.feature

    def to_json(self) -> dict[str, Any]:
        """The content of `spec.json`."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    def identity(self) -> dict[str, Any]:
        """What the fingerprint hashes."""
        return {key: value for key, value in self.to_json().items() if key != "provenance"}

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 of the canonical JSON of `identity()`."""
        return short_hash(self.identity())

    @property
    def folder(self) -> str:
        """The feature's folder in a store."""
        return f"{self.feature}/{self.fingerprint}"

    @property
    def random_weights(self) -> bool:
        """Whether the feature comes from an untrained encoder: it shows that the pipeline works,
        not accuracy.
        """
        return bool(self.checkpoint.get("random", False))


OWN_HOP = ("logmel", "mfcc")  # their `hop` is an option of extraction, and so makes another feature


def parse_name(name: str) -> tuple[str, list[str], dict[str, str], str]:
    """The name of a feature to train on, in its parts: feature, options of extraction, options of
    reading, fingerprint.

    Of `bert:layer=9,pool=meanstd@3f2a`, or `bert@3f2a:layer=9,pool=meanstd`: "bert", ["layer=9"],
    {"pool": "meanstd"} and "3f2a".
    """
    before, _, after = name.strip().partition("@")
    feature, _, options = before.partition(":")
    fingerprint, _, more_options = after.partition(":")
    items = [item for item in f"{options},{more_options}".split(",") if item]
    on_reading = ("pool=",) if feature in OWN_HOP else ("pool=", "hop=")
    reading = dict(item.split("=", 1) for item in items if item.startswith(on_reading))
    return (
        feature,
        [item for item in items if not item.startswith(on_reading)],
        reading,
        fingerprint,
    )
