"""The papers' numbers: which of them may stand beside a cell, and what differs there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ser.cache.feature_name import parse_feature_name
from ser.train.data.dev_part import DEV_SHARE
from ser.train.data.protocols import corpora_of_protocol
from ser.train.models import FUSIONS
from ser.train.models.fusion import BOTH
from ser.train.run_folder import Run
from ser.train.scores.intervals import Ends
from ser.train.scores.pooling import Score
from ser.train.scores.tests import against_quoted
from ser.train.settings import TrainingSettings, parse_settings, setting_name
from ser.train.solved_candidates import refits_by_default
from ser.train.sweep.recipe import Recipe, RecipeCell, read_recipe, recipe_names

from .cell import Cell
from .formats import DIFFERENCE, PERCENT_WITH_DEVIATION
from .table import Column, Row

# Folds of IEMOCAP, which all three papers are about: with fewer, other utterances are tested.
FOLDS = {"session-out": 5, "train1234-test5": 1, "random-70-20-10": 1}

MAIN = ("ua", "wa")  # the metrics that papers give

Pairs = Mapping[str, tuple[Any, Any]]  # ours and the recipe's, by name


class Quoted(NamedTuple):
    """A paper's cell that some runs may stand beside."""

    recipe: Recipe
    paper: str  # such as "MSMSER"
    table: str  # such as "Table 2"
    cell: str  # such as "Full"
    numbers: Mapping[str, float]  # in percent: `ua`, `wa`, recalls by class, each with `_std`
    seeds: int  # of which the numbers are the means
    differs: tuple[str, ...]  # what is not as there in the runs

    def of(self, metrics: Sequence[str]) -> tuple[tuple[str, float], ...]:
        """The numbers of these metrics, with their deviations."""
        pairs = []
        for name, number in self.numbers.items():
            if name.removesuffix("_std") in metrics:
                pairs.append((name, number))
        return tuple(pairs)

    @property
    def numbers_beside_it(self) -> int:
        """How many cells of its table have numbers."""
        return sum(cell.paper is not None for cell in self.recipe.cells)

    @property
    def place(self) -> str:
        """Where in the paper: "Table 2: Full"."""
        return f"{self.table}: {self.cell}"

    @property
    def source(self) -> str:
        """Where it stands: "MSMSER, Table 2: Full"."""
        return f"{self.paper}, {self.place}"

    @property
    def described(self) -> str:
        """Where it stands, and what differs from it."""
        if not self.differs:
            return self.source
        return f"{self.source}; differs in {', '.join(self.differs)}"


@cache
def _papers_cells() -> list[tuple[Recipe, RecipeCell]]:
    cells = []
    for name in recipe_names():
        recipe = read_recipe(name)
        cells += [(recipe, cell) for cell in recipe.cells]
    return cells


def quoted_for(cell: Cell, test: str = "both") -> list[Quoted]:
    """The papers' cells with numbers that these runs may stand beside, tested in that way.

    They are in the recipes' order. Of cells that differ in a setting alone, such as `queries`,
    those that are nearest.
    """
    candidates = []
    # What recipes vary between the cells of this fusion.
    structural = {"loss", "views"}
    for recipe, other in _papers_cells():
        if other.written.fusion == cell.config.fusion:
            structural.update(setting.partition("=")[0] for setting in other.written.set)
        if other.test != test:
            continue

        barring, differing = differences(cell.runs, other, recipe.models)
        if barring:
            continue
        paper, _, table = recipe.title.partition(":")[0].partition(", ")
        candidates.append(
            Quoted(
                recipe=recipe,
                paper=paper,
                table=table,
                cell=other.name,
                numbers=other.paper or {},
                seeds=other.written.seeds,
                differs=differing,
            )
        )

    distances = [len(structural.intersection(quoted.differs)) for quoted in candidates]
    least = min(distances, default=0)
    nearest = []
    for quoted, distance in zip(candidates, distances, strict=True):
        if quoted.numbers and distance == least:
            nearest.append(quoted)
    return nearest


def differences(
    runs: Sequence[Run], cell: RecipeCell, models: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What tells finished runs of one configuration from a recipe's cell as written, by name.

    The first bars a comparison: another fusion, feature, target, label policy, corpus, test part,
    or shuffled labels. The second is only named: selection, dev part, checkpoint (`models` has the
    recipe's, by feature), seeds, a setting.
    """
    barring = _unequal(_what_bars(runs, cell))
    if barring:
        return barring, ()

    named = {
        **_what_is_named(runs, cell),
        **_settings(runs, cell),
        **_checkpoints(runs, models),
    }
    differing = _unequal(named)
    if cell.differs:
        differing = (cell.differs, *differing)
    return (), differing


def _unequal(pairs: Pairs) -> tuple[str, ...]:
    return tuple(name for name, (ours, written) in pairs.items() if ours != written)


def _what_bars(runs: Sequence[Run], cell: RecipeCell) -> Pairs:
    """What must be alike, ours and the recipe's."""
    config = runs[0].config
    written = cell.written

    fusion = config.fusion
    if written.fusion in BOTH:  # at either level
        fusion = fusion.partition(":")[0]

    used: set[str] = set()
    for feature in config.features.values():
        used.update(feature.read_name.split("+"))

    protocol, colon, file = written.protocol.partition(":")
    written_protocol = f"{protocol}:{Path(file).name}" if colon else protocol
    written_corpora = corpora_of_protocol(written.protocol, written.corpus) or ""

    left_out = config.provenance.left_out
    folds = {run.config.fold for run in runs}
    written_shuffles = "shuffle_labels=true" in written.set
    return {
        "fusion": (fusion, written.fusion),
        "features": (_features(used), _features(written.features.split("+"))),
        "target": (config.target, written.target),
        "labels": (config.labels.policy, Path(written.labels).name),
        "protocol": (config.protocol, written_protocol),
        "corpora": (_several(config.corpus), _several(written_corpora)),
        "only": (config.only, written.only),
        "limit": (config.limit, written.limit),
        "allow_missing": (any("quarantined" in why for why in left_out), False),
        "folds": (len(folds) < FOLDS.get(protocol, 0), False),
        "shuffle_labels": (config.training["shuffle_labels"], written_shuffles),
        "utterances": (_utterances(runs[0], cell), cell.utterances),
    }


def _features(names: Sequence[str] | set[str]) -> set[frozenset[str]]:
    return {_feature(name) for name in names}


def _feature(name: str) -> frozenset[str]:
    """A feature with its options in any order.

    "bert:layer=9@3f2a" is {"bert", "layer=9", "pool=mean"}.
    """
    feature, options, read, _ = parse_feature_name(name)
    ways_of_reading = {"pool": "mean", **read}
    return frozenset(
        {feature, *options, *(f"{way}={value}" for way, value in ways_of_reading.items())}
    )


def _several(corpora: str) -> set[str]:
    """The names of several corpora; none of a single one, which may have any."""
    return {*corpora.split("+")} if "+" in corpora else set()


def _utterances(run: Run, cell: RecipeCell) -> int | None:
    """Those of all parts; as the recipe says where it says nothing, and of generated speech."""
    if cell.utterances is None or run.result.synthetic:
        return cell.utterances
    n = sum(run.result.parts.values())
    return n or cell.utterances


def _what_is_named(runs: Sequence[Run], cell: RecipeCell) -> Pairs:
    """What may be otherwise beside the settings, ours and the recipe's."""
    config = runs[0].config
    written = cell.written

    seeds = {run.config.seed for run in runs}
    views = [view.read_name for view in config.views]
    written_views = [view for view in written.views.split("+") if view]
    # An ASR's, not the corpus's own.
    other_transcripts = "text" in config.features and config.provenance.transcripts is not None
    return {
        "select": (config.select, written.select),
        "loss": (config.loss, written.loss),
        "precision": (
            config.precision,
            written.precision.replace("auto", "float32"),
        ),
        "seeds": (len(seeds), written.seeds),
        "transcripts": (other_transcripts, False),
        "views": (_features(views), _features(written_views)),
    }


def _settings(runs: Sequence[Run], cell: RecipeCell) -> Pairs:
    """The values that our runs have of each setting, and the recipe's.

    Ours is one value where it was not searched.
    """
    fusion = FUSIONS[runs[0].config.fusion]
    settings, training = parse_settings(fusion, tuple(cell.written.set), cell.written.epochs)
    written = {**asdict(settings), **asdict(training)}
    named = {setting_name(text) for text in cell.written.set}
    if "refit" not in named and refits_by_default(fusion, cell.written.select):
        written["refit"] = True

    # A config need not name the settings that came later.
    defaults = {**asdict(fusion.settings()), **asdict(TrainingSettings())}
    ours: dict[str, set[Any]] = {}
    for run in runs:
        values = {**defaults, **run.config.settings, **run.config.training}
        for key in written:
            ours.setdefault(key, set()).add(values[key])
    if written["dev"] == "auto" and ours["dev"] == {DEV_SHARE}:  # a config names what auto meant
        ours["dev"] = {"auto"}

    pairs = {}
    for key, value in written.items():
        if key not in fusion.unused:
            pairs[key] = (ours[key], {value})
    return pairs


def _checkpoints(runs: Sequence[Run], models: Mapping[str, str]) -> Pairs:
    """The checkpoint of each feature whose `models` the recipe names.

    A local copy is known by its folder's name.
    """
    pairs = {}
    provenance = runs[0].config.provenance
    for modality, feature in runs[0].config.features.items():
        name = feature.feature.partition(":")[0]
        if name in models:
            specs = provenance.feature_specs(modality)
            first_spec = specs[0] if specs else {}
            model = first_spec.get("provenance", {}).get("model", "unknown")
            pairs[f"checkpoint of {name}"] = (Path(model).name, Path(models[name]).name)
    return pairs


def claimed(first: Mapping[str, float], second: Mapping[str, float], metric: str) -> int:
    """1 where a paper's first numbers are the better, −1 where the second.

    0 where they are equal or not there.
    """
    if metric not in first or metric not in second:
        return 0
    return int(np.sign(first[metric] - second[metric]))


def claimed_better(first: Cell, second: Cell, metric: str) -> int:
    """1 where a paper that has both cells claims the first is better, −1 the second.

    0 where none does, or where papers disagree.
    """
    claims = set()
    for quoted in quoted_for(first):
        for other in quoted_for(second):
            both_give_it = metric in quoted.numbers and metric in other.numbers
            if quoted.recipe == other.recipe and both_give_it:
                claims.add(claimed(quoted.numbers, other.numbers, metric))
    return claims.pop() if len(claims) == 1 else 0


def beside_columns(metrics: Sequence[str]) -> list[Column]:
    """The columns of `beside`."""
    columns = []
    for metric in metrics:
        name = _short_name(metric)
        columns += [
            Column(f"paper {name} %", PERCENT_WITH_DEVIATION),
            Column(f"ours {name} %", PERCENT_WITH_DEVIATION),
            Column(f"{name} difference", DIFFERENCE),
            Column(f"{name} over folds %", PERCENT_WITH_DEVIATION),
        ]
    return columns


def beside(
    metrics: Sequence[str],
    quoted: Mapping[str, float],
    ours: Mapping[str, Score],
    seeds: int,
    alike: bool,
    meant: bool,
) -> Row:
    """A paper's numbers, ours, and their differences if a comparison is meant.

    The paper's are means of so many seeds. A difference has its interval if the two are `alike`:
    nothing but chance tells them apart.
    """
    row: Row = {}
    for metric in metrics:
        name = _short_name(metric)
        score = ours.get(metric)
        number = quoted.get(metric)
        deviation = quoted.get(f"{metric}_std")

        difference: Ends | None = None
        if meant and number is not None and score is not None:
            difference = (score.pooled - number, None, None)
            if alike:
                difference = against_quoted(score, number, deviation, seeds).difference

        row[f"paper {name} %"] = None if number is None else (number, deviation)
        row[f"ours {name} %"] = score.over_seeds if score else None
        row[f"{name} difference"] = difference
        row[f"{name} over folds %"] = score.over_folds if score else None
    return row


def _short_name(metric: str) -> str:
    return metric.upper() if metric in ("ua", "wa") else metric
