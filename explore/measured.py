"""The utterances of a feature that can be compared: their values, groups and speakers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ser.cache.feature import Feature
from ser.corpus.manifest import Manifest
from ser.errors import WrongUse, unknown

# Columns of a manifest that put utterances into groups.
GROUPING = ("label", "gender", "session", "dialogue", "speaker")
# Groups of fewer utterances say nothing.
SMALLEST_GROUP = 2


@dataclass(frozen=True)
class Measured:
    """n utterances of a feature, and what is known of them."""

    values: np.ndarray
    """`[n, dimensions]`."""
    dimensions: Sequence[str]
    groups: list[str]
    """`[n]`."""
    speakers: list[str]
    """`[n]`."""
    notes: list[str]
    """What is left out, and why."""


def measure(
    feature: Feature, manifest: Manifest, dimensions: Sequence[str], by: str, within: str
) -> Measured:
    """The utterances that have a group (`by`) and a speaker (`within`), both columns.

    Raises `WrongUse` if the feature has more than one row an utterance, for an unknown column, or
    if fewer than two groups are left.
    """
    for name in (by, within):
        if name not in GROUPING:
            raise unknown("column to compare by", name, GROUPING)
    if by == within:
        raise WrongUse(f"--by {by} --within {within}: groups are compared within another column")
    if feature.spec.level != "utterance":
        raise WrongUse(
            f"{feature.spec.name} has a row for each {feature.spec.level}; compare one of a row an "
            "utterance, such as egemaps or hubert:pool=mean"
        )

    groups = manifest.column(by)
    speakers = manifest.column(within)
    quarantined = feature.quarantined(manifest)
    counts = Counter(groups)
    left_out = Counter[str]()
    rows = []
    for row, id_ in enumerate(manifest.ids):
        if id_ in quarantined:
            left_out[f"without {feature.spec.name}"] += 1
        elif groups[row] is None:
            left_out[f"without a {by}"] += 1
        elif speakers[row] is None:
            left_out[f"without a {within}"] += 1
        elif counts[groups[row]] < SMALLEST_GROUP:
            left_out[f"alone of their {by}"] += 1
        else:
            rows.append(row)

    kept_groups = [groups[row] for row in rows]
    if len(set(kept_groups)) < 2:
        named = ", ".join(sorted(set(kept_groups))) or "none"
        reasons = "".join(f"; {count} are {why}" for why, count in left_out.items())
        raise WrongUse(f"--by {by}: two groups are needed, and there are: {named}{reasons}")

    values = feature.load(manifest, rows).values.astype(np.float64)
    notes = [f"{count} utterances are left out: {why}" for why, count in left_out.items()]
    kept_speakers = [speakers[row] for row in rows]
    return Measured(values, dimensions, kept_groups, kept_speakers, notes)
