"""What training costs: growth with seeds, utterances and frames; two workers; a store of IEMOCAP's
full size.

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

from ser.benchmarks.compare import children_time
from ser.benchmarks.train import durations
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
PR_SET_CHILD_SUBREAPER = 36
SER = Path(sys.executable).with_name("ser")
# feature: modality, level, dim, dtype
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
        small = write_store(
            folder / "small", VECTORS, {feature: np.ones(2000, int) for feature in VECTORS}
        )
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
    fresh = count()

    def seeds(n: int) -> None:
        out = folder / f"runs-{next(fresh)}"
        run_experiment(
            Experiment(
                "is13+bert", "lgf-add", store, folds=1, epochs=4, seeds=n, device="cpu", out=out
            )
        )

    vectors = {
        n: made_up(
            "lgf-add",
            {"audio": (6373, np.ones(n, int)), "text": (768, np.ones(n, int))},
            "epochs=4",
        )
        for n in (2000, 8000)
    }
    sequences = {
        n: made_up("audio:frame", {"audio": (768, np.full(8, n))}, "epochs=1", *settings)
        for n in (100, 400, 1600)
    }
    return [
        grow("seeds 2 → 8, lgf-add", seeds, 2, 8, rounds),
        grow("utterances 2,000 → 8,000, lgf-add", lambda n: fit(*vectors[n]), 2000, 8000, rounds),
        grow(
            "frames per utterance 100 → 400, MSMSER", lambda n: fit(*sequences[n]), 100, 400, rounds
        ),
        grow(
            "the same 400 → 1600, where attention tells",
            lambda n: fit(*sequences[n]),
            400,
            1600,
            rounds,
            None,
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
    best = dict.fromkeys((small, large), float("inf"))
    work(small)  # warms up
    for _ in range(rounds):
        for size in best:
            started = time.process_time()
            work(size)
            best[size] = min(best[size], time.process_time() - started)
    plain = best[small] * large / small
    return _row(
        f"growth: {what} (plain = {large // small} × the smaller)",
        plain,
        best[large],
        "s CPU",
        target,
    )


def made_up(
    fusion: str, inputs: dict[str, tuple[int, np.ndarray]], *settings: str
) -> tuple[Dataset, Fold, TrainConfig]:
    """What `fit` takes; `inputs` gives each modality's dimension and the rows of each utterance."""
    found = FUSIONS[fusion]
    own, training = parse_settings(found, settings)
    n = len(next(iter(inputs.values()))[1])
    random = np.random.default_rng(0)
    dialogues = np.arange(n) // 40
    utterances = Utterances(
        ids=[str(i) for i in range(n)],
        labels=random.integers(4, size=n),
        classes=LABELS,
        sessions=["1"] * n,
        speakers=["1F"] * n,
        dialogues=dialogues,
        turns=np.arange(n) % 40,
    )
    held = {
        modality: Inputs(
            torch.from_numpy(random.standard_normal((lengths.sum(), dim), np.float32)),
            np.concatenate([[0], lengths.cumsum()]),
        )
        for modality, (dim, lengths) in inputs.items()
    }
    data = Dataset(
        utterances, {modality: dim for modality, (dim, _) in inputs.items()}, lambda: held, {}
    )
    fold = Fold("all", np.arange(n), np.arange(0), np.arange(0))
    return data, fold, TrainConfig(found, own, training, select="last")


def started(store: Path, rounds: int) -> list[dict[str, Any]]:
    """What `ser train` does before it trains: imports, loading, and the timed steps of its
    estimate.
    """
    command = [
        "train",
        "--features",
        "is13+bert",
        "--fusion",
        "lgf-add",
        "--store",
        str(store),
        "--dry-run",
    ]
    [(_, used)] = least([lambda: timed([command])], rounds)
    return [
        _row(
            "2,000 utterances: CPU until training starts (plain = the allowance)",
            3.0,
            used,
            "s CPU",
            1.0,
        )
    ]


def workers(store: Path, folder: Path, rounds: int, epochs: int = 100) -> list[dict[str, Any]]:
    """A sweep of four runs by two processes against two `ser train` of two runs each, and against
    one process.

    All is counted from the start of the commands to their end. What a second process costs more, it
    costs at the start, however long the sweep: a sweep of two epochs shows it, and so how long a
    sweep must be to keep within 1.08 times.
    """
    recipe = folder / "four.toml"
    recipe.write_text(
        '[[cell]]\nname = "lgf-add"\nfeatures = "is13+bert"\nfusion = "lgf-add"\nseeds = 2\n'
    )
    fresh = count()

    def options(epochs: int) -> list[str]:
        asked = {
            "store": store,
            "folds": 2,
            "epochs": epochs,
            "device": "cpu",
            "out": folder / f"sweep-{next(fresh)}",
        }
        return [word for name, value in asked.items() for word in (f"--{name}", str(value))]

    def sweep(n: int, epochs: int) -> tuple[float, float]:
        return timed([["sweep", str(recipe), "--workers", str(n), *options(epochs)]])

    def apart() -> tuple[float, float]:
        return timed(
            [
                ["train", "--features", "is13+bert", "--fusion", "lgf-add", *options(epochs)]
                for _ in range(2)
            ]
        )

    (trained, _), (together, two), (_, one) = least(
        [apart, lambda: sweep(2, epochs), lambda: sweep(1, epochs)], rounds
    )
    (_, start_two), (_, start_one) = least(
        [lambda: sweep(2, 2), lambda: sweep(1, 2)], min(rounds, 2)
    )
    what = f"sweep of 4 runs × {epochs} epochs"
    long = max(start_two - start_one, 0) / 0.08
    return [
        _row(
            f"{what}, two workers against two `ser train` at once, wall clock",
            trained,
            together,
            "s",
            0.95,
        ),
        _row(f"{what}, two workers against one", one, two, "s CPU", round(1 / 1.08, 2)),
        _row(
            f"the same of 2 epochs (so 1.08 × one from {long:.0f} s of CPU on)",
            start_one,
            start_two,
            "s CPU",
            None,
        ),
    ]


def least(ways: list[Callable[[], tuple[float, float]]], rounds: int) -> list[tuple[float, float]]:
    """The least of each of the two costs of each way, in interleaved rounds."""
    found = [[way() for way in ways] for _ in range(max(rounds, 1))]
    return [
        (min(wall for wall, _ in costs), min(cpu for _, cpu in costs))
        for costs in zip(*found, strict=True)
    ]


def timed(commands: list[list[str]]) -> tuple[float, float]:
    """Wall and CPU seconds of `ser` commands that run at once, with all processes that they start."""
    # The fork server and its workers are no children of ours: adopt them when their command ends,
    # to count them.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started, used = time.perf_counter(), children_time()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [SER, *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    for child in children:
        _, output = child.communicate()
        if child.returncode:
            raise RuntimeError(f"ser {child.args!r}: exit {child.returncode}\n{output}")
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return time.perf_counter() - started, children_time() - used


MEASURE = """
import json, re, sys, time
from pathlib import Path
from ser.train.estimate import estimate
from ser.train.experiment import Experiment, prepare
def peak():  # getrusage's begins with that of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
store, *settings = sys.argv[1:]
jobs = prepare(Experiment("hubert+mpnet", "mit", store=store, folds=1, device="cpu", set=tuple(settings)))
import torch, ser.train.models
bare, imported = peak(), time.process_time()
inputs = jobs[0].data.inputs
loaded = time.process_time()
size = sum(x.values.nbytes for x in inputs.values())
parameters = estimate(jobs).parameters
print(json.dumps({"bare": bare, "peak": peak(), "size": size, "parameters": parameters, "loaded": loaded}))
"""


def full_size(folder: Path, utterances: int = 5531, *settings: str) -> list[dict[str, Any]]:
    """The labelled 5,531 utterances of IEMOCAP with HuBERT frames and MPNet tokens: time to load,
    peak memory.
    """
    seconds = durations(utterances, np.random.default_rng(0))
    seconds *= 25_130 / 5531 * utterances / seconds.sum()  # 7 h: 1.25 million frames
    lengths = {
        "hubert": np.ceil(seconds * 50 - 1).astype(int),
        "mpnet": np.ceil(seconds * 3.2 + 2).astype(int),
    }
    store = write_store(folder / "full", SEQUENCES, lengths)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    measure = [sys.executable, "-c", MEASURE, str(store), *settings]
    output = subprocess.run(measure, env=env, check=True, stdout=subprocess.PIPE)
    found = json.loads(output.stdout)
    model = 16 * found["parameters"]  # float32 weights, their gradients, Adam's two moments
    allowed = found["bare"] + 1.3 * found["size"] + model
    what = f"full size, {lengths['hubert'].sum():,} frames × 768"
    return [
        _row(
            f"{what}: CPU until training starts (plain = the allowance)",
            10.0,
            found["loaded"],
            "s CPU",
            1.0,
        ),
        _row(
            f"{what}: peak memory of training mit (plain = the bare process + 1.3 × features + model)",
            allowed / 1e6,
            found["peak"] / 1e6,
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
    """A store with such features of made-up utterances, five sessions of dialogues of 40; all
    labelled, or so many.

    `writers` parts are written at once.
    """
    n = len(next(iter(lengths.values())))
    store = open_store(path, create=True)
    manifest = Manifest.from_rows(
        "made-up",
        [_line(i, n, n if labelled is None else labelled) for i in range(n)],
        synthetic=True,
    )
    store.put_manifest(manifest)
    block = np.random.default_rng(0).standard_normal(1 << 22, np.float32)
    for feature, (modality, level, dim, dtype) in features.items():
        hop = 0.02 if level == "frame" else None
        made = store.add(Spec(feature, modality, level, dim, dtype, "made-up", 1, hop=hop))  # type: ignore[arg-type]
        digests, values = manifest.inputs(modality), partial(np.resize, block.astype(dtype))  # type: ignore[arg-type]
        parts = np.cumsum(lengths[feature]) // rows_per_part
        chosen = [np.flatnonzero(parts == part) for part in np.unique(parts)]

        def publish(
            rows: np.ndarray, of: Any = (made, lengths[feature], digests, values, dim)
        ) -> None:
            made, lengths, digests, values, dim = of
            whole = values((int(lengths[rows].sum()), dim))
            arrays = np.split(whole, np.cumsum(lengths[rows])[:-1])
            ids, inputs = [manifest.ids[i] for i in rows], [digests[i] for i in rows]
            publish_part(made, PartRows("made-up", ids, inputs, arrays))

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(publish, chosen))
    return path


def _line(i: int, n: int, labelled: int) -> dict[str, Any]:
    dialogue, turn = divmod(i, 40)
    session = str(1 + 5 * dialogue * 40 // n)
    return {
        "id": f"utterance-{i:05d}",
        "audio_sha256": f"{i:064x}",
        "text": f"words {i}",
        "session": session,
        "dialogue": f"{session}-{dialogue}",
        "turn": turn,
        "speaker": f"{session}{'FM'[turn % 2]}",
        "label": LABELS[(turn + dialogue) % 4]
        if i * labelled // n < (i + 1) * labelled // n
        else "xxx",
        "votes": [],
    }


def _row(what: str, plain: float, ours: float, unit: str, target: float | None) -> dict[str, Any]:
    return {
        "what": what,
        "plain": plain,
        "ours": ours,
        "unit": unit,
        "ratio": plain / ours,
        "target": target,
    }
