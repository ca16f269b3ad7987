"""How a feature was computed: everything that its fingerprint hashes, in the clear."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FORMAT_VERSION = 1

Modality = Literal["audio", "text"]
Level = Literal["frame", "token", "utterance"]


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, and no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


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
    dtype: Literal["float16", "float32"]
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
        fields = asdict(self)
        del fields["provenance"]
        return {"format_version": FORMAT_VERSION, **fields}

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 of the canonical JSON of `identity()`."""
        return hashlib.sha256(canonical_json(self.identity())).hexdigest()[:16]

    @property
    def random_weights(self) -> bool:
        """Whether the feature comes from an untrained encoder: it shows that the pipeline works, not accuracy."""
        return bool(self.checkpoint.get("random", False))
