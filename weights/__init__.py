"""Encoder checkpoints: find, check, hash and load them. `convert` and `demo` are modules of their own."""

from .find import Checkpoint, find_checkpoint, list_checkpoints, load_encoder

__all__ = ["Checkpoint", "find_checkpoint", "list_checkpoints", "load_encoder"]
