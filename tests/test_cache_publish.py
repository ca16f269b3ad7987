"""A part appears whole or not at all: killed writers, failing system calls, a full disk, races."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ser.cache.backends import BACKENDS
from ser.cache.feature import Feature
from ser.cache.layout import Arrays, FileContents
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.store import open_store
from ser.cache.tools.exporting import export
from ser.cache.tools.verify import verify
from ser.disk import leftovers, locks, write
from ser.disk.leftovers import remove_leftovers
from ser.disk.owner import Machine, this_machine
from ser.disk.workspace import workspace
from ser.errors import StoreError
from ser.tests.command_line import printed
from ser.tests.made_run import write_run
from ser.tests.store_samples import (
    COUNT,
    check_whole,
    manifest_of,
    new_store,
    part_rows,
    publish_missing,
    sample_store,
    spec_of,
)
from ser.train.run_folder import Run
from ser.weights.demo import write_random_checkpoint

WRITER = [sys.executable, "-m", "ser.tests.store_samples"]
MANIFEST = manifest_of(COUNT)
SPEC = spec_of("token", dim=16)


def run_writer(
    path: Path, backend: str, *more: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WRITER, str(path), backend, *more], capture_output=True, text=True, **options
    )


def check_rows(feature: Feature) -> int:
    """Each row that is there reads back bit for bit. Returns how many there are."""
    rows = sorted(set(range(COUNT)) - set(feature.missing(MANIFEST)))
    return len(check_whole(feature, MANIFEST, rows=rows))


def check_published(path: Path, said: list[str]) -> None:
    """Every part that was announced is there, and every part that is there is true."""
    try:
        store = open_store(path)
        features = store.features()
    except Exception:
        assert not said
        return

    for feature in features:
        check_rows(feature)
        assert set(said) <= {part.folder.name for part in feature.parts()}
    assert features or not said
    assert not [checked for checked in verify(store) if checked.problem]


def check_finished(path: Path) -> None:
    """The store is complete and true, each row stands in one part, and nothing is left over."""
    store = open_store(path)
    feature = store["tokens"]
    assert sum(len(part.record.ids) for part in feature.parts()) == COUNT == check_rows(feature)
    assert not [checked for checked in verify(store) if checked.problem or checked.note]
    assert not list((path / "tmp").iterdir())


# What the publish path calls; `write` and `read` also hit Python itself, which makes them the
# better test.
CALLS = [
    "openat",
    "write",
    "read",
    "fsync",
    "fdatasync",
    "rename",
    "mkdir",
    "flock",
    "close",
    "unlink",
    "newfstatat",
    "getdents64",
    "rmdir",
    "unlinkat",
    "fadvise64",
    "statx",
    "lseek",
    "fchmod",
]
FAULTS = ["ENOSPC", "EIO", "EINTR"]


def traced(
    log: Path, command: list[Any], *options: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What came of a command under strace, and strace's lines."""
    words = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", log, *options, *command]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120)
    return done, log.read_text(errors="replace").splitlines()


# A backend, a call, and how many of its occurrences fail.
FAILING_CALLS = [pytest.param("zarr", "fsync", 1)]
for _backend, _call in itertools.product(BACKENDS, CALLS):
    FAILING_CALLS.append(pytest.param(_backend, _call, 12, marks=pytest.mark.slow))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("backend", "call", "limit"), FAILING_CALLS)
def test_a_failing_system_call(tmp_path: Path, backend: str, call: str, limit: int) -> None:
    """Occurrences of one call that touch the store fail, one per run and with each fault."""
    path = tmp_path / "s"
    log = tmp_path / "strace.log"
    writer = [*WRITER, path, backend, "12"]
    done, lines = traced(log, writer, "-y", "-e", f"trace={call}")
    if done.returncode:
        pytest.skip(f"strace cannot trace here: {done.stderr.strip()[:200]}")

    # Numbered as strace's `when=` counts.
    calls = [line for line in lines if re.search(rf"\b{call}\(", line)]
    numbers = [number for number, line in enumerate(calls, 1) if str(path) in line]
    if not numbers:
        pytest.skip(f"publishing makes no {call} here")

    step = max(1, len(numbers) // limit)
    failed = 0
    for fault, number in zip(itertools.cycle(FAULTS), numbers[step // 2 :: step], strict=False):
        shutil.rmtree(path)
        injection = f"inject={call}:error={fault}:when={number}"
        done, lines = traced(log, writer, "-e", injection, "-e", f"trace={call}")

        assert done.returncode in (0, 1, 3), done
        assert done.returncode != 1 or "Error" in done.stderr
        assert done.returncode != 3 or len(done.stderr.strip().splitlines()) == 1, done.stderr
        failed += any("(INJECTED)" in line for line in lines)
        check_published(path, done.stdout.split() if done.returncode == 0 else [])

        clean = run_writer(path, backend, "12")
        assert clean.returncode == 0, (call, number, fault, clean.stderr)
        check_finished(path)
    assert failed >= 1


RACES = [pytest.param("zarr zarr hdf5", 1, id="one of each")]
for _backends in ("zarr zarr zarr", "hdf5 hdf5 hdf5", "zarr hdf5 zarr"):
    RACES.append(pytest.param(_backends, 8, id=_backends, marks=pytest.mark.slow))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("backends", "rounds"), RACES)
def test_many_writers_on_one_store(tmp_path: Path, backends: str, rounds: int) -> None:
    for number in range(rounds):
        path = tmp_path / f"s{number}"
        with ThreadPoolExecutor() as pool:
            writers = [pool.submit(run_writer, path, backend, "1") for backend in backends.split()]

        published = []
        for writer in writers:
            done = writer.result()
            assert done.returncode == 0, done
            published += done.stdout.split()
        assert len(published) == len(set(published)) == COUNT
        check_finished(path)


def test_readers_while_one_writes(tmp_path: Path) -> None:
    """Each look at the store sees whole parts, and never fewer than before."""
    path = tmp_path / "s"
    new_store(path, MANIFEST).add(SPEC)
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writer = subprocess.Popen([*WRITER, str(path), "zarr", "1", "ask"], **pipes)
    readers = [open_store(path)["tokens"] for _ in range(4)]

    before = 0
    for step in range(COUNT):
        # While it writes the next part.
        for reader in readers:
            rows = check_rows(reader)
            assert max(before, step) <= rows <= step + 1
            before = rows
        writer.stdout.readline()
        print(file=writer.stdin, flush=True)
    writer.communicate()
    assert writer.returncode == 0
    check_finished(path)


def die_in_a_workspace(store: Path) -> None:
    """A writer is killed at work."""
    child = os.fork()
    if not child:
        try:
            with workspace(store) as gone:
                (gone / "x").write_text("x")
                os._exit(9)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def make_older(path: Path, seconds: float) -> None:
    """As if it had last changed so long ago."""
    changed = time.time() - seconds
    os.utime(path, (changed, changed))


def test_what_belongs_to_the_living_stays(tmp_path: Path) -> None:
    store, *_ = sample_store(tmp_path / "s", "zarr", count=1)
    tmp = store.path / "tmp"

    # Of nobody: the lock says no owner.
    fresh = tmp / ("e" * 16)
    old = tmp / ("d" * 16)

    with workspace(store.path) as mine:
        (mine / "work").write_text("going on")
        remove_leftovers(store.path)
        assert (mine / "work").exists()
        assert mine.with_suffix(".lock").exists()

        die_in_a_workspace(store.path)
        assert len(list(tmp.iterdir())) == 4

        for folder, age in ((fresh, 0), (old, 90_000)):
            folder.mkdir()
            lock = folder.with_suffix(".lock")
            lock.touch()
            make_older(folder, age)
            make_older(lock, age)
        remove_leftovers(store.path)
        assert {path.stem for path in tmp.iterdir()} == {mine.name, fresh.name}
        assert (mine / "work").exists()

    die_in_a_workspace(store.path)
    open_store(store.path, create=True)
    assert {path.name for path in tmp.iterdir()} == {fresh.name, f"{fresh.name}.lock"}


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """A stranger's store, with a link to what is not ser's."""
    store, *_ = sample_store(tmp_path / "s", "zarr", count=1)
    photos = tmp_path / "photos"
    shutil.rmtree(store.path / "tmp")
    (store.path / "tmp").symlink_to(photos)

    deep = "a" * 16
    pipe = "b" * 16
    for name in ("2019", deep, pipe):
        (photos / name).mkdir(parents=True)
    (photos / f"{deep}.lock").write_bytes(b"[" * 1000)
    os.mkfifo(photos / f"{pipe}.lock")
    for path in photos.iterdir():
        make_older(path, 90_000)

    remove_leftovers(store.path)
    assert [path.name for path in photos.iterdir()] == ["2019"]


@pytest.mark.parametrize("host", ["another host", "the same host"])
def test_a_host_that_sees_no_locks(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host leaves what is being written; the same one deletes it, never what is published.

    The same is two mounts on one host: no rule protects the writer there, which must fail with one
    sentence.
    """
    path = tmp_path / "s"
    feature = new_store(path, MANIFEST).add(SPEC)
    is_same = host == "the same host"
    writer = threading.current_thread()
    done = threading.Event()
    said: list[str] = []

    here = this_machine()
    there = Machine("there", here.boot)
    rename = os.rename
    unlink = os.unlink

    def remove_meanwhile() -> None:
        while not done.wait(0.002):
            all_is_written = any(path.glob("tmp/*/*/part.json"))
            if all_is_written:
                remove_leftovers(path)

    def machine_of_thread() -> Machine:
        is_writer = threading.current_thread() is writer
        return here if is_same or is_writer else there

    def slow_rename(*arguments: Any) -> None:
        if threading.current_thread() is writer:
            time.sleep(0.03)
        rename(*arguments)

    def slow_unlink(*arguments: Any, **options: Any) -> None:
        time.sleep(0.01)
        unlink(*arguments, **options)

    with monkeypatch.context() as blind, ThreadPoolExecutor() as pool:
        blind.setattr(locks, "try_lock", lambda *_, **__: True)
        blind.setattr(leftovers, "this_machine", machine_of_thread)
        blind.setattr(os, "rename", slow_rename)
        blind.setattr(os, "unlink", slow_unlink)
        remover = pool.submit(remove_meanwhile)
        try:
            # One by one, so that those from before an error are kept.
            for name in publish_missing(feature, MANIFEST, "zarr"):
                said.append(name)
        except StoreError as error:
            assert is_same
            assert "\n" not in str(error)
        finally:
            done.set()
        assert not remover.exception()

    check_published(path, said)
    assert run_writer(path, "zarr", "1").returncode == 0
    check_finished(path)


def test_an_encoder_that_errs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is left out is noticed before the part appears.

    One that is another than the array's cannot be.
    """
    store, feature, _, _ = sample_store(tmp_path / "s", "hdf5", count=4, dim=1000, dtype="float32")
    honest = BACKENDS["hdf5"]

    def encode_without_last_block(arrays: Arrays) -> FileContents:
        content = honest.encode(arrays)["data.h5"]
        return {"data.h5": content[:-2]}

    lossy = honest._replace(encode=encode_without_last_block)
    monkeypatch.setitem(BACKENDS, "hdf5", lossy)
    two_blocks = np.random.default_rng(0).normal(size=(1000, 1000)).astype("f4")
    with pytest.raises(ValueError, match="add up"):
        publish_part(feature, PartRows("other", ["a"], ["d"], [two_blocks]), "hdf5", {})
    assert len(feature.parts()) == 1 and not list((store.path / "tmp").iterdir())


def test_a_disk_that_gives_back_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that goes wrong without an error is found by reading back."""
    store, feature, *_ = sample_store(tmp_path / "s", "zarr", count=4)
    honest = os.write
    other = manifest_of(4, "other")

    def write_zeros(descriptor: int, view: memoryview) -> int:
        return honest(descriptor, bytes(len(view)))

    def write_one_more(descriptor: int, view: memoryview) -> int:
        return honest(descriptor, bytes(view) + b"\0") - 1

    for lie in (write_zeros, write_one_more):
        monkeypatch.setattr(write.os, "write", lie)
        with pytest.raises(StoreError, match="the disk gave back"):
            publish_part(feature, part_rows(other, feature.spec, [0, 1]), "zarr", {})
        monkeypatch.setattr(write.os, "write", honest)
    assert len(feature.parts()) == 1 and not list((store.path / "tmp").iterdir())


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no such folder")
def test_files_in_memory_are_no_devices() -> None:
    """`/dev/fd/1` leads to what the shell has opened, which stays; `/dev/shm` is a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder, "x")
        with path.open("wb") as opened:
            inode = os.fstat(opened.fileno()).st_ino

            write.write_whole(Path(f"/dev/fd/{opened.fileno()}"), b"new")
            assert path.read_bytes() == b"new"
            assert path.stat().st_ino == inode

            write.write_whole(path, b"new")
            assert path.read_bytes() == b"new"
            assert path.stat().st_ino != inode


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="which file was synced is read from /proc")
def test_what_users_are_given_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: Any, undrawn: None
) -> None:
    _, feature, manifest, _ = sample_store(tmp_path / "s", "zarr", count=2)
    out = tmp_path / "out"
    out.mkdir()
    durable: set[Path] = set()
    sync = os.fsync

    def synced(descriptor: int) -> None:
        sync(descriptor)
        durable.add(Path(f"/proc/self/fd/{descriptor}").readlink())

    def moved(move: Callable[[Path, Path], None], source: Path, target: Path) -> None:
        if target.parent == out:
            files = [file for file in source.rglob("*") if file.is_file()] or [source]
            assert set(files) <= durable, target
            durable.discard(out)
        move(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, partial(moved, getattr(os, name)))
    for suffix in ("h5", "zarr", "npz", "safetensors"):
        export(feature, manifest, out / f"x.{suffix}")
    write_random_checkpoint(out / "weights", "bert")
    Run(out).write_json("config.json", {})
    run = write_run(tmp_path / "runs").path
    forms = ("html", "latex", "latex-all", "markdown", "csv")
    printed("report", run, *[f"--{form}={out / form}" for form in forms])
    assert out in durable, "the last name is not on disk"
    assert len(list(out.iterdir())) == 12


def test_a_tmp_on_a_disk_that_is_away_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    (store.path / "tmp").symlink_to(tmp_path / "not mounted")
    with pytest.raises(StoreError, match="No such file or directory"):
        store.put_manifest(manifest_of(2))
