"""Losses over the logits of one batch; axis letters as in `batch`."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ser.cache.errors import WrongUse

from .batch import Batch

Reduction = Literal["sum", "mean"]
Loss = Callable[[Mapping[str, Tensor], Batch, Reduction], Tensor]


def cross_entropy(logits: Tensor, batch: Batch, reduction: Reduction) -> Tensor:
    """Σ_i −log P(ŷ_i = y_i) over the utterances, or its mean; logits [n, K].

    With soft targets p [n, K] (USC §3.2): Σ_i Σ_k −p_ik log P(ŷ_i = k).
    """
    truth = batch.labels if batch.targets is None else batch.targets
    return F.cross_entropy(logits, truth, reduction=reduction)


def single(outputs: Mapping[str, Tensor], batch: Batch, reduction: Reduction) -> Tensor:
    """L_s of the fused logits (Perspective eq. 3)."""
    return cross_entropy(outputs["logits"], batch, reduction)


def perspective(outputs: Mapping[str, Tensor], batch: Batch, reduction: Reduction) -> Tensor:
    """L_p = L_a + L_t + L_s: the unimodal heads learn beside the fused one (Perspective eq. 4–6).

    Raises `WrongUse` for a model without the two heads.
    """
    if not {"audio", "text"} <= outputs.keys():
        raise WrongUse("--loss perspective needs audio and text heads, as lgf-add has them; use --loss single")
    audio, text, fused = (cross_entropy(outputs[head], batch, reduction) for head in ("audio", "text", "logits"))
    return audio + text + fused


LOSSES: dict[str, Loss] = {"single": single, "perspective": perspective}
