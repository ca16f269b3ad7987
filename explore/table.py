"""Effects as a CSV."""

import io
from collections.abc import Sequence
from pathlib import Path

from ser.corpus.sheet import Sheet
from ser.disk.write import write_whole

from .effects import Effect

COLUMNS = ("dimension", "group", "reference", "d", "low", "high", "p", "p_holm")


def write_effects(
    path: Path, effects: Sequence[Effect], reference: str, decimal: str = "."
) -> None:
    """Write a row for each dimension and group, in their order; unknown numbers are empty."""
    sink = io.StringIO(newline="")
    table = Sheet(sink, decimal)
    table.write_row(COLUMNS)
    for effect in effects:
        numbers = [effect.d, effect.low, effect.high, effect.p, effect.p_holm]
        cells = ["" if number != number else number for number in numbers]
        table.write_row([effect.dimension, effect.group, reference, *cells])
    write_whole(path, sink.getvalue().encode())
