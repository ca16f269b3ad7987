"""The options of `ser train`, declared once: for the command line, for recipes and for Python. Imports nothing heavy.

The commands make one click option of each field of `Experiment` that options.toml names (`fields(Experiment)`, in
order): its name with `-` for `_`, its default, and from there (its `metadata`) the `help`, `metavar` and `choices`.
`field.type` says the rest: `bool` is a flag, `tuple[str, ...]` is repeatable, `int` and `int | None` are numbers from
1, `Path | str` is a path, and all else is text. What an option may hold is checked by `experiment.prepare`, whoever
made the experiment.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Experiment"]

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SELECTIONS: Mapping[str, str] = TEXTS["select"]["choices"]


def option(name: str, default: Any = MISSING) -> Any:
    """The field of `Experiment` of that name, an option of the commands, with what options.toml says of it."""
    return field(default=default, metadata=TEXTS[name])


@dataclass(frozen=True)
class Experiment:
    """What `ser train` is asked for: every fold and seed of one configuration."""

    features: str = option("features")
    fusion: str = option("fusion")
    store: Path | str = option("store", "features")  # noqa: RUF009 (immutable)
    corpus: str | None = option("corpus", None)
    labels: str = option("labels", "4class")
    target: str = option("target", "class")
    protocol: str = option("protocol", "session-out")
    only: str | None = option("only", None)
    select: str = option("select", "val")
    loss: str = option("loss", "single")
    seeds: int = option("seeds", 1)
    folds: str | int = option("folds", "all")
    epochs: int | None = option("epochs", None)
    device: str = option("device", "auto")
    precision: str = option("precision", "auto")
    set: tuple[str, ...] = option("set", ())
    also_set: tuple[str, ...] = ()  # as `set`, where the fusion has that setting: for sweeps over several fusions
    resume: bool = False
    log: str | None = option("log", None)
    out: Path | str = option("out", "runs")  # noqa: RUF009
    limit: int | None = option("limit", None)
    allow_missing: bool = option("allow_missing", False)
    model: tuple[str, ...] = option("model", ())
    views: str = option("views", "")
    deterministic: bool = option("deterministic", False)
    memory: str | None = option("memory", None)


def assignments(table: Mapping[str, Any]) -> tuple[str, ...]:
    """A TOML table as the `key=value` assignments of `--set`."""
    return tuple(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in table.items())
