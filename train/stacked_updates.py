"""An update, an evaluation and a selection of R runs at once.

All are work of tensors that keep their places. So a GPU can capture each as one CUDA graph
(`cuda_graphs`): what changes from call to call is copied into the same tensors, and nobody waits
for a number.

    R  runs     r  rows of a batch (`stacked_runs.batch_of`)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from .config import TrainConfig
from .fit import make_optimiser, training_loss
from .models import Stage
from .stacked_runs import StackedRuns

# What torch's losses leave out.
NO_LABEL = -100

# The loss of one run: of its outputs by head, and its truth.
Loss = Callable[[Mapping[str, Tensor], Tensor], Tensor]


class StackedUpdates:
    """What is computed of R runs that differ in seed and loss alone."""

    def __init__(
        self,
        stack: StackedRuns,
        configs: Sequence[TrainConfig],
        stage: Stage,
        turns: Tensor,
        labels: Tensor,
    ) -> None:
        config = configs[0]
        device = config.device
        self.stack = stack
        self.config = config
        self.turns = turns  # a `stacked_runs.turn_table` of the training part, on the device
        self.labels = labels  # int64 [R, utterances], on the device

        # The rate is a tensor, so that a captured update takes the one that is there by then.
        self.rate = torch.tensor(config.settings.lr, device=device)
        self.optimiser = make_optimiser(stack.weights, stage, config.settings)
        self.optimiser.param_groups[0].update(lr=self.rate, capturable=True)

        # Each loss is computed for all runs, and then each run's own is chosen.
        names = sorted({run_config.loss for run_config in configs})
        self.losses: dict[str, Loss] = {}
        for name in names:
            with_loss = replace(config, loss=name)
            self.losses[name] = partial(training_loss, config=with_loss, stage=stage)
        loss_numbers = [names.index(run_config.loss) for run_config in configs]
        self.loss_numbers = torch.tensor([loss_numbers], device=device)  # [1, R]

        self.loss_sums = torch.zeros(len(configs), device=device)  # of an epoch, by run
        self.improved = torch.zeros(len(configs), dtype=torch.bool, device=device)
        self.kept: dict[str, Tensor] = {}  # the weights of each run's best epoch, [R, …]
        for name, weight in stack.weights.items():
            self.kept[name] = weight.detach().clone()

    def update(self, dialogues: Tensor, r: int) -> Tensor:
        """One update of all runs by a `batch_of` their dialogues `[R, m]`; their losses `[R]`."""
        with self.config.autocast():
            logits_by_head, rows, real = self.stack(self.turns, dialogues, r, training=True)
            outputs = {head: logits.float() for head, logits in logits_by_head.items()}

        # What is padding has no label, and so no part in a loss.
        truth = torch.where(real, self.labels.gather(1, rows), NO_LABEL)

        # Every loss for all runs `[losses, R]`, and of these each run's own `[R]`.
        by_loss = [vmap(loss)(outputs, truth) for loss in self.losses.values()]
        losses = torch.stack(by_loss).gather(0, self.loss_numbers)[0]

        # A mean over a batch counts as many times as the batch has utterances.
        weights = 1 if self.config.reduction == "sum" else real.sum(1)
        self.loss_sums.add_(losses.detach() * weights)

        self.optimiser.zero_grad()
        losses.sum().backward()
        self.optimiser.step()
        return losses.detach()

    @torch.no_grad()
    def classify(self, turns: Tensor, dialogues: Tensor, r: int) -> Tensor:
        """The most likely class of each row, and the probability of the true one, `[2, R, r]`.

        The class is -1 where there is no row.
        """
        with self.config.autocast():
            outputs, rows, real = self.stack(turns, dialogues, r)

        logits = outputs["logits"].float()
        best_classes = torch.where(real, logits.argmax(2), -1)
        truth = self.labels.gather(1, rows)
        of_truth = logits.softmax(2).gather(2, truth[:, :, None]).squeeze(2)
        return torch.stack([best_classes.to(of_truth.dtype), of_truth])

    def keep(self) -> Tensor:
        """Put the weights of the runs that have `improved` in the place of what is kept of them."""
        for name, weight in self.stack.weights.items():
            ones = [1] * (weight.ndim - 1)
            improved = self.improved.view(-1, *ones)
            self.kept[name].copy_(torch.where(improved, weight.detach(), self.kept[name]))
        return self.improved
