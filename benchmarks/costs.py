"""What training costs as work grows, with two workers, and on a store of IEMOCAP's full size.

Values are random, since they do not change the work. The full-size store takes 2.2 GB under the
temporary folder.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.benchmarks.compare import children_time, cost, row
from ser.benchmarks.iemocap_sizes import (
    LABELLED,
    LABELLED_HOURS,
    durations_of_share,
    sequence_lengths,
)
from ser.cache.feature import Feature
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.corpus.manifest import Manifest
from ser.train.config import TrainConfig
from ser.train.data.dataset import Dataset
from ser.train.data.folds import Fold
from ser.train.data.inputs import Inputs
from ser.train.data.utterances import Utterances
from ser.train.experiment import Experiment, run_experiment
from ser.train.fit import fit
from ser.train.models import FUSIONS
from ser.train.settings import parse_settings
from ser.train.train_jobs import one_thread

LABELS = ("ang", "hap", "neu", "sad")
SER = Path(sys.executable).with_name("ser")

# Of prctl(2): orphaned descendants become children of this process.
PR_SET_CHILD_SUBREAPER = 36

# Each feature's modality, level, dim and dtype.
VECTORS = {
    "is13": ("audio", "utterance", 6373, "float32"),
    "bert": ("text", "utterance", 768, "float32"),
}
SEQUENCES = {
    "hubert": ("audio", "frame", 768, "float16"),
    "mpnet": ("text", "token", 768, "float16"),
}


def cases(rounds: int) -> list[dict[str, Any]]:
    """The rows of `make bench`."""
    with tempfile.TemporaryDirectory(prefix="ser-bench-") as name, one_thread():
        folder = Path(name)
        vectors = np.ones(2000, int)
        small = write_store(folder / "small", VECTORS, dict.fromkeys(VECTORS, vectors))

        return [
            *growth(small, folder, rounds),
            *started(small, rounds),
            *workers(small, folder, rounds),
            *full_size(folder),
        ]


def growth(store: Path, folder: Path, rounds: int, *settings: str) -> list[dict[str, Any]]:
    """Four times as much work against four times the cost of it once.

    Attention compares each frame of an utterance with each: that part of the work is quadratic. At
    MSMSER's own size (`settings` changes it) it shows where utterances are longest: 1,600 frames
    are 32 s, IEMOCAP has a mean of 227.
    """
    run_numbers = count()

    def train_seeds(seeds: int) -> None:
        experiment = Experiment(
            "is13+bert",
            "lgf-add",
            store,
            folds=1,
            epochs=4,
            seeds=seeds,
            device="cpu",
            out=folder / f"runs-{next(run_numbers)}",
        )
        run_experiment(experiment)

    by_utterances = {}
    for n in (2000, 8000):
        vectors = np.ones(n, int)
        inputs = {"audio": (6373, vectors), "text": (768, vectors)}
        by_utterances[n] = made_up("lgf-add", inputs, "epochs=4")

    by_frames = {}
    for n in (100, 400, 1600):
        inputs = {"audio": (768, np.full(8, n))}
        by_frames[n] = made_up("audio:frame", inputs, "epochs=1", *settings)

    def fit_utterances(n: int) -> None:
        fit(*by_utterances[n])

    def fit_frames(n: int) -> None:
        fit(*by_frames[n])

    return [
        grow("seeds 2 → 8, lgf-add", train_seeds, 2, 8, rounds),
        grow("utterances 2,000 → 8,000, lgf-add", fit_utterances, 2000, 8000, rounds),
        grow("frames per utterance 100 → 400, MSMSER", fit_frames, 100, 400, rounds),
        grow(
            "the same 400 → 1600, where attention tells",
            fit_frames,
            400,
            1600,
            rounds,
            target=None,
        ),
    ]


def grow(
    what: str,
    work: Callable[[int], Any],
    small: int,
    large: int,
    rounds: int,
    target: float | None = 0.9,
) -> dict[str, Any]:
    """A row: the cost of `large` against that of `small` as many times as it is larger."""
    # The first one warms up.
    work(small)

    least = dict.fromkeys((small, large), float("inf"))
    for _ in range(rounds):
        for size in least:
            used = cost(partial(work, size), time.process_time)
            least[size] = min(least[size], used)

    return row(
        f"growth: {what} (plain = {large // small} × the smaller)",
        least[small] * large / small,
        least[large],
        "s CPU",
        target,
    )


def made_up(
    fusion_name: str, inputs: dict[str, tuple[int, np.ndarray]], *settings: str
) -> tuple[Dataset, Fold, TrainConfig]:
    """What `fit` takes; `inputs` gives each modality's dimension and the rows of each utterance.

    All utterances are for training, in dialogues of 40 turns.
    """
    fusion = FUSIONS[fusion_name]
    model_settings, training_settings = parse_settings(fusion, settings)

    _, lengths_of_one = next(iter(inputs.values()))
    n = len(lengths_of_one)
    random = np.random.default_rng(0)
    utterances = Utterances(
        ids=[str(i) for i in range(n)],
        labels=random.integers(4, size=n),
        classes=LABELS,
        sessions=["1"] * n,
        speakers=["1F"] * n,
        dialogues=np.arange(n) // 40,
        turns=np.arange(n) % 40,
    )

    dims = {}
    packed = {}
    for modality, (dim, lengths) in inputs.items():
        values = random.standard_normal((lengths.sum(), dim), np.float32)
        offsets = np.concatenate([[0], lengths.cumsum()])
        dims[modality] = dim
        packed[modality] = Inputs(torch.from_numpy(values), offsets)

    data = Dataset(utterances, dims, lambda: packed)
    fold = Fold("all", np.arange(n), np.arange(0), np.arange(0))
    config = TrainConfig(fusion, model_settings, training_settings, select="last")
    return data, fold, config


def started(store: Path, rounds: int) -> list[dict[str, Any]]:
    """What `ser train` does before it trains.

    Imports, loading, and the timed steps of its estimate.
    """
    command = ["train", "--features", "is13+bert", "--fusion", "lgf-add"]
    command += ["--store", str(store), "--dry-run"]
    [(_, used)] = least([partial(timed, [command])], rounds)

    what = "2,000 utterances: CPU until training starts (plain = the allowance)"
    return [row(what, 3.0, used, "s CPU", 1.0)]


def workers(store: Path, folder: Path, rounds: int, epochs: int = 100) -> list[dict[str, Any]]:
    """A sweep of four runs by two processes, against two `ser train` and against one process.

    Each `ser train` trains two of the runs. All is counted from the start of the commands to their
    end. What a second process costs more, it costs at the start, however long the sweep: a sweep of
    two epochs shows it, and so how long a sweep must be to keep within 1.08 times.
    """
    recipe = folder / "four.toml"
    recipe.write_text(
        '[[cell]]\nname = "lgf-add"\nfeatures = "is13+bert"\nfusion = "lgf-add"\nseeds = 2\n'
    )
    out_numbers = count()

    def options(epochs: int) -> list[str]:
        out = folder / f"sweep-{next(out_numbers)}"
        words = ["--store", str(store), "--folds", "2", "--epochs", str(epochs)]
        return [*words, "--device", "cpu", "--out", str(out)]

    def sweep(processes: int, epochs: int) -> tuple[float, float]:
        command = ["sweep", str(recipe), "--workers", str(processes), *options(epochs)]
        return timed([command])

    def train_apart() -> tuple[float, float]:
        train = ["train", "--features", "is13+bert", "--fusion", "lgf-add"]
        return timed([[*train, *options(epochs)], [*train, *options(epochs)]])

    apart, two, one = least(
        [train_apart, partial(sweep, 2, epochs), partial(sweep, 1, epochs)], rounds
    )
    short_two, short_one = least([partial(sweep, 2, 2), partial(sweep, 1, 2)], min(rounds, 2))

    apart_wall, _ = apart
    two_wall, two_used = two
    _, one_used = one
    _, short_two_used = short_two
    _, short_one_used = short_one
    long = max(short_two_used - short_one_used, 0) / 0.08

    what = f"sweep of 4 runs × {epochs} epochs"
    return [
        row(
            f"{what}, two workers against two `ser train` at once, wall clock",
            apart_wall,
            two_wall,
            "s",
            0.95,
        ),
        row(
            f"{what}, two workers against one",
            one_used,
            two_used,
            "s CPU",
            round(1 / 1.08, 2),
        ),
        row(
            f"the same of 2 epochs (so 1.08 × one from {long:.0f} s of CPU on)",
            short_one_used,
            short_two_used,
            "s CPU",
            None,
        ),
    ]


def least(ways: list[Callable[[], tuple[float, float]]], rounds: int) -> list[tuple[float, float]]:
    """Of each way the least wall seconds and the least CPU seconds, in interleaved rounds."""
    least_costs = [(float("inf"), float("inf"))] * len(ways)

    for _ in range(max(rounds, 1)):
        for number, way in enumerate(ways):
            wall, used = way()
            least_wall, least_used = least_costs[number]
            least_costs[number] = (min(wall, least_wall), min(used, least_used))

    return least_costs


def timed(commands: list[list[str]]) -> tuple[float, float]:
    """Wall and CPU seconds of `ser` commands that run at once, with all that they start."""
    # The fork server and its workers are no children of ours: adopt them when their command ends,
    # to count them.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    wall_at_start = time.perf_counter()
    used_at_start = children_time()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [SER, *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]

    for child in children:
        _, errors = child.communicate()
        if child.returncode:
            raise RuntimeError(f"ser {child.args!r}: exit {child.returncode}\n{errors}")

    # Until there is none left to wait for.
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)

    return time.perf_counter() - wall_at_start, children_time() - used_at_start


def full_size(folder: Path, utterances: int = LABELLED, *settings: str) -> list[dict[str, Any]]:
    """Time to load and peak memory of IEMOCAP's labelled utterances.

    5,531 of them with HuBERT frames and MPNet tokens: 7 h, 1.25 million frames.
    """
    seconds = durations_of_share(utterances, LABELLED_HOURS, LABELLED)
    lengths = sequence_lengths(seconds)
    store = write_store(folder / "full", SEQUENCES, lengths)

    command = [sys.executable, "-m", "ser.benchmarks.measure_loading", str(store), *settings]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    figures = json.loads(output.stdout)

    # float32 weights, their gradients, Adam's two moments.
    model_bytes = 16 * figures["parameters"]
    allowed = figures["bare"] + 1.3 * figures["size"] + model_bytes

    what = f"full size, {lengths['hubert'].sum():,} frames × 768"
    allowance = "the bare process + 1.3 × features + model"
    return [
        row(
            f"{what}: CPU until training starts (plain = the allowance)",
            10.0,
            figures["loaded"],
            "s CPU",
            1.0,
        ),
        row(
            f"{what}: peak memory of training mit (plain = {allowance})",
            allowed / 1e6,
            figures["peak"] / 1e6,
            "MB",
            1.0,
        ),
    ]


def write_store(
    path: Path,
    features: dict[str, tuple[str, str, int, str]],
    lengths: dict[str, np.ndarray],
    rows_per_part: int = 40000,
    labelled: int | None = None,
    writers: int = 1,
) -> Path:
    """A store with such features of made-up utterances, in five sessions of dialogues of 40.

    `lengths` gives each feature's rows of each utterance. All utterances are labelled, or
    `labelled` of them. `writers` parts are written at once.
    """
    utterances = len(next(iter(lengths.values())))
    if labelled is None:
        labelled = utterances

    store = open_store(path, create=True)
    lines = [manifest_row(i, utterances, labelled) for i in range(utterances)]
    manifest = Manifest.from_rows("made-up", lines, synthetic=True)
    store.put_manifest(manifest)

    block = np.random.default_rng(0).standard_normal(1 << 22, np.float32)
    for name, (modality, level, dim, dtype) in features.items():
        hop = 0.02 if level == "frame" else None
        spec = Spec(name, modality, level, dim, dtype, "made-up", 1, hop=hop)  # type: ignore[arg-type]
        values = block.astype(dtype)
        publish = partial(publish_rows, store.add(spec), manifest, lengths[name], values=values)

        part_numbers = np.cumsum(lengths[name]) // rows_per_part
        parts = [np.flatnonzero(part_numbers == number) for number in np.unique(part_numbers)]
        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(publish, parts))

    return path


def publish_rows(
    feature: Feature, manifest: Manifest, lengths: np.ndarray, rows: np.ndarray, values: np.ndarray
) -> None:
    """Publish a part of these rows of the manifest, each as long as `lengths` says.

    `values` are repeated until all are filled.
    """
    counts = lengths[rows]
    packed = np.resize(values, (int(counts.sum()), feature.spec.dim))
    arrays = np.split(packed, np.cumsum(counts)[:-1])

    digests = manifest.inputs(feature.spec.modality)
    ids = [manifest.ids[i] for i in rows]
    inputs = [digests[i] for i in rows]
    publish_part(feature, PartRows("made-up", ids, inputs, arrays))


def manifest_row(i: int, utterances: int, labelled: int) -> dict[str, Any]:
    """The i-th of so many utterances, of which `labelled`, evenly spread, have a label."""
    dialogue, turn = divmod(i, 40)
    session = str(1 + 5 * dialogue * 40 // utterances)

    label = "xxx"
    if i * labelled // utterances < (i + 1) * labelled // utterances:
        label = LABELS[(turn + dialogue) % 4]

    return {
        "id": f"utterance-{i:05d}",
        "audio_sha256": f"{i:064x}",
        "text": f"words {i}",
        "session": session,
        "dialogue": f"{session}-{dialogue}",
        "turn": turn,
        "speaker": f"{session}{'FM'[turn % 2]}",
        "label": label,
        "votes": [],
    }
