"""A real `dask scheduler` and real `dask worker`s on 127.0.0.1, for tests that kill them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

HERE = (
    "--host",
    "127.0.0.1",
    "--dashboard-address",
    "127.0.0.1:0",
)  # with --no-dashboard it listens on 0.0.0.0


class DaskProcesses:
    """Every process that a test starts, and their end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        self.log, self.go = (
            folder / "log",
            folder / "go",
        )  # what stand-ins have done, and what they wait for
        self.log.touch()
        stand_in = {"SER_STAND_IN_LOG": str(self.log), "SER_STAND_IN_GO": str(self.go)}
        blame = {
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"
        }  # soon: dask's own are 3 deaths
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **stand_in, **blame}
        self.address = ""

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
        deadline = time.monotonic() + 200
        while not (found := re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        self.address = found[0]
        return process

    def worker(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start one of one thread; `--scheduler-file` among the words takes the place of the
        address.
        """
        here = (*HERE, "--nthreads", "1", "--memory-limit", "0", "--name", name)
        address = () if "--scheduler-file" in words else (self.address,)
        process, _ = self._start("worker", *address, *here, *words)
        return process

    def stop(self) -> None:
        """Kill all that is left, children first seen and then parents; nobody else could have
        reached any of it.

        But for multiprocessing's resource trackers: each ends after the others, and removes their
        semaphores.
        """
        there = listening([one.pid for process in self.started for one in tree(process.pid)])
        for process in self.started:
            for one in tree(process.pid):
                if not runs(one, "resource_tracker"):
                    send(one)
        for process in self.started:
            process.wait(60)
        assert there <= {"127.0.0.1", "::1"}, f"dask listens on {there}"


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
    """The living processes that multiprocessing has started under this one, to compute or to fork
    those that do.
    """
    return [one for one in tree(pid) if one.pid != pid and runs(one, "spawn_main|forkserver")]


def runs(process: psutil.Process, what: str) -> bool:
    """Whether a process's command line has this pattern; a zombie has none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(re.search(what, " ".join(process.cmdline())))
    return False


def listening(pids: Sequence[int]) -> set[str]:
    """The addresses on which these processes accept connections."""
    found = set()
    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        found |= {
            connection.laddr.ip
            for connection in connections
            if connection.status == psutil.CONN_LISTEN
        }
    return found
