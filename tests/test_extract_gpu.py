"""Extraction on a machine with a GPU, tried without one.

Stand-ins are told that they compute on it.
"""

import os
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ser.cache import blocks
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.store import open_store
from ser.cache.tools.verify import verify
from ser.disk import write
from ser.extract import pipeline
from ser.extract.cluster import run_on_cluster
from ser.extract.mel import MelExtractor
from ser.extract.pipeline import AHEAD
from ser.extract.run import ExtractionConfig, ExtractionRun, plan
from ser.extract.tasks import ExtractionTask
from ser.extract.worker import GPU_WRITERS
from ser.tests.dask_processes import listening
from ser.tests.stand_in import StandInExtractor
from ser.tests.stand_in_corpus import write_corpus, writers
from ser.tests.store_samples import spec_of
from ser.weights.checkpoint import Checkpoint

TEXTS = [f"words {number:02d}" for number in range(16)]
# A part for each of them.
PART_SECONDS = 0.05


class StandingDisk:
    """A disk that takes nothing before `limit` parts are computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        self.limit = limit
        # How many parts are computed and not yet written: now, and at most.
        self.waiting = 0
        self.peak = 0
        # How many torch threads each part was computed with.
        self.torch_threads: set[int] = set()
        self.lock = threading.Lock()
        self.goes_on = threading.Event()

        compute = StandInExtractor.extract
        publish = pipeline.publish_part

        def extract(extractor: StandInExtractor, item: str) -> list[np.ndarray]:
            self.count_computed()
            return compute(extractor, item)

        def publish_later(*part: Any) -> str | None:
            message = f"no more than {self.peak} parts were computed while the disk stood still"
            assert self.goes_on.wait(120), message
            name = publish(*part)
            with self.lock:
                self.waiting -= 1
            return name

        # As an encoder.
        monkeypatch.setattr(StandInExtractor, "batched", True)
        monkeypatch.setattr(StandInExtractor, "extract", extract)
        monkeypatch.setattr(pipeline, "publish_part", publish_later)

    def count_computed(self) -> None:
        with self.lock:
            self.waiting += 1
            self.peak = max(self.peak, self.waiting)
            self.torch_threads.add(torch.get_num_threads())
            if self.waiting == self.limit:
                self.goes_on.set()


@pytest.fixture
def four_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_the_gpu_goes_on_while_the_disk_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, four_torch_threads: None
) -> None:
    """As long as memory is for: no more parts wait than there are writers, and two.

    Each is computed with one torch thread.
    """
    disk = StandingDisk(monkeypatch, GPU_WRITERS + AHEAD)
    compute_mel = MelExtractor.extract

    def note_threads(extractor: MelExtractor, clip: Any) -> Any:
        disk.torch_threads.add(torch.get_num_threads())
        return compute_mel(extractor, clip)

    monkeypatch.setattr(MelExtractor, "extract", note_threads)
    corpus = write_corpus(tmp_path / "corpus", TEXTS)

    for name in ("standin", "logmel"):
        config = ExtractionConfig(corpus, name, store=tmp_path / "store", part_seconds=PART_SECONDS)
        with ExtractionRun(plan(config)) as run:
            on_gpu = replace(run.worker.config, device="cuda", threads=2)
            run.worker.__init__(on_gpu)  # type: ignore[misc]
            summary = run.extract()
        assert summary.features[name]["computed"] == len(TEXTS)
        disk.waiting = 0

    assert torch.get_num_threads() == 4
    assert disk.torch_threads == {1}
    assert disk.peak == GPU_WRITERS + AHEAD


def tasks_with_a_model(corpus: Path, store: Path) -> list[ExtractionTask]:
    """The tasks of a corpus, of a feature that has a checkpoint."""
    config = ExtractionConfig(corpus, "standin", store=store, part_seconds=PART_SECONDS)
    planned = plan(config)
    open_store(store, create=True).put_manifest(planned.manifest)

    checkpoint = Checkpoint(Path("weights"), "a model", "digest")
    feature = replace(planned.features[0], checkpoint=checkpoint)
    tasks = []
    for task in planned.tasks():
        tasks.append(replace(task, config=replace(task.config, features=(feature,))))
    return tasks


def test_a_dask_worker_with_a_gpu_has_several_parts_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    disk = StandingDisk(monkeypatch, 3)
    for module in ("preparation", "tasks"):
        monkeypatch.setattr(f"ser.extract.{module}.choose_device", lambda name, here=True: "cuda")
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    tasks = tasks_with_a_model(corpus, tmp_path / "store")

    cluster_of_one = distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        resources={"GPU": 1},
        worker_dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    )
    with cluster_of_one as cluster:
        assert listening([os.getpid()]) <= {"127.0.0.1"}
        results = list(run_on_cluster(tasks, cluster.scheduler_address, False))

    assert len(tasks) == len(TEXTS)
    assert sum(sum(result.computed.values()) for result in results) == len(TEXTS)
    assert len(writers(tmp_path / "store")) == len(TEXTS)
    assert 3 <= disk.peak <= 4


class PassesOverRows:
    """Counts the bytes of rows that each step of publishing reads.

    What both checksums and `write` get in a row is in the processor's cache: of `rows`, one pass.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, arrays: list[np.ndarray]) -> None:
        self.addresses = [
            range(array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays
        ]
        self.bytes: Counter[str] = Counter()
        self.last_address = 0

        crc32c = blocks.crc32c.crc32c
        write_to_file = write.os.write

        def count_check(array: Any) -> None:
            self.bytes["checked"] += np.asarray(array).nbytes

        def count_crc32c(view: Any, *start: int) -> int:
            self.count("crc32c", view)
            return crc32c(view, *start)

        def count_write(file: int, view: Any) -> int:
            self.count("write", view)
            return write_to_file(file, view)

        monkeypatch.setattr(np, "isfinite", count_check)
        monkeypatch.setattr(write.hashlib, "sha256", self.counting_sha256(write.hashlib.sha256))
        monkeypatch.setattr(blocks.crc32c, "crc32c", count_crc32c)
        monkeypatch.setattr(write.os, "write", count_write)

    def count(self, step: str, view: Any) -> None:
        address = np.frombuffer(view, np.uint8).ctypes.data
        is_of_rows = any(address in addresses for addresses in self.addresses)
        is_in_cache = address == self.last_address
        self.last_address = address

        self.bytes[step] += len(view)
        if is_of_rows and not is_in_cache:
            self.bytes["rows"] += len(view)

    def counting_sha256(self, sha256: Callable[..., Any]) -> Callable[..., Any]:
        passes = self

        class CountingSha256:
            def __init__(self, data: bytes = b"") -> None:
                self.hash = sha256(data)
                self.digest = self.hash.digest
                self.hexdigest = self.hash.hexdigest

            def update(self, view: Any) -> None:
                passes.count("sha256", view)
                self.hash.update(view)

        return CountingSha256


def test_passes_over_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cast, four."""
    rng = np.random.default_rng(0)
    lengths = (700, 300, 900, 2000, 501)
    arrays = [rng.normal(size=(length, 768)).astype("f2") for length in lengths]
    size = sum(array.nbytes for array in arrays)
    store = open_store(tmp_path / "store", create=True)
    feature = store.add(spec_of("frame", dim=768, dtype="float16"))
    part = PartRows("corpus", [*"abcde"], ["d"] * 5, arrays, finite=True)

    passes = PassesOverRows(monkeypatch, arrays)
    tracemalloc.start()
    publish_part(feature, part, "zarr", {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    monkeypatch.undo()

    about_size = pytest.approx(size, rel=0.02)
    assert passes.bytes["rows"] == about_size
    assert passes.bytes["write"] == about_size
    assert passes.bytes["checked"] == 0
    # Of what was written, and of what was read back.
    assert passes.bytes["sha256"] / 2 == about_size
    assert peak < size / 4
    assert not [check for check in verify(store) if check.problem]
