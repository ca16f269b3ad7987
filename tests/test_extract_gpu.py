"""Extraction on a machine with a GPU, tried without one: stand-ins are told that they compute on
it.
"""

import os
import threading
import tracemalloc
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
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
from ser.extract.worker import GPU_WRITERS
from ser.tests.dask_processes import listening
from ser.tests.stand_in import StandInExtractor
from ser.tests.stand_in_corpus import write_corpus, writers
from ser.tests.store_samples import spec_of
from ser.weights.checkpoint import Checkpoint

TEXTS = [f"words {number:02d}" for number in range(16)]
EACH = {"part_seconds": 0.05}  # a part for each of them


class StandingDisk:
    """Takes nothing before `most` parts are computed; `peak` is how many were computed and not yet
    written, at most.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most, self.held, self.peak, self.threads = most, 0, 0, set[int]()
        self.lock, self.goes_on = threading.Lock(), threading.Event()
        self.extract, self.publish = StandInExtractor.extract, pipeline.publish_part
        monkeypatch.setattr(StandInExtractor, "batched", True)  # as an encoder
        monkeypatch.setattr(StandInExtractor, "extract", lambda one, item: self.computed(one, item))
        monkeypatch.setattr(pipeline, "publish_part", self.written)

    def computed(self, extractor: StandInExtractor, item: str) -> list[np.ndarray]:
        with self.lock:
            self.held += 1
            self.peak = max(self.peak, self.held)
            self.threads.add(torch.get_num_threads())
            if self.held == self.most:
                self.goes_on.set()
        return self.extract(extractor, item)

    def written(self, *part: Any) -> str | None:
        assert self.goes_on.wait(120), (
            f"no more than {self.peak} parts were computed while the disk stood still"
        )
        name = self.publish(*part)
        with self.lock:
            self.held -= 1
        return name


def test_the_gpu_goes_on_while_the_disk_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as memory is for: no more parts are held than there are writers, and two. One torch
    thread in each.
    """
    disk = StandingDisk(monkeypatch, GPU_WRITERS + AHEAD)
    mel, threads = MelExtractor.extract, disk.threads
    monkeypatch.setattr(
        MelExtractor, "extract", lambda *a: threads.add(torch.get_num_threads()) or mel(*a)
    )
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for features in ("standin", "logmel"):
            with ExtractionRun(
                plan(ExtractionConfig(corpus, features, store=tmp_path / "store", **EACH))
            ) as run:
                run.worker.__init__(replace(run.worker.config, device="cuda", threads=2))  # type: ignore[misc]
                assert run.extract().features[features]["computed"] == len(TEXTS)
            disk.held = 0
        assert torch.get_num_threads() == 4 and threads == {1}
    finally:
        torch.set_num_threads(before)
    assert disk.peak == GPU_WRITERS + AHEAD


def test_a_dask_worker_with_a_gpu_has_several_parts_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    disk = StandingDisk(monkeypatch, 3)
    for module in ("plan", "tasks"):
        monkeypatch.setattr(f"ser.extract.{module}.choose_device", lambda name, here=True: "cuda")
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    made = plan(ExtractionConfig(corpus, "standin", store=tmp_path / "store", **EACH))
    open_store(tmp_path / "store", create=True).put_manifest(made.manifest)
    modelled = replace(
        made.features[0], checkpoint=Checkpoint(Path("weights"), "a model", "digest")
    )
    tasks = [
        replace(task, config=replace(task.config, features=(modelled,))) for task in made.tasks()
    ]
    one = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "resources": {"GPU": 1}}
    here = {
        "worker_dashboard_address": "127.0.0.1:0",
        "scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"},
    }
    with distributed.LocalCluster(**one, **here) as cluster:
        assert listening([os.getpid()]) <= {"127.0.0.1"}
        results = list(run_on_cluster(tasks, cluster.scheduler_address, False))
    assert sum(sum(result.computed.values()) for result in results) == len(tasks) == len(TEXTS)
    assert 3 <= disk.peak <= 4 and len(writers(tmp_path / "store")) == len(TEXTS)


def test_passes_over_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cast, four. What both checksums and `write` get in a row is in the processor's
    cache: one pass.
    """
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(n, 768)).astype("f2") for n in (700, 300, 900, 2000, 501)]
    size = sum(one.nbytes for one in rows)
    places = [range(one.ctypes.data, one.ctypes.data + one.nbytes) for one in rows]
    given, last = Counter[str](), [0]
    monkeypatch.setattr(
        np, "isfinite", lambda array: given.update(checked=np.asarray(array).nbytes)
    )

    def counted(what: str, view: Any, *more: Any, then: Any) -> Any:
        address, length = np.frombuffer(view, np.uint8).ctypes.data, len(view)
        again = address == last[0] or not any(address in place for place in places)
        given.update({what: length, "rows": 0 if again else length})
        last[0] = address
        return then(view, *more)

    def sha256(data: bytes = b"") -> SimpleNamespace:
        made = real_sha256(data)
        update = partial(counted, "sha256", then=made.update)
        return SimpleNamespace(update=update, digest=made.digest, hexdigest=made.hexdigest)

    real_sha256, real_crc, real_write = (
        write.hashlib.sha256,
        blocks.crc32c.crc32c,
        write.os.write,
    )
    store = open_store(tmp_path / "store", create=True)
    made = store.add(spec_of("frame", dim=768, dtype="float16"))
    monkeypatch.setattr(write.hashlib, "sha256", sha256)
    monkeypatch.setattr(blocks.crc32c, "crc32c", partial(counted, "crc32c", then=real_crc))
    monkeypatch.setattr(
        write.os, "write", lambda file, x: counted("write", x, then=partial(real_write, file))
    )
    tracemalloc.start()
    publish_part(made, PartRows("corpus", [*"abcde"], ["d"] * 5, rows, finite=True), "zarr", {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    monkeypatch.undo()
    nearly = pytest.approx(size, rel=0.02)
    assert given["rows"] == nearly and given["write"] == nearly and given["checked"] == 0
    assert given["sha256"] / 2 == nearly, "of what was written, and of what was read back"
    assert peak < size / 4 and not [one for one in verify(store) if one.problem]
