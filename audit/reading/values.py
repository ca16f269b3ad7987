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
    keys = keys_of_values(values)
    value_of = dict(zip(keys, values, strict=True))
    name_of = {key: as_name(value) for key, value in value_of.items()}
    if all(name is None or _is_whole(name) for name in name_of.values()):
        for key, name in name_of.items():
            name_of[key] = None if name is None else str(int(float(name)))
    return [name_of[key] for key in keys]


def keys_of_values(values: Sequence[Any]) -> Sequence[Any]:
    """What tells the values of a column apart in a dictionary, where 1, 1.0 and True are equal."""
    if set(map(type, values)) <= {str, type(None)}:
        return values
    return [(type(value), value) for value in values]


def _is_whole(name: str) -> bool:
    try:
        return float(name).is_integer() and len(name) < 16
    except ValueError:
        return False
