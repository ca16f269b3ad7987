"""What training costs: growth with seeds, utterances and frames; two workers; a store of IEMOCAP's full size.

Values are random, since they do not change the work. The full-size store takes 2.2 GB under the temporary folder.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.cache.manifest import Manifest
from ser.cache.spec import Spec
from ser.cache.store import PartRows, open_store
from ser.train.data import Dataset
from ser.train.experiment import Experiment, run_experiment
from ser.train.fit import fit
from ser.train.folds import Fold
from ser.train.inputs import Inputs
from ser.train.models import FUSIONS
from ser.train.plan import Plan
from ser.train.settings import parse_settings
from ser.train.single import one_thread
from ser.train.utterances import Utterances

from .compare import children_time
from .train import durations

LABELS = ("ang", "hap", "neu", "sad")
SER = Path(sys.executable).with_name("ser")
# feature: modality, level, dim, dtype
VECTORS = {"is13": ("audio", "utterance", 6373, "float32"), "bert": ("text", "utterance", 768, "float32")}
SEQUENCES = {"hubert": ("audio", "frame", 768, "float16"), "mpnet": ("text", "token", 768, "float16")}


def cases(rounds: int) -> list[dict[str, Any]]:
    """The rows of `make bench`."""
    with tempfile.TemporaryDirectory(prefix="ser-bench-") as name, one_thread():
        folder = Path(name)
        small = write_store(folder / "small", VECTORS, {feature: np.ones(2000, int) for feature in VECTORS})
        return [*growth(small, folder, rounds), *workers(small, folder), *full_size(folder)]


def growth(store: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Four times as much work against four times the cost of it once."""
    fresh = count()

    def seeds(n: int) -> None:
        out = folder / f"runs-{next(fresh)}"
        run_experiment(Experiment("is13+bert", "lgf-add", store, folds=1, epochs=4, seeds=n, device="cpu", out=out))

    vectors = {
        n: made_up("lgf-add", {"audio": (6373, np.ones(n, int)), "text": (768, np.ones(n, int))}, "epochs=4")
        for n in (2000, 8000)
    }
    sequences = {
        n: made_up("audio:frame", {"audio": (768, np.full(64, n))}, "epochs=1", "d_model=256") for n in (100, 400)
    }
    return [
        grow("seeds 2 → 8, lgf-add", seeds, 2, 8, rounds),
        grow("utterances 2,000 → 8,000, lgf-add", lambda n: fit(*vectors[n]), 2000, 8000, rounds),
        grow("frames per utterance 100 → 400, MSMSER", lambda n: fit(*sequences[n]), 100, 400, rounds),
    ]


def grow(what: str, work: Callable[[int], Any], small: int, large: int, rounds: int) -> dict[str, Any]:
    """A row: the cost of `large` against that of `small` as many times as it is larger."""
    best = dict.fromkeys((small, large), float("inf"))
    work(small)  # warms up
    for _ in range(rounds):
        for size in best:
            started = time.process_time()
            work(size)
            best[size] = min(best[size], time.process_time() - started)
    plain = best[small] * large / small
    return _row(f"growth: {what} (plain = {large // small} × the smaller)", plain, best[large], "s CPU", 0.9)


def made_up(fusion: str, inputs: dict[str, tuple[int, np.ndarray]], *settings: str) -> tuple[Dataset, Fold, Plan]:
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
    data = Dataset(utterances, {modality: dim for modality, (dim, _) in inputs.items()}, lambda: held, {})
    fold = Fold("all", np.arange(n), np.arange(0), np.arange(0))
    return data, fold, Plan(found, own, training, select="last")


def workers(store: Path, folder: Path, epochs: int = 160) -> list[dict[str, Any]]:
    """A sweep of four runs by two processes against two `ser train` of two runs each, and against one process.

    The start costs seconds of CPU however long the sweep: a sweep of two epochs measures it, it is taken off, and a row
    of its own tells it.
    """
    recipe = folder / "four.toml"
    recipe.write_text('[[cell]]\nname = "lgf-add"\nfeatures = "is13+bert"\nfusion = "lgf-add"\nseeds = 2\n')

    def options(epochs: int, out: str) -> list[str]:
        asked = {"store": store, "folds": 2, "epochs": epochs, "device": "cpu", "out": folder / f"{out}-{epochs}"}
        return [word for name, value in asked.items() for word in (f"--{name}", str(value))]

    def sweep(n: int, epochs: int) -> tuple[float, float]:
        return timed([["sweep", str(recipe), "--workers", str(n), *options(epochs, f"sweep-{n}")]])

    train = ["train", "--features", "is13+bert", "--fusion", "lgf-add"]
    apart, _ = timed([[*train, *options(epochs, f"train-{i}")] for i in range(2)])
    together, two = sweep(2, epochs)
    one, start_two, start_one = sweep(1, epochs)[1], sweep(2, 2)[1], sweep(1, 2)[1]
    at_least = round(1 / 1.08, 2)
    return [
        _row("sweep of 4 runs, two workers against two `ser train` at once, wall clock", apart, together, "s", 0.95),
        _row("the same, two workers against one, past the start", one - start_one, two - start_two, "s CPU", at_least),
        _row("the start, two workers against one", start_one, start_two, "s CPU", None),
    ]


def timed(commands: list[list[str]]) -> tuple[float, float]:
    """Wall and CPU seconds of `ser` commands that run at once."""
    started, used = time.perf_counter(), children_time()
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([SER, *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for child in children:
        _, told = child.communicate()
        if child.returncode:
            raise RuntimeError(f"ser {child.args!r}: exit {child.returncode}\n{told}")
    return time.perf_counter() - started, children_time() - used


MEASURE = """
import json, resource, sys, time
from pathlib import Path
from ser.train.estimate import estimate
from ser.train.experiment import Experiment, prepare
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
jobs = prepare(Experiment("hubert+mpnet", "mit", store=sys.argv[1], folds=1, device="cpu"))
import torch, ser.train.models
bare, imported = peak(), time.process_time()
inputs = jobs[0].data.inputs
loaded = time.process_time()
size = sum(x.values.nbytes for x in inputs.values())
parameters = estimate(jobs, steps=2).parameters
print(json.dumps({"bare": bare, "peak": peak(), "size": size, "parameters": parameters, "loaded": loaded}))
"""


def full_size(folder: Path) -> list[dict[str, Any]]:
    """The labelled 5,531 utterances of IEMOCAP with HuBERT frames and MPNet tokens: time to load, peak memory."""
    seconds = durations(5531, np.random.default_rng(0))
    seconds *= 25_130 / seconds.sum()  # 7 h: 1.25 million frames
    lengths = {"hubert": np.ceil(seconds * 50 - 1).astype(int), "mpnet": np.ceil(seconds * 3.2 + 2).astype(int)}
    store = write_store(folder / "full", SEQUENCES, lengths)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", MEASURE, str(store)], env=env, check=True, capture_output=True)
    found = json.loads(told.stdout)
    model = 16 * found["parameters"]  # float32 weights, their gradients, Adam's two moments
    allowed = found["bare"] + 1.3 * found["size"] + model
    what = f"full size, {lengths['hubert'].sum():,} frames × 768"
    return [
        _row(f"{what}: CPU until training starts (plain = the allowance)", 10.0, found["loaded"], "s CPU", 1.0),
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
) -> Path:
    """A store with such features of made-up utterances, five sessions of dialogues of 40."""
    n = len(next(iter(lengths.values())))
    store = open_store(path, create=True)
    manifest = Manifest.from_rows("made-up", [_line(i, n) for i in range(n)], synthetic=True)
    store.put_manifest(manifest)
    block = np.random.default_rng(0).standard_normal(1 << 22, np.float32)
    for feature, (modality, level, dim, dtype) in features.items():
        made = store.add(Spec(feature, modality, level, dim, dtype, "made-up", 1))  # type: ignore[arg-type]
        digests, values = manifest.inputs(modality), partial(np.resize, block.astype(dtype))  # type: ignore[arg-type]
        parts = np.cumsum(lengths[feature]) // rows_per_part
        for part in np.unique(parts):
            rows = np.flatnonzero(parts == part)
            whole = values((int(lengths[feature][rows].sum()), dim))
            arrays = np.split(whole, np.cumsum(lengths[feature][rows])[:-1])
            ids, inputs = [manifest.ids[i] for i in rows], [digests[i] for i in rows]
            made.publish(PartRows("made-up", ids, inputs, arrays))
    return path


def _line(i: int, n: int) -> dict[str, Any]:
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
        "label": LABELS[(turn + dialogue) % 4],
        "votes": [],
    }


def _row(what: str, plain: float, ours: float, unit: str, target: float | None) -> dict[str, Any]:
    return {"what": what, "plain": plain, "ours": ours, "unit": unit, "ratio": plain / ours, "target": target}
