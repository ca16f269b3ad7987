"""Problems that repeat: one line for each kind, with a count and two examples."""

import re
from collections.abc import Iterable, Sequence

from .reading import Problem

# So many of one kind have a line each; more share one.
LINES_EACH = 2


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """The problems in lines; those of one kind that repeat are counted in one."""
    return grouped([(kind_of(problem), str(problem)) for problem in problems])


def kind_of(problem: Problem) -> str:
    """What problems of one kind have in common: the reason without the names in it."""
    return kind_of_reason(problem.reason, problem.id, problem.path)


def kind_of_reason(reason: str, *names: str | None) -> str:
    """A reason without these names, what is quoted, and numbers."""
    kind = reason
    for name in sorted(filter(None, names), key=len, reverse=True):
        # As a word: an id may be a single letter.
        kind = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", kind)
    kind = re.sub(r"'[^']*'", "'…'", kind)
    return re.sub(r"\d+", "0", kind)


def grouped(sentences: Sequence[tuple[str, str]]) -> list[str]:
    """The sentences, each given behind its kind; many of one kind become one line."""
    by_kind: dict[str, list[str]] = {}
    for kind, sentence in sentences:
        by_kind.setdefault(kind, []).append(sentence)

    lines = []
    for alike in by_kind.values():
        if len(alike) <= LINES_EACH:
            lines += alike
        else:
            first, second, *_ = alike
            lines.append(f"{len(alike):,} of one kind, such as {first}; {second}")
    return lines
