"""An exponential moving average of a model's weights, which is evaluated and kept in their place.

Polyak and Juditsky, SIAM Journal on Control and Optimization 1992; Tarvainen and Valpola, NIPS
2017, eq. 1: θ'_t = α θ'_(t−1) + (1 − α) θ_t. As torch's `AveragedModel` the first is the weights
after the first update.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .models.encoder_front import load_state, state_of


class WeightAverage:
    """The average over the updates of a stage; none for a decay α of 0."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an update."""
        if not self.decay:
            return
        for name, weight in state_of(model).items():
            average = self.weights.get(name)
            if average is None or not weight.is_floating_point():
                self.weights[name] = weight.detach().clone()
            else:
                average.lerp_(weight, 1 - self.decay)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """In the context the model has the averaged weights."""
        if not self.weights:
            yield
            return
        trained = {name: weight.detach().clone() for name, weight in state_of(model).items()}
        load_state(model, self.weights)
        try:
            yield
        finally:
            load_state(model, trained)

    def restore(self, weights: Mapping[str, Tensor], model: nn.Module) -> None:
        """Go on from the average of a stopped training."""
        state = model.state_dict()
        self.weights = {name: weight.to(state[name]) for name, weight in weights.items()}
