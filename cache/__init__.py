"""The store: where features meet training. Imports nothing else of ser, and no torch."""
