"""A wait that ends: for libraries that wait for ever where nobody answers."""

import contextvars
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

# After so many seconds it is said what is waited for.
SAY_AFTER = 10.0

log = logging.getLogger("ser.disk")


def within(seconds: float, who: str, ask: Callable[[], Answer]) -> Answer:
    """The answer of `ask()`, in a thread of its own.

    Says after 10 seconds that `who` has not answered. Raises what `ask` raises, and `TimeoutError`
    after so many seconds; the thread is then left alone, and ends with this process.
    """
    answers: list[Answer] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as fault:
            faults.append(fault)

    # With the settings of this thread, such as dask's.
    context = contextvars.copy_context()
    asking = threading.Thread(target=context.run, args=(run,), daemon=True)
    asking.start()
    asking.join(min(SAY_AFTER, seconds))
    if asking.is_alive() and seconds > SAY_AFTER:
        log.warning("%s has not answered for %.0f s; at most %.0f s", who, SAY_AFTER, seconds)
        asking.join(seconds - SAY_AFTER)

    if asking.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if faults:
        raise faults[0]
    return answers[0]
