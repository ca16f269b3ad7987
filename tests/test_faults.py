"""Disks that fill up, reads and writes that fail, processes that are killed: one sentence, and
nothing lost.
"""

import ctypes
import errno
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ser.cache.store import open_store
from ser.cache.tools.exporting import export
from ser.cache.tools.verify import verify
from ser.errors import StoreError
from ser.extract.run import ExtractionConfig, extract, plan
from ser.tests.command_line import in_a_process, ser
from ser.tests.made_run import write_run
from ser.tests.stand_in_corpus import contents, parts, run, ser_features, slow_texts, write_corpus
from ser.tests.store_samples import sample_store, spec_of
from ser.tests.tiny_store import make_store

UTTERANCES = 12


# A disk that fills up
# -------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own, of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve utterances of two seconds: 0.77 MB of log-mel."""
    return write_corpus(tmp_path, [None] * UTTERANCES, [2.0] * UTTERANCES)


def test_a_disk_that_fills_up_on_the_way(corpus: Path, disk: Path, backend: str) -> None:
    store = disk / "store"
    asked = {
        "store": store,
        "backend": backend,
        "dtype": "float32",
        "part_seconds": 4.0,
    }  # parts of 128 KB
    words = [
        word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    words = ["features", corpus, "--features", "logmel", *words]
    made = plan(ExtractionConfig(corpus, "logmel", **asked))
    status = os.statvfs(disk)
    (disk / "another").write_bytes(
        bytes(status.f_bavail * status.f_frsize - 450_000)
    )  # somebody else's file
    with pytest.raises(
        StoreError,
        match=r"disk is full \(0\.1\d MB needed, 0\.\d\d MB free\).*what is published stays",
    ):
        extract(made)
    opened = open_store(store)
    feature, manifest = opened["logmel"], opened.manifest()
    there = sorted(set(range(UTTERANCES)) - set(feature.missing(manifest)))
    assert 0 < len(there) < UTTERANCES and not list((store / "tmp").iterdir())
    kept = {path: path.stat().st_ino for path in feature.path.rglob("part.json")}
    before = feature.load(manifest, there)

    again = ser(*words)
    assert (
        again.exit_code == 1 and again.stderr.startswith("ser: ") and again.stderr.count("\n") == 1
    )
    with pytest.raises(StoreError, match="disk is full"):
        for version in range(50):
            opened.add(spec_of(version=version, provenance={"text": "x" * 100_000}))
    (disk / "another").unlink()
    done = ser(*words)
    assert done.exit_code == 0, done.output
    assert open_store(store)["logmel"].complete(manifest) and not [
        one for one in verify(opened) if one.problem
    ]
    assert {path: path.stat().st_ino for path in kept} == kept, "a published part was written again"
    assert (
        open_store(store)["logmel"].load(manifest, there).values.tobytes()
        == before.values.tobytes()
    )


def test_a_report_on_a_full_disk_leaves_the_old_one(tmp_path: Path, disk: Path) -> None:
    (disk / "report").write_bytes(b"old" * 1000)
    status = os.statvfs(disk)
    (disk / "another").write_bytes(bytes(status.f_bavail * status.f_frsize))
    run = write_run(tmp_path / "runs")
    for form in ("html", "latex", "markdown", "csv"):
        done = ser("report", run.path, f"--{form}", disk / "report")
        assert done.exit_code == 1 and "wrote" not in done.stdout
        assert re.search(
            r"disk is full \(.* free\) while writing report, which is as it was; free some",
            done.stderr,
        )
        assert (disk / "report").read_bytes() == b"old" * 1000 and len(list(disk.iterdir())) == 2


def test_an_export_on_a_full_disk_is_not_there(tmp_path: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=100k", str(disk)], check=True)
    _, feature, manifest, _ = sample_store(tmp_path / "s", "zarr", dim=800, dtype="float32")
    for suffix in ("h5", "zarr", "npz", "safetensors"):
        with pytest.raises(
            StoreError, match=r"disk is full .*; free some space and run the same command"
        ):
            export(feature, manifest, disk / f"x.{suffix}")
        assert not list(disk.iterdir())


# A file system whose reads and writes come short or fail, and whose locks hold nobody off
# -----------------------------

SMALL = "--epochs 1 --folds 1 --set d_model=4 --set gru_hidden=2 --set heads=1"
COMMANDS = (
    "cache import new new.npy --modality audio --store store",
    "cache import new new.npy --modality audio --store store --backend hdf5",
    "cache verify --store store",
    "cache export bert bert.h5 --store store",
    f"train --store store --features is13 --fusion audio --out runs {SMALL}",
)
CALLS = (1, 2, 3, 5, 8, 20)  # of a command's reads or writes, the one that fails


def drive() -> None:
    """In a process with the shim, in a folder with `before` and `new.npy`: each read and write
    fails once, in each way.

    The command answers or says one sentence; then, without a fault, the store is whole and the same
    command succeeds.
    """
    shim = ctypes.CDLL(None)
    here = str(Path.cwd())

    def run(words: str) -> tuple[int, str]:
        result = ser(*words.split())
        return result.exit_code, result.output

    fired = dict.fromkeys(COMMANDS, 0)
    for command, writing, error, call in itertools.product(
        fired, (0, 1), (0, errno.EINVAL, errno.EIO), CALLS
    ):
        for made in ("store", "runs", "bert.h5"):
            shutil.rmtree(made, ignore_errors=True)
        Path("bert.h5").unlink(missing_ok=True)
        shutil.copytree("before", "store")
        shim.fail_at(here.encode(), call, writing, error)
        code, output = run(command)
        left = shim.calls_left()
        shim.fail_at(b"", 0, 0, 0)
        where = f"{'write' if writing else 'read'} {call} of {command}, errno {error}: {output}"
        assert code in (0, 1) and "unexpected error" not in output, where
        assert code == 0 or "\nser: " in f"\n{output}" or "1 bad" in output, where
        assert run("cache verify --store store")[0] == 0, where
        if (code and "import" in command) or "train" in command:
            assert run(command)[0] == 0, where
        fired[command] += left == 0
    assert min(fired.values()) > 5, fired


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler"
)
def test_each_read_and_write_fails_once(tmp_path: Path) -> None:
    shim = tmp_path / "faulty.so"
    source = Path(__file__).with_name("faulty_fs.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", source, "-o", shim, "-ldl"], check=True)
    (work := tmp_path / "work").mkdir()
    store = make_store(work / "before", turns=4)
    np.save(work / "new.npy", np.ones((len(store.manifest().ids), 3), np.float32))
    in_a_process(drive, cwd=work, LD_PRELOAD=str(shim))


# Kill -9 at random moments, and two at once on one store
# --------------------------------------------------------------


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("features", "kills"),
    [("standin,standin2", 3), pytest.param("logmel,mfcc", 200, marks=pytest.mark.slow)],
)
def test_kills_at_random_moments_cost_only_what_was_in_flight(
    tmp_path: Path, features: str, kills: int
) -> None:
    """What is published stays as it was, whichever backend wrote it; a store that is complete is
    begun anew.
    """
    corpus, store = (
        write_corpus(tmp_path / "corpus", slow_texts(20, 0.01), [1.0] * 20),
        tmp_path / "store",
    )
    run(corpus, tmp_path / "quiet", features)
    whole, dice, with_parts = contents(tmp_path / "quiet"), random.Random(kills), 0

    def start() -> subprocess.Popen[bytes]:
        options = ("--features", features, "--backend", dice.choice(("zarr", "hdf5")), "--json")
        return subprocess.Popen(ser_features(corpus, store, 4, *options), stdout=subprocess.DEVNULL)

    for _ in range(kills):
        before, more = parts(store), dice.randrange(4)
        command = start()
        while len(parts(store)) < len(before) + more and command.poll() is None:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.05)
        command.kill()
        command.wait()
        assert before.items() <= parts(store).items(), (
            "a published part is gone or was written again"
        )
        if (store / "manifests").exists():
            assert not [one for one in verify(open_store(store)) if one.problem]
        with_parts += len(parts(store)) > len(before)
        if len(parts(store)) == len(parts(tmp_path / "quiet")):
            shutil.rmtree(store)
    assert [command.wait() for command in (start(), start())] == [0, 0]
    assert contents(store) == whole and (kills < 100 or with_parts > kills / 2)
