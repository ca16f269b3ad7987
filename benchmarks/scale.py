"""The real planner, window and publisher at a size that no corpus here has.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.scale [UTTERANCES …]
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.scale --train [UTTERANCES …]

The first is by default of 250000 500000 1000000 utterances, with an extractor that costs nothing;
the second is what training takes, see `train`.

For each size: how long the planner takes and how much memory; then a process of its own plans, and
hands tasks to a cluster of two workers (each computes and publishes a real part, with fsync and
reading back): tasks per second, what a task costs that process in CPU time and memory, and what it
costs the workers. When an eighth of the parts is there that process is killed by SIGKILL, and the
same plan is made again: how long it takes to find what is missing. Each task looks twice at what
others have published, and lists a folder of up to all parts: what that costs where they are all
there. Times are CPU time, but for tasks per second. If any of these grows faster than the corpus,
or the cost of a task at all (but for that look), the exit code is 1.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch
from tabulate import tabulate

from ser.cache.feature import part_names
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.corpus.manifest import Manifest
from ser.corpus.schema import SCHEMA
from ser.extract.cluster import run_on_cluster
from ser.extract.corpora.scan import Scan
from ser.extract.extractor import Extractor
from ser.extract.plan import ExtractionConfig, plan
from ser.extract.registry import FEATURES, FeatureKind
from ser.extract.resolve import resolve

SIZES = (250_000, 500_000, 1_000_000)
TRAINING_SIZES = (100_000, 1_000_000)
DIM = 8
LOOKS = 20

# Of the text's own reckoning: 138 utterances a part, close to 133 of 4.5 s in 600 s of audio.
PART_SECONDS = 47.0
# One part in eight is published: minutes instead of an hour.
SHARE = 8
# What an utterance costs may be that many times what it costs in the smallest corpus.
SLACK = 1.35

# What training reads: vectors in parts of so many rows.
VECTOR_DIM = 64
ROWS_PER_PART = 2000


@dataclass(frozen=True)
class NothingConfig:
    """It has no settings."""


class Nothing(Extractor):
    """One row of zeros for each transcript."""

    name = "nothing"
    version = 1
    Config = NothingConfig
    batched = True

    @classmethod
    def dim(cls, config: NothingConfig, checkpoint: object) -> int:
        """A few zeros."""
        return DIM

    def extract(self, item: str) -> list[np.ndarray]:
        """The row."""
        return [np.zeros((1, DIM), np.float32)]


# Importing this module registers it: so does a worker that unpickles its config.
FEATURES["nothing"] = FeatureKind("text", "utterance", "zeros", Nothing)


def manifest(count: int) -> Manifest:
    """`count` utterances of eleven words, no two the same."""
    texts = [
        f"utterance {number:07d} has some eleven words of text as most have"
        for number in range(count)
    ]
    columns = {
        "id": [f"Ses{number // 10_000:03d}_{number:07d}" for number in range(count)],
        "audio": ["nothing.wav"] * count,
        "text": texts,
        "text_sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
        "duration": [4.5] * count,
    }

    arrays = []
    for field in SCHEMA:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name], field.type))
        else:
            arrays.append(pa.nulls(count, field.type))

    return Manifest("million", pa.table(arrays, schema=SCHEMA))


def request(count: int, folder: Path) -> tuple[ExtractionConfig, Scan]:
    """What would be read from the command line and the corpus."""
    config = ExtractionConfig(
        Path("nowhere"),
        "nothing",
        store=folder / "store",
        part_seconds=PART_SECONDS,
        batch_seconds=PART_SECONDS,
        on_error="skip",
    )
    return config, Scan(manifest(count), folder, "table")


def measure(count: int, folder: Path) -> dict[str, float]:
    """One size, in this process: plan, have a share of the parts published, and plan again.

    Another process publishes, and is killed.
    """
    config, scan = request(count, folder)
    [resolved] = resolve(["nothing"], {}, "float16")[0]
    store = open_store(config.store, create=True)
    store.put_manifest(scan.manifest)
    store.add(resolved.spec)

    me = psutil.Process()
    idle = me.memory_info().rss
    begun = time.process_time()
    parts = len(plan(config, scan).tasks())
    figures = {
        "utterances": count,
        "parts": parts,
        "plan s": time.process_time() - begun,
        "plan MB": megabytes_more(me, idle),
    }

    figures |= publish_and_kill(count, folder, parts / SHARE)
    # With those that were published while it died.
    published = len(part_names(store.path / "nothing" / resolved.spec.fingerprint))
    figures["there"] = published

    begun = time.process_time()
    missing = len(plan(config, scan).tasks())
    figures["resume s"] = time.process_time() - begun
    if missing != parts - published:
        raise SystemExit(
            f"{published} of {parts} parts are published, and {missing} are planned again"
        )

    figures["look ms"] = look(parts, folder / "full")
    return figures


def publish_and_kill(count: int, folder: Path, enough: float) -> dict[str, float]:
    """The last figures of a process that publishes, killed as soon as enough parts are there."""
    command = [sys.executable, "-m", "benchmarks.scale", "--publish", str(count), str(folder)]
    # Who is killed cannot clean up its semaphores: no warnings of them.
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    figures = {"there": 0.0}

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=quiet) as publisher:
        assert publisher.stdout is not None
        for line in publisher.stdout:
            figures = json.loads(line)
            if figures["there"] >= enough:
                break
        workers = psutil.Process(publisher.pid).children(recursive=True)
        publisher.kill()

    _, left = psutil.wait_procs(workers, timeout=60)
    if left or publisher.returncode != -signal.Signals["SIGKILL"]:
        raise SystemExit(
            f"it ended with {publisher.returncode}, "
            f"and left {len(left)} of {len(workers)} processes behind"
        )
    return figures


def look(parts: int, folder: Path) -> float:
    """Milliseconds of a task's two looks at a folder that has so many parts.

    At the second look there is one more.
    """
    for number in range(parts):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        (folder / "parts" / name).mkdir(parents=True)

    begun = time.process_time()
    for number in range(LOOKS):
        known = part_names(folder)
        (folder / "parts" / f"{number}").mkdir()
        assert part_names(folder) - known == {f"{number}"}

    return 1e3 * (time.process_time() - begun) / LOOKS


def publish(count: int, folder: Path) -> None:
    """As `ser features --scheduler local:2`, until somebody kills it.

    It prints a line of figures every now and then.
    """
    me = psutil.Process()
    config, scan = request(count, folder)
    tasks = plan(config, scan).tasks()
    peak = 0.0

    for done, _ in enumerate(run_on_cluster(tasks, "local:2", False)):
        # What all cost is counted from the end of the first task: there is a cluster then.
        if not done:
            idle = me.memory_info().rss
            begun = time.perf_counter()
            used_at_begin = time.process_time()
            worked_at_begin = seconds_of_children(me)
            continue

        if done % 20:
            continue
        peak = max(peak, megabytes_more(me, idle))
        used = time.process_time() - used_at_begin
        worked = seconds_of_children(me) - worked_at_begin
        figures = {
            "tasks/s": done / (time.perf_counter() - begun),
            "scheduler ms/task": 1e3 * used / done,
            "scheduler MB": peak,
            "worker ms/task": 1e3 * worked / done,
            "there": done,
        }
        print(json.dumps(figures), flush=True)


def seconds_of_children(process: psutil.Process) -> float:
    """Seconds of CPU that the processes under this one have taken."""
    seconds = 0.0
    for child in process.children(recursive=True):
        times = child.cpu_times()
        seconds += times.user + times.system

    return seconds


def megabytes_more(process: psutil.Process, before: int) -> float:
    """How much more memory a process has than these bytes."""
    return (process.memory_info().rss - before) / 1e6


def train(count: int, folder: Path) -> dict[str, float]:
    """Training's share of one size: opening, joining, planning, and reading an epoch.

    Seconds and memory. Vectors of 64 float32 in parts of 2,000; half of them is the budget of
    memory, so that they are streamed.
    """
    labelled = with_labels(manifest(count))
    store = open_store(folder / "store", create=True)
    store.put_manifest(labelled)
    spec = Spec("vector", "text", "utterance", VECTOR_DIM, "float32", "made-up", 1)
    feature = store.add(spec)

    inputs = labelled.inputs("text")
    random = np.random.default_rng(0)
    values = random.normal(size=(ROWS_PER_PART, 1, VECTOR_DIM)).astype(np.float32)
    for start in range(0, count, ROWS_PER_PART):
        ids = labelled.ids[start : start + ROWS_PER_PART]
        rows = PartRows("million", ids, inputs[start : start + len(ids)], list(values[: len(ids)]))
        publish_part(feature, rows)

    megabytes = count * VECTOR_DIM * 4 / 1e6
    command = [sys.executable, "-m", "benchmarks.scale"]
    command += ["--read", str(folder / "store"), f"{megabytes / 2:.3f}MB"]
    child = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return {"utterances": count, **json.loads(child.stdout)}


def with_labels(plain: Manifest) -> Manifest:
    """The same utterances with all that training asks of them."""
    numbers = np.arange(len(plain))
    labels = ("ang", "hap", "neu", "sad")
    columns = {
        "label": [labels[number] for number in numbers % 4],
        "session": [str(number) for number in numbers % 5],
        "dialogue": [f"d{number}" for number in numbers // 20],
        "speaker": [f"s{number}" for number in numbers % 10],
        "turn": numbers % 20,
    }

    table = plain.table
    for name, values in columns.items():
        field = SCHEMA.field(name)
        position = SCHEMA.get_field_index(name)
        table = table.set_column(position, field, pa.array(values, field.type))

    return Manifest("million", table)


def read(store: str, memory: str) -> None:
    """Open, join, plan, take the first batch and read an epoch; print what each took."""
    from ser.train.experiment import Experiment, prepare

    figures: dict[str, float] = {}
    me = psutil.Process()
    begun = time.process_time()
    idle = me.memory_info().rss

    def note(what: str) -> None:
        nonlocal begun
        figures[f"{what} s"] = time.process_time() - begun
        begun = time.process_time()

    opened = open_store(store)
    corpus = opened.manifest()
    feature = opened.feature("vector")
    note("open")

    feature.places(corpus, range(len(corpus)))
    note("join")

    [job] = prepare(Experiment("vector", "text", store=store, folds=1, device="cpu", memory=memory))
    note("plan")

    generator = torch.Generator().manual_seed(0)
    batches = job.data.batches(job.fold.train, "utterance", 40, {}, generator)
    next(batches)
    note("first batch")

    count = 1 + sum(1 for _ in batches)
    note("epoch")

    assert job.data.inputs["text"].streamed
    assert count == -(-len(job.fold.train) // 40)

    megabytes = megabytes_more(me, idle)
    budget = float(memory.removesuffix("MB"))
    figures["MB"] = megabytes
    figures["B per utterance, beside the budget"] = 1e6 * (megabytes - budget) / len(corpus)
    print(json.dumps(figures))


def compare_training(sizes: Sequence[int]) -> int:
    """Print what training takes at each size. 1 if anything grows faster than the corpus."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="ser-scale-") as folder:
            rows.append(train(size, Path(folder)))

    print(tabulate(rows, headers="keys", floatfmt=".3g", tablefmt="github"))
    first = rows[0]
    last = rows[-1]
    times = last["utterances"] / first["utterances"]

    faults = []
    for key in first:
        if key.endswith(" s") and last[key] > SLACK * times * max(first[key], 0.1):
            faults.append(key)

    return tell_faults(faults)


def main(sizes: Sequence[int]) -> int:
    """Measure each size in a process of its own, and print the table.

    1 if something grows faster than the corpus.
    """
    rows = []
    for size in sizes:
        command = [sys.executable, "-m", "benchmarks.scale", "--one", str(size)]
        child = subprocess.run(command, stdout=subprocess.PIPE)
        if child.returncode:
            return 1
        rows.append(json.loads(child.stdout))
        print(tabulate(rows[-1:], headers="keys", floatfmt=".3g"), file=sys.stderr)

    print(tabulate(rows, headers="keys", floatfmt=".3g", tablefmt="github"))
    return tell_faults(grown_too_fast(rows[0], rows[-1]))


def grown_too_fast(first: dict[str, float], last: dict[str, float]) -> list[str]:
    """The figures that grow faster than the corpus; those of a task, that grow at all."""
    times = last["utterances"] / first["utterances"]
    allowed = {
        "plan s": times * first["plan s"],
        "plan MB": times * first["plan MB"],
        "resume s": times * first["resume s"],
        "scheduler ms/task": first["scheduler ms/task"],
        "worker ms/task": first["worker ms/task"],
        "scheduler MB": times * max(first["scheduler MB"], 10),
        "look ms": times * max(first["look ms"], 1),
    }
    return [key for key, limit in allowed.items() if last[key] > SLACK * limit]


def tell_faults(faults: Sequence[str]) -> int:
    """Print the figures that grow too fast; the exit code."""
    for key in faults:
        print(f"{key}: grows faster than the corpus")

    return 1 if faults else 0


def measure_one(size: int) -> None:
    """Measure in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="ser-scale-") as folder:
        print(json.dumps(measure(size, Path(folder))))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--one", size]:
            measure_one(int(size))
        case ["--publish", size, folder]:
            publish(int(size), Path(folder))
        case ["--read", store, memory]:
            read(store, memory)
        case ["--train", *sizes]:
            sys.exit(compare_training([int(size) for size in sizes] or TRAINING_SIZES))
        case sizes:
            sys.exit(main([int(size) for size in sizes] or SIZES))
