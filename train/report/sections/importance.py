"""What the score of a cell loses without each group of its features."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..elements import Section, TableElement
from ..formats import COUNT, FINE_WITH_DEVIATION, PERCENT_WITH_DEVIATION, TEXT
from ..table import Column, Row, Table

UA = "UA points lost"
CCC = "mean CCC lost"


@dataclass(frozen=True)
class Importance:
    """What is lost without one group of features, see `ser.predict.importance`."""

    cell: str
    group: str
    columns: int
    """How many values of a vector, or of a row, are in it."""
    loss: float
    """Of UA in percent, or of the mean CCC: the mean over the permutations."""
    deviation: float | None
    """Over the permutations; None of a single one."""
    is_of_classes: bool
    permutations: int


def importance(found: Sequence[Importance]) -> Section:
    """The table as a section of the page."""
    elements = [TableElement(importance_table(found))]
    return Section("importance", "What the models need", elements)


def importance_table(found: Sequence[Importance]) -> Table:
    """One line per cell and group, in their order."""
    rows: list[Row] = []
    for each in found:
        heading = UA if each.is_of_classes else CCC
        rows.append(
            {
                "cell": each.cell,
                "group": each.group,
                "columns": each.columns,
                heading: (each.loss, each.deviation),
            }
        )
    permutations = found[0].permutations if found else 0
    return Table(
        name="importance",
        caption="What the score loses without each group of features",
        columns=[
            Column("cell", TEXT),
            Column("group", TEXT),
            Column("columns", COUNT),
            Column(UA, PERCENT_WITH_DEVIATION),
            Column(CCC, FINE_WITH_DEVIATION),
        ],
        rows=rows,
        note=(
            f"Permutation importance: mean ± deviation over {permutations} permutations of the "
            "group’s values among the utterances of each test part; nothing is trained again. "
            "Where groups tell the same, none of them is missed."
        ),
        names=2,
    )
