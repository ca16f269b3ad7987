"""What a model says of utterances."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from .data import Dataset
from .inputs import Scaling
from .plan import Plan


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: Dataset,
    rows: np.ndarray,
    plan: Plan,
    scaling: Mapping[str, Scaling],
    hide: str | None = None,
    heads: frozenset[str] | None = None,
) -> dict[str, np.ndarray]:
    """Probabilities [n, K] of the given rows, in their order, for each head, or those of `heads` at least.

    `hide` hides one modality from all.
    """
    model.eval()
    found: dict[str, np.ndarray] = {}
    place = np.empty(len(data.utterances), dtype=np.int64)
    place[rows] = np.arange(len(rows))
    for batch in data.batches(rows, plan.fusion.unit, plan.settings.batch_size, scaling):
        batch.heads = heads
        if hide:
            batch.hidden = {hide: torch.ones(len(batch), dtype=torch.bool)}
        with plan.autocast():
            outputs = model(batch.to(plan.device))
        for head, logits in outputs.items():
            probabilities = found.setdefault(head, np.empty((len(rows), logits.shape[1]), dtype=np.float32))
            probabilities[place[batch.utterances.numpy()]] = logits.float().softmax(1).cpu().numpy()
    return found
