"""Encoder checkpoints: find, digest and load them, convert pickled ones, write random ones."""
