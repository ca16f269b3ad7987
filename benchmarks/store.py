"""The store against one packed .npy, copied from a memory map: the fastest way there is, and
without any checks.

Wall time, since the store reads with threads. The page cache is warm; each way fills memory of its
own.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from ser.benchmarks.compare import compare
from ser.cache import blocks
from ser.cache.feature import Feature
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.corpus.manifest import Manifest

BACKENDS = ("zarr", "hdf5")
# IEMOCAP's lengths, 0.6 to 34 s, mostly short: frames of 20 ms. The second is is13's shape.
SHAPES = {
    "hubert, 768 × float16": (
        np.random.default_rng(0).gamma(2.2, 100, 700).clip(30, 1700).astype(int),
        768,
        "float16",
    ),
    "is13, 6373 × float32": (np.ones(6000, int), 6373, "float32"),
}


def cases(rounds: int) -> list[dict[str, Any]]:
    """The rows of `make bench` for the store."""
    with tempfile.TemporaryDirectory(prefix="ser-bench-") as folder:
        rows = []
        for name, (lengths, dim, dtype) in SHAPES.items():
            rows += _shape(Path(folder) / dtype, name, lengths, dim, dtype, rounds)
        return rows


def _shape(
    folder: Path, name: str, lengths: npt.NDArray[Any], dim: int, dtype: Any, rounds: int
) -> list[dict[str, Any]]:
    manifest, features = _write(folder, lengths, dim, dtype)
    memory = features["zarr"].load(manifest)
    np.save(folder / "packed.npy", memory.values)
    rows = []
    for backend, feature in features.items():
        what = f"store, {backend}, {name}"
        rows.append(
            _compare(
                f"{what}: load all, checked",
                _copy(folder),
                partial(feature.load, manifest),
                0.6,
                rounds,
            )
        )
        rows.append(
            _compare(
                f"{what}: load all, checks off",
                _copy(folder),
                _unchecked(feature, manifest),
                None,
                rounds,
            )
        )
        rows.append(_one_utterance(what, feature, manifest))
        rows.append(_size(what, feature, memory.values.nbytes))
    random = np.random.default_rng(1)
    order = random.permutation(len(memory))
    offsets, plain = memory.offsets, np.load(folder / "packed.npy")

    def batches(take: Callable[[int], npt.NDArray[Any]]) -> None:
        for start in range(0, len(order), 32):
            np.concatenate([take(i) for i in order[start : start + 32]])

    rows.append(
        _compare(
            f"store, {name}: batches of 32 from memory",
            lambda: batches(lambda i: plain[offsets[i] : offsets[i + 1]]),
            lambda: batches(lambda i: memory[i]),
            0.9,
            rounds,
            time.process_time,
        )
    )
    return rows


def _compare(
    what: str,
    plain: Callable[[], Any],
    ours: Callable[[], Any],
    target: float | None,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    for way in (plain, ours):
        way()  # fills the page cache
    unit = "s" if clock is time.perf_counter else "s CPU"
    # Rounds are short: many of them find a moment when nobody else uses the machine's cores.
    return compare(what, plain, ours, target, 5 * max(rounds, 3), clock, unit)


def _write(
    folder: Path, lengths: npt.NDArray[Any], dim: int, dtype: Any
) -> tuple[Manifest, dict[str, Feature]]:
    """A store with the same feature in each backend, parts cut from the length-sorted manifest as
    extraction does.
    """
    store = open_store(folder / "store", create=True)
    ids = [f"utterance-{i:05d}" for i in range(len(lengths))]
    manifest = Manifest.from_rows(
        "bench", [{"id": id_, "audio_sha256": f"{i:064x}"} for i, id_ in enumerate(ids)]
    )
    store.put_manifest(manifest)
    digests = manifest.inputs("audio")
    level = "utterance" if lengths.max() == 1 else "frame"
    random = np.random.default_rng(2)
    order = np.argsort(-lengths, kind="stable")
    features = {b: store.add(Spec(b, "audio", level, dim, dtype, "bench", 1)) for b in BACKENDS}  # type: ignore[arg-type]
    per_part = np.searchsorted(
        np.cumsum(lengths[order]), np.arange(30_000, lengths.sum() + 30_000, 30_000)
    )
    for part in np.split(order, np.unique(per_part[per_part < len(order)])):
        arrays = [random.standard_normal((lengths[i], dim), np.float32).astype(dtype) for i in part]
        rows = PartRows("bench", [ids[i] for i in part], [digests[i] for i in part], arrays)
        for backend, feature in features.items():
            publish_part(feature, rows, backend)
    return manifest, features


def _copy(folder: Path) -> Callable[[], npt.NDArray[Any]]:
    def copy() -> npt.NDArray[Any]:
        mapped = np.load(folder / "packed.npy", mmap_mode="r")
        out = np.empty(mapped.shape, mapped.dtype)
        out[:] = mapped
        return out

    return copy


def _unchecked(feature: Feature, manifest: Manifest) -> Callable[[], Any]:
    """The same reading, believing every checksum: what the checks cost is the difference."""

    def load() -> Any:
        with mock.patch.object(blocks, "check_block", lambda *_: None):
            return feature.load(manifest)

    return load


def _one_utterance(what: str, feature: Feature, manifest: Manifest) -> dict[str, Any]:
    """The median of 200 utterances at random, against 1.5 ms."""
    feature[manifest.ids[0]]
    costs = []
    for row in np.random.default_rng(3).integers(0, len(manifest), 200):
        start = time.perf_counter()
        feature[manifest.ids[row]]
        costs.append(1000 * (time.perf_counter() - start))
    median = float(np.median(costs))
    return {
        "what": f"{what}: one utterance (plain = the allowance)",
        "plain": 1.5,
        "ours": median,
        "unit": "ms",
        "ratio": 1.5 / median,
        "target": 1.0,
    }


def _size(what: str, feature: Feature, raw: int) -> dict[str, Any]:
    held = sum(path.stat().st_size for path in feature.path.rglob("*") if path.is_file())
    return {
        "what": f"{what}: size on disk",
        "plain": raw / 1e6,
        "ours": held / 1e6,
        "unit": "MB",
        "ratio": raw / held,
        "target": 0.98,  # size ≤ 1.02 × the raw bytes
    }
