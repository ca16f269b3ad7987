"""Stage 1: from a corpus to features in the store."""
