"""The report's section about how sure the models are: calibration, sets, what abstaining gains, and the raters."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ser.train.scores import BINS, LEVEL, SHOWN, TEMPERATURES

from .cells import Cell, drawn
from .figures import Point, lines
from .html import Part
from .tables import Row, Table, described

DRAWN = 2  # cells in the diagram, each before and after its temperature
ABSTAINING = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # probabilities below which no answer is given


def calibrated(cells: Sequence[Cell]) -> Part:
    """The tables of all cells, and the reliability diagram of the first."""
    rows = []
    for cell, below in ((cell, below) for cell in cells for below in ABSTAINING):
        answered, right = cell.abstaining(below)
        rows.append({"cell": cell.label, "no answer below": below, "answered %": answered, "WA of those %": right})
    abstaining = replace(described("abstaining", rows), folded=len(cells) > 1)
    return {"plots": [_diagram(cells)], "tables": [calibration_table(cells), votes_table(cells), abstaining]}


def calibration_table(cells: Sequence[Cell]) -> Table:
    """One line per cell: its ECE before and after the temperature, and its conformal sets."""
    rows = []
    for cell in cells:
        scale, sets = cell.temperatures, cell.conformal
        at_bound = sum(np.isclose(t, TEMPERATURES, rtol=1e-3).any() for t in scale)
        fitted = f"{min(scale):.2f}–{max(scale):.2f}" if scale else "not recorded"
        row: Row = {"cell": cell.label, "ECE %": cell.reliability()[0]}
        row |= {"ECE with temperature %": cell.reliability(after=True)[0] if scale else None}
        row |= {"temperatures": fitted + f", {at_bound} of {len(scale)} at a bound" * bool(at_bound)}
        row |= {"nominal coverage %": 100 * LEVEL, "coverage of the sets %": sets and sets[0]}
        row |= {"classes in a set": sets and sets[1], "n": int(cell.confusion().sum())}
        rows.append({**row, "n dev": sum((r.get("calibration") or {}).get("n_dev", 0) for r in cell.results) or None})
    return described("calibration", rows, bins=BINS, bounds=" and ".join(f"{t:g}" for t in TEMPERATURES))


def votes_table(cells: Sequence[Cell]) -> Table:
    """What the raters themselves score, and how far the models' probabilities are from their votes; no row without."""
    rows = []
    for cell in cells:
        row: Row = {}
        if own := cell.raters:
            row |= {f"raters’ {name} %": 100 * own[metric] for name, metric in SHOWN.items()}
            row |= {"votes": own["n"], "votes left out": own["left_out"]}
        row |= {f"{name.upper()} in nats": ends for name, ends in cell.divergences().items()}
        if apart := [result["no_majority"] for result in cell.results if "no_majority" in result]:
            n = [one["n"] for one in apart]
            row["without a majority"] = sum(n)
            means = {name: float(np.average([one[name] for one in apart], weights=n)) for name in ("kl", "js")}
            row |= {f"their {name.upper()}": mean for name, mean in means.items()}
        rows += [{"cell": cell.label, **row}] if row else []
    return described("votes", rows)


def _diagram(cells: Sequence[Cell]) -> Table:
    """Share right against confidence in each bin; no bin without a prediction."""
    points: list[Point] = []
    rows: list[Row] = []
    for number, cell in enumerate(cells):
        for after in (False, True)[: 1 + bool(cell.temperatures)]:
            name = cell.label + " · with temperature" * after
            for n, confidence, right in cell.reliability(after)[1]:
                if n:
                    found = {"confidence %": 100 * confidence / n, "right %": 100 * right / n}
                    rows.append({"cell": name, **found, "n": int(n)})
                    points += [(name, *found.values())] if number < DRAWN else []
    draw = partial(lines, points, "confidence %", "right %", limits=(-2, 102), diagonal=True)
    return described("reliability", rows, drawn(cells, DRAWN), draw=draw)
