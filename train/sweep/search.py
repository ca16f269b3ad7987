"""A search: what a cell of a recipe tries, and which of it counts for each fold and seed."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from ser.errors import WrongUse

from ..options import setting_texts
from ..run_folder import Run
from ..scores.measures import SCORED

Scalar = str | int | float | bool


class Range(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"low": "from", "high": "to"}
):
    """Numbers to draw from, evenly or in their logarithm: whole if both ends are, else of four
    digits.
    """

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        if not -1e300 <= self.low < self.high <= 1e300 or (self.log and self.low <= 0):
            raise ValueError(
                "a range goes from a number to a larger one, and with log from above 0"
            )

    def at(self, share: float) -> Scalar:
        """The number at this share, from 0 to 1, of the way from `low` to `high`."""
        low, high = self.low, self.high
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        return (
            round(value)
            if isinstance(low, int) and isinstance(high, int)
            else float(f"{value:.4g}")
        )


class SearchBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe's `[search]`: how many candidates each cell draws, with which seed, and the most
    runs allowed.
    """

    draws: int | None = None
    seed: int = 0
    at_most: int = 10_000

    def check(self, runs: int, file: Path | str) -> None:
        """Raise `WrongUse` for more runs than are meant, naming the recipe's file."""
        if runs > self.at_most:
            remedy = f"if they are meant, write `at_most = {runs}` under [search]"
            raise WrongUse(f"{file}: the search has {runs:,} runs; {remedy}")


def candidates(
    searched: Mapping[str, Any], budget: SearchBudget, file: Path
) -> tuple[tuple[str, ...], ...]:
    """The candidates of a cell, each as the setting_texts of `--set`: one without any if nothing is
    searched.

    Each setting that is has a list of values, or a `Range`. The same settings and seed give the
    same draws. Raises `WrongUse` if there are no such candidates, or too many.
    """
    lists = {key: values for key, values in searched.items() if not isinstance(values, Range)}
    if budget.draws is None:
        if ranges := searched.keys() - lists.keys():
            remedy = "write `draws = 20` under [search], or a list of values"
            raise WrongUse(f"{file}: {min(ranges)} is a range: {remedy}")
        budget.check(math.prod(map(len, lists.values())), file)
        return tuple(
            setting_texts(dict(zip(lists, values, strict=True)))
            for values in product(*lists.values())
        )
    budget.check(budget.draws, file)
    share = random.Random(budget.seed).random
    distinct: dict[tuple[str, ...], None] = {}
    for _ in range(100 * budget.draws if searched else 0):
        draw = {}
        for key, values in searched.items():
            draw[key] = (
                values.at(share())
                if isinstance(values, Range)
                else values[int(share() * len(values))]
            )
        distinct[setting_texts(draw)] = None
        if len(distinct) == budget.draws:
            return tuple(distinct)
    raise WrongUse(
        f"{file}: [search] draws {budget.draws} candidates, and there are not so many; leave draws out"
    )


def choose(columns: Iterable[Sequence[Run]]) -> list[Run]:
    """Of each column, one fold's and seed's runs in the order of the candidates, the first with the
    best dev score.

    A column waits until all its runs are finished, or have diverged: those have lost.
    """
    ended = [column for column in columns if all(run.finished or run.diverged for run in column)]
    finished = [[run for run in column if run.finished] for column in ended]
    return [max(column, key=dev_score) for column in finished if column]


def dev_score(run: Run) -> float:
    """The dev score of the epoch that a finished run kept, by the score that it selects on: in
    percent, but CCC not.
    """
    name = run.config.training["select_score"]
    kept = -math.inf
    for epoch in run.result.history:
        score = epoch.score(name)
        if epoch.kept and score is not None:
            kept = score

    return kept if name == "ccc" else 100 * kept


def chosen_rows(
    cell: str, tried: int, over: Sequence[str], runs: Iterable[Run]
) -> list[dict[str, Any]]:
    """A table's lines: the values that each fold and seed of a cell chose, and by which dev score."""
    rows = []
    for run in runs:
        settings = {**run.config.settings, **run.config.training}
        row = {"cell": cell, "seed": run.config.seed, "fold": run.config.fold, "tried": tried}
        row |= {key: settings.get(key, "default") for key in over}
        rows.append(
            {**row, f"dev {SCORED[settings['select_score']]}": dev_score(run), "run": run.name}
        )
    return rows
