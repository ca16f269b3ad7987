"""Where a run stands at the end of an epoch: all that is needed to go on to the same bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn


@dataclass
class State:
    """The model, the weights kept so far, Adam's moments and every random generator, on the CPU."""

    stage: int
    epoch: int  # epochs done in this stage
    best_score: float
    history: list[dict[str, Any]]
    tensors: dict[str, Tensor]  # model.*, kept.*, adam.<n>.*, random.*


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def collect(
    model: nn.Module, kept: Mapping[str, Tensor], optimiser: torch.optim.Adam, generators: Mapping[str, Generator]
) -> dict[str, Tensor]:
    """The tensors of a `State`."""
    tensors = {f"model.{name}": value for name, value in snapshot(model).items()}
    tensors |= {f"kept.{name}": value for name, value in kept.items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value.detach().to("cpu", copy=True) for name, value in moments.items()}
    tensors |= {f"random.{name}": generator.get_state() for name, generator in generators.items()}
    tensors["random.torch"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimiser: torch.optim.Adam,
    generators: Mapping[str, Generator],
) -> dict[str, Tensor]:
    """Put everything back as `collect` found it. Returns the weights that were kept."""
    model.load_state_dict(_below(tensors, "model"))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "adam").items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    for name, generator in generators.items():
        generator.set_state(tensors[f"random.{name}"])
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return _below(tensors, "kept")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{prefix}."): value for n, value in tensors.items() if n.startswith(f"{prefix}.")}
