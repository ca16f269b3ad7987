"""A recipe's cell that stands for as many cells as its features have layers."""

from collections.abc import Iterator
from dataclasses import replace

from ser.cache.store import open_store
from ser.errors import WrongUse

from ..data.protocols import corpora_of_protocol
from ..data.select import select_features
from ..solved_candidates import layer_numbers
from .recipe import Recipe, RecipeCell


def with_each_layer(recipe: Recipe) -> Recipe:
    """The recipe with a cell for each layer in the place of those that say `each_layer`.

    Raises `WrongUse` for features without several layers, `MissingRows` for those that the store
    does not have.
    """
    cells: list[RecipeCell] = []
    for cell in recipe.cells:
        if cell.each_layer:
            cells += _of_each_layer(cell)
        else:
            cells.append(cell)
    return replace(recipe, cells=tuple(cells))


def _of_each_layer(cell: RecipeCell) -> Iterator[RecipeCell]:
    experiment = cell.experiment
    store = open_store(experiment.store)
    corpora = corpora_of_protocol(str(experiment.protocol), experiment.corpus)
    corpus = store.joined_manifest(corpora).corpus
    selected, _ = select_features(store, experiment.features, corpus)

    records = {modality: selection.record for modality, selection in selected.items()}
    numbers = layer_numbers(records)
    if not numbers:
        raise WrongUse(
            f"cell '{cell.name}' compares layers, and {experiment.features} has no several; name "
            "them, such as --features whisper:layers=all,pool=mean"
        )
    for number in numbers:
        settings = (*experiment.set, f"layer={number}")
        of_layer = replace(experiment, set=settings)
        written = replace(cell.written, set=(*cell.written.set, f"layer={number}"))
        name = f"{cell.name} {number}"
        yield replace(cell, name=name, experiment=of_layer, written=written, each_layer=False)
