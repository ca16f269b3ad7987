"""A manifest, or a feature with one row per utterance, as a pandas table."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from .errors import SerError
from .features import Feature
from .manifest import Manifest

if TYPE_CHECKING:
    import pandas as pd


def utterances(manifest: Manifest) -> "pd.DataFrame":
    """The manifest's columns, indexed by `id`. Raises `SerError` where pandas is not installed."""
    _pandas()
    return manifest.table.to_pandas().set_index("id")


def pooled(feature: Feature, manifest: Manifest, pool: Literal["mean", "meanstd"] = "mean") -> "pd.DataFrame":
    """One float32 row per utterance: the mean over its frames or tokens, or mean and standard deviation.

    Columns are `mean.0`, `mean.1`, … (and `std.0`, …), or `0`, `1`, … of a feature that is one vector already; the
    index holds the ids in the manifest's order, quarantined ones left out. Raises `MissingRows` if others lack.
    """
    pandas = _pandas()
    held = feature.quarantined(manifest)
    packed = feature.load(manifest, [row for row, id_ in enumerate(manifest.ids) if id_ not in held])
    ids = pandas.Index(packed.ids, name="id")
    if feature.spec.level == "utterance":
        return pandas.DataFrame(packed.values.astype(np.float32), ids, [str(k) for k in range(feature.spec.dim)])
    statistics = ("mean", "std")[: 2 if pool == "meanstd" else 1]
    table = np.empty((len(packed), len(statistics) * feature.spec.dim), np.float32)
    for number, row in enumerate(table):
        values = packed[number].astype(np.float32)
        row[:] = np.concatenate([getattr(values, statistic)(axis=0) for statistic in statistics])
    return pandas.DataFrame(table, ids, [f"{name}.{k}" for name in statistics for k in range(feature.spec.dim)])


def _pandas():  # type: ignore[no-untyped-def]  # a module
    try:
        import pandas
    except ImportError:
        raise SerError("tables need pandas: pip install pandas") from None
    return pandas
