"""Encoder checkpoints: find, check, hash and load them. `convert` and `demo` are modules of their own."""

from ser.errors import WeightsError

from .find import INCIDENTAL, MARK, Checkpoint, find_checkpoint, list_checkpoints, load_encoder

__all__ = ["INCIDENTAL", "MARK", "Checkpoint", "WeightsError", "find_checkpoint", "list_checkpoints", "load_encoder"]
