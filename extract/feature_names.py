"""The names of a feature's dimensions, such as openSMILE's, in tables of them."""

from typing import Literal

import pandas as pd

from ser.cache.feature import Feature
from ser.cache.tools import tables
from ser.corpus.manifest import Manifest
from ser.errors import WrongUse

from .registry import FEATURES

# Extractors, by their names in specs, whose values are known by their numbers.
NAMELESS = ("import", "mel")


def names_of_dimensions(feature: Feature) -> list[str] | None:
    """The names that its extractor gives them, as openSMILE does; None where they have none.

    None too where the extractor is not here: the feature was imported, or a package is missing.
    """
    spec = feature.spec
    # The states of encoders have no names, nor have spectra: torch need not be imported.
    if spec.checkpoint or spec.extractor in NAMELESS:
        return None

    # Whatever a feature of openSMILE is called, its names are openSMILE's.
    known_as = "is13" if spec.extractor == "smile" else spec.feature
    if known_as not in FEATURES:
        return None

    extractor = FEATURES[known_as].extractor_class
    if extractor.name != spec.extractor:
        return None

    names = extractor.dimension_names(spec)
    if names is not None and len(names) != spec.dim:
        raise WrongUse(
            f"{spec.name}: its extractor names {len(names)} values of a row, and there are "
            f"{spec.dim}; mend its dimension_names"
        )
    return None if names is None else list(names)


def pooled(
    feature: Feature, manifest: Manifest, pool: Literal["mean", "meanstd"] = "mean"
) -> pd.DataFrame:
    """One float32 row per utterance: the mean over its frames or tokens, or mean and deviation.

    Columns are `mean.0`, `mean.1`, … (and `std.0`, …), or `0`, `1`, … of a feature that is one
    vector already; names, as openSMILE's features have, stand in place of the numbers. The index
    holds the ids in the manifest's order, without quarantined ones. Raises `MissingRows` if others
    are missing.
    """
    return tables.pooled(feature, manifest, pool, names_of_dimensions(feature))
