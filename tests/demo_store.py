"""The whole demo corpus with the features of every recipe, computed as `ser features` does, with small random encoders.
Made once per test session and shared by its processes; not to be written to.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ser.extract.corpora.demo import demo_vocabulary, write_demo
from ser.extract.run import ExtractionConfig, extract, plan
from ser.weights.demo import write_demo_checkpoints

FEATURES = "hubert,hubert:layers=all,pool=mean,mpnet,bert,bert-cased,is13,logmel,logmel:sampling_rate=22050"
VIEWS = ("noise", "pitch", "stretch", "shift")


def make(folder: Path) -> None:
    write_demo(folder / "corpus")
    checkpoints = write_demo_checkpoints(folder / "checkpoints", demo_vocabulary())
    models = {name: str(path) for name, path in checkpoints.items()} | {"bert-cased": str(checkpoints["bert"])}
    names = [FEATURES, "mfcc:sampling_rate=22050", *(f"logmel:sampling_rate=22050,view={view}-1" for view in VIEWS)]
    extract(plan(ExtractionConfig(folder / "corpus", names, store=folder / "features", models=models)))


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, whichever process of the test session comes first."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent  # the processes' own folders lie in it
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            make(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "demo", make) / "features"
