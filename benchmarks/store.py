"""The store against one packed .npy, copied from a memory map.

That is the fastest way there is, and without any checks. Wall time, since the store reads with
threads. The page cache is warm; each way fills memory of its own.
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

from ser.benchmarks.compare import compare, row
from ser.cache import blocks
from ser.cache.feature import Feature
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.corpus.manifest import Manifest

BACKENDS = ("zarr", "hdf5")
FRAMES_PER_PART = 30_000

# Rows of each utterance, dim and dtype. The first has IEMOCAP's lengths, 0.6 to 34 s, mostly short:
# frames of 20 ms. The second is is13's shape.
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
    rows = []
    with tempfile.TemporaryDirectory(prefix="ser-bench-") as folder:
        for name, (lengths, dim, dtype) in SHAPES.items():
            rows += cases_of_shape(Path(folder) / dtype, name, lengths, dim, dtype, rounds)

    return rows


def cases_of_shape(
    folder: Path, name: str, lengths: npt.NDArray[Any], dim: int, dtype: Any, rounds: int
) -> list[dict[str, Any]]:
    """The rows of one shape: loading, one utterance, the size on disk, batches from memory."""
    manifest, features = write_features(folder, lengths, dim, dtype)
    memory = features["zarr"].load(manifest)
    packed = folder / "packed.npy"
    np.save(packed, memory.values)

    rows = []
    for backend, feature in features.items():
        what = f"store, {backend}, {name}"
        copy = partial(copy_of, packed)
        load = partial(feature.load, manifest)
        unchecked = partial(load_unchecked, feature, manifest)

        rows.append(compare_warm(f"{what}: load all, checked", copy, load, 0.6, rounds))
        rows.append(compare_warm(f"{what}: load all, checks off", copy, unchecked, None, rounds))
        rows.append(one_utterance(what, feature, manifest))
        rows.append(size_on_disk(what, feature, memory.values.nbytes))

    order = np.random.default_rng(1).permutation(len(memory))
    offsets = memory.offsets
    plain = np.load(packed)

    def batches(take: Callable[[int], npt.NDArray[Any]]) -> None:
        for start in range(0, len(order), 32):
            np.concatenate([take(i) for i in order[start : start + 32]])

    rows.append(
        compare_warm(
            f"store, {name}: batches of 32 from memory",
            lambda: batches(lambda i: plain[offsets[i] : offsets[i + 1]]),
            lambda: batches(lambda i: memory[i]),
            0.9,
            rounds,
            time.process_time,
        )
    )
    return rows


def compare_warm(
    what: str,
    plain: Callable[[], Any],
    ours: Callable[[], Any],
    target: float | None,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The row of two ways of reading, with the page cache filled."""
    plain()
    ours()

    unit = "s" if clock is time.perf_counter else "s CPU"
    # Rounds are short: many of them find a moment when nobody else uses the machine's cores.
    return compare(what, plain, ours, target, 5 * max(rounds, 3), clock, unit)


def write_features(
    folder: Path, lengths: npt.NDArray[Any], dim: int, dtype: Any
) -> tuple[Manifest, dict[str, Feature]]:
    """A store with the same feature in each backend.

    Parts are cut from the manifest sorted by length, as extraction does.
    """
    store = open_store(folder / "store", create=True)
    lines = [{"id": f"utterance-{i:05d}", "audio_sha256": f"{i:064x}"} for i in range(len(lengths))]
    manifest = Manifest.from_rows("bench", lines)
    store.put_manifest(manifest)
    digests = manifest.inputs("audio")

    level = "utterance" if lengths.max() == 1 else "frame"
    features = {}
    for backend in BACKENDS:
        spec = Spec(backend, "audio", level, dim, dtype, "bench", 1)  # type: ignore[arg-type]
        features[backend] = store.add(spec)

    random = np.random.default_rng(2)
    for part in parts_by_length(lengths):
        arrays = []
        for i in part:
            arrays.append(random.standard_normal((lengths[i], dim), np.float32).astype(dtype))
        ids = [manifest.ids[i] for i in part]
        inputs = [digests[i] for i in part]
        rows = PartRows("bench", ids, inputs, arrays)

        for backend, feature in features.items():
            publish_part(feature, rows, backend)

    return manifest, features


def parts_by_length(lengths: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The utterances of each part, the longest first."""
    order = np.argsort(-lengths, kind="stable")
    frames = np.cumsum(lengths[order])
    ends = np.searchsorted(
        frames, np.arange(FRAMES_PER_PART, lengths.sum() + FRAMES_PER_PART, FRAMES_PER_PART)
    )
    return np.split(order, np.unique(ends[ends < len(order)]))


def copy_of(packed: Path) -> npt.NDArray[Any]:
    """The array in that file, copied from a memory map."""
    mapped = np.load(packed, mmap_mode="r")
    out = np.empty(mapped.shape, mapped.dtype)
    out[:] = mapped
    return out


def load_unchecked(feature: Feature, manifest: Manifest) -> Any:
    """The same reading, believing every checksum: what the checks cost is the difference."""
    with mock.patch.object(blocks, "check_block", lambda *_: None):
        return feature.load(manifest)


def one_utterance(what: str, feature: Feature, manifest: Manifest) -> dict[str, Any]:
    """The median of 200 utterances at random, against 1.5 ms."""
    # The first one opens the feature.
    feature[manifest.ids[0]]

    milliseconds = []
    for number in np.random.default_rng(3).integers(0, len(manifest), 200):
        start = time.perf_counter()
        feature[manifest.ids[number]]
        milliseconds.append(1000 * (time.perf_counter() - start))

    median = float(np.median(milliseconds))
    return row(f"{what}: one utterance (plain = the allowance)", 1.5, median, "ms", 1.0)


def size_on_disk(what: str, feature: Feature, raw_bytes: int) -> dict[str, Any]:
    """All files of a feature, against the raw bytes: at most 1.02 times as many."""
    on_disk = sum(path.stat().st_size for path in feature.path.rglob("*") if path.is_file())
    return row(f"{what}: size on disk", raw_bytes / 1e6, on_disk / 1e6, "MB", 0.98)
