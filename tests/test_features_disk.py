"""A disk that fills up on the way: one sentence, and nothing lost."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result

from ser.cache.store import open_store
from ser.cache.transfer import export
from ser.cache.verify import verify
from ser.errors import StoreError
from ser.extract.run import ExtractionConfig, extract, plan
from ser.tests.command_line import ser
from ser.tests.stand_in_corpus import write_corpus
from ser.tests.store_samples import sample_store, spec_of

RUNS = Path(__file__).parent / "fixtures" / "runs-v1" / "06ced0fd35029b43"
UTTERANCES = 12
OPTIONS = {"features": "logmel", "dtype": "float32", "part_seconds": 4.0}  # parts of 128 KB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own, of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve utterances of two seconds: 0.77 MB of log-mel."""
    return write_corpus(tmp_path, [None] * UTTERANCES, [2.0] * UTTERANCES)


def ser_features(corpus: Path, store: Path, backend: str) -> Result:
    options = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ser("features", corpus, "--store", store, "--backend", backend, *options)


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_disk_that_fills_up_on_the_way(corpus: Path, disk: Path, backend: str) -> None:
    store = disk / "store"
    made = plan(ExtractionConfig(corpus, store=store, backend=backend, **OPTIONS))  # type: ignore[arg-type]
    status = os.statvfs(disk)
    (disk / "another").write_bytes(bytes(status.f_bavail * status.f_frsize - 450_000))  # somebody else's file
    with pytest.raises(
        StoreError, match=r"disk is full \(0\.1\d MB needed, 0\.\d\d MB free\).*what is published stays"
    ):
        extract(made)
    opened = open_store(store)
    feature, manifest = opened["logmel"], opened.manifest()
    there = sorted(set(range(UTTERANCES)) - set(feature.missing(manifest)))
    assert 0 < len(there) < UTTERANCES and not list((store / "tmp").iterdir())
    kept = {path: path.stat().st_ino for path in feature.path.rglob("part.json")}
    before = feature.load(manifest, there)

    again = ser_features(corpus, store, backend)
    assert again.exit_code == 1 and again.stderr.startswith("ser: ") and again.stderr.count("\n") == 1
    with pytest.raises(StoreError, match="disk is full"):
        for version in range(50):
            opened.add(spec_of(version=version, provenance={"text": "x" * 100_000}))
    (disk / "another").unlink()
    done = ser_features(corpus, store, backend)
    assert done.exit_code == 0, done.output
    assert open_store(store)["logmel"].complete(manifest) and not [one for one in verify(opened) if one.problem]
    assert {path: path.stat().st_ino for path in kept} == kept, "a published part was written again"
    assert open_store(store)["logmel"].load(manifest, there).values.tobytes() == before.values.tobytes()


def test_a_report_on_a_full_disk_leaves_the_old_one(disk: Path) -> None:
    (disk / "report").write_bytes(b"old" * 1000)
    status = os.statvfs(disk)
    (disk / "another").write_bytes(bytes((status.f_bavail - 1) * status.f_frsize))
    for form in ("html", "latex", "markdown", "csv"):
        done = ser("report", RUNS, f"--{form}", disk / "report")
        assert done.exit_code == 1 and "wrote" not in done.stdout
        assert re.search(r"disk is full \(.* free\) while writing report, which is as it was; free some", done.stderr)
        assert (disk / "report").read_bytes() == b"old" * 1000 and len(list(disk.iterdir())) == 2


def test_an_export_on_a_full_disk_is_not_there(tmp_path: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=100k", str(disk)], check=True)
    _, feature, manifest, _ = sample_store(tmp_path / "s", "zarr", dim=800, dtype="float32")
    for suffix in ("h5", "zarr", "npz", "safetensors"):
        with pytest.raises(StoreError, match=r"disk is full .*; free some space and run the same command"):
            export(feature, manifest, disk / f"x.{suffix}")
        assert not list(disk.iterdir())
