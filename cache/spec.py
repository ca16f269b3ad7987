"""How a feature was computed: its spec, whose fingerprint names its folder in a store."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec

from ser.corpus.names import Modality
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

    feature: str
    """The feature's name, such as "hubert"."""

    modality: Modality
    """Which digest of a manifest its rows are joined on."""

    level: Level
    """What one row stands for."""

    dim: Annotated[int, msgspec.Meta(ge=1, lt=1 << 48)]
    """Values per row."""

    dtype: Dtype
    """How they are stored."""

    extractor: str
    """The code that computes it: "speech", "text", "smile", "mel", "import" …"""

    version: int
    """Of that code; raised when its numbers change."""

    variant: str = ""
    """The settings after the feature's name, sorted, such as "layer=9"."""

    hop: Seconds | None = None
    """Seconds between frames."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The extractor's settings."""

    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """The weights: `digest` (sha256), `random` (bool) and what else identifies them; no paths."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from: `model`, `versions`, `command`, `created` …"""

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the fields, not the fingerprint, whether it is computed yet or not."""
        return {key: value for key, value in vars(self).items() if key != "fingerprint"}

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

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 of the canonical JSON of `identity()`."""
        return short_hash(self.identity())

    @property
    def folder(self) -> str:
        """The feature's folder in a store."""
        return f"{self.feature}/{self.fingerprint}"

    @property
    def random_weights(self) -> bool:
        """Whether it comes from an untrained encoder.

        Such a feature shows that the pipeline works, not accuracy.
        """
        return bool(self.checkpoint.get("random", False))
