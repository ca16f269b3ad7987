"""Extraction on a machine with a GPU, tried without one: stand-ins are told that they compute on it."""

import threading
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ser.cache import atomic_io, feature
from ser.cache.store import Feature, PartRows, open_store
from ser.cache.verify import verify
from ser.extract.cluster_tasks import run_on_cluster
from ser.extract.mel import MelExtractor
from ser.extract.run import ExtractionConfig, ExtractionRun, plan
from ser.extract.worker import AHEAD, GPU_WRITERS
from ser.tests.stand_in import StandInExtractor
from ser.tests.stand_in_corpus import part_seconds, write_corpus, writers
from ser.tests.store_samples import spec_of
from ser.weights.find import Checkpoint

PARTS = 16
TEXTS = [f"words {number:02d}" for number in range(PARTS)]


class StandingDisk:
    """Takes nothing before `most` parts are computed, and counts how many are at most computed and not yet written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most, self.held, self.peak, self.threads = most, 0, 0, set[int]()
        self.lock, self.goes_on = threading.Lock(), threading.Event()
        self.extract, self.publish = StandInExtractor.extract, feature.publish
        monkeypatch.setattr(StandInExtractor, "batched", True)  # as an encoder
        monkeypatch.setattr(StandInExtractor, "extract", lambda one, item: self.computed(one, item))
        monkeypatch.setattr(feature, "publish", self.written)

    def computed(self, extractor: StandInExtractor, item: str) -> list[np.ndarray]:
        with self.lock:
            self.held += 1
            self.peak = max(self.peak, self.held)
            self.threads.add(torch.get_num_threads())
            if self.held == self.most:
                self.goes_on.set()
        return self.extract(extractor, item)

    def written(self, *part: Any) -> str | None:
        assert self.goes_on.wait(30), f"no more than {self.peak} parts were computed while the disk stood still"
        name = self.publish(*part)
        with self.lock:
            self.held -= 1
        return name


def test_the_gpu_goes_on_while_the_disk_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as memory is for: no more parts are held than there are writers, and two. One torch thread in each."""
    disk = StandingDisk(monkeypatch, GPU_WRITERS + AHEAD)
    mel, threads = MelExtractor.extract, disk.threads
    monkeypatch.setattr(MelExtractor, "extract", lambda *a: threads.add(torch.get_num_threads()) or mel(*a))
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    seconds = part_seconds(corpus, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for features in ("standin", "logmel"):
            made = plan(ExtractionConfig(corpus, features, store=tmp_path / "store", part_seconds=seconds))
            with ExtractionRun(made) as run:
                run.worker.__init__(replace(run.worker.config, device="cuda", threads=2))  # type: ignore[misc]
                assert run.extract().features[features]["computed"] == PARTS
            disk.held = 0
        assert torch.get_num_threads() == 4 and threads == {1}
    finally:
        torch.set_num_threads(before)
    assert disk.peak == GPU_WRITERS + AHEAD


def test_a_dask_worker_with_a_gpu_has_several_parts_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    disk = StandingDisk(monkeypatch, 3)
    monkeypatch.setattr("ser.extract.plan.choose_device", lambda name, here=True: "cuda")
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    made = plan(ExtractionConfig(corpus, "standin", store=tmp_path / "store", part_seconds=part_seconds(corpus, 1)))
    open_store(tmp_path / "store", create=True).put_manifest(made.manifest)
    checkpoint = Checkpoint(Path("weights"), "a model", "digest")
    config = made.worker_config()
    config = replace(config, resolved=tuple(replace(one, checkpoint=checkpoint) for one in config.resolved))
    tasks = [replace(task, config=config) for task in made.tasks()]
    here = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(resources={"GPU": 1}, **here) as cluster:
        results = list(run_on_cluster(tasks, cluster.scheduler_address, False, lambda: None))
    assert sum(sum(result.computed.values()) for result in results) == PARTS == len(tasks)
    assert 3 <= disk.peak <= 4 and len(writers(tmp_path / "store")) == PARTS


def test_a_part_is_gone_over_once_to_digest_and_write_it_and_once_to_read_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the cast to the stored dtype, four passes: no array is joined, copied, or looked at again.

    Counted are the bytes that sha256, CRC-32C, `write` and numpy's checks are given, and the memory that is taken.
    What is given to both checksums and to `write` in a row lies in the processor's cache: one pass over the rows.
    """
    spec = spec_of("frame", dim=768, dtype="float16")
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(n, 768)).astype("f2") for n in (700, 300, 900, 2000, 501)]
    size = sum(one.nbytes for one in rows)
    places = [range(one.ctypes.data, one.ctypes.data + one.nbytes) for one in rows]
    given, last = Counter[str](), [0]
    monkeypatch.setattr(np, "isfinite", lambda array: given.update(checked=np.asarray(array).nbytes))

    def counted(what: str, view: Any, then: Any, *more: Any) -> Any:
        address, length = np.frombuffer(view, np.uint8).ctypes.data, len(view)
        again = address == last[0] or not any(address in place for place in places)
        given.update({what: length, "rows": 0 if again else length})
        last[0] = address
        return then(view, *more)

    class Sha256:
        def __init__(self) -> None:
            self.real = real_sha256()
            self.digest, self.hexdigest = self.real.digest, self.real.hexdigest

        def update(self, view: Sequence[int]) -> None:
            counted("sha256", view, self.real.update)

    real_sha256, real_crc, real_write = atomic_io.hashlib.sha256, atomic_io.crc32c.crc32c, atomic_io.os.write
    store = open_store(tmp_path / "store", create=True)
    made: Feature = store.add(spec)
    monkeypatch.setattr(atomic_io.hashlib, "sha256", lambda data=b"": real_sha256(data) if data else Sha256())
    monkeypatch.setattr(atomic_io.crc32c, "crc32c", lambda view, *more: counted("crc32c", view, real_crc, *more))
    monkeypatch.setattr(atomic_io.os, "write", lambda file, view: counted("write", view, lambda x: real_write(file, x)))
    tracemalloc.start()
    made.publish(PartRows("corpus", [*"abcde"], ["d"] * 5, rows, finite=True), "zarr", {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    monkeypatch.undo()
    nearly = pytest.approx(size, rel=0.02)
    assert given["rows"] == nearly and given["write"] == nearly and given["checked"] == 0
    assert given["sha256"] / 2 == nearly, "of what was written, and of what was read back"
    assert peak < size / 4 and not [one for one in verify(store) if one.problem]
