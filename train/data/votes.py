"""The raters' votes under a label policy."""

from collections.abc import Sequence

import numpy as np

from .labels import Policy

# The categories that each rater of an utterance gave.
RaterVotes = Sequence[Sequence[str]]


def ballots(policy: Policy, raters: RaterVotes | None) -> np.ndarray:
    """Each rater's vote for an utterance, [raters, K].

    A vote is shared evenly among the categories that the rater gave; what the policy leaves out is
    dropped.
    """
    raters = raters or []
    # The last column is of what is left out, whose class number is -1.
    shares = np.zeros((len(raters), len(policy.classes) + 1))
    for ballot, categories in zip(shares, raters, strict=True):
        for category in categories:
            ballot[policy.index(category)] += 1 / len(categories)
    return shares[:, :-1]


def soft_labels(
    policy: Policy, votes: Sequence[RaterVotes | None], labels: np.ndarray | None
) -> np.ndarray:
    """Percentages of the annotators per class, float32 [n, K] with rows that sum to 1 (USC §3.2).

    Each annotator has one vote, see `ballots`, scaled to 1 over the classes of the policy. Without
    a vote left, the consensus label, of class number `labels` [n], counts alone; without `labels`
    such a row is 0.
    """
    sums = [ballots(policy, raters).sum(0) for raters in votes]
    targets = np.array(sums).reshape(len(votes), len(policy.classes))

    if labels is not None and policy.classes:
        silent = np.flatnonzero(~targets.any(1))
        targets[silent, labels[silent]] = 1

    totals = np.maximum(targets.sum(axis=1, keepdims=True), 1e-12)
    return (targets / totals).astype(np.float32)


def rater_votes(policy: Policy, votes: Sequence[RaterVotes | None]) -> tuple[np.ndarray, int]:
    """What the raters would score: each vote against the majority of the others' for the utterance.

    C [K, K] of that majority and the vote, and how many votes are left out: where one names no
    class of the policy, or two alike, or where the others have no single class with most of their
    votes.
    """
    matrix = np.zeros((len(policy.classes), len(policy.classes)), np.int64)
    left_out = 0
    for raters in votes:
        votes_cast = ballots(policy, raters)
        total = votes_cast.sum(0)

        for vote in votes_cast:
            majority = _classes_with_most(total - vote)
            chosen = _classes_with_most(vote)
            if len(majority) == len(chosen) == 1:
                matrix[majority[0], chosen[0]] += 1
            else:
                left_out += 1
    return matrix, left_out


def _classes_with_most(shares: np.ndarray) -> np.ndarray:
    """The class numbers whose shares [K] are the largest, but for rounding; none if all are 0."""
    return np.flatnonzero(shares > max(shares.max(), 2e-9) - 1e-9)
