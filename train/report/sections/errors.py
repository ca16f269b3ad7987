"""Where the errors are: by group, by the raters' agreement, and the hardest utterances."""

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ser.train.data.labels import Policy
from ser.train.data.votes import ballots
from ser.train.scores.errors import hardest, rank_correlation, ua_of_names, wrong_percent
from ser.train.scores.intervals import FEWEST, average
from ser.train.scores.raters import percent_behind

from ..cell import Cell, Cells
from ..elements import Element, Paragraph, Plot, Section, TableElement, side_by_side, table_elements
from ..figures import Points, dots, lines
from ..formats import COUNT, DIFFERENCE, NUMBER, PERCENT, PERCENT_WITH_INTERVAL, TEXT
from ..table import Column, Row, Table, columns_of, joined
from .notes import WITHOUT_TEXT

if TYPE_CHECKING:
    import pandas

MAX_HARDEST = 12  # utterances
MAX_GROUPS = 12  # of one grouping in the plot
# Dialogue names of the IEMOCAP release: Ses01F_impro01_F000, Ses05M_script01_1b_M012.
STYLE = r"^(?:[^/]+/)?Ses\d\d[FM]_(impro|script)"
# Of utterances, the least duration of each group.
SECONDS = {
    "under 1.5 s": 0.0,
    "1.5–3 s": 1.5,
    "3–5 s": 3.0,
    "5–8 s": 5.0,
    "from 8 s": 8.0,
}
# Shares of the raters behind the label, in percent: from, below. Two of three raters are in the
# second.
AGREEMENT = {"under 60 %": (0, 60), "60–79 %": (60, 80), "80–99 %": (80, 99.9), "all": (99.9, 101)}


def errors(cells: Cells, first_of_several: bool) -> Section | None:
    """The errors of the first cell, and the utterances that are hardest for all.

    `cells` learn classes, and the first has the highest UA; `first_of_several`: the report has
    other cells too, which the words say.
    """
    if not cells:
        return None
    best = cells[0]
    elements: list[Element] = [
        *side_by_side(_groups(best), _agreement_plot(best)),
        *table_elements(hardest_table(cells)),
    ]
    if not elements:
        return None

    words: list[Element] = []
    if first_of_several:
        text = (
            "Errors by group and agreement are those of the cell with the highest UA, "
            f"{best.label}."
        )
        words.append(Paragraph(text))
    if best.origin.manifest is None:
        text = f"Texts, durations and votes are not at hand: {best.origin.lack}"
        words.append(Paragraph(text))
    return Section("errors", "Where the errors are", [*words, *elements])


def _groups(cell: Cell) -> Plot | TableElement | None:
    """The share of wrong predictions in each group; None where no group is known.

    A plot of the groupings of at most `MAX_GROUPS` groups, with all groups in its table; the table
    alone where every grouping has more.
    """
    predictions = _with_groups(cell)
    rows: list[Row] = []
    for grouping in ("session", "speaker", "gender", "duration", "scripted or improvised"):
        groups = list(predictions.groupby(grouping, observed=True))
        groups.sort(key=lambda group: int(group[0]) if group[0].isdecimal() else 0)
        for name, part in groups:
            rows.append(
                {
                    "by": grouping,
                    "group": name,
                    "utterances": part.id.nunique(),
                    "wrong %": average(100 * ~part.right, part.group),
                    "UA %": ua_of_names(part.truth, part.predicted, cell.scores.classes),
                }
            )
    if not rows:
        return None

    table = Table(
        name="groups",
        caption="Errors by group",
        columns=[
            *columns_of(TEXT, ["by", "group"]),
            Column("utterances", COUNT),
            Column("wrong %", PERCENT_WITH_INTERVAL),
            Column("UA %", PERCENT),
        ],
        rows=rows,
    )

    sizes = Counter(row["by"] for row in rows)
    points: Points = []
    for row in rows:
        if sizes[row["by"]] <= MAX_GROUPS:
            points.append(("wrong", (row["by"], row["group"]), row["wrong %"]))
    if not points:
        return TableElement(table)

    wrong = wrong_percent(predictions.right.mean())
    note = (
        f"Dashed: {wrong:.0f} %, over all utterances. Bars: 95 % intervals over "
        f"{cell.scores.predictions.over}, where a group has {FEWEST} or more; seeds are averaged."
    )
    if len(points) < len(rows):
        note += f" Groupings of more than {MAX_GROUPS} groups are only in the numbers."
    return Plot(
        table=table,
        title="Errors by group",
        draw=partial(dots, points, xlabel="wrong %", xbound=0, baseline=wrong),
        note=note,
    )


def _with_groups(cell: Cell) -> "pandas.DataFrame":
    """The predictions with what is known of their utterances, and the group of each grouping."""
    import pandas

    predictions = cell.judged.join(cell.utterances, on="id")
    bounds = [*SECONDS.values(), np.inf]
    seconds = predictions.duration.astype(float)
    predictions["duration"] = pandas.cut(seconds, bounds, right=False, labels=list(SECONDS))

    style = predictions.id.str.extract(STYLE)[0]
    names = {"impro": "improvised", "script": "scripted"}
    predictions["scripted or improvised"] = style.map(names)
    return predictions


def agreement(cell: Cell) -> np.ndarray:
    """The share of the raters that stand behind the label, in percent, of each prediction.

    See `percent_behind`; NaN without votes.
    """
    labels = cell.config.labels
    policy = Policy(labels.policy, tuple(labels.classes), labels.maps)

    predictions = cell.scores.predictions
    votes = cell.utterances.votes.reindex(predictions.table.id)
    shares = np.full(len(votes), np.nan)
    for row, (true_class, raters) in enumerate(zip(predictions.truth, votes, strict=True)):
        if isinstance(raters, list) and raters:
            shares[row] = percent_behind(ballots(policy, raters), true_class)
    return shares


def _agreement_plot(cell: Cell) -> Plot | None:
    """Confidence and recall by the share of the raters that stand behind the label.

    None without votes.
    """
    predictions = cell.judged.assign(behind=agreement(cell))
    rows: list[Row] = []
    for name, (low, high) in AGREEMENT.items():
        part = predictions[(predictions.behind >= low) & (predictions.behind < high)]
        if part.empty:
            continue
        rows.append(
            {
                "raters for the label": name,
                "utterances": part.id.nunique(),
                "right %": average(100 * part.right, part.group),
                "confidence %": part.confidence.mean(),
                "given to the truth %": part.given.mean(),
            }
        )
    if not rows:
        return None

    points: Points = []
    for measure in ("right", "confidence", "given to the truth"):
        for row in rows:
            place = f"{row['raters for the label']}\nn {row['utterances']:,}"
            points.append((measure, place, row[f"{measure} %"]))
    return Plot(
        table=Table(
            name="agreement",
            caption="Agreement of the raters against confidence",
            columns=[
                Column("raters for the label", TEXT),
                Column("utterances", COUNT),
                Column("right %", PERCENT_WITH_INTERVAL),
                *columns_of(PERCENT, ["confidence %", "given to the truth %"]),
            ],
            rows=rows,
        ),
        title="Agreement of the raters against confidence",
        draw=partial(
            lines,
            points,
            xlabel="raters for the label",
            ylabel="%",
            xmargin=0.12,
            ylim=(0, 102),
            legend=3,
        ),
        note=(
            f"{_rank_correlation(predictions)}Bars: 95 % intervals over "
            f"{cell.scores.predictions.over}. Confidence: mean probability of the predicted "
            "class. A rater’s several votes count in parts."
        ),
    )


def _rank_correlation(predictions: "pandas.DataFrame") -> str:
    """Spearman's correlation as a sentence; "" where one side does not vary."""
    voted = predictions[predictions.behind.notna()]
    rho = rank_correlation(voted.behind.to_numpy(), voted.given.to_numpy())
    if rho is None:
        return ""
    shown = DIFFERENCE.shown(rho)
    return f"Spearman’s correlation of agreement and what is given to the truth: {shown}. "


def hardest_table(cells: Cells) -> Table:
    """The utterances that the largest share of all runs on this corpus gets wrong.

    Of equals, those whose truth is given the least.
    """
    import pandas

    first = cells[0]
    comparable = []
    for cell in cells:
        if (
            cell.config.corpus == first.config.corpus
            and cell.scores.classes == first.scores.classes
        ):
            comparable.append(cell)
    predictions = pandas.concat([cell.judged for cell in comparable])

    utterances = hardest(predictions, MAX_HARDEST).join(first.utterances, on="id")
    utterances = utterances.astype(object).where(utterances.notna(), None)

    taken_for = predictions[~predictions.right].groupby("id").predicted
    rows: list[Row] = []
    for utterance in utterances.itertuples():
        often = taken_for.get_group(utterance.id).value_counts().index[:2]
        row: Row = {"utterance": utterance.id}
        if first.shows_text:
            row["text"] = utterance.text
        row["label"] = utterance.truth
        row["taken for"] = ", ".join(often)
        row["wrong %"] = wrong_percent(utterance.right)
        row["runs"] = utterance.run
        row["given to the truth %"] = float(utterance.given)
        row["votes"] = _counted(utterance.votes)
        row["seconds"] = utterance.duration
        rows.append(row)

    scope = ", of all cells" if len(comparable) > 1 else ""
    return Table(
        name="hardest",
        caption=f"The {len(rows)} hardest utterances",
        columns=[
            *columns_of(TEXT, ["utterance", "text", "label", "taken for"]),
            Column("wrong %", PERCENT),
            Column("runs", COUNT),
            Column("given to the truth %", PERCENT),
            Column("votes", TEXT),
            Column("seconds", NUMBER),
        ],
        rows=rows,
        note=joined(
            f"Wrong in the largest share of the runs that tested it{scope}; of equals, the one "
            "whose truth got least.",
            "" if first.shows_text else WITHOUT_TEXT,
        ),
    )


def _counted(raters: Any) -> str | None:
    """The votes of all raters, the most frequent first; None without votes."""
    counts = Counter[str]()
    for votes in raters or ():
        counts.update(votes)
    texts = [f"{vote} {n}" if n > 1 else vote for vote, n in counts.most_common()]
    return ", ".join(texts) or None
