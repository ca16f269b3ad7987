"""A text feature whose extractor is cheap, and obeys transcripts that tell it to wait or to die.

Importing this module registers it, and so does unpickling a task that names it: dask workers need
no more. Where the environment says SER_STAND_IN_SPARED, nobody is killed; where SER_STAND_IN_GO
names a file, who waits goes on with it.
"""

import gc
import hashlib
import os
import re
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

# Extractors that this process has and nobody let go.
OPEN: "weakref.WeakSet[object]" = weakref.WeakSet()


@dataclass(frozen=True)
class StandInConfig:
    """Its settings."""

    shift: float = 0.0


class StandInExtractor(Extractor):
    """Numbers made from the sha256 of a transcript.

    It obeys "[kill]", "[sleep 0.5]", "[wait]" and "[bad]" in the transcript.
    """

    name = "standin"
    version = 1
    Config = StandInConfig
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
        """One row `[1, DIM]` per transcript."""
        if "[kill]" in item and "SER_STAND_IN_SPARED" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        if "[bad]" in item:
            raise UtteranceError("it says [bad]")

        nap = re.search(r"\[sleep ([^\]]+)\]", item)
        if nap is not None:
            time.sleep(float(nap[1]))

        go = Path(os.environ.get("SER_STAND_IN_GO", "/"))
        while "[wait]" in item and not go.exists():
            time.sleep(0.02)

        _note("computed")
        digest = hashlib.sha256(item.encode()).digest()[:DIM]
        values = np.frombuffer(digest, np.uint8).astype(np.float32)
        return [values[None] + self.config.shift]


def _note(event: str) -> None:
    """Add a line to the file that the environment names: what happened, and in which process."""
    log = os.environ.get("SER_STAND_IN_LOG")
    if log is not None:
        with Path(log).open("a") as lines:
            lines.write(f"{event} {os.getpid()}\n")


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

    caches = [thing for thing in gc.get_objects() if isinstance(thing, DataCache)]
    return len(kept), sum(len(cache.inputs) for cache in caches)
