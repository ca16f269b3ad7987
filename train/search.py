"""Searches: settings of a recipe's cell that have several values. Each fold and seed counts with the best one on dev.

set = { lr = [1e-4, 3e-4], dropout = [0.1, 0.2] }           a grid: every combination is a candidate
set = { lr = { from = 1e-5, to = 1e-3, log = true } }       a range, of which `[search]` draws candidates
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from ser.cache.atomic_io import make_folder, read_small, write_whole
from ser.errors import CorruptStore, StoreError, WrongUse

from .options import assignments
from .run_folder import Run, Scalar, run_name
from .scores import SHOWN

OF_THE_RUN = ("fold", "seed", "cut", "provenance")  # what tells the runs of one cell apart
AGAIN = "remove it and run the sweep again"
SCORED = {metric: f"{name} %" for name, metric in SHOWN.items()} | {"ccc": "mean CCC"}  # what selects, in a heading


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"low": "from", "high": "to"}):
    """Numbers to draw from, evenly or in their logarithm: whole if both ends are, else of four digits."""

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        if not -1e300 <= self.low < self.high <= 1e300 or (self.log and self.low <= 0):
            raise ValueError("a range goes from a number to a larger one, and with log from above 0")

    def at(self, share: float) -> Scalar:
        """The number that lies so far on the way from `low` to `high`."""
        way = self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share
        return round(way) if isinstance(self.low, int) and isinstance(self.high, int) else float(f"{way:.4g}")


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe's `[search]`: how many candidates each cell draws, by which seed, and the most runs that are meant."""

    draws: int | None = None
    seed: int = 0
    at_most: int = 10_000

    def check(self, runs: int) -> None:
        """Raise `WrongUse` for more runs than are meant."""
        if runs > self.at_most:
            raise WrongUse(f"the search has {runs:,} runs; if they are meant, write `at_most = {runs}` under [search]")


def candidates(several: Mapping[str, list[Scalar] | Range], budget: Budget) -> tuple[tuple[str, ...], ...]:
    """The candidates of a cell, each as the assignments of `--set`: one without any if nothing has several values.

    The same settings and seed give the same draws. Raises `WrongUse` if there are no such candidates, or too many.
    """
    lists = {key: values for key, values in several.items() if not isinstance(values, Range)}
    if budget.draws is None:
        if ranges := several.keys() - lists.keys():
            raise WrongUse(f"{min(ranges)} is a range: write `draws = 20` under [search], or a list of values")
        budget.check(math.prod(map(len, lists.values())))
        return tuple(assignments(dict(zip(lists, values, strict=True))) for values in product(*lists.values()))
    budget.check(budget.draws)
    share, found = random.Random(budget.seed).random, dict[tuple[str, ...], None]()
    for _ in range(100 * budget.draws):
        values = [v.at(share()) if isinstance(v, Range) else v[int(share() * len(v))] for v in several.values()]
        found[assignments(dict(zip(several, values, strict=True)))] = None
        if len(found) == budget.draws and several:
            return tuple(found)
    raise WrongUse(f"[search] draws {budget.draws} candidates, and there are not so many: leave draws out")


def choose(columns: Iterable[Sequence[Run]]) -> list[Run]:
    """Of each column, one fold's and seed's runs in the order of the candidates, the first with the best dev score.

    A column waits until all its runs are finished, or have diverged: those have lost.
    """
    ended = [column for column in columns if all(run.finished or run.diverged for run in column)]
    finished = [[run for run in column if run.finished] for column in ended]
    return [max(column, key=dev_score) for column in finished if column]


def dev_score(run: Run) -> float:
    """The dev score of the epoch that a finished run kept, by the score that it selects on: in percent, but CCC not."""
    name = run.config["training"]["select_score"]
    found = [line[name] for line in run.result["history"] if line.get("kept") and line[name] is not None]
    return (1 if name == "ccc" else 100) * found[-1] if found else -math.inf


def chosen_rows(cell: str, tried: int, over: Sequence[str], runs: Iterable[Run]) -> list[dict[str, Any]]:
    """A table's lines: the values that each fold and seed of a cell chose, and by which dev score."""
    rows = []
    for run in runs:
        used = {**run.config["settings"], **run.config["training"]}
        row = {"cell": cell, "seed": run.config["seed"], "fold": run.config["fold"], "tried": tried}
        row |= {key: used.get(key, "default") for key in over}
        rows.append({**row, f"dev {SCORED[used['select_score']]}": dev_score(run), "run": run.name})
    return rows


class Record(msgspec.Struct, frozen=True):
    """`search-<hash>.json` beside the runs of a search, so that a report shows the chosen ones' scores alone."""

    file: str  # the recipe
    over: list[str]
    candidates: list[str]  # their `cell_name`

    @property
    def name(self) -> str:
        """Of its file."""
        return f"search-{run_name({'candidates': self.candidates})}.json"

    def write(self, out: Path) -> None:
        """Write it into the folder of the runs. Raises `StoreError` for a link in its place."""
        make_folder(out)
        if (path := out / self.name).is_symlink():
            raise StoreError(f"{path}: is a link, and no record is written through one; remove it")
        write_whole(path, msgspec.json.encode(self))


def cell_name(config: Mapping[str, Any]) -> str:
    """The same for all runs of a cell, and for no others."""
    return run_name({key: value for key, value in config.items() if key not in OF_THE_RUN})


def find_records(*paths: Path | str) -> list[Record]:
    """The searches in folders of runs. Raises `CorruptStore` for a record that says something else."""
    found: dict[str, Record] = {}
    for path in (path for folder in map(Path, paths) for path in sorted(folder.glob("search-*.json"))):
        try:
            record = found[path.name] = msgspec.json.decode(read_small(path, AGAIN), type=Record)
            if record.name != path.name:  # which vouches for the candidates: the others are reported as cells
                raise msgspec.ValidationError("its candidates are not those of its name")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
            raise CorruptStore(f"{path}: is not the record of a search ({fault}); {AGAIN}") from None
    return list(found.values())
