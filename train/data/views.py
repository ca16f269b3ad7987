"""Augmented copies of the utterances, which train beside them."""

from dataclasses import replace

import numpy as np

from .dataset import Dataset


def with_views(data: Dataset, train: np.ndarray) -> tuple[Dataset, np.ndarray]:
    """A dataset that holds every utterance once as it is and once per view.

    And the rows of `train` in all of them: row r of view v = 1, 2, … is v · n + r. A view's
    utterances keep their labels, in dialogues of their own.
    """
    if not data.views:
        return data, train

    n = len(data.utterances)
    copies = 1 + len(data.views)
    utterances = data.utterances.take(np.tile(np.arange(n), copies))
    first_dialogue = np.repeat(np.arange(copies), n) * (int(utterances.dialogues.max()) + 1)
    utterances = replace(utterances, dialogues=utterances.dialogues + first_dialogue)

    more = replace(data, utterances=utterances, read=lambda: data.inputs, views=())
    return more, np.concatenate([train + n * copy for copy in range(copies)])
