"""Tasks in processes of this machine, each holding one task at a time, and what a process keeps for the next one.

multiprocessing's fork server imports what the tasks need and forks the workers from itself: so torch is imported once
for all of them, and no thread, lock or CUDA context of the calling process is copied. It ends with this process.
Where there is no fork server (Windows), each worker starts a Python of its own.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from ser.errors import SerError

from . import machine

T = TypeVar("T")
R = TypeVar("R")
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_context: Any = multiprocessing.get_context(_START)
Pipe = Any  # multiprocessing's Connection; on Windows its PipeConnection
MOST = 2  # things that one worker keeps, such as the extractors of features with a model and of those without


def run(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """`function(task)` for every task, results as they come, in so many processes of this machine.

    Each holds one task at a time, so `tasks` may be a generator, and is read no further than needed. `function`, tasks
    and results must pickle. What a function takes from `cached` stays open for the next tasks of the same worker.

    Raises what the function raises (`SerError` as itself, others from a process as `RuntimeError` with their
    traceback), and `SerError` naming the task whose process died. No worker is left running when the iterator ends,
    fails or is closed.
    """
    remaining, busy = iter(tasks), dict[Pipe, tuple[BaseProcess, T]]()

    def give(pipe: Pipe, process: BaseProcess, task: T) -> None:
        busy[pipe] = process, task
        # If it has died, the end of the pipe, read next, says so with the task's name.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pipe.send((function, task))

    try:
        for number, task in enumerate(islice(remaining, workers)):
            ours, theirs = _context.Pipe()
            process = _context.Process(target=_work, args=(theirs, dict(os.environ), number), daemon=True)
            for again in (True, False):
                start_fork_server(function.__module__)
                try:
                    process.start()
                    break
                except (EOFError, OSError) as fault:
                    if not again:
                        raise SerError(f"the worker processes did not start ({fault}); run again") from fault
                    time.sleep(0.2)  # a fork server that has just died may not be known to be dead
            theirs.close()  # so that the pipe ends when the process does
            give(ours, process, task)
        while busy:
            ready: list[Pipe] = wait(list(busy))
            for pipe in ready:
                process, task = busy[pipe]
                try:
                    done, result = pipe.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    killed = {-number: f"was killed by {number.name}" for number in signal.Signals}
                    how = killed.get(process.exitcode or 0, f"ended with code {process.exitcode}")
                    what = f"a worker process {how} on {task_name(task)}; what was finished is kept"
                    fewer = ", with fewer workers if memory ran out" if how.endswith("SIGKILL") else ""
                    raise SerError(f"{what}: run again{fewer}") from None
                if not done:
                    raise result
                if following := list(islice(remaining, 1)):
                    give(pipe, process, *following)
                else:
                    del busy[pipe]
                    pipe.close()
                    process.join()
                yield result
    finally:
        for process, _ in busy.values():
            process.kill()
        for pipe, (process, _) in busy.items():
            pipe.close()
            process.join()


def start_fork_server(module: str) -> None:
    """Start the fork server, which imports `module` while this process goes on with its own work.

    One that runs already is used as it is: workers then import what it has not. Does nothing where there is none.
    """
    if _START == "spawn":
        return
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(["__main__", module])
    resource_tracker.ensure_running()  # started later, it would unblock what is blocked next
    environment = dict(os.environ)
    try:
        with defer_sigint():  # Ctrl-C reaches the whole group: this process alone decides
            # It imports from where this process does: never first from the current folder, as `python -c` would.
            os.environ.update(PYTHONPATH=os.pathsep.join(sys.path), PYTHONSAFEPATH="1")
            forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)


def _work(pipe: Pipe, environment: dict[str, str], number: int) -> None:
    """In a worker process: task by task, until the pipe or the parent ends."""
    machine.this_worker = number
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()  # that of the fork server
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, task = pipe.recv()
            try:
                answer: tuple[bool, Any] = (True, function(task))
            except SerError as fault:
                answer = (False, fault)
            except Exception:
                answer = (False, RuntimeError(f"in a worker process, on {task_name(task)}:\n{traceback.format_exc()}"))
            pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def task_name(task: Any) -> str:
    """What a message calls a task, or a list of them."""
    return ", ".join(str(getattr(one, "name", one)) for one in (task if isinstance(task, list) else [task]))[:200]


@contextlib.contextmanager
def defer_sigint() -> Iterator[None]:
    """In the context Ctrl-C waits for its end. Threads and processes that start in it ignore it, and so do theirs.

    In another thread than the main one, Ctrl-C reaches the main thread as ever.
    """
    received: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    ours = callable(handler) and threading.current_thread() is threading.main_thread()
    if ours:  # a signal that one thread blocks may still come to another
        signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    masks: Any = signal if hasattr(signal, "pthread_sigmask") else None  # on Windows what starts meanwhile hears it
    mask = masks and masks.pthread_sigmask(masks.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if masks:
            masks.pthread_sigmask(masks.SIG_SETMASK, mask)
        if ours:
            signal.signal(signal.SIGINT, handler)
    if received and callable(handler):
        handler(received[0], None)


@dataclass(eq=False)
class Kept:
    """A thing that is kept: closed, if it can be, when neither the cache nor a task has this any more."""

    key: Any
    value: Any = None


kept: list[Kept] = []  # the one that was asked for last is the last
_opening = threading.Lock()  # a dask worker may have several threads: nothing is opened twice


@contextlib.contextmanager
def cached(key: Any, open: Callable[[], T]) -> Iterator[T]:
    """What `open()` gave the first task of this worker that asked for `key`, which is compared by `==`.

    A model takes seconds to load, and a task may take less. At most `MOST` things are kept, as long as the process
    lives; a run on a dask cluster, which stays up, clears them at its start and end. What is dropped is closed, if it
    has a `close`, when the last task that uses it is done with it; a fault in closing is printed, not raised.
    """
    with _opening:
        entry = next((one for one in kept if one.key == key), None) or Kept(key)
        with contextlib.suppress(ValueError):  # it is new, or was cleared in this moment
            kept.remove(entry)
        kept.append(entry)
        del kept[:-MOST]  # before there is a third: memory may hold two only
        if entry.value is None:
            entry.value = open()
            if hasattr(entry.value, "close"):
                weakref.finalize(entry, entry.value.close).atexit = False
    yield entry.value


def clear_cache() -> None:
    """Empty this process's cache: what is in use, or is being opened, is closed when its last user is done.

    It waits for nothing: it runs in a dask worker's event loop.
    """
    kept.clear()
