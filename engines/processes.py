"""Tasks in spawned processes of this machine, each holding one task at a time."""

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from ser.cache.errors import SerError

T = TypeVar("T")
R = TypeVar("R")


def in_processes(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """The results as they come. Raises what `function` raises, and `SerError` for a process that dies."""
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
