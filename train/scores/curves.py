"""A value of each epoch over several runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

# The stages and the values of one run's epochs, None where there is no value.
History = tuple[Sequence[str], Sequence[float | None]]


def curve_over_epochs(histories: Sequence[History]) -> "pandas.DataFrame":
    """The `mean`, `min` and `max` of the runs, a line for each epoch of each stage.

    A line is of the runs that came so far. Stages, such as a refit, follow each other.
    """
    import pandas

    tables = []
    for stages, values in histories:
        tables.append(pandas.DataFrame({"stage": stages, "value": values}))
    epochs = pandas.concat(tables, keys=range(len(tables)), names=["run", "line"])

    stage = pandas.factorize(epochs.stage)[0]
    epoch_of_stage = epochs.groupby(["run", "stage"]).cumcount()
    by_epoch = epochs["value"].astype(float).groupby([stage, epoch_of_stage])
    return by_epoch.agg(["mean", "min", "max"])
