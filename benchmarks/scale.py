"""The real planner, window and publisher at a size that no corpus here has, with an extractor that
costs nothing.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.scale [UTTERANCES …]      by default 250000 500000 1000000
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.scale --train [UTTERANCES …]     what training takes, see `train`

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
PART_SECONDS = 47.0  # of the text's own reckoning: 138 utterances a part, close to 133 of 4.5 s in 600 s of audio
DIM = 8
SHARE = 8  # one part in eight is published: minutes instead of an hour
LOOKS = 20
SLACK = 1.35  # what an utterance costs may be that many times what it costs in the smallest corpus


@dataclass(frozen=True)
class NothingConfig:
    """It has no settings."""


class Nothing(Extractor):
    """One row of zeros for each transcript."""

    name, version, Config = "nothing", 1, NothingConfig
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
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type)
        for f in SCHEMA
    ]
    return Manifest("million", pa.table(arrays, schema=SCHEMA))


def asked(count: int, folder: Path) -> tuple[ExtractionConfig, Scan]:
    """What would be read from the command line and the corpus."""
    request = ExtractionConfig(
        Path("nowhere"),
        "nothing",
        store=folder / "store",
        part_seconds=PART_SECONDS,
        batch_seconds=PART_SECONDS,
        on_error="skip",
    )
    return request, Scan(manifest(count), folder, "table")


def measure(count: int, folder: Path) -> dict[str, float]:
    """One size, in this process: plan; have a share of the parts published by another, kill it, and
    plan again.
    """
    request, scan = asked(count, folder)
    [wanted] = resolve(["nothing"], {}, "float16")[0]
    store = open_store(request.store, create=True)
    store.put_manifest(scan.manifest)
    store.add(wanted.spec)
    me = psutil.Process()
    idle, begun = me.memory_info().rss, time.process_time()
    parts = plan(request, scan).tasks()
    planned = time.process_time() - begun
    found = {
        "utterances": count,
        "parts": len(parts),
        "plan s": planned,
        "plan MB": _more(me, idle),
    }

    done = {"there": 0.0}
    command = [sys.executable, "-m", "benchmarks.scale", "--publish", str(count), str(folder)]
    quiet = {
        **os.environ,
        "PYTHONWARNINGS": "ignore",
    }  # of semaphores that whoever is killed cannot clean up
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=quiet) as publisher:
        assert publisher.stdout is not None
        for line in publisher.stdout:
            done = json.loads(line)
            if done["there"] >= len(parts) / SHARE:
                break
        workers = psutil.Process(publisher.pid).children(recursive=True)
        publisher.kill()
    if (
        left := psutil.wait_procs(workers, timeout=60)[1]
    ) or publisher.returncode != -signal.Signals["SIGKILL"]:
        raise SystemExit(
            f"it ended with {publisher.returncode}, and left {len(left)} of {len(workers)} processes behind"
        )
    found |= done
    # With those that were published while it died.
    found["there"] = len(part_names(store.path / "nothing" / wanted.spec.fingerprint))

    begun = time.process_time()
    missing = plan(request, scan).tasks()
    found["resume s"] = time.process_time() - begun
    if len(missing) != len(parts) - found["there"]:
        raise SystemExit(
            f"{found['there']} of {len(parts)} parts are published, and {len(missing)} are planned again"
        )
    found["look ms"] = look(len(parts), folder / "full")
    return found


def look(parts: int, folder: Path) -> float:
    """Milliseconds of a task's two looks at a folder that has so many parts, and one more at the
    second look.
    """
    for number in range(parts):
        (folder / "parts" / hashlib.sha256(str(number).encode()).hexdigest()).mkdir(parents=True)
    begun = time.process_time()
    for number in range(LOOKS):
        known = part_names(folder)
        (folder / "parts" / f"{number}").mkdir()
        assert part_names(folder) - known == {f"{number}"}
    return 1e3 * (time.process_time() - begun) / LOOKS


def publish(count: int, folder: Path) -> None:
    """As `ser features --scheduler local:2`, until somebody kills it; a line of figures every now
    and then.
    """
    me = psutil.Process()
    tasks = plan(*asked(count, folder)).tasks()
    idle, begun, busy, worked = 0, time.perf_counter(), time.process_time(), 0.0
    peak = 0.0
    for done, _ in enumerate(run_on_cluster(tasks, "local:2", False)):
        if not done:
            idle, begun, busy, worked = (
                me.memory_info().rss,
                time.perf_counter(),
                time.process_time(),
                _spent(me),
            )
        elif done % 20 == 0:
            peak = max(peak, _more(me, idle))
            figures = {
                "tasks/s": done / (time.perf_counter() - begun),
                "scheduler ms/task": 1e3 * (time.process_time() - busy) / done,
                "scheduler MB": peak,
                "worker ms/task": 1e3 * (_spent(me) - worked) / done,
            }
            print(json.dumps({**figures, "there": done}), flush=True)


def _spent(process: psutil.Process) -> float:
    """Seconds of CPU that the processes under this one have taken."""
    return sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))


def _more(process: psutil.Process, than: int) -> float:
    return (process.memory_info().rss - than) / 1e6


def train(count: int, folder: Path) -> dict[str, float]:
    """Training's share of one size: seconds and memory of opening, joining and planning, and of
    reading an epoch.

    Vectors of 64 float32 in parts of 2,000; half of them is the budget of memory, so that they are
    streamed.
    """
    plain, number = manifest(count), np.arange(count)
    columns = {
        "label": [("ang", "hap", "neu", "sad")[one] for one in number % 4],
        "session": [str(one) for one in number % 5],
        "dialogue": [f"d{one}" for one in number // 20],
        "speaker": [f"s{one}" for one in number % 10],
        "turn": number % 20,
    }
    table = plain.table
    for name, values in columns.items():
        field = SCHEMA.field(name)
        table = table.set_column(SCHEMA.get_field_index(name), field, pa.array(values, field.type))
    made, inputs = Manifest("million", table), plain.inputs("text")
    store = open_store(folder / "store", create=True)
    store.put_manifest(made)
    feature = store.add(Spec("vector", "text", "utterance", 64, "float32", "made-up", 1))
    values = np.random.default_rng(0).normal(size=(2000, 1, 64)).astype(np.float32)
    for start in range(0, count, len(values)):
        ids = plain.ids[start : start + len(values)]
        publish_part(
            feature,
            PartRows("million", ids, inputs[start : start + len(ids)], list(values[: len(ids)])),
        )
    bytes_ = count * 64 * 4
    command = [
        sys.executable,
        "-m",
        "benchmarks.scale",
        "--read",
        str(folder / "store"),
        f"{bytes_ / 2e6:.3f}MB",
    ]
    child = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return {"utterances": count, **json.loads(child.stdout)}


def read(store: str, memory: str) -> None:
    """Open, join, plan, take the first batch and read an epoch, and print what each took."""
    from ser.train.experiment import Experiment, prepare

    me, found, begun = psutil.Process(), dict[str, float](), time.process_time()
    idle = me.memory_info().rss

    def note(what: str) -> None:
        nonlocal begun
        found[f"{what} s"], begun = time.process_time() - begun, time.process_time()

    opened = open_store(store)
    corpus, feature = opened.manifest(), opened.feature("vector")
    note("open")
    feature.places(corpus, range(len(corpus)))
    note("join")
    [job] = prepare(Experiment("vector", "text", store=store, folds=1, device="cpu", memory=memory))
    note("plan")
    rows = job.data.batches(job.fold.train, "utterance", 40, {}, torch.Generator().manual_seed(0))
    next(rows)
    note("first batch")
    batches = 1 + sum(1 for _ in rows)
    note("epoch")
    assert job.data.inputs["text"].streamed and batches == -(-len(job.fold.train) // 40)
    found["MB"] = _more(me, idle)
    found["B per utterance, beside the budget"] = (
        1e6 * (found["MB"] - float(memory[:-2])) / len(corpus)
    )
    print(json.dumps(found))


def compare(sizes: Sequence[int]) -> int:
    """Print what training takes at each size. 1 if anything grows faster than the corpus."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="ser-scale-") as folder:
            rows.append(train(size, Path(folder)))
    print(tabulate(rows, headers="keys", floatfmt=".3g", tablefmt="github"))
    times = rows[-1]["utterances"] / rows[0]["utterances"]
    faults = [
        key
        for key in rows[0]
        if key.endswith(" s") and rows[-1][key] > SLACK * times * max(rows[0][key], 0.1)
    ]
    for key in faults:
        print(f"{key}: grows faster than the corpus")
    return 1 if faults else 0


def main(sizes: Sequence[int]) -> int:
    """Measure each size in a process of its own, and print the table. 1 if something grows faster
    than the corpus.
    """
    rows = []
    for size in sizes:
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale", "--one", str(size)], stdout=subprocess.PIPE
        )
        if child.returncode:
            return 1
        rows.append(json.loads(child.stdout))
        print(tabulate(rows[-1:], headers="keys", floatfmt=".3g"), file=sys.stderr)
    print(tabulate(rows, headers="keys", floatfmt=".3g", tablefmt="github"))
    first, last = rows[0], rows[-1]
    times = last["utterances"] / first["utterances"]
    faults = [
        key for key in ("plan s", "plan MB", "resume s") if last[key] > SLACK * times * first[key]
    ]
    faults += [
        key for key in ("scheduler ms/task", "worker ms/task") if last[key] > SLACK * first[key]
    ]
    faults += [key for key in ("scheduler MB",) if last[key] > SLACK * times * max(first[key], 10)]
    faults += [key for key in ("look ms",) if last[key] > SLACK * times * max(first[key], 1)]
    for key in faults:
        print(f"{key}: grows faster than the corpus")
    return 1 if faults else 0


def one(size: int) -> None:
    """Measure in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="ser-scale-") as folder:
        print(json.dumps(measure(size, Path(folder))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(int(sys.argv[2]))
    elif sys.argv[1:2] == ["--publish"]:
        publish(int(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:2] == ["--read"]:
        read(sys.argv[2], sys.argv[3])
    elif sys.argv[1:2] == ["--train"]:
        sys.exit(compare([int(size) for size in sys.argv[2:]] or (100_000, 1_000_000)))
    else:
        sys.exit(main([int(size) for size in sys.argv[1:]] or SIZES))
