"""Tasks run inline and in processes: results, failures, deaths."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ser import engines
from ser.cache.errors import SerError, WrongUse


def square(number: int) -> int:
    return number * number


def where(number: int) -> int:
    return os.getpid()


def fail(number: int) -> int:
    if number == 3:
        raise WrongUse("three is no number")
    return number


def crash(number: int) -> int:
    return 1 // (number - 3)


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def leave(number: int) -> int:
    os._exit(7)


def wait_long(number: int) -> int:
    time.sleep(60 if number else 0)
    return number


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_has_a_result(workers: int) -> None:
    assert sorted(engines.run(square, range(10), workers)) == [n * n for n in range(10)]
    assert list(engines.run(square, [], workers)) == []
    assert list(engines.run(square, [2], workers)) == [4]


def test_processes_are_reused_and_are_not_this_one() -> None:
    pids = set(engines.run(where, range(8), 2))
    assert len(pids) <= 2 and os.getpid() not in pids
    assert set(engines.run(where, range(3), 1)) == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_are_read_no_further_than_needed(workers: int) -> None:
    read: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = engines.run(square, tasks(), workers)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(read) <= workers + 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_keeps_its_class_and_sentence(workers: int) -> None:
    with pytest.raises(WrongUse, match="three is no number"):
        list(engines.run(fail, range(6), workers))


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(engines.run(crash, range(6), 2))


def test_a_death_names_its_task() -> None:
    with pytest.raises(SerError, match=r"killed by SIGKILL.* on 3;"):
        list(engines.run(die, range(6), 2))
    with pytest.raises(SerError, match="ended with code 7 on 0;"):
        list(engines.run(leave, [0], 2))


def test_nothing_is_left_running() -> None:
    results = engines.run(wait_long, [0, 1, 2], 2)
    assert next(results) == 0
    start = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 15
    listed = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], capture_output=True, text=True)
    assert listed.stdout == ""


def test_ctrl_c_ends_the_workers(tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text("import time\ndef nap(n):\n    time.sleep(60)\n")
    (tmp_path / "main.py").write_text(
        "from sleepy import nap\nfrom ser import engines\n"
        "if __name__ == '__main__':\n    print('go', flush=True)\n    list(engines.run(nap, range(4), 2))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "go\n"
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors and "in a worker process" not in errors
    time.sleep(1)  # multiprocessing's own resource tracker ends a moment after its parent
    listed = subprocess.run(["ps", "-o", "stat=,args=", "-g", str(process.pid)], capture_output=True, text=True)
    assert [line for line in listed.stdout.splitlines() if not line.startswith("Z")] == []


def test_on_a_dask_scheduler() -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        assert sorted(engines.run(square, range(4), scheduler=cluster.scheduler_address)) == [0, 1, 4, 9]


def test_no_scheduler_there() -> None:
    with pytest.raises(SerError, match="no dask scheduler answers"):
        list(engines.run(square, range(4), scheduler="tcp://127.0.0.1:1"))


def test_cores_respect_the_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
        "from ser import engines; print(engines.cores())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"
