"""The options of `ser train`, declared once: for the command line, for recipes and for Python.
Imports nothing heavy.

The commands make one click option of each field of `Experiment` that options.toml names
(`fields(Experiment)`, in order): its name with `-` for `_`, its default, and from there (its
`TEXTS`) the `help`, `metavar` and `choices`. `field.type` says the rest: `bool` is a flag,
`tuple[str, ...]` is repeatable, `int` and `int | None` are numbers from 1, `Path | str` is a path,
and all else is text. What an option may hold is checked by `experiment.prepare`, whoever made the
experiment.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

__all__ = ["Experiment"]

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SELECTIONS: Mapping[str, str] = TEXTS["select"]["choices"]


@dataclass(frozen=True)
class Experiment:
    """What `ser train` is asked for: every fold and seed of one configuration."""

    TEXTS: ClassVar[Mapping[str, Mapping[str, Any]]] = TEXTS
    features: str
    fusion: str
    store: Path | str = "features"
    corpus: str | None = None
    labels: str = "4class"
    target: str = "class"
    protocol: str = "session-out"
    only: str | None = None
    select: str = "val"
    loss: str = "single"
    seeds: int = 1
    folds: str | int = "all"
    epochs: int | None = None
    device: str = "auto"
    precision: str = "auto"
    set: tuple[str, ...] = ()
    also_set: tuple[
        str, ...
    ] = ()  # as `set`, where the fusion has that setting: for sweeps over several fusions
    resume: bool = False
    log: str | None = None
    out: Path | str = "runs"
    limit: int | None = None
    allow_missing: bool = False
    model: tuple[str, ...] = ()
    views: str = ""
    deterministic: bool = False
    memory: str | None = None


def assignments(table: Mapping[str, Any]) -> tuple[str, ...]:
    """A TOML table as the `key=value` assignments of `--set`."""
    return tuple(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in table.items()
    )
