"""How one run trains: the fusion, its settings, the loss, the selection, the seed."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from .losses import Reduction
from .models import Fusion, Stage
from .settings import TrainingSettings

Select = Literal["val", "last", "best-test"]
Precision = Literal["float32", "bf16"]
SELECTIONS = {
    "val": "the epoch with the best score on the dev part",
    "last": "the last epoch",
    "best-test": "the epoch with the best score on the TEST part, which lifts every number",
}


@dataclass(frozen=True)
class Plan:
    """How one run trains."""

    fusion: Fusion
    settings: Any  # of the fusion
    training: TrainingSettings
    loss: str = "single"
    select: Select = "val"
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "float32"
    log: str | None = None  # see `tensorboard`

    def autocast(self) -> torch.autocast:
        """Where a forward pass runs: in bfloat16 wherever that is safe, if `precision` is bf16."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")

    def heads(self, stage: Stage) -> frozenset[str] | None:
        """The outputs that the loss of a stage looks at; None is all."""
        return None if stage.output == "logits" and self.loss != "single" else frozenset({stage.output})

    @property
    def reduction(self) -> Reduction:
        """Sum over the utterances of a batch of dialogues (Perspective eq. 3), mean elsewhere, unless set."""
        if self.training.reduction == "auto":
            return "sum" if self.fusion.unit == "dialogue" else "mean"
        return self.training.reduction
