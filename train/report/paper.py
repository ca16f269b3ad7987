"""The papers' numbers beside ours: which may stand there, what differs, and the table of a recipe that says both."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ser.cache.spec import parse_name
from ser.errors import WrongUse
from ser.train.data.features import read_name
from ser.train.data.splits import SHARE, corpora_of
from ser.train.models import FUSIONS
from ser.train.models.fusion import BOTH
from ser.train.recipe import Cell as RecipeCell
from ser.train.recipe import Recipe, choose, chosen_rows, read_recipe, recipe_names
from ser.train.run_folder import Run
from ser.train.scores import SHOWN
from ser.train.settings import TrainingSettings, parse_settings

from .cell_scores import CellScores, Score, caveat, named
from .cells import Cell
from .significance import Comparison, against_quoted, compare, holm
from .tables import Row, described, tabulated, text_of

# Of IEMOCAP, which all three papers are about: with fewer, other utterances are tested.
FOLDS = {"session-out": 5, "train1234-test5": 1, "random-70-20-10": 1}


class Quoted(NamedTuple):
    """A paper's cell that some runs may stand beside."""

    recipe: Recipe
    where: str  # such as "MSMSER, Table 2: Full"
    numbers: Mapping[str, float]  # in percent: `ua`, `wa`, recalls by class, each with `_std`
    seeds: int  # of which the numbers are the means
    differs: tuple[str, ...]  # what is not as there in the runs

    def of(self, metrics: Sequence[str]) -> tuple[tuple[str, float], ...]:
        """The numbers of these metrics, with their deviations."""
        return tuple(pair for pair in self.numbers.items() if pair[0].removesuffix("_std") in metrics)

    @property
    def described(self) -> str:
        """Where it stands, and what differs from it."""
        return f"{self.where}; differs in {', '.join(self.differs)}" if self.differs else self.where


@cache
def _papers_cells() -> list[tuple[Recipe, RecipeCell]]:
    return [(recipe, cell) for recipe in map(read_recipe, recipe_names()) for cell in recipe.cells]


def _feature(name: str) -> frozenset[str]:
    """A feature with its options in any order: "bert:layer=9@3f2a" is {"bert", "layer=9", "pool=mean"}."""
    feature, options, read, _ = parse_name(name)
    return frozenset({feature, *options, *(f"{way}={value}" for way, value in {"pool": "mean", **read}.items())})


def differences(
    runs: Sequence[Run], cell: RecipeCell, models: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What tells these finished runs of one configuration from a recipe's cell as it is written, by name.

    The first bars a comparison: another fusion, feature, target, label policy, corpus, test part, or shuffled labels.
    The second is only told: selection, dev part, checkpoint (`models` has the recipe's, by feature), seeds, a setting.
    """
    config, asked = runs[0].config, cell.written
    protocol, colon, file = asked.protocol.partition(":")
    features, provenance = config["features"], config["provenance"]
    corpora = config["corpus"], corpora_of(asked.protocol, asked.corpus) or ""
    several = [sorted(names.split("+")) if "+" in names else [] for names in corpora]
    # In any part; not known of generated speech and of an earlier ser.
    n = 0 if runs[0].result["synthetic"] else sum(runs[0].result.get("parts", {}).values())
    pairs: dict[str, tuple[Any, Any]] = {
        "fusion": (config["fusion"].partition(":")[0] if asked.fusion in BOTH else config["fusion"], asked.fusion),
        "features": (
            {_feature(name) for one in features.values() for name in read_name(one).split("+")},
            {_feature(name) for name in asked.features.split("+")},
        ),
        "target": (config.get("target", "class"), asked.target),
        "labels": (config["labels"]["policy"], Path(asked.labels).name),
        "protocol": (config["protocol"], f"{protocol}:{Path(file).name}" if colon else protocol),
        "corpora": (several[0], several[1]),
        "only": (config.get("only"), asked.only),
        "limit": (config["limit"], asked.limit),
        "allow_missing": (any("quarantined" in why for why in provenance.get("left_out", ())), False),
        "folds": (len({run.config["fold"] for run in runs}) < FOLDS.get(protocol, 0), False),
        "shuffle_labels": (config["training"]["shuffle_labels"], "shuffle_labels=true" in asked.set),
        "utterances": ((cell.utterances and n) or cell.utterances, cell.utterances),
    }
    if barred := tuple(name for name, (ours, theirs) in pairs.items() if ours != theirs):
        return barred, ()
    fusion = FUSIONS[config["fusion"]]
    settings, training = parse_settings(fusion, asked.set, asked.epochs)
    defaults = asdict(fusion.settings()) | asdict(TrainingSettings())  # a config need not name those that came later
    every = [{**defaults, **run.config["settings"], **run.config["training"]} for run in runs]
    own = {key: {one[key] for one in every} for key in every[0]}  # one value, if it was not searched
    theirs = {key: value for key, value in (asdict(settings) | asdict(training)).items() if key not in fusion.unused}
    if theirs["dev"] == "auto" and own["dev"] == {SHARE}:  # a config names what auto meant
        own["dev"] = {"auto"}
    views = {_feature(read_name(one)) for one in config.get("views", ())}
    pairs = {
        **{key: (config.get(key, getattr(asked, key)), getattr(asked, key)) for key in ("select", "loss")},
        "precision": (config.get("precision", "float32"), asked.precision.replace("auto", "float32")),
        "seeds": (len({run.config["seed"] for run in runs}), asked.seeds),
        "transcripts": ("text" in features and "transcripts" in provenance, False),  # an ASR's, not the corpus's own
        "views": (views, {_feature(name) for name in asked.views.split("+") if name}),
        **{key: (own[key], {value}) for key, value in theirs.items()},
    }
    for modality, one in features.items():
        name, spec = one["feature"].partition(":")[0], provenance.get("specs", {}).get(modality, {})
        model = spec.get("joined", [spec])[0].get("provenance", {}).get("model", "unknown")
        if name in models:  # a local copy is known by its folder's name
            pairs[f"checkpoint of {name}"] = Path(model).name, Path(models[name]).name
    others = tuple(name for name, (ours, theirs) in pairs.items() if ours != theirs)
    return (), (*filter(None, [cell.differs]), *others)


def quoted_for(cell: Cell, test: str = "both") -> list[Quoted]:
    """The papers' cells with numbers that these runs may stand beside, tested in that way, in the recipes' order.

    Of cells that differ in a setting alone, such as `queries`, those that are nearest.
    """
    found = []
    for recipe, one in (pair for pair in _papers_cells() if pair[1].test == test):
        barred, differs = differences(cell.runs, one, recipe.models)
        where = f"{recipe.title.partition(':')[0]}: {one.name}"
        found += [] if barred else [Quoted(recipe, where, one.paper or {}, one.written.seeds, differs)]
    alike = [one.written.set for _, one in _papers_cells() if one.written.fusion == cell.config["fusion"]]
    structural = {"loss", "views", *(item.partition("=")[0] for items in alike for item in items)}
    apart = [len(structural.intersection(one.differs)) for one in found]
    return [one for one, count in zip(found, apart, strict=True) if one.numbers and count == min(apart)]


def claimed(one: Mapping[str, float], other: Mapping[str, float], metric: str) -> int:
    """1 where a paper's first numbers are the better, −1 where the second, 0 where they are equal or not there."""
    return int(np.sign(one[metric] - other[metric])) if metric in one and metric in other else 0


def beside(
    metrics: Sequence[str], quoted: Mapping[str, float], ours: Mapping[str, Score], seeds: int, alike: bool, meant: bool
) -> Row:
    """A paper's numbers, means of so many seeds, ours, and their differences if a comparison is meant.

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
        row |= {f"{name} difference": difference, f"{name} over folds %": score and score.over_folds}
    return row


@dataclass(frozen=True)
class RecipeRow:
    """One line of a recipe's table."""

    cell: str
    paper: Mapping[str, float]
    scores: Mapping[str, Score]  # empty: quoted, or not one run finished
    runs: int  # how many the cell needs; of a search, how many it chooses
    done: int
    conditions: str  # "session-out · val · 4class"
    quoted: bool = False
    differs: str = ""  # from the recipe's cell: what does, or why there is no comparison and no `paper`
    compared: Comparison | None = None  # the recipe's `tested` cell with this one
    holm_p: float | None = None  # over the table
    folders: Sequence[str] = ()
    chosen: Sequence[dict[str, Any]] = ()  # what a search chose, by fold and seed


def recipe_rows(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> list[RecipeRow]:
    """The rows of a recipe's table, in its order; cells without a finished run say so."""
    rows, finished = [], dict[str, tuple[CellScores, str]]()
    for cell in recipe.cells:
        mine, paper = runs[cell.name], cell.paper or {}
        tried, needed = len(cell.candidates), len(mine) // len(cell.candidates)
        mine = choose(mine[number::needed] for number in range(needed)) if cell.over else mine
        folders = [str(run.path) for run in mine]
        if not (done := [run for run in mine if run.finished]):
            why = f"no fold has all {tried} candidates finished" if cell.over else "no run finished"
            rows.append(RecipeRow(cell.name, paper, {}, needed, 0, why, folders=folders))
            continue
        ours = CellScores(done)
        if cell.test not in ours.tests:
            raise WrongUse(f"cell '{cell.name}': its model has no test '{cell.test}', only {', '.join(ours.tests)}")
        finished[cell.name] = ours, cell.test
        asked = [*paper, *SHOWN.values(), *ours.rated]
        found = {metric: ours.score(metric, cell.test) for metric in asked if metric in ours.metrics}
        meant = paper or cell.name == recipe.tested
        barred, others = differences(ours.runs, cell, recipe.models) if meant else ((), ())
        about, paper = ", ".join(others), {} if barred else paper
        about = f"not compared: {', '.join(barred)}" if barred else about
        chosen = chosen_rows(cell.name, tried, cell.over, ours.runs) if cell.over else ()
        about_runs = needed, len(done), ours.conditions
        rows.append(RecipeRow(cell.name, paper, found, *about_runs, differs=about, folders=folders, chosen=chosen))
    for other in recipe.quoted:
        about = "; ".join(filter(None, ["quoted by the paper", other.footnote]))
        rows.append(RecipeRow(other.name, other.paper, {}, 0, 0, about, quoted=True))
    if recipe.tested in finished:
        first = next(row for row in rows if row.cell == recipe.tested)
        tested = finished.pop(recipe.tested)
        rows = [replace(row, compared=_compared(tested, first, row, finished.get(row.cell))) for row in rows]
    family = holm([row.compared.p if row.compared else None for row in rows])
    return [replace(row, holm_p=p) for row, p in zip(rows, family, strict=True)]


def _compared(
    tested: tuple[CellScores, str], first: RecipeRow, row: RecipeRow, other: tuple[CellScores, str] | None
) -> Comparison | None:
    """The tested cell, tested in its way, with another or with a quoted number.

    `first` is the tested cell's row: only if nothing differs from the recipe, it is compared with quoted numbers.
    """
    (ours, test), metric = tested, "wa" if "wa" in row.paper else "ua"
    if not ours.classes or (other and not other[0].classes):
        return None
    if other:
        claim = claimed(first.paper, row.paper, metric)
        barred = any(one.differs.startswith("not compared") for one in (first, row))
        return None if barred else compare(ours, other[0], metric, claim, tests=(test, other[1]))
    if not row.quoted or metric not in row.paper or caveat(ours.results) or first.differs:
        return None
    return against_quoted(ours.score(metric, test), row.paper[metric], row.paper.get(f"{metric}_std"))


def recipe_table(recipe: Recipe, runs: Mapping[str, Sequence[Run]]) -> str:
    """The table that a sweep ends with: cell · paper · ours with two spreads · difference · runs · tests · protocol."""
    rows = recipe_rows(recipe, runs)
    papers = [*(cell.paper or {} for cell in recipe.cells), *(other.paper for other in recipe.quoted)]
    every = list(dict.fromkeys(metric for row in rows for metric in row.scores))
    metrics = list(dict.fromkeys(name for paper in papers for name in paper if not name.endswith("_std")))
    metrics = metrics or [metric for metric in every if " " not in metric][:2]
    rated = [metric for metric in every if " " in metric]  # no percent
    warning = caveat(run.result for cell in runs.values() for run in cell if run.finished)
    seeds = {cell.name: cell.written.seeds for cell in recipe.cells}
    tested, differing = any(row.compared for row in rows), any(row.differs for row in rows)
    lines, about = [], {row.conditions for row in rows}
    title = f"{recipe.title} ({', '.join(about)})" if len(about) == 1 else recipe.title  # a terminal is narrow
    for row in rows:
        of_paper = beside(metrics, row.paper, row.scores, seeds.get(row.cell, 1), not row.differs, not warning)
        shown = [name for name in of_paper if any(papers) or name.startswith("ours") or "over folds" in name]
        line: dict[str, Any] = {"cell": row.cell, **{name: of_paper[name] for name in shown}}
        if "macro_f1" in every:
            line["ours macro-F1 %"] = (f1 := row.scores.get("macro_f1")) and f1.over_seeds
        line |= {named(metric): (score := row.scores.get(metric)) and score.pooled for metric in rated}
        first = row.scores.get("ua") or row.scores.get("ccc valence")
        shape = f"{first.folds} × {first.seeds}" if first else ""
        line["runs"] = "" if row.quoted else shape if row.done == row.runs else f"{row.done} of {row.runs}"
        if tested:
            test = row.compared
            line |= {"tested cell’s difference": test and test.difference, "p": test and test.p}
            line |= {"Holm p": row.holm_p, "test": test and test.about}
        line |= {"differs in": row.differs} if differing else {}
        lines.append(line | ({"protocol": row.conditions} if len(about) > 1 else {}))
    pieces: list[str | None] = [tabulated(described("recipe", lines)) + "\n"]
    if picked := [line for row in rows for line in row.chosen]:
        pieces.append(f"chosen on dev, of so many that were tried:\n\n{tabulated(described('chosen', picked))}\n")
    pieces += [recipe.note, text_of("recipe", "note", {}), text_of("recipe", "tested", vars(recipe)) * tested, warning]
    return "\n".join([title, "", *filter(None, pieces)])
