"""Encoder checkpoints: find, check, hash and load them (`find`), convert pickled ones, write the
demo's.
"""
