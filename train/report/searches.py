"""What searches chose, as columns."""

from collections.abc import Iterable

from ser.train.scores.measures import SCORED

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
