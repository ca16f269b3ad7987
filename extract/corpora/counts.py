"""The counts of a corpus, and how they differ from published ones; IEMOCAP's are in cache/iemocap.toml."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ser.cache.manifest import IEMOCAP, LABEL_POLICIES, Manifest, code

from .scan import Scan

# Where half of the last digit is not the right allowance: far percentiles also depend on how one interpolates.
ROUNDING = {"min": 0.0006, "p95": 0.03, "p99": 0.1}


def count_all(manifest: Manifest) -> dict[str, Any]:
    """The counts of `IEMOCAP`, of this manifest; durations in seconds."""
    columns = {name: manifest.column(name) for name in ("dialogue", "speaker", "gender", "session", "label")}
    by = {
        name: dict(sorted(Counter(value for value in values if value is not None).items()))
        for name, values in columns.items()
    }
    sizes = by["dialogue"].values() or [0]
    scripted = sum("_script" in (dialogue or "") for dialogue in columns["dialogue"])
    four = {raw: name for name, raws in LABEL_POLICIES["4class"].items() for raw in raws}
    codes = [code(label or "") for label in columns["label"]]  # corpora write them as codes or as words
    pairs = Counter(zip(columns["session"], map(four.get, codes), strict=True))
    seconds = np.array(manifest.column("duration"), float)  # NaN where it is not known
    measured = seconds[~np.isnan(seconds)]
    points = {"min": 0, "median": 50, "p95": 95, "p99": 99, "max": 100} if len(measured) else {}
    return {
        "utterances": len(manifest),
        "dialogues": len(by["dialogue"]),
        "speakers": len(by["speaker"]),
        "hours": float(measured.sum()) / 3600,
        "improvised": len(manifest) - scripted,
        "scripted": scripted,
        "genders": by["gender"],
        "sessions": by["session"],
        "labels": by["label"],
        "policies": {
            name: sum(codes.count(raw) for raws in classes.values() for raw in raws)
            for name, classes in LABEL_POLICIES.items()
        },
        "4class hours": float(np.nansum(seconds[[label in four for label in codes]])) / 3600,
        "4class per session": {s: {name: pairs[s, name] for name in LABEL_POLICIES["4class"]} for s in by["session"]},
        "utterances per dialogue": {"fewest": min(sizes), "most": max(sizes)},
        "durations": {name: round(float(np.percentile(measured, q)), 4) for name, q in points.items()},
    }


def compare(found: Mapping[str, Any], known: Mapping[str, Any] = IEMOCAP, under: str = "") -> list[str]:
    """Each difference from the known counts, in one sentence. Measured figures may differ by what rounding hides."""
    differences = []
    for key in [*known, *(k for k in found if k not in known)]:
        name = f"{under}{key}"
        want, have = known.get(key, 0), found.get(key, 0)
        if isinstance(want, Mapping):
            differences += compare(have or {}, want, f"{name}: ")
        elif isinstance(want, float):
            if abs(have - want) > ROUNDING.get(key, 0.006):
                differences.append(f"{name}: {have:.4g} here, {want} in the release ({have - want:+.3g})")
        elif have != want:
            differences.append(f"{name}: {have} here, {want} in the release ({have - want:+d})")
    return differences


def summary(scan: Scan) -> dict[str, Any]:
    """The counts of a corpus, its problems, and how it differs from published counts. Durations are in seconds."""
    counts = count_all(scan.manifest)
    shown = ("utterances", "dialogues", "speakers", "hours", "durations", "genders", "labels", "sessions", "policies")
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
