"""The counts of a corpus, and their differences from published ones; IEMOCAP's are in
cache/iemocap.toml.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ser.corpus.labels import IEMOCAP, LABEL_POLICIES, code
from ser.corpus.manifest import Manifest

from .scan import Scan

# Allowed differences that are not half of the last digit: extreme percentiles also depend on the
# interpolation.
ROUNDING = {"min": 0.0006, "p95": 0.03, "p99": 0.1}


def count_all(manifest: Manifest) -> dict[str, Any]:
    """The counts of this manifest, by the names of `IEMOCAP`; durations in seconds."""
    names = ("dialogue", "speaker", "gender", "session", "label")
    dialogues, speakers, genders, sessions, labels = (
        _counted(manifest.column(name)) for name in names
    )
    scripted = sum(count for dialogue, count in dialogues.items() if "_script" in dialogue)
    classes = {raw: name for name, raws in LABEL_POLICIES["4class"].items() for raw in raws}
    codes = [
        code(label or "") for label in manifest.column("label")
    ]  # corpora write them as codes or as words
    pairs = Counter(zip(manifest.column("session"), map(classes.get, codes), strict=True))
    seconds = np.array(manifest.column("duration"), float)  # NaN if it is not known
    measured = seconds[~np.isnan(seconds)]
    points = {"min": 0, "median": 50, "p95": 95, "p99": 99, "max": 100} if len(measured) else {}
    policies = {
        name: {raw for raws in policy.values() for raw in raws}
        for name, policy in LABEL_POLICIES.items()
    }
    return {
        "utterances": len(manifest),
        "dialogues": len(dialogues),
        "speakers": len(speakers),
        "hours": float(measured.sum()) / 3600,
        "improvised": len(manifest) - scripted,
        "scripted": scripted,
        "genders": genders,
        "sessions": sessions,
        "labels": labels,
        "policies": {
            name: sum(label in raws for label in codes) for name, raws in policies.items()
        },
        "4class hours": float(np.nansum(seconds[[label in classes for label in codes]])) / 3600,
        "4class per session": {
            s: {name: pairs[s, name] for name in LABEL_POLICIES["4class"]} for s in sessions
        },
        "utterances per dialogue": {
            "fewest": min(dialogues.values(), default=0),
            "most": max(dialogues.values(), default=0),
        },
        "durations": {
            name: round(float(np.percentile(measured, q)), 4) for name, q in points.items()
        },
    }


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(value for value in values if value is not None).items()))


def compare(
    counts: Mapping[str, Any], known: Mapping[str, Any] = IEMOCAP, under: str = ""
) -> list[str]:
    """Each difference from the known counts, in one sentence. Measured figures may differ within
    their rounding.
    """
    differences = []
    for key in dict.fromkeys([*known, *counts]):
        name = f"{under}{key}"
        published, count = known.get(key, 0), counts.get(key, 0)
        if isinstance(published, Mapping):
            differences += compare(count or {}, published, f"{name}: ")
        elif isinstance(published, float):
            if abs(count - published) > ROUNDING.get(key, 0.006):
                differences.append(
                    f"{name}: {count:.4g} here, {published} in the release ({count - published:+.3g})"
                )
        elif count != published:
            differences.append(
                f"{name}: {count} here, {published} in the release ({count - published:+d})"
            )
    return differences


def summary(scan: Scan) -> dict[str, Any]:
    """The counts of a corpus, its problems, and its differences from published counts. Durations
    are in seconds.
    """
    counts = count_all(scan.manifest)
    shown = (
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
    return {
        "corpus": scan.manifest.corpus,
        "format": scan.format,
        "synthetic": scan.manifest.synthetic,
        **{name: counts[name] for name in shown},
        "hours": round(counts["hours"], 4),
        "problems": [asdict(problem) for problem in scan.problems],
        "warnings": scan.warnings,
        "differences": compare({name: counts[name] for name in scan.known}, scan.known),
    }
