"""Results with intervals beside the papers' numbers."""

from collections.abc import Sequence
from typing import Any

from ser.train.scores import NO_COMPARISON, caveat, conditions

from .cells import Cell
from .markup import Block, Folded, Section, Side
from .paper import changed_settings, others_quoted, quoted_for
from .plots import MUTED, SERIES, Plot, figure, label_line, percent_axis, to_svg
from .tables import Column, Table

PLOTTED = 30  # cells in the plot


def section(ranked: Sequence[Cell]) -> Section:
    """The section, for all cells, highest UA first."""
    blocks: list[Block] = [table(ranked), Side([_plot(ranked, "ua"), _plot(ranked, "wa")])]
    compared = papers_table(ranked)
    if compared is not None:
        blocks.append(compared)
    others = others_quoted(ranked)
    if others:
        rows = [[r.title, name, _share(n, "ua"), _share(n, "wa"), r.source] for r, name, n in others]
        columns = [Column("table"), Column("system"), Column("UA %", "percent"), Column("WA %", "percent")]
        columns.append(Column("quoted from"))
        blocks.append(Folded(Table("quoted", "Other systems, as the papers quote them", columns, rows)))
    return Section("results", "Results", blocks)


def cautions(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know before comparing any number of the report."""
    told = []
    if unreal := caveat(result for cell in cells for result in cell.results):
        told.append(
            f"{unreal[0].upper()}{unreal[1:]}. The numbers show that everything works and say nothing about people."
        )
    if tuned := [cell.label for cell in cells if cell.config["select"] == "best-test"]:
        told.append(f"The epoch was chosen on the TEST part, which lifts every number: {_listed(tuned)}.")
    mixed = [c.label for c in cells if not all(r["speaker_independent"] for r in c.results)]
    if mixed:
        told.append(f"Speakers of the test part are heard in training too, so scores are too high: {_listed(mixed)}.")
    if len({conditions(cell.results[0]) for cell in cells}) > 1:
        told.append(
            "The cells differ in protocol, selection or labels: their numbers must not be set against each other."
        )
    folds = {tuple(cell.folds) for cell in cells}
    if len(folds) > 1 and len({cell.config["protocol"] for cell in cells}) == 1:
        told.append("The cells were not tested on the same folds: their numbers are of different utterances.")
    return told


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def table(cells: Sequence[Cell]) -> Table:
    """One line per cell."""
    under = [conditions(cell.results[0]) for cell in cells]
    alike = len(set(under)) == 1
    columns = [Column("cell"), Column("UA %", "interval"), Column("WA %", "interval"), Column("macro-F1 %", "percent")]
    columns += [Column("UA of the runs %", "spread"), Column("WA of the runs %", "spread"), Column("runs")]
    columns += [Column("n", "count"), *([] if alike else [Column("conditions")])]
    rows = []
    for cell, where in zip(cells, under, strict=True):
        row = [cell.label, cell.intervals["ua"], cell.intervals["wa"], cell.pooled["macro_f1"], cell.spread("ua")]
        row += [cell.spread("wa"), f"{len(cell.folds)} × {len(cell.seeds)}", cell.pooled["n"]]
        rows.append(row if alike else [*row, where])
    drawn = " or ".join(sorted({cell.drawn for cell in cells}))
    note = (
        "UA: mean recall of the classes; WA: share that is right; both of the test utterances of all folds and seeds "
        f"together, with the 95 % bootstrap interval over {drawn}. Of the runs: mean ± standard deviation. Runs: folds "
        "× seeds; n: predictions."
    )
    if unreal := caveat(result for cell in cells for result in cell.results):
        note += f" {unreal[0].upper()}{unreal[1:]}."
    return Table("results", f"Scores of each cell{f' ({under[0]})' if alike else ''}", columns, rows, note)


def _plot(cells: Sequence[Cell], score: str) -> Plot:
    """One line per cell: the score with its interval, and chance for the UA."""
    plotted, name = cells[:PLOTTED], score.upper()
    found = [cell.intervals[score] for cell in plotted]
    chance = 1 / len(plotted[0].classes)
    colour = SERIES[0] if score == "ua" else SERIES[1]
    with figure(52 + 36 * len(plotted)) as (drawing, axes):
        for place, (cell, one) in enumerate(zip(plotted, found, strict=True)):
            axes.plot([one.low, one.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
            axes.plot(one.value, place, "o" if score == "ua" else "s", color=colour)
            label_line(axes, cell.label, place)
        if score == "ua":
            axes.axvline(chance, ymax=0.97, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(len(plotted) - 0.5, -0.8)
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        percent_axis(axes.xaxis)
        axes.set_xlabel(f"{name} %")
        svg = to_svg(drawing)
    rows = [[cell.label, one] for cell, one in zip(plotted, found, strict=True)]
    data = Table(f"{score}-plot", f"{name} of each cell", [Column("cell"), Column(f"{name} %", "interval")], rows)
    best = max(range(len(found)), key=lambda place: found[place].value)
    alt = f"{name} of {len(plotted)} cells with 95 % intervals. Highest: {plotted[best].label}, "
    alt += f"{100 * found[best].value:.1f} % [{100 * found[best].low:.1f}, {100 * found[best].high:.1f}]."
    note = f"Dashed: chance, {100 * chance:.0f} %." if score == "ua" else ""
    note += "" if len(cells) <= PLOTTED else f" The {PLOTTED} cells with the highest UA of {len(cells)}."
    return Plot(f"{name} with its 95 % interval", alt, svg, data, note.strip())


def _share(numbers: Any, metric: str) -> float | None:
    return numbers[metric] / 100 if metric in numbers else None


def papers_table(cells: Sequence[Cell]) -> Table | None:
    """Ours beside the papers' numbers; without a difference where none is meant."""
    real = any(cell.real for cell in cells)
    rows: list[list[Any]] = []
    changed: dict[str, dict[str, None]] = {}
    for cell in cells:
        places: dict[tuple[Any, ...], list[str]] = {}
        for quoted in quoted_for(cell):
            numbers = tuple((quoted.score(metric), quoted.score(f"{metric}_std")) for metric in ("ua", "wa"))
            if any(mean is not None for mean, _ in numbers):
                places.setdefault(numbers, []).append(quoted.where)
        for numbers, where in places.items():
            pieces: list[Any] = []
            for (mean, deviation), metric in zip(numbers, ("ua", "wa"), strict=True):
                ours = cell.spread(metric)
                pieces += [None if mean is None else (mean, deviation), ours]
                if real:
                    pieces.append(ours[0] - mean if mean is not None and cell.real else None)
            rows.append([cell.label, _together(where), *pieces])
            if settings := changed_settings(cell):
                told = ", ".join(f"{key} {value}" for key, value in settings.items())
                changed.setdefault(told, {})[cell.label] = None
    if not rows:
        return None
    columns = [Column("cell"), Column("in the papers")]
    for metric in ("UA", "WA"):
        columns += [Column(f"paper {metric} %", "spread"), Column(f"ours {metric} %", "spread")]
        columns += [Column(f"{metric} difference", "points")] if real else []
    note = "Ours: mean ± standard deviation over the runs, as the papers report."
    note += " Differences in points." if real else ""
    if not all(cell.real for cell in cells):
        note += f" A synthetic corpus or random weights: {NO_COMPARISON}, so no difference is given."
    for told, labels in changed.items():
        note += f" Settings that are not the paper’s in {_listed(list(labels))}: {told}."
    return Table("papers", "Beside the papers’ numbers", columns, rows, note)


def _together(places: Sequence[str]) -> str:
    """Places in the papers, each paper named once: "MSMSER, Table 1: Ours; Table 2: Full"."""
    told: list[str] = []
    last = ""
    for place in places:
        paper, _, rest = place.partition(", ")
        told.append(rest if paper == last else place)
        last = paper
    return "; ".join(told)
