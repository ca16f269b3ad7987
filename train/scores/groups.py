"""Which predictions are not independent, and what is counted of each such group.

Utterances of one speaker are alike, so intervals and tests count groups: speakers where all are
known, else dialogues where any has two utterances, else utterances, which is too narrow and says
so.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .ratings import moments


def groupings(speakers: Any, dialogues: Any, ids: Any) -> dict[str, Any]:
    """The group of each prediction by what groups can be, the default first.

    Each of the three is a pandas series `[n]`; so is each grouping. Utterances where nothing else
    is known.
    """
    by_kind = {}
    if speakers.notna().all():
        by_kind["speakers"] = speakers

    each_is_alone = dialogues.nunique() == ids.nunique()
    if dialogues.notna().all() and not each_is_alone:
        by_kind["dialogues"] = dialogues

    return by_kind or {"utterances": ids}


def count_of_groups(count: int, kind: str) -> str:
    """Such as "1 speaker", or "97 utterances, too narrow"."""
    noun = kind if count != 1 else kind.removesuffix("s")
    warning = ", too narrow" if kind == "utterances" else ""
    return f"{count} {noun}{warning}"


def confusions_by_group(
    groups: Sequence[Any],
    seeds: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    classes: int,
) -> np.ndarray:
    """C `[g, S, K, K]` of each group in each seed, in the order of the groups' names.

    The arguments are columns `[n]` of all predictions; those whose group is None do not count.
    """
    group, names = _numbered(groups)
    seed_names, seed = np.unique(seeds, return_inverse=True)

    counts = np.zeros((len(names) + 1, len(seed_names), classes, classes))
    np.add.at(counts, (group, seed, truth, predicted), 1)
    return _with_something(counts)


def moments_by_group(
    groups: Sequence[Any], seeds: np.ndarray, truth: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    """M `[g, S, D, 6]`, as `confusions_by_group`, of ratings `[n, D]`."""
    group, names = _numbered(groups)
    seed_names, seed = np.unique(seeds, return_inverse=True)

    sums = np.zeros((len(names) + 1, len(seed_names), truth.shape[1], 6))
    np.add.at(sums, (group, seed), moments(truth, predicted))
    return _with_something(sums)


def _numbered(groups: Sequence[Any]) -> tuple[np.ndarray, Any]:
    """Each prediction's group as its number by name, −1 for none, and the names."""
    import pandas

    return pandas.factorize(np.asarray(groups), sort=True)


def _with_something(counts: np.ndarray) -> np.ndarray:
    """The groups but for the last, which is that of none, and the seeds that have any."""
    counts = counts[:-1]
    return counts[:, counts.any((0, 2, 3))]
