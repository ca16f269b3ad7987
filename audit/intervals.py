"""The interval of a score over the speakers who were tested."""

import math
from collections.abc import Sequence

import numpy as np

from ser.train.scores.intervals import pooled_interval
from ser.train.scores.measures import measure_of

from .evidence import Predictions
from .scores import class_numbers, numbered


def interval_of_ua(
    predictions: Predictions, groups: Sequence[str]
) -> tuple[float | None, float | None]:
    """The ends of the 95 % interval of UA in percent, over the groups `[n]` of the predictions.

    None where `pooled_interval` gives none.
    """
    truth, predicted, classes = class_numbers(predictions)
    group, group_names = numbered(groups)
    seed, seed_names = numbered(predictions.seeds or [""] * len(truth))

    shape = (len(group_names), len(seed_names), classes, classes)
    cells = np.ravel_multi_index((group, seed, truth, predicted), shape)
    counts = np.bincount(cells, minlength=math.prod(shape)).reshape(shape).astype(float)
    _, low, high = pooled_interval(counts, measure_of("ua", predictions.classes, ()))
    return low, high
