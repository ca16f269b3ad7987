"""Corpora as they are on disk, read into one manifest row per utterance."""
