"""What a worker keeps open between its tasks: opened once, closed once, by whoever uses it last."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ser.engines.worker_cache import cached, clear_cache


class Thing:
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Nothing is kept open from a test before."""
    clear_cache()


def test_what_a_worker_keeps_is_opened_once_and_two_are_kept() -> None:
    things: dict[str, Thing] = {}
    for key in ("a", "b", "a", "b", "a", "c", "a"):
        with cached(key, Thing) as thing:
            assert things.setdefault(key, thing) is thing
            assert not thing.closed

    assert things["b"].closed == 1, "asked for longest ago, it made room for c"
    assert things["a"].closed == 0
    assert things["c"].closed == 0

    clear_cache()
    assert [thing.closed for thing in things.values()] == [1, 1, 1]

    with cached("a", Thing) as thing:
        assert thing is not things["a"]
        assert not thing.closed


def test_what_is_in_use_is_closed_by_its_last_user() -> None:
    with cached("a", Thing) as thing:
        with cached("a", Thing) as same:
            clear_cache()
            assert same is thing
        assert not thing.closed

    assert thing.closed == 1


def test_what_cannot_be_opened_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), cached("a", lambda: 1 // 0):
        pass

    with cached("a", Thing) as thing:
        assert not thing.closed


def test_what_a_failed_task_used_is_closed() -> None:
    with pytest.raises(ZeroDivisionError), cached("b", Thing) as thing:
        clear_cache()
        # The traceback of this error knows the task's frames.
        raise ZeroDivisionError

    assert thing.closed == 1


def test_what_a_worker_keeps_is_cleared_while_it_opens() -> None:
    begun = threading.Event()
    go_on = threading.Event()

    def open_slowly() -> Thing:
        begun.set()
        assert go_on.wait(60), "dask's event loop does not wait for a model"
        return Thing()

    def task() -> Thing:
        with cached("a", open_slowly) as thing:
            assert not thing.closed
        return thing

    with ThreadPoolExecutor() as pool:
        running = pool.submit(task)
        begun.wait()
        clear_cache()
        go_on.set()
        assert running.result().closed == 1


def test_many_threads_open_what_a_worker_keeps_once() -> None:
    def task(number: int) -> Thing:
        with cached(f"{number % 2}", Thing) as thing:
            time.sleep(0.001)
            assert not thing.closed
        return thing

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(task, range(200)))) == 2
