"""Names and labels that stand in a table as they are, and may not be meant so."""

from collections.abc import Sequence
from typing import Any

from ser.corpus.people import spelled_alike

from .rows import COMPARED, NAMES, NO_NUMBER

# What people and programs write where they know nothing.
PLACEHOLDERS = {"#n/a", "\\n", "-", "--", ".", "?", "missing", "undefined", "unk", "unknown"}


def warn_of_odd_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each column whose names look alike, and for each in which one may be none."""
    return _alike(rows) + _missing_as_words(rows)


def _alike(rows: Sequence[dict[str, Any]]) -> list[str]:
    warnings = []
    for column in COMPARED:
        names = {row[column] for row in rows if row.get(column)}
        groups = spelled_alike(names)
        if groups:
            first = ", ".join(groups[0])
            warnings.append(
                f"{len(groups)} {column}s are written in several ways that differ by case or zeros "
                f"alone, such as {first}: each way counts as another {column}, and may stand on "
                "the other side of a split; write them alike if they are one"
            )
    return warnings


def _missing_as_words(rows: Sequence[dict[str, Any]]) -> list[str]:
    warnings = []
    for column in NAMES:
        words = []
        for row in rows:
            value = row.get(column)
            if value is not None and value.casefold() in NO_NUMBER | PLACEHOLDERS:
                words.append(value)
        if words:
            warnings.append(
                f"the {column} of {len(words)} utterances is the word {words[0]!r}: leave the cell "
                "empty if it is missing"
            )
    return warnings
