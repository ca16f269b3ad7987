"""The papers' numbers beside ours: which may stand there, what differs, and the table of a recipe
that says both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ser.cache.feature_name import parse_feature_name
from ser.errors import WrongUse
from ser.train.data.dev_part import SHARE
from ser.train.data.protocols import corpora_of
from ser.train.models import FUSIONS
from ser.train.models.fusion import BOTH
from ser.train.run_folder import Run
from ser.train.scores.measures import SHOWN
from ser.train.scores.pooling import Score
from ser.train.scores.tests import Comparison, against_quoted, holm
from ser.train.settings import TrainingSettings, parse_settings
from ser.train.sweep.recipe import Recipe, RecipeCell, read_recipe, recipe_names
from ser.train.sweep.search import choose, chosen_rows

from .cell_scores import CellScores, caveat, compare_cells, named
from .cells import Cell
from .tables import Row, described, tabulated, text_of

# Of IEMOCAP, which all three papers are about: with fewer, other utterances are tested.
FOLDS = {"session-out": 5, "train1234-test5": 1, "random-70-20-10": 1}


class Quoted(NamedTuple):
    """A paper's cell that some runs may stand beside."""

    recipe: Recipe
    paper: str  # such as "MSMSER"
    place: str  # such as "Table 2: Full"
    numbers: Mapping[str, float]  # in percent: `ua`, `wa`, recalls by class, each with `_std`
    seeds: int  # of which the numbers are the means
    differs: tuple[str, ...]  # what is not as there in the runs

    def of(self, metrics: Sequence[str]) -> tuple[tuple[str, float], ...]:
        """The numbers of these metrics, with their deviations."""
        return tuple(
            pair for pair in self.numbers.items() if pair[0].removesuffix("_std") in metrics
        )

    @property
    def described(self) -> str:
        """Where it stands, and what differs from it."""
        where = f"{self.paper}, {self.place}"
        return f"{where}; differs in {', '.join(self.differs)}" if self.differs else where


@cache
def _papers_cells() -> list[tuple[Recipe, RecipeCell]]:
    return [(recipe, cell) for recipe in map(read_recipe, recipe_names()) for cell in recipe.cells]


def _feature(name: str) -> frozenset[str]:
    """A feature with its options in any order: "bert:layer=9@3f2a" is {"bert", "layer=9",
    "pool=mean"}.
    """
    feature, options, read, _ = parse_feature_name(name)
    return frozenset(
        {feature, *options, *(f"{way}={value}" for way, value in {"pool": "mean", **read}.items())}
    )


def differences(
    runs: Sequence[Run], cell: RecipeCell, models: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What tells these finished runs of one configuration from a recipe's cell as it is written, by
    name.

    The first bars a comparison: another fusion, feature, target, label policy, corpus, test part,
    or shuffled labels. The second is only named: selection, dev part, checkpoint (`models` has the
    recipe's, by feature), seeds, a setting.
    """
    config, written = runs[0].config, cell.written
    features, provenance = config.features, config.provenance
    used = {name for feature in features.values() for name in feature.read_name.split("+")}
    protocol, colon, file = written.protocol.partition(":")
    corpora = config.corpus, corpora_of(written.protocol, written.corpus) or ""
    ours, theirs = ({*names.split("+")} if "+" in names else set() for names in corpora)
    # In any part; not known of generated speech.
    n = 0 if runs[0].result.synthetic else sum(runs[0].result.parts.values())
    barring: dict[str, tuple[Any, Any]] = {
        "fusion": (
            config.fusion.partition(":")[0] if written.fusion in BOTH else config.fusion,
            written.fusion,
        ),
        "features": ({*map(_feature, used)}, {*map(_feature, written.features.split("+"))}),
        "target": (config.target, written.target),
        "labels": (config.labels.policy, Path(written.labels).name),
        "protocol": (config.protocol, f"{protocol}:{Path(file).name}" if colon else protocol),
        "corpora": (ours, theirs),
        "only": (config.only, written.only),
        "limit": (config.limit, written.limit),
        "allow_missing": (
            any("quarantined" in why for why in provenance.left_out),
            False,
        ),
        "folds": (len({run.config.fold for run in runs}) < FOLDS.get(protocol, 0), False),
        "shuffle_labels": (
            config.training["shuffle_labels"],
            "shuffle_labels=true" in written.set,
        ),
        "utterances": ((cell.utterances and n) or cell.utterances, cell.utterances),
    }
    if barred := _unequal(barring):
        return barred, ()
    fusion = FUSIONS[config.fusion]
    settings, training = parse_settings(fusion, written.set, written.epochs)
    expected = {
        key: value
        for key, value in (asdict(settings) | asdict(training)).items()
        if key not in fusion.unused
    }
    defaults = asdict(fusion.settings()) | asdict(
        TrainingSettings()
    )  # a config need not name those that came later
    known = [{**defaults, **run.config.settings, **run.config.training} for run in runs]
    own = {
        key: {values[key] for values in known} for key in expected
    }  # one value, if it was not searched
    if expected["dev"] == "auto" and own["dev"] == {SHARE}:  # a config names what auto meant
        own["dev"] = {"auto"}
    views = {_feature(view.read_name) for view in config.views}
    named = {
        "select": (config.select, written.select),
        "loss": (config.loss, written.loss),
        "precision": (
            config.precision,
            written.precision.replace("auto", "float32"),
        ),
        "seeds": (len({run.config.seed for run in runs}), written.seeds),
        "transcripts": (
            "text" in features and provenance.transcripts is not None,
            False,
        ),  # an ASR's, not the corpus's own
        "views": (views, {*map(_feature, filter(None, written.views.split("+")))}),
        **{key: (own[key], {value}) for key, value in expected.items()},
    }
    for modality, feature in features.items():
        name = feature.feature.partition(":")[0]
        first_spec = provenance.feature_specs(modality)[0]
        model = first_spec.get("provenance", {}).get("model", "unknown")
        if name in models:  # a local copy is known by its folder's name
            named[f"checkpoint of {name}"] = Path(model).name, Path(models[name]).name
    return (), (*filter(None, [cell.differs]), *_unequal(named))


def _unequal(pairs: Mapping[str, tuple[Any, Any]]) -> tuple[str, ...]:
    return tuple(name for name, (ours, theirs) in pairs.items() if ours != theirs)


def quoted_for(cell: Cell, test: str = "both") -> list[Quoted]:
    """The papers' cells with numbers that these runs may stand beside, tested in that way, in the
    recipes' order.

    Of cells that differ in a setting alone, such as `queries`, those that are nearest.
    """
    candidates = []
    # What recipes vary between the cells of this fusion.
    structural = {"loss", "views"}
    for recipe, other in _papers_cells():
        if other.written.fusion == cell.config.fusion:
            structural |= {assignment.partition("=")[0] for assignment in other.written.set}
        barred, differs = (
            differences(cell.runs, other, recipe.models) if other.test == test else (("test",), ())
        )
        if not barred:
            paper, _, table = recipe.title.partition(":")[0].partition(", ")
            place = f"{table}: {other.name}"
            candidates.append(
                Quoted(recipe, paper, place, other.paper or {}, other.written.seeds, differs)
            )
    distances = [len(structural.intersection(quoted.differs)) for quoted in candidates]
    nearest = min(distances, default=0)
    return [
        one
        for one, far in zip(candidates, distances, strict=True)
        if one.numbers and far == nearest
    ]


def claimed(one: Mapping[str, float], other: Mapping[str, float], metric: str) -> int:
    """1 where a paper's first numbers are the better, −1 where the second, 0 where they are equal
    or not there.
    """
    return int(np.sign(one[metric] - other[metric])) if metric in one and metric in other else 0


def beside(
    metrics: Sequence[str],
    quoted: Mapping[str, float],
    ours: Mapping[str, Score],
    seeds: int,
    alike: bool,
    meant: bool,
) -> Row:
    """A paper's numbers, means of so many seeds, ours, and their differences if a comparison is
    meant.

    A difference has its interval if the two are `alike`: nothing but chance tells them apart.
    """
    row: Row = {}
    for metric in metrics:
        name, score = metric.upper() if metric in ("ua", "wa") else metric, ours.get(metric)
        paper = (quoted[metric], quoted.get(f"{metric}_std")) if metric in quoted else None
        difference: Any = None
        if meant and paper and score:
            difference = (score.pooled - paper[0], None, None)
            difference = against_quoted(score, *paper, seeds).difference if alike else difference
        row |= {f"paper {name} %": paper, f"ours {name} %": score and score.over_seeds}
        row |= {
            f"{name} difference": difference,
            f"{name} over folds %": score and score.over_folds,
        }
    return row


@dataclass
class RecipeRow:
    """One line of a recipe's table."""

    cell: str
    paper: Mapping[str, float]
    scores: Mapping[str, Score] = field(
        default_factory=dict
    )  # empty: quoted, or not one run finished
    runs: int = 0  # how many the cell needs; of a search, how many it chooses
    done: int = 0
    conditions: str = ""  # "session-out · val · 4class"
    quoted: bool = False
    differs: str = (
        ""  # from the recipe's cell: what does, or why there is no comparison and no `paper`
    )
    compared: Comparison | None = None  # the recipe's `tested` cell with this one
    holm_p: float | None = None  # over the table
    folders: Sequence[str] = ()
    chosen: Sequence[dict[str, Any]] = ()  # what a search chose, by fold and seed


def recipe_rows(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> list[RecipeRow]:
    """The rows of a recipe's table, in its order; cells without a finished run say so."""
    rows, finished = [], dict[str, tuple[CellScores, str]]()
    for cell in recipe.cells:
        own, tried = runs[cell.name], len(cell.candidates)
        needed = len(own) // tried
        if cell.over:
            own = choose(own[number::needed] for number in range(needed))
        row = RecipeRow(
            cell.name, cell.paper or {}, runs=needed, folders=[str(run.path) for run in own]
        )
        rows.append(row)
        done = [run for run in own if run.finished]
        if not done:
            row.conditions = (
                f"no fold has all {tried} candidates finished" if cell.over else "no run finished"
            )
            continue
        ours = CellScores(done)
        if cell.test not in ours.tests:
            raise WrongUse(
                f"cell '{cell.name}': its model has no test '{cell.test}', only {', '.join(ours.tests)}"
            )
        finished[cell.name] = ours, cell.test
        row.done, row.conditions = len(done), ours.conditions
        metrics = dict.fromkeys([*row.paper, *SHOWN.values(), *ours.rated])
        row.scores = {
            metric: ours.score(metric, cell.test) for metric in metrics if metric in ours.metrics
        }
        if cell.over:
            row.chosen = chosen_rows(cell.name, tried, cell.over, ours.runs)
        if row.paper or cell.name == recipe.tested:
            barred, others = differences(done, cell, recipe.models)
            row.differs = f"not compared: {', '.join(barred)}" if barred else ", ".join(others)
            row.paper = {} if barred else row.paper
    for quoted in recipe.quoted:
        about = "; ".join(filter(None, ["quoted by the paper", quoted.footnote]))
        rows.append(RecipeRow(quoted.name, quoted.paper, conditions=about, quoted=True))
    if recipe.tested in finished:
        first = next(row for row in rows if row.cell == recipe.tested)
        tested = finished.pop(recipe.tested)
        for row in rows:
            row.compared = _compared(tested, first, row, finished.get(row.cell))
    for row, p in zip(
        rows, holm([row.compared.p if row.compared else None for row in rows]), strict=True
    ):
        row.holm_p = p
    return rows


def _compared(
    tested: tuple[CellScores, str],
    first: RecipeRow,
    row: RecipeRow,
    other: tuple[CellScores, str] | None,
) -> Comparison | None:
    """The tested cell, tested in its way, with another or with a quoted number.

    `first` is the tested cell's row: only if nothing differs from the recipe, it is compared with
    quoted numbers.
    """
    (ours, test), metric = tested, "wa" if "wa" in row.paper else "ua"
    if not ours.classes or (other and not other[0].classes):
        return None
    if other:
        claim = claimed(first.paper, row.paper, metric)
        barred = any(line.differs.startswith("not compared") for line in (first, row))
        return (
            None if barred else compare_cells(ours, other[0], metric, claim, tests=(test, other[1]))
        )
    if not row.quoted or metric not in row.paper or caveat(ours.results) or first.differs:
        return None
    return against_quoted(
        ours.score(metric, test), row.paper[metric], row.paper.get(f"{metric}_std")
    )


def recipe_table(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> str:
    """The table that a sweep ends with: cell · paper · ours with two spreads · difference · runs ·
    tests · protocol.
    """
    rows = recipe_rows(recipe, runs)
    papers = [
        *(cell.paper or {} for cell in recipe.cells),
        *(quoted.paper for quoted in recipe.quoted),
    ]
    scored = list(dict.fromkeys(metric for row in rows for metric in row.scores))
    metrics = list(
        dict.fromkeys(name for paper in papers for name in paper if not name.endswith("_std"))
    )
    metrics = metrics or [metric for metric in scored if " " not in metric][:2]
    rated = [metric for metric in scored if " " in metric]  # no percent
    warning = caveat(run.result for cell in runs.values() for run in cell if run.finished)
    seeds = {cell.name: cell.written.seeds for cell in recipe.cells}
    tested, differing = any(row.compared for row in rows), any(row.differs for row in rows)
    conditions = {row.conditions for row in rows}
    title = f"{recipe.title} ({', '.join(conditions)})" if len(conditions) == 1 else recipe.title
    lines = []
    for row in rows:
        line: Row = {"cell": row.cell}
        numbers = beside(
            metrics, row.paper, row.scores, seeds.get(row.cell, 1), not row.differs, not warning
        )
        for name, number in numbers.items():
            if any(papers) or name.startswith("ours") or "over folds" in name:
                line[name] = number
        if "macro_f1" in scored:
            line["ours macro-F1 %"] = (f1 := row.scores.get("macro_f1")) and f1.over_seeds
        line |= {
            named(metric): (score := row.scores.get(metric)) and score.pooled for metric in rated
        }
        first = row.scores.get("ua") or row.scores.get("ccc valence")
        shape = f"{first.folds} × {first.seeds}" if first else ""
        line["runs"] = (
            "" if row.quoted else shape if row.done == row.runs else f"{row.done} of {row.runs}"
        )
        if tested:
            test = row.compared
            line |= {"tested cell’s difference": test and test.difference, "p": test and test.p}
            line |= {"Holm p": row.holm_p, "test": test and test.about}
        if differing:
            line["differs in"] = row.differs
        if len(conditions) > 1:
            line["protocol"] = row.conditions
        lines.append(line)
    pieces = [title, "", tabulated(described("recipe", lines)) + "\n"]
    if chosen := [line for row in rows for line in row.chosen]:
        pieces.append(
            f"chosen on dev, of so many that were tried:\n\n{tabulated(described('chosen', chosen))}\n"
        )
    notes = [
        recipe.note,
        text_of("recipe", "note", {}),
        text_of("recipe", "tested", vars(recipe)) * tested,
        warning,
    ]
    return "\n".join([*pieces, *filter(None, notes)])
