"""Encoder checkpoints: find, check, hash and load them. `convert` and `demo` are modules of their own."""

from ser.errors import WeightsError

from .find import Checkpoint, find_checkpoint, list_checkpoints, load_encoder

__all__ = ["Checkpoint", "WeightsError", "find_checkpoint", "list_checkpoints", "load_encoder"]
