"""What a model is given: utterances packed row after row, without padding.

Axis letters, the same in all of `ser.train`:

    n  utterances of a batch, in turn order within their dialogues
    m  dialogues of a batch (unit "utterance": every utterance is its own dialogue, m = n)
    r  rows: the frames or tokens of all utterances, one utterance after the other
    t  time: frames of one utterance (T audio frames, N words), or turns of one dialogue (S)
    d  the model's width
    h  attention heads
    L  emotion query tokens
    K  classes
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class Sequences:
    """One modality of a batch.

    `values` has shape `[r, dim]`; `lengths`, int64 `[n]`, says how many rows each utterance has (all ones at
    utterance level), so `lengths.sum() == r`.
    """

    values: Tensor
    lengths: Tensor

    @cached_property
    def offsets(self) -> Tensor:
        """Utterance i is `values[offsets[i]:offsets[i + 1]]`; int64 `[n + 1]`."""
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Sequences":
        """The values on `device`; `dtype`, where given, is theirs (stored as float16, computed in float32).

        What says where the rows lie stays on the CPU, where the models' plans are made.
        """
        return Sequences(self.values.to(device, dtype, non_blocking=True), self.lengths)


@dataclass
class Batch:
    """Utterances to train on or to classify."""

    inputs: dict[str, Sequences]  # by modality, "audio" or "text"
    labels: Tensor  # int64 [n]: the class of each utterance
    utterances: Tensor  # int64 [n]: its row in the dataset
    dialogues: Tensor  # int64 [m]: utterances of each dialogue, in turn order; sums to n
    targets: Tensor | None = None  # [n, K]: soft labels (shares of the raters' votes), when asked for
    hidden: dict[str, Tensor] = field(default_factory=dict)  # by modality, bool [n]: not to be seen by the model
    heads: frozenset[str] | None = None  # the outputs that are wanted, so that a model can leave out the rest; or all

    def wants(self, head: str) -> bool:
        """Whether that output is wanted."""
        return self.heads is None or head in self.heads

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the batch is computed."""
        return self.labels.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """The inputs' values and the labels on `device`; `dtype`, where given, is that of the values.

        What says where rows and turns lie, and what is hidden, stays on the CPU, where the models' plans are made.
        """
        return Batch(
            inputs={modality: x.to(device, dtype) for modality, x in self.inputs.items()},
            labels=self.labels.to(device, non_blocking=True),
            utterances=self.utterances,
            dialogues=self.dialogues,
            targets=None if self.targets is None else self.targets.to(device, non_blocking=True),
            hidden=self.hidden,
            heads=self.heads,
        )

    def float(self) -> "Batch":
        """The same batch with its inputs' values in float32."""
        return self.to(self.labels.device, torch.float32)
