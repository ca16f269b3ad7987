"""Disks that fill up: one sentence, and nothing lost."""

import asyncio
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from ser.cache.store import open_store
from ser.cache.tools.exporting import export, write_by_chunks
from ser.cache.tools.remote import explained
from ser.cache.tools.verify import verify
from ser.disk.faults import explain_disk_errors
from ser.errors import StoreError, WrongUse
from ser.extract.run import ExtractionConfig, extract, plan
from ser.tests.command_line import ser
from ser.tests.made_run import write_run
from ser.tests.small_disk import fill, small_disk
from ser.tests.stand_in_corpus import write_corpus
from ser.tests.store_samples import sample_store, spec_of

UTTERANCES = 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own, of 4 MB."""
    with small_disk(tmp_path / "disk") as folder:
        yield folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve utterances of two seconds: 0.77 MB of log-mel."""
    return write_corpus(tmp_path, [None] * UTTERANCES, [2.0] * UTTERANCES)


def test_a_disk_that_fills_up_on_the_way(corpus: Path, disk: Path, backend: str) -> None:
    """What is published stays, and with free space the same command computes the rest."""
    store = disk / "store"
    # Parts of 128 KB.
    options = {"backend": backend, "dtype": "float32", "part_seconds": 4.0}
    words = ["features", corpus, "--features", "logmel", "--store", store, "--backend", backend]
    words += ["--dtype", "float32", "--part-seconds", 4.0]
    planned = plan(ExtractionConfig(corpus, "logmel", store=store, **options))
    another = fill(disk, but=450_000)

    sizes = r"disk is full \(0\.1\d MB needed, 0\.\d\d MB free\).*what is published stays"
    with pytest.raises(StoreError, match=sizes):
        extract(planned)

    opened = open_store(store)
    manifest = opened.manifest()
    feature = opened["logmel"]
    published = sorted(set(range(UTTERANCES)) - set(feature.missing(manifest)))
    assert 0 < len(published) < UTTERANCES
    assert not list((store / "tmp").iterdir())
    inodes = {path: path.stat().st_ino for path in feature.path.rglob("part.json")}
    before = feature.load(manifest, published)

    again = ser(*words)
    assert again.exit_code == 1
    assert again.stderr.startswith("ser: ")
    assert again.stderr.count("\n") == 1

    with pytest.raises(StoreError, match="disk is full"):
        for version in range(50):
            opened.add(spec_of(version=version, provenance={"text": "x" * 100_000}))

    another.unlink()
    done = ser(*words)
    assert done.exit_code == 0, done.output
    feature = open_store(store)["logmel"]
    assert feature.complete(manifest)
    assert not [checked for checked in verify(opened) if checked.problem]
    now = {path: path.stat().st_ino for path in inodes}
    assert now == inodes, "a published part was written again"
    after = feature.load(manifest, published)
    assert after.values.tobytes() == before.values.tobytes()


@pytest.mark.parametrize("form", ["html", "latex", "latex-all", "markdown", "csv"])
def test_a_report_on_a_full_disk_leaves_the_old_one(
    tmp_path: Path, disk: Path, form: str, undrawn: None
) -> None:
    report = disk / "report"
    report.write_bytes(b"old" * 1000)
    fill(disk)
    run = write_run(tmp_path / "runs")

    done = ser("report", run.path, f"--{form}", report)

    assert done.exit_code == 1
    assert "wrote" not in done.stdout
    message = r"disk is full \(.* free\) while writing report, which is as it was; free some"
    assert re.search(message, done.stderr)
    assert report.read_bytes() == b"old" * 1000
    assert len(list(disk.iterdir())) == 2


@pytest.mark.parametrize("suffix", ["h5", "zarr", "npz", "safetensors"])
def test_an_export_on_a_full_disk_is_not_there(tmp_path: Path, disk: Path, suffix: str) -> None:
    subprocess.run(["mount", "-o", "remount,size=100k", str(disk)], check=True)
    _, feature, manifest, _ = sample_store(tmp_path / "s", "zarr", dim=800, dtype="float32")

    message = r"disk is full .*; free some space and run the same command"
    with pytest.raises(StoreError, match=message):
        export(feature, manifest, disk / f"x.{suffix}")

    assert not list(disk.iterdir())


EXPORT = """
import sys
from pathlib import Path
from ser.cache.store import open_store
from ser.cache.tools.exporting import export
from ser.disk.faults import explain_disk_errors
from ser.errors import StoreError, WrongUse
store = open_store(Path(sys.argv[1]))
try:
    export(store["frames"], store.manifest(), Path(sys.argv[2]))
except StoreError as error:
    print(error)
"""


def test_a_zarr_export_on_a_full_disk_is_one_sentence(tmp_path: Path, disk: Path) -> None:
    """Asyncio logged a traceback for each chunk that was under way."""
    subprocess.run(["mount", "-o", "remount,size=100k", str(disk)], check=True)
    sample_store(tmp_path / "s", "zarr", dim=800, dtype="float32")
    command = [sys.executable, "-c", EXPORT, tmp_path / "s", disk / "x.zarr"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert len(done.stdout.splitlines()) == 1
    assert "disk is full" in done.stdout
    assert done.stderr == ""
    assert not list(disk.iterdir())


def test_a_zarr_export_writes_one_chunk_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way elsewhere goes on after a fault, into what is being removed."""
    rows = np.arange(90.0).reshape(45, 2)
    array = zarr.create_array(tmp_path / "x.zarr", shape=(45, 2), chunks=(4, 2), dtype="f8")
    under_way = 0
    most = 0
    put = LocalStore.set

    async def counting(self: LocalStore, key: str, value: Any) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        await put(self, key, value)
        under_way -= 1

    monkeypatch.setattr(LocalStore, "set", counting)
    write_by_chunks(array, 0, rows[:7])
    write_by_chunks(array, 7, rows[7:])

    assert most == 1
    assert np.array_equal(array[:], rows)


def test_a_full_disk_is_no_network(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left", str(tmp_path / "pub" / "x"))
    message = r"x: the disk is full while writing to pub; free some"
    with pytest.raises(StoreError, match=message), explained("pub"):
        raise full


def test_a_disk_without_inodes_is_told_from_a_full_one(corpus: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=50m,nr_inodes=60") as disk:
        config = ExtractionConfig(corpus, "logmel,mfcc", store=disk / "s", part_seconds=2.0)

        with pytest.raises(StoreError, match="no more files: its inodes are used up"):
            extract(plan(config))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(OSError(errno.EDQUOT, "Quota"), "your quota on this disk", id="quota"),
        pytest.param(OSError(errno.EFBIG, "Big"), "may not be that large", id="size of a file"),
        pytest.param(
            RuntimeError('IoError(Os { code: 28, message: "No space" })'),
            "is full",
            id="safetensors",
        ),
    ],
)
def test_each_lack_of_room_is_called_by_its_name(
    tmp_path: Path, error: Exception, message: str
) -> None:
    with pytest.raises(StoreError, match=message), explain_disk_errors("writing", tmp_path):
        raise error


def test_a_disk_where_the_bytes_would_fit_lacks_inodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free is more than is needed, though not twice as much."""
    disk = SimpleNamespace(f_bavail=20_000, f_frsize=1000, f_files=12, f_favail=10)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    needed = 12_500_000
    with (
        pytest.raises(StoreError, match="inodes"),
        explain_disk_errors("exporting", tmp_path, needed),
    ):
        raise OSError(errno.ENOSPC, "No space left")


def test_a_fault_that_is_not_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError), explain_disk_errors("writing", tmp_path):
        raise KeyError("code: 28")


def test_an_index_alone_counts_as_nothing_there(tmp_path: Path) -> None:
    """An export that was killed between its two files is run again; another's JSON file stays."""
    _, feature, manifest, _ = sample_store(tmp_path / "s", "zarr")
    file = tmp_path / "x.safetensors"
    index = tmp_path / "x.safetensors.json"
    export(feature, manifest, file)
    expected = index.read_bytes()
    file.unlink()

    export(feature, manifest, file)
    assert file.exists()
    assert index.read_bytes() == expected

    file.unlink()
    index.write_text('{"mine": 1}')
    with pytest.raises(WrongUse, match="exists already"):
        export(feature, manifest, file)
    assert index.read_text() == '{"mine": 1}'
