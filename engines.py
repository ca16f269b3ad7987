"""Run tasks inline, in spawned processes, or on a dask cluster. Knows no task."""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from ser.cache.errors import SerError

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """CPU cores that this process may use: fewer than the machine has, in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(function: Callable[[T], R], tasks: Iterable[T], workers: int = 1, scheduler: str | None = None) -> Iterator[R]:
    """`function(task)` for every task, results as they come.

    With one worker inline and lazily; with more, in that many spawned processes, each holding one task at a time (so
    `tasks` may be a generator, and is read no further than needed). `function`, tasks and results must pickle.
    `scheduler` is the address of a dask scheduler whose workers see the same files.

    Raises what the function raises, and `SerError` naming the task whose process died. Nothing is left running when
    the iterator ends, fails or is closed.
    """
    if scheduler is not None:
        yield from _on_dask(function, tasks, scheduler)
    elif workers <= 1:
        for task in tasks:
            yield function(task)
    else:
        yield from _in_processes(function, tasks, workers)


class _Worker:
    """A spawned process, its pipe, and the task that it has in hand."""

    def __init__(self, context: SpawnContext, function: Callable[[Any], Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(function, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.task: Any = None

    def give(self, task: Any) -> None:
        self.task = task
        # Should it have died: the pipe's end, read next, says so with the task's name.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(task)

    def take(self) -> Any:
        """The result of the task in hand. Raises what it raised."""
        try:
            done, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise SerError(_death(self.process.exitcode, self.task)) from None
        if not done:
            raise value
        return value


def _in_processes(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's locked threads
    remaining = iter(tasks)
    busy: dict[Connection, _Worker] = {}
    try:
        for _ in range(workers):
            for task in remaining:
                worker = _Worker(context, function)
                busy[worker.pipe] = worker
                worker.give(task)
                break
        while busy:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                result = worker.take()
                for task in remaining:
                    worker.give(task)
                    break
                else:
                    del busy[worker.pipe]
                    worker.pipe.close()
                    worker.process.join()
                yield result
    finally:
        for worker in busy.values():
            worker.pipe.close()
            worker.process.terminate()
        for worker in busy.values():
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    # Ctrl-C reaches the whole group: the parent alone decides, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer: tuple[bool, Any] = (True, function(task))
        except SerError as fault:
            answer = (False, fault)
        except Exception:
            answer = (False, RuntimeError(f"in a worker process, on {_name(task)}:\n{traceback.format_exc()}"))
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return


def _on_dask(function: Callable[[T], R], tasks: Iterable[T], scheduler: str) -> Iterator[R]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise SerError("--scheduler needs dask: pip install 'ser[cluster]'") from None
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as fault:
        raise SerError(f"no dask scheduler answers at {scheduler} ({fault})") from fault
    with client:
        # pure=False: a task that ran before and is asked for again shall run again.
        futures = [client.submit(function, task, pure=False) for task in tasks]
        for future in as_completed(futures):
            yield future.result()


def _death(exit_code: int | None, task: Any) -> str:
    if exit_code is not None and exit_code < 0:
        number = -exit_code
        how = f"was killed by {signal.Signals(number).name}" if number in set(signal.Signals) else f"by signal {number}"
        why = " (out of memory?)" if number == signal.SIGKILL else ""
        return f"a worker process {how}{why} on {_name(task)}; what was finished is kept: run again, with fewer workers"
    return f"a worker process ended with code {exit_code} on {_name(task)}; what was finished is kept: run again"


def _name(task: Any) -> str:
    return str(getattr(task, "name", None) or task)[:200]
