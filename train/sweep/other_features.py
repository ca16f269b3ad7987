"""A recipe on other features than its own, and the features that it needs in the store."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from ser.cache.feature_name import parse_feature_name
from ser.cache.store import Store, open_store
from ser.errors import MissingRows, WrongUse

from ..data.protocols import corpora_of_protocol
from ..data.select import select_feature, select_features
from ..models import FUSIONS
from ..options import Experiment
from .recipe import Recipe


def on_features(recipe: Recipe, features: str) -> Recipe:
    """The recipe with each cell's features replaced by those of `features` of the same modality.

    `features` is as `--features` takes it, "A+B". A cell with views of a feature that is replaced
    is left out, and the note says so. Raises `WrongUse` for a feature that is named twice and if no
    cell is left, `MissingRows` for one that is not in the store.
    """
    cells = []
    for cell in recipe.cells:
        experiment = cell.experiment
        recipe_names = experiment.features.split("+")
        names = _replace_features(experiment, recipe_names, features)
        # Views are of audio, which comes first.
        if not experiment.views or names[0] in recipe_names:
            cells.append(replace(cell, experiment=replace(experiment, features="+".join(names))))

    if not cells:
        raise WrongUse(
            f"--features {features}: every cell of {recipe.name} trains on views of the features "
            "it names"
        )

    note = recipe.note
    if len(cells) < len(recipe.cells):
        note += " Cells with views of what is replaced are left out."
    return replace(recipe, cells=tuple(cells), note=note, title=f"{recipe.title}, on {features}")


def _replace_features(experiment: Experiment, recipe_names: list[str], features: str) -> list[str]:
    """The features of a cell, in the order of its fusion's inputs: of `features`, or as it is."""
    store = open_store(experiment.store)
    corpora = corpora_of_protocol(str(experiment.protocol), experiment.corpus)
    corpus = store.joined_manifest(corpora).corpus
    # Raises `MissingRows` for what is asked for; the recipe's own may be missing if replaced.
    select_features(store, features, corpus)

    by_modality = _by_modality(store, recipe_names, corpus)
    by_modality.update(_by_modality(store, features.split("+"), corpus))

    inputs: Sequence[str] = (experiment.fusion,)
    if experiment.fusion in FUSIONS:
        inputs = FUSIONS[experiment.fusion].inputs
    if not all(modality in by_modality for modality in inputs):
        return recipe_names
    return [by_modality[modality] for modality in inputs]


def _by_modality(store: Store, names: Sequence[str], corpus: str) -> dict[str, str]:
    """The features of each modality that the store holds, joined with +."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        with contextlib.suppress(MissingRows):
            modality = select_feature(store, name, corpus).modality
            grouped.setdefault(modality, []).append(name)
    return {modality: "+".join(group) for modality, group in grouped.items()}


def features_to_extract(recipe: Recipe) -> list[str]:
    """What `ser features` computes for the cells to train on, each once.

    Rows, which training pools as the cells say, or of a learnt sum the means of all layers.
    """
    names: dict[str, None] = {}
    for cell in recipe.cells:
        trained_on = f"{cell.experiment.features}+{cell.experiment.views}"
        for name in filter(None, trained_on.split("+")):
            names[_feature_to_extract(name)] = None
    return list(names)


def _feature_to_extract(name: str) -> str:
    parsed = parse_feature_name(name)
    options = list(parsed.variant)
    of_layers = any(option.startswith("layers=") for option in options)
    if parsed.reading.get("pool") == "mean" and of_layers:
        options.append("pool=mean")
    return f"{parsed.feature}:{','.join(options)}".rstrip(":")
