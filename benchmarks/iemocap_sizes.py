"""How large IEMOCAP is: stand-ins of its size have random values, which do not change the work."""

import numpy as np

UTTERANCES = 10_039
HOURS = 12.44

# In the four-class setting.
LABELLED = 5_531
LABELLED_HOURS = 25_130 / 3600


def durations(n: int, generator: np.random.Generator) -> np.ndarray:
    """Seconds of n utterances, distributed as IEMOCAP's.

    Median 3.52, 95th percentile 10.53, 0.585 to 34.14.
    """
    return np.clip(generator.lognormal(np.log(3.52), 0.666, n), 0.585, 34.14)


def durations_of_share(n: int, hours: float, whole: int) -> np.ndarray:
    """Seconds of n utterances, of `whole` that last so many hours."""
    seconds = durations(n, np.random.default_rng(0))
    return seconds * (hours * 3600 * n / whole / seconds.sum())


def frame_counts(seconds: np.ndarray) -> np.ndarray:
    """HuBERT's frames of utterances that last so long, one each 20 ms."""
    return np.ceil(seconds * 50 - 1).astype(int)


def token_counts(seconds: np.ndarray) -> np.ndarray:
    """MPNet's tokens of utterances that last so long."""
    return np.ceil(seconds * 3.2 + 2).astype(int)


def sequence_lengths(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of each utterance, by the feature."""
    return {"hubert": frame_counts(seconds), "mpnet": token_counts(seconds)}


def dialogue_lengths(utterances: int, generator: np.random.Generator) -> list[int]:
    """Labelled utterances of each dialogue.

    Some 37 of them, as in the four-class IEMOCAP, 5,531 in 151.
    """
    lengths: list[int] = []
    while sum(lengths) < utterances:
        length = np.clip(generator.lognormal(np.log(33), 0.45), 8, 110)
        lengths.append(int(length))

    return lengths
