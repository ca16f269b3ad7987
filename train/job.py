"""A job: one run to come."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from .config import TrainConfig
from .data.dataset import Dataset
from .data.folds import Fold
from .fit_many import can_train_together
from .records import Epoch, RunConfig
from .run_folder import run_name


@dataclass(frozen=True)
class Job:
    """One run to come: what it learns from, how, and what its config.json will hold."""

    data: Dataset
    fold: Fold
    config: TrainConfig
    record: RunConfig

    @cached_property
    def name(self) -> str:
        """The name of its run folder."""
        return run_name(self.record)

    @property
    def stacked(self) -> bool:
        """Whether it is fitted by `fit_many`.

        On a GPU, even alone, so that its numbers do not depend on the others.
        """
        on_gpu = torch.device(self.config.device).type == "cuda"
        return on_gpu and can_train_together(self.data, self.config)

    @cached_property
    def group(self) -> str:
        """The same for jobs that are fitted together.

        Those are `stacked`, and differ in seed and loss alone.
        """
        if self.stacked:
            return run_name(self.record, without=("seed", "loss"))
        return self.name


# After each epoch of a job; with None when its run is finished.
OnProgress = Callable[[Job, Epoch | None], None]
