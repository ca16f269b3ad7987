"""What a worker keeps between tasks: opened once, at most two, closed when nobody uses it any more."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ser.engines.worker_cache import cached, clear


class Thing:
    """Counts how often it is closed."""

    made = 0

    def __init__(self) -> None:
        Thing.made += 1
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def empty() -> None:
    """As in a process that has just begun."""
    clear()


def test_it_is_opened_once_and_two_are_kept() -> None:
    things: dict[str, Thing] = {}
    for key in ("a", "b", "a", "b", "a", "c", "a"):
        with cached(key, Thing) as thing:
            assert things.setdefault(key, thing) is thing and not thing.closed
    assert things["b"].closed == 1, "asked for longest ago, it made room for c"
    assert things["a"].closed == things["c"].closed == 0
    clear()
    assert [thing.closed for thing in things.values()] == [1, 1, 1]
    with cached("a", Thing) as thing:
        assert thing is not things["a"] and not thing.closed


def test_what_is_in_use_is_closed_by_its_last_user_and_what_cannot_be_opened_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), cached("a", lambda: 1 // 0):
        pass
    with cached("a", Thing) as thing:
        with cached("a", Thing) as same:
            clear()
            assert same is thing
        assert not thing.closed
    assert thing.closed == 1


def test_it_is_cleared_while_it_opens() -> None:
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
        clear()
        go_on.set()
        assert running.result().closed == 1


def test_many_threads_open_it_once() -> None:
    before = Thing.made

    def task(number: int) -> None:
        with cached(f"{number % 2}", Thing) as thing:
            time.sleep(0.001)
            assert not thing.closed

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(task, range(200)))
    assert Thing.made == before + 2
