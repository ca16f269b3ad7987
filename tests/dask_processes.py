"""A real `dask scheduler` and real `dask worker`s on 127.0.0.1, for tests that kill them."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

# The dashboard too: with --no-dashboard it listens on 0.0.0.0.
HERE = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
# Seconds: a scheduler may take minutes to start on a busy machine.
PATIENCE = 200


class DaskProcesses:
    """Every process that a test starts, and their end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        # Where the scheduler listens.
        self.address = ""
        # What stand-ins have done, and what they wait for.
        self.log = folder / "log"
        self.go = folder / "go"
        self.log.touch()
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "SER_STAND_IN_LOG": str(self.log),
            "SER_STAND_IN_GO": str(self.go),
            # A task is given up soon: dask's own are 3 deaths.
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        }

    def _start(self, *words: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"dask{len(self.started)}.log"
        command = [sys.executable, "-m", "dask", *words]
        with log.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=self.environment, cwd=self.folder
            )
        self.started.append(process)
        return process, log

    def scheduler(self, *words: str) -> subprocess.Popen[bytes]:
        """Start one on a free port; `address` is then where it listens."""
        process, log = self._start("scheduler", *HERE, "--port", "0", *words)
        deadline = time.monotonic() + PATIENCE
        while True:
            listens = re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text())
            if listens is not None:
                self.address = listens[0]
                return process

            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def worker(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start one of one thread.

        `--scheduler-file` among the words takes the place of the address.
        """
        here = (*HERE, "--nthreads", "1", "--memory-limit", "0", "--name", name)
        address = () if "--scheduler-file" in words else (self.address,)
        process, _ = self._start("worker", *address, *here, *words)
        return process

    def printed(self, command: str) -> subprocess.Popen[bytes]:
        """Start a `dask …` as a message names it."""
        program, *words = shlex.split(command)
        assert program == "dask"
        process, _ = self._start(*words)
        return process

    def stop(self) -> None:
        """Kill all that is left, children first and then parents.

        But for multiprocessing's resource trackers: each ends after the others, and removes their
        semaphores. Fails if anybody from elsewhere could have reached any of it.
        """
        processes = []
        for started in self.started:
            processes += tree(started.pid)
        addresses = listening([process.pid for process in processes])

        for started in self.started:
            for process in tree(started.pid):
                if not runs(process, "resource_tracker"):
                    send(process)
        for started in self.started:
            started.wait(60)
        assert addresses <= {"127.0.0.1", "::1"}, f"dask listens on {addresses}"


def tree(pid: int) -> list[psutil.Process]:
    """A process and everything under it."""
    try:
        top = psutil.Process(pid)
        return [*top.children(recursive=True), top]
    except psutil.NoSuchProcess:
        return []


def send(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    """A signal for a process that may be gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def worker_of(nanny: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The process that computes, under the one that watches it."""
    return next(iter(workers_of(nanny.pid)), None)


def workers_of(pid: int) -> list[psutil.Process]:
    """The living processes that multiprocessing has started under this one.

    They compute, or fork those that do.
    """
    workers = []
    for process in tree(pid):
        if process.pid != pid and runs(process, "spawn_main|forkserver"):
            workers.append(process)
    return workers


def runs(process: psutil.Process, pattern: str) -> bool:
    """Whether a process's command line has this pattern; a zombie has none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(re.search(pattern, " ".join(process.cmdline())))
    return False


def listening(pids: Sequence[int]) -> set[str]:
    """The addresses on which these processes accept connections."""
    addresses = set()
    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                addresses.add(connection.laddr.ip)
    return addresses
