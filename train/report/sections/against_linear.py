"""By how much each cell beats a linear model on the same features: a reviewer's first question."""

import shlex
from dataclasses import fields
from typing import Any

from ser.cache.feature_name import parse_feature_name
from ser.train.models.linear import FUSIONS, LinearSettings

from ..cell import Cell, Cells
from ..cell_scores import compare_cells
from ..formats import DIFFERENCE, P_VALUE, TEXT
from ..table import Column, Row, Table, columns_of
from .what_was_run import exact_name

LINEAR = [fusion.name for fusion in FUSIONS]
MEASURED = ("ua", "wa")


def against_linear_table(cells: Cells) -> Table:
    """Each cell beside the linear one on its features, as far as there is one."""
    rows: list[Row] = []
    for cell in cells:
        linear = linear_beside(cell, cells)
        if linear is not None:
            rows.append(_row(cell, linear))

    columns = columns_of(TEXT, ["cell", "linear"])
    for metric in MEASURED:
        columns.append(Column(f"{metric.upper()} difference", DIFFERENCE))
        columns.append(Column(f"{metric.upper()} p", P_VALUE))
    columns.append(Column("over", TEXT))
    return Table(
        name="against-linear",
        caption="By how much each cell beats a linear model on the same features",
        columns=columns,
        rows=rows,
        note=(
            "Cell − linear in points, on the utterances that both tested, with 95 % intervals. "
            "p: two-sided, the groups’ parts with their signs flipped."
        ),
    )


def against_linear(cells: Cells) -> str:
    """A sentence: by how much the best cell beats the linear one, or what trains that one.

    `cells` learn classes, the highest UA first. "" where none on features is other than linear.
    """
    # An ensemble has no features of its own, but those of its members.
    others = [cell for cell in cells if cell.config.features and not _is_linear(cell)]
    if not others:
        return ""

    best = others[0]
    linear = linear_beside(best, cells)
    if linear is None:
        return (
            f"No linear model on the features of {best.label} stands beside it, and so nothing "
            f"says what it adds to them: `{linear_command(best)}` trains one."
        )

    compared = compare_cells(best.scores, linear.scores, "ua")
    if compared is None:
        return f"{best.label} and {linear.label} have no test utterance in common."
    difference, low, high = compared.difference
    if low is None or high is None:
        words = "differs from"
        interval = compared.about
    else:
        words = "is not told apart from"
        if low > 0:
            words = "beats"
        if high < 0:
            words = "is beaten by"
        interval = f"95 % interval {low:+.2f} to {high:+.2f}, {compared.about}"
    return (
        f"{best.label} {words} a linear model on the same features: {difference:+.2f} points of UA "
        f"({interval})."
    )


def linear_beside(cell: Cell, cells: Cells) -> Cell | None:
    """The linear cell on the features, labels and folds of a cell that is not linear itself.

    Of several the one with the fewest settings that are not the default, so that a layer that was
    set is not chosen by its test score; of equals the first. None if there is none.
    """
    if _is_linear(cell):
        return None
    beside = []
    for other in cells:
        if _is_linear(other) and _conditions(other) == _conditions(cell):
            beside.append(other)
    return min(beside, key=_count_of_set, default=None)


def _count_of_set(cell: Cell) -> int:
    """How many of the model's settings are not at their default."""
    defaults = {field.name: field.default for field in fields(LinearSettings)}
    return sum(value != defaults.get(name) for name, value in cell.config.settings.items())


def linear_command(cell: Cell) -> str:
    """The command that trains the linear model on a cell's features."""
    config = cell.config
    words = ["ser", "train", "--features", "+".join(map(exact_name, config.features.values()))]
    words += ["--fusion", "linear"]

    asked = config.provenance.asked
    for option, default in (
        ("store", "features"),
        ("corpus", None),
        ("labels", "4class"),
        ("target", "class"),
        ("protocol", "session-out"),
        ("only", None),
        ("select", "val"),
        ("folds", "all"),
        ("limit", None),
        ("out", "runs"),
    ):
        value = asked.get(option, default)
        if value not in (None, default):
            words += [f"--{option}", str(value)]
    return shlex.join(words)


def _is_linear(cell: Cell) -> bool:
    return cell.config.fusion in LINEAR


def _conditions(cell: Cell) -> tuple[Any, ...]:
    """What must be the same: features and labels, and what is tested."""
    config = cell.config
    return (
        config.corpus,
        config.manifest,
        _features(cell),
        config.labels,
        config.target,
        config.protocol,
        config.only,
        config.limit,
    )


def _features(cell: Cell) -> frozenset[Any]:
    """The features with their options and checkpoints, whether pooled when stored or when read."""
    features = set()
    for modality, record in cell.config.features.items():
        specs = cell.config.provenance.feature_specs(modality)
        checkpoints = [str(spec.get("checkpoint")) for spec in specs]
        for number, part in enumerate(record.parts):
            parsed = parse_feature_name(part.feature)
            options = frozenset(parsed.variant)
            checkpoint = checkpoints[number] if number < len(checkpoints) else ""
            features.add((parsed.feature, options, checkpoint))
    return frozenset(features)


def _row(cell: Cell, linear: Cell) -> Row:
    row: Row = {"cell": cell.label, "linear": linear.label}
    for metric in MEASURED:
        compared = compare_cells(cell.scores, linear.scores, metric)
        if compared is not None:
            row[f"{metric.upper()} difference"] = compared.difference
            row[f"{metric.upper()} p"] = compared.p
            row["over"] = compared.about
    return row
