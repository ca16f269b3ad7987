"""The state on disk of an unfinished run.

It is all that a training needs to go on as if it had never stopped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from msgspec import convert, to_builtins
from safetensors.torch import save
from torch import Generator, Tensor, nn

from .models.encoder_front import load_state, state_of
from .records import Epoch

# Torch's generator, and those of a training's own draws, by name.
Generators = Mapping[str, Generator]


@dataclass(frozen=True)
class Progress:
    """How far a training has come: what a state's metadata holds."""

    stage: int
    """The number of the stage, from 0."""
    epoch: int
    """How many epochs of it are done."""
    best_score: float
    """The best of them."""
    loss_of_best: float
    """The evaluated part's loss of the epoch that is kept of these."""
    history: Sequence[Epoch]
    """All epochs of this training."""
    chosen: Sequence[Epoch]
    """With `refit`, those of the training before."""


def snapshot(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a model's weights, or of other tensors, on the CPU, as safetensors takes them."""
    copies = {}
    for name, value in values.items():
        copies[name] = value.detach().to("cpu", copy=True).contiguous()
    return copies


def write_state(
    progress: Progress,
    kept: Mapping[str, Tensor],
    model: nn.Module,
    optimiser: torch.optim.Adam,
    generators: Generators,
    device: str,
    average: Mapping[str, Tensor] | None = None,
) -> bytes:
    """A state as a safetensors file.

    The model, the weights kept so far, Adam's moments, every random generator and the average of
    the weights, if there is one: `model.*`, `kept.*`, `adam.<n>.*`, `random.*` and `average.*`;
    stage, epoch and the scores so far in the metadata.
    """
    moments = {}
    for number, moments_of_weight in optimiser.state_dict()["state"].items():
        for name, moment in moments_of_weight.items():
            moments[f"{number}.{name}"] = moment

    generator_states = {name: generator.get_state() for name, generator in generators.items()}
    accelerator = torch.device(device)
    if accelerator.type != "cpu":
        module = torch.get_device_module(accelerator.type)
        generator_states[accelerator.type] = module.get_rng_state(accelerator)

    tensors = {}
    parts = {
        "model": state_of(model),
        "kept": kept,
        "adam": moments,
        "random": generator_states,
        "average": average or {},
    }
    for part, values in parts.items():
        for name, value in snapshot(values).items():
            tensors[f"{part}.{name}"] = value

    return save(tensors, _write_progress(progress))


def write_kept(progress: Progress, kept: Mapping[str, Tensor]) -> bytes:
    """The state of a model without a training loop: the weights kept so far, `kept.*`."""
    tensors = {f"kept.{name}": value for name, value in kept.items()}
    return save(tensors, _write_progress(progress))


def _write_progress(progress: Progress) -> dict[str, str]:
    """The metadata of a state."""
    metadata = {
        "stage": progress.stage,
        "epoch": progress.epoch,
        "best_score": repr(progress.best_score),
        "loss_of_best": repr(progress.loss_of_best),
        "history": to_builtins(progress.history),
        "chosen": to_builtins(progress.chosen),
    }
    return {"state": json.dumps(metadata)}


def read_progress(metadata: Mapping[str, str]) -> Progress:
    """How far the training of a state had come."""
    values = json.loads(metadata["state"])
    return Progress(
        stage=values["stage"],
        epoch=values["epoch"],
        best_score=float(values["best_score"]),
        loss_of_best=float(values["loss_of_best"]),
        history=convert(values["history"], list[Epoch]),
        chosen=convert(values["chosen"], list[Epoch]),
    )


def restore_state(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimiser: torch.optim.Adam,
    generators: Generators,
    device: str,
) -> dict[str, Tensor]:
    """Put everything back as `write_state` found it. Returns the weights that were kept."""
    load_state(model, _under("model.", tensors))

    moments: dict[int, dict[str, Tensor]] = {}
    for name, moment in _under("adam.", tensors).items():
        number, _, key = name.partition(".")
        moments.setdefault(int(number), {})[key] = moment
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})

    generator_states = _under("random.", tensors)
    for name, generator in generators.items():
        generator.set_state(generator_states[name])

    accelerator = torch.device(device)
    if accelerator.type in generator_states:
        module = torch.get_device_module(accelerator.type)
        module.set_rng_state(generator_states[accelerator.type], accelerator)

    return _under("kept.", tensors)


def read_average(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The average of the weights in a state; empty where there was none."""
    return _under("average.", tensors)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
