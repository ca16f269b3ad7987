"""Encoder checkpoints: find, check, hash and load them. `convert` and `random` are modules of their own."""

from .files import CONFIG_FILES, INCIDENTAL, MARK, NoWeights, digest
from .find import Checkpoint, find_checkpoint, is_hub_id, list_checkpoints, weight_files
from .load import load_encoder

__all__ = [
    "CONFIG_FILES",
    "INCIDENTAL",
    "MARK",
    "Checkpoint",
    "NoWeights",
    "digest",
    "find_checkpoint",
    "is_hub_id",
    "list_checkpoints",
    "load_encoder",
    "weight_files",
]
