"""SUPERB: Yang et al., "SUPERB: Speech processing Universal PERformance Benchmark", Interspeech
2021.

A learned weighted sum of an encoder's layers, which stands before any model here, and the head of
SUPERB's emotion task. What the paper leaves open is as in s3prl, its authors' toolkit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..records import FeatureRecord
from .batch import Batch, vectors, visible
from .fusion import CommonSettings, Count, Dims, Dropout, Fusion, Positive, setting

Sums = Sequence[tuple[int, int]]  # (layers that are added up, their dimension) of each sum
SUMS = "layer_sums"  # the name of the front in a model, and so the beginning of its weights' names
S3PRL = "s3prl, downstream/emotion/config.yaml"


class LayerSums(nn.Module):
    """The front of a model whose rows hold layers side by side: Σ_l softmax(w)_l x_l of each sum
    (SUPERB §2).

    `sums` says by modality of how many layers and of which dimension each stretch of columns is;
    with one layer it stays as it is. w starts at zero, the mean of the layers, as in s3prl's
    Featurizer.
    """

    def __init__(self, sums: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        super().__init__()
        self.sums = {modality: [tuple(one) for one in found] for modality, found in sums.items()}
        self.weights = nn.ParameterDict(
            {
                f"{m} {i}": nn.Parameter(torch.zeros(n))
                for m, of in sums.items()
                for i, (n, _) in enumerate(of)
                if n > 1
            }
        )

    def forward(self, batch: Batch) -> Batch:
        """The batch with rows `[r, Σ layers · dim]` → `[r, Σ dim]`. Raises `WrongUse` for rows of
        another width.
        """
        found = dict(batch.inputs)
        for modality, sums in self.sums.items():
            widths, rows = [layers * dim for layers, dim in sums], []
            values, _ = visible(batch, modality, sum(widths))
            for number, ((layers, dim), x) in enumerate(
                zip(sums, values.split(widths, 1), strict=True)
            ):
                if layers > 1:
                    shares = self.weights[f"{modality} {number}"].softmax(0)
                    x = torch.einsum("l,rld->rd", shares, x.unflatten(1, (layers, dim)))
                rows.append(x)
            found[modality] = replace(batch.inputs[modality], values=torch.cat(rows, 1))
        return replace(batch, inputs=found)


def with_layer_sums(fusion: Fusion, sums: Mapping[str, Sums]) -> Fusion:
    """The fusion behind the `sums` of some modalities; itself if none adds up several layers.

    The model's own parts keep their names. A stage that trains one modality's part alone trains its
    sums with it.
    """
    sums = {m: of for m, of in sums.items() if any(layers > 1 for layers, _ in of)}
    if not sums:
        return fusion

    def behind(build: Callable[..., nn.Module], settings: Any, dims: Dims, *rest: Any) -> nn.Module:
        summed = {m: sum(dim for _, dim in of) for m, of in sums.items()}
        model = build(settings, {**dims, **summed}, *rest)
        model.add_module(SUMS, LayerSums(sums))
        model.register_forward_pre_hook(lambda module, taken: (getattr(module, SUMS)(*taken),))
        return model

    stages = tuple(
        replace(one, trains=(*one.trains, f"{SUMS}.weights.{one.output} "))
        if one.output in sums
        else one
        for one in fusion.stages
    )
    return replace(fusion, build=partial(behind, fusion.build), stages=stages, stacks=None)


def layer_shares(
    weights: Mapping[str, Tensor], features: Mapping[str, FeatureRecord]
) -> dict[str, float]:
    """What each layer counts in its sum, by its feature's name, of a trained model and the features
    of its config.
    """
    found: dict[str, float] = {}
    for modality, one in features.items():
        names = [part.feature for part in one.parts]
        for number, (layers, _) in enumerate(one.sums or []):
            of, names = names[:layers], names[layers:]
            if layers > 1:
                found |= zip(
                    of,
                    weights[f"{SUMS}.weights.{modality} {number}"].softmax(0).tolist(),
                    strict=True,
                )
    return found


@dataclass(frozen=True)
class SuperbSettings(CommonSettings):
    """SUPERB's emotion task, by s3prl's config."""

    epochs: Count = setting(
        270, f"{S3PRL}: 30,000 updates", "epochs; of the 4 classes of IEMOCAP, 111 updates each"
    )
    batch_size: Count = setting(32, f"{S3PRL}: 4 × 8 accumulated")
    lr: Positive = setting(1e-4, S3PRL)
    dropout: Dropout = setting(0.0, f"{S3PRL}: none", "dropout before the last layer")
    hidden: Count = setting(256, S3PRL, "width of the projection")


class Superb(nn.Module):
    """Projection of each frame, their mean, a linear layer; nothing between that is not linear.

    So it takes the mean of the frames in the place of the frames: W (Σ_t x_t / T) + b is the mean
    of W x_t + b, and a weighted sum of layers commutes with the mean too. Function and gradients
    are those of the head on frames.
    """

    def __init__(self, settings: SuperbSettings, dims: Dims, classes: int) -> None:
        super().__init__()
        self.dim = dims["audio"]
        self.projector, self.logits = (
            nn.Linear(self.dim, settings.hidden),
            nn.Linear(settings.hidden, classes),
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits `[n, K]`."""
        return {
            "logits": self.logits(self.dropout(self.projector(vectors(batch, "audio", self.dim))))
        }


FUSIONS = [
    Fusion("superb", "SUPERB §3, emotion recognition", SuperbSettings, ("audio",), "vector", Superb)
]
