"""The counts of a corpus, and their differences from published ones.

IEMOCAP's are in corpus/iemocap.toml, those of a described corpus in its description.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ser.corpus.labels import IEMOCAP, LABEL_POLICIES, code
from ser.corpus.manifest import Manifest

from .scan import Scan

# How far a measured figure may be from the published one: half of its last digit. Extreme
# percentiles also depend on the interpolation.
ROUNDING = 0.006
ROUNDING_OF = {"min": 0.0006, "p95": 0.03, "p99": 0.1}

# Columns whose missing values are counted, where the corpus has any value of them.
MAY_BE_MISSING = (
    "text",
    "label",
    "session",
    "speaker",
    "gender",
    "votes",
    "valence",
    "arousal",
    "dominance",
)

PERCENTILES = {"min": 0, "median": 50, "p95": 95, "p99": 99, "max": 100}

# The counts that `ser corpus show` prints.
SHOWN = (
    "utterances",
    "dialogues",
    "speakers",
    "hours",
    "durations",
    "genders",
    "labels",
    "sessions",
    "policies",
)


def count_all(manifest: Manifest) -> dict[str, Any]:
    """The counts of this manifest, by the names of `IEMOCAP`; durations in seconds."""
    dialogues = _count_values(manifest.column("dialogue"))
    speakers = _count_values(manifest.column("speaker"))
    sessions = _count_values(manifest.column("session"))

    scripted = 0
    for dialogue, count in dialogues.items():
        if "_script" in dialogue:
            scripted += count

    # Corpora write labels as codes or as words.
    codes = [code(label or "") for label in manifest.column("label")]
    class_of = {}
    for name, labels in LABEL_POLICIES["4class"].items():
        class_of.update(dict.fromkeys(labels, name))
    has_class = [label in class_of for label in codes]

    classes = [class_of.get(label) for label in codes]
    pairs = Counter(zip(manifest.column("session"), classes, strict=True))
    classes_of_session = {}
    for session in sessions:
        counts = {name: pairs[session, name] for name in LABEL_POLICIES["4class"]}
        classes_of_session[session] = counts

    # NaN if it is not known.
    seconds = np.array(manifest.column("duration"), float)
    measured = seconds[~np.isnan(seconds)]

    return {
        "utterances": len(manifest),
        "dialogues": len(dialogues),
        "speakers": len(speakers),
        "hours": float(measured.sum()) / 3600,
        "improvised": len(manifest) - scripted,
        "scripted": scripted,
        "genders": _count_values(manifest.column("gender")),
        "sessions": sessions,
        "labels": _count_values(manifest.column("label")),
        "policies": _count_policies(codes),
        "4class hours": float(np.nansum(seconds[has_class])) / 3600,
        "4class per session": classes_of_session,
        "utterances per dialogue": {
            "fewest": min(dialogues.values(), default=0),
            "most": max(dialogues.values(), default=0),
        },
        "durations": _percentiles(measured),
    }


def _count_values(values: Iterable[str | None]) -> dict[str, int]:
    """How often each value occurs, by the value, sorted; unknown ones do not count."""
    counts = Counter(value for value in values if value is not None)
    return dict(sorted(counts.items()))


def count_missing(manifest: Manifest) -> dict[str, int]:
    """How many utterances lack a value that others have, by column."""
    counts = {}
    for name in MAY_BE_MISSING:
        missing = manifest.table.column(name).null_count
        if 0 < missing < len(manifest):
            counts[name] = missing
    return counts


def count_unlabelled(manifest: Manifest) -> dict[str, int]:
    """How many utterances without a label each session has, if any: they train and test nothing."""
    sessions = manifest.column("session")
    unlabelled = []
    for session, label in zip(sessions, manifest.column("label"), strict=True):
        if label is None:
            unlabelled.append(session or "no session")
    return _count_values(unlabelled)


def _count_policies(codes: list[str]) -> dict[str, int]:
    """How many utterances have a class under each label policy."""
    counts = {}
    for name, policy in LABEL_POLICIES.items():
        known = set[str]().union(*policy.values())
        counts[name] = sum(label in known for label in codes)
    return counts


def _percentiles(seconds: np.ndarray) -> dict[str, float]:
    if not len(seconds):
        return {}
    percentiles = {}
    for name, percent in PERCENTILES.items():
        percentiles[name] = round(float(np.percentile(seconds, percent)), 4)
    return percentiles


def compare_counts(
    counts: Mapping[str, Any], known: Mapping[str, Any] = IEMOCAP, under: str = ""
) -> list[str]:
    """Each difference from the known counts, in one sentence.

    Measured figures may differ within their rounding. `under` is put in front of the names.
    """
    differences = []
    # In the order of the known ones; what is counted and not known comes last.
    for key in dict.fromkeys([*known, *counts]):
        name = f"{under}{key}"
        published = known.get(key, 0)
        count = counts.get(key, 0)

        if isinstance(published, Mapping):
            differences += compare_counts(count or {}, published, f"{name}: ")
        elif isinstance(published, float):
            if abs(count - published) > ROUNDING_OF.get(key, ROUNDING):
                differences.append(
                    f"{name}: {count:.4g} here, {published} in the release "
                    f"({count - published:+.3g})"
                )
        elif count != published:
            differences.append(
                f"{name}: {count} here, {published} in the release ({count - published:+d})"
            )
    return differences


def summary(scan: Scan) -> dict[str, Any]:
    """What `ser corpus show --json` prints of a corpus.

    Its counts (durations in seconds), its problems, and its differences from published counts.
    """
    counts = count_all(scan.manifest)
    facts: dict[str, Any] = {
        "corpus": scan.manifest.corpus,
        "format": scan.format,
        "synthetic": scan.manifest.synthetic,
    }
    for name in SHOWN:
        facts[name] = counts[name]
    facts["hours"] = round(counts["hours"], 4)
    if scan.manifest.is_segmented:
        facts["recordings"] = len(scan.manifest.recordings)

    facts["missing"] = count_missing(scan.manifest)
    facts["unlabelled"] = count_unlabelled(scan.manifest)
    facts["problems"] = [asdict(problem) for problem in scan.problems]
    facts["warnings"] = scan.warnings
    comparable = {name: counts[name] for name in scan.known}
    facts["differences"] = compare_counts(comparable, scan.known)
    return facts
