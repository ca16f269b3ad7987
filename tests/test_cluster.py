"""`--scheduler` on real processes that nobody harms: what comes out is what comes out inline."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from operator import length_hint
from pathlib import Path

import pytest

from ser import engines
from ser.errors import SerError, WrongUse
from ser.tests.dask_processes import DaskProcesses
from ser.tests.stand_in import left_open, loaded, with_thing, worker_name
from ser.tests.stand_in_corpus import (
    contents,
    files,
    part_seconds,
    run,
    wait_for,
    write_corpus,
    writers,
)
from ser.tests.tiny_store import make_store
from ser.train.sweep.recipe import read_recipe
from ser.train.sweep.run import run_sweep
from ser.train.sweep.tasks import plan_sweep
from ser.weights.demo import write_random_checkpoint

pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """A scheduler and two workers; "b" says that it has a GPU and eight CPUs, as docs/scaling.md
    would have it.
    """
    made = DaskProcesses(tmp_path_factory.mktemp("dask"))
    file = ("--scheduler-file", str(made.folder / "scheduler.json"))
    made.scheduler(*file)
    made.worker("a", *file)
    made.worker("b", "--no-nanny", "--resources", "GPU=1 CPU=8")
    with engines.Cluster(made.address, patience=200) as waiting:
        wait_for(lambda: len(waiting.workers(anew=True)) == 2)
    yield made
    made.stop()


def test_two_workers_give_bit_for_bit_what_the_command_alone_gives(
    cluster: DaskProcesses, tmp_path: Path
) -> None:
    """Real extractors, in batches, in float32 so that nothing is rounded away, and each part's
    files as a whole.

    The command alone has as many threads as there are cores, and no variable that tells torch or
    BLAS otherwise. The worker that declares nothing writes parts too, though the other has said
    that it has CPUs. `dask scheduler --scheduler-file` wrote the file that the run goes by, and
    worker "a" came by it.
    """
    texts = [
        " ".join(["I don't know why", "you are [LAUGHTER] talking"][n % 2 :] * (1 + n))
        for n in range(6)
    ]
    corpus = write_corpus(tmp_path / "corpus", texts)
    names, words = ("hubert", "bert"), " ".join(texts).split()
    models = {
        name: str(write_random_checkpoint(tmp_path / name, name, words, hidden_size=192))
        for name in names
    }
    features = "hubert,hubert:layer=1,bert,is13,logmel"
    command = [
        "features",
        corpus,
        "--features",
        features,
        "--store",
        tmp_path / "near",
        "--dtype",
        "float32",
        "--json",
    ]
    command += [
        "--backend",
        "hdf5",
        "--batch-seconds",
        5,
        "--part-seconds",
        part_seconds(corpus, 2),
    ]
    for name, path in models.items():
        command += ["--model", f"{name}={path}"]
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    alone = json.loads(
        subprocess.check_output([sys.executable, "-m", "ser", *map(str, command)], env=free)
    )
    assert all(alone[name]["batches"] < 6 for name in models), "there are batches of several"
    file, seen = cluster.folder / "scheduler.json", dict[str, int]()
    assert cluster.address in file.read_text()
    asked = corpus, tmp_path / "far", features, 2
    options = {
        "backend": "hdf5",
        "dtype": "float32",
        "models": models,
        "device": "cpu",
        "batch_seconds": 5,
    }
    run(
        *asked,
        on_progress=lambda stage, done, total: seen.update({stage: done}),
        scheduler=str(file),
        **options,
    )
    assert seen == dict.fromkeys(("hubert", "bert", "is13", "logmel", "decode"), 6)
    assert set(writers(tmp_path / "far")) == {"a", "b"}
    assert len(contents(tmp_path / "near")) == 5 and contents(tmp_path / "far") == contents(
        tmp_path / "near"
    )
    assert files(tmp_path / "far") == files(tmp_path / "near")
    again = run(*asked, scheduler=cluster.address, **options)
    assert {facts["computed"] for facts in again.features.values()} == {0}


def test_one_run_lets_go_what_another_holds(cluster: DaskProcesses) -> None:
    """It opens it anew, and lets it go at its own end; so does a run that comes after one that was
    killed.
    """
    from distributed import Client

    def opened() -> int:
        return cluster.log.read_text().count("opened")

    with Client(cluster.address, set_as_default=False) as client:
        with engines.Cluster(cluster.address) as long:
            before = opened()
            assert len(set(long.run(with_thing, range(8)))) == opened() - before == 2
            with engines.Cluster(cluster.address) as short:
                assert len(set(short.run(with_thing, range(8)))) == 2 and opened() == before + 4
                assert set(long.run(with_thing, range(8))) and opened() == before + 4
            assert list(client.run(left_open).values()) == [0, 0]
            assert set(long.run(with_thing, range(8))) and opened() == before + 6
        assert list(client.run(left_open).values()) == [0, 0]
        closed = cluster.log.read_text().count("closed")
        killed = (
            f"import os; from ser import engines; from ser.tests.stand_in import with_thing\n"
            f"far = engines.Cluster({cluster.address!r}).__enter__()\n"
            f"list(far.run(with_thing, range(8))); os._exit(9)"
        )
        assert subprocess.run([sys.executable, "-c", killed]).returncode == 9
        assert list(client.run(left_open).values()) == [1, 1]
        with engines.Cluster(cluster.address):
            assert list(client.run(left_open).values()) == [0, 0]
        assert list(client.run(left_open).values()) == [0, 0]
        assert cluster.log.read_text().count("closed") == closed + 2


def test_resources(cluster: DaskProcesses) -> None:
    with engines.Cluster(cluster.address) as there:
        assert {"GPU": 1.0, "CPU": 8.0} in there.kinds
        assert set(there.run(worker_name, range(4), needs=lambda task: {"GPU": 1})) == {"b"}
        for needs in ({"GPU": 2}, {"TPU": 1}):
            begun = time.monotonic()
            with pytest.raises(
                WrongUse, match=rf"dask scheduler at .* has no worker with {next(iter(needs))}=\d"
            ):
                list(there.run(worker_name, range(4), needs=lambda task, needs=needs: needs))
            assert time.monotonic() - begun < 50, "it waits for none, which would take a minute"


def test_the_window_is_bounded(cluster: DaskProcesses) -> None:
    tasks = iter(range(1000))
    with engines.Cluster(cluster.address) as there:
        running = there.run(worker_name, tasks)
        for done in range(1, 9):
            next(running)
            assert 2 * 2 <= 1000 - length_hint(tasks) - done <= 4 * 2, (
                "2 to 4 tasks per thread, of 2 threads"
            )
        running.close()


def test_a_sweep_trains_on_the_workers(
    cluster: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "tiny", turns=24)
    monkeypatch.chdir(
        tmp_path
    )  # the workers stand elsewhere: relative paths must be made absolute for them
    store = next(path.parent for path in Path().rglob("manifests"))

    def sweep(out: str):
        options = {"epochs": 1, "seeds": 2, "set": ("d_model=16",), "device": "cpu"}
        return plan_sweep(read_recipe("perspective-table1", store=store, out=Path(out), **options))

    from distributed import Client

    assert len(list(run_sweep(sweep("near")))) == 4
    outcomes, held = [], []
    with Client(cluster.address, set_as_default=False) as client:
        for outcome in run_sweep(sweep("far"), scheduler=cluster.address):
            outcomes.append(outcome)
            held = list(client.run(loaded).values())
        assert (
            held and all(made <= 1 and features <= 2 for made, features in held) and (1, 2) in held
        )
        assert list(client.run(left_open).values()) == [0, 0]
    assert len(outcomes) == 4 and not any(fault for _, fault in outcomes)
    names = {path.parent.name for path in Path("near").glob("*/result.json")}
    assert (
        names == {path.parent.name for path in Path("far").glob("*/result.json")}
        and len(names) == 4
    )
    for name in names:
        near, far = (Path(out, name, "model.safetensors").read_bytes() for out in ("near", "far"))
        assert near == far
    assert list(run_sweep(sweep("far"), scheduler=cluster.address)) == []


def test_a_worker_with_another_ser_is_refused(cluster: DaskProcesses) -> None:
    """Whatever the task is: another version may compute other numbers."""
    with engines.Cluster(cluster.address) as connected, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ser.engines.cluster.version", lambda _: "9.9")
        with pytest.raises(SerError, match=r"worker has ser .*, and this command has ser 9\.9"):
            list(connected.run(worker_name, range(2)))


def test_a_port_that_never_speaks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, as a hung scheduler does: dask itself would wait for ever."""
    monkeypatch.setattr("ser.engines.cluster.CONNECT_SECONDS", 0.5)
    begun = time.monotonic()

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SerError, match=r"scheduler answers at .*no answer within 1 s"):
            engines.Cluster(address).__enter__()

    assert time.monotonic() - begun < 20


def test_something_else_or_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client

    connect = Client.__init__

    def soon(client: Client, address: str, timeout: str, **how: object) -> None:
        connect(client, address, timeout="1s", **how)

    monkeypatch.setattr(Client, "__init__", soon)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            with server.accept()[0] as there:
                there.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)

        answering = threading.Thread(target=answer)
        answering.start()
        with (
            pytest.raises(SerError, match="no dask scheduler answers"),
            engines.Cluster(f"tcp://127.0.0.1:{port}"),
        ):
            pass
        answering.join()
    with (
        pytest.raises(SerError, match="no dask scheduler answers"),
        engines.Cluster("tcp://127.0.0.1:1"),
    ):
        pass
