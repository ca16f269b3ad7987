"""Matplotlib's figures as inline SVG that follows the page's colours, and is the same bytes each
time.

Figures are 420 points wide, which is a phone's width and half a desktop's; text stays text. What
`dots` and `lines` draw are points: the name of the series, a name or a number to place the point
at, and its value or (value, low, high). How they draw them stands in texts.toml: their arguments,
and those of matplotlib's `Axes.set`.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .tables import Table

WIDTH = 420.0  # points

# What is drawn in these colours is shown in the page's variables of these names, the series in c1
# to c7 (style.css).
VARIABLES = {"#010101": "ink", "#020202": "muted", "#030303": "grid"}
MUTED = "#020202"
DASHED: Any = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 3))}

Points = list[tuple[str, Any, Any]]


def figure(height: float, **subplots: Any) -> tuple[Any, Any]:
    """A figure `height` points high, with its axes."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(WIDTH / 72, height / 72))
    return drawing, drawing.subplots(**subplots)


def svg_of(table: Table) -> tuple[str, str]:
    """The view box of a table's plot and what an SVG element holds in it.

    Without dates, its colours as the page's variables, its ids those of no other plot of the page.
    """
    import matplotlib

    sink, how = io.StringIO(), dict(table.plot)
    draw = KINDS[how.pop("kind")]
    style = Path(__file__).with_name("report.mplstyle")
    with matplotlib.rc_context({"svg.hashsalt": table.name}, style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has other fonts
        draw(table.points, **how).savefig(sink, format="svg")
        series = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    opening, _, svg = sink.getvalue().partition("<svg ")[2].partition(">")
    needless = r"<metadata>.*?</metadata>|<style [^>]*>.*?</style>|<!--.*?-->"
    svg = re.sub(needless, "", svg.removesuffix("</svg>\n"), flags=re.DOTALL)
    variables = VARIABLES | {colour: f"c{number}" for number, colour in enumerate(series, 1)}
    svg = re.sub(r"<[^>]*>", lambda tag: _tidied(tag[0], variables), svg)
    return opening.partition('viewBox="')[2].partition('"')[0], re.sub(
        r"\s*\n\s*", "\n", svg
    ).strip()


def _tidied(tag: str, variables: Mapping[str, str]) -> str:
    """One tag (never the text between tags, which is the reader's) without ids of groups and
    needless digits.
    """
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag).replace("xlink:href", "href")
    tag = re.sub(r"(font: [^\"']*?[\d.]+px) [^\";]*", r"\1 inherit", tag)
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
    for colour, variable in variables.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


def _series(points: Points, legend: int) -> list[tuple[list[Any], np.ndarray, dict[str, Any]]]:
    """Where each series' points are, their values with the ends of their intervals [3, n] (NaN for
    none), its style.

    Its label is broken into lines that fit a legend of so many columns.
    """
    import matplotlib

    series = []
    styles = matplotlib.rcParams["axes.prop_cycle"]()
    for label, style in zip(dict.fromkeys(label for label, _, _ in points), styles, strict=False):
        own = [(at, value) for name, at, value in points if name == label]
        values = [value if isinstance(value, tuple) else (value, None, None) for _, value in own]
        style |= {"label": textwrap.fill(label, 60 // max(legend, 1))}
        series.append(([at for at, _ in own], np.array(values, dtype=float).T, style))
    return series


def _legend_rows(series: Sequence[tuple[Any, Any, Mapping[str, Any]]], legend: int) -> float:
    """Rows of the legend, if it has any columns; the second line of a label is less than one."""
    breaks = sum(style["label"].count("\n") for _, _, style in series)
    return -(-len(series) // legend) + 0.7 * breaks if legend else 0


def _finished(drawing: Any, axes: Any, legend: int, shown: Mapping[str, Any]) -> Any:
    """Name and bound the axes, and put the legend below the whole figure in so many columns, if
    any.
    """
    axes.set(**shown)
    if legend:
        drawing.legend(loc="outside lower left", ncols=legend)
    return drawing


def dots(
    points: Points, legend: int = 0, above: bool = False, baseline: float = np.nan, **shown: Any
) -> Any:
    """One line for each name, or (heading, name), with a dot for each series' value and a bar for
    its interval.
    """
    placed = [
        (label, at if isinstance(at, tuple) else ("", at), value) for label, at, value in points
    ]
    names, series = list(dict.fromkeys(at for _, at, _ in placed)), _series(placed, legend)
    texts = {(heading, name): textwrap.fill(name, 54) for heading, name in names}
    breaks = max(text.count("\n") for text in texts.values())
    headings = {heading for heading, _ in names} - {""}
    beside = 0 if above else len(series) - 1  # series of one line are drawn beside each other
    step = 36 + 4 * (legend > 0) if above else 21 + 4 * beside
    step += 15 * breaks
    drawing, axes = figure(
        55 + step * len(names) + 30 * len(headings) + 22 * _legend_rows(series, legend)
    )
    edge = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    lines: dict[Any, float] = {}
    end, last = 0.0, ""
    for (heading, name), text in texts.items():
        if heading != last:
            end, last = end + 0.4 * bool(lines), heading
            axes.annotate(heading, (0, end), (-4, 0), ha="right", fontsize=11, color=MUTED, **edge)
            end += 1
        if above:
            axes.annotate(text, (0, end), (0, 13 + 7.5 * text.count("\n")), fontsize=12, **edge)
        lines[heading, name], end = end, end + 1
    for number, (at, (values, low, high), style) in enumerate(series):
        y = np.array([lines[name] for name in at]) + (number - beside / 2) * 0.16 * (beside > 0)
        axes.hlines(y, low, high, color=style["color"], linewidth=2.5, capstyle="round")
        axes.plot(values, y, **style | {"linestyle": ""})
    axes.axvline(baseline, **DASHED)
    axes.set_yticks([] if above else list(lines.values()), [] if above else list(texts.values()))
    axes.set(ylim=(end - 0.4, -0.8 - 0.4 * breaks))
    axes.grid(axis="y", visible=not above and not headings)
    axes.spines["left"].set_visible(not above)
    return _finished(drawing, axes, legend, shown)


def lines(
    points: Points,
    legend: int = 0,
    band: bool = False,
    joined: bool = True,
    diagonal: bool = False,
    **shown: Any,
) -> Any:
    """Values over x, a number or a name, with their intervals, as bars or a `band`; `diagonal`: a
    value is its x.
    """
    series = _series(points, legend)
    drawing, axes = figure(230 + 20 * max(1, _legend_rows(series, legend)))
    for x, (values, low, high), style in series:
        if band:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
            style["marker"] = ""
        else:
            axes.vlines(
                x, low, high, color=style["color"], linewidth=1.5, alpha=1 if joined else 0.45
            )
        axes.plot(x, values, **style if joined else style | {"linestyle": ""})
    if diagonal:
        axes.axline((points[0][1],) * 2, slope=1, **DASHED)
    _finished(drawing, axes, legend, shown)
    if axes.get_xscale() == "log":
        ticks = sorted({at for _, at, _ in points})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
    elif not isinstance(points[0][1], str):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return drawing


def matrices(shown: tuple[Sequence[str], Mapping[str, np.ndarray]]) -> Any:
    """The K classes, and confusion matrices [K, K] by title, in percent of each true class."""
    classes, counts = shown
    across = min(len(counts), 2)
    down = -(-len(counts) // across)
    titles = [textwrap.fill(title, 44 // across) for title in counts]
    more = max(0, *(title.count("\n") - 3 for title in titles))  # lines than there is room for
    ticks, ends = range(len(classes)), (-0.5, len(classes) - 0.5)
    drawing, grid = figure(
        down * (0.82 * WIDTH / across + 46 + 14 * more), nrows=down, ncols=across, squeeze=False
    )
    for axes in grid.flat[len(counts) :]:
        axes.set_axis_off()
    for axes, title, matrix in zip(grid.flat, titles, counts.values(), strict=False):
        for (row, column), share in np.ndenumerate(
            100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        ):
            corners = [column - 0.5, column + 0.5], [row - 0.5] * 2, [row + 0.5] * 2
            axes.fill_between(*corners, color="C0", alpha=0.04 + 0.006 * share, linewidth=0)
            axes.text(column, row, f"{share:.0f}", ha="center", va="center")
        axes.set(xlim=ends, ylim=ends[::-1], aspect="equal", xticks=ticks, yticks=ticks)
        axes.set(xticklabels=classes, yticklabels=classes)
        axes.set_title(title, fontsize=11.5)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("true")
    for axes in grid[-1, :]:
        axes.set_xlabel("predicted")
    return drawing


def attention_maps(shown: tuple[Any, ...]) -> Any:
    """Attention of L query tokens to spans of time [L, T] and to words [L, N], by name, with
    `over_time` [T] above.

    Special tokens have no name. `end` is the last span's end in `unit`; `energy` are levels and the
    seconds between two of them, drawn in grey.
    """
    frames, words, names, over_time, end, unit, energy = shown
    rows = {"nrows": 2, "height_ratios": [0.7 if energy is None else 1.0, 2.2]}
    columns = {"ncols": 2, "width_ratios": [3.0, min(max(0.24 * len(names), 0.7), 2.4)]}
    drawing, ((top, corner), (heat, beside)) = figure(330, **rows, **columns)
    corner.set_axis_off()
    if energy is not None:
        levels, hop = energy
        levels = (levels - levels.min()) / max(float(np.ptp(levels)), 1e-9)
        top.fill_between(
            np.arange(len(levels)) * hop, levels, color=MUTED, alpha=0.28, linewidth=0, step="mid"
        )
    x = (np.arange(len(over_time)) + 0.5) * end / len(over_time)
    top.plot(x, over_time / max(over_time.max(), 1e-12), color="C0", marker="", linewidth=1.8)
    top.set(ylim=(0, 1.06), xlim=(0, end), yticks=[], title=f"attention over the {unit}")
    top.set_xticklabels([])
    top.grid(visible=False)
    top.spines["left"].set_visible(False)
    _heat(heat, frames, "C0", 0, end)
    heat.set(xlabel=unit, ylabel="query token")
    heat.yaxis.get_major_locator().set_params(integer=True)
    _heat(beside, words, "C1", -0.5, len(names) - 0.5)
    beside.set(yticks=[], title="words")
    short = ["⟨⟩" if name is None else name if len(name) < 11 else f"{name[:9]}…" for name in names]
    beside.set_xticks(range(len(names)), short, rotation=90, fontsize=10.5)
    return drawing


def _heat(axes: Any, values: np.ndarray, colour: str, left: float, right: float) -> None:
    """A heat map in one colour of rising opacity, so that it stands on light and dark paper."""
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("ramp", [(colour, 0.0), (colour, 1.0)])
    place = {
        "extent": (left, right, len(values) + 0.5, 0.5),
        "aspect": "auto",
        "interpolation": "nearest",
    }
    axes.imshow(values, ramp, vmin=0, vmax=max(float(values.max()), 1e-12), **place)
    axes.grid(visible=False)


KINDS = {kind.__name__: kind for kind in (dots, lines, matrices, attention_maps)}
