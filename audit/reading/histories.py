"""The scores of a training by epoch, as toolkits log them."""

import math
from typing import Any

from ..evidence import History
from .columns import Columns
from .sheet import Sheet
from .values import as_name, as_names

# What marks the epoch that was kept.
YES = {"1", "true", "yes", "kept", "best", "*", "x"}


def is_history(columns: Columns) -> bool:
    """Whether a file has a row for each epoch, and predicts nothing."""
    return "epoch" in columns


def read_history(sheet: Sheet, columns: Columns) -> History:
    """The history that a file holds."""
    epoch_heading = columns.headings["epoch"]
    epochs = [name or "" for name in as_names(sheet.columns[epoch_heading])]

    kept = None
    marked = columns.headings.get("kept")
    if marked is not None:
        for epoch, value in zip(epochs, sheet.columns[marked], strict=True):
            if (as_name(value) or "").casefold() in YES:
                kept = epoch

    numbers: dict[str, list[float]] = {}
    for heading, values in sheet.columns.items():
        if heading not in (epoch_heading, marked, columns.headings.get("id")):
            as_numbers = [_number(value) for value in values]
            if not all(math.isnan(number) for number in as_numbers):
                numbers[heading] = as_numbers

    has_utterances = "id" in columns and len(set(epochs)) < len(epochs)
    return History(sheet.source, epochs, numbers, kept, has_utterances)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
