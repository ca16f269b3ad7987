"""Features and manifests as pandas tables."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ser.cache.feature import Feature
from ser.corpus.manifest import Manifest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["pooled", "utterances"]


def utterances(manifest: Manifest) -> "pd.DataFrame":
    """The manifest's columns, indexed by `id`."""
    return manifest.table.to_pandas().set_index("id")


def pooled(
    feature: Feature,
    manifest: Manifest,
    pool: Literal["mean", "meanstd"] = "mean",
    names_of_dimensions: Sequence[str] | None = None,
) -> "pd.DataFrame":
    """One float32 row per utterance: the mean over its frames or tokens, or mean and deviation.

    Columns are `mean.0`, `mean.1`, … (and `std.0`, …), or `0`, `1`, … of a feature that is one
    vector already; `names_of_dimensions` stand in place of the numbers. The index holds the ids in
    the manifest's order, without quarantined ones.
    Raises `MissingRows` if others are missing.
    """
    import pandas as pd

    quarantined = feature.quarantined(manifest)
    rows = [row for row, id_ in enumerate(manifest.ids) if id_ not in quarantined]
    packed = feature.load(manifest, rows)
    ids = pd.Index(packed.ids, name="id")
    columns = list(names_of_dimensions or map(str, range(feature.spec.dim)))

    if feature.spec.level == "utterance":
        return pd.DataFrame(packed.values.astype(np.float32), ids, columns)

    statistics: dict[str, Callable[..., Any]] = {"mean": np.mean}
    if pool == "meanstd":
        statistics["std"] = np.std

    table = np.empty((len(packed), len(statistics) * feature.spec.dim), np.float32)
    for number in range(len(packed)):
        values = packed[number].astype(np.float32)
        over_rows = [statistic(values, axis=0) for statistic in statistics.values()]
        table[number] = np.concatenate(over_rows)

    names = []
    for statistic in statistics:
        names += [f"{statistic}.{column}" for column in columns]
    return pd.DataFrame(table, ids, names)
