"""The report's sections about scores, and the page that all of its sections make: its text, and its
HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from msgspec import structs

from ser.disk.write import write_whole
from ser.errors import WrongUse
from ser.train.run_folder import Run
from ser.train.scores.measures import SHOWN
from ser.train.scores.pooling import spread
from ser.train.scores.tests import holm, mcnemar, p_of_runs
from ser.train.sweep.recipe import TESTS
from ser.train.sweep.search import chosen_rows
from ser.train.sweep.search_record import cell_name

from .attention import Inside, attended
from .cell_scores import NOT_KNOWN, caveat, compare_cells, heard_in_training, parts
from .cells import Cell, Cells, drawn, grouped, same_run
from .figures import Points, svg_of
from .paper import beside, claimed, quoted_for
from .predictions import calibration, calibration_table, errors, ratings, ratings_table, votes_table
from .provenance import what_was_run
from .tables import Row, Table, columns, described, evenly, sentence, tabulated, text_of

PLOTTED = 30  # cells in a plot of one line for each
SERIES = 4  # cells in a plot where each is a series
ALL_PAIRS = 5  # cells; with more, each is tested against the first only
EPOCHS = 30  # of each cell in the table of learning curves
MAIN = ("ua", "wa")
SHORT, ROOMY = 18, 34  # letters: so short a word is not broken, so long a text needs room
TERMINAL = 110  # letters in a line


@dataclass(frozen=True)
class Page:
    """A report of cells, highest UA first."""

    cells: Cells
    unfinished: Sequence[Run]
    cautions: Sequence[str]
    sections: Mapping[str, Sequence[Table]]  # by anchor, in reading order
    inside: Inside

    @property
    def tables(self) -> list[Table]:
        """All tables in reading order, those behind plots included."""
        return [table for tables in self.sections.values() for table in tables]


def make_page(cells: Cells, unfinished: Sequence[Run]) -> Page:
    """The report of these cells, highest UA first. Sections about classes show the cells that learn
    classes.
    """
    classifying = [cell for cell in cells if cell.classes]
    inside = attended(classifying)
    sections: dict[str, Sequence[Table]] = {
        "what-was-run": what_was_run(cells),
        "results": _results(classifying) if classifying else [],
        "significance": [significance_table(classifying), papers_tests_table(classifying)],
        "emotions": _emotions(classifying) if classifying else [],
        "calibration": calibration(classifying),
        "ratings": ratings(cells),
        "training": _training(cells),
        "modalities": [_modalities(classifying)],
        "query-tokens": [_queries(classifying)],
        "inside": inside.tables,
        "errors": errors(classifying),
    }
    filled = {name: [table for table in tables if table] for name, tables in sections.items()}
    shown = {
        name: tables
        for name, tables in filled.items()
        if tables or (name == "inside" and inside.fault)
    }
    return Page(cells, unfinished, cautions(cells), shown, inside)


def write_html(page: Page, path: Path) -> None:
    """Write the page as one file that needs no other: page.html lays it out, and escapes all that
    it is given.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"classes": _classes, "svg": svg_of}
    write_whole(path, environment.get_template("page.html").render(page=page).encode())


def _classes(table: Table) -> list[str]:
    """The CSS class of each column: numbers to the right, short words unbroken, long texts with
    room.
    """
    longest = [max(map(len, texts)) for texts in zip(*table.texts, strict=True)]
    sizes = ["short" if n <= SHORT else "long" if n > ROOMY else "" for n in longest]
    return [
        size if isinstance(first, str) else "n"
        for size, first in zip(sizes, table.columns.values(), strict=True)
    ]


def report_text(cells: Cells, unfinished: Sequence[Run], paired: bool = False) -> str:
    """What `ser report` prints: each cell's scores, the papers' numbers beside them, and the paired
    tests if requested.

    Raises `WrongUse` if tests are requested for fewer than two cells that learn classes.
    """
    classifying = [cell for cell in cells if cell.classes]
    if paired and len(classifying) < 2:
        which = (
            "are one cell"
            if len(cells) < 2
            else "have fewer than two cells of classes, which the tests are for"
        )
        raise WrongUse(
            f"--paired compares cells, and these runs {which}; name the runs of another one too"
        )
    tables = [
        make(classifying) for make in (results_table, calibration_table, votes_table, papers_table)
    ]
    tables += [make(cells) for make in (ratings_table, corpora_table, chosen_table)]
    if paired:
        tables += [significance_table(classifying), papers_tests_table(classifying)]
    pieces = [fill(caution, TERMINAL) for caution in cautions(cells)]
    for table in filter(None, tables):
        pieces += filter(None, [table.caption, tabulated(table), fill(table.note, TERMINAL)])
    if unfinished:
        pieces.append(
            f"not finished, and counted nowhere here: {len(unfinished)} run{'s' * (len(unfinished) > 1)}"
        )
    return "\n\n".join(pieces)


def cautions(cells: Cells) -> list[str]:
    """What a reader must know before comparing any number of the report."""
    heard = {cell.label: heard_in_training(cell.results) for cell in cells}
    conditions = []
    for cell in cells:
        first = cell.results[0]
        main = {"corpus": first.corpus, "protocol": first.protocol}
        main |= {"selection": first.select, "labels": first.labels}
        conditions.append({**main, **parts(cell.results)})
    names = dict.fromkeys(name for condition in conditions for name in condition)
    unlike = [name for name in names if len({condition.get(name) for condition in conditions}) > 1]
    barred = {"corpus", "protocol", "selection", "labels", "n test"}.intersection(unlike)
    other_folds = "protocol" not in unlike and len({tuple(cell.folds) for cell in cells}) > 1
    subjects = {
        "unreal": _caveat(cells),
        "best-test": _listed([cell.label for cell in cells if cell.config.select == "best-test"]),
        "heard": _listed(
            [label for label, speakers in heard.items() if speakers not in ("", NOT_KNOWN)]
        ),
        "not-known": _listed([label for label, speakers in heard.items() if speakers == NOT_KNOWN]),
        "missing": _listed([cell.label for cell in cells if not cell.whole]),
        "recut": _listed([cell.label for cell in cells if cell.recut]),
        "barred" if barred else "unlike": ", ".join(unlike),
        "folds": "tests" * other_folds,
    }
    return [
        text_of("cautions", caution, {"of": subject})
        for caution, subject in subjects.items()
        if subject
    ]


def _caveat(cells: Cells) -> str:
    """Why the scores say nothing about people, as a sentence; "" if they do."""
    unreal = caveat(result for cell in cells for result in cell.results)
    return f"{unreal[0].upper()}{unreal[1:]}." if unreal else ""


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _results(cells: Cells) -> list[Table]:
    plots = []
    for name, metric in SHOWN.items():
        rows: list[Row] = [
            {"cell": cell.label, f"{name} %": cell.with_interval(metric)}
            for cell in cells[:PLOTTED]
        ]
        points = [(name, *row.values()) for row in rows]
        chance = 100 / len(cells[0].classes) if metric == "ua" else np.nan
        notes = sentence("chance", metric == "ua", chance=chance), drawn(cells, PLOTTED)
        words: Row = {"name": f"{metric.replace('_', '-')}-plot", "score": name, "baseline": chance}
        plots.append(described("score", rows, *notes, points=points, **words))
    return [
        results_table(cells),
        *plots,
        corpora_table(cells),
        chosen_table(cells),
        papers_table(cells),
    ]


def results_table(cells: Cells) -> Table:
    """One line per cell."""
    alike = len({cell.conditions for cell in cells}) == 1
    rows = []
    for cell in cells:
        scores = {name: cell.score(metric) for name, metric in SHOWN.items()}
        shape = f"{len(cell.folds)} × {len(cell.seeds)}"
        row: Row = {"cell": cell.label, **_with_intervals(cell)}
        row |= {f"{name} over seeds %": score.over_seeds for name, score in scores.items()}
        row |= {f"{name} over folds %": score.over_folds for name, score in scores.items()}
        runs = shape if cell.whole else f"{len(cell.runs)} in {shape}"
        row |= {"interval over": cell.interval_over, "runs": runs, "n": cell.n}
        rows.append(row if alike else {**row, "conditions": cell.conditions})
    narrow = sentence("narrow", any(cell.over == "utterances" for cell in cells))
    where = f" ({cells[0].conditions})" if alike else ""
    return described(
        "results", rows, sentence("chosen", len(cells) > 1), _caveat(cells), narrow, where=where
    )


def _with_intervals(cell: Cell) -> Row:
    return {f"{name} %": cell.with_interval(metric) for name, metric in SHOWN.items()}


def corpora_table(cells: Cells) -> Table:
    """The scores of each corpus, and which corpora the model was trained on, for the cells of
    several corpora.
    """
    return described(
        "corpora", [{"cell": cell.label, **row} for cell in cells for row in cell.corpora]
    )


def chosen_table(cells: Cells) -> Table:
    """What each fold and seed of the searches chose; no row without a search."""
    searches = [(cell, cell.search) for cell in cells if cell.search]
    chosen = [chosen_rows(cell.label, len(s.candidates), s.over, cell.runs) for cell, s in searches]
    return described("chosen", [*chain(*chosen)])


def papers_table(cells: Cells) -> Table:
    """Ours beside the papers' numbers, as far as they have any; without a difference where none is
    meant.
    """
    rows: list[Row] = []
    for cell in cells:
        ours = {metric: cell.score(metric) for metric in MAIN}
        quoted = [one for one in quoted_for(cell) if one.of(MAIN)]
        alike = grouped(quoted, lambda one: (one.of(MAIN), one.seeds, one.differs))
        for (numbers, seeds, differs), places in alike.items():
            by_paper = grouped(places, lambda one: one.paper)  # each is named once
            papers = [
                f"{paper}, {'; '.join(one.place for one in of)}" for paper, of in by_paper.items()
            ]
            row: Row = {"cell": cell.label, "in the papers": "; ".join(papers)}
            row |= beside(MAIN, dict(numbers), ours, seeds, not differs, not caveat(cell.results))
            rows.append({**row, "differs in": ", ".join(differs) or None})
    unreal = [bool(caveat(cell.results)) for cell in cells]
    return described(
        "papers", rows, sentence("meant", not all(unreal)), sentence("unreal", any(unreal))
    )


def _pairs(cells: Cells) -> list[tuple[Cell, Cell]]:
    """The pairs of cells to test: the user's own cell, if it is named, against each of the others.

    Otherwise every pair of up to `ALL_PAIRS` cells; of more, the first cell against each of the
    others.
    """
    ours = [cell for cell in cells if cell.ours]
    if not ours and len(cells) <= ALL_PAIRS:
        return list(combinations(cells, 2))
    first = ours[0] if ours else cells[0]
    return [(first, cell) for cell in cells if cell is not first]


def significance_table(cells: Cells) -> Table:
    """Our tests, which respect that utterances of a speaker are alike; no row for one cell."""
    rows: list[Row] = []
    for pair in _pairs(cells):
        row: Row = {"cell": pair[0].label, "against": pair[1].label}
        for metric in MAIN:
            name, test = metric.upper(), compare_cells(*pair, metric, claimed_better(*pair, metric))
            row |= {f"{name} difference": test and test.difference, f"{name} p": test and test.p}
            row |= {
                f"{name} Holm p": None,
                f"{name} test": test.about if test else "no utterance in common",
            }
        rows.append(row)
    first = not any(cell.ours for cell in cells)
    notes = (
        sentence("chosen", first),
        sentence("first", first and len(cells) > ALL_PAIRS, n=len(cells)),
    )
    return described("significance", _with_holm(rows), *notes)


def _with_holm(rows: list[Row]) -> list[Row]:
    """The rows with Holm's correction of each column of p, such as "UA p", in the column for it,
    "UA Holm p".
    """
    for heading in [name for name in (rows or [{}])[0] if name.endswith("Holm p")]:
        corrected = holm([row[heading.replace("Holm p", "p")] for row in rows])
        for row, p in zip(rows, corrected, strict=True):
            row[heading] = p
    return rows


def claimed_better(one: Cell, other: Cell, metric: str) -> int:
    """1 where a paper that has both cells claims the first is better, −1 the second, 0 none or
    papers that disagree.
    """
    pairs = [
        (a.numbers, b.numbers)
        for a in quoted_for(one)
        for b in quoted_for(other)
        if a.recipe == b.recipe
    ]
    claims = {
        claimed(*pair, metric) for pair in pairs if all(metric in numbers for numbers in pair)
    }
    return claims.pop() if len(claims) == 1 else 0


def papers_tests_table(cells: Cells) -> Table:
    """The tests that papers print, on single utterances and single runs; no row for one cell.

    McNemar's on the utterances of the lowest seed that both have, the others on runs of the same
    fold and seed. None where there is nothing to compare.
    """
    columns = ["utterances", "McNemar p", "McNemar Holm p", "pairs of runs"]
    columns += ["t-test p", "t-test Holm p", "Wilcoxon p", "Wilcoxon Holm p"]
    rows: list[Row] = []
    for pair in _pairs(cells):
        first, second = pair
        row: Row = {"cell": first.label, "against": second.label, **dict.fromkeys(columns)}
        rows.append(row)
        if first.classes != second.classes:
            continue
        seed = min({*first.seeds} & {*second.seeds}, default=None)
        one, other = (
            cell.judged[cell.judged.seed == seed].drop_duplicates("tested") for cell in pair
        )
        both = one.merge(other, on=["tested", "truth"], suffixes=(None, "_2"))
        if len(both):
            row |= {
                "utterances": len(both),
                "McNemar p": mcnemar(both.truth, both.predicted, both.predicted_2),
            }
        ours, theirs = map(_ua_by_run, pair)
        shared = sorted(ours.keys() & theirs.keys())
        if len(shared) > 1:
            t, wilcoxon = p_of_runs([ours[run] for run in shared], [theirs[run] for run in shared])
            row |= {"pairs of runs": len(shared), "t-test p": t, "Wilcoxon p": wilcoxon}
    return described("papers-tests", _with_holm(rows))


def _ua_by_run(cell: Cell) -> dict[Any, float]:
    """UA of each run in percent."""
    by_run = {}
    for run in cell.runs:
        ua = run.result.ua
        if ua is not None:
            by_run[same_run(run)] = 100 * ua
    return by_run


def _emotions(cells: Cells) -> list[Table]:
    classes = cells[0].classes
    alike = [cell for cell in cells if cell.classes == classes]
    plotted = alike[:SERIES]
    notes = drawn(cells, len(plotted)), sentence("all", len(plotted) < len(cells))
    every = list(dict.fromkeys(name for cell in cells for name in cell.classes))
    recalls: list[Row] = []
    for cell in cells:
        recalls.append(
            {"cell": cell.label} | {f"{name} %": cell.score(name).pooled for name in cell.classes}
        )
        for quoted in quoted_for(cell):
            if numbers := {
                f"{name} %": quoted.numbers[name] for name in every if name in quoted.numbers
            }:
                recalls.append({"cell": f"paper: {quoted.described}"} | numbers)
    points = [(cell.label, name, cell.score(name).pooled) for cell in plotted for name in classes]
    counts = {cell.label: cell.confusion() for cell in alike}
    confusions = [
        {"cell": label, "true class": name}
        | {f"as {other}": int(n) for other, n in zip(classes, row, strict=True)}
        for label, matrix in counts.items()
        for name, row in zip(classes, matrix, strict=True)
    ]
    shown = classes, {cell.label: counts[cell.label] for cell in plotted}
    return [
        described("recalls", recalls, *notes, points=points),
        described("confusion", confusions, *notes, points=shown),
    ]


def _training(cells: Cells) -> list[Table]:
    curves = [
        _curves(cells, "loss", "Training loss", "loss", 1),
        _curves(
            [cell for cell in cells if cell.classes], "ua", "UA of the evaluated part", "UA %", 100
        ),
        _curves(
            [cell for cell in cells if cell.dimensions],
            "ccc",
            "Mean CCC of the evaluated part",
            "mean CCC",
            1,
        ),
    ]
    rows: list[Row] = []  # what layers count in learned sums
    for cell in cells:
        layers = [result.layers or {} for result in cell.results]
        for name in layers[0]:
            shares = np.array([weights[name] for weights in layers if name in weights])
            rows.append({"cell": cell.label, "layer": name, "share %": spread(100 * shares)})
    return [*curves, described("layers", rows)]


def _curves(cells: Cells, key: str, title: str, heading: str, scale: int) -> Table:
    """The loss, or a score of the evaluated part, over the epochs, stage after stage, of the cells
    that have it.
    """
    import pandas

    points: Points = []
    rows: list[Row] = []
    for cell in cells:
        histories = [
            pandas.DataFrame(
                {
                    "stage": [line.stage for line in result.history],
                    key: [line.score(key) for line in result.history],
                }
            )
            for result in cell.results
        ]
        lines = pandas.concat(histories, keys=range(len(histories)), names=["run", "line"])
        stage = pandas.factorize(lines.stage)[0]
        epoch_of_stage = lines.groupby(["run", "stage"]).cumcount()
        curve = scale * lines[key].astype(float).groupby([stage, epoch_of_stage]).agg(
            ["mean", "min", "max"]
        )
        if curve["mean"].isna().all():
            continue
        if len({row["cell"] for row in rows}) < SERIES:
            points += [
                (cell.label, epoch, tuple(ends)) for epoch, ends in enumerate(curve.to_numpy(), 1)
            ]
        for epoch in evenly(len(curve), EPOCHS):
            rows.append(
                {"cell": cell.label, "epoch": epoch + 1, heading: float(curve["mean"].iloc[epoch])}
            )
    words = {"name": f"learning-{key}", "score": title, "heading": heading, "epochs": EPOCHS}
    notes = drawn(cells, SERIES), sentence("evaluated", key != "loss")
    return described("learning", rows, *notes, points=points, **words)


def _modalities(cells: Cells) -> Table:
    """How much a model leans on one modality; no row if no cell has more than one way of testing."""
    able = [cell for cell in cells if set(cell.tests) & set(TESTS[1:])]
    rows: list[Row] = []
    for cell in able:
        for test in (test for test in TESTS if test in cell.tests):
            quoted = next((quoted for quoted in quoted_for(cell, test) if quoted.of(MAIN)), None)
            row: Row = {"cell": cell.label, "tested with": test}
            row |= {f"{name} %": cell.score(metric, test).pooled for name, metric in SHOWN.items()}
            row |= {
                f"paper {metric.upper()} %": quoted and quoted.numbers.get(metric)
                for metric in MAIN
            }
            rows.append({**row, "in the papers": quoted and quoted.described})
    plotted = {cell.label for cell in able[:12]}
    points = columns([row for row in rows if row["cell"] in plotted], "tested with", "cell", "UA %")
    unreal = sentence("bias", any(caveat(cell.results) for cell in able))
    return described("bias", rows, drawn(able, len(plotted)), unreal, points=points)


def _queries(cells: Cells) -> Table:
    """UA against the number of query tokens, for cells that differ in it alone; no row if there are
    none.
    """

    def all_but_queries(cell: Cell) -> str:
        others = {key: value for key, value in cell.config.settings.items() if key != "queries"}
        return cell_name(structs.replace(cell.config, settings=others))

    able = [cell for cell in cells if isinstance(cell.settings.get("queries"), int)]
    rows: list[Row] = []
    for family in (family for family in grouped(able, all_but_queries).values() if len(family) > 1):
        label = " · ".join(
            piece for piece in family[0].label.split(" · ") if not piece.startswith("queries ")
        )
        for cell in sorted(family, key=lambda cell: cell.settings["queries"]):
            row: Row = {"cells": label, "L": cell.settings["queries"], **_with_intervals(cell)}
            quoted = [
                one
                for one in quoted_for(cell)
                if "ua" in one.numbers and "queries" not in one.differs
            ]
            paper = (
                {"paper UA %": quoted[0].numbers["ua"], "in the papers": quoted[0].described}
                if quoted
                else {}
            )
            rows.append(row | paper)
    return described("queries", rows, points=columns(rows, "cells", "L", "UA %"))
