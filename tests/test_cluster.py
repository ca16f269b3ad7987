"""`--scheduler` with real processes: what comes out is what comes out inline, whoever dies meanwhile."""

import csv
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser import engines
from ser.cache.errors import SerError, WrongUse
from ser.cache.store import open_store
from ser.cache.verify import verify
from ser.extract.batching import text_seconds
from ser.extract.leases import Task, extract_part, leases, lost, split
from ser.extract.run import Request, Stopped, Summary, extract, plan
from ser.extract.work import Setup
from ser.tests.dask_processes import DaskProcesses, listening, send, tree, worker_of
from ser.tests.stand_in import loaded, worker_name
from ser.tests.tiny_store import make_store
from ser.train.recipe import read_recipe
from ser.train.sweep import plan_sweep, run_sweep
from ser.weights.find import Checkpoint

pytest.importorskip("distributed")
QUICK = {"SCHEDULER__ALLOWED_FAILURES": "1", "SCHEDULER__WORKER_TTL": "3s"}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[DaskProcesses]:
    made = DaskProcesses(tmp_path, **QUICK)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and two workers that nobody kills; "b" says that it has a GPU."""
    made = DaskProcesses(tmp_path_factory.mktemp("dask"), **QUICK)
    made.scheduler()
    made.worker("a")
    made.worker("b", "--resources", "GPU=1")
    with engines.Cluster(made.address) as waiting:
        while len(waiting._look(anew=True)) < 2:
            time.sleep(0.2)
    yield made.address
    made.stop()


def write_corpus(folder: Path, texts: list[str]) -> Path:
    """One second of noise for each transcript."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "corpus.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "audio", "text"])
        for number, text in enumerate(texts):
            sf.write(folder / f"{number}.wav", rng.normal(0, 0.1, 16000), 16000)
            writer.writerow([f"u{number:03d}", f"{number}.wav", text])
    return folder / "corpus.csv"


def slow_texts(count: int, seconds: float) -> list[str]:
    return [f"words {number:03d} [sleep {seconds}]" for number in range(count)]


def run(corpus: Path, store: Path, features: str = "standin", per_part: float = 4, **options: object) -> Summary:
    with corpus.open() as file:
        length = max(text_seconds(row["text"]) for row in csv.DictReader(file))
    asked = {"part_seconds": per_part * length * 1.01, **options}
    on_progress = asked.pop("on_progress", None)
    return extract(plan(Request(corpus, features, store=store, **asked)), on_progress)


def contents(path: Path) -> dict[str, tuple[bytes, ...]]:
    """Every row that every feature holds, and a proof that none stands twice and all files are whole."""
    store = open_store(path)
    found = {}
    for feature in store.features():
        ids = [id_ for part in feature.parts() for id_ in part.record.ids]
        assert len(ids) == len(set(ids)), "a row stands in two parts"
        packed = feature.load(store.manifest())
        found[feature.fingerprint] = (packed.values.tobytes(), packed.offsets.tobytes(), " ".join(packed.ids).encode())
    assert not [one for one in verify(store) if one.problem]
    assert not list((path / "tmp").glob("*"))
    return found


def writers(path: Path) -> list[str]:
    """The name of the worker that wrote each part."""
    parts = [part for feature in open_store(path).features() for part in feature.parts()]
    return [str(part.record.written_by["name"]) for part in parts]


def parts(path: Path) -> dict[str, int]:
    """Each published part with the inode of its record: whoever rewrites one is found out."""
    return {str(file.parent): file.stat().st_ino for file in path.glob("*/*/parts/*/part.json")}


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_two_workers_give_what_one_process_gives(cluster: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", slow_texts(12, 0.1))
    everything = "standin,standin2:shift=1,logmel"
    seen: dict[str, list[int]] = {}
    summary = run(
        *(corpus, tmp_path / "far", everything),
        per_part=2,
        scheduler=cluster,
        on_progress=lambda stage, done, total: seen.setdefault(stage, []).append(done),
    )
    assert {facts["computed"] for facts in summary.features.values()} == {12}
    assert {stage: steps[-1] for stage, steps in seen.items()} == dict.fromkeys(
        ("standin", "standin2", "logmel", "decode"), 12
    )
    assert set(writers(tmp_path / "far")) == {"a", "b"}
    run(corpus, tmp_path / "near", everything, per_part=2)
    assert contents(tmp_path / "far") == contents(tmp_path / "near")
    assert {Path(name).name for name in parts(tmp_path / "far")} == {
        Path(name).name for name in parts(tmp_path / "near")
    }
    again = run(corpus, tmp_path / "far", everything, per_part=2, scheduler=cluster)
    assert {facts["computed"] for facts in again.features.values()} == {0}


def test_an_utterance_that_cannot_be_used_is_told_as_inline(cluster: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["fine", "this is [bad]", "good"])
    with pytest.raises(Stopped, match=r"u001: it says \[bad\]"):
        run(corpus, tmp_path / "store", per_part=1, scheduler=cluster)
    summary = run(corpus, tmp_path / "store", per_part=1, scheduler=cluster, on_error="skip")
    assert summary.quarantined == {"standin": {"u001": "it says [bad]"}}


def test_resources(cluster: str) -> None:
    with engines.Cluster(cluster) as there:
        assert there.offers == {"GPU": 1.0}
        assert set(there.run(worker_name, range(4), needs=lambda task: {"GPU": 1})) == {"b"}
        for needs in ({"GPU": 2}, {"TPU": 1}):
            begun = time.monotonic()
            with pytest.raises(WrongUse, match=r"no dask worker at .* offers .*they offer GPU=1"):
                list(there.run(worker_name, range(4), needs=lambda task, needs=needs: needs))
            assert time.monotonic() - begun < 5


def test_the_window_is_bounded(cluster: str) -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield taken

    with engines.Cluster(cluster) as there:
        running = there.run(worker_name, tasks())
        for done in range(1, 9):
            next(running)
            assert taken - done <= 4 * 2, "2 to 4 tasks per thread, of 2 threads"
        running.close()


def test_a_sweep_trains_on_the_workers(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "tiny", turns=24)
    monkeypatch.chdir(tmp_path)  # the workers stand elsewhere: relative paths must be made absolute for them
    store = next(path.parent for path in Path().rglob("manifests"))

    def sweep(out: str):
        options = {"epochs": 1, "seeds": 2, "set": ("d_model=16",), "device": "cpu"}
        return plan_sweep(read_recipe("perspective-table1", store=store, out=Path(out), **options))

    assert len(list(run_sweep(sweep("near")))) == 4
    outcomes = list(run_sweep(sweep("far"), scheduler=cluster))
    assert len(outcomes) == 4 and not any(outcome.fault for outcome in outcomes)
    names = {path.parent.name for path in Path("near").glob("*/result.json")}
    assert names == {path.parent.name for path in Path("far").glob("*/result.json")} and len(names) == 4
    for name in names:
        assert (
            Path("near", name, "model.safetensors").read_bytes() == Path("far", name, "model.safetensors").read_bytes()
        )
    assert list(run_sweep(sweep("far"), scheduler=cluster)) == []
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        held = list(client.run(loaded).values())
    assert held and all(made <= 1 and features <= 2 for made, features in held) and (1, 2) in held


def test_workers_die_and_freeze_and_nothing_is_lost_or_twice(processes: DaskProcesses, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", slow_texts(28, 0.2))
    run(corpus, tmp_path / "near")
    log = tmp_path / "log"
    processes.environment["SER_STAND_IN_LOG"] = str(log)
    processes.scheduler()
    nanny, frozen = processes.worker("killed"), processes.worker("frozen", "--no-nanny")
    far = tmp_path / "far"

    def computed(pid: int) -> int:
        return log.read_text().count(f"computed {pid}\n") if log.exists() else 0

    def harm() -> None:
        wait_for(lambda: (worker := worker_of(nanny)) and computed(worker.pid) and computed(frozen.pid) % 4 == 2)
        frozen.send_signal(signal.SIGSTOP)  # in the middle of a part
        worker = worker_of(nanny)
        assert worker is not None
        worker.kill()

    harming = threading.Thread(target=harm)
    harming.start()
    summary = run(corpus, far, scheduler=processes.address)
    harming.join()
    assert summary.features["standin"]["rows"] == 28 and not summary.any_quarantined
    before, whole = parts(far), contents(tmp_path / "near")
    then = computed(frozen.pid)
    frozen.send_signal(signal.SIGCONT)  # it goes on with a lease that another has fulfilled
    wait_for(lambda: computed(frozen.pid) == then - then % 4 + 4)
    time.sleep(1)
    assert contents(far) == whole and parts(far) == before


def test_the_scheduler_dies_and_the_command_runs_again(processes: DaskProcesses, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", slow_texts(16, 0.2))
    scheduler = processes.scheduler()
    processes.worker("a")
    far = tmp_path / "far"

    def harm() -> None:
        wait_for(lambda: parts(far))
        scheduler.kill()

    harming = threading.Thread(target=harm)
    harming.start()
    with pytest.raises(SerError, match="is gone; what was finished is kept") as fault:
        run(corpus, far, per_part=2, scheduler=processes.address)
    harming.join()
    assert "\n" not in str(fault.value)
    there = parts(far)
    assert there
    processes.scheduler()
    processes.worker("b")
    summary = run(corpus, far, per_part=2, scheduler=processes.address)
    assert summary.features["standin"]["rows"] == 16 and 0 < summary.features["standin"]["computed"] < 16
    assert there.items() <= parts(far).items()
    run(corpus, tmp_path / "near", per_part=2)
    assert contents(far) == contents(tmp_path / "near")


def test_nobody_there(processes: DaskProcesses) -> None:
    processes.scheduler()
    with (
        pytest.raises(SerError, match=r"no worker has come .* in 1 s; start some by `dask worker tcp://127"),
        engines.Cluster(processes.address, patience=1),
    ):
        pass


def test_something_else_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            with server.accept()[0] as there:
                there.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(SerError, match="no dask scheduler answers"), engines.Cluster(f"tcp://127.0.0.1:{port}"):
            pass
        answering.join()


DRIVER = "import sys, ser.tests.stand_in; from ser.cli import main; main(sys.argv[1:])"


def test_what_kills_its_worker_is_found_and_named(tmp_path: Path) -> None:
    """The command itself, on two workers of its own, of which one utterance kills every one that touches it."""
    corpus = write_corpus(tmp_path / "corpus", ["one two three", "[kill] me"])
    words = ["features", corpus, "--features", "standin", "--store", tmp_path / "store", "--scheduler", "local:2"]
    environment = {**os.environ, "SER_STAND_IN_LOG": str(tmp_path / "log")}
    command = [sys.executable, "-c", DRIVER, *map(str, words), "--on-error", "skip"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    addresses: set[str] = set()
    while process.poll() is None:
        addresses |= listening([one.pid for one in tree(process.pid)])
        time.sleep(0.2)
    assert process.stdout is not None
    told = process.stdout.read()
    assert process.returncode == 3, told
    assert "u001: the process that computes it dies, 3 times in a row" in told
    assert "KilledWorker" not in told and "Traceback" not in told and "Warning" not in told
    store = open_store(tmp_path / "store")
    assert set(store["standin"].quarantined(store.manifest())) == {"u001"}
    assert store["standin"].rows(store.manifest()) == 1
    assert addresses and addresses <= {"127.0.0.1", "::1"}
    opened = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("opened")]
    assert len(opened) == len(set(opened)) > 3, "each process opens the extractor once"


def lease(corpus: Path, store: Path, features: str) -> Task:
    """All of a small corpus as one lease."""
    made = plan(Request(corpus, features, store=store, on_error="skip"))
    wanted = tuple(feature.wanted for feature in made.features)
    opened = open_store(store, create=True)
    opened.put_manifest(made.manifest)
    for one in wanted:
        opened.add(one.spec)
    setup = Setup(store, made.scan.root, made.manifest.corpus, wanted, "zarr", "cpu", 1, None, True)
    [found] = leases(setup, made.parts(), on_gpu=False)
    return found


def test_on_gpus_features_with_a_model_are_leased_apart(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc"])
    both = lease(corpus, tmp_path / "store", "standin,standin2")
    modelled = replace(both.setup.wanted[0], checkpoint=Checkpoint(Path("weights"), "a model", "digest"))
    setup = replace(both.setup, wanted=(modelled, both.setup.wanted[1]))
    gpu, cpu = leases(setup, [both.part], on_gpu=True)
    assert [list(one.part.missing) for one in (gpu, cpu)] == [[one.spec.fingerprint] for one in setup.wanted]
    assert [[one.spec for one in each.setup.wanted] for each in (gpu, cpu)] == [[one.spec] for one in setup.wanted]
    checkpoint = gpu.setup.wanted[0].checkpoint
    assert checkpoint is not None and checkpoint.path.is_absolute() and gpu.setup.store.is_absolute()
    [together] = leases(setup, [both.part], on_gpu=False)
    assert together.part == both.part


def test_a_lease_is_cut_by_utterances_then_by_features_then_not(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ["a", "bb", "ccc"])
    whole = lease(corpus, tmp_path / "store", "standin,standin2")
    pieces = split(whole)
    assert pieces is not None
    assert [[u.id for u in piece.part.utterances] for piece in pieces] == [["u002"], ["u001", "u000"]]
    by_feature = split(pieces[0])
    assert by_feature is not None and [len(piece.part.missing) for piece in by_feature] == [1, 1]
    assert split(by_feature[0]) is None
    record = lost(by_feature[0], "it kills")
    assert [q.id for [q] in record.quarantined.values()] == ["u002"]
    extract_part(by_feature[1])
    store = open_store(tmp_path / "store")
    assert [feature.quarantined(store.manifest()) for feature in (store["standin"], store["standin2"])] == [
        {"u002": "it kills"},
        {},
    ]
    # What has come into the store meanwhile, cut in whatever way, is not leased again.
    [rest] = split(whole) or []
    assert {u.id for u in rest.part.utterances} == {"u000", "u001", "u002"}
    assert sorted(map(len, rest.part.missing.values())) == [2, 3]
    extract_part(rest)
    assert split(whole) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_by_default_what_kills_its_worker_stops_the_run(processes: DaskProcesses, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [*slow_texts(8, 0), "five [kill] six", *slow_texts(3, 0.01)])
    processes.scheduler()
    processes.worker("a")
    processes.worker("b")
    with pytest.raises(Stopped, match="u008: the process that computes it dies, 2 times in a row"):
        run(corpus, tmp_path / "store", scheduler=processes.address)
    store = open_store(tmp_path / "store")
    assert store["standin"].quarantined(store.manifest()) == {} and store["standin"].rows(store.manifest()) == 11


@pytest.mark.slow
def test_leases_that_dask_forgets_are_taken_anew(processes: DaskProcesses, tmp_path: Path) -> None:
    """Somebody restarts the cluster: dask cancels every task of everyone, without a fault of its own."""
    from distributed import Client

    corpus = write_corpus(tmp_path / "corpus", slow_texts(24, 0.2))
    processes.scheduler()
    processes.worker("a")
    far = tmp_path / "far"

    def harm() -> None:
        wait_for(lambda: parts(far))
        with Client(processes.address, set_as_default=False) as client:
            client.restart()

    harming = threading.Thread(target=harm)
    harming.start()
    summary = run(corpus, far, scheduler=processes.address)
    harming.join()
    assert summary.features["standin"]["rows"] == 24
    run(corpus, tmp_path / "near")
    assert contents(far) == contents(tmp_path / "near")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_torture(processes: DaskProcesses, tmp_path: Path, seed: int) -> None:
    """Workers killed and frozen at random, the scheduler killed now and then, the command run until it is done."""
    rng = random.Random(seed)
    corpus = write_corpus(tmp_path / "corpus", slow_texts(120, 0.15))
    far, stop, counts = tmp_path / "far", threading.Event(), {"killed": 0, "frozen": 0, "schedulers": 0, "commands": 0}
    nannies: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        scheduler = processes.scheduler()
        nannies[:] = [processes.worker(f"{number}-{counts['commands']}") for number in range(2)]
        return scheduler

    def harm() -> None:
        while not stop.wait(rng.uniform(1, 4)):
            for number, nanny in enumerate(nannies):  # a worker that is killed while it starts takes its nanny along
                if nanny.poll() is not None:
                    nannies[number] = processes.worker(f"{number}-{counts['killed']}-{counts['commands']}")
            worker = worker_of(rng.choice(nannies))
            if worker is None:
                continue
            if rng.random() < 0.25:
                counts["frozen"] += 1
                send(worker, signal.SIGSTOP)
                stop.wait(rng.uniform(1, 6))
                send(worker, signal.SIGCONT)
            else:
                counts["killed"] += 1
                send(worker)

    scheduler = start()
    harming = threading.Thread(target=harm)
    harming.start()
    try:
        known: dict[str, int] = {}
        while True:
            counts["commands"] += 1
            ending = threading.Timer(rng.uniform(8, 16), scheduler.kill)
            if counts["commands"] <= 2:
                ending.start()
            try:
                summary = run(corpus, far, scheduler=processes.address)
                break
            except SerError as fault:
                assert "is gone" in str(fault) or "no worker" in str(fault) or "no dask" in str(fault), fault
            finally:
                ending.cancel()
            assert known.items() <= parts(far).items()
            known = parts(far)
            scheduler.kill()
            counts["schedulers"] += 1
            scheduler = start()
    finally:
        stop.set()
        harming.join()
    print(counts)
    run(corpus, tmp_path / "near")
    assert not summary.any_quarantined and known.items() <= parts(far).items()
    assert contents(far) == contents(tmp_path / "near")
    assert counts["killed"] > 2
