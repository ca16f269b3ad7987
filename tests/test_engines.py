"""Tasks run in processes: results, failures, deaths, Ctrl-C, and what workers keep open."""

import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ser import engines
from ser.engines.fork_server import start_fork_server
from ser.engines.interrupts import defer_sigint
from ser.engines.worker_cache import cached, clear_cache
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
    pids = set(engines.run(where, range(8), 3))
    assert len(pids) <= 3 and os.getpid() not in pids


def test_tasks_are_read_no_further_than_needed() -> None:
    tasks = itertools.count()
    next(engines.run(abs, tasks, 2))
    assert next(tasks) <= 3


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (fail, WrongUse, "three is no number"),
        (math.log, RuntimeError, r"(?s)Traceback.*ValueError"),  # a bug keeps it
        (die, SerError, r"killed by SIGKILL.* on 3;"),
        (os._exit, SerError, r"ended with code (\d) on \1;"),
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
    assert workers_of(os.getpid()) == [server] and gone(workers)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none is there in a while: a fork server ends a moment after its owner."""
    wait_for(lambda: not any(runs(one, ".") for one in processes))
    return True


def test_what_tasks_need_is_imported_once(tmp_path: Path) -> None:
    """Also in a second run, where the fork server was started before there are tasks."""
    (tmp_path / "counted_import.py").write_text(
        f"import os\nwith open({str(tmp_path / 'imports')!r}, 'a') as f:\n"
        "    f.write(f'{os.getpid()}\\n')\n"
        "def where(n):\n    import time\n    time.sleep(0.2)\n"
        "    return os.getpid(), os.getppid()\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from ser import engines; from ser.engines.fork_server import start_fork_server\n"
        "start_fork_server('counted_import')\n"
        "from counted_import import where\n"
        "print([*engines.run(where, range(6), 3), *engines.run(where, range(6), 2)])"
    )
    workers, servers = map(
        set, zip(*eval(subprocess.check_output([sys.executable, "-c", code])), strict=True)
    )
    imported = {int(line) for line in (tmp_path / "imports").read_text().split()}
    assert len(workers) == 5 and len(servers) == 1 and len(imported) == 2
    assert servers < imported and not imported & workers


def test_what_is_imported_before_the_fork_starts_nothing() -> None:
    """A fork has no other thread than the one that forked, and would wait for ever for a lock that
    another held.

    OpenBLAS and jemalloc, which Arrow brings, have threads of their own and look after forks
    themselves.
    """
    code = (
        "import os, sys, ser.train.sweep.run, ser.extract.run\nfrom pathlib import Path\n"
        "others = [t for t in Path('/proc/self/task').iterdir() if t.name != str(os.getpid())]\n"
        "names = {(t / 'comm').read_text().strip() for t in others} - {'jemalloc_bg_thd'}\n"
        "torch = sys.modules.get('torch')\n"
        "sys.exit(str(names) if names or torch and torch.cuda.is_initialized() else 0)"
    )
    one = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=one, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_fork_server_that_nobody_wanted_ends(tmp_path: Path) -> None:
    """With the process that started it, in the middle of its imports or not; and nobody hears of
    it.
    """
    (tmp_path / "slow_import.py").write_text("import time\ntime.sleep(1)\n")
    for module in ("slow_import", "json", "no_such_module"):
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
            f"from ser.engines.fork_server import start_fork_server\n"
            f"start_fork_server({module!r}); 1 // 0"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == 1 and run.stderr.count("Traceback") == 1, run.stderr


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
    with pytest.raises(
        SerError, match="ended with code 255 on 3;"
    ):  # nobody is left who could tell how it ended
        list(engines.run(kill_fork_server, range(6), 2))
    assert gone(
        [server]
    )  # until the kernel has ended it, the next run would say that its workers do not start
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


def started(tmp_path: Path, then: str, sleepy: str = SLEEPY) -> subprocess.Popen[str]:
    """A process without a main file, as an interactive session is, whose workers sleep."""
    (tmp_path / "sleepy.py").write_text(sleepy)
    code = PARENT.format(folder=str(tmp_path), then=then)
    options = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), "text": True}
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **options)


KEPT = "sys.modules['keep'] = results; sys.stdin.read()"  # until its workers are listed
DEAF = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n"


@pytest.mark.parametrize(("then", "code"), [("time.sleep(600)", -signal.SIGKILL), (KEPT, 0)])
def test_workers_end_with_the_process(tmp_path: Path, then: str, code: int) -> None:
    """Killed, or at its end with an iterator that nobody has closed, whatever handlers the workers'
    packages set.
    """
    process = started(tmp_path, then, DEAF + SLEEPY)
    assert process.stdout is not None and process.stdout.readline() == "go\n"
    workers = workers_of(process.pid)
    assert len(workers) == 3
    if code:
        process.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code and errors == "" and gone(workers)


# Only the fork server takes long to import: until the signal is sent.
SLOW_SERVER = """
import os, time
while 'PYTHONSAFEPATH' in os.environ and not os.path.exists(__file__ + '.go'):
    time.sleep(0.05)
"""


@pytest.mark.parametrize(("then", "importing"), [("", SLOW_SERVER), ("list(results)", "")])
def test_ctrl_c_ends_the_workers(tmp_path: Path, then: str, importing: str) -> None:
    """While they start, and while they compute. A terminal tells every process of the group; one
    speaks of it.
    """
    process = started(tmp_path, then, importing + SLEEPY)
    if then:
        assert process.stdout is not None and process.stdout.readline() == "go\n"
    while not (begun := workers_of(process.pid)) and process.poll() is None:
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    (tmp_path / "sleepy.py.go").touch()
    _, errors = process.communicate(timeout=120)
    assert (
        errors.count("KeyboardInterrupt") == errors.count("Traceback") == 1
        and "in a worker process" not in errors
    )
    assert begun and gone(begun)


def test_functions_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from ser import engines\ndef double(n):\n    return 2 * n\n"
        "if __name__ == '__main__':\n    print(sorted(engines.run(double, range(4), 2)))\n"
    )
    assert subprocess.check_output([sys.executable, str(script)], text=True) == "[0, 2, 4, 6]\n"


def test_what_is_begun_while_ctrl_c_is_deferred_never_hears_it() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('on')"
    with defer_sigint():
        begun = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert begun.communicate()[0] == "on\n"
    assert (
        subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE).returncode
        == -signal.SIGINT
    )


def test_deferred_ctrl_c_comes_at_the_end_and_leaves_the_signals_as_they_were() -> None:
    handler, mask = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    done = []
    with pytest.raises(KeyboardInterrupt):
        with defer_sigint():
            for _ in range(2):
                signal.raise_signal(
                    signal.SIGINT
                )  # in this thread, whatever others a test before has left
            done.append("all of it")
        done.append("more")
    assert done == ["all of it"]
    with pytest.raises(ZeroDivisionError), defer_sigint():
        raise ZeroDivisionError
    aside = threading.Thread(
        target=lambda: defer_sigint().__enter__()
    )  # no main thread: it may set no handler
    aside.start()
    aside.join()
    assert (
        signal.getsignal(signal.SIGINT) is handler
        and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    )


# What a worker keeps between tasks
# ------------------------------------------------------------------------------------


class Thing:
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_what_a_worker_keeps_is_opened_once_and_two_are_kept() -> None:
    clear_cache()
    things: dict[str, Thing] = {}
    for key in ("a", "b", "a", "b", "a", "c", "a"):
        with cached(key, Thing) as thing:
            assert things.setdefault(key, thing) is thing and not thing.closed
    assert things["b"].closed == 1, "asked for longest ago, it made room for c"
    assert things["a"].closed == things["c"].closed == 0
    clear_cache()
    assert [thing.closed for thing in things.values()] == [1, 1, 1]
    with cached("a", Thing) as thing:
        assert thing is not things["a"] and not thing.closed


def test_what_is_in_use_is_closed_by_its_last_user_and_what_cannot_be_opened_leaves_nothing() -> (
    None
):
    clear_cache()
    with pytest.raises(ZeroDivisionError), cached("a", lambda: 1 // 0):
        pass
    with cached("a", Thing) as thing:
        with cached("a", Thing) as same:
            clear_cache()
            assert same is thing
        assert not thing.closed
    assert thing.closed == 1
    with pytest.raises(ZeroDivisionError), cached("b", Thing) as thing:
        clear_cache()
        raise ZeroDivisionError  # whose traceback knows the task's frames
    assert thing.closed == 1


def test_what_a_worker_keeps_is_cleared_while_it_opens() -> None:
    clear_cache()
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> Thing:
        begun.set()
        assert go_on.wait(60), "dask's event loop does not wait for a model"
        return Thing()

    def task() -> Thing:
        with cached("a", slowly) as thing:
            assert not thing.closed
        return thing

    with ThreadPoolExecutor() as pool:
        running = pool.submit(task)
        begun.wait()
        clear_cache()
        go_on.set()
        assert running.result().closed == 1


def test_many_threads_open_what_a_worker_keeps_once() -> None:
    clear_cache()

    def task(number: int) -> Thing:
        with cached(f"{number % 2}", Thing) as thing:
            time.sleep(0.001)
            assert not thing.closed
        return thing

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(task, range(200)))) == 2
