"""Speech emotion recognition in two stages: extract features once, train every fusion on them.

    import ser

    ser.extract_features(corpus="demo/corpus", features="hubert,mpnet", store="demo/features")
    store = ser.open_store("demo/features")
    frames = store["hubert"]["Ses01F_impro01_F000"]     # numpy, [frames, dim]

    experiment = ser.Experiment("hubert+mpnet", "mit", store="demo/features", folds=1)
    [run] = ser.run_experiment(experiment)
    answer = ser.Predictor(run.path)([ser.Turn("1", "hello.wav", "hello there")])

Stage 1: `read_corpus`, `ExtractionConfig`, `extract_features`. The store: `open_store`, `pooled`,
`utterances`. Stage 2: `Experiment`, `run_experiment`, `load_run`, `find_runs`, `TorchDataset`. New
speech: `Predictor` and `Turn`. What goes wrong is a `SerError` with one sentence to read; the
library never prints.

Each name is imported when it is first used, so `import ser` takes no time. This file is a door: it
alone may import any room, and no room imports a name from it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ser.cache.feature import Feature
    from ser.cache.store import Store, open_store
    from ser.cache.tools.tables import utterances
    from ser.corpus.manifest import Manifest
    from ser.errors import SerError
    from ser.extract.config import ExtractionConfig
    from ser.extract.feature_names import pooled
    from ser.extract.features import extract_features, read_corpus
    from ser.extract.run import Summary
    from ser.predict import Answer, Prediction, Predictor, Predictors, SeveralAnswers, Turn
    from ser.train.experiment import run_experiment
    from ser.train.options import Experiment
    from ser.train.run_folder import Run, find_runs, load_run
    from ser.train.torch_dataset import TorchDataset

    __version__: str

__all__ = [
    "Answer",
    "Experiment",
    "ExtractionConfig",
    "Feature",
    "Manifest",
    "Prediction",
    "Predictor",
    "Predictors",
    "Run",
    "SerError",
    "SeveralAnswers",
    "Store",
    "Summary",
    "TorchDataset",
    "Turn",
    "__version__",
    "extract_features",
    "find_runs",
    "load_run",
    "open_store",
    "pooled",
    "read_corpus",
    "run_experiment",
    "utterances",
]

_MODULES = {
    "Answer": "ser.predict",
    "Experiment": "ser.train.options",
    "ExtractionConfig": "ser.extract.config",
    "Feature": "ser.cache.feature",
    "Manifest": "ser.corpus.manifest",
    "Prediction": "ser.predict",
    "Predictor": "ser.predict",
    "Predictors": "ser.predict",
    "Run": "ser.train.run_folder",
    "SerError": "ser.errors",
    "SeveralAnswers": "ser.predict",
    "Store": "ser.cache.store",
    "Summary": "ser.extract.run",
    "TorchDataset": "ser.train.torch_dataset",
    "Turn": "ser.predict",
    "extract_features": "ser.extract.features",
    "find_runs": "ser.train.run_folder",
    "load_run": "ser.train.run_folder",
    "open_store": "ser.cache.store",
    "pooled": "ser.extract.feature_names",
    "read_corpus": "ser.extract.features",
    "run_experiment": "ser.train.experiment",
    "utterances": "ser.cache.tools.tables",
}


def __getattr__(name: str) -> Any:
    """The public name, imported from its room when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        from ser.errors import DISTRIBUTION

        value: Any = version(DISTRIBUTION)
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'ser' has no attribute {name!r}")

    # So that the next time no function is called.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What completion and `help(ser)` show."""
    return sorted({*globals(), *__all__})
