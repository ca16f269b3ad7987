"""What a newcomer has after the quick start, in small.

That is a demo corpus of one dialogue a session, random checkpoints, a store and trained runs. The
fixtures are in conftest.py; made once per test session and shared by its processes.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import soundfile as sf
from filelock import FileLock

from ser.cache.store import open_store
from ser.extract.corpora.demo import demo_vocabulary
from ser.extract.run import ExtractionConfig, extract, plan
from ser.predict import Turn
from ser.train.experiment import Experiment, run_experiment
from ser.train.run_folder import Run, find_runs
from ser.weights.demo import write_demo_checkpoints

FEATURES = ["hubert", "hubert:layers=all", "hubert:layers=all,pool=mean", "mpnet", "bert", "logmel"]

# Settings of a small model.
SMALL = ("d_model=16", "heads=2", "queries=3", "lr=1e-3")

RUNS = {
    "mit": Experiment("hubert+mpnet", "mit", set=SMALL),
    "mit-no-rmm": Experiment("hubert:hop=0.1+mpnet", "mit", set=(*SMALL, "rmm_start=0")),
    "lgf-add": Experiment("logmel+bert", "lgf-add", loss="perspective"),
    "vad": Experiment("logmel+bert", "lgf-add", target="vad"),
    "class+vad": Experiment("hubert+mpnet", "mit", set=SMALL, target="class+vad"),
    "icon": Experiment("logmel+bert", "icon", set=("d_model=16",)),
    "text": Experiment("mpnet", "text", also_set=SMALL),
    "superb": Experiment("hubert:layers=all,pool=mean+logmel", "superb"),
    "layers": Experiment("hubert:layers=1-2,hop=0.1", "audio", set=("d_model=16", "heads=2")),
    "finetuned": Experiment("bert", "bert", set=("finetune_text=all", "lr=1e-3")),
}

# What the recipes name beside `FEATURES`.
OF_RECIPES = [
    "bert-cased",
    "is13",
    "logmel:sampling_rate=22050",
    "mfcc:sampling_rate=22050",
    "logmel:sampling_rate=22050,view=noise-1",
    "logmel:sampling_rate=22050,view=pitch-1",
    "logmel:sampling_rate=22050,view=stretch-1",
    "logmel:sampling_rate=22050,view=shift-1",
]


def write_inputs(folder: Path, demo_corpus: Path) -> dict[str, str]:
    """Write `corpus` and `checkpoints` under `folder`. Returns the folder of each encoder."""
    shutil.copytree(demo_corpus, folder / "corpus")
    shrink(folder / "corpus")
    checkpoints = write_demo_checkpoints(folder / "checkpoints", demo_vocabulary())
    return {name: str(path) for name, path in checkpoints.items()}


def shrink(corpus: Path) -> None:
    """Keep half a second of each turn of one dialogue a session.

    What is tested is the commands, not the corpus.
    """
    for session in corpus.glob("Session*"):
        audio = session / "sentences" / "wav"
        _, *others = sorted(path.name for path in audio.iterdir())
        for dialogue in others:
            remove_dialogue(session, dialogue)

        for path in audio.glob("*/[!.]*.wav"):
            samples, rate = sf.read(path, dtype="int16")
            sf.write(path, samples[: rate // 2], rate)


def remove_dialogue(session: Path, dialogue: str) -> None:
    """Remove the audio of a dialogue, and every other file that is named after it."""
    shutil.rmtree(session / "sentences" / "wav" / dialogue)
    for path in session.rglob(f"{dialogue}*"):
        if path.is_file():
            path.unlink()


def add_features(folder: Path, features: Sequence[str], models: dict[str, str]) -> None:
    """Extract features of `corpus` under `folder` into `features`."""
    config = ExtractionConfig(folder / "corpus", features, store=folder / "features", models=models)
    extract(plan(config))


def make_newcomer(folder: Path, demo_corpus: Path) -> None:
    """Write `corpus`, `checkpoints`, `features` and `runs` under `folder`."""
    models = write_inputs(folder, demo_corpus)
    add_features(folder, FEATURES, models)
    for name, experiment in RUNS.items():
        options = {
            **vars(experiment),
            "store": folder / "features",
            "out": folder / "runs" / name,
            "folds": 1,
            "epochs": 2,
        }
        run_experiment(Experiment(**options))


def make_recipes_store(folder: Path, newcomer: Path) -> None:
    """Copy the newcomer's `corpus`, `checkpoints` and `features`, and add what the recipes name."""
    for name in ("corpus", "checkpoints", "features"):
        shutil.copytree(newcomer / name, folder / name)
    models = {"bert-cased": str(folder / "checkpoints" / "bert-random")}
    add_features(folder, OF_RECIPES, models)


def run_of(folder: Path, name: str) -> Run:
    """One of `RUNS`."""
    [run] = find_runs(folder / "runs" / name)
    return run


def turns_of_test_part(folder: Path, run: Run) -> list[Turn]:
    """The utterances of the run's test part, as somebody would bring them."""
    manifest = open_store(folder / "features").manifest()
    rows = {row["id"]: row for row in manifest.table.to_pylist()}

    turns = []
    for id_ in run.predictions().column("id").to_pylist():
        row = rows[id_]
        turn = Turn(
            id_,
            folder / "corpus" / row["audio"],
            row["text"],
            row["dialogue"],
            row["turn"],
            row["speaker"],
        )
        turns.append(turn)
    return turns


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, whichever process of the test session comes first."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        # The processes' own folders lie in it.
        shared = shared.parent

    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not (folder / "done").exists():
            make(folder)
            (folder / "done").touch()
    return folder
