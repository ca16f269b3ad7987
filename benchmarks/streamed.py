"""What `--memory` costs: an epoch read from the store, beside one with all features in memory.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.streamed

MIT on frames of 768 (made up, 150 to 350 an utterance) and tokens, of the sizes for CPUs of
docs/scaling.md (but for batches of 8) and smaller, and `audio:utterance` on vectors of 6373,
standardised; the budget is a quarter of the frames' bytes, or half of the vectors'. CPU time of all
threads, of an epoch's training and evaluation after one that warms up, the page cache warm; rounds
in turn, and of each the least. The exit code is 1 if the epoch of the larger MIT takes more than
1.25 times as long.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.tests.tiny_store import make_manifest
from ser.train.experiment import Experiment, prepare
from ser.train.fit import fit

ROUNDS = 3
LIMIT = 1.25

# Each feature's modality, level, dim and dtype.
KINDS: dict[str, Any] = {
    "hubert": ("audio", "frame", 768, "float16"),
    "is13": ("audio", "utterance", 6373, "float32"),
    "mpnet": ("text", "token", 768, "float16"),
}
# Rows of an utterance, from and below, by the level.
ROW_COUNTS = {"frame": (150, 350), "token": (5, 30), "utterance": (1, 2)}

MIT = (
    "standardise_audio=true",
    "d_model=256",
    "heads=4",
    "queries=10",
    "feed_forward=2",
    "batch_size=8",
)
SMALL = ("standardise_audio=true", "d_model=64", "heads=2", "queries=8", "batch_size=8")

# By name: features, fusion, settings, turns of a dialogue, and the budget as a share of the first
# feature's bytes.
CASES = {
    "mit": ("hubert+mpnet", "mit", MIT, 24, 1 / 4),
    "mit, small": ("hubert+mpnet", "mit", SMALL, 24, 1 / 4),
    "vectors": ("is13", "audio:utterance", ("batch_size=1",), 240, 1 / 2),
}


def write_store(folder: Path, turns: int) -> dict[str, int]:
    """Write a store of the three features, in parts of 60 utterances; the bytes of each."""
    manifest = make_manifest(turns)
    rng = np.random.default_rng(0)
    store = open_store(folder, create=True)
    store.put_manifest(manifest)

    sizes = {}
    for name, (modality, level, dim, dtype) in KINDS.items():
        feature = store.add(Spec(name, modality, level, dim, dtype, "made-up", 1))
        digests = manifest.inputs(modality)

        for part in np.array_split(np.arange(len(manifest)), len(manifest) // 60):
            ids = [manifest.ids[i] for i in part]
            inputs = [digests[i] for i in part]
            arrays = []
            for _ in part:
                count = rng.integers(*ROW_COUNTS[level])
                arrays.append(rng.normal(size=(count, dim)).astype(dtype))
            publish_part(feature, PartRows(manifest.corpus, ids, inputs, arrays))

        sizes[name] = sum(part.bytes for part in feature.parts())

    return sizes


def measure(
    features: str, fusion: str, settings: tuple[str, ...], turns: int, share: float, folder: Path
) -> dict[str, float]:
    """Seconds of CPU of an epoch, in memory and streamed with that share of the feature's bytes."""
    first, _, _ = features.partition("+")
    size = write_store(folder, turns)[first] / 1e6
    in_memory = np.inf
    streamed = np.inf

    for _ in range(ROUNDS):
        experiment = Experiment(
            features, fusion, store=folder, epochs=2, folds=1, set=settings, memory="64GB"
        )
        in_memory = min(in_memory, second_epoch(experiment, streams=False))

        experiment = Experiment(
            features,
            fusion,
            store=folder,
            epochs=2,
            folds=1,
            set=settings,
            memory=f"{size * share:.3f}MB",
        )
        streamed = min(streamed, second_epoch(experiment, streams=True))

    return {"MB": size, "in memory, s": in_memory, "streamed, s": streamed}


def second_epoch(experiment: Experiment, streams: bool) -> float:
    """Seconds of CPU of a run's second epoch; `streams` says what its memory is to bring about."""
    [job] = prepare(experiment)
    ends = []

    def note(*_: object) -> None:
        ends.append(time.process_time())

    fit(job.data, job.fold, job.config, note)
    assert any(inputs.streamed for inputs in job.data.inputs.values()) == streams
    return ends[1] - ends[0]


def main() -> int:
    """Print the table; 1 if MIT is too slow."""
    rows: list[dict[str, Any]] = []

    for name, case in CASES.items():
        with tempfile.TemporaryDirectory(prefix="ser-streamed-") as folder:
            figures = measure(*case, Path(folder) / "store")

        times = figures["streamed, s"] / figures["in memory, s"]
        rows.append({"": name, **figures, "times": times})
        print(tabulate(rows, headers="keys", floatfmt=".3g", tablefmt="github"), flush=True)

    return int(rows[0]["times"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
