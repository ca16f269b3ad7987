"""`ser features` under kill -9, at random moments, and three of it at once on one store."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ser.cache.store import Feature, Store, open_store
from ser.cache.verify import verify
from ser.errors import WrongUse
from ser.extract.corpora.demo import write_demo

COMMAND = [sys.executable, "-m", "ser"]
UTTERANCES = 32
BACKENDS = ["zarr", "hdf5"]
# IS13 and log-mel: utterance and frame level, a process that is soon at work, and seconds per run.
FEATURES = ["is13", "logmel"]


def command(corpus: Path, store: Path, backend: str) -> list[str]:
    return [
        *[*COMMAND, "features", str(corpus), "--features", ",".join(FEATURES), "--store", str(store)],
        *["--backend", backend, "--limit", str(UTTERANCES), "--part-seconds", "20", "--json"],
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "demo"
    write_demo(folder)
    return folder


@dataclass(frozen=True)
class Clean:
    """What a run that nobody disturbed has made, and how long it took."""

    backend: str
    store: Store
    seconds: float


@pytest.fixture(scope="module", params=BACKENDS)
def clean(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    path = tmp_path_factory.mktemp("clean") / "store"
    started = time.monotonic()
    subprocess.run(command(corpus, path, request.param), check=True, capture_output=True)
    return Clean(request.param, open_store(path), time.monotonic() - started)


def features(path: Path) -> Iterator[Feature]:
    """What a store holds, if there is one already."""
    try:
        store = open_store(path)
    except WrongUse:
        return
    yield from store.features()


def check_against(clean: Store, path: Path) -> dict[str, int]:
    """Every published row is the clean run's row. Returns the parts' files with their inodes."""
    manifest = clean.manifest()
    files = {}
    for feature in features(path):
        there = sorted(set(range(UTTERANCES)) - set(feature.missing(manifest)))
        packed = feature.load(manifest, there)
        wanted = clean[feature.spec.name].load(manifest, there)
        assert packed.values.tobytes() == wanted.values.tobytes()
        assert packed.offsets.tolist() == wanted.offsets.tolist()
        files |= {str(f.relative_to(path)): f.stat().st_ino for f in feature.path.glob("parts/*/part.json")}
    return files


def check_finished(clean: Store, path: Path) -> None:
    """Complete and true, each row in one part, nothing left over."""
    check_against(clean, path)
    for feature in open_store(path).features():
        assert sorted(id_ for part in feature.parts() for id_ in part.record.ids) == sorted(clean.manifest().ids)
    assert not [one for one in verify(open_store(path)) if one.problem]
    assert not list((path / "tmp").glob("*")) if (path / "tmp").exists() else True


def torture(clean: Clean, corpus: Path, folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill until there were `kills` deaths, starting a new store whenever one is complete."""
    backend, whole = clean.backend, clean.store
    rng = random.Random(seed)
    path, counts, took = folder / "store", Counter[str](), clean.seconds
    while counts["killed"] < kills:
        before = check_against(whole, path)
        process = subprocess.Popen(command(corpus, path, backend), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.3, 1.0) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        told, _ = process.communicate()
        after = check_against(whole, path)
        assert before.items() <= after.items(), "a published part is gone or was written again"
        if process.returncode == -signal.SIGKILL:
            counts["killed"] += 1
            counts["with parts"] += bool(after)
            counts["that published"] += after != before
            # The machine may be faster or slower by now: too soon for any part, or too late for any death.
            took *= 1.1 if after == before else 1.0
            continue
        assert process.returncode == 0
        took *= 0.95
        counts["finished"] += 1
        computed = json.loads(told)
        assert all(computed[name]["rows"] == UTTERANCES for name in FEATURES)
        check_finished(whole, path)
        shutil.rmtree(path)
    subprocess.run(command(corpus, path, backend), check=True, capture_output=True)
    check_finished(whole, path)
    return counts


def test_a_few_kills(clean: Clean, corpus: Path, tmp_path: Path) -> None:
    assert torture(clean, corpus, tmp_path, kills=3, seed=0)["killed"] == 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills(clean: Clean, corpus: Path, tmp_path: Path) -> None:
    counts = torture(clean, corpus, tmp_path, kills=100, seed=1)
    print(clean.backend, counts)
    assert counts["with parts"] > 50, "most runs should have published parts when they die"
    assert counts["that published"] > 20 and counts["finished"] > 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_at_once(clean: Clean, corpus: Path, tmp_path: Path) -> None:
    for race in range(15):
        path = tmp_path / f"store{race}"
        racers = [subprocess.Popen(command(corpus, path, clean.backend), stdout=subprocess.PIPE) for _ in range(3)]
        answers = [json.loads(racer.communicate()[0]) for racer in racers]
        assert [racer.returncode for racer in racers] == [0, 0, 0]
        assert all(answer[name]["rows"] == UTTERANCES for answer in answers for name in FEATURES)
        check_finished(clean.store, path)
