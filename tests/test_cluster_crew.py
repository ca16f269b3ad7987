"""Who is there, what they declare, and what is said where that is not enough. Nothing here runs on a cluster."""

from pathlib import Path

import pytest

from ser.engines.cluster import Crew
from ser.tests.dask_processes import HERE

DOCS = Path(__file__).parent.parent / "docs"
NEAR, FAR = "tcp://127.0.0.1:8786", "tcp://10.0.0.1:8786"


def crew(*kinds: dict[str, float], address: str = NEAR) -> tuple[Crew, dict[str, dict]]:
    """A crew, and the record that its scheduler has: one worker of two threads for each kind."""
    record = {f"tcp://127.0.0.1:{port}": {"nthreads": 2, "resources": kind} for port, kind in enumerate(kinds)}
    return Crew(address, lambda: dict(record)), record


def test_who_was_there_may_come_back() -> None:
    """A worker that dies is in no record until its nanny has started it again."""
    there, record = crew({"GPU": 1, "CPU": 8}, {"CPU": 2})
    assert there.able({"GPU": 1, "CPU": 4}) and not there.able({"GPU": 2}) and not there.ever_able({"GPU": 1, "CPU": 9})
    record.clear()
    there.workers(anew=True)
    assert not there.able({"GPU": 1}) and not there.able({}) and there.threads == 1
    assert there.ever_able({"GPU": 1, "CPU": 4}) and not there.ever_able({"TPU": 1}) and there.ever_able({})
    assert there.offers == {"GPU": 1, "CPU": 8} and there.kinds == [{"GPU": 1, "CPU": 8}, {"CPU": 2}]


def test_who_has_come_in_this_moment_is_seen_before_a_task_is_refused() -> None:
    there, record = crew({})
    assert there.threads == 2 and there.offers == {}
    record["new"] = {"nthreads": 1, "resources": {"GPU": 1}}
    assert there.ever_able({"GPU": 1})


def test_what_is_missing_is_named() -> None:
    there, record = crew({"GPU": 1}, {"CPU": 2})
    there.workers()
    assert there.lacking({"GPU": 2}) == f"no dask worker at {NEAR} offers GPU=2 (they offer GPU=1, CPU=2)"
    del record["tcp://127.0.0.1:0"]
    there.workers(anew=True)
    assert there.lacking({"GPU": 1}).endswith("offers GPU=1 (they offer CPU=2)")
    record.clear()
    there.workers(anew=True)
    assert there.lacking({"GPU": 1}) == there.lacking({}) == f"no worker has come to the dask scheduler at {NEAR}"


@pytest.mark.parametrize("address", [NEAR, "tcp://[::1]:8786", "tcp://localhost:8786"])
def test_a_worker_for_a_scheduler_here_listens_here(address: str) -> None:
    """tests/dask_processes.py starts its own with these words, and looks where they listen."""
    there, _ = crew(address=address)
    command = f"dask worker {address} {' '.join(HERE)} --nthreads 1"
    assert there.way_out({}) == f"start some by `{command}`"
    assert there.way_out({"GPU": 1.0, "CPU": 8.0}) == f'start one by `{command} --resources "GPU=1, CPU=8"`'


def test_a_worker_for_another_scheduler() -> None:
    assert "--host ITS_ADDRESS --dashboard-address 127.0.0.1:0" in crew(address=FAR)[0].way_out({})
    assert "--tls-cert FILE" in crew(address="tls://far:8786")[0].way_out({}) and "--tls" not in crew()[0].way_out({})


def test_the_docs_start_what_listens_here() -> None:
    """With the words of tests/dask_processes.py, which looks where what it starts listens."""
    lines = (DOCS / "scaling.md").read_text().splitlines()
    started = [line for line in lines if line.startswith(("dask scheduler ", "dask worker "))]
    assert len(started) == 2
    for line in started:
        assert all(f" {option} {value} " in line for option, value in zip(HERE[::2], HERE[1::2], strict=True))
        assert "--no-dashboard" not in line
