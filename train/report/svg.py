"""Matplotlib's figures as inline SVG in the page's colours, the same bytes each time."""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# What is drawn in these colours is shown in the page's variables of these names, the series in c1
# to c7 (style.css).
VARIABLES = {"#010101": "ink", "#020202": "muted", "#030303": "grid"}
STYLE = Path(__file__).with_name("report.mplstyle")


def to_svg(draw: Callable[[], Any], name: str) -> tuple[str, str]:
    """The view box of a plot and what an SVG element holds in it.

    `draw` returns a figure. Without dates, its colours as the page's variables, its ids those of no
    other plot of the page, whose `name` is another.
    """
    import matplotlib

    sink = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}, STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has other fonts
        draw().savefig(sink, format="svg")
        series_colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]

    variables = dict(VARIABLES)
    for number, colour in enumerate(series_colours, 1):
        variables[colour] = f"c{number}"

    opening, _, inside = sink.getvalue().partition("<svg ")[2].partition(">")
    view_box = opening.partition('viewBox="')[2].partition('"')[0]

    needless = r"<metadata>.*?</metadata>|<style [^>]*>.*?</style>|<!--.*?-->"
    inside = re.sub(needless, "", inside.removesuffix("</svg>\n"), flags=re.DOTALL)
    inside = re.sub(r"<[^>]*>", lambda tag: _tidied(tag[0], variables), inside)
    inside = re.sub(r"\s*\n\s*", "\n", inside).strip()
    return view_box, inside


def _tidied(tag: str, variables: Mapping[str, str]) -> str:
    """One tag without ids of groups and needless digits.

    Never the text between tags, which is the reader's.
    """
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r"(font: [^\"']*?[\d.]+px) [^\";]*", r"\1 inherit", tag)
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
    for colour, variable in variables.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag
