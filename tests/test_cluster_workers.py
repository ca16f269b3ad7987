"""What a message says of workers that are missing. Nothing here runs on a cluster."""

from pathlib import Path

import pytest

from ser.engines.cluster import how_to_start, lacking
from ser.tests.dask_processes import HERE

DOCS = Path(__file__).parent.parent / "docs"
NEAR, FAR = "tcp://127.0.0.1:8786", "tcp://10.0.0.1:8786"


def test_what_is_missing_is_named() -> None:
    gpu, cpu = {"GPU": 1.0}, {"CPU": 2.0}
    assert lacking(NEAR, [gpu, cpu], {"GPU": 2}) == f"no dask worker at {NEAR} offers GPU=2 (they offer GPU=1, CPU=2)"
    assert lacking(NEAR, [{}], {"GPU": 2}).endswith("(they offer nothing)")
    assert lacking(NEAR, [], gpu) == lacking(NEAR, [cpu], {}) == f"no worker has come to the dask scheduler at {NEAR}"


@pytest.mark.parametrize("address", [NEAR, "tcp://[::1]:8786", "tcp://localhost:8786"])
def test_a_worker_for_a_scheduler_here_listens_here(address: str) -> None:
    """tests/dask_processes.py starts its own with these words, and looks where they listen."""
    command = f"dask worker {address} {' '.join(HERE)} --nthreads 1"
    assert how_to_start(address, {}) == f"start some by `{command}`"
    assert how_to_start(address, {"GPU": 1.0, "CPU": 8.0}) == f'start one by `{command} --resources "GPU=1, CPU=8"`'


def test_a_worker_for_another_scheduler() -> None:
    assert "--host ITS_ADDRESS --dashboard-address 127.0.0.1:0" in how_to_start(FAR, {})
    assert "--tls-cert FILE" in how_to_start("tls://far:8786", {}) and "--tls" not in how_to_start(NEAR, {})


def test_the_docs_start_what_listens_here() -> None:
    """With the words of tests/dask_processes.py, which looks where what it starts listens."""
    lines = (DOCS / "scaling.md").read_text().splitlines()
    started = [line for line in lines if line.startswith(("dask scheduler ", "dask worker "))]
    assert len(started) == 2
    for line in started:
        assert all(f" {option} {value} " in line for option, value in zip(HERE[::2], HERE[1::2], strict=True))
        assert "--no-dashboard" not in line
