"""Encoder checkpoints: find, check, hash and load them. `convert` and `random` are modules of their own."""

from .find import (
    CONFIG_FILES,
    INCIDENTAL,
    MARK,
    Checkpoint,
    WeightsError,
    digest,
    find_checkpoint,
    is_hub_id,
    list_checkpoints,
    load_encoder,
    weight_files,
)

__all__ = [
    "CONFIG_FILES",
    "INCIDENTAL",
    "MARK",
    "Checkpoint",
    "WeightsError",
    "digest",
    "find_checkpoint",
    "is_hub_id",
    "list_checkpoints",
    "load_encoder",
    "weight_files",
]
