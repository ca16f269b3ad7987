"""How a column of a report's table shows its values: to a reader, and in a CSV file.

    TEXT                      a label, a name, a sentence
    COUNT                     12,345
    VALUE                     a setting's value, whatever its type
    NUMBER                    three significant digits
    FINE                      three decimals: CCC, RMSE, KL, JS, which are no percent
    PERCENT                   76.41
    PERCENT_WITH_INTERVAL     50.00 [40.00, 60.00]: the value, and the ends of its 95 % interval
    PERCENT_WITH_DEVIATION    50.00 ± 1.10: the mean, and the sample deviation
    FINE_WITH_INTERVAL        0.512 [0.401, 0.623]
    FINE_WITH_DEVIATION       0.051 ± 0.002
    PERCENT_IN_SHORT          50.00 [40.0, 60.0]: a narrower one, for a terminal
    FINE_IN_SHORT             0.512 [0.40, 0.62]
    DIFFERENCE                +1.50 [−0.25, +3.25]: in points, with the ends of its 95 % interval
    P_VALUE                   0.031, or < 0.001

A value with its interval or deviation is a tuple; None is a part that is not known. None and NaN
are no value, and are shown as a dash.
"""

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

WITH_INTERVAL = ("", " low", " high")
WITH_DEVIATION = ("", " deviation")
NO_VALUE = "–"


@dataclass(frozen=True)
class Format:
    """How the values of one column are written."""

    decimals: str = "{}"  # for a reader
    csv_decimals: str = "{}"
    parts: tuple[str, ...] = ("",)  # what is added to the heading for each number of a value
    numeric: bool = True  # whether its values stand to the right
    numeric_when_empty: bool = False  # whether that holds of a column of dashes too
    lowest: float | None = None  # shown as "< lowest" below it
    decimals_of_ends: str = ""  # those of an interval's ends, if there are fewer

    def shown(self, value: Any) -> str:
        """A value as a reader sees it.

        >>> PERCENT.shown(76.412), P_VALUE.shown(0.0004), COUNT.shown(12345), COUNT.shown(None)
        ('76.41', '< 0.001', '12,345', '–')
        >>> PERCENT_WITH_DEVIATION.shown((50.0, 1.1)), PERCENT_WITH_INTERVAL.shown((50, 40, 60))
        ('50.00 ± 1.10', '50.00 [40.00, 60.00]')
        >>> PERCENT_IN_SHORT.shown((50, 40.25, 60))
        '50.00 [40.2, 60.0]'
        >>> DIFFERENCE.shown((1.5, -0.25, 3.25)), PERCENT_WITH_INTERVAL.shown((50, None, None))
        ('+1.50 [−0.25, +3.25]', '50.00')
        """
        if isinstance(value, tuple):
            return self._shown_parts(value)
        if value is None or value != value:
            return NO_VALUE
        if not _is_number(value):
            return str(value)
        if isinstance(value, Integral):
            return f"{value:,}"
        if self.lowest is not None and value < self.lowest:
            return f"< {self.lowest:g}"

        text = self.decimals.format(value)
        in_exponents = "e" in text
        return text if in_exponents else text.replace("-", "−")

    def _shown_parts(self, value: tuple[Any, ...]) -> str:
        """A value with the ends of its interval, or its deviation, as far as they are known."""
        first, *others = [float(part) for part in value if part is not None]
        if len(others) == 2:
            ends = replace(self, decimals=self.decimals_of_ends or self.decimals)
            return f"{self.shown(first)} [{', '.join(ends.shown(end) for end in others)}]"
        return " ± ".join(self.shown(part) for part in (first, *others))

    def exact(self, value: Any) -> str:
        """What a CSV file holds of a value, or of one part of it."""
        if value is None or value != value:
            return ""
        if isinstance(value, Real) and not isinstance(value, Integral):
            return self.csv_decimals.format(value)
        return harmless(str(value))

    def to_the_right(self, first: Any) -> bool:
        """Whether a column stands to the right.

        `first` is the first value in it, None if it has none.
        """
        return self.numeric_when_empty if first is None else self.numeric


class ValueFormat(Format):
    """Of values of any type: the first one decides where the column stands."""

    def to_the_right(self, first: Any) -> bool:
        return first is not None and not isinstance(first, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    begins_a_formula = text.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{text}" if begins_a_formula else text


TEXT = Format(numeric=False)
COUNT = Format()
NUMBER = Format("{:.3g}", "{:.6g}")
VALUE = ValueFormat("{:.3g}", "{:.6g}")

FINE = Format("{:.3f}", "{:.4f}")
FINE_WITH_INTERVAL = Format("{:.3f}", "{:.4f}", WITH_INTERVAL)
FINE_WITH_DEVIATION = Format("{:.3f}", "{:.4f}", WITH_DEVIATION)

PERCENT = Format("{:.2f}", "{:.4f}", numeric_when_empty=True)
PERCENT_WITH_INTERVAL = Format("{:.2f}", "{:.4f}", WITH_INTERVAL, numeric_when_empty=True)
PERCENT_WITH_DEVIATION = Format("{:.2f}", "{:.4f}", WITH_DEVIATION, numeric_when_empty=True)

FINE_IN_SHORT = replace(FINE_WITH_INTERVAL, decimals_of_ends="{:.2f}")
PERCENT_IN_SHORT = replace(PERCENT_WITH_INTERVAL, decimals_of_ends="{:.1f}")

DIFFERENCE = Format("{:+.2f}", "{:.4f}", WITH_INTERVAL, numeric_when_empty=True)
P_VALUE = Format("{:.3f}", "{:.6g}", numeric_when_empty=True, lowest=0.001)
