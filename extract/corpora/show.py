"""What `ser corpus show` tells about a scanned corpus."""

from dataclasses import asdict
from typing import Any

from .counts import compare, count_all, count_by, count_policies, percentiles
from .scan import Scan


def summary(scan: Scan) -> dict[str, Any]:
    """The counts of a corpus, and its problems, ready for JSON. Durations are in seconds."""
    manifest = scan.manifest
    seconds = [s for s in manifest.column("duration") if s is not None]
    return {
        "corpus": manifest.corpus,
        "format": scan.format,
        "synthetic": manifest.synthetic,
        "utterances": len(manifest),
        "dialogues": len(count_by(manifest, "dialogue")),
        "speakers": len(count_by(manifest, "speaker")),
        "hours": round(sum(seconds) / 3600, 4),
        "durations": percentiles(seconds),
        "genders": count_by(manifest, "gender"),
        "labels": count_by(manifest, "label"),
        "sessions": count_by(manifest, "session"),
        "policies": count_policies(manifest),
        "problems": [asdict(problem) for problem in scan.problems],
        "warnings": scan.warnings,
    }


def differences(scan: Scan) -> list[str]:
    """How a copy of IEMOCAP differs from the release, in sentences; nothing for other corpora and for the demo."""
    if scan.format != "iemocap" or scan.manifest.synthetic:
        return []
    return compare(count_all(scan.manifest))
