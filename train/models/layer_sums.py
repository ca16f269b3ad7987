"""Learned sums of an encoder's layers, as a front that stands before any model here.

SUPERB: Yang et al., "SUPERB: Speech processing Universal PERformance Benchmark", Interspeech 2021,
§2. What the paper leaves open is as in s3prl, its authors' toolkit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..records import FeatureRecord
from .batch import Batch, visible_rows
from .fusion import Dims, Fusion, Stage
from .solved import SIDE_BY_SIDE

# Of each sum: how many layers are added up, and their dimension. One layer stays as it is.
Sums = Sequence[tuple[int, int]]

# The name of the front in a model, and so the beginning of its weights' names.
FRONT = "layer_sums"


class LayerSums(nn.Module):
    """The front of a model whose rows hold layers side by side (SUPERB §2).

    Σ_l softmax(w)_l x_l for each of the `sums` of a modality, which say in order what the columns
    of a row are. w starts at zero, the mean of the layers, as in s3prl's Featurizer.
    """

    def __init__(self, sums: Mapping[str, Sums]) -> None:
        super().__init__()
        self.sums = dict(sums)

        weights = {}
        for modality, modality_sums in sums.items():
            for number, (layers, _) in enumerate(modality_sums):
                if layers > 1:
                    weights[f"{modality} {number}"] = nn.Parameter(torch.zeros(layers))
        # torch sorts them by name.
        self.weights = nn.ParameterDict(weights)
        # The share of the layers that a sum leaves out of each batch of a training.
        self.dropout = 0.0

    def forward(self, batch: Batch) -> Batch:
        """The batch with rows `[r, Σ layers · dim]` → `[r, Σ dim]`.

        Raises `WrongUse` for rows of another width.
        """
        inputs = dict(batch.inputs)
        for modality in self.sums:
            summed = self._sum_layers(batch, modality)
            inputs[modality] = replace(batch.inputs[modality], values=summed)
        return replace(batch, inputs=inputs)

    def _sum_layers(self, batch: Batch, modality: str) -> Tensor:
        """One modality's rows `[r, Σ layers · dim]` → `[r, Σ dim]`."""
        sums = self.sums[modality]
        widths = [layers * dim for layers, dim in sums]
        values, _ = visible_rows(batch, modality, sum(widths))

        columns = []
        for number, x in enumerate(values.split(widths, 1)):
            layers, dim = sums[number]
            if layers > 1:
                shares = self._with_dropout(self.weights[f"{modality} {number}"]).softmax(0)
                x = torch.einsum("l,rld->rd", shares, x.unflatten(1, (layers, dim)))
            columns.append(x)
        return torch.cat(columns, 1)

    def _with_dropout(self, w: Tensor) -> Tensor:
        """In training w `[L]` with some at −∞: their layers have no part, the others have theirs.

        Layer dropout: Kondratyuk and Straka, "75 languages, 1 model", EMNLP 2019, §2.2. Where all
        would go, all stay.
        """
        if not self.training or not self.dropout:
            return w
        is_left_out = torch.rand(len(w)).to(w.device) < self.dropout
        if is_left_out.all():
            return w
        return w.masked_fill(is_left_out, -torch.inf)


def with_layer_sums(fusion: Fusion, sums: Mapping[str, Sums]) -> Fusion:
    """The fusion behind the `sums` of some modalities; itself if none adds up several layers.

    The model's own parts keep their names. A stage that trains one modality's part alone trains its
    sums with it.
    """
    learned = {}
    for modality, modality_sums in sums.items():
        if any(layers > 1 for layers, _ in modality_sums):
            learned[modality] = modality_sums
    if not learned:
        return fusion

    build = partial(_build_behind_sums, fusion.build, learned)
    stages = tuple(_with_sums_of(stage, learned) for stage in fusion.stages)
    return replace(fusion, build=build, stages=stages, stacks=None)


def _build_behind_sums(
    build: Callable[..., nn.Module],
    sums: Mapping[str, Sums],
    settings: Any,
    dims: Dims,
    *others: Any,
) -> nn.Module:
    """The model that `build` makes for the summed rows, with the sums in front of it."""
    summed_dims = dict(dims)
    for modality, modality_sums in sums.items():
        summed_dims[modality] = sum(dim for _, dim in modality_sums)

    model = build(settings, summed_dims, *others)
    model.add_module(FRONT, LayerSums(sums))
    model.register_forward_pre_hook(_sum_first)
    return model


def _sum_first(model: nn.Module, arguments: tuple[Batch]) -> tuple[Batch]:
    """Before a forward pass of the model: its batch, with the layers summed."""
    [batch] = arguments
    front = getattr(model, FRONT)
    return (front(batch),)


def _with_sums_of(stage: Stage, sums: Mapping[str, Sums]) -> Stage:
    """The stage, which trains the sums of the modality too whose head it trains."""
    if stage.output not in sums:
        return stage
    return replace(stage, trains=(*stage.trains, f"{FRONT}.weights.{stage.output} "))


def layer_shares(
    weights: Mapping[str, Tensor], features: Mapping[str, FeatureRecord]
) -> dict[str, float]:
    """What each layer counts in its sum, from 0 to 1, by the name of its feature.

    1 for the layer that a solved model sees, and 0 for its others; none where it sees all. Of a
    trained model's `weights` and the `features` of its config, by modality.
    """
    shares: dict[str, float] = {}
    if "layer" in weights and int(weights["layer"]) == SIDE_BY_SIDE:
        return shares
    for modality, feature in features.items():
        names = [part.feature for part in feature.parts]
        first = 0
        for number, (layers, _) in enumerate(feature.sums or []):
            if layers > 1:
                counted = _counted(weights, f"{modality} {number}", layers)
                shares.update(zip(names[first : first + layers], counted, strict=True))
            first += layers
    return shares


def _counted(weights: Mapping[str, Tensor], sum_name: str, layers: int) -> list[float]:
    """What each layer of one sum counts."""
    if "layer" in weights:
        chosen = int(weights["layer"])
        return [float(layer == chosen) for layer in range(layers)]
    counted: list[float] = weights[f"{FRONT}.weights.{sum_name}"].softmax(0).tolist()
    return counted
