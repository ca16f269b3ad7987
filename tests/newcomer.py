"""What a newcomer has after the quick start, in small: a demo corpus of one dialogue a session, random checkpoints, a
store and trained runs. Made once per test session, shared by its processes, and copied where a test writes.
"""

import shutil
from pathlib import Path

import pytest

from ser.extract.corpora.demo import demo_vocabulary, write_demo
from ser.extract.run import ExtractionConfig, extract, plan
from ser.tests.demo_store import once
from ser.train.experiment import Experiment, run_experiment
from ser.train.run_folder import Run, find_runs
from ser.weights.demo import write_demo_checkpoints

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


def make(folder: Path) -> None:
    """Write `corpus`, `checkpoints`, `features` and `runs` under `folder`."""
    write_demo(folder / "corpus")
    shrink(folder / "corpus")
    models = {
        name: str(path) for name, path in write_demo_checkpoints(folder / "checkpoints", demo_vocabulary()).items()
    }
    names = "hubert,hubert:layers=all,hubert:layers=all,pool=mean,mpnet,bert,logmel"
    request = ExtractionConfig(folder / "corpus", names, store=folder / "features", models=models)
    extract(plan(request))
    for name, experiment in RUNS.items():
        options = {"store": folder / "features", "out": folder / "runs" / name, "folds": 1, "epochs": 2}
        run_experiment(Experiment(**{**vars(experiment), **options}))


def shrink(corpus: Path) -> None:
    """Keep the first dialogue of each session: what is tested is the commands, not the corpus."""
    for session in corpus.glob("Session*"):
        names = sorted(path.name for path in (session / "sentences" / "wav").iterdir())
        for name in names[1:]:
            shutil.rmtree(session / "sentences" / "wav" / name)
            for path in session.rglob(f"{name}*"):
                if path.is_file():
                    path.unlink()


def run_of(folder: Path, name: str) -> Run:
    """One of `RUNS`."""
    [run] = find_runs(folder / "runs" / name)
    return run


@pytest.fixture(scope="session")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, not to be written to."""
    return once(tmp_path_factory, "newcomer", make)
