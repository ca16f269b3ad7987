"""Corpora on disk: from the layout of each to a manifest, with every problem named."""

from .formats import DETECTORS, FORMATS

__all__ = ["DETECTORS", "FORMATS"]
