"""`--scheduler` with processes that die, freeze and wake.

Nothing is lost, nothing is twice, nothing is wrong.
"""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ser.cache.store import open_store
from ser.disk.locks import locked
from ser.engines import Cluster
from ser.errors import SerError, WrongUse
from ser.extract.run import ExtractionStopped, extract
from ser.tests.dask_processes import DaskProcesses, listening, send, tree, worker_of, workers_of
from ser.tests.stand_in import with_thing, worker_name
from ser.tests.stand_in_corpus import (
    contents,
    parts,
    planned,
    run,
    ser_features,
    slow_texts,
    wait_for,
    write_corpus,
)
from ser.tests.tiny_store import make_store
from ser.train.sweep.recipe import read_recipe
from ser.train.sweep.run import run_sweep
from ser.train.sweep.tasks import plan_sweep

# A worker that is silent; dask's own are 5 minutes.
MISSED_SOON = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "3s"}
pytest.importorskip("distributed")


@contextlib.contextmanager
def meanwhile(harm: Callable[[], None]) -> Iterator[None]:
    """In the context `harm` runs in a thread; at its end both are done."""
    harming = threading.Thread(target=harm)
    harming.start()
    try:
        yield
    finally:
        harming.join()


def with_waits(count: int, *numbers: int) -> list[str]:
    """Texts of one length, at these numbers such as the stand-in waits at."""
    texts = []
    for number in range(count):
        mark = "wait" if number in numbers else "stay"
        texts.append(f"words {number:03d} [{mark}]")

    return texts


def test_workers_die_and_freeze_and_nothing_is_lost_or_twice(
    processes: DaskProcesses, tmp_path: Path
) -> None:
    # Each part waits in its middle.
    corpus = write_corpus(tmp_path / "corpus", with_waits(20, *range(2, 20, 4)))
    run(corpus, tmp_path / "near")
    processes.environment |= MISSED_SOON
    processes.scheduler()
    nanny = processes.worker("killed")
    frozen = processes.worker("frozen", "--no-nanny")
    far = tmp_path / "far"

    def computed(pid: int) -> int:
        return processes.log.read_text().count(f"computed {pid}\n")

    def both_are_in_a_part() -> bool:
        worker = worker_of(nanny)
        return worker is not None and computed(worker.pid) == computed(frozen.pid) == 2

    def harm() -> None:
        wait_for(both_are_in_a_part)
        frozen.send_signal(signal.SIGSTOP)
        worker = worker_of(nanny)
        worker.kill()
        processes.go.touch()

    with meanwhile(harm):
        summary = run(corpus, far, scheduler=processes.address)
    assert summary.features["standin"]["rows"] == 20 and summary.whole
    before = parts(far)
    whole = contents(tmp_path / "near")

    # It goes on with a lease that another has fulfilled.
    frozen.send_signal(signal.SIGCONT)
    wait_for(lambda: computed(frozen.pid) == 4)
    time.sleep(1)
    # On a busy machine it may still write what nobody needs.
    wait_for(lambda: not list((far / "tmp").iterdir()))
    assert contents(far) == whole
    assert parts(far) == before

    opened = [line for line in processes.log.read_text().splitlines() if line.startswith("opened")]
    assert len(opened) == len(set(opened)) >= 3, (
        "each process opens the extractor once, also the one that came later"
    )


@pytest.mark.slow
def test_what_a_killed_command_left_behind_counts(processes: DaskProcesses, tmp_path: Path) -> None:
    """The command is killed, and run again while its worker still publishes."""
    # It waits at the second of the second part.
    corpus = write_corpus(tmp_path / "corpus", with_waits(12, 3))
    far = tmp_path / "far"
    processes.scheduler()
    processes.worker("a", "--no-nanny")
    command = ser_features(corpus, far, 2, "--scheduler", processes.address)

    def done() -> int:
        return processes.log.read_text().count("computed")

    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # One part is there, and the worker is in the middle of the next.
    wait_for(lambda: done() == 3)
    killed.kill()
    killed.wait()
    again = planned(corpus, far, per_part=2, scheduler=processes.address)
    seen: list[tuple[int, int]] = []

    def goes_on() -> None:
        # The command begins meanwhile.
        time.sleep(1)
        processes.go.touch()

    with meanwhile(goes_on):
        summary = extract(again, lambda stage, done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {10}
    assert seen[-1] == (10, 10)
    assert summary.features["standin"]["computed"] == 8, (
        "two of the ten were published by what the dead one left"
    )
    assert done() == 12, "nothing twice"
    assert len(contents(far)) == 1


@pytest.mark.slow
def test_the_scheduler_dies_and_the_command_runs_again(
    processes: DaskProcesses, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus", with_waits(10, 3))
    far = tmp_path / "far"
    scheduler = processes.scheduler()
    processes.worker("a", "--no-nanny")

    def harm() -> None:
        wait_for(lambda: parts(far))
        scheduler.kill()

    with (
        meanwhile(harm),
        pytest.raises(SerError, match="is gone; what was finished is kept") as fault,
    ):
        run(corpus, far, per_part=2, scheduler=processes.address)
    assert "\n" not in str(fault.value)
    there = parts(far)
    assert there
    summary = run(corpus, far, per_part=2)
    assert summary.features["standin"]["rows"] == 10
    assert 0 < summary.features["standin"]["computed"] < 10
    assert there.items() <= parts(far).items()
    run(corpus, tmp_path / "near", per_part=2)
    assert contents(far) == contents(tmp_path / "near")


def test_a_scheduler_that_freezes_is_told(
    processes: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections stay open, and nothing comes: dask itself would wait for ever."""
    monkeypatch.setattr("ser.engines.cluster.POLL_SECONDS", 0.2)
    corpus = write_corpus(tmp_path / "corpus", with_waits(10, 3))
    store = tmp_path / "far"
    scheduler = processes.scheduler()
    processes.worker("a", "--no-nanny")
    with Cluster(processes.address) as cluster:
        wait_for(lambda: cluster.workers(anew=True))

    def harm() -> None:
        wait_for(lambda: parts(store))
        scheduler.send_signal(signal.SIGSTOP)

    with (
        meanwhile(harm),
        pytest.raises(SerError, match="is silent for 6 s; what was finished is kept") as fault,
    ):
        run(corpus, store, per_part=2, scheduler=processes.address, timeout=6.0)

    assert "\n" not in str(fault.value)
    assert parts(store)


def test_what_kills_its_worker_is_named(tmp_path: Path) -> None:
    """The command itself, on two workers: one utterance kills each that touches it."""
    corpus = write_corpus(tmp_path / "corpus", ["one two three", "[kill] me", "this is [bad]"])
    environment = {**os.environ, "SER_STAND_IN_LOG": str(tmp_path / "log")}
    command = ser_features(
        corpus, tmp_path / "store", 1, "--scheduler", "local:2", "--on-error", "skip"
    )
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    addresses: set[str] = set()
    while process.poll() is None:
        addresses |= listening([started.pid for started in tree(process.pid)])
        time.sleep(0.2)
    told = process.stdout.read()
    assert process.returncode == 3, told
    assert "u001: the process that computes it dies, 3 times in a row" in told
    assert not any(word in told for word in ("KilledWorker", "Traceback", "Warning", "INFO"))
    store = open_store(tmp_path / "store")
    quarantined = store["standin"].quarantined(store.manifest())
    assert set(quarantined) == {"u001", "u002"}
    assert quarantined["u002"] == "it says [bad]"
    assert store["standin"].rows(store.manifest()) == 1
    assert addresses
    assert addresses <= {"127.0.0.1", "::1"}

    lines = (tmp_path / "log").read_text().splitlines()
    opened = [line for line in lines if line.startswith("opened")]
    assert len(opened) == len(set(opened)) > 3, "each process opens the extractor once"


@pytest.mark.slow
def test_the_only_worker_with_a_resource_dies_and_comes_back(
    processes: DaskProcesses, tmp_path: Path
) -> None:
    """While its nanny starts it again nobody offers what the leases ask for: that is no wrong use.

    By default, what kills it stops the run, and stays out of the quarantine.
    """
    corpus = write_corpus(tmp_path / "corpus", ["one two three", "[kill] me"])
    processes.scheduler()
    processes.worker("only", "--resources", "GPU=1 CPU=8")
    with pytest.raises(
        ExtractionStopped, match="u001: the process that computes it dies, 2 times in a row"
    ):
        run(corpus, tmp_path / "store", scheduler=processes.address)
    store = open_store(tmp_path / "store")
    assert store["standin"].quarantined(store.manifest()) == {}
    assert store["standin"].rows(store.manifest()) == 1


def test_what_is_not_there_is_waited_for(
    processes: DaskProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any worker; then the one with the GPU, killed twice, while a plain one is there."""
    monkeypatch.setattr("ser.engines.cluster.POLL_SECONDS", 0.2)
    processes.scheduler()
    with pytest.raises(SerError, match=r"has no worker; .*: start one by `dask worker tcp://127"):
        Cluster(processes.address, patience=1).__enter__()
    processes.worker("plain", "--no-nanny")
    gpu = processes.worker("gpu", "--no-nanny", "--resources", "GPU=1")
    with Cluster(processes.address) as cluster:

        def there(*names: str) -> bool:
            return {worker["name"] for worker in cluster.workers(anew=True)} == set(names)

        wait_for(lambda: there("plain", "gpu"))
        gpu.kill()
        wait_for(lambda: there("plain"))
        running = cluster.run(worker_name, range(100), needs=lambda task: {"GPU": 1})
        gpu = processes.worker("another", "--no-nanny", "--resources", "GPU=1")
        assert next(running) == "another"
        gpu.kill()
        cluster.patience = 1
        with pytest.raises(
            SerError, match="has no worker with GPU=1; what was finished is kept"
        ) as fault:
            list(running)
    assert '--resources "GPU=1"` and run again' in str(fault.value)
    assert not isinstance(fault.value, WrongUse)


def test_ctrl_c_in_a_terminal_is_one_sentence(tmp_path: Path) -> None:
    """A terminal tells every process of the group, and people press it twice.

    Also a worker hears of it that was started again.
    """
    # Of these most are never reached.
    corpus = write_corpus(tmp_path / "corpus", slow_texts(800, 0.3), [0.02] * 800)
    process = subprocess.Popen(
        ser_features(corpus, tmp_path / "store", 2, "--scheduler", "local:2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def workers() -> set[psutil.Process]:
        return set(workers_of(process.pid))

    wait_for(lambda: len(parts(tmp_path / "store")) > 1)
    first = workers()
    send(min(first, key=lambda worker: worker.pid))
    wait_for(lambda: workers() - first and len(workers()) == 2)
    there = len(parts(tmp_path / "store"))
    wait_for(lambda: len(parts(tmp_path / "store")) > there)
    left = tree(process.pid)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)

    # Half as long as all that was left.
    output, _ = process.communicate(timeout=60)
    lines = []
    for line in output.replace("\r", "\n").splitlines():
        if line and not line.startswith("standin "):
            lines.append(line)

    # Three lines say what will be computed.
    assert process.returncode == 1, output
    assert len(lines) == 4, output
    assert lines[-1] == (
        "ser: interrupted; what was finished is kept, and the same command goes on from there"
    )
    gone, alive = psutil.wait_procs(left, timeout=60)
    assert not alive and len(gone) > 2


@pytest.mark.slow
def test_what_a_lost_bundle_has_finished_is_kept(processes: DaskProcesses, tmp_path: Path) -> None:
    options = {
        "store": make_store(tmp_path / "tiny", turns=24).path,
        "epochs": 2,
        "seeds": 6,
        "set": ("d_model=16",),
        "named": ("Audio", "Text"),
    }
    sweep = plan_sweep(
        read_recipe("perspective-table1", out=tmp_path / "runs", **options), elsewhere=True
    )
    assert len({task.group for task in sweep.tasks}) == 2, "a bundle for each modality"
    processes.scheduler()
    nanny = processes.worker("gpu", "--resources", "GPU=1")
    stamps: dict[Path, int] = {}

    last = sweep.tasks[-1].run.path / "lock"
    last.parent.mkdir(parents=True)

    def results() -> list[Path]:
        return list((tmp_path / "runs").glob("*/result.json"))

    def harm() -> None:
        # Nobody trains the last run meanwhile.
        with locked(last):
            wait_for(results)
            for file in results():
                stamps[file] = file.stat().st_mtime_ns
            worker = worker_of(nanny)
            if worker is not None:
                worker.kill()

    with meanwhile(harm):
        outcomes = list(run_sweep(sweep, scheduler=processes.address))
    assert {task.name for task, _ in outcomes} == {task.name for task in sweep.tasks}
    assert len(outcomes) == 12
    assert not any(fault for _, fault in outcomes)
    assert 0 < len(stamps) < 12
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps


@pytest.mark.slow
def test_a_worker_of_local_that_freezes_is_missed() -> None:
    """After a minute, and looked at every minute; dask's own five would be too long here."""
    with Cluster("local:2") as cluster:
        running = cluster.run(with_thing, range(60))
        frozen = next(running)
        os.kill(frozen, signal.SIGSTOP)
        begun = time.monotonic()
        assert len(list(running)) == 59
        assert 2 < time.monotonic() - begun < 200


@pytest.mark.slow
def test_leases_that_dask_forgets_are_taken_anew(processes: DaskProcesses, tmp_path: Path) -> None:
    """Somebody restarts the cluster: dask cancels every task, without a fault of its own."""
    from distributed import Client

    corpus = write_corpus(tmp_path / "corpus", slow_texts(24, 0.2))
    processes.scheduler()
    processes.worker("a")

    def harm() -> None:
        wait_for(lambda: parts(tmp_path / "far"))
        with Client(processes.address, set_as_default=False) as client:
            client.restart()

    with meanwhile(harm):
        run(corpus, tmp_path / "far", scheduler=processes.address)
    run(corpus, tmp_path / "near")
    assert contents(tmp_path / "far") == contents(tmp_path / "near")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_torture(processes: DaskProcesses, tmp_path: Path, seed: int) -> None:
    """Workers killed and frozen at random, as soon as more is published.

    So it is before the end on a quiet machine too. The scheduler's own death has a test above.
    """
    processes.environment |= MISSED_SOON
    rng = random.Random(seed)
    # 40 parts.
    corpus = write_corpus(tmp_path / "corpus", slow_texts(160, 0.15))
    far = tmp_path / "far"
    over = threading.Event()
    counts = {"killed": 0, "frozen": 0}
    processes.scheduler()
    nannies = [processes.worker(f"{number}") for number in range(2)]

    def harm() -> None:
        target = 1
        while not over.wait(rng.uniform(0.1, 1)):
            # A worker that is killed while it starts takes its nanny along.
            for number, nanny in enumerate(nannies):
                if nanny.poll() is not None:
                    nannies[number] = processes.worker(f"{number}-{counts['killed']}")
            worker = worker_of(rng.choice(nannies))
            if worker is None or len(parts(far)) < target:
                continue
            target = len(parts(far)) + rng.choice((0, 2, 4))
            # By turns: by chance a run had only freezes.
            how = "frozen" if sum(counts.values()) % 3 == 2 else "killed"
            counts[how] += 1
            send(worker, signal.SIGSTOP if how == "frozen" else signal.SIGKILL)
            if how == "frozen":
                over.wait(rng.uniform(1, 6))
                send(worker, signal.SIGCONT)

    with meanwhile(harm):
        try:
            summary = run(corpus, far, scheduler=processes.address)
        finally:
            over.set()
    run(corpus, tmp_path / "near")
    assert summary.whole, counts
    assert contents(far) == contents(tmp_path / "near"), counts
    assert counts["killed"] >= 3, counts
