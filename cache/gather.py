"""From places in parts to packed arrays: which rows of which block go where."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .blocks import read_stretches
from .errors import CorruptStore, StoreError
from .layout import Part
from .packed import Packed
from .sealed import REPAIR
from .spec import Spec

Place = tuple[Part, int]  # a part, and an utterance's number in it


def gather(spec: Spec, places: Sequence[Place], ids: list[str], extras: bool = True) -> Packed:
    """Utterances by their places, in the order given, each block verified. Extras are those that all parts have."""
    parts = list(dict.fromkeys(part for part, _ in places))
    numbers = {part: number for number, part in enumerate(parts)}
    which = np.fromiter((numbers[part] for part, _ in places), np.int64, len(places))
    rows = np.fromiter((row for _, row in places), np.int64, len(places))
    starts, stops = np.empty_like(rows), np.empty_like(rows)
    for number, part in enumerate(parts):
        mine = which == number
        starts[mine], stops[mine] = part.offsets[rows[mine]], part.offsets[rows[mine] + 1]
    offsets = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64)
    # An utterance that is asked for twice is read once and copied.
    _, firsts, inverse = np.unique(which << 32 | rows, return_index=True, return_inverse=True)
    original = firsts[inverse]
    stretches = np.stack([starts, stops, offsets[:-1]], axis=1)
    read = (original == np.arange(len(places))) & (stops > starts)
    wanted = []
    for number in range(len(parts)):
        mine = stretches[read & (which == number)]
        wanted.append(mine[np.argsort(mine[:, 0])])
    shared = [set(part.record.arrays) - {"offsets"} for part in parts]
    names = set.intersection(*shared) if shared and extras else {"values"}
    arrays = {}
    for name in sorted(names):
        arrays[name] = array = _allocate(spec, name, parts, int(offsets[-1]))
        read_stretches([(part.source(name), mine) for part, mine in zip(parts, wanted, strict=True)], array)
        for i in np.flatnonzero(original != np.arange(len(places))):
            array[offsets[i] : offsets[i + 1]] = array[offsets[original[i]] : offsets[original[i] + 1]]
    return Packed(arrays.pop("values"), offsets, ids, arrays)


def _allocate(spec: Spec, name: str, parts: Sequence[Part], rows: int) -> npt.NDArray[Any]:
    kinds = {(part.record.arrays[name].dtype, part.record.arrays[name].shape[1:]) for part in parts}
    if name == "values":
        kinds.add((spec.dtype, (spec.dim,)))
    if len(kinds) > 1:
        where = parts[0].folder.parent
        raise CorruptStore(
            f"{where}: array '{name}' has another dtype or dimension than its spec or in other parts; {REPAIR}"
        )
    dtype, shape = kinds.pop()
    try:
        return np.empty((rows, *shape), dtype)
    except MemoryError:
        size = rows * math.prod(shape) * np.dtype(dtype).itemsize / 1e9
        raise StoreError(f"{spec.name}: {size:.1f} GB do not fit into memory; load fewer utterances at once") from None
