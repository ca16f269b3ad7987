"""Which of the papers' cells some runs may be compared with, and what differs: the one place that decides it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ser.train.models import FUSIONS
from ser.train.models.fusion import BOTH
from ser.train.recipe import Cell as RecipeCell
from ser.train.recipe import Recipe, read_recipe, recipe_names
from ser.train.run_folder import Run
from ser.train.settings import parse_settings
from ser.train.splits import SHARE

from .cells import Cell

Spread = tuple[float, float | None]  # mean, deviation
# Of IEMOCAP, which all three papers are about: with fewer, other utterances are tested.
FOLDS = {"session-out": 5, "train1234-test5": 1, "random-70-20-10": 1}


@dataclass(frozen=True)
class Differences:
    """What tells runs from a cell of a recipe, by name: with anything of `barred` they are no match for it at all."""

    barred: tuple[str, ...]
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"not compared: {', '.join(self.barred)}" if self.barred else ", ".join(self.others)


@dataclass(frozen=True)
class Quoted:
    """A paper's cell: where it stands and its numbers in percent (`ua`, `wa`, recalls by class, each with `_std`).

    `differs` names what is not as there in the runs that it was found for.
    """

    recipe: Recipe
    name: str
    numbers: Mapping[str, float]
    differs: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Such as "MSMSER, Table 2: Full"."""
        return f"{self.recipe.title.partition(':')[0]}: {self.name}"

    @property
    def seeds(self) -> int:
        """That its numbers are the mean of."""
        return next((cell.paper_seeds for cell in self.recipe.cells if cell.name == self.name), 1)

    @property
    def described(self) -> str:
        """Where it stands, and what differs from it."""
        return f"{self.where}; differs in {', '.join(self.differs)}" if self.differs else self.where


def quoted_spread(numbers: Mapping[str, float], metric: str) -> Spread | None:
    """A paper's mean and standard deviation, as far as it gives them."""
    return (numbers[metric], numbers.get(f"{metric}_std")) if metric in numbers else None


@cache
def _recipes() -> tuple[Recipe, ...]:
    return tuple(read_recipe(name) for name in recipe_names())


@cache
def _structural(fusion: str) -> frozenset[str]:
    """What tells apart two cells of the papers with the same fusion, such as `queries`."""
    cells = [cell for recipe in _recipes() for cell in recipe.cells if cell.experiment.fusion == fusion]
    return frozenset(one.partition("=")[0] for cell in cells for one in cell.experiment.set) | {"loss", "views"}


def _feature(name: str, pool: str = "mean") -> frozenset[str]:
    """A feature with its options in any order: "bert:layer=9@3f2a" is {"bert", "layer=9", "pool=mean"}."""
    feature, _, options = name.strip().partition("@")[0].partition(":")
    found = {feature, *filter(None, options.split(","))}
    return frozenset(found if "pool=" in options else {*found, f"pool={pool}"})


def differences(runs: Sequence[Run], cell: RecipeCell, models: Mapping[str, str]) -> Differences:
    """What tells these finished runs of one configuration from a recipe's cell as it is written.

    Another fusion, feature, label policy, corpus, test part, or shuffled labels: another experiment. Anything else, the
    selection, dev part, checkpoint (`models` names the recipe's, by feature), seeds or a setting, is only told.
    """
    config, asked = runs[0].config, cell.written
    protocol, colon, file = asked.protocol.partition(":")
    features, provenance = config["features"], config["provenance"]
    pairs: dict[str, tuple[Any, Any]] = {
        "fusion": (config["fusion"].partition(":")[0] if asked.fusion in BOTH else config["fusion"], asked.fusion),
        "features": (
            {_feature(one["feature"], one["pool"]) for one in features.values()},
            {_feature(name) for name in asked.features.split("+")},
        ),
        "labels": (config["labels"]["policy"], Path(asked.labels).name),
        "protocol": (config["protocol"], f"{protocol}:{Path(file).name}" if colon else protocol),
        "only": (config.get("only"), getattr(asked, "only", None)),
        "limit": (config["limit"], asked.limit),
        "allow_missing": (any("quarantined" in why for why in provenance.get("left_out", ())), False),
        "folds": (len({run.config["fold"] for run in runs}) < FOLDS.get(protocol, 0), False),
        "shuffle_labels": (config["training"]["shuffle_labels"], "shuffle_labels=true" in asked.set),
        "utterances": ((cell.utterances and _utterances(runs[0])) or cell.utterances, cell.utterances),
    }
    if barred := tuple(name for name, (ours, theirs) in pairs.items() if ours != theirs):
        return Differences(barred)
    fusion = FUSIONS[config["fusion"]]
    settings, training = parse_settings(fusion, asked.set, asked.epochs)
    own = {**config["settings"], **config["training"]}
    theirs = {key: value for key, value in (asdict(settings) | asdict(training)).items() if key not in fusion.unused}
    if theirs["dev"] == "auto" and own["dev"] == SHARE:  # a config names what auto meant
        own["dev"] = "auto"
    views = {_feature(one["feature"], one["pool"]) for one in config.get("views", ())}
    pairs = {
        **{key: (config.get(key, getattr(asked, key)), getattr(asked, key)) for key in ("select", "loss", "precision")},
        "seeds": (len({run.config["seed"] for run in runs}), asked.seeds),
        "views": (views, {_feature(name) for name in asked.views.split("+") if name}),
        **{key: (own.get(key, value), value) for key, value in theirs.items()},  # an earlier ser had fewer settings
    }
    for modality, one in features.items():
        name = one["feature"].partition(":")[0]
        model = provenance.get("specs", {}).get(modality, {}).get("provenance", {}).get("model", "unknown")
        if name in models:  # a local copy is known by its folder's name
            pairs[f"checkpoint of {name}"] = Path(model).name, Path(models[name]).name
    others = tuple(name for name, (ours, theirs) in pairs.items() if ours != theirs)
    return Differences((), (*filter(None, [cell.differs]), *others))


def _utterances(run: Run) -> int:
    """Of its corpus under its labels, as far as they are in a part; 0 of generated speech and of an earlier ser."""
    return 0 if run.result["synthetic"] else sum(run.result.get("parts", {}).values())


def quoted_for(cell: Cell, test: str = "both") -> list[Quoted]:
    """The papers' cells with numbers that these runs may stand beside, tested in that way, in the recipes' order.

    Of cells that differ in a setting alone, such as `queries`, those that are nearest.
    """
    found = []
    for recipe in _recipes():
        for one in recipe.cells:
            if one.test == test and not (unlike := differences(cell.runs, one, recipe.models)).barred:
                found.append(Quoted(recipe, one.name, one.paper or {}, unlike.others))
    apart = [len(_structural(cell.config["fusion"]).intersection(one.differs)) for one in found]
    return [one for one, count in zip(found, apart, strict=True) if one.numbers and count == min(apart)]


def others_quoted(cells: Sequence[Cell]) -> list[Quoted]:
    """What the papers quote of other systems, for the recipes of which the report has a cell."""
    held = {quoted.recipe.name for cell in cells for quoted in quoted_for(cell)}
    return [Quoted(one, *pair) for one in _recipes() if one.name in held for pair in one.quoted.items()]
