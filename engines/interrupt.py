"""Ctrl-C, which a terminal sends to the whole process group: this process alone decides, and when it is ready to."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """In the context Ctrl-C waits for its end. Threads and processes that are begun in it never hear it, nor do theirs.

    Where another thread than the main one does this, Ctrl-C reaches the main thread as ever.
    """
    heard: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    ours = callable(handler) and threading.current_thread() is threading.main_thread()
    if ours:  # a signal that one thread blocks may still come to another
        signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if ours:
            signal.signal(signal.SIGINT, handler)
    if heard and callable(handler):
        handler(heard[0], None)
