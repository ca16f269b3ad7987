"""The losses of a batch: cross-entropy and focal loss of classes, and CCC of ratings.

n  utterances     K  classes     D  dimensions: valence, arousal and dominance
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .settings import TrainingSettings

# Added below the CCC of a batch, where nothing varies.
TINY = 1e-8


def class_weights(shares: Tensor, training: TrainingSettings) -> Tensor:
    """Weights w `[K]` by the sizes of the classes in the training part.

    With its shares p `[n, K]` a size is n_k = Σ_i p_ik.

    inverse    w_k ∝ 1 / n_k: every class has the same part in the loss
    effective  w_k ∝ (1 − β) / (1 − β^n_k), by the effective number of samples (Cui et al. 2019,
               eq. 2)

    Scaled so that Σ_k n_k w_k = Σ_k n_k, the mean weight of a training utterance being 1: so the
    loss and the rate keep their scale, and `inverse` is scikit-learn's "balanced". A class of which
    there is nothing weighs 0.
    """
    sizes = shares.sum(0, dtype=torch.float64)
    if training.class_weights == "inverse":
        effective_sizes = sizes
    else:
        beta = training.effective_beta
        effective_sizes = -torch.expm1(sizes * math.log(beta)) / (1 - beta)

    weights = torch.where(sizes > 0, 1 / effective_sizes, 0.0)
    scaled = weights * sizes.sum() / (weights @ sizes)
    return scaled.float()


def class_loss(outputs: Tensor, truth: Tensor, gamma: float, reduction: str) -> Tensor:
    """The cross-entropy of logits `[n, K]`, or the focal loss.

    Summed, or averaged, over the utterances with a truth: Σ_i −log q_iy of the probabilities q for
    classes y `[n]`; for soft labels p `[n, K]` (USC §3.2) Σ_i Σ_k −p_ik log q_ik. With a `gamma` γ
    each term has the factor (1 − q_ik)^γ (Lin et al. 2017, eq. 4).
    """
    if not gamma:
        return F.cross_entropy(outputs, truth, reduction=reduction)

    log_q = outputs.log_softmax(1)
    if truth.ndim == 2:
        shares = truth
    else:
        # One class each; none where it is no class, as in the rows of `fit_many` that hold nobody.
        classes = torch.arange(log_q.shape[1], device=log_q.device)
        shares = (truth[:, None] == classes).float()

    # 1 − q. Powers below 1 have no gradient at 0.
    missed = (-torch.expm1(log_q)).clamp_min(torch.finfo(log_q.dtype).tiny)
    total = -(shares * missed**gamma * log_q).sum()
    if reduction == "sum":
        return total
    return total / shares.any(1).sum()


def concordance_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 − the mean over the columns of Lin's CCC of a batch `[n, D]`; see `concordance`.

    1, without a gradient, for a batch of one utterance or of equal ratings, in which nothing varies
    with the truth.
    """
    p = predicted - predicted.mean(0)
    t = truth - truth.mean(0)
    bias = (predicted.mean(0) - truth.mean(0)).square()
    ccc = 2 * (p * t).mean(0) / (p.square().mean(0) + t.square().mean(0) + bias + TINY)
    return 1 - ccc.mean()
