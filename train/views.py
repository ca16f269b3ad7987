"""Augmented copies of the training utterances: features such as `logmel:view=pitch-1`, mixed in on the training side.

USC §4 adds noise, pitch, stretch and shift to the original signal.
"""

from dataclasses import replace

import numpy as np
import torch

from .data import Dataset
from .inputs import Inputs
from .utterances import Utterances


def with_views(data: Dataset, train: np.ndarray) -> tuple[Dataset, np.ndarray]:
    """A dataset that holds every utterance once as it is and once per view, and the rows of `train` in all of them.

    Row r of view v = 1, 2, … is v · n + r. A view's utterances keep their labels and form dialogues of their own.
    """
    if not data.views:
        return data, train
    copies, n = len(data.views) + 1, len(data.utterances)
    plain = data.utterances
    between = int(plain.dialogues.max()) + 1
    utterances = Utterances(
        ids=list(plain.ids) * copies,
        labels=np.tile(plain.labels, copies),
        classes=plain.classes,
        sessions=list(plain.sessions) * copies,
        speakers=list(plain.speakers) * copies,
        dialogues=np.concatenate([plain.dialogues + between * copy for copy in range(copies)]),
        turns=np.tile(plain.turns, copies),
    )
    inputs = {
        modality: _joined([plainly, *(view.get(modality, plainly) for view in data.view_inputs)])
        for modality, plainly in data.inputs.items()
    }
    targets = None if data.targets is None else data.targets.repeat(copies, 1)
    rows = np.concatenate([train + n * copy for copy in range(copies)])
    return replace(data, utterances=utterances, read=lambda: inputs, targets=targets, views=()), rows


def _joined(parts: list[Inputs]) -> Inputs:
    """One modality of all copies; a modality that no view changes is not copied in memory."""
    n = len(parts[0].offsets) - 1
    if all(part is parts[0] for part in parts):
        return Inputs(parts[0].values, parts[0].offsets, repeats=len(parts))
    starts = np.cumsum([0, *(len(part.values) for part in parts)])
    offsets = [part.offsets[:n] + start for part, start in zip(parts, starts, strict=False)]
    return Inputs(torch.cat([part.values for part in parts]), np.concatenate([*offsets, starts[-1:]]))
