"""What searches chose, as rows and columns of a table."""

from collections.abc import Iterable, Sequence
from typing import Any

from ser.train.run_folder import Run
from ser.train.scores.measures import SCORED
from ser.train.sweep.search import dev_score

from .formats import COUNT, FINE, PERCENT, TEXT, VALUE
from .table import Column, columns_of


def chosen_columns(searched: Iterable[str]) -> list[Column]:
    """The columns of `chosen_rows`, for these settings."""
    columns = [
        Column("cell", TEXT),
        Column("seed", COUNT),
        Column("fold", TEXT),
        Column("tried", COUNT),
        *columns_of(VALUE, dict.fromkeys(searched)),
    ]
    for metric, heading in SCORED.items():
        columns.append(Column(f"dev {heading}", FINE if metric == "ccc" else PERCENT))
    return [*columns, Column("run", TEXT)]


def chosen_rows(
    cell: str, tried: int, searched: Sequence[str], runs: Iterable[Run]
) -> list[dict[str, Any]]:
    """A table's lines: the values that each fold and seed of a cell chose, by which dev score."""
    rows = []
    for run in runs:
        settings = {**run.config.settings, **run.config.training}
        row: dict[str, Any] = {
            "cell": cell,
            "seed": run.config.seed,
            "fold": run.config.fold,
            "tried": tried,
        }
        for name in searched:
            row[name] = settings.get(name, "default")

        metric = SCORED[settings["select_score"]]
        row[f"dev {metric}"] = dev_score(run)
        row["run"] = run.name
        rows.append(row)
    return rows
