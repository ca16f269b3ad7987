"""`--scheduler` on real processes that nobody harms: what comes out is what comes out inline."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from operator import length_hint
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser import engines
from ser.errors import SerError, WrongUse
from ser.extract.config import ExtractionConfig
from ser.extract.run import extract, plan
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


ENCODERS = ("hubert", "bert")
FEATURES = "hubert,hubert:layer=1,bert,is13,logmel"


def six_texts() -> list[str]:
    """Two sentences by turns, each time one repetition longer."""
    sentence = ["I don't know why", "you are [LAUGHTER] talking"]
    texts = []
    for number in range(6):
        parts_of_text = sentence[number % 2 :]
        texts.append(" ".join(parts_of_text * (1 + number)))
    return texts


def extract_alone(corpus: Path, store: Path, models: dict[str, str]) -> dict[str, dict[str, int]]:
    """What `ser features --json` says, in a process with a thread for each core.

    No variable tells torch or BLAS otherwise.
    """
    command = [sys.executable, "-m", "ser", "features", corpus, "--features", FEATURES]
    command += ["--store", store, "--dtype", "float32", "--json", "--backend", "hdf5"]
    command += ["--batch-seconds", 5, "--part-seconds", part_seconds(corpus, 2)]
    for name, path in models.items():
        command += ["--model", f"{name}={path}"]

    environment = {}
    for name, value in os.environ.items():
        if not name.endswith("_NUM_THREADS"):
            environment[name] = value
    return json.loads(subprocess.check_output([str(word) for word in command], env=environment))


def test_two_workers_give_bit_for_bit_what_the_command_alone_gives(
    cluster: DaskProcesses, tmp_path: Path
) -> None:
    """Real extractors, in batches, in float32 so that nothing is rounded away.

    The worker that declares nothing writes parts too, though the other has said that it has CPUs.
    `dask scheduler --scheduler-file` wrote the file that the run goes by, and worker "a" came by
    it.
    """
    texts = six_texts()
    corpus = write_corpus(tmp_path / "corpus", texts)
    words = " ".join(texts).split()
    models = {}
    for name in ENCODERS:
        folder = write_random_checkpoint(tmp_path / name, name, words, hidden_size=192)
        models[name] = str(folder)
    near = tmp_path / "near"
    far = tmp_path / "far"

    alone = extract_alone(corpus, near, models)
    for name in ENCODERS:
        assert alone[name]["batches"] < 6, "there are batches of several"

    scheduler_file = cluster.folder / "scheduler.json"
    assert cluster.address in scheduler_file.read_text()
    asked = (corpus, far, FEATURES, 2)
    options = {
        "backend": "hdf5",
        "dtype": "float32",
        "models": models,
        "device": "cpu",
        "batch_seconds": 5,
    }
    done_by_stage: dict[str, int] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        done_by_stage[stage] = done

    run(*asked, on_progress=on_progress, scheduler=str(scheduler_file), **options)

    assert done_by_stage == dict.fromkeys(("hubert", "bert", "is13", "logmel", "decode"), 6)
    assert set(writers(far)) == {"a", "b"}
    assert len(contents(near)) == 5
    assert contents(far) == contents(near)
    assert files(far) == files(near)

    again = run(*asked, scheduler=cluster.address, **options)
    for facts in again.features.values():
        assert facts["computed"] == 0


def test_segments_of_one_recording_on_two_workers(cluster: DaskProcesses, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 6 * 44100)
    sf.write(tmp_path / "long.wav", samples, 44100)
    rows = [f"long.wav,{number / 2},{number / 2 + 0.75}" for number in range(10)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["file,start,end", *rows]))

    features = "logmel,egemaps"
    near = ExtractionConfig(table, features, store=tmp_path / "near", part_seconds=2)
    extract(plan(near))
    far = replace(near, store=tmp_path / "far", scheduler=cluster.address)
    extract(plan(far))
    assert len(contents(tmp_path / "near")) == 2
    assert contents(tmp_path / "far") == contents(tmp_path / "near")
    assert files(tmp_path / "far") == files(tmp_path / "near")


def test_one_run_lets_go_what_another_holds(cluster: DaskProcesses) -> None:
    """The other opens it anew, and lets it go at its own end."""
    from distributed import Client

    def opened() -> int:
        return cluster.log.read_text().count("opened")

    with Client(cluster.address, set_as_default=False) as client:
        with engines.Cluster(cluster.address) as long:
            before = opened()
            assert len(set(long.run(with_thing, range(8)))) == 2
            assert opened() == before + 2

            with engines.Cluster(cluster.address) as short:
                assert len(set(short.run(with_thing, range(8)))) == 2
                assert opened() == before + 4
                assert set(long.run(with_thing, range(8)))
                assert opened() == before + 4
            assert list(client.run(left_open).values()) == [0, 0]

            assert set(long.run(with_thing, range(8)))
            assert opened() == before + 6
        assert list(client.run(left_open).values()) == [0, 0]


def test_a_run_lets_go_what_a_killed_one_held(cluster: DaskProcesses) -> None:
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
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


@pytest.mark.parametrize(
    ("resource", "amount"),
    [
        pytest.param("GPU", 2, id="more GPUs"),
        pytest.param("TPU", 1, id="another kind"),
    ],
)
def test_a_resource_that_no_worker_has_is_wrong_use(
    cluster: DaskProcesses, resource: str, amount: int
) -> None:
    begun = time.monotonic()

    with engines.Cluster(cluster.address) as connected:
        message = rf"dask scheduler at .* has no worker with {resource}=\d"
        with pytest.raises(WrongUse, match=message):
            list(connected.run(worker_name, range(4), needs=lambda task: {resource: amount}))

    assert time.monotonic() - begun < 50, "it waits for none, which would take a minute"


def test_the_window_is_bounded(cluster: DaskProcesses) -> None:
    tasks = iter(range(1000))
    with engines.Cluster(cluster.address) as there:
        running = there.run(worker_name, tasks)
        for done in range(1, 9):
            next(running)
            under_way = 1000 - length_hint(tasks) - done
            assert 2 * 2 <= under_way <= 4 * 2, "2 to 4 tasks per thread, of 2 threads"
        running.close()


def test_a_sweep_trains_on_the_workers(
    cluster: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "tiny", turns=24)
    # The workers stand elsewhere: relative paths must be made absolute for them.
    monkeypatch.chdir(tmp_path)
    store = next(path.parent for path in Path().rglob("manifests"))

    def sweep(out: str):
        options = {"epochs": 1, "seeds": 2, "set": ("d_model=16",), "device": "cpu"}
        options["named"] = ("Audio", "Text")
        return plan_sweep(read_recipe("perspective-table1", store=store, out=Path(out), **options))

    from distributed import Client

    assert len(list(run_sweep(sweep("near")))) == 4
    outcomes = []
    held = []
    with Client(cluster.address, set_as_default=False) as client:
        for outcome in run_sweep(sweep("far"), scheduler=cluster.address):
            outcomes.append(outcome)
            held = list(client.run(loaded).values())
        assert (1, 2) in held
        for made, features in held:
            assert made <= 1
            assert features <= 2
        assert list(client.run(left_open).values()) == [0, 0]
    assert len(outcomes) == 4
    assert not any(fault for _, fault in outcomes)
    names = {path.parent.name for path in Path("near").glob("*/result.json")}
    assert len(names) == 4
    assert {path.parent.name for path in Path("far").glob("*/result.json")} == names
    for name in names:
        near = Path("near", name, "model.safetensors").read_bytes()
        far = Path("far", name, "model.safetensors").read_bytes()
        assert near == far
    assert list(run_sweep(sweep("far"), scheduler=cluster.address)) == []


def test_a_worker_with_another_ser_is_refused(cluster: DaskProcesses) -> None:
    """Whatever the task is: another version may compute other numbers."""
    with engines.Cluster(cluster.address) as connected, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ser.engines.cluster.version", lambda _: "9.9")
        with pytest.raises(SerError, match=r"worker has ser .*, and this command has ser 9\.9"):
            list(connected.run(worker_name, range(2)))


@pytest.mark.parametrize(
    "needs",
    [pytest.param({}, id="any", marks=pytest.mark.slow), pytest.param({"GPU": 1}, id="with a GPU")],
)
def test_a_worker_is_started_as_printed(
    processes: DaskProcesses, monkeypatch: pytest.MonkeyPatch, needs: dict[str, float]
) -> None:
    processes.scheduler()
    if needs:
        processes.worker("without")
        with (
            engines.Cluster(processes.address, patience=200) as connected,
            pytest.raises(WrongUse) as refused,
        ):
            list(connected.run(worker_name, range(2), needs=lambda _: needs))
    else:
        with pytest.raises(SerError) as refused:
            engines.Cluster(processes.address, patience=0.5).__enter__()

    [command] = re.findall(r"start one by `([^`]+)`", str(refused.value))
    processes.printed(command)
    with engines.Cluster(processes.address, patience=200) as connected:
        wait_for(lambda: len(connected.workers(anew=True)) == 1 + bool(needs))
        names = list(connected.run(worker_name, range(2), needs=lambda _: needs))
    assert len(names) == 2


def test_a_port_that_never_speaks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, as a hung scheduler does: dask itself would wait for ever."""
    monkeypatch.setattr("ser.engines.cluster.CONNECT_SECONDS", 0.5)
    begun = time.monotonic()

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SerError, match=r"scheduler answers at .*no answer within 1 s"):
            engines.Cluster(address).__enter__()

    assert time.monotonic() - begun < 20


@pytest.fixture
def patient_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ser.engines.cluster.CONNECT_SECONDS", 1.0)


def test_something_else_answers(patient_for_a_second: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(SerError, match="no dask scheduler answers"):
            engines.Cluster(f"tcp://127.0.0.1:{port}").__enter__()
        answering.join()


def test_nobody_answers(patient_for_a_second: None) -> None:
    with pytest.raises(SerError, match="no dask scheduler answers"):
        engines.Cluster("tcp://127.0.0.1:1").__enter__()
