"""The values of a column as names: one spelling each."""

from collections.abc import Sequence
from typing import Any

from ser.corpus.people import one_spelling


def as_name(value: Any) -> str | None:
    """A value as a name: 1.0 is "1", blanks are one, what is missing is None."""
    if value is None or value == "":
        return None
    if isinstance(value, float):
        if value != value:
            return None
        if value.is_integer():
            return str(int(value))
    return one_spelling(str(value))


def as_names(values: Sequence[Any]) -> list[str | None]:
    """The values of a column as names.

    Numbers that were written as 1.0 where another is missing are whole ones again.
    """
    known: dict[Any, str | None] = {}
    names = []
    for value in values:
        # 1, 1.0 and True are one key of a dictionary.
        key = (type(value), value)
        if key not in known:
            known[key] = as_name(value)
        names.append(known[key])

    if all(name is None or _is_whole(name) for name in known.values()):
        return [None if name is None else str(int(float(name))) for name in names]
    return names


def _is_whole(name: str) -> bool:
    try:
        return float(name).is_integer() and len(name) < 16
    except ValueError:
        return False
