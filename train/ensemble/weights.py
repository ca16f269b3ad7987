"""Weights of the members, fitted on the dev part: those with which a mean predicts it best.

Smyth and Wolpert, "Linearly combining density estimators via stacking", Machine Learning 1999: the
weights of a mixture, by expectation maximisation. The likelihood has one maximum.

    M  members     n  utterances of the dev part     K  classes     D  dimensions
"""

import numpy as np

# It ends when no weight changes by more, or after so many steps.
TOLERANCE = 1e-9
MAX_STEPS = 20_000


def weights_of_classes(members: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The weights w `[M]` ≥ 0, Σ w = 1, of the members' probabilities p `[M, n, K]`.

    They maximise Σ_i Σ_k s_ik log Σ_m w_m p_mik with the truth's shares s `[n, K]`: 1 for the true
    class, or the raters' votes. A step is w_m ← Σ_ik s_ik w_m p_mik / Σ_j w_j p_jik / Σ_ik s_ik.
    """
    counted = shares > 0
    p = np.maximum(members.astype(np.float64)[:, counted], np.finfo(np.float32).tiny)
    s = shares.astype(np.float64)[counted]

    weights = np.full(len(p), 1 / len(p))
    for _ in range(MAX_STEPS):
        parts = weights[:, None] * p
        updated = (parts * (s / parts.sum(0))).sum(1) / s.sum()
        converged = np.abs(updated - weights).max() < TOLERANCE
        weights = updated
        if converged:
            break
    return weights / weights.sum()


def weights_of_ratings(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The weights w `[M]` ≥ 0, Σ w = 1, of the members' ratings r `[M, n, D]`.

    They minimise Σ_d Σ_i (t_id − Σ_m w_m r_mid)² / var(t_d).
    """
    from scipy.optimize import minimize

    scale = np.maximum(truth.std(0), 1e-12)
    x = (members / scale).reshape(len(members), -1)
    t = (truth / scale).ravel()
    products = x @ x.T / len(t)
    with_truth = x @ t / len(t)

    def loss(weights: np.ndarray) -> float:
        return float(weights @ products @ weights - 2 * with_truth @ weights)

    def gradient(weights: np.ndarray) -> np.ndarray:
        return np.asarray(2 * (products @ weights - with_truth))

    found = minimize(
        loss,
        np.full(len(x), 1 / len(x)),
        jac=gradient,
        method="SLSQP",
        bounds=[(0, 1)] * len(x),
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    weights = np.maximum(found.x, 0)
    return np.asarray(weights / weights.sum())
