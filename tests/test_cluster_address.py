"""Which schedulers are talked to, and what is said where workers are missing. Nothing here runs on a cluster."""

import json
import logging
from pathlib import Path

import pytest

from ser.engines.cluster import Cluster, no_worker
from ser.engines.scheduler_address import check_scheduler
from ser.errors import WrongUse
from ser.extract.run import ExtractionConfig, plan
from ser.tests.dask_processes import HERE

DOCS = Path(__file__).parent.parent / "docs"
NEAR, FAR = "tcp://127.0.0.1:8786", "tcp://10.0.0.1:8786"


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8786", "tcp://127.1.2.3:1", "tcp://[::1]:8786", "tcp://localhost:8786", "tls://far:1"]
)
def test_this_machine_and_encrypted_ones(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without a scheme it is tcp."""
    expected = address if "://" in address else f"tcp://{address}"
    assert check_scheduler(address) == expected and not caplog.records


@pytest.mark.parametrize(
    "address",
    ["tcp://10.0.0.1:8786", "tcp://0.0.0.0:8786", "tcp://127.0.0.1.evil.org:1", "tcp://127.0.0.1@10.0.0.1:1",
     "tcp://localhost.evil.org:1", "ws://10.0.0.1:1", "ucx://10.0.0.1:1", "tcp://[::]:1", "tcp://2130706433:1"],
)  # fmt: skip
def test_plain_ones_elsewhere(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WrongUse, match=r"dask runs whatever it is sent.*--insecure"):
        check_scheduler(address)
    with caplog.at_level(logging.WARNING):
        assert check_scheduler(address, insecure=True) == address and not caplog.records
        Cluster(address, insecure=True)  # who connects warns, not who asks first
    assert "dask runs whatever anyone on the network sends" in caplog.text and len(caplog.records) == 1


def test_a_scheduler_file_obeys_the_same_rule(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"type": "Scheduler", "address": "tcp://127.0.0.1:4242"}))
    assert check_scheduler(str(file)) == "tcp://127.0.0.1:4242"
    file.write_text(json.dumps({"address": "tcp://10.0.0.1:4242"}))
    with pytest.raises(WrongUse, match="--insecure"):
        check_scheduler(str(file))
    assert check_scheduler(str(file), insecure=True) == "tcp://10.0.0.1:4242"
    for text in ("{", "[]", "{}", '{"address": 3}', '{"address": "/etc/passwd"}'):
        file.write_text(text)
        with pytest.raises(WrongUse, match="not a scheduler file"):
            check_scheduler(str(file))
    with pytest.raises(WrongUse, match="No such file"):
        check_scheduler(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "foo"}, "--scheduler foo: is not an address"),
        *(({"scheduler": wrong}, "local:4") for wrong in ("local", "local:", "local:0", "local:-1", "local:many")),
        ({"scheduler": "tcp://10.0.0.1:8786"}, "--insecure"),
        ({"scheduler": "local:2", "workers": 4}, "--workers starts processes here.*give one"),
    ],
)
def test_a_wrong_one_is_refused_before_the_corpus_is_read(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(WrongUse, match=message):
        plan(ExtractionConfig(tmp_path / "no corpus", "standin", store=tmp_path / "store", **options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", [NEAR, "tcp://[::1]:8786", "tcp://localhost:8786"])
def test_a_worker_listens_no_wider_than_its_scheduler(address: str) -> None:
    """tests/dask_processes.py starts its own with these words, and looks where they listen."""
    command = f"dask worker {address} {' '.join(HERE)} --nthreads 1"
    assert no_worker(address, [], {}).endswith(f"start one by `{command}` and run again")
    resources = '--resources "GPU=1, CPU=8"'
    assert f"`{command} {resources}`" in no_worker(address, [], {"GPU": 1.0, "CPU": 8.0})
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
