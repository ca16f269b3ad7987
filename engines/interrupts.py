"""Ctrl-C, which reaches every process of a group: when this one may act on it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def defer_sigint() -> Iterator[None]:
    """Ctrl-C waits for the end of the context.

    Threads and processes that start in it ignore Ctrl-C, and so do theirs. Outside the main thread,
    Ctrl-C reaches the main thread as always.
    """
    received: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    replaced = callable(handler) and threading.current_thread() is threading.main_thread()
    if replaced:
        # A signal that one thread blocks may still come to another.
        signal.signal(signal.SIGINT, lambda number, _: received.append(number))

    # On Windows, which has no masks, new processes still get it.
    masks: Any = signal if hasattr(signal, "pthread_sigmask") else None
    if masks:
        mask = masks.pthread_sigmask(masks.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if masks:
            masks.pthread_sigmask(masks.SIG_SETMASK, mask)
        if replaced:
            signal.signal(signal.SIGINT, handler)

    if received and callable(handler):
        handler(received[0], None)
