"""The report's sections about scores, and the page that all of its sections make: its text, and its HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from textwrap import fill

import numpy as np

from ser.cache.atomic_io import write_whole
from ser.errors import WrongUse
from ser.train.recipe import TESTS, cell_name, chosen_rows
from ser.train.run_folder import Run
from ser.train.scores import SHOWN

from .attention import Inside, attended
from .cell_scores import NOT_KNOWN, caveat, heard_in_training, parts, spread
from .cells import Cell, drawn, grouped, same_run
from .figures import Points, svg_of
from .paper import beside, claimed, quoted_for
from .predictions import calibration_table, errors, ratings, ratings_table, reliability_table, votes_table
from .provenance import what_was_run
from .significance import compare, holm, mcnemar, p_of_runs
from .tables import Row, Table, described, sentence, tabulated, text_of

PLOTTED = 30  # cells in a plot of one line for each
SERIES = 4  # cells in a plot where each is a series
ALL_PAIRS = 5  # cells; with more, each is tested against the first only
EPOCHS = 30  # of each cell in the table of learning curves
MAIN = ("ua", "wa")
SHORT, ROOMY = 18, 34  # letters: so short a word is not broken, so long a text needs room


@dataclass(frozen=True)
class Page:
    """A report of cells, highest UA first."""

    cells: Sequence[Cell]
    unfinished: Sequence[Run]
    cautions: Sequence[str]
    sections: Mapping[str, Sequence[Table]]  # by anchor, in reading order
    inside: Inside

    @property
    def tables(self) -> list[Table]:
        """All tables in reading order, those behind plots included."""
        return [table for tables in self.sections.values() for table in tables]


def make_page(cells: Sequence[Cell], unfinished: Sequence[Run]) -> Page:
    """The report of these cells, highest UA first. What is about classes is about the cells that learn any."""
    known = [cell for cell in cells if cell.classes]
    inside = attended(known)
    sections: dict[str, Sequence[Table]] = {
        "what-was-run": what_was_run(cells),
        "results": _results(known) if known else [],
        "significance": [significance_table(known), papers_tests_table(known)],
        "emotions": _emotions(known) if known else [],
        "calibration": [reliability_table(known), calibration_table(known), votes_table(known)],
        "ratings": ratings(cells),
        "training": _training(cells),
        "modalities": [_modalities(known)],
        "query-tokens": [_queries(known)],
        "inside": inside.tables,
        "errors": errors(known),
    }
    told = {name: [*filter(None, tables)] for name, tables in sections.items()}
    kept = {name: tables for name, tables in told.items() if tables or (name == "inside" and inside.fault)}
    return Page(cells, unfinished, cautions(cells), kept, inside)


def write_html(page: Page, path: Path) -> None:
    """Write the page as one file that needs no other: page.html lays it out, and escapes all that it is given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"classes": _classes, "svg": svg_of}
    write_whole(path, environment.get_template("page.html").render(page=page).encode())


def _classes(table: Table) -> list[str]:
    """A class for each column: numbers to the right, short words unbroken, long texts with room."""
    longest = [max(map(len, texts)) for texts in zip(*table.texts, strict=True)]
    return [
        "n" if not isinstance(first, str) else "short" if n <= SHORT else "long" if n > ROOMY else ""
        for first, n in zip(table.columns.values(), longest, strict=True)
    ]


def report_text(cells: Sequence[Cell], unfinished: Sequence[Run], paired: bool = False) -> str:
    """What `ser report` prints: each cell's scores, the papers' numbers beside them, and the paired tests if asked.

    Raises `WrongUse` if tests are asked for and fewer than two cells have classes, which they compare.
    """
    known = [cell for cell in cells if cell.classes]
    if paired and len(known) < 2:
        which = "are one cell" if len(cells) < 2 else "have fewer than two cells of classes, which the tests are for"
        raise WrongUse(f"--paired compares cells, and these runs {which}; name the runs of another one too")
    pieces = [fill(caution, 110) for caution in cautions(cells)]
    tested = [significance_table(known), papers_tests_table(known)] if paired else []
    scored = [results_table(known), calibration_table(known), votes_table(known), papers_table(known)]
    for table in filter(None, [*scored, ratings_table(cells), corpora_table(cells), chosen_table(cells), *tested]):
        pieces += [table.caption, tabulated(table), *([fill(table.note, 110)] if table.note else [])]
    if unfinished:
        pieces.append(f"not finished, and counted nowhere here: {len(unfinished)} run{'s' * (len(unfinished) > 1)}")
    return "\n\n".join(pieces)


def cautions(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know before comparing any number of the report."""
    heard = {cell.label: heard_in_training(cell.results) for cell in cells}
    folds = {tuple(cell.folds) for cell in cells}
    names = {"corpus": "corpus", "protocol": "protocol", "selection": "select", "labels": "labels"}
    under = [{name: cell.results[0][key] for name, key in names.items()} | parts(cell.results) for cell in cells]
    every = dict.fromkeys(name for one in under for name in one)
    unlike = [name for name in every if len({one.get(name) for one in under}) > 1]
    barred = {*names, "n test"}.intersection(unlike)
    told = {
        "unreal": _caveat(cells),
        "best-test": _listed([cell.label for cell in cells if cell.config["select"] == "best-test"]),
        "heard": _listed([label for label, who in heard.items() if who not in ("", NOT_KNOWN)]),
        "not-known": _listed([label for label, who in heard.items() if who == NOT_KNOWN]),
        "missing": _listed([cell.label for cell in cells if not cell.whole]),
        "barred" if barred else "unlike": ", ".join(unlike),
        "folds": "tests" * (len(folds) > 1 and len({cell.config["protocol"] for cell in cells}) == 1),
    }
    return [text_of("cautions", which, {"of": of}) for which, of in told.items() if of]


def _caveat(cells: Sequence[Cell]) -> str:
    """Why the scores say nothing about people, as a sentence; "" if they do."""
    unreal = caveat(result for cell in cells for result in cell.results)
    return f"{unreal[0].upper()}{unreal[1:]}." if unreal else ""


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _results(cells: Sequence[Cell]) -> list[Table]:
    plots = []
    for name, metric in SHOWN.items():
        rows = [{"cell": cell.label, f"{name} %": cell.with_interval(metric)} for cell in cells[:PLOTTED]]
        chance = 100 / len(cells[0].classes) if metric == "ua" else np.nan
        points = [(name, *row.values()) for row in rows]
        told = sentence("chance", metric == "ua", chance=chance), drawn(cells, PLOTTED)
        words: Row = {"name": f"{metric.replace('_', '-')}-plot", "score": name, "baseline": chance}
        plots.append(described("score", rows, *told, points=points, **words))
    return [results_table(cells), *plots, corpora_table(cells), chosen_table(cells), papers_table(cells)]


def results_table(cells: Sequence[Cell]) -> Table:
    """One line per cell."""
    alike = len({cell.conditions for cell in cells}) == 1
    rows = []
    for cell in cells:
        scores = {name: cell.score(metric) for name, metric in SHOWN.items()}
        row: Row = {"cell": cell.label, **_with_intervals(cell)}
        row |= {f"{name} over seeds %": score.over_seeds for name, score in scores.items()}
        row |= {f"{name} over folds %": score.over_folds for name, score in scores.items()}
        shape = f"{len(cell.folds)} × {len(cell.seeds)}"
        shape = shape if cell.whole else f"{len(cell.runs)} in {shape}"
        row |= {"interval over": cell.interval_over, "runs": shape, "n": cell.n}
        rows.append(row if alike else {**row, "conditions": cell.conditions})
    narrow = sentence("narrow", any(cell.over == "utterances" for cell in cells))
    where = f" ({cells[0].conditions})" if alike else ""
    return described("results", rows, sentence("chosen", len(cells) > 1), _caveat(cells), narrow, where=where)


def _with_intervals(cell: Cell) -> Row:
    return {f"{name} %": cell.with_interval(metric) for name, metric in SHOWN.items()}


def corpora_table(cells: Sequence[Cell]) -> Table:
    """The scores of each corpus, and who trained, for the cells of several corpora."""
    return described("corpora", [{"cell": cell.label, **row} for cell in cells for row in cell.corpora])


def chosen_table(cells: Sequence[Cell]) -> Table:
    """What each fold and seed of the searches chose; no row without a search."""
    searches = [(cell, cell.search) for cell in cells if cell.search]
    chosen = (chosen_rows(cell.label, len(s.candidates), s.over, cell.runs) for cell, s in searches)
    return described("chosen", [row for rows in chosen for row in rows])


def papers_table(cells: Sequence[Cell]) -> Table:
    """Ours beside the papers' numbers, as far as they have any; without a difference where none is meant."""
    rows: list[Row] = []
    for cell in cells:
        ours = {metric: cell.score(metric) for metric in MAIN}
        alike = grouped(quoted_for(cell), lambda one: (one.of(MAIN), one.seeds, one.differs))
        for (numbers, seeds, differs), places in alike.items():
            if numbers:  # each paper is named once: "MSMSER, Table 1: Ours; Table 2: Full"
                named = grouped((one.where.partition(", ") for one in places), lambda where: where[:2])
                together = ["".join(paper) + "; ".join(place for *_, place in of) for paper, of in named.items()]
                row: Row = {"cell": cell.label, "in the papers": "; ".join(together)}
                row |= beside(MAIN, dict(numbers), ours, seeds, not differs, not caveat(cell.results))
                rows.append({**row, "differs in": ", ".join(differs) or None})
    unreal = [bool(caveat(cell.results)) for cell in cells]
    return described("papers", rows, sentence("meant", not all(unreal)), sentence("unreal", any(unreal)))


def _pairs(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Every pair of up to `ALL_PAIRS` cells, else the first against each of the others; of one that is ours, that."""
    ours = [cell for cell in cells if cell.ours] or list(cells[: len(cells) > ALL_PAIRS])
    return [(ours[0], cell) for cell in cells if cell not in ours] if ours else list(combinations(cells, 2))


def significance_table(cells: Sequence[Cell]) -> Table:
    """Our tests, which respect that utterances of a speaker are alike; no row for one cell."""
    pairs = _pairs(cells)
    rows: list[Row] = [{"cell": one.label, "against": other.label} for one, other in pairs]
    for metric in MAIN:
        tests = [compare(*pair, metric, claimed_better(*pair, metric)) for pair in pairs]
        corrected = holm([test.p if test else None for test in tests])
        for row, test, p in zip(rows, tests, corrected, strict=True):
            found = (test.difference, test.p, p, test.about) if test else (None, None, p, "no utterance in common")
            names = (f"{metric.upper()} {what}" for what in ("difference", "p", "Holm p", "test"))
            row.update(zip(names, found, strict=True))
    first = not any(cell.ours for cell in cells)
    told = sentence("chosen", first), sentence("first", first and len(cells) > ALL_PAIRS, n=len(cells))
    return described("significance", rows, *told)


def claimed_better(one: Cell, other: Cell, metric: str) -> int:
    """1 where a paper that has both cells claims the first is better, −1 the second, 0 none or papers that disagree."""
    pairs = [(a.numbers, b.numbers) for a in quoted_for(one) for b in quoted_for(other) if a.recipe == b.recipe]
    claims = {claimed(*pair, metric) for pair in pairs if all(metric in numbers for numbers in pair)}
    return claims.pop() if len(claims) == 1 else 0


def papers_tests_table(cells: Sequence[Cell]) -> Table:
    """The tests that papers print, on single utterances and single runs; no row for one cell.

    McNemar's on the utterances of the lowest seed that both have, the others on runs of the same fold and seed. None
    where there is nothing to compare.
    """
    columns = ["utterances", "McNemar p", "McNemar Holm p", "pairs of runs"]
    columns += ["t-test p", "t-test Holm p", "Wilcoxon p", "Wilcoxon Holm p"]
    rows: list[Row] = []
    for first, second in _pairs(cells):
        row: Row = {"cell": first.label, "against": second.label, **dict.fromkeys(columns)}
        rows.append(row)
        if first.classes != second.classes:
            continue
        seed = min({*first.seeds} & {*second.seeds}, default=None)
        judged = (cell.judged.assign(id=[name for name, _ in cell.tested]) for cell in (first, second))
        one, other = (p[p.seed == seed].drop_duplicates("id") for p in judged)
        if len(both := one.merge(other, on=["id", "truth"], suffixes=(None, "_2"))):
            row |= {"utterances": len(both), "McNemar p": mcnemar(both.truth, both.predicted, both.predicted_2)}
        ours, theirs = ({same_run(run): 100 * run.result["ua"] for run in cell.runs} for cell in (first, second))
        if len(keys := sorted(ours.keys() & theirs.keys())) > 1:
            t, wilcoxon = p_of_runs([ours[key] for key in keys], [theirs[key] for key in keys])
            row |= {"pairs of runs": len(keys), "t-test p": t, "Wilcoxon p": wilcoxon}
    for name in ("McNemar", "t-test", "Wilcoxon"):
        for row, p in zip(rows, holm([row[f"{name} p"] for row in rows]), strict=True):
            row[f"{name} Holm p"] = p
    return described("papers-tests", rows)


def _emotions(cells: Sequence[Cell]) -> list[Table]:
    classes = cells[0].classes
    alike = [cell for cell in cells if cell.classes == classes]
    shown = alike[:SERIES]
    few = drawn(cells, len(shown)), sentence("all", len(shown) < len(cells))
    every = list(dict.fromkeys(name for cell in cells for name in cell.classes))
    rows: list[Row] = []
    for cell in cells:
        rows.append({"cell": cell.label} | {f"{name} %": cell.score(name).pooled for name in cell.classes})
        for quoted in quoted_for(cell):
            if numbers := {f"{name} %": quoted.numbers[name] for name in every if name in quoted.numbers}:
                rows.append({"cell": f"paper: {quoted.described}"} | numbers)
    points = [(cell.label, name, cell.score(name).pooled) for cell in shown for name in classes]
    recalls = described("recalls", rows, *few, points=points)
    rows = [
        {"cell": cell.label, "true class": name} | {f"as {k}": n for k, n in zip(classes, counts, strict=True)}
        for cell in alike
        for name, counts in zip(classes, cell.confusion().tolist(), strict=True)
    ]
    counts = {cell.label: cell.confusion() for cell in shown}
    return [recalls, described("confusion", rows, *few, points=(classes, counts))]


def _training(cells: Sequence[Cell]) -> list[Table]:
    curves = [
        _curves(cells, "loss", "Training loss", "loss", 1),
        _curves([cell for cell in cells if cell.classes], "ua", "UA of the evaluated part", "UA %", 100),
        _curves([cell for cell in cells if cell.dimensions], "ccc", "Mean CCC of the evaluated part", "mean CCC", 1),
    ]
    rows: list[Row] = []  # what layers count in learned sums
    for cell, name in [(one, name) for one in cells for name in one.results[0].get("layers", {})]:
        shares = np.array([of[name] for result in cell.results if name in (of := result.get("layers", {}))])
        rows.append({"cell": cell.label, "layer": name, "share %": spread(100 * shares)})
    return [*curves, described("layers", rows)]


def _curves(cells: Sequence[Cell], key: str, title: str, heading: str, scale: int) -> Table:
    """The loss, or a score of the evaluated part, over the epochs, stage after stage, of the cells that have it."""
    import pandas

    points: Points = []
    rows: list[Row] = []
    for cell in cells:
        told_by = enumerate(result["history"] for result in cell.results)
        lines = pandas.DataFrame([(run, line["stage"], line.get(key)) for run, every in told_by for line in every])
        place = [pandas.factorize(lines[1])[0], lines.groupby([0, 1]).cumcount()]  # stage, and epoch within it
        curve = scale * lines[2].astype(float).groupby(place).agg(["mean", "min", "max"])
        if curve["mean"].isna().all():
            continue
        if len({row["cell"] for row in rows}) < SERIES:
            points += [(cell.label, epoch, tuple(ends)) for epoch, ends in enumerate(curve.to_numpy(), 1)]
        for epoch in sorted({round(e) for e in np.linspace(0, len(curve) - 1, min(EPOCHS, len(curve)))}):
            rows.append({"cell": cell.label, "epoch": epoch + 1, heading: float(curve["mean"].iloc[epoch])})
    words = {"name": f"learning-{key}", "score": title, "heading": heading, "epochs": EPOCHS}
    told = drawn(cells, SERIES), sentence("evaluated", key != "loss")
    return described("learning", rows, *told, points=points, **words)


def _modalities(cells: Sequence[Cell]) -> Table:
    """How much a model leans on one modality; no row if no cell has more than one way of testing."""
    able = [cell for cell in cells if set(cell.tests) & set(TESTS[1:])]
    rows: list[Row] = []
    for cell, test in [(one, test) for one in able for test in TESTS if test in one.tests]:
        quoted = next((one for one in quoted_for(cell, test) if one.of(MAIN)), None)
        row: Row = {"cell": cell.label, "tested with": test}
        row |= {f"{name} %": cell.score(metric, test).pooled for name, metric in SHOWN.items()}
        row |= {f"paper {metric.upper()} %": quoted and quoted.numbers.get(metric) for metric in MAIN}
        rows.append({**row, "in the papers": quoted and quoted.described})
    shown = {cell.label for cell in able[:12]}
    points = [(row["tested with"], row["cell"], row["UA %"]) for row in rows if row["cell"] in shown]
    unreal = sentence("bias", any(caveat(cell.results) for cell in able))
    return described("bias", rows, drawn(able, len(shown)), unreal, points=points)


def _queries(cells: Sequence[Cell]) -> Table:
    """UA against the number of query tokens, for cells that differ in it alone; no row if there are none."""

    def family(cell: Cell) -> str:
        others = {key: value for key, value in cell.config["settings"].items() if key != "queries"}
        return cell_name(cell.config | {"settings": others})

    able = [cell for cell in cells if isinstance(cell.settings.get("queries"), int)]
    rows: list[Row] = []
    for members in (members for members in grouped(able, family).values() if len(members) > 1):
        label = " · ".join(piece for piece in members[0].label.split(" · ") if not piece.startswith("queries "))
        for cell in sorted(members, key=lambda cell: cell.config["settings"]["queries"]):
            found = [one for one in quoted_for(cell) if "ua" in one.numbers and "queries" not in one.differs]
            paper = {"paper UA %": found[0].numbers["ua"], "in the papers": found[0].described} if found else {}
            rows.append({"cells": label, "L": cell.config["settings"]["queries"], **_with_intervals(cell), **paper})
    points = [(row["cells"], row["L"], row["UA %"]) for row in rows]
    return described("queries", rows, points=points)
