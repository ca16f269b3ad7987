"""Models that a solver fits at once, with no training loop: what `linear` and `svm` share.

They see one vector per utterance, of all modalities side by side, and of several layers of an
encoder one, which `fit_solved` chooses with the strength of the penalty. Axes:

    n  utterances     D  columns of all modalities and layers     d  columns of what is seen
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .batch import Batch, vectors
from .fusion import OURS, Depth, Dims, Fusion, Positive, setting

# By modality, in order what the columns of a row are: (layers of one feature, their dimension).
Layers = Mapping[str, Sequence[tuple[int, int]]]

# Fits the model's weights with a strength C of the penalty.
Solve = Callable[[float], None]

# What the setting `layer` may be.
Layer = Depth | Literal["dev", "all"]
# What stands for a value that the dev part chooses.
BY_DEV = "dev"
# All layers side by side: as a setting, and in a model.
ALL_LAYERS: Final = "all"
SIDE_BY_SIDE = -1

# A class that is not in the training part: its probability is about 1e-13.
ABSENT = -30.0

HELP_OF_LAYER = (
    "of layers=all or a range: the layer that is used; all: side by side; dev: the one with the "
    "lowest loss there"
)

# Settings of the training loop, which is not used.
OF_THE_LOOP = (
    "epochs",
    "batch_size",
    "lr",
    "weight_decay",
    "dropout",
    "reduction",
    "clip_norm",
    "patience",
    "select_score",
    "focal_gamma",
    "sampler",
)


@dataclass(frozen=True)
class SolvedSettings:
    """What models that a solver fits have in common; all ours."""

    C: Positive | Literal["dev"] = setting(
        BY_DEV,
        OURS,
        "a small C is a strong penalty: ½|w|² + C × the sum of the losses; dev: the one with the "
        "lowest loss there, and 1 where no part chooses",
    )
    layer: Layer = setting(BY_DEV, OURS, HELP_OF_LAYER)
    standardise_audio: bool = setting(True, OURS)
    standardise_text: bool = setting(True, OURS)

    @property
    def batch_size(self) -> int:
        """Utterances that are predicted at once."""
        return 16


@dataclass(frozen=True)
class Truth:
    """What n utterances are said to be."""

    shares: np.ndarray | None = None
    """Shares of the classes `[n, K]`, which may be weighted; None where no class is learnt."""
    ratings: np.ndarray | None = None
    """From -1 to 1 `[n, D]`; None where none are learnt."""


class SolvedModel(nn.Module):
    """Outputs `[n, K]` of the columns of all modalities side by side, of one layer or of all.

    `strengths` are what is tried for C, the strongest penalty first. `choices` says how many layers
    there are to choose from: 1 where nothing is to be chosen.
    """

    strengths: tuple[float, ...] = ()
    layer: Tensor
    first_columns: Tensor
    columns_per_layer: Tensor

    def __init__(self, dims: Dims, layers: Layers) -> None:
        super().__init__()
        self.dims = dict(dims)

        self.side_by_side = False
        # Column j of what is seen is column `first + layer × per layer` of all.
        first: list[Tensor] = []
        per_layer: list[Tensor] = []
        self.choices = 1
        start = 0
        for modality, dim in dims.items():
            for count, width in layers.get(modality) or [(1, dim)]:
                self.choices = max(self.choices, count)
                first.append(start + torch.arange(width))
                per_layer.append(torch.full((width,), width if count > 1 else 0))
                start += count * width
        self.register_buffer("first_columns", torch.cat(first), persistent=False)
        self.register_buffer("columns_per_layer", torch.cat(per_layer), persistent=False)
        if self.choices > 1:
            self.register_buffer("layer", torch.tensor(0))
            self.register_load_state_dict_post_hook(_check_layer)

    @property
    def width(self) -> int:
        """How many columns are seen, d."""
        columns = self.columns
        return sum(self.dims.values()) if columns is None else len(columns)

    @property
    def columns(self) -> Tensor | None:
        """Which of the D columns are seen, int64 `[d]`; None for all."""
        if self.choices == 1 or self.side_by_side:
            return None
        return self.first_columns + self.layer * self.columns_per_layer

    def choose_layer(self, number: int) -> None:
        """See that layer, counted from 0 among those that there are, or all `SIDE_BY_SIDE`."""
        if self.choices > 1:
            self.layer.fill_(number)
            # A graph of the model has no branch that depends on a tensor.
            self.side_by_side = number == SIDE_BY_SIDE
            self.resize()

    def resize(self) -> None:
        """Make room for as many weights as there are columns to see."""

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **more: Any) -> Any:
        """As torch's, for whichever layer is seen."""
        if "layer" in state_dict:
            self.choose_layer(int(state_dict["layer"]))
        return super().load_state_dict(state_dict, *args, **more)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits, or ratings, `[n, K]`."""
        of_modalities = []
        for modality, dim in self.dims.items():
            of_modalities.append(vectors(batch, modality, dim))
        x = torch.cat(of_modalities, 1)
        columns = self.columns
        if columns is not None:
            x = x.index_select(1, columns)
        return {"logits": self.outputs(x)}

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs `[n, K]` of what is seen `[n, d]`."""
        raise NotImplementedError

    def solver(self, x: np.ndarray, truth: Truth) -> Solve:
        """What fits the model to rows float64 `[n, d]` with their truth."""
        raise NotImplementedError

    def calibrate(self, x: Tensor, labels: np.ndarray) -> None:
        """Scale the outputs for rows float32 `[n, d]` of the part that chooses, classes `[n]`."""


def _check_layer(model: nn.Module, _: object) -> None:
    """Raise `ValueError` for a layer that is not there."""
    assert isinstance(model, SolvedModel)
    if not SIDE_BY_SIDE <= int(model.layer) < model.choices:
        raise ValueError(f"layer {int(model.layer)} of {model.choices}")


def with_layer_choice(fusion: Fusion, layers: Layers) -> Fusion:
    """The fusion on features of several layers, of which it sees one."""
    return replace(fusion, build=partial(fusion.build, layers=layers))


def in_every_class(
    of_present: np.ndarray, present: np.ndarray, classes: int, absent: float
) -> np.ndarray:
    """Rows `[P, …]` of the classes that are `present` `[P]` among rows `[K, …]` of all."""
    of_all = np.full((classes, *of_present.shape[1:]), absent)
    of_all[present] = of_present
    return of_all


def one_label_each(x: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows `[m, d]`, a class of each `[m]`, and its weight `[m]`, for shares `[n, K]`.

    A row whose share goes to several classes stands there once for each: so the weighted
    cross-entropy is that of the shares.
    """
    rows, labels = np.nonzero(shares)
    weights = shares[rows, labels]
    if len(rows) == len(x):
        return x, labels, weights
    return x[rows], labels, weights
