"""When memory ends in the middle of a batch."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from ser.engines import memory_ended

In = TypeVar("In")
Out = TypeVar("Out")


def in_halves(forward: Callable[[Sequence[In]], list[Out]], batch: Sequence[In]) -> list[Out]:
    """`forward(batch)`, one result per item; where memory ends, that of each half alone, down to one item."""
    try:
        return forward(batch)
    except RuntimeError as fault:
        if len(batch) == 1 or not memory_ended(fault):
            raise
    # Not above: there the fault's traceback still holds the tensors that did not fit.
    import torch

    torch.cuda.empty_cache()
    half = len(batch) // 2
    return in_halves(forward, batch[:half]) + in_halves(forward, batch[half:])
