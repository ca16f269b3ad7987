"""The names that openSMILE gives the dimensions of its features, in tables of them."""

from typing import Literal

import pandas as pd

from ser.cache.feature import Feature
from ser.cache.tools import tables
from ser.corpus.manifest import Manifest


def names_of_dimensions(feature: Feature) -> list[str] | None:
    """The names that openSMILE gives its features; None where the dimensions have no names."""
    if feature.spec.extractor != "smile":
        return None

    from .smile import SmileConfig, open_smile

    config = feature.spec.config
    return open_smile(SmileConfig(config["feature_set"], config["level"])).feature_names


def pooled(
    feature: Feature, manifest: Manifest, pool: Literal["mean", "meanstd"] = "mean"
) -> pd.DataFrame:
    """One float32 row per utterance: the mean over its frames or tokens, or mean and deviation.

    Columns are `mean.0`, `mean.1`, … (and `std.0`, …), or `0`, `1`, … of a feature that is one
    vector already; of openSMILE's features its own names stand in place of the numbers. The index
    holds the ids in the manifest's order, without quarantined ones. Raises `MissingRows` if others
    are missing.
    """
    return tables.pooled(feature, manifest, pool, names_of_dimensions(feature))
