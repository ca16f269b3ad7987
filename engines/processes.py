"""Tasks in processes of this machine, one at a time each, and what a process keeps for its next
task.

multiprocessing's fork server imports what the tasks need and forks the workers: so torch is
imported once for all of them, and no thread, lock or CUDA context of the calling process is copied.
It ends with this process. Without a fork server (Windows), each worker starts its own Python.
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
from multiprocessing import util
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
MOST = 2  # things that a worker keeps, such as the extractors of features with a model and of those without one


def run(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """`function(task)` for every task, results as they come, in `workers` processes of this
    machine.

    Each has one task at a time, so `tasks` may be a generator, and is read no further than needed.
    `function`, tasks and results must pickle. What a function takes from `cached` stays open for
    the next tasks of the same worker.

    Raises what the function raises (`SerError` as it is, others as `RuntimeError` with their
    traceback), and `SerError` naming the task whose process died. No worker is left running when
    the iterator ends, fails or is closed.
    """
    remaining, busy = iter(tasks), dict[Pipe, tuple[BaseProcess, T]]()

    def kill() -> None:
        for process, _ in busy.values():
            process.kill()

    def give(pipe: Pipe, process: BaseProcess, task: T) -> None:
        busy[pipe] = process, task
        # If the process has died, reading the pipe raises next, and the task is named then.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pipe.send((function, task))

    # At this process's end too: multiprocessing would send SIGTERM and wait, and a package's
    # handler may swallow that.
    kill_once = util.Finalize(None, kill, exitpriority=0)
    try:
        for number, task in enumerate(islice(remaining, workers)):
            ours, theirs = _context.Pipe()
            process = _context.Process(
                target=_work, args=(theirs, dict(os.environ), number), daemon=True
            )
            for again in (True, False):
                start_fork_server(function.__module__)
                try:
                    process.start()
                    break
                except (EOFError, OSError) as fault:
                    if not again:
                        raise SerError(
                            f"the worker processes did not start ({fault}); run again"
                        ) from fault
                    time.sleep(0.2)  # the death of a fork server takes a moment to be noticed
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
                    death = (
                        f"a worker process {how} on {task_name(task)}; what was finished is kept"
                    )
                    fewer = (
                        ", with fewer workers if memory ran out" if how.endswith("SIGKILL") else ""
                    )
                    raise SerError(f"{death}: run again{fewer}") from None
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
        kill_once()
        for pipe, (process, _) in busy.items():
            pipe.close()
            process.join()


def start_fork_server(module: str) -> None:
    """Start the fork server, which imports `module` while this process goes on; without one, do
    nothing.

    A running one is used as it is: workers then import what it has not imported.
    """
    if _START == "spawn":
        return
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(["__main__", module])
    resource_tracker.ensure_running()  # started within `defer_sigint`, it would unblock SIGINT
    environment = dict(os.environ)
    try:
        with defer_sigint():  # Ctrl-C reaches the whole process group: only this process acts on it
            # It imports from the same places as this process: never from the current folder, as
            # `python -c` would.
            os.environ.update(PYTHONPATH=os.pathsep.join(sys.path), PYTHONSAFEPATH="1")
            forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)


def _work(pipe: Pipe, environment: dict[str, str], number: int) -> None:
    """In a worker process: task by task, until the pipe or the parent ends."""
    machine.this_worker = number
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()  # the fork server's
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, task = pipe.recv()
            try:
                answer: tuple[bool, Any] = (True, function(task))
            except SerError as error:
                answer = (False, error)
            except Exception:
                answer = (
                    False,
                    RuntimeError(
                        f"in a worker process, on {task_name(task)}:\n{traceback.format_exc()}"
                    ),
                )
            pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def task_name(task: Any) -> str:
    """The name of a task, or the names of a list of them, for a message."""
    return ", ".join(
        str(getattr(one, "name", one)) for one in (task if isinstance(task, list) else [task])
    )[:200]


@contextlib.contextmanager
def defer_sigint() -> Iterator[None]:
    """Ctrl-C waits for the end of the context. Threads and processes that start in it ignore
    Ctrl-C, and so do theirs.

    Outside the main thread, Ctrl-C reaches the main thread as always.
    """
    received: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    ours = callable(handler) and threading.current_thread() is threading.main_thread()
    if ours:  # a signal that one thread blocks may still come to another
        signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    masks: Any = (
        signal if hasattr(signal, "pthread_sigmask") else None
    )  # on Windows new processes still get it
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
    """Something that is kept: closed, if it has a `close`, when neither the cache nor a task holds
    this any more.
    """

    key: Any
    value: Any = None


kept: list[Kept] = []  # the most recently used one is the last
_opening = threading.Lock()  # a dask worker may have several threads: nothing is opened twice


@contextlib.contextmanager
def cached(key: Any, open: Callable[[], T]) -> Iterator[T]:
    """The result of `open()` for a `key`, compared by `==`: opened once, and kept for the worker's
    next tasks.

    A model takes seconds to load, and a task may take less. At most `MOST` things are kept, until
    the process ends; a run on a dask cluster, whose processes stay, clears them at its start and
    end. What is dropped is closed, if it has a `close`, after the last task that uses it; an error
    in closing is printed, not raised.
    """
    with _opening:
        entry = next((one for one in kept if one.key == key), None) or Kept(key)
        with contextlib.suppress(ValueError):  # it is new, or has just been cleared
            kept.remove(entry)
        kept.append(entry)
        del kept[:-MOST]  # before a third is opened: memory may hold two only
        if entry.value is None:
            entry.value = open()
            if hasattr(entry.value, "close"):
                weakref.finalize(entry, entry.value.close).atexit = False
    yield entry.value


def clear_cache() -> None:
    """Empty this process's cache: what is in use, or being opened, is closed after its last use.

    It never waits, as it runs in a dask worker's event loop.
    """
    kept.clear()
