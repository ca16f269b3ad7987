"""Which epoch is kept, and when patience ends a stage: decided here, for `fit` and `fit_many`.

`Selection.add` says of each epoch whether it is the one to keep so far; whoever trains the model
then copies its weights.
"""

import math
from collections.abc import Mapping, Sequence
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
    loss_of_best: float = math.inf
    """The evaluated part's loss of the epoch that is kept of this stage."""
    history: list[Epoch] = field(default_factory=list)
    chosen: list[Epoch] = field(default_factory=list)

    def epochs(self, stage: Stage) -> int:
        """How many a stage has: as many as were chosen for it before, or as are set."""
        chosen = {epoch.stage: epoch.epoch for epoch in self.chosen if epoch.kept}
        return chosen.get(stage.name, getattr(self.config.settings, stage.epochs))

    def stopped(self, stage: Stage) -> bool:
        """Whether `patience` epochs of the stage have passed since one that was better."""
        patience = self.config.training.patience
        if not patience:
            return False

        if self.config.select == "last":
            return False

        waited = 0
        best: float | None = None
        loss_of_best = math.inf
        for epoch in self.history:
            if epoch.stage != stage.name:
                continue
            score = epoch.score(self.config.training.select_score)
            loss = math.inf if epoch.eval_loss is None else epoch.eval_loss
            if score is None:
                continue

            # Of equals the later one is kept, but it is no better: patience goes on.
            if best is None or score > best or (score == best and loss < loss_of_best):
                best = score
                loss_of_best = loss
                waited = 0
            else:
                waited += 1
        return waited >= patience

    def start_stage(self) -> None:
        """Forget the best of the stage before."""
        self.best = -math.inf
        self.loss_of_best = math.inf

    def add(
        self,
        stage: Stage,
        epoch: int,
        loss: float,
        scored: Scores | None,
        eval_loss: float | None,
        seconds: float,
    ) -> Epoch:
        """Add an epoch (from 0) with the scores and the loss of the evaluated part.

        `kept` of it says whether it is the best yet. With `--select last` a later epoch is always
        better; else the score that `select_score` names decides. A small dev part gives many
        epochs the same score: of these the one with the lowest loss there is kept, and of equals
        the later one.
        """
        scores = epoch_scores(scored)
        if self.config.select == "last":
            score: float | None = float(epoch)
        else:
            score = scores[self.config.training.select_score]

        kept = score is not None and self._is_best(score, eval_loss)
        if score is not None and kept:
            self.best = score
            self.loss_of_best = math.inf if eval_loss is None else eval_loss

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
            eval_loss=eval_loss,
        )
        self.history.append(record)
        return record

    def _is_best(self, score: float, eval_loss: float | None) -> bool:
        """Whether an epoch with that score and loss is better than those before."""
        if score != self.best:
            return score > self.best
        return eval_loss is not None and eval_loss <= self.loss_of_best


def count_tied(history: Sequence[Epoch], select: str, score: str) -> int | None:
    """How many epochs of the last stage that a score selected have the kept one's, it included.

    `select` and `score` are the run's `--select` and `select_score`. None where no score selected.
    """
    solved = any(epoch.tried is not None for epoch in history)
    if select == "last" or solved:
        return None
    scored = [epoch for epoch in history if epoch.score(score) is not None]
    if not scored:
        return None

    of_last_stage = [epoch for epoch in scored if epoch.stage == scored[-1].stage]
    kept = [epoch for epoch in of_last_stage if epoch.kept]
    if not kept:
        return None
    best = kept[-1].score(score)
    return sum(epoch.score(score) == best for epoch in of_last_stage)


def describe_choice(history: Sequence[Epoch], select: str, score: str) -> str | None:
    """A sentence for the log: which epoch is kept, and of how many that tied.

    None where no score selected.
    """
    if history and history[-1].tried is not None:
        return _describe_solved(history)
    tied = count_tied(history, select, score)
    if tied is None:
        return None

    kept = [epoch for epoch in history if epoch.kept and epoch.score(score) is not None][-1]
    part = "test" if select == "best-test" else "dev"
    words = f"epoch {kept.epoch} is kept: {score} {kept.score(score):.4f} on {part}"
    if tied == 1:
        return f"{words}, which no other epoch has"
    return f"{words}, as {tied} epochs have; of these its loss there is the lowest"


def _describe_solved(history: Sequence[Epoch]) -> str | None:
    """Which candidate of a model without a training loop is kept; None where there is one alone."""
    tried = [epoch for epoch in history if epoch.eval_loss is not None]
    if len(tried) < 2:
        return None
    kept = [epoch for epoch in tried if epoch.kept][-1]
    return (
        f"{describe_tried(kept.tried or {})} is kept: its loss on the part that selects, "
        f"{kept.eval_loss:.4f}, is the lowest of {len(tried)}"
    )


def describe_tried(tried: Mapping[str, float | str]) -> str:
    """The values of a candidate, such as "C 0.01, layer 3"."""
    words = []
    for name, value in tried.items():
        words.append(f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}")
    return ", ".join(words)


def epoch_scores(scored: Scores | None) -> dict[str, float | None]:
    """The scores that may select, by name; CCC is the mean over the dimensions."""
    if scored is None:
        return dict.fromkeys(("wa", "ua", "macro_f1", "ccc"))

    ccc = None
    if scored.ccc is not None:
        ccc = float(np.mean(list(scored.ccc.values())))
    return {"wa": scored.wa, "ua": scored.ua, "macro_f1": scored.macro_f1, "ccc": ccc}
