"""Tasks in processes of this machine, each holding one task at a time.

A spawned process, the nursery, imports what the tasks need and forks the workers from itself: so torch is imported
once for all of them, and no thread, lock or CUDA context of the calling process is copied.
"""

import atexit
import contextlib
import importlib
import multiprocessing
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

from ser.errors import SerError


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


T = TypeVar("T")
R = TypeVar("R")
STOPPING = {signal.SIGINT, signal.SIGTERM}


def in_processes(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """The results as they come. Raises what `function` raises, and `SerError` for a process that dies."""
    remaining = iter(tasks)
    first = list(islice(remaining, workers))
    if not first:
        return
    early = bool(_early) and len(_early[-1].workers) >= len(first)
    with _early.pop() if early else _Nursery(function.__module__, len(first)) as nursery:
        at_work = nursery.workers[: len(first)]
        busy = {worker.pipe: worker for worker in at_work}
        for worker, task in zip(at_work, first, strict=True):
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
                    worker.pipe.close()
                yield result


_early: list["_Nursery"] = []


@contextlib.contextmanager
def started_early(module: str, workers: int) -> Iterator[None]:
    """In the context, the next tasks in up to `workers` processes find them started: they import `module` meanwhile."""
    with _Nursery(module, workers) as nursery:
        _early.append(nursery)
        try:
            yield
        finally:
            if nursery in _early:  # nobody wanted it
                _early.remove(nursery)
                nursery.process.kill()


class _Nursery:
    """The process that the workers are forked from. Leaving the context by an exception ends them at once."""

    def __init__(self, module: str, workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of this process would copy torch's locked threads
        ours, theirs = zip(*(context.Pipe() for _ in range(workers)), strict=True)
        self.ends, told = context.Pipe(duplex=False)
        self.exit_codes: dict[int, int] = {}
        self.workers = [_Worker(self, number, pipe) for number, pipe in enumerate(ours)]
        self.process = context.Process(target=_raise_workers, args=(module, theirs, told))
        resource_tracker.ensure_running()  # it would unblock them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the nursery can heed them, it inherits
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for pipe in (*theirs, told):  # so that a pipe ends when its process does
            pipe.close()

    def __enter__(self) -> "_Nursery":
        atexit.register(self.process.terminate)  # an iterator that is never closed must not keep this process
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for worker in self.workers:
            worker.pipe.close()
        if kind:
            self.process.terminate()
            self.process.join(10)
            if self.process.is_alive():
                self.process.kill()
        self.process.join()
        atexit.unregister(self.process.terminate)

    def exit_code(self, number: int) -> int | None:
        """How that worker ended; how the nursery did, if it cannot say."""
        while number not in self.exit_codes:
            try:
                ended, code = self.ends.recv()
            except EOFError:
                self.process.join()
                return self.process.exitcode
            self.exit_codes[ended] = code
        return self.exit_codes[number]


class _Worker:
    """A process of the nursery, seen from here: its pipe, and the task that it has in hand."""

    def __init__(self, nursery: _Nursery, number: int, pipe: Connection) -> None:
        self.nursery, self.number, self.pipe = nursery, number, pipe
        self.task: Any = None

    def give(self, function: Callable[[Any], Any], task: Any) -> None:
        self.task = task
        # Should it have died: the pipe's end, read next, says so with the task's name.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send((function, task))

    def take(self) -> Any:
        """The result of the task in hand. Raises what it raised."""
        try:
            done, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise SerError(_death(self.nursery.exit_code(self.number), self.task)) from None
        if not done:
            raise value
        return value


def _raise_workers(module: str, pipes: Sequence[Connection], told: Connection) -> None:
    """In the nursery: import, fork a worker per pipe, tell how each ends, and end all when the parent dies."""
    with contextlib.suppress(ImportError):  # the worker that needs it says so
        importlib.import_module(module)
    context = multiprocessing.get_context("fork")
    workers: list[ForkProcess] = []
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent alone decides
    try:
        for pipe in pipes:
            worker = context.Process(target=_serve, args=(pipe, {*pipes, told} - {pipe}), daemon=True)
            worker.start()
            workers.append(worker)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        for pipe in pipes:
            pipe.close()
        living = {worker.sentinel: number for number, worker in enumerate(workers)}
        while living:
            for ended in wait([*living, parent.sentinel]):
                if ended == parent.sentinel:
                    return
                number = living.pop(ended)  # type: ignore[arg-type]
                workers[number].join()
                with contextlib.suppress(BrokenPipeError):
                    told.send((number, workers[number].exitcode))
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(5)
            worker.kill()


def _serve(pipe: Connection, others: Iterable[Connection]) -> None:
    """In a worker: task by task, until the pipe ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    for other in others:
        other.close()
    while True:
        try:
            function, task = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer: tuple[bool, Any] = (True, function(task))
        except SerError as fault:
            answer = (False, fault)
        except Exception:
            answer = (False, RuntimeError(f"in a worker process, on {task_name(task)}:\n{traceback.format_exc()}"))
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return


def _death(exit_code: int | None, task: Any) -> str:
    if exit_code is not None and exit_code < 0:
        number = -exit_code
        how = f"was killed by {signal.Signals(number).name}" if number in set(signal.Signals) else f"by signal {number}"
        why = " (out of memory?)" if number == signal.SIGKILL else ""
        kept = "what was finished is kept: run again, with fewer workers"
        return f"a worker process {how}{why} on {task_name(task)}; {kept}"
    return f"a worker process ended with code {exit_code} on {task_name(task)}; what was finished is kept: run again"


def task_name(task: Any) -> str:
    """What a message calls a task."""
    return str(getattr(task, "name", None) or task)[:200]
