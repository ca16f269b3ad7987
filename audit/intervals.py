"""The interval of a score over the speakers who were tested."""

from collections.abc import Sequence

import numpy as np

from ser.train.scores.intervals import pooled_interval
from ser.train.scores.measures import measure_of

from .evidence import Predictions
from .scores import class_numbers


def interval_of_ua(
    predictions: Predictions, groups: Sequence[str]
) -> tuple[float | None, float | None]:
    """The ends of the 95 % interval of UA in percent, over the groups `[n]` of the predictions.

    None where `pooled_interval` gives none.
    """
    truth, predicted, classes = class_numbers(predictions)
    _, group = np.unique(np.array(groups), return_inverse=True)
    seed_names, seed = np.unique(
        np.array(predictions.seeds or [""] * len(truth)), return_inverse=True
    )

    counts = np.zeros((group.max() + 1, len(seed_names), classes, classes))
    np.add.at(counts, (group, seed, truth, predicted), 1)
    _, low, high = pooled_interval(counts, measure_of("ua", predictions.classes, ()))
    return low, high
