"""The plots of a report: functions that take what is to be seen, and return matplotlib's figure.

Figures are 420 points wide, which is a phone's width and half a desktop's. What `dots` and `lines`
draw are points: the name of the series, a name or a number to place the point at, and its value or
(value, low, high). `axes_settings` is what matplotlib's `Axes.set` takes: xlabel, ylim, ….
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ser.train.scores.classes import percent_of_truth

WIDTH = 420.0  # points
LEGEND_LETTERS = 60  # in a line of the legend, all of its columns together
NAME_LETTERS = 54  # in a line of the name of a dot
TITLE_LETTERS = 44  # in a line of the titles of matrices, all of a row together
WORD_LETTERS = 10  # of a word below a map; longer ones are cut

# See svg.py.
MUTED = "#020202"
DASHED: Any = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 3))}

Points = list[tuple[str, Any, Any]]


def figure(height: float, **subplots: Any) -> tuple[Any, Any]:
    """A figure `height` points high, with its axes."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(WIDTH / 72, height / 72))
    return drawing, drawing.subplots(**subplots)


@dataclass(frozen=True)
class Series:
    """The points of one name."""

    places: list[Any]  # n numbers or names
    values: np.ndarray  # [n]
    low: np.ndarray  # [n], NaN where there is no interval
    high: np.ndarray  # [n]
    style: dict[str, Any]  # matplotlib's, with the label of the legend


def _split_into_series(points: Points, legend: int) -> list[Series]:
    """The points by name, in the order and the colours of the page.

    A label is broken into lines that fit a legend of so many columns.
    """
    import matplotlib

    series = []
    names = dict.fromkeys(name for name, _, _ in points)
    styles = matplotlib.rcParams["axes.prop_cycle"]()
    for name, style in zip(names, styles, strict=False):
        places = []
        intervals = []
        for other, place, value in points:
            if other == name:
                places.append(place)
                intervals.append(value if isinstance(value, tuple) else (value, None, None))

        label = textwrap.fill(name, LEGEND_LETTERS // max(legend, 1))
        values, low, high = np.array(intervals, dtype=float).T
        series.append(Series(places, values, low, high, style | {"label": label}))
    return series


def _legend_rows(series: Sequence[Series], legend: int) -> float:
    """Rows of the legend, if it has any columns; the second line of a label is less than one."""
    if not legend:
        return 0
    breaks = sum(one_series.style["label"].count("\n") for one_series in series)
    rows = -(-len(series) // legend)
    return rows + 0.7 * breaks


def _finish(drawing: Any, axes: Any, legend: int, axes_settings: Mapping[str, Any]) -> None:
    """Name and bound the axes, and put the legend below the whole figure.

    `legend`: its columns; without any there is no legend.
    """
    axes.set(**axes_settings)
    if legend:
        drawing.legend(loc="outside lower left", ncols=legend)


def dots(
    points: Points,
    legend: int = 0,
    above: bool = False,
    apart: bool = False,
    baseline: float = np.nan,
    **axes_settings: Any,
) -> Any:
    """One line for each name, or (heading, name), with a dot for each series' value.

    A bar is the value's interval.
    `legend`: its columns. `above`: the names stand above their lines, so that long ones fit on a
    phone; the series are then on one line, or each on its own if they are kept `apart`. `baseline`:
    where a dashed line stands; it is broken where names are in its way.
    """
    placed: Points = []
    for series_name, place, value in points:
        heading_and_name = place if isinstance(place, tuple) else ("", place)
        placed.append((series_name, heading_and_name, value))

    series = _split_into_series(placed, legend)
    texts: dict[tuple[str, str], str] = {}
    for _, (heading, name), _ in placed:
        texts[heading, name] = textwrap.fill(name, NAME_LETTERS)
    headings = {heading for heading, _ in texts} - {""}
    breaks = max(text.count("\n") for text in texts.values())

    # Points between the middles of two series, and between the names of two lines.
    neighbours = len(series) - 1 if apart or not above else 0
    gap = 11.0 if above else 4.0
    step = 21 + gap * neighbours + 15 * breaks
    if above:
        step = (40 if legend else 36) + gap * neighbours + 15 * breaks
    height = 55 + step * len(texts) + 30 * len(headings) + 22 * _legend_rows(series, legend)
    drawing, axes = figure(height)

    lines = _name_lines(axes, texts, above, raised=gap * neighbours / 2)
    end = max(lines.values()) + 1
    for number, one_series in enumerate(series):
        y = np.array([lines[place] for place in one_series.places])
        if neighbours > 0:
            y = y + (number - neighbours / 2) * (gap / step)
        colour = one_series.style["color"]
        axes.hlines(
            y, one_series.low, one_series.high, color=colour, linewidth=2.5, capstyle="round"
        )
        axes.plot(one_series.values, y, **one_series.style | {"linestyle": ""})

    if above:
        middles = np.array(list(lines.values()))
        half = gap * neighbours / 2
        top = middles - (half + 5) / step
        axes.vlines(np.full_like(middles, baseline), top, middles + (half + 8) / step, **DASHED)
        axes.set_yticks([], [])
    else:
        axes.axvline(baseline, **DASHED)
        axes.set_yticks(list(lines.values()), list(texts.values()))
    axes.set(ylim=(end - 0.4, -0.8 - 0.4 * breaks))
    axes.grid(axis="y", visible=not above and not headings)
    axes.spines["left"].set_visible(not above)
    _finish(drawing, axes, legend, axes_settings)
    return drawing


def _name_lines(
    axes: Any, texts: Mapping[tuple[str, str], str], above: bool, raised: float
) -> dict[tuple[str, str], float]:
    """The y of each (heading, name), in order.

    Headings, and names that stand `above` their lines, are written; those are `raised` by so many
    points more.
    """
    edge = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    lines: dict[tuple[str, str], float] = {}
    y = 0.0
    last_heading = ""
    for (heading, name), text in texts.items():
        if heading != last_heading:
            last_heading = heading
            if lines:
                y += 0.4
            axes.annotate(heading, (0, y), (-4, 0), ha="right", fontsize=11, color=MUTED, **edge)
            y += 1
        if above:
            height = 13 + raised + 7.5 * text.count("\n")
            axes.annotate(text, (0, y), (0, height), fontsize=12, **edge)
        lines[heading, name] = y
        y += 1
    return lines


def lines(
    points: Points,
    legend: int = 0,
    band: bool = False,
    joined: bool = True,
    diagonal: bool = False,
    **axes_settings: Any,
) -> Any:
    """Values over x, a number or a name, with their intervals.

    `legend`: its columns. `band`: intervals are an area, not bars. `joined`: by lines, or dots
    alone. `diagonal`: dashed, where a value is its x.
    """
    series = _split_into_series(points, legend)
    drawing, axes = figure(230 + 20 * max(1, _legend_rows(series, legend)))

    for one_series in series:
        x = one_series.places
        style = dict(one_series.style)
        colour = style["color"]
        if band:
            axes.fill_between(
                x, one_series.low, one_series.high, color=colour, alpha=0.13, linewidth=0
            )
            style["marker"] = ""
        else:
            alpha = 1 if joined else 0.45
            axes.vlines(
                x, one_series.low, one_series.high, color=colour, linewidth=1.5, alpha=alpha
            )
        if not joined:
            style["linestyle"] = ""
        axes.plot(x, one_series.values, **style)

    first_x = points[0][1]
    if diagonal:
        axes.axline((first_x, first_x), slope=1, **DASHED)
    _finish(drawing, axes, legend, axes_settings)

    if axes.get_xscale() == "log":
        ticks = sorted({place for _, place, _ in points})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
    elif not isinstance(first_x, str):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return drawing


def matrices(classes: Sequence[str], counts: Mapping[str, np.ndarray]) -> Any:
    """Confusion matrices [K, K] of the K classes by title, in percent of each true class."""
    across = min(len(counts), 2)
    down = -(-len(counts) // across)

    titles = [textwrap.fill(title, TITLE_LETTERS // across) for title in counts]
    longest = max(title.count("\n") for title in titles)
    more_lines = max(0, longest - 3)  # than there is room for
    height = down * (0.82 * WIDTH / across + 46 + 14 * more_lines)
    drawing, grid = figure(height, nrows=down, ncols=across, squeeze=False)

    for axes in grid.flat[len(counts) :]:
        axes.set_axis_off()
    for axes, title, matrix in zip(grid.flat, titles, counts.values(), strict=False):
        _matrix(axes, classes, title, matrix)

    for axes in grid[:, 0]:
        axes.set_ylabel("true")
    for axes in grid[-1, :]:
        axes.set_xlabel("predicted")
    return drawing


def _matrix(axes: Any, classes: Sequence[str], title: str, matrix: np.ndarray) -> None:
    """One confusion matrix [K, K]: a square for each pair of classes.

    The larger its share, the darker it is.
    """
    for (row, column), share in np.ndenumerate(percent_of_truth(matrix)):
        x = [column - 0.5, column + 0.5]
        alpha = 0.04 + 0.006 * share
        axes.fill_between(
            x, [row - 0.5, row - 0.5], [row + 0.5, row + 0.5], color="C0", alpha=alpha, linewidth=0
        )
        axes.text(column, row, f"{share:.0f}", ha="center", va="center")

    ticks = range(len(classes))
    ends = (-0.5, len(classes) - 0.5)
    axes.set(xlim=ends, ylim=ends[::-1], aspect="equal", xticks=ticks, yticks=ticks)
    axes.set(xticklabels=classes, yticklabels=classes)
    axes.set_title(title, fontsize=11.5)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


@dataclass(frozen=True)
class AttentionMap:
    """Attention of L query tokens to T spans of time and to N words."""

    spans: np.ndarray  # [L, T]
    words: np.ndarray  # [L, N]
    names: Sequence[str | None]  # of the words [N]; special tokens have none
    over_time: np.ndarray  # [T], of all query tokens
    end: float  # of the last span, in `unit`
    unit: str
    energy: tuple[np.ndarray, float] | None  # levels, and the seconds between two of them


def attention_map(shown: AttentionMap) -> Any:
    """The attention over time, and below it that of each query token.

    Above the energy stands in grey behind it; below, each token attends to spans of time and to
    words.
    """
    upper_height = 0.7 if shown.energy is None else 1.0
    words_width = min(max(0.24 * len(shown.names), 0.7), 2.4)
    drawing, ((top, corner), (over_spans, over_words)) = figure(
        330, nrows=2, height_ratios=[upper_height, 2.2], ncols=2, width_ratios=[3.0, words_width]
    )
    corner.set_axis_off()

    _attention_over_time(top, shown)

    _heat(over_spans, shown.spans, "C0", 0, shown.end)
    over_spans.set(xlabel=shown.unit, ylabel="query token")
    over_spans.yaxis.get_major_locator().set_params(integer=True)

    _heat(over_words, shown.words, "C1", -0.5, len(shown.names) - 0.5)
    over_words.set(yticks=[], title="words")
    labels = [_short_word(name) for name in shown.names]
    over_words.set_xticks(range(len(labels)), labels, rotation=90, fontsize=10.5)
    return drawing


def _attention_over_time(axes: Any, shown: AttentionMap) -> None:
    if shown.energy is not None:
        levels, hop = shown.energy
        levels = (levels - levels.min()) / max(float(np.ptp(levels)), 1e-9)
        seconds = np.arange(len(levels)) * hop
        axes.fill_between(seconds, levels, color=MUTED, alpha=0.28, linewidth=0, step="mid")

    middles = (np.arange(len(shown.over_time)) + 0.5) * shown.end / len(shown.over_time)
    relative = shown.over_time / max(shown.over_time.max(), 1e-12)
    axes.plot(middles, relative, color="C0", marker="", linewidth=1.8)
    title = f"attention over the {shown.unit}"
    axes.set(ylim=(0, 1.06), xlim=(0, shown.end), yticks=[], title=title)
    axes.set_xticklabels([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def _short_word(name: str | None) -> str:
    if name is None:
        return "⟨⟩"
    return name if len(name) <= WORD_LETTERS else f"{name[: WORD_LETTERS - 1]}…"


def _heat(axes: Any, values: np.ndarray, colour: str, left: float, right: float) -> None:
    """A heat map in one colour of rising opacity, so that it stands on light and dark paper."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    # Before 3.10, a pair of a colour and its opacity is taken for a value and its colour.
    ends = [to_rgba(colour, 0.0), to_rgba(colour, 1.0)]
    ramp = LinearSegmentedColormap.from_list("ramp", ends)
    axes.imshow(
        values,
        ramp,
        vmin=0,
        vmax=max(float(values.max()), 1e-12),
        extent=(left, right, len(values) + 0.5, 0.5),
        aspect="auto",
        interpolation="nearest",
    )
    axes.grid(visible=False)
