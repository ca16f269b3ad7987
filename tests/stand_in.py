"""A text feature whose extractor is cheap, and may be told by a transcript to wait or to kill its
process.

Importing this module registers it, and so does unpickling a task that names it: dask workers need
no more. Where the environment says SER_STAND_IN_SPARED, nobody is killed; where SER_STAND_IN_GO
names a file, who waits goes on with it.
"""

import gc
import hashlib
import os
import signal
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ser.engines import cached
from ser.engines.worker_cache import kept
from ser.errors import UtteranceError
from ser.extract.extractor import Extractor
from ser.extract.registry import FEATURES, FeatureKind

DIM = 8
OPEN: "weakref.WeakSet[object]" = (
    weakref.WeakSet()
)  # extractors that this process has and nobody let go


@dataclass(frozen=True)
class StandInConfig:
    """Its settings."""

    shift: float = 0.0


class StandInExtractor(Extractor):
    """Numbers made from the sha256 of a transcript; "[kill]", "[sleep 0.5]", "[wait]" and "[bad]"
    in it are obeyed.
    """

    name, version, Config = "standin", 1, StandInConfig
    packages = ("numpy",)

    @classmethod
    def dim(cls, config: StandInConfig, checkpoint: object) -> int:
        """A few bytes of the hash."""
        return DIM

    def open(self) -> None:
        """Note it."""
        OPEN.add(self)
        _note("opened")

    def extract(self, item: str) -> list[np.ndarray]:
        """One row per transcript."""
        if "[kill]" in item and "SER_STAND_IN_SPARED" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        if "[bad]" in item:
            raise UtteranceError("it says [bad]")
        _, slow, seconds = item.partition("[sleep ")
        if slow:
            time.sleep(float(seconds.partition("]")[0]))
        while "[wait]" in item and not Path(os.environ.get("SER_STAND_IN_GO", "/")).exists():
            time.sleep(0.02)
        _note("computed")
        digest = hashlib.sha256(item.encode()).digest()[:DIM]
        return [np.frombuffer(digest, np.uint8).astype(np.float32)[None] + self.config.shift]


def _note(what: str) -> None:
    """One line per event in the file that the environment names: how often, and in which process."""
    if (log := os.environ.get("SER_STAND_IN_LOG")) is not None:
        with Path(log).open("a") as lines:
            lines.write(f"{what} {os.getpid()}\n")


for _name in ("standin", "standin2"):
    FEATURES[_name] = FeatureKind("text", "utterance", "numbers from a hash", StandInExtractor)


def worker_name(task: object) -> str:
    """Which dask worker has this task."""
    from distributed import get_worker

    time.sleep(0.05)
    return str(get_worker().name)


class Thing:
    """What a task may hold open."""

    def __init__(self) -> None:
        OPEN.add(self)
        _note("opened")

    def close(self) -> None:
        """By whoever lets it go."""
        _note("closed")


def with_thing(task: object) -> int:
    """Which process has this task, and the thing in hand."""
    with cached("thing", Thing):
        time.sleep(0.05)
    return os.getpid()


def left_open() -> int:
    """How much this worker keeps open."""
    gc.collect()
    return len(OPEN)


def loaded() -> tuple[int, int]:
    """How many things this worker keeps for sweeps, and how many features their caches hold."""
    from ser.train.data.memory import DataCache

    caches = [found for found in gc.get_objects() if isinstance(found, DataCache)]
    return len(kept), sum(len(cache.inputs) for cache in caches)
