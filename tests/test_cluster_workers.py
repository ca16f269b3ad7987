"""What a message says of workers that are missing. Nothing here runs on a cluster."""

from pathlib import Path

import pytest

from ser.engines.cluster import no_worker
from ser.tests.dask_processes import HERE

DOCS = Path(__file__).parent.parent / "docs"
NEAR, FAR = "tcp://127.0.0.1:8786", "tcp://10.0.0.1:8786"


def test_what_is_missing_is_named() -> None:
    gpu, cpu = {"GPU": 1.0}, {"CPU": 2.0}
    offers = f"no dask worker at {NEAR} offers GPU=2 (they offer GPU=1, CPU=2); "
    assert no_worker(NEAR, [gpu, cpu], {"GPU": 2}).startswith(offers)
    assert "(they offer nothing)" in no_worker(NEAR, [{}], {"GPU": 2})
    for kinds, needs in (([], gpu), ([cpu], {})):
        assert no_worker(NEAR, kinds, needs).startswith(f"no worker has come to the dask scheduler at {NEAR};")
    assert no_worker("local:2", [], {}).endswith("what was finished is kept: run again")


@pytest.mark.parametrize("address", [NEAR, "tcp://[::1]:8786", "tcp://localhost:8786"])
def test_a_worker_for_a_scheduler_here_listens_here(address: str) -> None:
    """tests/dask_processes.py starts its own with these words, and looks where they listen."""
    command = f"dask worker {address} {' '.join(HERE)} --nthreads 1"
    assert no_worker(address, [], {}).endswith(f"start one by `{command}` and run again")
    resources = '--resources "GPU=1, CPU=8"'
    assert f"`{command} {resources}`" in no_worker(address, [], {"GPU": 1.0, "CPU": 8.0})


def test_a_worker_for_another_scheduler() -> None:
    assert "--host ITS_ADDRESS --dashboard-address 127.0.0.1:0" in no_worker(FAR, [], {})
    assert "--tls-cert FILE" in no_worker("tls://far:8786", [], {}) and "--tls" not in no_worker(NEAR, [], {})


def test_the_docs_start_what_listens_here() -> None:
    """With the words of tests/dask_processes.py, which looks where what it starts listens."""
    lines = (DOCS / "scaling.md").read_text().splitlines()
    started = [line for line in lines if line.startswith(("dask scheduler ", "dask worker "))]
    assert len(started) == 2
    for line in started:
        assert all(f" {option} {value} " in line for option, value in zip(HERE[::2], HERE[1::2], strict=True))
        assert "--no-dashboard" not in line
