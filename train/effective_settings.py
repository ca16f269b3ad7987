"""What a run's config says of settings that change nothing: the same as without them.

A run is named by its config, so that a setting without effect would train the same model under
another name.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .config import TrainConfig
from .data.dev_part import DEV_SHARE
from .data.folds import Fold
from .settings import TrainingSettings
from .targets import TARGETS

# The protocol whose parts are drawn.
DRAWN = "random-70-20-10"


def effective(config: TrainConfig, folds: Sequence[Fold], protocol: str) -> TrainConfig:
    """The config with those settings of training at their default that change nothing here."""
    training = config.training

    # What auto stands for.
    automatic = replace(training, reduction="auto")
    if config.reduction == replace(config, training=automatic).reduction:
        training = automatic
    if training.dev == "none" and config.select != "val" and protocol != DRAWN:
        training = replace(training, dev="auto")
    training = replace(training, dev=_plain_number(training.dev))

    # What no part of this run looks at.
    if config.select == "last":
        usual = TARGETS[config.target].choose_score(TrainingSettings())
        training = replace(training, select_score=usual.select_score)
    drawn = any(_is_share(fold.dev_by) for fold in folds)
    if protocol != DRAWN and not drawn:
        training = replace(training, cut_seed=TrainingSettings().cut_seed)

    # What says the same as if it were not there.
    if _outlasts_every_stage(training.patience, config.settings):
        training = replace(training, patience=0)
    if training.encoder_lr == getattr(config.settings, "lr", None):
        training = replace(training, encoder_lr=0.0)
    # It gives the same numbers; whether it is done says the encoder that was made with it.
    training = replace(training, recompute=False)
    return replace(config, training=training)


def _outlasts_every_stage(patience: int, settings: Any) -> bool:
    """Whether no stage is so long that patience could end it: its first epoch is the best yet."""
    epochs = getattr(settings, "epochs", None)
    return isinstance(epochs, int) and patience >= epochs - 1


def _plain_number(text: str) -> str:
    """A share as it is usually written, "0.1" of "0.10"; another text as it is."""
    return f"{float(text):g}" if _is_share(text) else text


def _is_share(text: str) -> bool:
    """Whether a dev part is a share of the training part: "0.1", or "0.1 in whole dialogues"."""
    number = text.split()[0]
    return number == DEV_SHARE or number.replace(".", "", 1).isdigit()
