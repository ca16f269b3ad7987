"""Tasks in processes of this machine, each holding one task at a time.

multiprocessing's fork server imports what the tasks need and forks the workers from itself: so torch is imported once
for all of them, and no thread, lock or CUDA context of the calling process is copied.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from ser.errors import SerError

T = TypeVar("T")
R = TypeVar("R")
_context = multiprocessing.get_context("forkserver")


def in_processes(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """The results as they come. Raises what `function` raises, and `SerError` for a process that dies."""
    remaining = iter(tasks)
    first = list(islice(remaining, workers))
    if not first:
        return
    with fork_server(function.__module__):
        busy: dict[Connection, _Worker] = {}
        try:
            for task in first:
                worker = _Worker()
                busy[worker.pipe] = worker
                worker.give(function, task)
            while busy:
                for pipe in wait(list(busy)):
                    worker = busy[pipe]  # type: ignore[index]
                    result = worker.take()
                    for task in remaining:
                        worker.give(function, task)
                        break
                    else:
                        del busy[worker.pipe]
                        worker.end()
                    yield result
        finally:
            for worker in busy.values():
                worker.process.kill()
            for worker in busy.values():
                worker.end()


@contextlib.contextmanager
def fork_server(module: str) -> Iterator[None]:
    """In the context the fork server runs, and imports `module` while this process goes on with its own work.

    A server that runs already is used as it is, and left to whoever started it.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        yield
        return
    _context.set_forkserver_preload(["__main__", module])
    resource_tracker.ensure_running()  # started later, it would unblock what is blocked next
    environment = dict(os.environ)
    try:
        with defer_sigint():  # Ctrl-C reaches the whole group: this process alone decides
            # It imports from where this process does: never first from the current folder, as `python -c` would.
            os.environ.update(PYTHONPATH=os.pathsep.join(sys.path), PYTHONSAFEPATH="1")
            server.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)
    try:
        yield
    finally:
        if not multiprocessing.active_children():  # else somebody else uses it too, and it ends with this process
            os.kill(server._forkserver_pid, signal.SIGKILL)  # it may be importing still
            with contextlib.suppress(FileNotFoundError):  # at the interpreter's exit its socket is gone before it
                server._stop()  # waits for it, which counts the workers' processor time as this process's


class _Worker:
    """A worker process, seen from the process that gives it tasks."""

    def __init__(self) -> None:
        self.task: Any = None
        self.pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_work, args=(theirs, dict(os.environ)), daemon=True)
        try:
            self.process.start()
        except (EOFError, OSError) as fault:
            raise SerError(f"the worker processes did not start ({fault}); run again") from fault
        theirs.close()  # so that the pipe ends when the process does

    def give(self, function: Callable[[Any], Any], task: Any) -> None:
        self.task = task
        # If it has died, the end of the pipe, read next, says so with the task's name.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send((function, task))

    def take(self) -> Any:
        """The result of its task. Raises what the task raised, and `SerError` if the process has died."""
        try:
            done, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise SerError(_death(self.process.exitcode, self.task)) from None
        if not done:
            raise value
        return value

    def end(self) -> None:
        self.pipe.close()
        self.process.join()


def _work(pipe: Connection, environment: dict[str, str]) -> None:
    """In a worker process: task by task, until the pipe or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
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


def _death(exit_code: int | None, task: Any) -> str:
    how, way_out = f"ended with code {exit_code}", "run again"
    if exit_code is not None and exit_code < 0:
        known = -exit_code in set(signal.Signals)
        how = f"was killed by {signal.Signals(-exit_code).name if known else f'signal {-exit_code}'}"
        if exit_code == -signal.SIGKILL:
            how, way_out = f"{how} (out of memory?)", "run again, with fewer workers"
    return f"a worker process {how} on {task_name(task)}; what was finished is kept: {way_out}"


def task_name(task: Any) -> str:
    """What a message calls a task."""
    return str(getattr(task, "name", None) or task)[:200]


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
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if ours:
            signal.signal(signal.SIGINT, handler)
    if received and callable(handler):
        handler(received[0], None)
