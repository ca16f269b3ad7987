"""Recipes at sizes that train in a moment, for the tests of sweeps."""

from pathlib import Path
from typing import Any

from ser.train.data.memory import DataCache
from ser.train.experiment import prepare
from ser.train.settings import has_setting
from ser.train.sweep.recipe import Recipe, read_recipe

TINY = (
    "d_model=16",
    "gru_hidden=8",
    "heads=2",
    "frames=48",
    "channels=2",
    "lstm_hidden=8",
    "batch_size=8",
)
CACHE = DataCache()


def tiny(
    name: str | Path, store: Path, out: Path, known: tuple[str, ...] = TINY, **options: Any
) -> Recipe:
    """The recipe at tiny sizes: one epoch, one fold, one seed."""
    short = {"epochs": 1, "folds": 1, "seeds": 1, "device": "cpu"}
    options = {"store": store, "out": out, **short, **options}

    fusions = []
    for cell in read_recipe(name, **options).cells:
        fusions.append(prepare(cell.experiment, CACHE)[0].config.fusion)

    used = []
    for setting in known:
        if any(has_setting(fusion, setting) for fusion in fusions):
            used.append(setting)
    return read_recipe(name, set=tuple(used), **options)
