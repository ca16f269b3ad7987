"""What a newcomer has after the quick start, in small: a demo corpus of one dialogue a session,
random checkpoints, a store and trained runs. The fixtures are in conftest.py; made once per test
session and shared by its processes.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile as sf
from filelock import FileLock

from ser.extract.corpora.demo import demo_vocabulary
from ser.extract.run import ExtractionConfig, extract, plan
from ser.train.experiment import Experiment, run_experiment
from ser.train.run_folder import Run, find_runs
from ser.weights.demo import write_demo_checkpoints

FEATURES = ["hubert", "hubert:layers=all", "hubert:layers=all,pool=mean", "mpnet", "bert", "logmel"]
SMALL = ("d_model=16", "heads=2", "queries=3", "lr=1e-3")
RUNS = {
    "mit": Experiment("hubert+mpnet", "mit", set=SMALL),
    "mit-no-rmm": Experiment("hubert:hop=0.1+mpnet", "mit", set=(*SMALL, "rmm_start=0")),
    "lgf-add": Experiment("logmel+bert", "lgf-add", loss="perspective"),
    "vad": Experiment("logmel+bert", "lgf-add", target="vad"),
    "class+vad": Experiment("hubert+mpnet", "mit", set=SMALL, target="class+vad"),
    "icon": Experiment("logmel+bert", "icon", set=SMALL[:1]),
    "text": Experiment("mpnet", "text", also_set=SMALL),
    "superb": Experiment("hubert:layers=all,pool=mean+logmel", "superb"),
    "layers": Experiment("hubert:layers=1-2,hop=0.1", "audio", set=SMALL[:2]),
    "finetuned": Experiment("bert", "bert", set=("finetune_layers=all", "lr=1e-3")),
}
# What the recipes name beside `FEATURES`.
OF_RECIPES = ["bert-cased", "is13", "logmel:sampling_rate=22050", "mfcc:sampling_rate=22050"]
OF_RECIPES += [
    f"logmel:sampling_rate=22050,view={view}-1" for view in ("noise", "pitch", "stretch", "shift")
]


def write_inputs(folder: Path, demo_corpus: Path) -> dict[str, str]:
    """Write `corpus` and `checkpoints` under `folder`. Returns the folder of each encoder."""
    shutil.copytree(demo_corpus, folder / "corpus")
    shrink(folder / "corpus")
    checkpoints = write_demo_checkpoints(folder / "checkpoints", demo_vocabulary())
    return {name: str(path) for name, path in checkpoints.items()}


def shrink(corpus: Path) -> None:
    """Keep half a second of each turn of one dialogue a session: what is tested is the commands,
    not the corpus.
    """
    for session in corpus.glob("Session*"):
        names = sorted(path.name for path in (session / "sentences" / "wav").iterdir())
        for name in names[1:]:
            shutil.rmtree(session / "sentences" / "wav" / name)
            for path in session.rglob(f"{name}*"):
                if path.is_file():
                    path.unlink()
        for path in session.glob("sentences/wav/*/[!.]*.wav"):
            samples, rate = sf.read(path, dtype="int16")
            sf.write(path, samples[: rate // 2], rate)


def make_newcomer(folder: Path, demo_corpus: Path) -> None:
    """Write `corpus`, `checkpoints`, `features` and `runs` under `folder`."""
    models = write_inputs(folder, demo_corpus)
    extract(
        plan(
            ExtractionConfig(folder / "corpus", FEATURES, store=folder / "features", models=models)
        )
    )
    for name, experiment in RUNS.items():
        options = {
            "store": folder / "features",
            "out": folder / "runs" / name,
            "folds": 1,
            "epochs": 2,
        }
        run_experiment(Experiment(**{**vars(experiment), **options}))


def make_recipes_store(folder: Path, newcomer: Path) -> None:
    """Copy the newcomer's `corpus`, `checkpoints` and `features`, and add what the recipes name
    beside them.
    """
    for name in ("corpus", "checkpoints", "features"):
        shutil.copytree(newcomer / name, folder / name)
    models = {"bert-cased": str(folder / "checkpoints" / "bert-random")}
    extract(
        plan(
            ExtractionConfig(
                folder / "corpus", OF_RECIPES, store=folder / "features", models=models
            )
        )
    )


def run_of(folder: Path, name: str) -> Run:
    """One of `RUNS`."""
    [run] = find_runs(folder / "runs" / name)
    return run


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, whichever process of the test session comes first."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent  # the processes' own folders lie in it
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not (folder / "done").exists():
            make(folder)
            (folder / "done").touch()
    return folder
