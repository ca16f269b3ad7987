"""The random generators of the demo corpus. Its bytes hang on the order of the draws from each."""

import zlib
from collections.abc import Sequence

import numpy as np

# Of the corpus' bytes.
SEED = 0

Random = np.random.Generator


def generator_of(*numbers: int) -> Random:
    """The generator of a dialogue, by its session and scene."""
    return np.random.default_rng([SEED, *numbers])


def generator_named(name: str) -> Random:
    """The generator of a speaker, a dialogue or a line, by its name."""
    return generator_of(zlib.crc32(name.encode()))


def draw_one(rng: Random, words: Sequence[str]) -> str:
    """One of the words, all equally likely."""
    return str(rng.choice(words))
