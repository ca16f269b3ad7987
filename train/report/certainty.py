"""How sure the models of a cell are: temperatures, reliability, conformal sets, abstention."""

import numpy as np

from ser.train.scores.calibration import (
    abstention,
    confidences,
    conformal_sets,
    conformal_threshold,
    reliability_over_seeds,
    tempered,
)
from ser.train.scores.intervals import Ends

from .cell_scores import CellScores


def temperatures(scores: CellScores) -> list[float]:
    """That of each run; none where a run has none, as without a dev part."""
    fitted = []
    for result in scores.results:
        if result.calibration is None:
            return []
        fitted.append(result.calibration.temperature)
    return fitted


def calibrated_probabilities(scores: CellScores) -> np.ndarray:
    """The probabilities `[n, K]` after the temperature of their run, if all have one."""
    plain = scores.predictions.probabilities["both"]
    by_run = np.array(temperatures(scores))
    if not len(by_run):
        return plain
    by_prediction = by_run[scores.predictions.table.run]
    return tempered(plain, by_prediction[:, None])


def reliability(scores: CellScores, after: bool = False) -> tuple[float, np.ndarray]:
    """The ECE in percent, and the bins of all runs; `after` the temperature, or before it.

    The ECE is pooled over the folds of a seed, and the mean over the seeds.
    """
    predictions = scores.predictions
    probabilities = calibrated_probabilities(scores) if after else predictions.probabilities["both"]
    return reliability_over_seeds(
        predictions.truth, probabilities, predictions.table.seed.to_numpy()
    )


def abstaining(scores: CellScores, below: float) -> tuple[Ends, Ends | None]:
    """The shares that are answered, and right of those, if none is answered `below` a probability.

    Probabilities are those after the temperature, if there is one.
    """
    predictions = scores.predictions
    right = predictions.predicted() == predictions.truth
    confidence = confidences(calibrated_probabilities(scores))
    return abstention(right, confidence, predictions.group.to_numpy(), below)


def conformal(scores: CellScores) -> tuple[Ends, float] | None:
    """The share of the sets that hold the true class, and the sets' mean size.

    Calibrated on each run's dev part. By the probabilities as they are, so that nothing but the
    epoch was chosen there. None where a run has none.
    """
    thresholds = []
    for run in scores.runs:
        table = run.dev_predictions
        if table is None:
            return None
        on_dev = table.to_pandas(use_threads=False)
        truth = on_dev.truth.map(scores.classes.index).to_numpy()
        probabilities = np.stack(on_dev.probabilities).astype(float)
        thresholds.append(conformal_threshold(truth, probabilities))

    predictions = scores.predictions
    by_prediction = np.array(thresholds)[predictions.table.run]
    return conformal_sets(
        predictions.truth, predictions.probabilities["both"], by_prediction, predictions.group
    )
