"""Matplotlib's figures as inline SVG that follows the page's colours, and is the same bytes each time.

Figures are drawn 420 points wide, which is a phone's width and half a desktop's; text stays text.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .tables import Table

WIDTH = 420.0  # points

# What is drawn in the colour on the left is shown in the page's variable on the right (style.css).
INK, MUTED, GRID = "#010101", "#020202", "#030303"
# Okabe & Ito's colours, safe for the colour-blind, in the order of use; markers tell the series apart as well.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (8, 3)), "-")
AUDIO, TEXT = SERIES[0], SERIES[1]
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {
    colour: f"c{number}" for number, colour in enumerate(SERIES, 1)
}

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ser",
    "text.parse_math": False,  # a transcript may hold a dollar sign
    "font.size": 12.5,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "lines.markersize": 7,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "figure.dpi": 72,
    "savefig.transparent": True,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Plot:
    """A figure as the page holds it: its picture, what it says in words, and its numbers."""

    title: str
    alt: str
    svg: str
    data: Table
    note: str = ""


@contextmanager
def figure(height: float, **subplots: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure in the report's style, `height` points high, with its axes."""
    with matplotlib.rc_context(STYLE):
        drawing, axes = plt.subplots(figsize=(WIDTH / 72, height / 72), **subplots)
        try:
            yield drawing, axes
        finally:
            plt.close(drawing)


def to_svg(drawing: Figure) -> str:
    """The figure as an `<svg>` element without ids, dates or fixed size, its colours as the page's variables.

    Ids that the element refers to itself are left for the page to tell apart.
    """
    sink = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has other fonts
        drawing.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    for needless in (r"<metadata>.*?</metadata>", r"<style [^>]*>.*?</style>", r"<!--.*?-->"):
        svg = re.sub(needless, "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", svg, count=1)
    svg = re.sub(r"<[^>]*>", lambda tag: _tidied(tag[0]), svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _tidied(tag: str) -> str:
    """One tag (never the text between tags, which is the reader's) without ids of groups and needless digits."""
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag).replace("xlink:href", "href")
    tag = re.sub(r"(font: [^\"']*?[\d.]+px) [^\";]*", r"\1 inherit", tag)
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


def look(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the series with that number."""
    n = number % len(SERIES)
    return {"color": SERIES[n], "marker": MARKERS[n], "linestyle": DASHES[n]}


def percent_axis(axis: Any, low: float | None = None, high: float | None = None) -> None:
    """Shares as percent along an axis (`axes.xaxis` or `axes.yaxis`)."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    bounds = axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim
    bounds(low, high)


def wrapped(text: str, width: int = 46) -> str:
    """A label that fits the figure: cut in its middle, where two labels are most alike."""
    if len(text) <= width:
        return text
    half = (width - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def label_line(axes: Any, label: str, place: float) -> None:
    """A line's label above it, at the left edge, so that long ones fit on a phone."""
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(wrapped(label, 54), (0, place), (0, 13), va="center", fontsize=12, **where)


def legend(drawing: Figure, axes: Any, columns: int = 2, handles: Sequence[Any] | None = None) -> None:
    """The axes' legend below the whole figure."""
    found, labels = axes.get_legend_handles_labels()
    drawing.legend(
        handles or found,
        [h.get_label() for h in handles] if handles else [wrapped(label, 60 // columns) for label in labels],
        loc="outside lower left",
        ncols=columns,
        columnspacing=1.2,
        handlelength=1.8,
    )
