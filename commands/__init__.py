"""The commands, one file per group: options in, a call to the library, its answer printed. Heavy
imports inside.
"""
