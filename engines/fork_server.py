"""The processes that workers come from: multiprocessing's fork server.

It imports what the tasks need and forks the workers: so torch is imported once for all of them, and
no thread, lock or CUDA context of the calling process is copied. It ends with this process. Without
a fork server (Windows), each worker starts its own Python.
"""

import multiprocessing
import os
import sys
import time
from multiprocessing.process import BaseProcess
from typing import Any

from ser.errors import SerError

from .interrupts import defer_sigint

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
context: Any = multiprocessing.get_context(METHOD)


def start_fork_server(module: str) -> None:
    """Start the fork server, which imports `module` while this process goes on.

    A running one is used as it is: workers then import what it has not imported. Where there is no
    fork server, nothing is done.
    """
    if METHOD == "spawn":
        return
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(["__main__", module])
    # Started within `defer_sigint`, it would unblock SIGINT.
    resource_tracker.ensure_running()
    environment = dict(os.environ)
    try:
        # Ctrl-C reaches the whole process group: only this process acts on it.
        with defer_sigint():
            # It imports from the same places as this process: never from the current folder, as
            # `python -c` would.
            os.environ.update(PYTHONPATH=os.pathsep.join(sys.path), PYTHONSAFEPATH="1")
            forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)


def start_process(process: BaseProcess, module: str) -> None:
    """Start a worker process whose tasks need `module`.

    A fork server that has died is started again, once. Raises `SerError`.
    """
    for attempt in (1, 2):
        start_fork_server(module)
        try:
            process.start()
            return
        except (EOFError, OSError) as fault:
            if attempt == 2:
                raise SerError(
                    f"the worker processes did not start ({fault}); run again"
                ) from fault
            # The death of a fork server takes a moment to be noticed.
            time.sleep(0.2)
