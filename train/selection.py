"""Which epoch is kept, and when patience ends a stage: decided here, for `fit` and `fit_many`.

`Selection.add` says of each epoch whether it is the one to keep so far; whoever trains the model
then copies its weights.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from .config import TrainConfig
from .models import Stage
from .records import Epoch, Scores


@dataclass
class Selection:
    """The epochs of one model so far; `chosen` is the history of one before it, with `refit`."""

    config: TrainConfig
    best: float = -math.inf
    """The best score of this stage's epochs."""
    history: list[Epoch] = field(default_factory=list)
    chosen: list[Epoch] = field(default_factory=list)

    def epochs(self, stage: Stage) -> int:
        """How many a stage has: as many as were chosen for it before, or as are set."""
        chosen = {epoch.stage: epoch.epoch for epoch in self.chosen if epoch.kept}
        return chosen.get(stage.name, self.config.settings.epochs)

    def stopped(self, stage: Stage) -> bool:
        """Whether `patience` epochs of the stage have passed since the one to keep."""
        patience = self.config.training.patience
        if not patience:
            return False

        for waited, epoch in enumerate(reversed(self.history)):
            if epoch.kept or epoch.stage != stage.name:
                return waited >= patience
        return False

    def add(
        self, stage: Stage, epoch: int, loss: float, scored: Scores | None, seconds: float
    ) -> Epoch:
        """Add an epoch (from 0) with the scores of the evaluated part.

        `kept` of it says whether it is the best yet. With `--select last` a later epoch is always
        better; else the score that `select_score` names decides, and of equal epochs the first is
        kept.
        """
        scores = _epoch_scores(scored)
        if self.config.select == "last":
            score: float | None = float(epoch)
        else:
            score = scores[self.config.training.select_score]

        kept = score is not None and score > self.best
        if score is not None and kept:
            self.best = score

        record = Epoch(
            stage=f"{stage.name} again" if self.chosen else stage.name,
            epoch=epoch + 1,
            epochs=self.epochs(stage),
            loss=loss,
            wa=scores["wa"],
            ua=scores["ua"],
            seconds=seconds,
            kept=kept,
            macro_f1=scores["macro_f1"],
            ccc=scores["ccc"],
        )
        self.history.append(record)
        return record


def _epoch_scores(scored: Scores | None) -> dict[str, float | None]:
    """The scores that may select, by name; CCC is the mean over the dimensions."""
    if scored is None:
        return dict.fromkeys(("wa", "ua", "macro_f1", "ccc"))

    ccc = None
    if scored.ccc is not None:
        ccc = float(np.mean(list(scored.ccc.values())))
    return {"wa": scored.wa, "ua": scored.ua, "macro_f1": scored.macro_f1, "ccc": ccc}
