"""What every extractor is: a pass over a batch of utterances that computes one or several features."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ser.cache.errors import CorpusError
from ser.cache.spec import Modality, Spec

FLOAT16_MAX = 65504.0


class Unusable(CorpusError):
    """One utterance that an extractor cannot use; its message is the reason that the quarantine records."""


@dataclass(frozen=True)
class Rows:
    """One feature of one utterance: `values` `[rows, dim]` and, where the extractor has any, `extras` `[rows]`."""

    values: np.ndarray
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what is odd about them


Outcome = dict[str, Rows] | Unusable  # fingerprint → rows


class Pass(Protocol):
    """Computes the features `specs` of a batch together; safe to call from several threads at once.

    `stage` names it in the summary. `batched` says whether one call on many utterances is cheaper than many calls:
    only then are batches made. What a pass returns for an utterance does not depend on its batch.
    """

    modality: Modality
    batched: bool
    stage: str

    @property
    def specs(self) -> tuple[Spec, ...]:
        """What it computes."""
        ...

    def run(self, batch: Sequence[Any]) -> list[Outcome]:
        """The features of each `Clip` (audio) or transcript (text), in order; `Unusable` where there are none."""
        ...


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` in the dtype of the store. Raises `Unusable` for numbers that it cannot hold."""
    if not np.isfinite(values).all():
        raise Unusable("the extractor gave NaN or infinite values")
    if dtype == "float16" and values.size and np.abs(values).max() > FLOAT16_MAX:
        raise Unusable("a value is beyond what float16 holds (65504): use --dtype float32")
    return np.ascontiguousarray(values, dtype=dtype)
