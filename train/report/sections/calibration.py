"""How sure the models are, and rightly so; and how sure the raters are."""

from functools import partial

from ser.train.scores.calibration import (
    BINS,
    LEVEL,
    TEMPERATURES,
    count_at_a_bound,
    percent_of_bins,
)
from ser.train.scores.measures import SHOWN
from ser.train.scores.raters import mean_by_size

from ..cell import Cell, Cells
from ..certainty import conformal, reliability, temperatures
from ..elements import Element, Plot, Section, side_by_side, table_elements
from ..figures import Points, lines
from ..formats import (
    COUNT,
    FINE,
    FINE_WITH_INTERVAL,
    NUMBER,
    PERCENT,
    PERCENT_WITH_INTERVAL,
    TEXT,
)
from ..table import Column, Row, Table, columns_of
from ..votes import divergences_from_votes, multilabel_f1, scores_of_raters
from .notes import drawn

PLOTTED = 2  # cells in the diagram, each before and after its temperature


def calibration(cells: Cells) -> Section | None:
    """The section, for cells that learn classes."""
    if not cells:
        return None
    elements: list[Element] = [
        *side_by_side(_reliability_plot(cells)),
        *table_elements(calibration_table(cells), votes_table(cells)),
    ]
    return Section("calibration", "How sure the models are, and rightly so", elements)


def _reliability_plot(cells: Cells) -> Plot:
    """Share right against confidence in each bin; no bin without a prediction."""
    rows: list[Row] = []
    points: Points = []
    for number, cell in enumerate(cells):
        ways = [(cell.label, False)]
        if temperatures(cell.scores):
            ways.append((f"{cell.label} · with temperature", True))

        for label, after in ways:
            _, bins = reliability(cell.scores, after)
            for confidence, right, n in percent_of_bins(bins):
                rows.append(
                    {"cell": label, "confidence %": confidence, "right %": right, "n": int(n)}
                )
                if number < PLOTTED:
                    points.append((label, confidence, right))

    return Plot(
        table=Table(
            name="reliability",
            caption="Share right by confidence",
            columns=[
                Column("cell", TEXT),
                *columns_of(PERCENT, ["confidence %", "right %"]),
                Column("n", COUNT),
            ],
            rows=rows,
        ),
        title="Reliability",
        draw=partial(
            lines,
            points,
            xlabel="confidence %",
            ylabel="right %",
            ylim=(-2, 102),
            diagonal=True,
            legend=1,
        ),
        note=(
            "Dashed: as often right as sure. Bins with few predictions say little. "
            f"{drawn(cells, PLOTTED)}"
        ).strip(),
    )


def calibration_table(cells: Cells) -> Table:
    """One line per cell: its ECE before and after the temperature, and its conformal sets."""
    bounds = " and ".join(f"{temperature:g}" for temperature in TEMPERATURES)
    return Table(
        name="calibration",
        caption="Calibration and conformal sets",
        columns=[
            Column("cell", TEXT),
            *columns_of(PERCENT, ["ECE %", "ECE with temperature %"]),
            Column("temperatures", TEXT),
            Column("nominal coverage %", PERCENT),
            Column("coverage of the sets %", PERCENT_WITH_INTERVAL),
            Column("classes in a set", NUMBER),
            *columns_of(COUNT, ["n", "n dev"]),
        ],
        rows=[_calibration_row(cell) for cell in cells],
        note=(
            f"ECE: {BINS} bins of equal width, pooled over the folds of a seed, then the mean "
            "over the seeds (Guo et al. 2017). Each run’s temperature is fitted on its dev part "
            f"between the bounds {bounds}, and never changes which class comes first; it stays 1 "
            "where the dev part has no error, or the fit ended at a bound: then that part is too "
            "small, or too well or too badly recognised, to fit one. Sets: split conformal "
            "prediction on the dev part (LAC, Sadinle et al. 2019); the dev part also chose the "
            "epoch with --select val, and its speakers are as a rule not those of the test part, "
            "so no guarantee is claimed across speakers: the coverage is what was found. –, not "
            "recorded: no dev part beside the training, or runs of an earlier ser."
        ),
    )


def _calibration_row(cell: Cell) -> Row:
    scores = cell.scores
    fitted = temperatures(scores)
    ece_before, _ = reliability(scores)
    ece_after = None
    if fitted:
        ece_after, _ = reliability(scores, after=True)

    coverage, size = conformal(scores) or (None, None)
    n_dev = sum(result.calibration.n_dev for result in cell.results if result.calibration)
    return {
        "cell": cell.label,
        "ECE %": ece_before,
        "ECE with temperature %": ece_after,
        "temperatures": _range_of_temperatures(fitted, _unfitted(cell)),
        "nominal coverage %": 100 * LEVEL,
        "coverage of the sets %": coverage,
        "classes in a set": size,
        "n": cell.scores.n,
        "n dev": n_dev or None,
    }


def _unfitted(cell: Cell) -> dict[str, int]:
    """Why temperatures of the cell's runs are 1 and not fitted → of how many."""
    reasons: dict[str, int] = {}
    for result in cell.results:
        if result.calibration and result.calibration.unfitted:
            reason = result.calibration.unfitted
            reasons[reason] = reasons.get(reason, 0) + 1
    return reasons


def _range_of_temperatures(temperatures: list[float], unfitted: dict[str, int]) -> str:
    """The lowest and the highest, how many were not fitted, and how many are at a bound."""
    if not temperatures:
        return "not recorded"
    text = f"{min(temperatures):.2f}–{max(temperatures):.2f}"
    for reason, count in sorted(unfitted.items()):
        text += f", {count} of {len(temperatures)} stay 1 ({reason})"

    # Of runs of an earlier ser.
    at_a_bound = count_at_a_bound(temperatures)
    if at_a_bound:
        text += f", {at_a_bound} of {len(temperatures)} at a bound"
    return text


def votes_table(cells: Cells) -> Table:
    """What the raters themselves score, and how far the models are from their votes.

    No row without votes.
    """
    rows: list[Row] = []
    for cell in cells:
        votes = _votes_row(cell)
        if votes:
            rows.append({"cell": cell.label, **votes})
    return Table(
        name="votes",
        caption="The raters’ own scores, and their votes",
        columns=[
            Column("cell", TEXT),
            *columns_of(PERCENT, [f"raters’ {name} %" for name in SHOWN]),
            *columns_of(COUNT, ["votes", "votes left out"]),
            *columns_of(FINE_WITH_INTERVAL, ["KL in nats", "JS in nats"]),
            Column("multi-label F1 %", PERCENT),
            Column("without a majority", COUNT),
            *columns_of(FINE, ["their KL", "their JS"]),
            Column("their multi-label F1 %", PERCENT),
        ],
        rows=rows,
        note=(
            "Raters: each vote for a tested utterance under this label policy against the "
            "majority of the other votes for it. Votes for no class of the policy make no "
            "majority, a rater’s several votes count in parts, and a vote for no class, for two "
            "alike, or where the others are tied, is left out. KL and JS: the mean divergence of "
            "the raters’ shares from the probabilities. Multi-label F1: the macro-F1 of the "
            "classes whose share of the votes, and whose probability, is above 1 / K "
            "(EMO-SUPERB). Top-1 scores are by the majority’s label; utterances without one, if "
            "kept, train only, and count here as tested."
        ),
    )


def _votes_row(cell: Cell) -> Row:
    row: Row = {}
    raters = scores_of_raters(cell.scores)
    if raters:
        for name, metric in SHOWN.items():
            row[f"raters’ {name} %"] = 100 * raters[metric]
        row["votes"] = raters["n"]
        row["votes left out"] = raters["left_out"]

    for name, ends in divergences_from_votes(cell.scores).items():
        row[f"{name.upper()} in nats"] = ends
    f1 = multilabel_f1(cell.scores)
    if f1 is not None:
        row["multi-label F1 %"] = f1
    return row | _without_a_majority(cell)


def _without_a_majority(cell: Cell) -> Row:
    """The divergences of utterances that have no label, the mean over the runs by their size."""
    undecided = [result.no_majority for result in cell.results if result.no_majority]
    if not undecided:
        return {}

    sizes = [of_run.n for of_run in undecided]
    row: Row = {"without a majority": sum(sizes)}
    for name in ("kl", "js"):
        means = [of_run.score(name) for of_run in undecided]
        row[f"their {name.upper()}"] = mean_by_size(means, sizes)

    f1 = [of_run.multilabel_f1 for of_run in undecided if of_run.multilabel_f1 is not None]
    if len(f1) == len(undecided):
        row["their multi-label F1 %"] = 100 * mean_by_size(f1, sizes)
    return row
