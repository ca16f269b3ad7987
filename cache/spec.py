"""How a feature was computed: its spec, whose fingerprint names its folder in a store."""

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, fields
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
        """What is pickled: the fields, not what is computed of them, whether it is yet or not."""
        names = {field.name for field in fields(self)}
        return {key: value for key, value in vars(self).items() if key in names}

    @property
    def name(self) -> str:
        """The name on the command line, such as `hubert:layer=9`."""
        return f"{self.feature}:{self.variant}" if self.variant else self.feature

    @property
    def options(self) -> frozenset[str]:
        """The settings after its name, such as {"layer=9", "pool=mean"}."""
        return frozenset(self.variant.split(",")) - {""}

    def is_called(self, options: Set[str]) -> bool:
        """Whether a name with these options is this feature's, or another one of it.

        `whisper` is `whisper:layer=6` of a model of six layers, and `logmel:bands=80` is `logmel`.
        """
        for option in options - self.options:
            key, _, value = option.partition("=")
            if key not in self.config or not _is_value(value, self.config[key]):
                return False

        last = self.provenance.get("layers")
        return self.options - options <= {f"layer={last}"}

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

    @cached_property
    def numbers(self) -> str:
        """A hash that specs of the same numbers share, whatever the feature's settings are called.

        `whisper` and `whisper:layer=6` are two names of the last of six layers.
        """
        return short_hash({**self.identity(), "variant": ""})

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


def _is_value(text: str, value: Any) -> bool:
    """Whether a text such as "0.010" or "true" stands for a setting's value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text == str(value).lower() or text == value
    try:
        return float(text) == value
    except ValueError:
        return False
