"""Batches of utterances: how large one may be, and what an utterance costs."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

# Seconds of padded audio per batch on a GPU; sorted lengths waste ~1 % of it.
GPU_SECONDS = 300.0
# A token costs an encoder what a frame does: 300 s of audio are as much as 15,000 tokens.
TOKENS_PER_SECOND = 50.0
CHARACTERS_PER_TOKEN = 4.0


def batches(
    items: Iterable[T],
    length: Callable[[T], float],
    limit: float | None,
    padded: bool = True,
) -> list[list[T]]:
    """The items in order, in batches whose size is `limit` or less; None: one by one.

    The size of a batch is longest × count, or the sum of the lengths if they are not `padded`. An
    item that is longer than `limit` is a batch by itself.
    """
    if limit is None:
        return [[item] for item in items]

    groups: list[list[T]] = []
    longest = 0.0
    total = 0.0
    for item in items:
        size = length(item)
        longest = max(longest, size)
        total += size

        fits = False
        if groups:
            count = len(groups[-1]) + 1
            fits = (longest * count if padded else total) <= limit

        if fits:
            groups[-1].append(item)
        else:
            groups.append([item])
            longest = size
            total = size
    return groups


def text_seconds(text: str) -> float:
    """What a transcript costs an encoder, in seconds of audio; 2 is for the special tokens."""
    return (2 + len(text) / CHARACTERS_PER_TOKEN) / TOKENS_PER_SECOND
