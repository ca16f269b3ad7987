"""How a budget of memory is shared: which inputs are held, and how much is read at once."""

import contextlib
import ctypes
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .streamed import Streamed

M_MMAP_THRESHOLD = -3  # of malloc.h

# Shares of the budget of memory: that inputs may hold where all of them fit,
ALL_HELD = 0.9
# that they may hold where some are streamed,
SOME_HELD = 0.4
# and that these take with two windows of streamed ones, of which one is read while the other is
# trained on. The blocks that are read take the rest.
HELD_AND_WINDOWS = 0.8


def share_budget(
    budget: int, streams: Mapping[str, Streamed], workers: int, vectors: bool
) -> tuple[set[str], dict[str, Streamed]]:
    """The modalities to hold in memory, and all streams with the room that they may read into.

    Held are the smallest, as long as they fit into the budget, in bytes. Each of so many `workers`
    has this budget, and one copy of what is held serves them all, but for the standardised one of
    `vectors`.
    """
    _return_freed_memory()

    sizes = []
    for stream in streams.values():
        size = stream.bytes // workers
        if vectors:
            size += 4 * int(stream.offsets[-1]) * stream.dim
        sizes.append(size)

    share = ALL_HELD if sum(sizes) <= ALL_HELD * budget else SOME_HELD
    smallest_first = np.argsort(sizes, kind="stable")
    fits = np.cumsum(np.sort(sizes)) <= share * budget
    chosen = smallest_first[fits].tolist()

    held_bytes = sum(sizes[number] for number in chosen)
    for_windows = max(HELD_AND_WINDOWS * budget - held_bytes, (1 - ALL_HELD) * budget)
    room = int(for_windows / 2)
    whole = int(sum(sizes) / ALL_HELD)

    modalities = list(streams)
    limited = {}
    for modality, stream in streams.items():
        limited[modality] = replace(stream, room=room, whole=whole, workers=workers)
    return {modalities[number] for number in chosen}, limited


def _return_freed_memory() -> None:
    """Have glibc return freed memory to the system, where the C library is glibc."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2 << 20)
