"""Ours against the plain way, side by side in one run."""
