"""How one run trains."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from .models import Fusion, Stage
from .models.batch import Heads
from .settings import TrainingSettings


@dataclass(frozen=True)
class TrainConfig:
    """How one run trains: what `fit` is told, beside the data and the fold."""

    fusion: Fusion
    settings: Any
    """The fusion's own, an instance of `fusion.settings`."""
    training: TrainingSettings
    target: str = "class"
    loss: str = "single"
    select: str = "val"
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"
    log: str | None = None
    """"tensorboard" writes curves into the run's folder too."""
    deterministic: bool = False
    """The same bytes on a GPU too."""

    def autocast(self) -> torch.autocast:
        """Where a forward pass runs: in bfloat16 wherever that is safe, if `precision` is bf16."""
        return torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"
        )

    def heads(self, stage: Stage) -> Heads:
        """The outputs that the loss of a stage looks at; None is all."""
        if stage.output == "logits" and self.loss != "single":
            return None
        return frozenset({stage.output})

    @property
    def reduction(self) -> Literal["sum", "mean"]:
        """How the loss of a batch adds up, if `training.reduction` leaves it open.

        A sum over the utterances of a batch of dialogues (Perspective eq. 3), elsewhere their mean.
        """
        if self.training.reduction != "auto":
            return self.training.reduction
        return "sum" if self.fusion.unit == "dialogue" else "mean"
