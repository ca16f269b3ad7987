"""The activations that a model keeps from its forward pass for the backward pass, in bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ser.engines import exact_arithmetic

from .job import Job


def kept_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of the tensors that `forward` keeps for the gradients of the model's weights.

    Each counts once, and the weights themselves do not.
    """
    counted = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    total = 0
    # Held until the end, so that no memory is used twice.
    kept = []

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted:
            counted.add(storage.data_ptr())
            total += storage.nbytes()
            kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        # The graph holds what was counted.
        kept.append(forward())
    return total


def largest_batch_bytes(job: Job, model: nn.Module) -> int:
    """About what a batch keeps whose utterances, or dialogues, are all as long as the longest.

    Counted in the forward pass of that one, as often as a batch has some.
    """
    config = job.config
    exact_arithmetic(config.device, config.deterministic)
    units = job.data.groups(job.fold.train, config.fusion.unit)
    longest = max(units, key=lambda rows: _count_rows(job, rows))
    batches = job.data.on(config.device).batches(longest, config.fusion.unit, 1, {})

    model = model.to(config.device).train()
    [batch] = batches
    with config.autocast():
        of_longest = kept_bytes(model, lambda: model(batch))
    return of_longest * min(config.settings.batch_size, len(units))


def _count_rows(job: Job, utterances: np.ndarray) -> int:
    """The rows of some utterances that the trained encoders take."""
    count = 0
    for modality in job.config.fusion.encoded:
        offsets = job.data.inputs[modality].offsets
        count += int((offsets[utterances + 1] - offsets[utterances]).sum())
    return count
