"""Some raters' votes are left out of each epoch's soft labels.

"Annotation dropout" of SAILER: Feng, Lertpetchpun, Byrd and Narayanan, "Developing a top-tier
framework in naturalistic conditions challenge for categorized emotion prediction", Interspeech
2025.

    R  votes of all raters     n  utterances     K  classes
"""

from collections.abc import Sequence

import numpy as np
import torch

from ser.errors import WrongUse

from .data.dataset import Dataset
from .settings import TrainingSettings


class RaterDropout:
    """Draws the soft labels of an epoch.

    `ballots` are each utterance's votes `[raters, K]`, and `votes` the soft labels `[c n, K]` of
    all of them, in c copies one behind the other.
    """

    def __init__(self, ballots: Sequence[np.ndarray], votes: np.ndarray, share: float) -> None:
        self.votes = votes
        self.share = share
        counts = [len(ballot) for ballot in ballots]
        copies = len(votes) // len(ballots)
        self.cast = np.tile(np.concatenate(ballots), (copies, 1))  # [R, K]
        self.utterance = np.repeat(np.arange(len(votes)), np.tile(counts, copies))  # [R]

    def draw(self) -> np.ndarray:
        """Soft labels `[c n, K]`: each vote is left out with the probability `share`.

        An utterance of which no vote for a class is left keeps all. Drawn by torch's generator.
        """
        is_kept = torch.rand(len(self.cast)).numpy() >= self.share
        sums = np.zeros(self.votes.shape)
        np.add.at(sums, self.utterance[is_kept], self.cast[is_kept])
        totals = sums.sum(1, keepdims=True)
        return np.where(totals > 0, sums / np.maximum(totals, 1e-12), self.votes).astype(np.float32)


def rater_dropout(
    data: Dataset, train_data: Dataset, training: TrainingSettings
) -> RaterDropout | None:
    """What draws the soft labels of a training on `train_data`, copies of `data`; None without.

    Raises `WrongUse` for a corpus that does not hold its raters' votes.
    """
    if not training.rater_dropout:
        return None
    ballots = data.ballots()
    if not any(len(ballot) for ballot in ballots):
        raise WrongUse(
            f"--set rater_dropout: corpus {data.record.corpus} does not hold its raters' votes; "
            "leave it out"
        )
    return RaterDropout(ballots, train_data.utterances.votes, training.rater_dropout)
