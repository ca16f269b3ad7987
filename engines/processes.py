"""Tasks in processes of this machine, one at a time each."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import util
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from ser.errors import SerError

from . import machine
from .fork_server import context, start_process

T = TypeVar("T")
R = TypeVar("R")
# A Connection of multiprocessing; on Windows its PipeConnection.
Pipe = Any


def run(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """`function(task)` for every task, results as they come, in `workers` local processes.

    Each has one task at a time, so `tasks` may be a generator, and is read no further than needed.
    `function`, tasks and results must pickle. What a function takes from `cached` stays open for
    the next tasks of the same worker.

    Raises what the function raises (`SerError` as it is, others as `RuntimeError` with their
    traceback), and `SerError` naming the task whose process died. No worker is left running when
    the iterator ends, fails or is closed.
    """
    remaining = iter(tasks)
    busy: dict[Pipe, tuple[BaseProcess, T]] = {}

    def kill() -> None:
        for process, _ in busy.values():
            process.kill()

    def give(pipe: Pipe, process: BaseProcess, task: T) -> None:
        busy[pipe] = (process, task)
        # If the process has died, reading the pipe raises next, and the task is named then.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pipe.send((function, task))

    # At this process's end too: multiprocessing would send SIGTERM and wait, and a package's
    # handler may swallow that.
    kill_once = util.Finalize(None, kill, exitpriority=0)
    try:
        for number, task in enumerate(islice(remaining, workers)):
            pipe, process = _start_worker(number, function.__module__)
            give(pipe, process, task)

        while busy:
            ready: list[Pipe] = wait(list(busy))
            for pipe in ready:
                process, task = busy[pipe]
                result = _receive(pipe, process, task)

                following = list(islice(remaining, 1))
                if following:
                    give(pipe, process, following[0])
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


def _start_worker(number: int, module: str) -> tuple[Pipe, BaseProcess]:
    """Start a worker process; returns this process's end of its pipe, and the process."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, dict(os.environ), number), daemon=True)
    start_process(process, module)
    # So that the pipe ends when the process does.
    theirs.close()
    return ours, process


def _receive(pipe: Pipe, process: BaseProcess, task: Any) -> Any:
    """The result of a task. Raises what it raised, and `SerError` if its process has died."""
    try:
        done, result = pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise SerError(_death(process.exitcode or 0, task)) from None
    if not done:
        raise result
    return result


def _death(exit_code: int, task: Any) -> str:
    """One sentence about a worker that died, and what to do."""
    remedy = "run again"
    how = f"ended with code {exit_code}"
    for number in signal.Signals:
        if exit_code == -number:
            how = f"was killed by {number.name}"
    if how.endswith("SIGKILL"):
        remedy = "run again, with fewer workers if memory ran out"
    return f"a worker process {how} on {task_name(task)}; what was finished is kept: {remedy}"


def _work(pipe: Pipe, environment: dict[str, str], number: int) -> None:
    """In a worker process: task by task, until the pipe or the parent ends."""
    machine.this_worker = number
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The fork server's.
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, task = pipe.recv()
            pipe.send(_outcome(function, task))


def _outcome(function: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    """Whether a task succeeded, and its result or the error to raise."""
    try:
        return True, function(task)
    except SerError as error:
        return False, error
    except Exception:
        trace = traceback.format_exc()
        return False, RuntimeError(f"in a worker process, on {task_name(task)}:\n{trace}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def task_name(task: Any) -> str:
    """The name of a task, or the names of a list of them, for a message."""
    tasks = task if isinstance(task, list) else [task]
    names = [str(getattr(task, "name", task)) for task in tasks]
    return ", ".join(names)[:200]
