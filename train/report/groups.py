"""Errors by session, speaker, gender, duration, and scripted or improvised."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .cells import Cell
from .plots import MUTED, SERIES, Plot, figure, percent_axis, to_svg
from .tables import Column, Interval, Table, percent
from .utterances import STYLES, Origin, style

LEVELS = 12  # of one grouping in the plot
SECONDS = (0.0, 1.5, 3.0, 5.0, 8.0, np.inf)

Line = tuple[str, str, int, Interval, float]  # grouping, group, utterances, share that is wrong, UA


def wilson(right: float, n: int) -> Interval:
    """Wilson's (1927) 95 % interval of a share, for groups too small to draw from."""
    z = 1.959964
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, float(max(0.0, centre - half)), float(min(1.0, centre + half)))


def _groupings(cell: Cell, origin: Origin) -> dict[str, list[str | None]]:
    """Names of groupings, and each prediction's group."""
    p = cell.predictions
    durations = origin.column("duration", p.ids)
    found: dict[str, list[str | None]] = {
        "session": origin.column("session", p.ids),
        "speaker": list(p.speakers),
        "gender": origin.column("gender", p.ids),
        "duration": [_seconds(d) for d in durations],
        "scripted or improvised": [style(id_) for id_ in p.ids],
    }
    return {name: values for name, values in found.items() if any(v is not None for v in values)}


def _seconds(duration: float | None) -> str | None:
    if duration is None:
        return None
    place = int(np.searchsorted(SECONDS, duration, side="right")) - 1
    low, high = SECONDS[place], SECONDS[place + 1]
    return f"under {high:g} s" if low == 0 else f"from {low:g} s" if np.isinf(high) else f"{low:g}–{high:g} s"


def _order(name: str, groups: Sequence[str]) -> list[str]:
    if name == "duration":
        every = [_seconds(low) for low in SECONDS[:-1]]
        return [group for group in every if group is not None and group in groups]
    if name == "scripted or improvised":
        return [group for group in STYLES.values() if group in groups]
    return sorted(groups, key=lambda g: (not g.isdigit(), int(g) if g.isdigit() else 0, g))


def _lines(cell: Cell, origin: Origin) -> list[Line]:
    p = cell.predictions
    lines = []
    for name, values in _groupings(cell, origin).items():
        of = np.array(values, dtype=object)
        for group in _order(name, sorted({v for v in values if v is not None})):
            inside = of == group
            n = len(set(p.ids[inside]))
            wrong = float((~p.right[inside]).mean())
            of_class = [inside & (p.truth == k) for k in range(len(cell.classes))]
            ua = float(np.mean([p.right[rows].mean() for rows in of_class if rows.any()]))
            lines.append((name, group, n, wilson(wrong * n, n), ua))
    return lines


def groups_plot(cell: Cell, origin: Origin) -> Plot:
    """The share of wrong predictions in each group."""
    lines = _lines(cell, origin)
    counts = Counter(name for name, *_ in lines)
    drawn = [line for line in lines if counts[line[0]] <= LEVELS]
    every = float((~cell.predictions.right).mean())
    headings = list(dict.fromkeys(name for name, *_ in drawn))
    with figure(52 + 21 * len(drawn) + 30 * len(headings)) as (drawing, axes):
        place, ticks = 0.0, []
        for heading in headings:
            axes.annotate(
                heading,
                (0, place),
                (-4, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                ha="right",
                fontsize=11,
                color=MUTED,
            )
            place += 1
            for _, group, _, error, _ in (line for line in drawn if line[0] == heading):
                axes.plot(
                    [error.low, error.high], [place, place], color=SERIES[0], linewidth=2.5, solid_capstyle="round"
                )
                axes.plot(error.value, place, "o", color=SERIES[0])
                ticks.append((place, group))
                place += 1
            place += 0.4
        axes.axvline(every, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks])
        axes.set_ylim(place - 0.6, -0.8)
        percent_axis(axes.xaxis, 0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("wrong %")
        svg = to_svg(drawing)
    worst = max(drawn, key=lambda line: line[3].value)
    columns = [
        Column("by"),
        Column("group"),
        Column("utterances", "count"),
        Column("wrong %", "interval"),
        Column("UA %", "percent"),
    ]
    data = Table("groups", "Errors by group", columns, lines)
    alt = f"Share of wrong predictions by group, {percent(every)} over all. "
    alt += f"Highest: {worst[0]} {worst[1]}, {percent(worst[3].value)}."
    note = "Dashed: over all utterances. Bars: Wilson’s 95 % interval for the number of utterances; seeds are averaged."
    if len(drawn) < len(lines):
        note += f" Groupings of more than {LEVELS} groups are only in the numbers."
    return Plot("Errors by group", alt, svg, data, note)
