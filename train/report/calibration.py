"""The report's sections about how sure the models are, how the raters agree with them, and about ratings."""

from collections.abc import Sequence

import numpy as np

from ser.train.scores import BINS, LEVEL, SHOWN, TEMPERATURES

from .cell_scores import named
from .cells import Cell, drawn
from .figures import Point
from .tables import Row, Table, described

DRAWN = 2  # cells in the diagram, each before and after its temperature
DOTS = 300  # of a scatter plot
SLICES = 10  # of the predicted ratings in their order, of equally many each


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
        row |= {"classes in a set": sets and sets[1], "n": cell.n}
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


def reliability_table(cells: Sequence[Cell]) -> Table:
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
    return described("reliability", rows, drawn(cells, DRAWN), points=points)


def ratings(cells: Sequence[Cell]) -> list[Table]:
    """The scores of all cells that learn them; truth over prediction of the one with the highest mean CCC.

    Of each dimension a scatter plot, and the mean rating in each slice of the predictions.
    """
    best = max((cell for cell in cells if cell.dimensions), key=lambda cell: cell.score("ccc").pooled, default=None)
    if best is None:
        return []
    truth, predicted = best.ratings()
    some = np.linspace(0, len(truth) - 1, min(DOTS, len(truth))).round().astype(int)
    told = {"cell": best.label, "drawn": len(some), "n": len(truth)}
    plots = []
    means: list[Row] = []
    for name, t, p in zip(best.dimensions, truth.T, predicted.T, strict=True):
        rows = [{"predicted": of, "rated": rated} for of, rated in zip(p[some].tolist(), t[some].tolist(), strict=True)]
        points = [(name, *row.values()) for row in rows]
        words = {"name": f"scatter-{name}", "of": name, "dimension": name.capitalize(), **told}
        plots.append(described("scatter", rows, points=points, **words))
        for part in np.array_split(np.argsort(p, kind="stable"), min(SLICES, len(p))):
            row: Row = {"dimension": name, "mean predicted": float(p[part].mean()), "mean rated": float(t[part].mean())}
            means.append({**row, "predictions": len(part)})
    points = [(row["dimension"], row["mean predicted"], row["mean rated"]) for row in means]
    plots.append(described("calibration-ratings", means, points=points, cell=best.label, bins=SLICES))
    return [ratings_table(cells), *plots]


def ratings_table(cells: Sequence[Cell]) -> Table:
    """One line per cell and way to test it."""
    rows = []
    for cell, test in [(one, test) for one in cells if one.dimensions for test in one.tests]:
        row: Row = {"cell": cell.label, "tested with": test, "mean CCC": cell.score("ccc", test).pooled}
        row |= {named(metric): cell.with_interval(metric, test) for metric in cell.rated}
        row |= {"scale": cell.scale, "interval over": cell.interval_over, "n": cell.n}
        rows.append({**row, "conditions": cell.conditions})
    return described("ratings", rows)
