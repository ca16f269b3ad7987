"""The options of `ser train`; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Experiment:
    """The options of `ser train`, under the same names."""

    features: str
    fusion: str
    store: Path | str = "features"
    corpus: str | None = None
    labels: str = "4class"
    protocol: str = "session-out"
    select: str = "val"
    loss: str = "single"
    seeds: int = 1  # how many: 0, 1, …
    folds: str | int = "all"  # or how many of the first
    epochs: int | None = None  # None: the fusion's own
    device: str = "auto"
    precision: str = "float32"  # or bf16: faster, other numbers
    set: tuple[str, ...] = ()  # key=value
    also_set: tuple[str, ...] = ()  # the same, where the fusion has that setting: for sweeps over several fusions
    resume: bool = False
    log: str | None = None  # tensorboard: curves in each run folder
    out: Path | str = "runs"
    limit: int | None = None
    allow_missing: bool = False
    model: tuple[str, ...] = ()  # NAME=ID_OR_FOLDER: where the weights of an encoder lie that is to be trained
    views: str = ""  # augmented features that training mixes in: logmel:view=pitch-1+logmel:view=noise-1
