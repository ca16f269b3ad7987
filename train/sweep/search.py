"""A search: the candidates that a cell of a recipe tries, and which of them counts.

Each fold and seed counts with the candidate that has the best score on its own dev part.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ser.errors import WrongUse

from ..options import setting_texts
from ..run_folder import Run

Scalar = str | int | float | bool
# The largest end of a range: beyond it the numbers between the ends are no longer finite.
LARGEST = 1e300

# Of one search, whatever its recipe says.
MOST_RUNS = 1_000_000

# Draws without a new one, for each that there is: the last of n is missed by e^-20.
REPEATS = 20


class Range(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"low": "from", "high": "to"}
):
    """Numbers to draw from, evenly or in their logarithm: `{ from = 1e-5, to = 1e-3, log = true }`.

    Whole if both ends are, else rounded to four digits.
    """

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        ordered = -LARGEST <= self.low < self.high <= LARGEST
        if not ordered or (self.log and self.low <= 0):
            raise ValueError(
                "a range goes from a number to a larger one, and with log from above 0"
            )

    def at(self, share: float) -> Scalar:
        """The number at this share, from 0 to 1, of the way from `low` to `high`."""
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share

        if isinstance(self.low, int) and isinstance(self.high, int):
            return round(value)
        return float(f"{value:.4g}")


class SearchBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe's `[search]`."""

    draws: int | None = None
    """How many candidates each cell draws; None for all combinations of lists."""
    seed: int = 0
    """Of these draws."""
    at_most: Annotated[int, msgspec.Meta(le=MOST_RUNS)] = 10_000
    """The most runs allowed, so that none are started by a slip."""

    def check(self, runs: int, file: Path | str) -> None:
        """Raise `WrongUse` for more runs than are meant, naming the recipe's file."""
        if runs > MOST_RUNS:
            raise WrongUse(
                f"{file}: the search has {runs:,} runs, and no search may have more than "
                f"{MOST_RUNS:,}; write fewer `draws` under [search], or shorter lists"
            )
        if runs > self.at_most:
            raise WrongUse(
                f"{file}: the search has {runs:,} runs; if they are meant, write "
                f"`at_most = {runs}` under [search]"
            )


def candidates(
    searched: Mapping[str, Any], budget: SearchBudget, file: Path
) -> tuple[tuple[str, ...], ...]:
    """The candidates of a cell, each as texts of `--set`: one without any if nothing is searched.

    `searched` has by setting a list of values, or a `Range`. Raises `WrongUse` if there are no such
    candidates, or too many.
    """
    if budget.draws is None:
        return _grid(searched, budget, file)
    return _draw(searched, budget.draws, budget, file)


def _grid(
    searched: Mapping[str, Any], budget: SearchBudget, file: Path
) -> tuple[tuple[str, ...], ...]:
    """Every combination of the lists, the last setting's values changing fastest."""
    ranges = [name for name, values in searched.items() if isinstance(values, Range)]
    if ranges:
        raise WrongUse(
            f"{file}: {min(ranges)} is a range: write `draws = 20` under [search], or a list of "
            "values"
        )

    budget.check(math.prod(len(values) for values in searched.values()), file)
    grid = []
    for values in product(*searched.values()):
        grid.append(setting_texts(dict(zip(searched, values, strict=True))))
    return tuple(grid)


def _draw(
    searched: Mapping[str, Any], count: int, budget: SearchBudget, file: Path
) -> tuple[tuple[str, ...], ...]:
    """So many different draws; the same settings and seed give the same ones."""
    budget.check(count, file)
    generator = random.Random(budget.seed)
    distinct: dict[tuple[str, ...], None] = {}
    # A draw that was made before is not counted. After so many of those in a row there are no more.
    repeats = 0
    while searched and repeats < 100 + REPEATS * len(distinct):
        draw = {}
        for name, values in searched.items():
            share = generator.random()
            if isinstance(values, Range):
                draw[name] = values.at(share)
            else:
                draw[name] = values[int(share * len(values))]

        texts = setting_texts(draw)
        repeats = repeats + 1 if texts in distinct else 0
        distinct[texts] = None
        if len(distinct) == count:
            return tuple(distinct)

    raise WrongUse(
        f"{file}: [search] draws {count} candidates, and there are not so many; leave draws out"
    )


def choose_candidates(columns: Iterable[Sequence[Run]]) -> list[Run]:
    """Of each column, the run with the best dev score; of equal ones the first.

    A column holds the runs of one fold and seed, in the order of the candidates. It waits until all
    of them are finished, or have diverged: those have lost.
    """
    chosen = []
    for column in columns:
        if not all(run.finished or run.diverged for run in column):
            continue
        finished = [run for run in column if run.finished]
        if finished:
            chosen.append(max(finished, key=dev_score))
    return chosen


def dev_score(run: Run) -> float:
    """The dev score of the epoch that a finished run kept, by the score that it selects on.

    In percent, but CCC not; −∞ if no epoch has a score.
    """
    metric = run.config.training["select_score"]
    kept = -math.inf
    for epoch in run.result.history:
        score = epoch.score(metric)
        if epoch.kept and score is not None:
            kept = score

    return kept if metric == "ccc" else 100 * kept
