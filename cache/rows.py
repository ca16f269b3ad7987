"""Rows in memory: as they are read from a store, and as one part will hold them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ser.disk.records import short_hash

from .part import PartRecord, Quarantine


@dataclass
class Packed:
    """Utterances end to end in one array.

    `values` is `[rows, dim]`; utterance i is `values[offsets[i]:offsets[i + 1]]`. `extras` hold one
    value per row.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64] = field(repr=False)
    ids: list[str] = field(repr=False)
    extras: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """The rows of utterance `index`, `[n, dim]`: a view."""
        bounds = self._bounds
        if index < 0:
            index += len(self.ids)
        if index < 0:
            raise IndexError(f"there are {len(self.ids)} utterances")
        return self.values[bounds[index] : bounds[index + 1]]

    @cached_property
    def _bounds(self) -> list[int]:
        """The offsets as a list, of which a single one is taken faster."""
        return self.offsets.tolist()


@dataclass
class PartRows:
    """What one part will hold. It may hold quarantined utterances only."""

    corpus: str

    ids: list[str] = field(default_factory=list)

    inputs: Sequence[str | None] = field(default_factory=list)
    """By id: the digest of what its rows were computed from."""

    arrays: list[npt.NDArray[Any]] = field(default_factory=list)
    """By id: `[n, dim]`; at utterance level `[dim]` or `[1, dim]`."""

    extras: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    """By name, and then by id: `[n]`."""

    quarantined: list[Quarantine] = field(default_factory=list)

    finite: bool = False
    """Whether `arrays` of the stored dtype have been checked for NaN and infinities."""

    @classmethod
    def from_packed(
        cls,
        corpus: str,
        inputs: Sequence[str | None],
        packed: Packed,
        quarantined: Sequence[Quarantine] = (),
    ) -> "PartRows":
        """The rows of a `Packed`, one array for each utterance."""
        arrays = [packed[number] for number in range(len(packed))]

        extras = {}
        for name, array in packed.extras.items():
            extras[name] = np.split(array, packed.offsets[1:-1])

        return cls(corpus, packed.ids, inputs, arrays, extras, list(quarantined))


def part_name(part: PartRows | PartRecord) -> str:
    """The first 16 hex digits of a sha256 over what the part is computed from."""
    rows = list(zip(part.ids, part.inputs, strict=True))
    quarantined = [[entry.id, entry.input] for entry in part.quarantined]
    return short_hash([part.corpus, rows, quarantined])
