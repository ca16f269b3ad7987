"""The contract of an extractor: what it is given, what it gives, and how its features share work.

docs/add-an-extractor.md shows how to write one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ser.cache.spec import Spec
from ser.errors import UtteranceError
from ser.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class ResolvedFeature:
    """One feature to compute: its spec, its extractor's config, and its checkpoint."""

    spec: Spec
    config: Any
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class FeatureRows:
    """One feature of one utterance, as the store takes it."""

    # `[rows, dim]`, in the spec's dtype.
    values: np.ndarray
    # More columns `[rows]`, by name, where the extractor has any.
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    # Whether `values` were checked to be finite in the spec's dtype.
    finite: bool = False


class Layer(NamedTuple):
    """One layer of one input, whose range was found before its values were rounded."""

    # `[rows, dim]`, in the spec's dtype.
    values: np.ndarray
    # `[rows]`: the largest magnitude of each row before rounding.
    peaks: np.ndarray


# What an extractor makes of one utterance: the rows of each feature, by its fingerprint, or why
# there are none.
Extracted = dict[str, FeatureRows] | UtteranceError


class Extractor:
    """Computes features that share their work.

    A subclass names its frozen dataclass of settings, `Config`, which the fingerprint hashes (a
    field with `init=False` is fixed), and defines `dim` and `extract`. An encoder that computes a
    batch at once overrides `run` instead. The rows of an utterance must not depend on the other
    utterances of its batch, and `run` is called from several threads at once.

    `checkpoint` is the `Checkpoint` that the feature reads, None for one without weights.
    """

    # The name of this code in the spec.
    name: ClassVar[str]
    # Raised when its numbers change: old rows are never mixed with new ones.
    version: ClassVar[int]
    Config: ClassVar[type]
    # Packages whose versions are recorded beside the feature.
    packages: ClassVar[tuple[str, ...]] = ()
    # Whether one call on many utterances is cheaper than many calls.
    batched: ClassVar[bool] = False
    # Whether its rows are stored in float32 whatever --dtype says.
    always_float32: ClassVar[bool] = False
    # Settings that the user cannot change.
    fixed: ClassVar[frozenset[str]] = frozenset()
    # Settings without a meaning for it, which stand in no spec.
    unrecorded: ClassVar[frozenset[str]] = frozenset()
    # Settings that came later, by the value with which they stand in no spec: fingerprints stay.
    added_later: ClassVar[Mapping[str, Any]] = {"pool": "none"}
    # Settings that may differ between features that are computed together.
    varying: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def resolve(cls, settings: dict[str, Any], checkpoint: Any) -> Any:
        """The complete `Config`. Raises `WrongUse` for impossible settings."""
        return cls.Config(**settings)

    @classmethod
    def dim(cls, config: Any, checkpoint: Any) -> int:
        """Values per row."""
        raise NotImplementedError

    @classmethod
    def hop(cls, config: Any, checkpoint: Any) -> float | None:
        """Seconds between frames; None if rows are not frames."""
        return None

    @classmethod
    def dimension_names(cls, spec: Spec) -> Sequence[str] | None:
        """What the values of a row are called in tables, one name each; None: by their numbers."""
        return None

    def __init__(
        self,
        features: Sequence[ResolvedFeature],
        device: str = "cpu",
        batch_seconds: float | None = None,
    ) -> None:
        """An extractor of `features`, which differ in `varying` settings alone.

        `batch_seconds` is the padded audio that a batch may hold; None: one utterance.
        """
        self.specs = tuple(feature.spec for feature in features)
        self.configs = tuple(feature.config for feature in features)
        self.config = self.configs[0]
        self.checkpoint: Any = features[0].checkpoint
        self.device = device
        self.batch_seconds = batch_seconds
        # For messages: the names of its features, each once.
        self.label = "+".join(dict.fromkeys(spec.feature for spec in self.specs))
        self.open()

    def open(self) -> None:
        """Load what `run` needs, such as a model."""

    def run(self, batch: Sequence[Any]) -> list[Extracted]:
        """What each `Clip` (audio) or transcript (text) gives, in order."""
        results: list[Extracted] = []
        for item in batch:
            try:
                arrays = self.extract(item)
            except UtteranceError as fault:
                results.append(fault)
            else:
                results.append(self.as_rows(arrays))
        return results

    def extract(self, item: Any) -> Sequence[np.ndarray]:
        """The values `[rows, dim]` of one utterance for each of `specs`, in order.

        Raises `UtteranceError` with the reason if there are none.
        """
        raise NotImplementedError

    def as_rows(
        self,
        arrays: Sequence[np.ndarray | Layer],
        extras: dict[str, np.ndarray] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Extracted:
        """The arrays, one per spec, in the dtype of the store.

        An `UtteranceError` if one holds what that dtype cannot.
        """
        rows: dict[str, FeatureRows] = {}
        for spec, array in zip(self.specs, arrays, strict=True):
            if isinstance(array, Layer):
                values = array.values
                magnitudes = array.peaks
            else:
                values = array
                magnitudes = np.abs(array)

            # NaN if any value is, and then no comparison holds.
            peak = magnitudes.max(initial=0.0)
            if not peak <= np.finfo(spec.dtype).max:
                if spec.dtype == "float16" and peak < math.inf:
                    return UtteranceError(
                        "a value is beyond what float16 holds (65504): use --dtype float32"
                    )
                return UtteranceError("the extractor gave NaN or infinite values")

            rows[spec.fingerprint] = FeatureRows(
                np.ascontiguousarray(values, spec.dtype), extras or {}, warnings, finite=True
            )
        return rows
