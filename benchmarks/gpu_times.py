"""How long does a GPU take? The stages of `gpu.py` that run ser's own commands on stand-ins of
IEMOCAP's size.

Values are random, since they do not change the work. A part of the work is timed, estimates,
loading and scores included, and the whole is predicted from it: what is counted how often is said
in each function.
"""

import json
import re
import statistics
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from typing import Any

import numpy as np

from ser.benchmarks.gpu import UNKNOWN, Asked, Row, most, told

HOURS, UTTERANCES, LABELLED = 12.44, 10_039, 5_531  # of IEMOCAP
LABELLED_HOURS = 25_130 / 3600
TINY = ("--set", "d_model=16", "--set", "heads=2")
TARGETS = {"hubert": 60.0, "perspective": 180.0, "mit": 600.0}  # seconds on one H100 with 16 cores


def start(asked: Asked, *words: object) -> "subprocess.Popen[str]":
    """A command of ser, on the device that the page was asked for."""
    device = [] if asked.on_gpu else ["--device", asked.device]  # a GPU is found by default
    command = [sys.executable, "-m", "ser", *map(str, words), *device]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=asked.folder
    )


def timed(asked: Asked, *words: object) -> tuple[float, str]:
    """Seconds of a command, and all that it said. Raises `RuntimeError` with its last line if it
    fails.
    """
    begun = time.perf_counter()
    said = finished(start(asked, *words))
    return time.perf_counter() - begun, said


def finished(command: "subprocess.Popen[str]") -> str:
    """What a command said. Raises `RuntimeError` with its last line if it failed."""
    output, errors = command.communicate()
    if command.returncode:
        last = (errors.strip() or "nothing is said").splitlines()[-1]
        raise RuntimeError(f"{command.args!r}: {last}")
    return f"{errors}\n{output}"


def predicted(asked: Asked, what: str, whole: float, limit: float, **detail: Any) -> Row:
    """The row of a time, which at small sizes says nothing."""
    return (
        told(f"{what} (small sizes: it ran)", "–")
        if asked.small
        else most(f"{what}, s", whole, limit, **detail)
    )


def lengths(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """HuBERT's frames and MPNet's tokens of utterances that last so long."""
    return {
        "hubert": np.ceil(seconds * 50 - 1).astype(int),
        "mpnet": np.ceil(seconds * 3.2 + 2).astype(int),
    }


def lasting(n: int, hours: float, whole: int) -> np.ndarray:
    """Seconds of n utterances, of `whole` that last so many hours."""
    from ser.benchmarks.train import durations

    seconds = durations(n, np.random.default_rng(0))
    return seconds * (hours * 3600 * n / whole / seconds.sum())


def same_seed(asked: Asked) -> Iterator[Row]:
    """Each seed twice: on a CPU the same bytes; on a GPU with --deterministic, and without it that
    is told.
    """
    from ser.benchmarks.costs import SEQUENCES, VECTORS, write_store
    from ser.train.options import Experiment

    sequences, vectors = lasting(200, LABELLED_HOURS, LABELLED), np.ones(200, int)
    store = write_store(asked.folder / "vectors", VECTORS, dict.fromkeys(VECTORS, vectors))
    other = write_store(asked.folder / "sequences", SEQUENCES, lengths(sequences))
    small = ("--epochs", 2, "--folds", 1, *(TINY if asked.small else ()))
    cells = {"lgf-add": ("is13+bert", store), "mit": ("hubert+mpnet", other)}
    flags = {"": (), " with --deterministic": ("--deterministic",)}
    if "deterministic" not in Experiment.__dataclass_fields__:
        yield told("--deterministic", "this ser has none")
        del flags[" with --deterministic"]
    running = {}
    for flag, words in flags.items():  # all at once: what is compared is not a time
        for fusion, (features, where) in cells.items():
            for turn in (1, 2):
                out = asked.folder / f"{fusion}{flag}{turn}".replace(" ", "")
                asks = (
                    "--features",
                    features,
                    "--fusion",
                    fusion,
                    "--store",
                    where,
                    "--out",
                    out,
                    *small,
                    *words,
                )
                running[fusion, flag, turn] = out, start(asked, "train", *asks)
    for flag in flags:
        for fusion in cells:
            found = set()
            for out, command in (running[fusion, flag, turn] for turn in (1, 2)):
                try:
                    finished(command)
                    [file] = out.glob("*/model.safetensors")
                    found.add(sha256(file.read_bytes()).hexdigest())
                except RuntimeError as fault:
                    found |= {str(fault), ""}
            holds = len(found) == 1 if flag or not asked.on_gpu else None
            same = next((one for one in found if " " in one), len(found) == 1)
            yield {**told(f"{fusion} twice{flag}: the same bytes", same), "holds": holds}


def hubert(asked: Asked) -> Iterator[Row]:
    """`ser features` with HuBERT base, random weights, and IS13 beside it, over 20 batches of real
    lengths.

    What the command takes beside extracting, such as imports and the model, is counted once, and
    all else as often as IEMOCAP is longer.
    """
    from ser.benchmarks.extract import BASE
    from ser.weights.demo import write_random_checkpoint

    model = write_random_checkpoint(
        asked.folder / "base", "hubert", **({} if asked.small else BASE)
    )
    seconds = lasting(
        8 if asked.small else round(20 * 300 * UTTERANCES / HOURS / 3600), HOURS, UTTERANCES
    )
    corpus = asked.folder / "corpus"
    corpus.mkdir()
    noise = np.random.default_rng(0).normal(0, 3000, 16000 * 40).astype("<i2")
    for number, lasts in enumerate(seconds):
        with wave.open(str(corpus / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
            file.writeframes(np.roll(noise, 997 * number)[: int(lasts * 16000)].tobytes())
    rows = [f"u{number:05},{number}.wav,hello" for number in range(len(seconds))]
    (corpus / "corpus.csv").write_text("\n".join(["id,audio,text", *rows]) + "\n")
    features = "hubert,is13" if find_spec("opensmile") else "hubert"
    if features == "hubert":
        yield told("IS13 beside it", "opensmile is not installed: not measured")
    store = asked.folder / "store"
    asks = (
        "features",
        corpus / "corpus.csv",
        "--features",
        features,
        "--model",
        f"hubert={model}",
        "--store",
        store,
    )
    took, said = timed(asked, *asks)
    found = re.search(r"of audio in ([\d.]+) s: (\d+)× real time(?:; limited by (\w+))?", said)
    if found is None:
        raise RuntimeError(f"`ser features` no longer ends with its speed: {said[-200:]}")
    extracting = float(found[1])
    share = HOURS * 3600 / seconds.sum()
    whole = max(0.0, took - extracting) + extracting * share
    yield told(
        f"{features} over {seconds.sum() / 60:.0f} min",
        f"{found[2]}× real time, limited by {found[3]}",
    )
    yield predicted(
        asked,
        f"{features} over {HOURS} h",
        whole,
        TARGETS["hubert"],
        took=took,
        extracting=extracting,
    )


def perspective(asked: Asked) -> Iterator[Row]:
    """`ser sweep perspective-table2`, all 480 runs for a few epochs; see `of_table`."""
    from ser.benchmarks.costs import VECTORS, write_store
    from ser.train.models import FUSIONS

    n, labelled = (400, 400) if asked.small else (UTTERANCES, LABELLED)
    store = write_store(
        asked.folder / "store", VECTORS, dict.fromkeys(VECTORS, np.ones(n, int)), labelled=labelled
    )
    recipe: object = "perspective-table2"
    if asked.small:
        recipe = asked.folder / "two.toml"
        cell = '[[cell]]\nname = "{0}"\nfeatures = "is13+bert"\nfusion = "lgf-add"\nloss = "{0}"\nseeds = 2\n'
        recipe.write_text(
            'title = "two cells"\n' + cell.format("single") + cell.format("perspective")
        )
    asks = ("sweep", recipe, "--store", store, "--epochs", 4, *(TINY if asked.small else ()))
    yield from of_table(asked, "perspective", asks, 480, FUSIONS["lgf-add"].settings().epochs)


def mit(asked: Asked) -> Iterator[Row]:
    """`ser train --fusion mit`, two of the five folds for two epochs; see `of_table`."""
    from ser.benchmarks.costs import SEQUENCES, write_store
    from ser.train.models import FUSIONS

    n = 200 if asked.small else LABELLED
    begun = time.perf_counter()
    sizes = lengths(lasting(n, LABELLED_HOURS, LABELLED))
    store = write_store(asked.folder / "store", SEQUENCES, sizes, writers=8)
    yield told("writing the stand-in store, s (not counted)", time.perf_counter() - begun)
    asks = (
        "train",
        "--features",
        "hubert+mpnet",
        "--fusion",
        "mit",
        "--store",
        store,
        "--folds",
        2,
        "--epochs",
        2,
    )
    yield from of_table(
        asked, "mit", (*asks, *(TINY if asked.small else ())), 5, FUSIONS["mit"].settings().epochs
    )


def of_table(
    asked: Asked, what: str, words: Sequence[object], runs: int, epochs: int
) -> Iterator[Row]:
    """The seconds of a table of so many runs and epochs, from a command that trains some of each.

    All that is no epoch is counted once: start, estimate, loading, final scores. An epoch costs the
    median of those after the first, which warms up, and as many run side by side as there are
    workers.
    """
    out = asked.folder / "runs"
    took, said = timed(asked, *words, "--out", out)
    side = int(found[1]) if (found := re.search(r"with (\d+) workers", said)) else 1
    histories = [json.loads(file.read_text())["history"] for file in out.glob("*/result.json")]
    training = sum(line["seconds"] for lines in histories for line in lines) / side
    steady = statistics.mean(
        statistics.median(line["seconds"] for line in lines[1:]) for lines in histories
    )
    about = next((line.strip() for line in said.splitlines() if " about " in line), "")
    yield told("what the command said ahead", about)
    yield told(
        f"{len(histories)} runs of {len(histories[0])} epochs took, s",
        took,
        workers=side,
        steady=steady,
    )
    yield told("of which is no epoch, s", max(0.0, took - training))
    whole = max(0.0, took - training) + runs * epochs * steady / side
    yield predicted(asked, f"the table: {runs} runs × {epochs} epochs", whole, TARGETS[what])


def launches(asked: Asked) -> Iterator[Row]:
    """Kernels and copies that an update of each table launches, and the share of the time that the
    GPU is busy.
    """
    if not asked.on_gpu:
        yield told("launches per update, GPU-busy share", UNKNOWN)
        return
    import torch

    from ser.benchmarks.costs import made_up
    from ser.train.fit import fit
    from ser.train.fit_many import fit_many

    n = 400 if asked.small else 4290  # labelled, in four of the five sessions
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    once = {"audio": (6373, np.ones(n, int)), "text": (768, np.ones(n, int))}
    data, fold, plan = made_up("lgf-add", once, "epochs=3")
    plan = replace(plan, device=asked.device)  # in float32, as vectors are by default
    plans = [
        replace(plan, loss=loss, seed=seed)
        for seed in range(20)
        for loss in ("single", "perspective")
    ]
    batches = -(-len(data.groups(fold.train, "dialogue")) // plan.settings.batch_size)
    yield from profiled(
        "Perspective, 40 runs at once", batches, lambda on: fit_many(data, fold, plans, [on] * 40)
    )
    sizes = lengths(lasting(n // 4, LABELLED_HOURS, 4 * LABELLED))  # a quarter of an epoch
    rows = {"audio": (768, sizes["hubert"]), "text": (768, sizes["mpnet"])}
    sequences, all_of, mine = made_up("mit", rows, "epochs=3")
    mine = replace(mine, device=asked.device, precision=precision)
    batches = -(-len(all_of.train) // mine.settings.batch_size)
    yield from profiled(
        "MIT", batches, lambda on: fit(sequences, all_of, mine, lambda line, _: on(line))
    )


def profiled(
    what: str, updates: int, train: Callable[[Callable[[Any], None]], object]
) -> Iterator[Row]:
    """The third of three epochs under torch's profiler, its time against that of the second, which
    is without.
    """
    import torch

    kinds = torch.profiler.ProfilerActivity
    profiler = torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA])
    ends: dict[int, float] = {}

    def on_epoch(line: Any) -> None:  # of many runs, each tells of its own
        torch.cuda.synchronize()
        if line.epoch not in ends:
            ends[line.epoch] = time.perf_counter()
            {2: profiler.start, 3: profiler.stop}.get(line.epoch, bool)()

    train(on_epoch)
    events, asks = (
        profiler.key_averages(),
        re.compile("cu.*(LaunchKernel|GraphLaunch|Memcpy|Memset)"),
    )
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = (
        sum(event.self_device_time_total for event in on_gpu if not event.is_user_annotation) / 1e6
    )
    launched = {event.key: event.count for event in events if asks.match(event.key)}
    yield told(f"{what}: launches an update", sum(launched.values()) / updates, **launched)
    yield told(f"{what}: ms an update", 1e3 * (ends[2] - ends[1]) / updates)
    yield told(f"{what}: share of the time that the GPU is busy", busy / (ends[2] - ends[1]))
