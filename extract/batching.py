"""Group length-sorted utterances into batches whose padded size is bounded."""

from collections.abc import Sequence

GPU_SECONDS = 300.0  # padded audio per batch; sorted lengths waste ~1 % of it
TOKENS_PER_SECOND = 50.0  # a token costs an encoder what a frame does: 300 s of audio are as much as 15,000 tokens
CHARACTERS_PER_TOKEN = 4.0


def batches(lengths: Sequence[float], most: float | None) -> list[list[int]]:
    """Indices in order, grouped so that longest × count ≤ `most`; None: one by one. A longer one stands alone."""
    groups: list[list[int]] = []
    longest = 0.0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if most is None or not groups or longest * (len(groups[-1]) + 1) > most:
            groups.append([])
            longest = length
        groups[-1].append(index)
    return groups


def text_seconds(text: str) -> float:
    """What a transcript costs an encoder, in seconds of audio."""
    return (2 + len(text) / CHARACTERS_PER_TOKEN) / TOKENS_PER_SECOND
