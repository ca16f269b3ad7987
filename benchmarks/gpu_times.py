"""How long does a GPU take? The stages of `gpu.py` that run ser's own commands on stand-ins of
IEMOCAP's size.

Values are random, since they do not change the work. A part of the work is timed, estimates,
loading and scores included, and the whole is predicted from it: what is counted how often is said
in each function.
"""

import json
import math
import re
import statistics
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ser.benchmarks.gpu import UNKNOWN, Request, Row, at_most, fact
from ser.benchmarks.iemocap_sizes import (
    HOURS,
    LABELLED,
    LABELLED_HOURS,
    UTTERANCES,
    durations_of_share,
    frame_counts,
    sequence_lengths,
    token_counts,
)

TINY = ("--set", "d_model=16", "--set", "heads=2")

# Seconds on one H100 with 16 cores.
TARGETS = {"hubert": 60.0, "perspective": 180.0, "mit": 600.0}


def start(request: Request, *words: object) -> "subprocess.Popen[str]":
    """A command of ser, on the device that the page was asked for."""
    command = [sys.executable, "-m", "ser", *map(str, words)]
    # A GPU is found by default.
    if not request.on_gpu:
        command += ["--device", request.device]

    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=request.folder
    )


def timed(request: Request, *words: object) -> tuple[float, str]:
    """Seconds of a command, and all that it said.

    Raises `RuntimeError` with its last line if it fails.
    """
    begun = time.perf_counter()
    output = finished(start(request, *words))
    return time.perf_counter() - begun, output


def finished(command: "subprocess.Popen[str]") -> str:
    """What a command said. Raises `RuntimeError` with its last line if it failed."""
    output, errors = command.communicate()
    if command.returncode:
        last = (errors.strip() or "nothing is said").splitlines()[-1]
        raise RuntimeError(f"{command.args!r}: {last}")

    return f"{errors}\n{output}"


def predicted(request: Request, what: str, whole: float, limit: float, **detail: Any) -> Row:
    """The row of a time, which at small sizes says nothing."""
    if request.small:
        return fact(f"{what} (small sizes: it ran)", "–")
    return at_most(f"{what}, s", whole, limit, **detail)


def same_seed(request: Request) -> Iterator[Row]:
    """Each seed twice: on a CPU the same bytes.

    On a GPU with --deterministic, and without it that is told.
    """
    from ser.benchmarks.costs import SEQUENCES, VECTORS, write_store

    n = 200
    vectors = write_store(
        request.folder / "vectors", VECTORS, dict.fromkeys(VECTORS, np.ones(n, int))
    )
    lengths = sequence_lengths(durations_of_share(n, LABELLED_HOURS, LABELLED))
    sequences = write_store(request.folder / "sequences", SEQUENCES, lengths)

    commands = {
        "lgf-add": ["--features", "is13+bert", "--store", vectors],
        "mit": ["--features", "hubert+mpnet", "--store", sequences],
    }
    flags: dict[str, list[str]] = {"": [], " with --deterministic": ["--deterministic"]}
    small = ["--epochs", 2, "--folds", 1, *(TINY if request.small else ())]

    # All at once: what is compared is not a time.
    running: dict[tuple[str, str], list[tuple[Path, subprocess.Popen[str]]]] = {}
    for flag, flag_words in flags.items():
        for fusion, words in commands.items():
            running[flag, fusion] = []
            for turn in (1, 2):
                out = request.folder / f"{fusion}{flag}{turn}".replace(" ", "")
                options = ["--fusion", fusion, *words, "--out", out, *small, *flag_words]
                running[flag, fusion].append((out, start(request, "train", *options)))

    for (flag, fusion), twice in running.items():
        digests = set()
        faults = []
        for out, command in twice:
            try:
                finished(command)
                [file] = out.glob("*/model.safetensors")
                digests.add(sha256(file.read_bytes()).hexdigest())
            except RuntimeError as fault:
                faults.append(str(fault))

        same = len(digests) == 1 and not faults
        asked = bool(flag) or not request.on_gpu
        row = fact(f"{fusion} twice{flag}: the same bytes", faults[0] if faults else same)
        yield {**row, "holds": same if asked else None}


def hubert(request: Request) -> Iterator[Row]:
    """`ser features` with HuBERT base, random weights, and IS13 beside it, over 20 batches.

    They are of real lengths. What the command takes beside extracting, such as imports and the
    model, is counted once, and all else as often as IEMOCAP is longer.
    """
    from ser.benchmarks.extract import BASE
    from ser.weights.demo import write_random_checkpoint

    sizes = {} if request.small else BASE
    model = write_random_checkpoint(request.folder / "base", "hubert", **sizes)

    count = 8 if request.small else round(20 * 300 * UTTERANCES / HOURS / 3600)
    seconds = durations_of_share(count, HOURS, UTTERANCES)
    corpus = write_noise(request.folder / "corpus", seconds)

    features = "hubert,is13" if find_spec("opensmile") else "hubert"
    if features == "hubert":
        yield fact("IS13 beside it", "opensmile is not installed: not measured")

    words = ["features", corpus, "--features", features, "--model", f"hubert={model}"]
    took, output = timed(request, *words, "--store", request.folder / "store")
    speed = re.search(r"of audio in ([\d.]+) s: (\d+)× real time(?:; limited by (\w+))?", output)
    if speed is None:
        raise RuntimeError(f"`ser features` no longer ends with its speed: {output[-200:]}")

    extracting = float(speed[1])
    share = HOURS * 3600 / seconds.sum()
    whole = max(0.0, took - extracting) + extracting * share
    yield fact(
        f"{features} over {seconds.sum() / 60:.0f} min",
        f"{speed[2]}× real time, limited by {speed[3]}",
    )
    yield predicted(
        request,
        f"{features} over {HOURS} h",
        whole,
        TARGETS["hubert"],
        took=took,
        extracting=extracting,
    )


def write_noise(folder: Path, seconds: np.ndarray) -> Path:
    """The table of a corpus of noise, of utterances that last so long."""
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 3000, 16000 * 40).astype("<i2")
    lines = ["id,audio,text"]

    for number, length in enumerate(seconds):
        samples = np.roll(noise, 997 * number)[: int(length * 16000)]
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
            file.writeframes(samples.tobytes())
        lines.append(f"u{number:05},{number}.wav,hello")

    table = folder / "corpus.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def perspective(request: Request) -> Iterator[Row]:
    """`ser sweep perspective-table2`, all runs for a few epochs; see `of_table`."""
    from ser.benchmarks.costs import VECTORS, write_store
    from ser.train.models import FUSIONS

    n = 400 if request.small else UTTERANCES
    labelled = 400 if request.small else LABELLED
    lengths = dict.fromkeys(VECTORS, np.ones(n, int))
    store = write_store(request.folder / "store", VECTORS, lengths, labelled=labelled)

    recipe: object = "perspective-table2"
    if request.small:
        recipe = write_two_cells(request.folder / "two.toml")

    words = ["sweep", recipe, "--store", store, "--epochs", 4, *(TINY if request.small else ())]
    epochs = FUSIONS["lgf-add"].settings().epochs
    yield from of_table(request, "perspective", words, 480, epochs)


def write_two_cells(recipe: Path) -> Path:
    """A recipe of two cells, two seeds each: one for each loss."""
    lines = ['title = "two cells"']
    for loss in ("single", "perspective"):
        lines += [
            "[[cell]]",
            f'name = "{loss}"',
            'features = "is13+bert"',
            'fusion = "lgf-add"',
            f'loss = "{loss}"',
            "seeds = 2",
        ]

    recipe.write_text("\n".join(lines) + "\n")
    return recipe


def mit(request: Request) -> Iterator[Row]:
    """`ser train --fusion mit`, two of the five folds for two epochs; see `of_table`."""
    from ser.benchmarks.costs import SEQUENCES, write_store
    from ser.train.models import FUSIONS

    n = 200 if request.small else LABELLED
    begun = time.perf_counter()
    lengths = sequence_lengths(durations_of_share(n, LABELLED_HOURS, LABELLED))
    store = write_store(request.folder / "store", SEQUENCES, lengths, writers=8)
    yield fact("writing the stand-in store, s (not counted)", time.perf_counter() - begun)

    words = ["train", "--features", "hubert+mpnet", "--fusion", "mit", "--store", store]
    words += ["--folds", 2, "--epochs", 2, *(TINY if request.small else ())]
    epochs = FUSIONS["mit"].settings().epochs
    yield from of_table(request, "mit", words, 5, epochs)


def of_table(
    request: Request, what: str, words: Sequence[object], runs: int, epochs: int
) -> Iterator[Row]:
    """The seconds of a table of so many runs and epochs, from a command that trains some of each.

    All that is no epoch is counted once: start, estimate, loading, final scores. An epoch costs the
    median of those after the first, which warms up, and as many run side by side as there are
    workers.
    """
    out = request.folder / "runs"
    took, output = timed(request, *words, "--out", out)
    told_workers = re.search(r"with (\d+) workers", output)
    workers = int(told_workers[1]) if told_workers else 1

    # Seconds of each epoch, by the run.
    histories = []
    for file in out.glob("*/result.json"):
        history = json.loads(file.read_text())["history"]
        if history[0]["tried"] is not None:
            # A linear model has no epochs.
            continue
        histories.append([line["seconds"] for line in history])
    training = sum(sum(seconds) for seconds in histories) / workers
    steady = statistics.mean(statistics.median(seconds[1:]) for seconds in histories)

    estimates = [line.strip() for line in output.splitlines() if " about " in line]
    yield fact("what the command said ahead", estimates[0] if estimates else "")
    yield fact(
        f"{len(histories)} runs of {len(histories[0])} epochs took, s",
        took,
        workers=workers,
        steady=steady,
    )

    no_epoch = max(0.0, took - training)
    yield fact("of which is no epoch, s", no_epoch)

    whole = no_epoch + runs * epochs * steady / workers
    yield predicted(request, f"the table: {runs} runs × {epochs} epochs", whole, TARGETS[what])


def finetune(request: Request) -> Iterator[Row]:
    """An epoch of the top of HuBERT base on cached rows, against the whole model on waveforms."""
    from ser.benchmarks.finetune import TOP, Steps
    from ser.benchmarks.iemocap_sizes import durations

    sizes: dict[str, Any] = {}
    if request.small:
        sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 96, "conv_dim": [8] * 7}
    count = 4 if request.small else 24
    seconds = durations(count, np.random.default_rng(0))
    steps = Steps(sizes, seconds, request.folder, request.device)

    ways: dict[str, Callable[[], Any]] = {
        "from the cache": steps.our_epoch,
        "frozen below, from files": partial(steps.plain_epoch, TOP),
        "all of it, from files": partial(steps.plain_epoch, None),
    }
    taken = {}
    for words, epoch in ways.items():
        # The first warms up. The losses that an epoch gives are waited for.
        epoch()
        begun = time.perf_counter()
        epoch()
        taken[words] = time.perf_counter() - begun

    ours = taken.pop("from the cache")
    what = f"top {TOP} of HuBERT base, an epoch from the cache"
    if request.small:
        yield fact(f"{what} (small sizes: it ran)", "–")
        return
    yield fact(f"{what}, s", ours)
    for words, plain in taken.items():
        yield fact(f"top {TOP} of HuBERT base, {words} ÷ from the cache", plain / ours)


def launches(request: Request) -> Iterator[Row]:
    """Kernels and copies that an update of each table launches.

    And the share of the time that the GPU is busy.
    """
    if not request.on_gpu:
        yield fact("launches per update, GPU-busy share", UNKNOWN)
        return

    yield from launches_of_perspective(request)
    yield from launches_of_mit(request)


def launches_of_perspective(request: Request) -> Iterator[Row]:
    """Forty runs at once, in float32, as vectors are by default."""
    from ser.benchmarks.costs import made_up
    from ser.train.fit_many import fit_many

    # Labelled, in four of the five sessions.
    n = 400 if request.small else 4290
    vectors = np.ones(n, int)
    inputs = {"audio": (6373, vectors), "text": (768, vectors)}
    data, fold, config = made_up("lgf-add", inputs, "epochs=3")
    config = replace(config, device=request.device)
    configs = [
        replace(config, loss=loss, seed=seed)
        for seed in range(20)
        for loss in ("single", "perspective")
    ]

    def train(on_epoch: Callable[[Any], None]) -> None:
        fit_many(data, fold, configs, [on_epoch] * len(configs))

    dialogues = len(data.groups(fold.train, "dialogue"))
    batches = math.ceil(dialogues / config.settings.batch_size)
    yield from profiled("Perspective, 40 runs at once", batches, train)


def launches_of_mit(request: Request) -> Iterator[Row]:
    """A quarter of an epoch, in bfloat16 where the GPU has it."""
    import torch

    from ser.benchmarks.costs import made_up
    from ser.train.fit import fit

    n = 400 if request.small else 4290
    seconds = durations_of_share(n // 4, LABELLED_HOURS, 4 * LABELLED)
    inputs = {"audio": (768, frame_counts(seconds)), "text": (768, token_counts(seconds))}
    data, fold, config = made_up("mit", inputs, "epochs=3")
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    precision = "bf16" if has_bfloat16 else "float32"
    config = replace(config, device=request.device, precision=precision)

    def train(on_epoch: Callable[[Any], None]) -> None:
        fit(data, fold, config, lambda line, _: on_epoch(line))

    batches = math.ceil(len(fold.train) / config.settings.batch_size)
    yield from profiled("MIT", batches, train)


def profiled(
    what: str, updates: int, train: Callable[[Callable[[Any], None]], object]
) -> Iterator[Row]:
    """The third of three epochs under torch's profiler.

    Its time on the GPU against that of the second, which is without.
    """
    import torch

    kinds = torch.profiler.ProfilerActivity
    profiler = torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA])
    ends: dict[int, float] = {}

    def on_epoch(line: Any) -> None:
        torch.cuda.synchronize()
        # Of many runs, each tells of its own.
        if line.epoch in ends:
            return

        ends[line.epoch] = time.perf_counter()
        if line.epoch == 2:
            profiler.start()
        elif line.epoch == 3:
            profiler.stop()

    train(on_epoch)
    second_epoch = ends[2] - ends[1]

    calls = re.compile("cu.*(LaunchKernel|GraphLaunch|Memcpy|Memset)")
    launched = {}
    busy = 0.0
    for event in profiler.key_averages():
        if calls.match(event.key):
            launched[event.key] = event.count
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu and not event.is_user_annotation:
            busy += event.self_device_time_total / 1e6

    yield fact(f"{what}: launches an update", sum(launched.values()) / updates, **launched)
    yield fact(f"{what}: ms an update", 1e3 * second_epoch / updates)
    yield fact(f"{what}: share of the time that the GPU is busy", busy / second_epoch)
