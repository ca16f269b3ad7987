"""The support vector machine that papers compare with: scikit-learn's, on the same vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..scores.calibration import fit_temperature
from .fusion import BOTH, Dims, Fusion, Positive, setting
from .row_space import RowSpace
from .solved import (
    ABSENT,
    OF_THE_LOOP,
    Layers,
    Solve,
    SolvedModel,
    SolvedSettings,
    Truth,
    one_label_each,
)


@dataclass(frozen=True)
class SvmSettings(SolvedSettings):
    """Of a support vector machine with a radial kernel."""

    gamma: Positive | Literal["scale"] = setting(
        "scale",
        "scikit-learn",
        "of the kernel exp(-gamma |x - y|²); scale: 1 / (columns × variance of the training part)",
    )


class Svm(SolvedModel):
    """One machine for each pair of classes, by scikit-learn's `SVC`, and their votes.

    Outputs are those of `SVC.decision_function`: the votes of each class, and below one vote how
    clearly they were won; times `scale`, with which their softmax has the lowest loss on the part
    that chooses. The best class is that of `SVC(break_ties=True)`.

        s  support vectors     P  pairs of classes, (0, 1), (0, 2), …, (1, 2), …
    """

    strengths = (0.1, 1.0, 10.0, 100.0)
    support: Tensor
    dual: Tensor
    bias: Tensor
    signs: Tensor
    gamma: Tensor
    scale: Tensor
    absent: Tensor

    def __init__(
        self, settings: SvmSettings, dims: Dims, outputs: int, layers: Layers | None = None
    ) -> None:
        super().__init__(dims, layers or {})
        self.setting_of_gamma = settings.gamma
        self.classes = outputs
        self.pairs = list(combinations(range(outputs), 2))

        self.register_buffer("support", torch.zeros(1, self.width))
        self.register_buffer("dual", torch.zeros(len(self.pairs), 1))
        self.register_buffer("bias", torch.zeros(len(self.pairs)))
        # 1 in the column of a pair's first class, -1 in that of the second; 0 for a pair of which
        # one class is not in the training part.
        self.register_buffer("signs", torch.zeros(len(self.pairs), outputs))
        self.register_buffer("gamma", torch.tensor(1.0))
        self.register_buffer("scale", torch.tensor(1.0))
        # What is added to the outputs of classes that are not in the training part.
        self.register_buffer("absent", torch.zeros(outputs))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **more: Any) -> Any:
        """As torch's, for any number of support vectors."""
        count, width = state_dict["support"].shape
        self.support = torch.zeros(count, width)
        self.dual = torch.zeros(len(self.pairs), count)
        return super().load_state_dict(state_dict, *args, **more)

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs `[n, K]`."""
        return self.scale * self.decisions(x) + self.absent

    def decisions(self, x: Tensor) -> Tensor:
        """Votes and how clearly they were won, `[n, K]`, before they are scaled."""
        products = x @ self.support.T
        squares = x.square().sum(1, keepdim=True) + self.support.square().sum(1)
        distances = (squares - 2 * products).clamp(min=0)
        kernel = (-self.gamma * distances).exp()  # [n, s]
        of_pairs = kernel @ self.dual.T + self.bias  # [n, P], above 0 for the first class

        # A class gets the votes that it wins: of its opponents, half of won minus lost and all.
        opponents = self.signs.abs().sum(0)
        votes = (torch.where(of_pairs >= 0, 1.0, -1.0) @ self.signs + opponents) / 2
        clearness = of_pairs @ self.signs
        return votes + clearness / (3 * (clearness.abs() + 1))

    def solver(self, x: np.ndarray, truth: Truth) -> Solve:
        """As `SolvedModel.solver`; of each utterance one class."""
        from sklearn.svm import SVC

        space = RowSpace.of(x)
        gamma = self.setting_of_gamma
        if gamma == "scale":
            variance = x.var()
            gamma = 1 / (x.shape[1] * variance) if variance else 1.0
        assert truth.shares is not None
        _, labels, weights = one_label_each(x, truth.shares)

        def solve(strength: float) -> None:
            fitted = SVC(C=strength, gamma=gamma).fit(space.coordinates, labels, weights)
            self.take(fitted, x, float(gamma))

        return solve

    def take(self, fitted: Any, x: np.ndarray, gamma: float) -> None:
        """Hold what a fitted `SVC` learnt of rows `[n, d]`."""
        dual, bias = _by_pair(fitted)
        present = fitted.classes_.tolist()
        places = {pair: place for place, pair in enumerate(self.pairs)}
        dual_of_all = np.zeros((len(self.pairs), dual.shape[1]))
        bias_of_all = np.zeros(len(self.pairs))
        signs = np.zeros((len(self.pairs), self.classes))
        for place, pair in enumerate(combinations(present, 2)):
            dual_of_all[places[pair]] = dual[place]
            bias_of_all[places[pair]] = bias[place]
            signs[places[pair], pair[0]] = 1
            signs[places[pair], pair[1]] = -1

        absent = np.full(self.classes, ABSENT)
        absent[present] = 0.0
        self.support = torch.from_numpy(x[fitted.support_]).float()
        self.dual = torch.from_numpy(dual_of_all).float()
        self.bias = torch.from_numpy(bias_of_all).float()
        self.signs = torch.from_numpy(signs).float()
        self.gamma = torch.tensor(gamma)
        self.scale = torch.tensor(1.0)
        self.absent = torch.from_numpy(absent).float()

    def calibrate(self, x: Tensor, labels: np.ndarray) -> None:
        """As `SolvedModel.calibrate`: by the temperature that is fitted."""
        shares = (self.decisions(x) + self.absent).softmax(1)
        temperature = fit_temperature(labels, shares.double().numpy())
        self.scale = torch.tensor(1 / temperature)


def _by_pair(fitted: Any) -> tuple[np.ndarray, np.ndarray]:
    """The weights `[P, s]` of a fitted `SVC`'s support vectors for each pair, and its bias `[P]`.

    scikit-learn has one row less than classes: of a support vector of class i it holds the weights
    in the machines against the other classes, in their order.
    """
    if len(fitted.classes_) == 2:
        # Of two classes the positive side is the second.
        return -fitted.dual_coef_, -fitted.intercept_

    ends = np.cumsum(fitted.n_support_)
    starts = ends - fitted.n_support_
    dual = np.zeros((len(fitted.intercept_), ends[-1]))
    for place, (i, j) in enumerate(combinations(range(len(ends)), 2)):
        dual[place, starts[i] : ends[i]] = fitted.dual_coef_[j - 1, starts[i] : ends[i]]
        dual[place, starts[j] : ends[j]] = fitted.dual_coef_[i, starts[j] : ends[j]]
    return dual, fitted.intercept_


def _svm(name: str, inputs: tuple[str, ...]) -> Fusion:
    return Fusion(
        name=name,
        source="support vector machine, radial kernel",
        settings=SvmSettings,
        inputs=inputs,
        level="vector",
        build=Svm,
        solved=True,
        unused=(*OF_THE_LOOP, "soft_labels", "vad_loss", "vad_weight", "vad_scale"),
    )


FUSIONS = [
    _svm("svm", BOTH),
    _svm("svm:audio", ("audio",)),
    _svm("svm:text", ("text",)),
]
