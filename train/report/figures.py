"""Matplotlib's figures as inline SVG that follows the page's colours, and is the same bytes each time.

Figures are drawn 420 points wide, which is a phone's width and half a desktop's; text stays text.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .tables import Table

WIDTH = 420.0  # points

# What is drawn in the colour on the left is shown in the page's variable on the right (style.css).
INK, MUTED, GRID = "#010101", "#020202", "#030303"
# Okabe & Ito's colours, safe for the colour-blind, in the order of use; markers tell the series apart as well.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (8, 3)), "-")
AUDIO, TEXT = SERIES[0], SERIES[1]
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {colour: f"c{n}" for n, colour in enumerate(SERIES, 1)}

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ser",
    "text.parse_math": False,  # a transcript may hold a dollar sign
    "text.color": INK,
    "font.size": 12.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    **{
        f"{x}tick.{key}": value
        for x in "xy"
        for key, value in {"color": MUTED, "labelcolor": INK, "labelsize": 12}.items()
    },
    "legend.fontsize": 12,
    "lines.linewidth": 2.0,
    "lines.markersize": 7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.dpi": 72,
    "figure.constrained_layout.use": True,
    "savefig.transparent": True,
}


class Svg(NamedTuple):
    """An SVG element's view box, and what it holds."""

    view_box: str
    inside: str


@dataclass(frozen=True)
class Plot:
    """A figure as the page holds it: its picture, what it says in words, and its numbers."""

    title: str
    alt: str
    svg: Svg
    data: Table
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Values with the ends of their intervals, where there are any; NaN and None where there is no value."""

    label: str
    values: Sequence[float | None]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    x: Sequence[float] | None = None  # 0, 1, … if None


@contextmanager
def figure(height: float, **subplots: Any) -> Iterator[tuple[Any, Any]]:
    """A figure in the report's style, `height` points high, with its axes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(WIDTH / 72, height / 72))
        yield drawing, drawing.subplots(**subplots)


def to_svg(drawing: Any) -> Svg:
    """The figure without dates, its colours as the page's variables.

    Ids that the element refers to itself are left for the page to tell apart.
    """
    sink = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has other fonts
        drawing.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    opening, _, svg = sink.getvalue().partition("<svg ")[2].partition(">")
    needless = r"<metadata>.*?</metadata>|<style [^>]*>.*?</style>|<!--.*?-->"
    svg = re.sub(needless, "", svg.removesuffix("</svg>\n"), flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _tidied(tag[0]), svg)
    return Svg(opening.partition('viewBox="')[2].partition('"')[0], re.sub(r"\s*\n\s*", "\n", svg).strip())


def _tidied(tag: str) -> Svg:
    """One tag (never the text between tags, which is the reader's) without ids of groups and needless digits."""
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag).replace("xlink:href", "href")
    tag = re.sub(r"(font: [^\"']*?[\d.]+px) [^\";]*", r"\1 inherit", tag)
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


def _wrapped(text: str, width: int) -> str:
    """A label that fits the figure: cut in its middle, where two labels are most alike."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def _legend(drawing: Any, axes: Any, columns: int) -> None:
    """The axes' legend below the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    short = [_wrapped(label, 60 // columns) for label in labels]
    drawing.legend(handles, short, loc="outside lower left", ncols=columns, columnspacing=1.2, handlelength=1.8)


def _baseline(axes: Any, value: float | None, across: str) -> None:
    if value is not None:
        draw = axes.axvline if across == "x" else axes.axhline
        draw(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))


def dots(
    lines: Mapping[str, Sequence[str]],
    series: Sequence[Series],
    xlabel: str,
    *,
    above: bool = False,
    baseline: float | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    first: int = 0,
    legend: int = 0,
) -> Svg:
    """One line for each name, with a dot for each series' value and a bar for its interval.

    `lines` maps headings to the names below them ("" has no heading); `above` writes the names above their lines, so
    that long ones fit on a phone; `baseline` is dashed; `first` is the colour of the first series; `legend` is its
    number of columns, 0 for none.
    """
    names = [name for group in lines.values() for name in group]
    headings = [heading for heading in lines if heading]
    beside = 0 if above else len(series) - 1  # series of one line lie beside each other
    step = (36 + 4 * (legend > 0)) if above else 21 + 4 * beside
    height = 55 + step * len(names) + 30 * len(headings) + (22 * -(-len(series) // legend) if legend else 0)
    with figure(height) as (drawing, axes):
        places, place = [], 0.0
        for heading, group in lines.items():
            if heading:
                _beside(axes, heading, place, -4, 0, ha="right", fontsize=11, color=MUTED)
                place += 1
            places += [place + i for i in range(len(group))]
            place += len(group) + (0.4 if headings else 0)
        for number, one in enumerate(series):
            colour, marker = (styles[(first + number) % len(SERIES)] for styles in (SERIES, MARKERS))
            y = np.array(places) + (number - beside / 2) * 0.16 * (beside > 0)
            values = np.array(one.values, dtype=float)
            if one.low is not None and one.high is not None:
                axes.hlines(y, one.low, one.high, color=colour, linewidth=2.5, capstyle="round")
            axes.plot(values, y, marker, color=colour, label=one.label)
        if above:
            for y, name in zip(places, names, strict=True):
                _beside(axes, _wrapped(name, 54), y, 0, 13, fontsize=12)
        _baseline(axes, baseline, "x")
        axes.set_yticks([] if above else places, [] if above else names)
        axes.set_ylim(place - 0.4, -0.8)
        axes.set_xlim(*limits)
        axes.set_xlabel(xlabel)
        if above or headings:
            axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(not above)
        if legend:
            _legend(drawing, axes, legend)
        return to_svg(drawing)


def _beside(axes: Any, text: str, place: float, right: float, up: float, **style: Any) -> None:
    """Text at the left edge of a line, moved by points."""
    coordinates = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(text, (0, place), (right, up), va="center", **coordinates, **style)


def lines(
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    *,
    ticks: Mapping[float, str] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    band: bool = False,
    joined: bool = True,
    log: bool = False,
    baseline: float | None = None,
    legend: int = 1,
) -> Svg:
    """Values over x, with intervals as bars or, with `band`, as an area; not `joined` draws the dots alone."""
    with figure(230 + (20 * -(-len(series) // legend) if legend else 20)) as (drawing, axes):
        for number, one in enumerate(series):
            colour, marker, dashes = (styles[number % len(SERIES)] for styles in (SERIES, MARKERS, DASHES))
            x = np.arange(len(one.values)) if one.x is None else np.array(one.x)
            values = np.array(one.values, dtype=float)
            if one.low is not None and one.high is not None:
                if band:
                    axes.fill_between(x, one.low, one.high, color=colour, alpha=0.13, linewidth=0)
                else:
                    axes.vlines(x, one.low, one.high, color=colour, linewidth=1.5, alpha=1 if joined else 0.45)
            shape = {"linestyle": dashes if joined else "", "marker": "" if band else marker}
            axes.plot(x, values, color=colour, label=one.label, **shape)
        _baseline(axes, baseline, "y")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.set_ylim(*limits)
        if log:
            axes.set_xscale("log")
        if ticks is not None:
            axes.set_xticks(list(ticks), list(ticks.values()))
            axes.minorticks_off()
            axes.margins(x=0.12)
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if legend:
            _legend(drawing, axes, legend)
        return to_svg(drawing)


def shares(names: Sequence[str], parts: Mapping[str, Sequence[float]], xlabel: str) -> Svg:
    """One bar for each name, cut into parts that sum to 100."""
    with figure(90 + 34 * len(names)) as (drawing, axes):
        left = np.zeros(len(names))
        for (part, values), colour, hatch in zip(parts.items(), SERIES, ("", "///", "...", "xxx"), strict=False):
            axes.barh(names, values, 0.56, left, color=colour, hatch=hatch, edgecolor="none", label=part)
            left += values
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", visible=False)
        _legend(drawing, axes, len(parts))
        return to_svg(drawing)


def matrices(classes: Sequence[str], counts: Mapping[str, np.ndarray]) -> Svg:
    """Confusion matrices [K, K] by title, in percent of each true class."""
    across = 1 if len(counts) == 1 else 2
    down = -(-len(counts) // across)
    with figure(down * (0.82 * WIDTH / across + 46), nrows=down, ncols=across, squeeze=False) as (drawing, grid):
        for axes in grid.flat[len(counts) :]:
            axes.set_axis_off()
        for axes, (title, matrix) in zip(grid.flat, counts.items(), strict=False):
            percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
            for (row, column), share in np.ndenumerate(percent):
                corners = [column - 0.5, column + 0.5], [row - 0.5] * 2, [row + 0.5] * 2
                axes.fill_between(*corners, color=SERIES[0], alpha=0.04 + 0.006 * share, linewidth=0)
                axes.text(column, row, f"{share:.0f}", ha="center", va="center")
            ends = (-0.5, len(classes) - 0.5)
            axes.set(xlim=ends, ylim=ends[::-1], aspect="equal")
            axes.set_xticks(range(len(classes)), classes)
            axes.set_yticks(range(len(classes)), classes)
            axes.tick_params(length=0)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            short = textwrap.wrap(title, 44 // across, max_lines=2, placeholder=" …")
            axes.set_title("\n".join(short), fontsize=11.5)
        for axes in grid[:, 0]:
            axes.set_ylabel("true")
        for axes in grid[-1, :]:
            axes.set_xlabel("predicted")
        return to_svg(drawing)


def attention_maps(
    frames: np.ndarray,
    words: np.ndarray,
    names: Sequence[str],
    over_time: np.ndarray,
    end: float,
    unit: str,
    energy: tuple[np.ndarray, float] | None,
) -> Svg:
    """Attention of L query tokens to spans of time [L, T] and to words [L, N], with `over_time` [T] above.

    `end` is the last span's end in `unit`; `energy` are levels and the seconds between two of them, drawn in grey.
    """
    ratios = [1.0 if energy is not None else 0.7, 2.2]
    widths = [3.0, max(0.7, min(2.4, 0.24 * len(names)))]
    with figure(330, nrows=2, ncols=2, height_ratios=ratios, width_ratios=widths) as (drawing, grid):
        (top, corner), (heat, beside) = grid
        corner.set_axis_off()
        if energy is not None:
            levels, hop = energy
            levels = (levels - levels.min()) / max(float(np.ptp(levels)), 1e-9)
            top.fill_between(np.arange(len(levels)) * hop, levels, color=MUTED, alpha=0.28, linewidth=0, step="mid")
        x = (np.arange(len(over_time)) + 0.5) * end / len(over_time)
        top.plot(x, over_time / max(over_time.max(), 1e-12), color=AUDIO, linewidth=1.8)
        top.set(ylim=(0, 1.06), xlim=(0, end), yticks=[], title=f"attention over the {unit}")
        top.set_xticklabels([])
        top.grid(visible=False)
        top.spines["left"].set_visible(False)
        tokens = len(frames)
        _heat(heat, frames, AUDIO, (0, end, tokens + 0.5, 0.5))
        heat.set(xlabel=unit, ylabel="query token")
        heat.yaxis.get_major_locator().set_params(integer=True)
        _heat(beside, words, TEXT, (-0.5, len(names) - 0.5, tokens + 0.5, 0.5))
        beside.set(yticks=[], title="words")
        short = [name if len(name) < 11 else f"{name[:9]}…" for name in names]
        beside.set_xticks(range(len(names)), short, rotation=90, fontsize=10.5)
        return to_svg(drawing)


def _heat(axes: Any, values: np.ndarray, colour: str, extent: tuple[float, float, float, float]) -> None:
    """A heat map in one colour of rising opacity, so that it stands on light and dark paper."""
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("ramp", [(colour, 0.0), (colour, 1.0)])
    most = max(float(values.max()), 1e-12)
    axes.imshow(values, ramp, aspect="auto", vmin=0, vmax=most, extent=extent, interpolation="nearest")
    axes.grid(visible=False)
