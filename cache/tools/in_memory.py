"""Utterances of a large array, as many at a time as memory should hold."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ser.cache.rows import Packed

# Values in memory at once, unless a single utterance has more.
MAX_BYTES = 64 << 20


def utterances_in_memory(
    rows: Packed, read: Callable[[slice], npt.NDArray[Any]] | None = None
) -> Iterator[Packed]:
    """Successive utterances of `rows`, at most `MAX_BYTES` of values at once, or one utterance.

    `read` reads the values of a slice of utterances; by default they are those of `rows`.
    """
    values = rows.values
    offsets = rows.offsets
    max_rows = MAX_BYTES // (values.shape[1] * np.dtype(values.dtype).itemsize)

    start = 0
    while start < len(rows):
        end = int(np.searchsorted(offsets, offsets[start] + max_rows, side="right")) - 1
        stop = max(start + 1, end)

        in_rows = slice(offsets[start], offsets[stop])
        extras = {name: array[in_rows] for name, array in rows.extras.items()}
        batch = read(slice(start, stop)) if read else values[in_rows]
        offsets_of_batch = offsets[start : stop + 1] - offsets[start]
        yield Packed(batch, offsets_of_batch, rows.ids[start:stop], extras)
        start = stop
