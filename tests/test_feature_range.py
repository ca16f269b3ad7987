"""How far new speech lies from what a model was trained on, by scipy's own arithmetic."""

import numpy as np
import pytest
import torch
from scipy import stats

from ser.train.data.feature_range import HIGHEST_Z, FeatureRange
from ser.train.data.inputs import Inputs


def packed(lengths: np.ndarray, dim: int, seed: int = 0) -> Inputs:
    rows = np.random.default_rng(seed).normal(3.0, 2.0, (lengths.sum(), dim))
    rows[:, -1] = 7.0
    return Inputs(
        torch.from_numpy(rows.astype(np.float32)), np.concatenate([[0], lengths.cumsum()])
    )


@pytest.mark.parametrize("rows", ["vectors", "frames"])
def test_the_percentile_is_that_of_the_training_parts_distances(rows: str) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, 9, 80) if rows == "frames" else np.ones(80, np.int64)
    inputs = packed(lengths, 6)
    train = np.sort(rng.permutation(80)[:60])
    means = []
    for utterance in range(80):
        start, end = inputs.offsets[utterance : utterance + 2]
        means.append(inputs.values[start:end].double().mean(0).numpy())
    vectors = np.array(means)

    # The last column is constant in training, and stays as it is.
    center = vectors[train].mean(0)
    scale = vectors[train].std(0)
    scale[-1] = 1.0
    z = np.clip((vectors - center) / scale, -HIGHEST_Z, HIGHEST_Z)
    distances = np.sqrt((z**2).mean(1))

    found = FeatureRange.of(inputs, train)
    for utterance in range(80):
        start, end = inputs.offsets[utterance : utterance + 2]
        expected = stats.percentileofscore(distances[train], distances[utterance], "mean")
        percentile = found.percentile(inputs.values[start:end])
        assert percentile == pytest.approx(expected, abs=100 / 60 + 1)

    far = torch.full((4, 6), 50.0)
    assert found.percentile(far) == 100.0
