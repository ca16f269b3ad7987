"""Counts and examples in the sentences of findings."""

from collections.abc import Iterable

# Examples that a sentence names.
NAMED = 5


def counted(count: int, noun: str, plural: str = "") -> str:
    """Such as "1 speaker", "12 speakers" or "2 classes"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {plural or noun + 's'}"


def examples(names: Iterable[str]) -> str:
    """The first few of these names, and how many more there are."""
    listed = list(names)
    shown = ", ".join(listed[:NAMED])
    more = len(listed) - NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown
