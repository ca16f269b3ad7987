"""The report's sections about predictions: how sure the models are of them, where they are wrong,
and ratings.
"""

from collections import Counter

import numpy as np

from ser.train.data.labels import Policy
from ser.train.data.votes import ballots
from ser.train.scores.calibration import BINS, LEVEL, TEMPERATURES
from ser.train.scores.classes import metrics
from ser.train.scores.intervals import FEWEST, average
from ser.train.scores.measures import SHOWN

from .cell_scores import named
from .cells import Cell, Cells, drawn
from .figures import Points
from .tables import Row, Table, columns, described, evenly, sentence, shown

DRAWN = 2  # cells in the diagram, each before and after its temperature
DOTS = 300  # of a scatter plot
SLICES = 10  # of the predicted ratings in their order, of equally many each
HARDEST = 12  # utterances
GROUPS = 12  # of one grouping in the plot
# Dialogue names of the IEMOCAP release: Ses01F_impro01_F000, Ses05M_script01_1b_M012.
STYLE = r"^(?:[^/]+/)?Ses\d\d[FM]_(impro|script)"
SECONDS = {
    "under 1.5 s": 0.0,
    "1.5–3 s": 1.5,
    "3–5 s": 3.0,
    "5–8 s": 5.0,
    "from 8 s": 8.0,
}  # lower bounds
# Shares of the raters behind the label, in percent: from, below. Two of three raters are in the
# second.
AGREEMENT = {"under 60 %": (0, 60), "60–79 %": (60, 80), "80–99 %": (80, 99.9), "all": (99.9, 101)}


def calibration(cells: Cells) -> list[Table]:
    """How sure the models are, and the raters."""
    return [reliability_table(cells), calibration_table(cells), votes_table(cells)]


def calibration_table(cells: Cells) -> Table:
    """One line per cell: its ECE before and after the temperature, and its conformal sets."""
    rows = []
    for cell in cells:
        scale, sets = cell.temperatures, cell.conformal
        fitted = f"{min(scale):.2f}–{max(scale):.2f}" if scale else "not recorded"
        at_bound = sum(np.isclose(t, TEMPERATURES, rtol=1e-3).any() for t in scale)
        if at_bound:
            fitted += f", {at_bound} of {len(scale)} at a bound"
        row: Row = {"cell": cell.label, "ECE %": cell.reliability()[0]}
        row |= {
            "ECE with temperature %": cell.reliability(after=True)[0] if scale else None,
            "temperatures": fitted,
        }
        row |= {"nominal coverage %": 100 * LEVEL, "coverage of the sets %": sets and sets[0]}
        row |= {"classes in a set": sets and sets[1], "n": cell.n}
        rows.append(
            {
                **row,
                "n dev": sum(r.calibration.n_dev for r in cell.results if r.calibration) or None,
            }
        )
    return described(
        "calibration", rows, bins=BINS, bounds=" and ".join(f"{t:g}" for t in TEMPERATURES)
    )


def votes_table(cells: Cells) -> Table:
    """What the raters themselves score, and how far the models' probabilities are from their votes;
    no row without.
    """
    rows = []
    for cell in cells:
        row: Row = {}
        if raters := cell.raters:
            row |= {f"raters’ {name} %": 100 * raters[metric] for name, metric in SHOWN.items()}
            row |= {"votes": raters["n"], "votes left out": raters["left_out"]}
        row |= {f"{name.upper()} in nats": ends for name, ends in cell.divergences().items()}
        if apart := [result.no_majority for result in cell.results if result.no_majority]:
            n = [undecided.n for undecided in apart]
            row["without a majority"] = sum(n)
            for name in ("kl", "js"):
                row[f"their {name.upper()}"] = float(
                    np.average([undecided.score(name) for undecided in apart], weights=n)
                )
        rows += [{"cell": cell.label, **row}] if row else []
    return described("votes", rows)


def reliability_table(cells: Cells) -> Table:
    """Share right against confidence in each bin; no bin without a prediction."""
    rows: list[Row] = []
    points: Points = []
    for number, cell in enumerate(cells):
        for after in (False, True)[: 1 + bool(cell.temperatures)]:
            name, bins = cell.label + " · with temperature" * after, cell.reliability(after)[1]
            for n, confidence, right in bins[bins[:, 0] > 0]:
                row = {
                    "cell": name,
                    "confidence %": 100 * confidence / n,
                    "right %": 100 * right / n,
                }
                rows.append({**row, "n": int(n)})
                points += [tuple(row.values())] * (number < DRAWN)
    return described("reliability", rows, drawn(cells, DRAWN), points=points)


def ratings(cells: Cells) -> list[Table]:
    """The scores of all cells that learn them; truth over prediction of the one with the highest
    mean CCC.

    Of each dimension a scatter plot, and the mean rating in each slice of the predictions.
    """
    best = max(
        (cell for cell in cells if cell.dimensions),
        key=lambda cell: cell.score("ccc").pooled,
        default=None,
    )
    if best is None:
        return []
    truth, predicted = best.ratings()
    some = evenly(len(truth), DOTS)
    words: Row = {"cell": best.label, "drawn": len(some), "n": len(truth)}
    plots = []
    means: list[Row] = []
    for name, t, p in zip(best.dimensions, truth.T, predicted.T, strict=True):
        rows = [{"predicted": float(p[place]), "rated": float(t[place])} for place in some]
        points = [(name, *row.values()) for row in rows]
        words |= {"name": f"scatter-{name}", "of": name, "dimension": name.capitalize()}
        plots.append(described("scatter", rows, points=points, **words))
        for part in np.array_split(np.argsort(p, kind="stable"), min(SLICES, len(p))):
            row: Row = {
                "dimension": name,
                "mean predicted": float(p[part].mean()),
                "mean rated": float(t[part].mean()),
            }
            means.append({**row, "predictions": len(part)})
    points = columns(means, "dimension", "mean predicted", "mean rated")
    plots.append(
        described("calibration-ratings", means, points=points, cell=best.label, bins=SLICES)
    )
    return [ratings_table(cells), *plots]


def ratings_table(cells: Cells) -> Table:
    """One line per cell and way to test it."""
    rows = []
    for cell in cells:
        for test in cell.tests if cell.dimensions else ():
            row: Row = {
                "cell": cell.label,
                "tested with": test,
                "mean CCC": cell.score("ccc", test).pooled,
            }
            row |= {named(metric): cell.with_interval(metric, test) for metric in cell.rated}
            row |= {
                "scale": cell.config.training["vad_scale"],
                "interval over": cell.interval_over,
                "n": cell.n,
            }
            rows.append({**row, "conditions": cell.conditions})
    return described("ratings", rows)


def errors(cells: Cells) -> list[Table]:
    """The errors of the first cell, which has the highest UA, and the utterances that are hardest
    for all.
    """
    return (
        [groups_table(cells[0]), agreement_table(cells[0]), hardest_table(cells)] if cells else []
    )


def hardest_table(cells: Cells) -> Table:
    """Wrong in the largest share of all runs on this corpus; of equals, the least sure of the
    truth.
    """
    import pandas

    same = [
        c
        for c in cells
        if c.config.corpus == cells[0].config.corpus and c.classes == cells[0].classes
    ]
    p = pandas.concat([cell.judged for cell in same])
    taken_for = p[~p.right].groupby("id").predicted
    aggregates = {"truth": "first", "right": "mean", "run": "size", "given": "mean"}
    hardest = p.groupby("id").agg(aggregates).query("right < 1")
    hardest = (
        hardest.reset_index()
        .sort_values(["right", "given", "id"])[:HARDEST]
        .join(cells[0].utterances, on="id")
    )
    rows = []
    for one in hardest.astype(object).where(hardest.notna(), None).itertuples():
        often = ", ".join(taken_for.get_group(one.id).value_counts().index[:2])
        row = {"utterance": one.id, "text": one.text, "label": one.truth, "taken for": often}
        row |= {
            "wrong %": 100 * (1 - one.right),
            "runs": one.run,
            "given to the truth %": float(one.given),
        }
        counts = Counter(vote for rater in one.votes or () for vote in rater)
        votes = ", ".join(f"{name} {n}" if n > 1 else name for name, n in counts.most_common())
        rows.append({**row, "votes": votes or None, "seconds": one.duration})
    return described("hardest", rows, n=len(rows), where=", of all cells" if len(same) > 1 else "")


def groups_table(cell: Cell) -> Table:
    """The share of wrong predictions in each group; no row where no group is known."""
    import pandas

    p = cell.judged.join(cell.utterances, on="id")
    bounds = [*SECONDS.values(), np.inf]
    p["duration"] = pandas.cut(p.duration.astype(float), bounds, right=False, labels=list(SECONDS))
    p["scripted or improvised"] = p.id.str.extract(STYLE)[0].map(
        {"impro": "improvised", "script": "scripted"}
    )
    rows: list[Row] = []
    for by in ("session", "speaker", "gender", "duration", "scripted or improvised"):
        groups = p.groupby(by, observed=True)
        for group, part in sorted(
            groups, key=lambda pair: int(pair[0]) if pair[0].isdecimal() else 0
        ):
            row = {"by": by, "group": group, "utterances": part.id.nunique()}
            row["wrong %"] = average(100 * ~part.right, part.group)
            counts = pandas.crosstab(part.truth, part.predicted)
            counts = counts.reindex(index=cell.classes, columns=cell.classes, fill_value=0)
            rows.append({**row, "UA %": 100 * float(metrics(counts.to_numpy())["ua"])})
    sizes = Counter(row["by"] for row in rows)
    points = [
        ("wrong", (row["by"], row["group"]), row["wrong %"])
        for row in rows
        if sizes[row["by"]] <= GROUPS
    ]
    left, wrong = (
        sentence("groupings", len(points) < len(rows), most=GROUPS),
        100 * (1 - p.right.mean()),
    )
    return described(
        "groups", rows, left, points=points, baseline=wrong, over=cell.over, fewest=FEWEST
    )


def agreement(cell: Cell) -> np.ndarray:
    """The share of the raters that stand behind the label, in percent, of each prediction; NaN
    without votes.

    A rater who gave several categories counts in parts; votes outside the label policy count
    against the label.
    """
    labels, votes = cell.config.labels, cell.utterances.votes.reindex(cell.predictions.id)
    policy = Policy(labels.policy, tuple(labels.classes), labels.maps)
    shares = np.full(len(votes), np.nan)
    for row, (k, raters) in enumerate(zip(cell.truth, votes, strict=True)):
        if isinstance(raters, list) and raters:
            shares[row] = 100 * ballots(policy, raters)[:, k].sum() / len(raters)
    return shares


def agreement_table(cell: Cell) -> Table:
    """Confidence and recall by the share of the raters' votes that stand behind the label; no row
    without votes.
    """
    from scipy.stats import spearmanr

    p = cell.judged.assign(behind=agreement(cell))
    rows: list[Row] = []
    points: Points = []
    for name, (low, high) in AGREEMENT.items():
        part = p[(p.behind >= low) & (p.behind < high)]
        if n := part.id.nunique():
            row = {
                "raters for the label": name,
                "utterances": n,
                "right %": average(100 * part.right, part.group),
            }
            rows.append(
                {
                    **row,
                    "confidence %": part.confidence.mean(),
                    "given to the truth %": part.given.mean(),
                }
            )
    for measure in ("right", "confidence", "given to the truth"):
        for row in rows:
            place = f"{row['raters for the label']}\nn {row['utterances']:,}"
            points.append((measure, place, row[f"{measure} %"]))
    voted, rank = p[p.behind.notna()], ""
    if voted.behind.nunique() > 1 and voted.given.nunique() > 1:
        rho = float(spearmanr(voted.behind, voted.given).statistic)
        rank = sentence("rank", rank=shown(rho, "difference")) + " "
    return described("agreement", rows, points=points, over=cell.over, rank=rank)
