"""Modality bias: one trained model tested with both modalities, only text, only audio; and the number of queries."""

from collections.abc import Sequence
from typing import Any

from ser.cache.spec import canonical_json

from .cells import OF_THE_RUN, Cell
from .markup import Section, Side
from .paper import quoted_for
from .plots import Plot, figure, label_line, legend, look, percent_axis, to_svg
from .tables import Column, Table

TESTS = ("both", "only text", "only audio", "head text", "head audio")
SHOWN = 12  # cells in the plot


def bias(ranked: Sequence[Cell]) -> Section | None:
    """How much a model leans on one modality; None if no cell has more than one way of testing."""
    able = [cell for cell in ranked if _tests(cell) != ["both"]]
    if not able:
        return None
    told = "Only text and only audio: the same trained model, with the other modality hidden in the test."
    if any(test.startswith("head") for cell in able for test in _tests(cell)):
        told += " Heads: the model’s own classifiers of one modality, without the other."
    plot = _bias_plot(able)
    return Section("modalities", "What each modality brings", [Side([f"{told} {plot.alt}", plot])])


def _tests(cell: Cell) -> list[str]:
    return [test for test in TESTS if test in cell.tests]


def _bias_plot(able: Sequence[Cell]) -> Plot:
    tests = [test for test in TESTS if any(test in _tests(cell) for cell in able)]
    shown = able[:SHOWN]
    with figure(58 + 22 * ((len(tests) + 1) // 2) + 40 * len(shown)) as (drawing, axes):
        for number, test in enumerate(tests):
            found = [(place, scores["ua"]) for place, cell in enumerate(shown) if (scores := cell.tests.get(test))]
            axes.plot([v for _, v in found], [p for p, _ in found], **{**look(number), "linestyle": ""}, label=test)
        for place, cell in enumerate(shown):
            label_line(axes, cell.label, place)
        axes.set_yticks([])
        axes.set_ylim(len(shown) - 0.4, -0.7)
        percent_axis(axes.xaxis)
        axes.set_xlabel("UA %")
        axes.spines["left"].set_visible(False)
        legend(drawing, axes, columns=3)
        svg = to_svg(drawing)
    rows: list[list[Any]] = []
    for cell in able:
        for test in _tests(cell):
            scores = cell.tests[test]
            papers = quoted_for(cell, test)
            quoted = next((q for q in papers if q.score("ua") or q.score("wa")), None)
            rows.append(
                [
                    cell.label,
                    test,
                    scores["ua"],
                    scores["wa"],
                    *((quoted.score("ua"), quoted.score("wa"), quoted.where) if quoted else (None, None, None)),
                ]
            )
    columns = [Column("cell"), Column("tested with"), Column("UA %", "percent"), Column("WA %", "percent")]
    columns += [Column("paper UA %", "percent"), Column("paper WA %", "percent"), Column("in the papers")]
    first = able[0]
    told = ", ".join(
        f"{test} {100 * scores['ua']:.1f} %" for test in _tests(first) if (scores := first.tests.get(test))
    )
    note = "" if len(able) <= SHOWN else f"Drawn: the {SHOWN} cells with the highest UA of {len(able)}."
    if not all(cell.real for cell in able):
        note = f"{note} Beside the papers’ numbers no comparison is meant.".strip()
    data = Table("bias", "UA and WA by what the test shows the model", columns, rows)
    return Plot("UA by what the test shows the model", f"{first.label}: {told}.", svg, data, note)


def queries(cells: Sequence[Cell]) -> Section | None:
    """UA against the number of query tokens, for cells that differ in it alone; None if there are none."""
    families: dict[bytes, list[Cell]] = {}
    for cell in cells:
        settings = cell.config["settings"]
        if "queries" in settings:
            config = {key: value for key, value in cell.config.items() if key not in OF_THE_RUN}
            config["settings"] = {key: value for key, value in settings.items() if key != "queries"}
            families.setdefault(canonical_json(config), []).append(cell)
    curves = [sorted(members, key=lambda c: c.config["settings"]["queries"]) for members in families.values()]
    curves = [members for members in curves if len(members) > 1]
    if not curves:
        return None
    with figure(230 + 20 * len(curves)) as (drawing, axes):
        for number, members in enumerate(curves):
            x = [cell.config["settings"]["queries"] for cell in members]
            found = [cell.intervals["ua"] for cell in members]
            errors = [[i.value - i.low for i in found], [i.high - i.value for i in found]]
            axes.errorbar(
                x, [i.value for i in found], errors, **look(number), capsize=0, elinewidth=1.5, label=_family(members)
            )
        ticks = sorted({cell.config["settings"]["queries"] for members in curves for cell in members})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("query tokens L")
        percent_axis(axes.yaxis)
        axes.set_ylabel("UA %")
        if len(curves) > 1:
            legend(drawing, axes, columns=1)
        svg = to_svg(drawing)
    rows = []
    for members in curves:
        for cell in members:
            paper = next((q.score("ua") for q in quoted_for(cell) if q.score("ua")), None)
            rows.append(
                [
                    _family(members),
                    cell.config["settings"]["queries"],
                    cell.intervals["ua"],
                    cell.intervals["wa"],
                    paper,
                ]
            )
    columns = [Column("cells"), Column("L", "count"), Column("UA %", "interval"), Column("WA %", "interval")]
    columns.append(Column("paper UA %", "percent"))
    best = max(curves[0], key=lambda cell: cell.pooled["ua"])
    alt = f"UA is highest with {best.config['settings']['queries']} query tokens, {100 * best.pooled['ua']:.1f} %."
    data = Table("queries", "UA against the number of query tokens", columns, rows)
    plot = Plot("UA against the number of query tokens", alt, svg, data, "With 95 % intervals; MSMSER’s figure 2.")
    told = f"The cells differ in the number of query tokens alone. {alt}"
    return Section("query-tokens", "How many query tokens it takes", [Side([told, plot])])


def _family(members: Sequence[Cell]) -> str:
    """What the labels of the cells share."""
    pieces = [set(cell.label.split(" · ")) for cell in members]
    return " · ".join(piece for piece in members[0].label.split(" · ") if all(piece in other for other in pieces))
