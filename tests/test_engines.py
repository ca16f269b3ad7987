"""Tasks run in processes: results, failures, deaths, and Ctrl-C."""

import ast
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ser import engines
from ser.engines.fork_server import start_fork_server
from ser.errors import SerError, WrongUse
from ser.tests.dask_processes import runs, workers_of
from ser.tests.stand_in_corpus import wait_for


@pytest.fixture(scope="module", autouse=True)
def light_fork_server() -> None:
    """It imports this file and no more: what a test needs beside that, its workers import."""
    start_fork_server(__name__)


def where(number: int) -> int:
    return os.getpid()


def fail(number: int) -> int:
    if number == 3:
        raise WrongUse("three is no number")
    return number


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def kill_fork_server(number: int) -> int:
    if number == 3:
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_every_task_has_a_result() -> None:
    assert sorted(engines.run(abs, range(-9, 1), 3)) == [*range(10)]
    assert list(engines.run(abs, [], 3)) == []


def test_tasks_run_in_other_processes() -> None:
    pids = set(engines.run(where, range(8), 3))

    assert len(pids) <= 3
    assert os.getpid() not in pids


def test_tasks_are_read_no_further_than_needed() -> None:
    tasks = itertools.count()
    next(engines.run(abs, tasks, 2))
    assert next(tasks) <= 3


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        pytest.param(fail, WrongUse, "three is no number", id="an error in words"),
        # A bug keeps its traceback.
        pytest.param(math.log, RuntimeError, r"(?s)Traceback.*ValueError", id="a bug"),
        pytest.param(die, SerError, r"killed by SIGKILL.* on 3;", id="a kill"),
        pytest.param(os._exit, SerError, r"ended with code (\d) on \1;", id="an exit"),
    ],
)
def test_what_goes_wrong_is_told(task: Callable[[int], object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        list(engines.run(task, range(6), 2))


def test_no_worker_is_left_running() -> None:
    results = engines.run(time.sleep, [0, 600, 600], 2)
    next(results)
    server, *workers = workers_of(os.getpid())
    assert len(workers) == 2

    results.close()

    assert workers_of(os.getpid()) == [server]
    wait_until_gone(workers)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Return when none runs any more: a fork server ends a moment after its owner."""
    wait_for(lambda: not any(runs(process, ".") for process in processes))


COUNTED_IMPORT = """
import os
with open({file!r}, 'a') as f:
    f.write(f'{{os.getpid()}}\\n')
def where(n):
    import time
    time.sleep(0.2)
    return os.getpid(), os.getppid()
"""
TWO_RUNS = """
import sys
sys.path.insert(0, {folder!r})
from ser import engines
from ser.engines.fork_server import start_fork_server
start_fork_server('counted_import')
from counted_import import where
print([*engines.run(where, range(6), 3), *engines.run(where, range(6), 2)])
"""


def test_what_tasks_need_is_imported_once(tmp_path: Path) -> None:
    """Also in a second run, where the fork server was started before there are tasks."""
    module = COUNTED_IMPORT.format(file=str(tmp_path / "imports"))
    (tmp_path / "counted_import.py").write_text(module)
    code = TWO_RUNS.format(folder=str(tmp_path))

    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    workers = set()
    servers = set()
    for worker, server in ast.literal_eval(printed):
        workers.add(worker)
        servers.add(server)
    lines = (tmp_path / "imports").read_text().split()
    imported = {int(line) for line in lines}

    assert len(workers) == 5
    assert len(servers) == 1
    assert len(imported) == 2, "the command, and its fork server"
    assert servers < imported
    assert not imported & workers


NAME_THREADS = """
import os, sys
from pathlib import Path
import ser.train.sweep.run, ser.extract.run
names = set()
for thread in Path('/proc/self/task').iterdir():
    if thread.name != str(os.getpid()):
        names.add((thread / 'comm').read_text().strip())
names -= {'jemalloc_bg_thd'}
torch = sys.modules.get('torch')
sys.exit(str(names) if names or torch and torch.cuda.is_initialized() else 0)
"""


def test_what_is_imported_before_the_fork_starts_nothing() -> None:
    """A fork has no other thread than the one that forked, and would wait for ever for a lock that
    another held.

    OpenBLAS and jemalloc, which Arrow brings, have threads of their own and look after forks
    themselves.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-c", NAME_THREADS], env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("slow_import", id="while it imports"),
        pytest.param("json", id="while it waits"),
        pytest.param("no_such_module", id="when it cannot import"),
    ],
)
def test_a_fork_server_that_nobody_wanted_ends(tmp_path: Path, module: str) -> None:
    """It ends with the process that started it, and nobody hears of it."""
    (tmp_path / "slow_import.py").write_text("import time\ntime.sleep(1)\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"from ser.engines.fork_server import start_fork_server\n"
        f"start_fork_server({module!r})\n"
        f"1 // 0"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1, done.stderr


def test_workers_see_the_environment_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no module of the current folder, as with `ser` itself: a user's random.py is not ours."""
    (tmp_path / "random.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.chdir(tmp_path)

    for value in ("first", "second"):
        monkeypatch.setenv("SER_TEST_VARIABLE", value)
        assert set(engines.run(os.getenv, ["SER_TEST_VARIABLE"] * 3, 2)) == {value}


def outlive_the_fork_server() -> None:
    assert list(engines.run(abs, [-2], 2)) == [2]
    [server] = workers_of(os.getpid())

    # Nobody is left who could tell how it ended.
    with pytest.raises(SerError, match="ended with code 255 on 3;"):
        list(engines.run(kill_fork_server, range(6), 2))

    # Until the kernel has ended it, the next run would say that its workers do not start.
    wait_until_gone([server])
    assert sorted(engines.run(abs, range(3), 2)) == [0, 1, 2]


def test_the_death_of_the_fork_server_hangs_nothing() -> None:
    """In a process of its own: that of other tests keeps what its server has imported."""
    code = "from ser.tests.test_engines import outlive_the_fork_server; outlive_the_fork_server()"
    subprocess.run([sys.executable, "-c", code], check=True)


PARENT = """
import sys, time
sys.path.insert(0, {folder!r})
from sleepy import nap
from ser import engines
results = engines.run(nap, [0, 600, 600], 2)
next(results)
print('go', flush=True)
{then}
"""
SLEEPY = "import time\ndef nap(n):\n    time.sleep(n)\n"


def start(tmp_path: Path, then: str, sleepy: str = SLEEPY) -> subprocess.Popen[str]:
    """A process without a main file, as an interactive session is, whose workers sleep."""
    (tmp_path / "sleepy.py").write_text(sleepy)
    code = PARENT.format(folder=str(tmp_path), then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_go(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"


# Until its workers are listed.
KEEP_RESULTS = "sys.modules['keep'] = results; sys.stdin.read()"
DEAF = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n"


@pytest.mark.parametrize(
    ("then", "code"),
    [
        pytest.param("time.sleep(600)", -signal.SIGKILL, id="killed"),
        pytest.param(KEEP_RESULTS, 0, id="at its end"),
    ],
)
def test_workers_end_with_the_process(tmp_path: Path, then: str, code: int) -> None:
    """Also with an iterator that nobody has closed, whatever handlers the workers' packages set."""
    process = start(tmp_path, then, DEAF + SLEEPY)
    wait_for_go(process)
    workers = workers_of(process.pid)
    assert len(workers) == 3

    if code == -signal.SIGKILL:
        process.kill()
    _, errors = process.communicate(timeout=120)

    assert process.returncode == code
    assert errors == ""
    wait_until_gone(workers)


# Only the fork server takes long to import: until the signal is sent.
SLOW_SERVER = """
import os, time
while 'PYTHONSAFEPATH' in os.environ and not os.path.exists(__file__ + '.go'):
    time.sleep(0.05)
"""


@pytest.mark.parametrize(
    ("then", "importing"),
    [
        pytest.param("", SLOW_SERVER, id="while they start"),
        pytest.param("list(results)", "", id="while they compute"),
    ],
)
def test_ctrl_c_ends_the_workers(tmp_path: Path, then: str, importing: str) -> None:
    """A terminal tells every process of the group; one speaks of it."""
    process = start(tmp_path, then, importing + SLEEPY)
    if then:
        wait_for_go(process)

    workers: list[psutil.Process] = []
    while not workers and process.poll() is None:
        time.sleep(0.1)
        workers = workers_of(process.pid)
    time.sleep(0.5)

    os.killpg(process.pid, signal.SIGINT)
    (tmp_path / "sleepy.py.go").touch()
    _, errors = process.communicate(timeout=120)

    assert errors.count("KeyboardInterrupt") == 1
    assert errors.count("Traceback") == 1
    assert "in a worker process" not in errors
    assert workers
    wait_until_gone(workers)


SCRIPT = """
from ser import engines

def double(n):
    return 2 * n

if __name__ == '__main__':
    print(sorted(engines.run(double, range(4), 2)))
"""


def test_functions_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    assert subprocess.check_output([sys.executable, str(script)], text=True) == "[0, 2, 4, 6]\n"
