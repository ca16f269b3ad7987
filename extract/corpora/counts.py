"""What the release of IEMOCAP holds, counted; and how a scan differs from that.

The published counts of 4- and 5-class subsets follow from these. Published 6-class sets have 7,433 utterances,
since 53 `xxx` utterances are called happy there; here they stay `xxx`, and the 6-class set has 7,380.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ser.cache.manifest import Manifest

from .scan import Scan

# Which raw labels a class takes, by label policy (the same names as `--labels`).
POLICIES: dict[str, dict[str, tuple[str, ...]]] = {
    "4class": {"ang": ("ang",), "hap": ("hap", "exc"), "neu": ("neu",), "sad": ("sad",)},
    "5class": {"ang": ("ang",), "hap": ("hap", "exc"), "neu": ("neu",), "sad": ("sad",), "fru": ("fru",)},
    "6class": {name: (name,) for name in ("ang", "hap", "exc", "neu", "sad", "fru")},
}

# fmt: off
KNOWN: dict[str, Any] = {
    "utterances": 10039,
    "dialogues": 151,
    "speakers": 10,
    "hours": 12.44,
    "improvised": 4784,
    "scripted": 5255,
    "genders": {"F": 4800, "M": 5239},
    "sessions": {"1": 1819, "2": 1811, "3": 2136, "4": 2103, "5": 2170},
    "labels": {"xxx": 2507, "fru": 1849, "neu": 1708, "ang": 1103, "sad": 1084, "exc": 1041, "hap": 595, "sur": 107,
               "fea": 40, "oth": 3, "dis": 2},
    "policies": {"4class": 5531, "5class": 7380, "6class": 7380},
    "4class hours": 6.99,
    "4class per session": {
        "1": {"ang": 229, "hap": 278, "neu": 384, "sad": 194},
        "2": {"ang": 137, "hap": 327, "neu": 362, "sad": 197},
        "3": {"ang": 240, "hap": 286, "neu": 320, "sad": 305},
        "4": {"ang": 327, "hap": 303, "neu": 258, "sad": 143},
        "5": {"ang": 170, "hap": 442, "neu": 384, "sad": 245},
    },
    "utterances per dialogue": {"fewest": 24, "most": 167},
    "durations": {"min": 0.585, "median": 3.52, "p95": 10.53, "p99": 15.08, "max": 34.14},
}
# fmt: on

# Where half of the last digit is not the right allowance: far percentiles also depend on how one interpolates.
ROUNDING = {"min": 0.0006, "p95": 0.03, "p99": 0.1}


def count_all(manifest: Manifest) -> dict[str, Any]:
    """The counts of `KNOWN`, of this manifest; durations in seconds."""
    by = {name: _tally(manifest.column(name)) for name in ("dialogue", "speaker", "gender", "session", "label")}
    labels = manifest.column("label")
    four = {raw: name for name, raws in POLICIES["4class"].items() for raw in raws}
    pairs = Counter(zip(manifest.column("session"), map(four.get, labels), strict=True))
    seconds = [s or 0.0 for s in manifest.column("duration")]
    scripted = sum("_script" in d for d in manifest.column("dialogue"))
    return {
        "utterances": len(manifest),
        "dialogues": len(by["dialogue"]),
        "speakers": len(by["speaker"]),
        "hours": sum(seconds) / 3600,
        "improvised": len(manifest) - scripted,
        "scripted": scripted,
        "genders": by["gender"],
        "sessions": by["session"],
        "labels": by["label"],
        "policies": {
            name: sum(by["label"].get(raw, 0) for raws in classes.values() for raw in raws)
            for name, classes in POLICIES.items()
        },
        "4class hours": sum(s for s, label in zip(seconds, labels, strict=True) if label in four) / 3600,
        "4class per session": {s: {name: pairs[s, name] for name in POLICIES["4class"]} for s in by["session"]},
        "utterances per dialogue": {"fewest": min(by["dialogue"].values()), "most": max(by["dialogue"].values())},
        "durations": _percentiles([s for s in manifest.column("duration") if s is not None]),
    }


def _tally(values: list[Any]) -> dict[str, int]:
    """How many there are of each value, nulls left out, by value."""
    return dict(sorted(Counter(v for v in values if v is not None).items()))


def _percentiles(seconds: list[float]) -> dict[str, float]:
    points = {"min": 0, "median": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(seconds, q)), 4) for name, q in points.items()} if seconds else {}


def compare(found: Mapping[str, Any], known: Mapping[str, Any] = KNOWN, under: str = "") -> list[str]:
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
    """The counts of a corpus, and its problems, ready for JSON. Durations are in seconds."""
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
    }


def differences(scan: Scan) -> list[str]:
    """How a copy of IEMOCAP differs from the release, in sentences; nothing for other corpora and for the demo."""
    if scan.format != "iemocap" or scan.manifest.synthetic:
        return []
    return compare(count_all(scan.manifest))
