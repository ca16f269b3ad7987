"""Times as other people write them, in seconds: 1.5, "1,5", "1500 ms", "00:01:30.5", "0 days …"."""

import datetime
import math
import re
from typing import Any

# How many there are in a second.
UNITS = {
    "ms": 1000,
    "msec": 1000,
    "msecs": 1000,
    "millisecond": 1000,
    "milliseconds": 1000,
    "s": 1,
    "sec": 1,
    "secs": 1,
    "second": 1,
    "seconds": 1,
}

# Such as "-1.5 s", with a decimal comma too.
_NUMBER = re.compile(
    rf"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:e[+-]?\d+)?)\s*({'|'.join(UNITS)})?", re.ASCII
)

# Such as "1 days 02:03:04.5", as pandas and audformat write it, or "02:03:04,500".
_CLOCK = re.compile(
    r"(?:([+-]?\d+) days?,?\s*)?(?:([+-]?)(\d+):([0-5]?\d):([0-5]?\d(?:[.,]\d*)?))?", re.ASCII
)


def seconds_of(value: Any) -> float:
    """A time in seconds; a number without a unit is one of seconds.

    Raises `ValueError` or `TypeError` for what is none.

    >>> seconds_of("0 days 00:00:01.500000"), seconds_of("250 ms"), seconds_of("1,5")
    (1.5, 0.25, 1.5)
    """
    if isinstance(value, datetime.timedelta):
        return _finite(value.total_seconds())
    if isinstance(value, datetime.time):
        value = value.isoformat()
    if isinstance(value, bool):
        raise TypeError
    if not isinstance(value, str):
        return _finite(float(value))

    text = value.strip()
    number = _NUMBER.fullmatch(text.casefold())
    if number is not None:
        unit = UNITS[number[2]] if number[2] else 1
        # Divided: 1.1 * 0.001 is not 0.0011.
        return _finite(float(number[1].replace(",", ".")) / unit)

    clock = _CLOCK.fullmatch(text)
    if clock is None or not text:
        raise ValueError
    days, sign, hours, minutes, seconds = clock.groups(default="0")
    total = 3600 * int(hours) + 60 * int(minutes) + float(seconds.replace(",", "."))
    if sign == "-":
        total = -total
    return _finite(86400 * int(days) + total)


def with_unit(value: Any, unit: str) -> Any:
    """A time of a column in that unit, such as 1500 and "ms", as a text that says so itself."""
    is_number = isinstance(value, int | float) or (
        isinstance(value, str) and re.fullmatch(r"[-+0-9.,eE\s]+", value) is not None
    )
    return f"{value} {unit}" if unit and is_number else value


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise ValueError
    return seconds
