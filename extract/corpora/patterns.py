"""Patterns and templates of described layouts.

A description may come from anyone, so its patterns are matched under a time limit, and its
templates can only insert fields.
"""

import functools
from collections.abc import Mapping
from typing import Any

import regex

from ser.errors import WrongUse

# That a pattern may take for one name: backtracking may never end.
MATCH_SECONDS = 1.0
# Of a pattern.
MAX_CHARACTERS = 1000
# The product of a pattern's counted repeats, which are expanded.
MAX_REPEATS = 10_000

# In a template.
FIELD = regex.compile(r"\{(\w+)\}")
WHOLE = "{}"
# Around a pattern: it matches from the start of any folder.
FROM_ANY_FOLDER = "(?:.*/)?(?:{})"

# The values of a recording, by the names that templates use. All are text, but the raters' votes.
Fields = dict[str, Any]


@functools.lru_cache(64)
def compile_pattern(pattern: str, around: str = WHOLE) -> Any:
    """A pattern, compiled within the pattern `around`.

    Raises `WrongUse` for an invalid pattern, or one that would take gigabytes.
    """
    repeats = 1
    for number in regex.findall(r"[{,]\s*([0-9]+)", pattern):
        repeats *= int(number[:9]) or 1
    if len(pattern) > MAX_CHARACTERS or repeats > MAX_REPEATS:
        raise WrongUse(
            f"the pattern {pattern[:60]!a} is too large; take fewer characters and counted repeats"
        )

    try:
        return regex.compile(around.format(pattern))
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise WrongUse(
            f"the pattern {pattern[:60]!a} is not a regular expression ({error})"
        ) from None


def match_fields(pattern: str, text: str, around: str = WHOLE) -> Fields | None:
    """The named groups of a match of the whole text, without empty ones; None if it does not match.

    Raises `WrongUse` if it takes too long.
    """
    try:
        match = compile_pattern(pattern, around).fullmatch(text, timeout=MATCH_SECONDS)
    except TimeoutError:
        raise WrongUse(
            f"the pattern {pattern[:60]!a} takes over {MATCH_SECONDS:g} s to match {text[:60]!a}; "
            "write it without a repeat within a repeat"
        ) from None

    if match is None:
        return None
    return {name: value for name, value in match.groupdict().items() if value}


def fill(template: str, fields: Mapping[str, Any]) -> str | None:
    """The template with each {field} filled in; None if one of them is not known."""
    for name in FIELD.findall(template):
        if not isinstance(fields.get(name), str):
            # Votes are a list.
            return None
    return FIELD.sub(lambda field: fields[field[1]], template)
