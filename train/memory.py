"""When memory ends in the middle of a training."""

import contextlib
from collections.abc import Iterator

from ser.cache.errors import SerError
from ser.engines import memory_ended

from .plan import Plan


@contextlib.contextmanager
def told_if_memory_ends(plan: Plan) -> Iterator[None]:
    """Raise `SerError`, saying what helps, where an allocation fails."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if not memory_ended(fault):
            raise
        size = f"--set batch_size={max(1, plan.settings.batch_size // 2)}"
        raise SerError(
            f"the memory of {plan.device} ended while training {plan.fusion.name} in batches of "
            f"{plan.settings.batch_size}; what was finished is kept: run again while less else is running there (a "
            f"sweep: fewer --workers), or with --precision bf16 or {size}, which change the numbers"
        ) from fault
