"""Which of the papers' cells some runs may be compared with, and what differs: the one place that decides it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ser.cache.spec import parse_name
from ser.train.data.features import read_name
from ser.train.data.splits import SHARE, corpora_of
from ser.train.models import FUSIONS
from ser.train.models.fusion import BOTH
from ser.train.recipe import Cell as RecipeCell
from ser.train.recipe import Recipe, read_recipe, recipe_names
from ser.train.run_folder import Run
from ser.train.settings import TrainingSettings, parse_settings

from .cell_scores import Score
from .cells import Cell
from .significance import against_quoted
from .tables import Row

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
def _recipes() -> tuple[Recipe, ...]:
    return tuple(read_recipe(name) for name in recipe_names())


@cache
def _structural(fusion: str) -> frozenset[str]:
    """What tells apart two cells of the papers with the same fusion, such as `queries`."""
    cells = [cell for recipe in _recipes() for cell in recipe.cells if cell.experiment.fusion == fusion]
    return frozenset(one.partition("=")[0] for cell in cells for one in cell.experiment.set) | {"loss", "views"}


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
    for recipe in _recipes():
        for one in (one for one in recipe.cells if one.test == test):
            barred, differs = differences(cell.runs, one, recipe.models)
            where = f"{recipe.title.partition(':')[0]}: {one.name}"
            found += [] if barred else [Quoted(recipe, where, one.paper or {}, one.written.seeds, differs)]
    apart = [len(_structural(cell.config["fusion"]).intersection(one.differs)) for one in found]
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
