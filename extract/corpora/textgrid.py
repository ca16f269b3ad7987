"""TextGrids of Praat: long and short, in UTF-8 and UTF-16, read by the package praatio."""

import re
from pathlib import Path
from typing import Any

from ser.disk.text import read_text
from ser.errors import CorpusError

from .annotations import AnnotationFormat, Annotations, Interval, Tier

# The head of a tier, long or short: its class, name, first and last second, and how many intervals
# or points it says that it has.
_HEAD = re.compile(
    r'"(?:IntervalTier|TextTier)"\s+(?:name\s*=\s*)?"(?:[^"]|"")*"\s+(?:xmin\s*=\s*)?\S+\s+'
    r"(?:xmax\s*=\s*)?\S+\s+(?:(?:intervals|points):\s*size\s*=\s*)?(\d+)"
)


def read_textgrid(path: Path) -> Annotations:
    """The tiers of a TextGrid. Raises `CorpusError` for what is none, or cannot be read whole."""
    import praatio.utilities.textgrid_io as praat

    try:
        # Its last line may have no end, which would lose the last interval.
        text = read_text(path).replace("\r\n", "\n").replace("\r", "\n") + "\n"
        if "ooTextFile" not in text[:200] or "TextGrid" not in text[:400]:
            raise ValueError("its first lines do not say so")
        content = praat.parseTextgridStr(text, includeEmptyIntervals=True)
        tiers = [_tier_of(tier) for tier in content["tiers"]]
    # It raises errors of its own, and of what it does not expect.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorpusError(f"is not a TextGrid that can be read ({reason})") from None

    _check_whole(text, tiers)
    return [("", tier) for tier in tiers]


def _tier_of(tier: dict[str, Any]) -> Tier:
    entries = list(tier["entries"])
    if tier["class"] != "IntervalTier":
        return Tier(tier["name"], points=len(entries))
    intervals = [Interval(float(start), float(end), label) for start, end, label in entries]
    return Tier(tier["name"], intervals)


def _check_whole(text: str, tiers: list[Tier]) -> None:
    """Raise `CorpusError` if a tier has other intervals than it says: none may be lost."""
    promised = [int(count) for count in _HEAD.findall(text)]
    read = [len(tier.intervals) + tier.points for tier in tiers]
    if promised != read:
        raise CorpusError(
            f"is a TextGrid whose tiers say that they have {promised} intervals, and {read} can be "
            "read: open it in Praat, and save it as a text file"
        )


FORMAT = AnnotationFormat("textgrid", ".textgrid", read_textgrid)
