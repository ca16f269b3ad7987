"""What a worker holds between tasks: opened once, at most two, closed when nobody uses it any more."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ser import engines
from ser.engines.worker_cache import Held, plugin


class Thing:
    """Knows whether it is closed."""

    made = 0

    def __init__(self) -> None:
        Thing.made += 1
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_it_is_opened_once_and_two_are_kept() -> None:
    place, things = Held(), {}
    for key in ("a", "b", "a", "b", "a", "c", "a"):
        with place.use(key, Thing) as thing:
            assert things.setdefault(key, thing) is thing and not thing.closed
    assert things["b"].closed == 1, "asked for longest ago, it made room for c"
    assert things["a"].closed == things["c"].closed == 0
    place.let_go()
    assert [thing.closed for thing in things.values()] == [1, 1, 1]
    with place.use("a", Thing) as thing:
        assert thing is not things["a"] and not thing.closed
    assert thing.closed == 1, "who was let go keeps nothing"


def test_what_is_in_use_is_closed_by_its_last_user() -> None:
    place = Held()
    with place.use("a", Thing) as thing:
        with place.use("a", Thing) as same:
            place.let_go()
            assert same is thing
        assert not thing.closed
    assert thing.closed == 1


def test_it_is_let_go_while_it_opens() -> None:
    place, begun, go_on = Held(), threading.Event(), threading.Event()

    def slowly() -> Thing:
        begun.set()
        go_on.wait(10)
        return Thing()

    def task() -> Thing:
        with place.use("a", slowly) as thing:
            assert not thing.closed
        return thing

    with ThreadPoolExecutor() as pool:
        running = pool.submit(task)
        begun.wait(10)
        before = time.monotonic()
        place.let_go()
        assert time.monotonic() - before < 1, "a heartbeat does not wait for a model"
        go_on.set()
        assert running.result(10).closed == 1


def test_many_threads_open_it_once() -> None:
    place, before = Held(), Thing.made

    def task(number: int) -> None:
        with place.use(f"{number % 2}", Thing) as thing:
            time.sleep(0.001)
            assert not thing.closed

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(task, range(200)))
    assert Thing.made == before + 2


def test_what_cannot_be_opened_leaves_nothing() -> None:
    place = Held()
    with pytest.raises(ZeroDivisionError), place.use("a", lambda: 1 // 0):
        pass
    with place.use("a", Thing) as thing:
        assert not thing.closed


def test_without_a_cluster_it_is_the_process_that_holds() -> None:
    with engines.held(("test", 1), Thing) as thing:
        pass
    with engines.held(("test", 1), Thing) as same:
        assert same is thing and not thing.closed


def test_a_worker_without_ser_can_take_the_plugin() -> None:
    """It may be somebody else's; the first task of ours there says what is wrong."""
    pickle = pytest.importorskip("distributed.protocol.pickle")
    code = (
        "import pickle, sys; sys.modules.update(dict.fromkeys(['ser', 'ser.engines', 'ser.engines.worker_cache']))\n"
        f"plugin = pickle.loads({pickle.dumps(plugin())!r}); plugin.setup(None); plugin.teardown(None)\n"
        "print(type(plugin).__mro__[1].__name__, hasattr(plugin, 'held'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "WorkerPlugin False\n", done.stderr
