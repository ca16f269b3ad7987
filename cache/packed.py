"""Utterances end to end in one array."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class Packed:
    """Utterances end to end in one array.

    `values` is `[rows, dim]`; utterance i is `values[offsets[i]:offsets[i + 1]]`. `extras` hold one value per row.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    ids: list[str]
    extras: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """The rows of utterance `index`, `[n, dim]`: a view."""
        if index < 0:
            index += len(self.ids)
        if not 0 <= index < len(self.ids):
            raise IndexError(index)
        return self.values[self.offsets[index] : self.offsets[index + 1]]
