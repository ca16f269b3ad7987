"""A fold: one cut of the utterances into train, dev and test."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Fold:
    """Rows of `Utterances` for each part, int64; none stands in two."""

    name: str
    train: np.ndarray
    dev: np.ndarray
    """Empty where nothing is selected on it."""
    test: np.ndarray
    left_out: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The rows that stand in no part, by the reason why."""
    dev_by: str = "none"
    """How dev was cut."""

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The three parts by name."""
        return {"train": self.train, "dev": self.dev, "test": self.test}

    @property
    def refitted(self) -> "Fold":
        """The fold with its dev part in training."""
        return replace(self, train=np.union1d(self.train, self.dev), dev=self.dev[:0])
