"""Ingredients of training that a setting adds, and which runs they fit.

    warm-up and cosine   `rate_factor`
    mixup                `draw_mix`, done by `models.pooled_vector`
    auxiliary heads      `auxiliary_task`, by `models.pooled_vector` too
    layer dropout        `models.layer_sums`
    rater dropout        `rater_dropout`
    averaged weights     `weight_average`

n  utterances     C  classes of an auxiliary head
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser.errors import WrongUse

from .data.dataset import Dataset
from .data.folds import Fold
from .models import Fusion
from .models.batch import Batch, Mix
from .models.layer_sums import FRONT
from .models.pooled_vector import AUXILIARY, PooledVector
from .settings import TrainingSettings

# What torch's cross-entropy leaves out: what is not known of an utterance.
NOT_KNOWN = -100

# Settings that the loop of training itself looks at; they are for models that have such a loop.
OF_THE_LOOP = (
    "schedule",
    "warmup",
    "accumulate",
    "ema",
    "mixup",
    "layer_dropout",
    "aux",
    "rater_dropout",
)


def rate_factor(training: TrainingSettings, update: int, updates: int) -> float:
    """What the learning rate of a stage's update t = 0, 1, … of T is multiplied by.

    With a `warmup` of W = share · T updates it is t / W before update W (Goyal et al. 2017, §2.2).
    With schedule "cosine" it is (1 + cos(π (t − W) / (T − W))) / 2 from there (Loshchilov and
    Hutter, ICLR 2017, eq. 5, without restarts), with "linear" 1 − (t − W) / (T − W) (Devlin et al.,
    NAACL 2019, §A.2); else 1.
    """
    warmup = int(training.warmup * updates)
    if update < warmup:
        return update / warmup
    if training.schedule == "constant":
        return 1.0
    progress = (update - warmup) / max(1, updates - warmup)
    if training.schedule == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress))


def draw_mix(training: TrainingSettings, n: int, device: str) -> Mix | None:
    """How the n utterances of a batch are mixed; None without `mixup`.

    λ ~ Beta(α, α), one for the batch, and a partner for each utterance (Verma et al., ICML 2019,
    §2, after Zhang et al., ICLR 2018). Drawn by torch's own generator.
    """
    if not training.mixup:
        return None
    alpha = torch.tensor(training.mixup)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return Mix(share, torch.randperm(n).to(device))


@dataclass(frozen=True)
class AuxiliaryTask:
    """What an auxiliary head learns."""

    name: str
    """"gender" or "speaker"."""
    truth: Tensor
    """Class numbers of all utterances, int64 [n]; `NOT_KNOWN` for some."""
    classes: int
    weight: float
    """What its loss counts beside the model's own."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean cross-entropy of outputs `[b, C]` of the utterances where the truth is known."""
        truth = self.truth[batch.utterances].to(outputs.device)
        total = F.cross_entropy(outputs, truth, ignore_index=NOT_KNOWN, reduction="sum")
        return total / (truth != NOT_KNOWN).sum().clamp(min=1)


def auxiliary_task(
    data: Dataset, fold: Fold, training: TrainingSettings, fusion: Fusion
) -> AuxiliaryTask | None:
    """What the auxiliary head of a training learns: that of `aux`, or the fusion's adversary.

    None without either. Its classes are those of the training part. Raises `WrongUse` if that has
    fewer than two.
    """
    name = fusion.adversary or training.aux
    if name == "none":
        return None

    values = data.utterances.genders if name == "gender" else data.utterances.speakers
    known = {values[row] for row in fold.train if values} - {None}
    if len(known) < 2:
        found = f"fold '{fold.name}' has {len(known)} of them in its training part"
        if fusion.adversary:
            raise WrongUse(
                f"--fusion {fusion.name} is trained to tell nothing of the {name}: {found}, and "
                "two are needed; use another fusion"
            )
        raise WrongUse(f"--set aux={name}: {found}, and two are needed; leave it out")

    number = {value: place for place, value in enumerate(sorted(known, key=str))}
    truth = np.array([number.get(value, NOT_KNOWN) for value in values], dtype=np.int64)
    # How much the adversary counts is said where its gradient is reversed.
    weight = 1.0 if fusion.adversary else training.aux_weight
    return AuxiliaryTask(name, torch.from_numpy(truth), len(known), weight)


def add_ingredients(
    model: nn.Module, training: TrainingSettings, task: AuxiliaryTask | None
) -> None:
    """Give a model, before it is trained, what the settings add to it."""
    if training.layer_dropout:
        getattr(model, FRONT).dropout = training.layer_dropout
    if task is not None:
        _pooled_vector(model).add_head(task.name, task.classes)


def remove_auxiliary_heads(model: nn.Module) -> None:
    """Take from a trained model what served its training alone."""
    for part in model.modules():
        if isinstance(part, PooledVector):
            part.heads.clear()


def auxiliary_loss(
    returned: dict[str, Any], batch: Batch, task: AuxiliaryTask | None
) -> Tensor | float:
    """The weighted loss of the auxiliary head; 0 without one."""
    if task is None:
        return 0.0
    return task.weight * task.loss(returned[f"{AUXILIARY}{task.name}"].float(), batch)


def check_ingredients(
    fusion: Fusion,
    training: TrainingSettings,
    has_sums: bool,
    has_ratings: bool,
    learns_votes: bool,
) -> None:
    """Raise `WrongUse` for a setting that does not fit the fusion or what is learnt."""
    defaults = TrainingSettings()
    if fusion.solved:
        for name in OF_THE_LOOP:
            if getattr(training, name) != getattr(defaults, name):
                raise WrongUse(f"--set {name}: {fusion.name} has no training loop; leave it out")
    if training.layer_dropout and not has_sums:
        raise WrongUse(
            "--set layer_dropout leaves layers out of a learned sum, and there is none; name "
            "layers, such as --features hubert:layers=all"
        )
    if training.rater_dropout and (not learns_votes or training.shuffle_labels):
        raise WrongUse(
            "--set rater_dropout leaves votes out of soft labels, and none are learnt; use "
            "--target distribution, or --set soft_labels=true without shuffle_labels"
        )
    for name in ("mixup", "aux"):
        is_set = getattr(training, name) != getattr(defaults, name)
        if is_set and not fusion.pooled:
            raise WrongUse(
                f"--set {name}: fusion {fusion.name} has no pooled vector of an utterance; use one "
                "that has, such as asp, mean-std or xares"
            )
    learns_before_it = has_sums or fusion.encoded or not fusion.pools_as_is
    if training.aux != defaults.aux and not learns_before_it:
        raise WrongUse(
            f"--set aux: {fusion.name} learns nothing before its pooled vector, so that a second "
            "head would change nothing; name layers, such as --features hubert:layers=all, or use "
            "--fusion asp"
        )
    if training.mixup and has_ratings and training.vad_loss == "ccc":
        raise WrongUse(
            "--set mixup: the concordance of a batch is not that of its mixed utterances; use "
            "vad_loss=mse"
        )
    if training.aux_weight != defaults.aux_weight and training.aux == defaults.aux:
        raise WrongUse("--set aux_weight: it is that of aux; set both, or leave it out")


def _pooled_vector(model: nn.Module) -> PooledVector:
    return next(part for part in model.modules() if isinstance(part, PooledVector))
