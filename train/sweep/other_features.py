"""A recipe on other features than its own, and the features that it needs in the store."""

import contextlib
from dataclasses import replace

from ser.cache.feature_name import parse_feature_name
from ser.cache.store import open_store
from ser.errors import MissingRows, WrongUse

from ..data.protocols import corpora_of
from ..data.select import select_feature, select_features
from ..models import FUSIONS
from .recipe import Recipe


def on_features(recipe: Recipe, features: str) -> Recipe:
    """The recipe with each cell's features replaced by those of `features`, "A+B", that have the
    same modality.

    A cell with views of a feature that is replaced is left out, and the note says so. Raises
    `WrongUse` for a feature that is named twice and if no cell is left, `MissingRows` for one that
    is not in the store.
    """
    cells = []
    for cell in recipe.cells:
        experiment, own = cell.experiment, cell.experiment.features.split("+")
        store = open_store(experiment.store)
        corpus = store.joined_manifest(
            corpora_of(str(experiment.protocol), experiment.corpus)
        ).corpus
        select_features(store, features, corpus)
        joined: dict[str, str] = {}  # the features of each modality
        for names in (own, features.split("+")):
            by_modality: dict[str, list[str]] = {}
            for name in names:
                with contextlib.suppress(
                    MissingRows
                ):  # of the recipe's own, it may be one that is replaced
                    by_modality.setdefault(select_feature(store, name, corpus).modality, []).append(
                        name
                    )
            joined |= {modality: "+".join(group) for modality, group in by_modality.items()}
        inputs = (
            FUSIONS[experiment.fusion].inputs
            if experiment.fusion in FUSIONS
            else (experiment.fusion,)
        )
        names = [joined[modality] for modality in inputs] if joined.keys() >= set(inputs) else own
        if not experiment.views or names[0] in own:  # views are of audio, which comes first
            cells.append(replace(cell, experiment=replace(experiment, features="+".join(names))))
    if not cells:
        raise WrongUse(
            f"--features {features}: every cell of {recipe.name} trains on views of the features it names"
        )
    left_out = (
        " Cells with views of what is replaced are left out."
        if len(cells) < len(recipe.cells)
        else ""
    )
    return replace(
        recipe,
        cells=tuple(cells),
        note=recipe.note + left_out,
        title=f"{recipe.title}, on {features}",
    )


def features_to_extract(recipe: Recipe) -> list[str]:
    """What `ser features` computes for the cells to train on: rows, pooled in training, or the
    means of layers.
    """
    trained_on = "+".join(
        f"{cell.experiment.features}+{cell.experiment.views}" for cell in recipe.cells
    )
    names: dict[str, None] = {}
    for name in filter(None, trained_on.split("+")):
        feature, options, read, _ = parse_feature_name(name)
        if read.get("pool") == "mean" and any(option.startswith("layers=") for option in options):
            options.append("pool=mean")
        names[f"{feature}:{','.join(options)}".rstrip(":")] = None
    return list(names)
