"""How a feature was computed: its spec, whose fingerprint names its folder in a store."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from ser.corpus.manifest import Modality
from ser.disk.records import FORMAT_VERSION, short_hash

Level = Literal["frame", "token", "utterance"]
Dtype = Literal["float16", "float32"]
Seconds = Annotated[int, msgspec.Meta(gt=0)] | Annotated[float, msgspec.Meta(gt=0)]


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
