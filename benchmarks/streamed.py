"""What `--memory` costs: an epoch with features that are read from the store, beside one with all
of them in memory.

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
from functools import partial
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

ROUNDS, MOST = 3, 1.25
KINDS: dict[str, Any] = {
    "hubert": ("audio", "frame", 768, "float16"),
    "is13": ("audio", "utterance", 6373, "float32"),
}
KINDS["mpnet"] = ("text", "token", 768, "float16")
MIT = (
    "standardise_audio=true",
    "d_model=256",
    "heads=4",
    "queries=10",
    "feed_forward=2",
    "batch_size=8",
)
SMALL = ("standardise_audio=true", "d_model=64", "heads=2", "queries=8", "batch_size=8")
CASES = {
    "mit": ("hubert+mpnet", "mit", MIT, 24, 1 / 4),
    "mit, small": ("hubert+mpnet", "mit", SMALL, 24, 1 / 4),
    "vectors": ("is13", "audio:utterance", ("batch_size=1",), 240, 1 / 2),
}


def make(folder: Path, turns: int) -> tuple[Path, dict[str, int]]:
    """A store of the three features, in parts of 60 utterances, and the bytes of each."""
    manifest, rng, sizes = make_manifest(turns), np.random.default_rng(0), dict[str, int]()
    store = open_store(folder, create=True)
    store.put_manifest(manifest)
    for name, (modality, level, dim, dtype) in KINDS.items():
        feature = store.add(Spec(name, modality, level, dim, dtype, "made-up", 1))
        most = {"frame": (150, 350), "token": (5, 30), "utterance": (1, 2)}[level]
        for part in np.array_split(np.arange(len(manifest)), len(manifest) // 60):
            ids, inputs = (
                [of_all[i] for i in part] for of_all in (manifest.ids, manifest.inputs(modality))
            )
            rows = [rng.normal(size=(rng.integers(*most), dim)).astype(dtype) for _ in part]
            publish_part(feature, PartRows(manifest.corpus, ids, inputs, rows))
        sizes[name] = sum(part.bytes for part in feature.parts())
    return folder, sizes


def note(ends: list[float], *epoch: object) -> None:
    """When an epoch ended."""
    ends.append(time.process_time())


def measure(
    features: str, fusion: str, settings: tuple[str, ...], turns: int, share: float, folder: Path
) -> dict[str, float]:
    """Seconds of CPU of an epoch, in memory and streamed with that share of the first feature's
    bytes.
    """
    store, sizes = make(folder, turns)
    size = sizes[features.partition("+")[0]] / 1e6
    least = dict.fromkeys(("in memory", "streamed"), np.inf)
    for _ in range(ROUNDS):
        for how, memory in zip(least, ("64GB", f"{size * share:.3f}MB"), strict=True):
            asked = Experiment(
                features, fusion, store=store, epochs=2, folds=1, set=settings, memory=memory
            )
            [job] = prepare(asked)
            ends = list[float]()
            fit(job.data, job.fold, job.config, partial(note, ends))
            least[how] = min(least[how], ends[1] - ends[0])
            assert any(one.streamed for one in job.data.inputs.values()) == (how == "streamed")
    return {"MB": size, **{f"{how}, s": seconds for how, seconds in least.items()}}


def main() -> int:
    """Print the table; 1 if MIT is too slow."""
    rows = list[dict[str, Any]]()
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory(prefix="ser-streamed-") as folder:
            found = measure(*case, Path(folder) / "store")
            rows.append({"": name, **found, "times": found["streamed, s"] / found["in memory, s"]})
            print(tabulate(rows, headers="keys", floatfmt=".3g", tablefmt="github"), flush=True)
    return int(rows[0]["times"] > MOST)


if __name__ == "__main__":
    sys.exit(main())
