"""The linear model that any other one has to beat: scikit-learn's, on the same vectors.

Logistic regression of the classes, ridge regression of ratings.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .fusion import BOTH, OURS, Dims, Fusion, setting
from .row_space import RowSpace
from .solved import (
    ABSENT,
    ALL_LAYERS,
    HELP_OF_LAYER,
    OF_THE_LOOP,
    Layer,
    Layers,
    Solve,
    SolvedModel,
    SolvedSettings,
    Truth,
    in_every_class,
    one_label_each,
)

# Steps of L-BFGS at most: far more than it needs.
MAX_STEPS = 10_000


@dataclass(frozen=True)
class LinearSettings(SolvedSettings):
    """Of logistic and ridge regression.

    All layers side by side: on dev parts of EmoDB, Whisper base, that has 95.6 % UA, and the layer
    that another dev part chooses 93.4 (`docs/honest-evaluation.md`).
    """

    layer: Layer = setting(ALL_LAYERS, OURS, HELP_OF_LAYER)


class Linear(SolvedModel):
    """Outputs x W^T + b, with ½|W|² + C Σ loss at its least.

    Classes: multinomial logistic regression, the loss being the cross-entropy. Ratings: ridge
    regression, the loss being half the squared error, so that its alpha is 1 / C. b is not
    penalised. The numbers are those of scikit-learn's `LogisticRegression` and `Ridge`.
    """

    strengths = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)

    def __init__(
        self, settings: LinearSettings, dims: Dims, outputs: int, layers: Layers | None = None
    ) -> None:
        super().__init__(dims, layers or {})
        self.weight = nn.Parameter(torch.zeros(outputs, self.width))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def resize(self) -> None:
        """As `SolvedModel.resize`."""
        if self.weight.shape[1] != self.width:
            empty = self.weight.new_zeros(len(self.weight), self.width)
            self.weight = nn.Parameter(empty, self.weight.requires_grad)

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs `[n, K]`."""
        return nn.functional.linear(x, self.weight, self.bias)

    def solver(self, x: np.ndarray, truth: Truth) -> Solve:
        """As `SolvedModel.solver`; classes and ratings each by themselves."""
        space = RowSpace.of(x)

        def solve(strength: float) -> None:
            fitted = []
            if truth.shares is not None:
                fitted.append(_logistic(space.coordinates, truth.shares, strength))
            if truth.ratings is not None:
                fitted.append(_ridge(space.coordinates, truth.ratings, strength))
            weight = np.concatenate([weight for weight, _ in fitted])
            bias = np.concatenate([bias for _, bias in fitted])
            with torch.no_grad():
                self.weight.copy_(torch.from_numpy(space.weights(weight)))
                self.bias.copy_(torch.from_numpy(bias))

        return solve


def _logistic(x: np.ndarray, shares: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """W `[K, d]` and b `[K]` of logistic regression on shares of the classes `[n, K]`."""
    from sklearn.linear_model import LogisticRegression

    rows, labels, weights = one_label_each(x, shares)
    # Where all are 1 the fit is the same, and no step sums them.
    unequal = None if (weights == 1).all() else weights
    fitted = LogisticRegression(C=strength, max_iter=MAX_STEPS).fit(rows, labels, unequal)
    weight = fitted.coef_
    bias = fitted.intercept_
    if len(fitted.classes_) == 2:
        # One row z for both: softmax(-z/2, z/2) is the sigmoid of z.
        weight = np.concatenate([-weight / 2, weight / 2])
        bias = np.concatenate([-bias / 2, bias / 2])

    classes = shares.shape[1]
    return (
        in_every_class(weight, fitted.classes_, classes, 0.0),
        in_every_class(bias, fitted.classes_, classes, ABSENT),
    )


def _ridge(x: np.ndarray, ratings: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """W `[D, d]` and b `[D]` of ridge regression on ratings `[n, D]`."""
    from sklearn.linear_model import Ridge

    fitted = Ridge(alpha=1 / strength, solver="cholesky").fit(x, ratings)
    return fitted.coef_, fitted.intercept_


def _linear(name: str, inputs: tuple[str, ...]) -> Fusion:
    return Fusion(
        name=name,
        source="logistic regression, ridge regression",
        settings=LinearSettings,
        inputs=inputs,
        level="vector",
        build=Linear,
        solved=True,
        # Ridge regression has the squared error.
        unused=(*OF_THE_LOOP, "vad_loss", "vad_weight"),
    )


FUSIONS = [
    _linear("linear", BOTH),
    _linear("linear:audio", ("audio",)),
    _linear("linear:text", ("text",)),
]
