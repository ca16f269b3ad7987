"""The store: where features meet training. No torch, and nothing of the rooms above."""
