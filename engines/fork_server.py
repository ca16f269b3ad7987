"""The processes that workers come from: multiprocessing's fork server.

It imports what the tasks need and forks the workers: so torch is imported once for all of them, and
no thread, lock or CUDA context of the calling process is copied. It ends with this process. Without
a fork server (Windows), each worker starts its own Python.
"""

import multiprocessing
import tempfile
import time
from multiprocessing import util
from multiprocessing.process import BaseProcess
from typing import Any

from ser.children import isolated_children
from ser.errors import SerError

from .interrupts import defer_sigint

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
context: Any = multiprocessing.get_context(METHOD)

# Characters of the temporary folder: multiprocessing adds up to 40, and sockets take 104 on macOS.
LONGEST_FOLDER = 60


def start_fork_server(module: str) -> None:
    """Start the fork server, which imports `module` while this process goes on.

    A running one is used as it is: workers then import what it has not imported. Where there is no
    fork server, nothing is done.
    """
    if METHOD == "spawn":
        return
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(["__main__", module])
    _choose_folder_of_sockets()
    with isolated_children():
        # Started within `defer_sigint`, it would unblock SIGINT.
        resource_tracker.ensure_running()
        # Ctrl-C reaches the whole process group: only this process acts on it.
        with defer_sigint():
            forkserver.ensure_running()


def _choose_folder_of_sockets() -> None:
    """Have multiprocessing make its folder for sockets in /tmp where TMPDIR is too long for one.

    The path of a socket has room for about 100 characters.
    """
    if len(tempfile.gettempdir()) <= LONGEST_FOLDER:
        return

    before = tempfile.tempdir
    tempfile.tempdir = "/tmp"
    try:
        # Made once, and used for all that follows.
        util.get_temp_dir()
    finally:
        tempfile.tempdir = before


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
