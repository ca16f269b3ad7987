"""The checks, one file per kind: each is a function `(Evidence) -> list[Finding]`."""
