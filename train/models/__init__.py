"""The fusion models, one file per paper."""
