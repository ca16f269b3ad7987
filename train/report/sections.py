"""The report's sections about scores, and the page that all of its sections make."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ser.train.run_folder import Run
from ser.train.scores import NO_COMPARISON, caveat, mcnemar, paired_t, wilcoxon

from .cells import Cell, configuration
from .examples import attended, errors
from .figures import Plot, Series, dots, lines, matrices
from .html import Block, Group, Page, Section
from .paper import changed_settings, others_quoted, quoted_for
from .provenance import what_was_run
from .tables import Table, shown
from .utterances import find_origins

PLOTTED = 30  # cells in a plot of one line for each
SERIES = 4  # cells in a plot where each is a series
ALL_PAIRS = 5  # cells; with more, each is tested against the first only
EPOCHS = 30  # of each cell in the table of learning curves
TESTS = ("both", "only text", "only audio", "head text", "head audio")
BOTH = {"UA %": "interval", "WA %": "interval"}


def make_page(cells: Sequence[Cell], unfinished: Sequence[Run]) -> Page:
    """The report of these cells, highest UA first."""
    origins = find_origins(cells)
    best, runs = cells[0], sum(len(cell.runs) for cell in cells)
    sections = [
        Section("what-was-run", "What was run", what_was_run(cells, origins, unfinished)),
        Section("results", "Results", _results(cells)),
        Section("significance", "Do the cells differ?", _significance(cells)),
        Section("emotions", "Which emotions are recognised, and which are confused", [_emotions(cells)]),
        Section("training", "How training went", [_training(cells)]),
        Section("modalities", "What each modality brings", _modalities(cells)),
        Section("query-tokens", "How many query tokens it takes", _queries(cells)),
        Section("inside", "Looking inside: what the query tokens attend to", attended(cells, origins)),
        Section("errors", "Where the errors are", errors(cells, origins)),
    ]
    several = len(cells) > 1
    corpora = ", ".join(dict.fromkeys(cell.config["corpus"] for cell in cells))
    lead = f"The highest of {len(cells)} cells is {best.label}" if several else best.label
    lead += f" ({best.features}; {best.conditions}): {best.confusion().sum():,} predictions of "
    lead += f"{_count(len(best.folds), 'fold')} and {_count(len(best.seeds), 'seed')}."
    (ua, *ua_ends), (wa, *wa_ends) = _interval(best, "ua"), _interval(best, "wa")
    return Page(
        title=f"{len(cells)} cells on {corpora}" if several else f"{best.label}, {corpora}",
        kicker=f"Speech emotion recognition, {_count(runs, 'run')}",
        heading=f"{f'{len(cells)} cells' if several else best.label} on corpus {corpora}",
        scores=[
            ("UA, mean recall of the classes", f"{ua:.2f} %", "95 % interval {:.2f} to {:.2f}".format(*ua_ends)),
            ("WA, share that is right", f"{wa:.2f} %", "95 % interval {:.2f} to {:.2f}".format(*wa_ends)),
            ("Chance", f"{100 / len(best.classes):.0f} %", ", ".join(best.classes)),
        ],
        lead=lead,
        cautions=cautions(cells),
        sections=[section for section in sections if section.blocks],
    )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _interval(cell: Cell, metric: str) -> tuple[float, float, float]:
    """A score with the ends of its interval."""
    ends = cell.interval(metric)
    assert ends is not None, metric
    return cell.score(metric).pooled, ends.low, ends.high


def _spread(cell: Cell, metric: str) -> tuple[float, float | None]:
    score = cell.score(metric)
    return score.mean, score.std


def cautions(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know before comparing any number of the report."""
    found = []
    if unreal := _caveat(cells):
        found.append(f"{unreal} The numbers show that everything works and say nothing about people.")
    if tuned := [cell.label for cell in cells if cell.config["select"] == "best-test"]:
        found.append(f"The epoch was chosen on the TEST part, which lifts every number: {_listed(tuned)}.")
    if mixed := [c.label for c in cells if not all(result["speaker_independent"] for result in c.results)]:
        found.append(f"Speakers of the test part are heard in training too, so scores are too high: {_listed(mixed)}.")
    if len({cell.conditions for cell in cells}) > 1:
        found.append("The cells differ in protocol, selection or labels: their numbers must not be compared.")
    if len({tuple(cell.folds) for cell in cells}) > 1 and len({cell.config["protocol"] for cell in cells}) == 1:
        found.append("The cells were not tested on the same folds: their numbers are of different utterances.")
    return found


def _caveat(cells: Sequence[Cell]) -> str:
    """Why the scores say nothing about people, as a sentence; "" if they do."""
    unreal = caveat(result for cell in cells for result in cell.results)
    return f"{unreal[0].upper()}{unreal[1:]}." if unreal else ""


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _of_all(cells: Sequence[Cell], drawn: int) -> str:
    return f"Drawn: the {drawn} cells with the highest UA of {len(cells)}." if drawn < len(cells) else ""


# --- results


def _results(cells: Sequence[Cell]) -> list[Block]:
    compared = papers_table(cells)
    blocks = [results_table(cells), Group([_dot_plot(cells, "ua"), _dot_plot(cells, "wa")])]
    blocks += [compared] if compared else []
    if others := others_quoted(cells):
        rows = [[q.recipe.title, q.name, q.numbers.get("ua"), q.numbers.get("wa"), q.recipe.source] for q in others]
        columns = {"table": "text", "system": "text", "UA %": "percent", "WA %": "percent", "quoted from": "text"}
        blocks.append(Table("quoted", "Other systems, as the papers quote them", columns, rows, folded=True))
    return blocks


def results_table(cells: Sequence[Cell]) -> Table:
    """One line per cell."""
    alike = len({cell.conditions for cell in cells}) == 1
    columns = {"cell": "text", **BOTH, "macro-F1 %": "percent"}
    columns |= {"UA of the runs %": "spread", "WA of the runs %": "spread", "runs": "text", "n": "count"}
    columns |= {} if alike else {"conditions": "text"}
    rows = [
        [cell.label, _interval(cell, "ua"), _interval(cell, "wa"), cell.score("macro_f1").pooled]
        + [_spread(cell, "ua"), _spread(cell, "wa"), f"{len(cell.folds)} × {len(cell.seeds)}", cell.confusion().sum()]
        + ([] if alike else [cell.conditions])
        for cell in cells
    ]
    note = "UA: mean recall of the classes; WA: share that is right; both pooled over the folds of a seed, then the "
    note += f"mean over the seeds, with the 95 % bootstrap interval over {' or '.join(_drawn(cells))}. Of the runs: "
    note += f"mean ± standard deviation. Runs: folds × seeds; n: predictions. {_caveat(cells)}"
    where = f" ({cells[0].conditions})" if alike else ""
    return Table("results", f"Scores of each cell{where}", columns, rows, note.strip())


def _drawn(cells: Sequence[Cell]) -> list[str]:
    return sorted({ends.over for cell in cells if (ends := cell.interval("ua"))})


def _dot_plot(cells: Sequence[Cell], metric: str) -> Plot:
    """One line per cell: the score with its interval, and chance for the UA."""
    drawn, name = cells[:PLOTTED], metric.upper()
    found = [_interval(cell, metric) for cell in drawn]
    chance = 100 / len(cells[0].classes) if metric == "ua" else None
    names = {"": [cell.label for cell in drawn]}
    svg = dots(
        names, [Series(name, *zip(*found, strict=True))], f"{name} %", above=True, baseline=chance, first=metric == "wa"
    )
    rows = [[cell.label, one] for cell, one in zip(drawn, found, strict=True)]
    data = Table(f"{metric}-plot", f"{name} of each cell", {"cell": "text", f"{name} %": "interval"}, rows)
    best = max(rows, key=lambda row: row[1][0])
    alt = f"{name} of {len(drawn)} cells with 95 % intervals. Highest: {best[0]}, {shown(best[1], 'interval')} %."
    note = f"Dashed: chance, {chance:.0f} %. " if chance else ""
    return Plot(f"{name} with its 95 % interval", alt, svg, data, f"{note}{_of_all(cells, len(drawn))}".strip())


def papers_table(cells: Sequence[Cell]) -> Table | None:
    """Ours beside the papers' numbers; without a difference where none is meant."""
    real = [cell.caveat is None for cell in cells]
    columns = {"cell": "text", "in the papers": "text"}
    for metric in ("UA", "WA"):
        columns |= {f"paper {metric} %": "spread", f"ours {metric} %": "spread"}
        columns |= {f"{metric} difference": "points"} if any(real) else {}
    rows: list[list[Any]] = []
    changed: dict[str, dict[str, None]] = {}
    for cell in cells:
        places: dict[tuple[Any, Any], list[str]] = {}
        for quoted in quoted_for(cell):
            numbers = quoted.spread("ua"), quoted.spread("wa")
            if any(numbers):
                places.setdefault(numbers, []).append(quoted.where)
        for numbers, where in places.items():
            row: list[Any] = [cell.label, _together(where)]
            for paper, metric in zip(numbers, ("ua", "wa"), strict=True):
                ours = _spread(cell, metric)
                row += [paper, ours]
                if any(real):
                    row.append(ours[0] - paper[0] if paper and cell.caveat is None else None)
            rows.append(row)
        if places and (settings := changed_settings(cell)):
            text = ", ".join(f"{key} {value}" for key, value in settings.items())
            changed.setdefault(text, {})[cell.label] = None
    if not rows:
        return None
    note = "Ours: mean ± standard deviation over the runs, as the papers report."
    note += " Differences in points." if any(real) else ""
    if not all(real):
        note += f" A synthetic corpus or random weights: {NO_COMPARISON}, so no difference is given."
    for text, labels in changed.items():
        note += f" Settings that are not the paper’s in {_listed(list(labels))}: {text}."
    return Table("papers", "Beside the papers’ numbers", columns, rows, note)


def _together(places: Sequence[str]) -> str:
    """Places in the papers, each paper named once: "MSMSER, Table 1: Ours; Table 2: Full"."""
    named: list[str] = []
    last = ""
    for place in places:
        paper, _, rest = place.partition(", ")
        named.append(rest if paper == last else place)
        last = paper
    return "; ".join(named)


# --- significance


def _significance(cells: Sequence[Cell]) -> list[Block]:
    found = significance_table(cells)
    text = (
        "McNemar’s exact test asks whether two cells are right on different utterances, with the predictions of the "
        "lowest seed that both have; Holm’s correction accounts for the number of these tests in the table. The t-test "
        "and Wilcoxon’s test compare the UA of the runs that share fold and seed. Folds share training data and seeds "
        "share test data, so these runs are not independent, and their p are on the small side."
    )
    return [text, found] if found else []


def significance_table(cells: Sequence[Cell]) -> Table | None:
    """Every pair of up to five cells, else the first against each of the others; None for one cell."""
    if len(cells) < 2:
        return None
    pairs = list(combinations(cells, 2)) if len(cells) <= ALL_PAIRS else [(cells[0], cell) for cell in cells[1:]]
    rows = [[first.label, second.label, *_mcnemar(first, second), *_paired(first, second)] for first, second in pairs]
    tested = [place for place, row in enumerate(rows) if row[4] is not None]
    corrected = dict(zip(tested, holm([rows[place][4] for place in tested]), strict=True))
    rows = [[*row[:5], corrected.get(place), *row[5:]] for place, row in enumerate(rows)]
    columns = {"cell": "text", "against": "text", "utterances": "count", "WA difference": "points"}
    columns |= {"McNemar p": "p", "with Holm": "p", "pairs of runs": "count", "UA difference": "points"}
    columns |= {"t-test p": "p", "Wilcoxon p": "p"}
    note = "Differences in points."
    note += " –: the two share no utterances, or too few runs." if len(tested) < len(rows) else ""
    if len(cells) > ALL_PAIRS:
        note += f" The cell with the highest UA of {len(cells)} against each of the others."
    return Table("significance", "Paired tests", columns, rows, note)


def _mcnemar(first: Cell, second: Cell) -> list[Any]:
    """Utterances that both cells tested with the lowest seed that they share, WA difference, and McNemar's p."""
    shared = sorted(set(first.seeds) & set(second.seeds))
    if first.classes != second.classes or not shared:
        return [None] * 3
    by_id = []
    for cell in (first, second):
        p = cell.predictions
        mine = np.array([run.config["seed"] == shared[0] for run in cell.runs])[p.run]
        by_id.append(dict(zip(p.ids[mine], zip(p.truth[mine], p.predicted[mine], strict=True), strict=True)))
    ids = [id_ for id_ in by_id[0] if id_ in by_id[1]]
    if not ids:
        return [None] * 3
    test = mcnemar([by_id[0][i][0] for i in ids], *([table[i][1] for i in ids] for table in by_id))
    return [test.n, 100 * test.difference, test.p]


def _paired(first: Cell, second: Cell) -> list[Any]:
    """Runs that share fold and seed, mean difference of their UA, and the t-test's and Wilcoxon's p."""
    ua = [
        {(run.config["seed"], run.config["fold"], run.config["cut"]): 100 * run.result["ua"] for run in cell.runs}
        for cell in (first, second)
    ]
    keys = sorted(ua[0].keys() & ua[1].keys())
    if first.classes != second.classes or len(keys) < 2:
        return [None] * 4
    one, other = ([scores[key] for key in keys] for scores in ua)
    test = paired_t(one, other)
    # Differences that are all the same have no spread to compare them with.
    p = test.p if np.ptp(np.subtract(one, other)) > 1e-7 else None
    return [test.n, test.difference, p, wilcoxon(one, other).p]


def holm(values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction of several p values, in their order."""
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1, np.array(values)[order] * np.arange(len(values), 0, -1)))
    return stepped[np.argsort(order, kind="stable")].tolist()


# --- classes


def _emotions(cells: Sequence[Cell]) -> Group:
    classes = cells[0].classes
    drawn = [cell for cell in cells if cell.classes == classes][:SERIES]
    note = _of_all(cells, len(drawn)) and f"{_of_all(cells, len(drawn))} All are in the numbers."
    every = list(dict.fromkeys(name for cell in cells for name in cell.classes))

    rows: list[list[Any]] = []
    for cell in cells:
        rows.append([cell.label, *(_recall(cell, name) for name in every)])
        for quoted in quoted_for(cell):
            if any(name in quoted.numbers for name in every):
                rows.append([f"{quoted.where} (paper)", *(quoted.numbers.get(name) for name in every)])
    columns = {"cell": "text"} | {f"{name} %": "percent" for name in every}
    series = [Series(cell.label, [_recall(cell, name) for name in classes]) for cell in drawn]
    svg = dots({"": classes}, series, "recall %", limits=(-2, 102), legend=1)
    best = ", ".join(f"{name} {v:.0f} %" for name, v in zip(classes, series[0].values, strict=True) if v is not None)
    data = Table("recalls", "Recall of each class", columns, rows)
    recalls = Plot("Recall of each class", f"Dot plot; {cells[0].label}: {best}.", svg, data, note)

    rows = [
        [cell.label, name, *row]
        for cell in cells
        if cell.classes == classes
        for name, row in zip(classes, cell.confusion().tolist(), strict=True)
    ]
    columns = {"cell": "text", "true class": "text"} | {f"as {name}": "count" for name in classes}
    data = Table("confusion", "Confusion: utterances of each class by prediction", columns, rows)
    mistakes = drawn[0].confusion().astype(float)
    np.fill_diagonal(mistakes, 0)
    row, column = np.unravel_index(int(mistakes.argmax()), mistakes.shape)
    alt = "Confusion matrices in percent of each true class. "
    alt += f"{drawn[0].label} most often takes {classes[row]} for {classes[column]}."
    svg = matrices(classes, {cell.label: cell.confusion() for cell in drawn})
    return Group([recalls, Plot("Confusion, in percent of each true class", alt, svg, data, note)])


def _recall(cell: Cell, name: str) -> float | None:
    return cell.score(name).pooled if name in cell.classes and cell.score(name).n else None


# --- training


def _training(cells: Sequence[Cell]) -> Group:
    plots = [_curves_plot(cells, "loss", "Training loss")]
    if any(np.isfinite(_curves(cell, "ua")).any() for cell in cells):
        plots.append(_curves_plot(cells, "ua", "UA of the watched part"))
    return Group(plots)


def _curves(cell: Cell, name: str) -> np.ndarray:
    """One line per run, one column per epoch of all stages [runs, epochs]; NaN where nothing was evaluated."""
    histories = [result["history"] for result in cell.results]
    table = np.full((len(histories), max(map(len, histories))), np.nan)
    for row, history in zip(table, histories, strict=True):
        row[: len(history)] = [np.nan if line[name] is None else line[name] for line in history]
    return 100 * table if name == "ua" else table


def _mean(table: np.ndarray) -> np.ndarray:
    counted = np.isfinite(table).sum(0)
    return np.where(counted > 0, np.nansum(table, 0) / np.maximum(counted, 1), np.nan)


def _curves_plot(cells: Sequence[Cell], name: str, title: str) -> Plot:
    drawn = [cell for cell in cells[:SERIES] if np.isfinite(_curves(cell, name)).any()]
    label, kind = ("loss", "number") if name == "loss" else ("UA %", "percent")
    series = []
    for cell in drawn:
        table = _curves(cell, name)
        ends = (np.fmin.reduce(table), np.fmax.reduce(table)) if len(table) > 1 else (None, None)
        series.append(Series(cell.label, _mean(table), *ends, x=np.arange(1, table.shape[1] + 1)))
    rows = []
    for cell in cells:
        curve = _mean(_curves(cell, name))
        for epoch in sorted({round(e) for e in np.linspace(0, len(curve) - 1, min(EPOCHS, len(curve)))}):
            rows.append([cell.label, epoch + 1, None if np.isnan(curve[epoch]) else float(curve[epoch])])
    about = (
        f"Mean of the runs; up to {EPOCHS} epochs of each cell, evenly spread. Every epoch is in the runs’ result.json."
    )
    data = Table(f"learning-{name}", title, {"cell": "text", "epoch": "count", label: kind}, rows, about)
    first, last = (shown(float(value), kind) for value in series[0].values[[0, -1]])
    note = "Line: mean of the runs; band: their lowest and highest."
    if name == "ua":
        kept = [result["epoch"] for result in drawn[0].results]
        note += f" Watched: dev, or test with best-test. {drawn[0].label} kept epochs {min(kept)} to {max(kept)}."
    note = f"{note} {_of_all(cells, len(cells[:SERIES]))}".strip()
    alt = f"{title} by epoch. {drawn[0].label}: from {first} to {last}."
    return Plot(title, alt, lines(series, "epoch", label, band=True), data, note)


# --- modalities


def _modalities(cells: Sequence[Cell]) -> list[Block]:
    """How much a model leans on one modality; nothing if no cell has more than one way of testing."""
    able = [cell for cell in cells if _tests(cell) != ["both"]]
    if not able:
        return []
    tests = [test for test in TESTS if any(test in cell.tests for cell in able)]
    drawn = able[:12]
    series = [
        Series(test, [cell.score("ua", test).pooled if test in cell.tests else None for cell in drawn])
        for test in tests
    ]
    svg = dots({"": [cell.label for cell in drawn]}, series, "UA %", above=True, legend=3)
    rows: list[list[Any]] = []
    for cell in able:
        for test in _tests(cell):
            quoted = next((q for q in quoted_for(cell, test) if q.numbers.keys() & {"ua", "wa"}), None)
            paper = [quoted.numbers.get("ua"), quoted.numbers.get("wa"), quoted.where] if quoted else [None] * 3
            rows.append([cell.label, test, cell.score("ua", test).pooled, cell.score("wa", test).pooled, *paper])
    columns = {"cell": "text", "tested with": "text", "UA %": "percent", "WA %": "percent"}
    columns |= {"paper UA %": "percent", "paper WA %": "percent", "in the papers": "text"}
    title = "UA and WA by what the test shows the model"
    found = ", ".join(f"{test} {able[0].score('ua', test).pooled:.2f} %" for test in _tests(able[0]))
    alt = f"{able[0].label}: {found}."
    note = _of_all(able, len(drawn))
    if not all(cell.caveat is None for cell in able):
        note = f"{note} Beside the papers’ numbers no comparison is meant.".strip()
    text = "Only text and only audio: the same trained model, with the other modality hidden in the test."
    if any(test.startswith("head") for test in tests):
        text += " Heads: the model’s own classifiers of one modality, without the other."
    plot = Plot("UA by what the test shows the model", alt, svg, Table("bias", title, columns, rows), note)
    return [Group([f"{text} {alt}", plot])]


def _tests(cell: Cell) -> list[str]:
    return [test for test in TESTS if test in cell.tests]


def _queries(cells: Sequence[Cell]) -> list[Block]:
    """UA against the number of query tokens, for cells that differ in it alone; nothing if there are none."""
    families: dict[bytes, list[tuple[int, Cell]]] = {}
    for cell in cells:
        if number := cell.config["settings"].get("queries"):
            families.setdefault(configuration(cell.config, but="queries"), []).append((number, cell))
    curves = [sorted(members, key=lambda member: member[0]) for members in families.values() if len(members) > 1]
    if not curves:
        return []
    rows: list[list[Any]] = []
    series = []
    for members in curves:
        label = _shared_label([cell.label for _, cell in members])
        intervals = [_interval(cell, "ua") for _, cell in members]
        series.append(Series(label, *zip(*intervals, strict=True), x=[number for number, _ in members]))
        for (number, cell), ua in zip(members, intervals, strict=True):
            paper = next((q.numbers["ua"] for q in quoted_for(cell) if "ua" in q.numbers), None)
            rows.append([label, number, ua, _interval(cell, "wa"), paper])
    ticks = {number: str(number) for number in sorted({row[1] for row in rows})}
    svg = lines(series, "query tokens L", "UA %", ticks=ticks, log=True, legend=len(curves) > 1)
    best = max(rows, key=lambda row: row[2][0])
    alt = f"UA is highest with {best[1]} query tokens, {best[2][0]:.2f} %."
    title = "UA against the number of query tokens"
    data = Table("queries", title, {"cells": "text", "L": "count", **BOTH, "paper UA %": "percent"}, rows)
    plot = Plot(title, alt, svg, data, "With 95 % intervals; MSMSER’s figure 2.")
    return [Group([f"The cells differ in the number of query tokens alone. {alt}", plot])]


def _shared_label(labels: Sequence[str]) -> str:
    """What the labels share."""
    pieces = [set(label.split(" · ")) for label in labels]
    return " · ".join(piece for piece in labels[0].split(" · ") if all(piece in other for other in pieces))
