"""Stage 2: from features in the store to results."""
