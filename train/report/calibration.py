"""The report's section about how sure the models are: calibration, sets, what abstaining gains, and the raters."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from ser.train.scores import BINS, LEVEL, SHOWN

from .cells import Cell
from .figures import Point, lines
from .html import Part, Plot
from .tables import Row, Table

DRAWN = 2  # cells in the diagram, each before and after its temperature
ABSTAINING = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # probabilities below which no answer is given


def calibrated(cells: Sequence[Cell]) -> Part:
    """The tables of all cells, and the reliability diagram of the first."""
    return {"plots": [_diagram(cells)], "tables": [calibration_table(cells), votes_table(cells), _abstaining(cells)]}


def calibration_table(cells: Sequence[Cell]) -> Table:
    """One line per cell: its ECE before and after the temperature, and its conformal sets."""
    rows = []
    for cell in cells:
        scale, sets = cell.temperatures, cell.conformal
        row: Row = {"cell": cell.label, "ECE %": cell.reliability()[0]}
        row |= {"ECE with temperature %": cell.reliability(after=True)[0] if scale else None}
        row |= {"temperatures": f"{min(scale):.2f}–{max(scale):.2f}" if scale else "not recorded"}
        row |= {"nominal coverage %": 100 * LEVEL, "coverage of the sets %": sets and sets[0]}
        row |= {"classes in a set": sets and sets[1], "n": int(cell.confusion().sum())}
        rows.append({**row, "n dev": sum((r.get("calibration") or {}).get("n_dev", 0) for r in cell.results) or None})
    note = f"ECE: {BINS} bins of equal width, pooled over the folds of a seed, then the mean over the seeds (Guo et "
    note += "al. 2017). Each run’s temperature is fitted on its dev part, and never changes which class comes first. "
    note += "Sets: split conformal prediction on the dev part (LAC, Sadinle et al. 2019); the dev part also chose the "
    note += "epoch with --select val, and its speakers are not those of the test part, so no guarantee is claimed "
    note += "across speakers: the coverage is what was found. –, not recorded: no dev part beside the training, or "
    note += "runs of an earlier ser."
    return Table("calibration", "Calibration and conformal sets", rows, note)


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
    note = "Raters: each vote for a tested utterance under this label policy against the majority of the other votes "
    note += "for it; votes for no class of the policy, or where the others are tied, are left out. KL and JS: "
    note += "the mean divergence of the raters’ shares from the probabilities. Top-1 scores are by the majority’s "
    note += "label; utterances without one, if kept, train only, and count here as tested."
    return Table("votes", "The raters’ own scores, and their votes", rows, note)


def _abstaining(cells: Sequence[Cell]) -> Table:
    rows = []
    for cell in cells:
        for below in ABSTAINING:
            answered, right = cell.abstaining(below)
            rows.append({"cell": cell.label, "no answer below": below, "answered %": answered, "WA of those %": right})
    note = "As ser predict --abstain-below does: by the probability of the first class, after the temperature if there "
    note += "is one."
    return Table("abstaining", "What abstaining gains", rows, note, folded=len(cells) > 1)


def _diagram(cells: Sequence[Cell]) -> Plot:
    """Share right against confidence in each bin; no bin without a prediction."""
    points: list[Point] = []
    rows: list[Row] = []
    for number, cell in enumerate(cells):
        for after in (False, True)[: 1 + bool(cell.temperatures)]:
            name = cell.label + ", with temperature" * after
            for n, confidence, right in cell.reliability(after)[1]:
                if n:
                    found = {"confidence %": 100 * confidence / n, "right %": 100 * right / n}
                    rows.append({"cell": name, **found, "n": int(n)})
                    points += [(name, *found.values())] if number < DRAWN else []
    note = "Dashed: as often right as sure. Bins with few predictions say little."
    note += f" Drawn: the {DRAWN} cells with the highest UA of {len(cells)}." if len(cells) > DRAWN else ""
    draw = partial(lines, points, "confidence %", "right %", limits=(-2, 102), diagonal=True)
    return Plot("Reliability", Table("reliability", "Share right by confidence", rows), draw, note)
