"""Transcripts that have run away: of a recogniser that repeats itself, or says too much.

Whisper does so now and then, on noise or silence above all. Its authors recognise it by how well a
text is compressed, and try again with sampling (Radford et al., 2022, §4.5; `transcribe.py` of
openai/whisper).
"""

import math
import zlib

# A text that zlib makes this many times smaller repeats itself: `compression_ratio_threshold`.
COMPRESSION = 2.4

# Of these each is tried where the most likely tokens, temperature 0, ran away.
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)

# Nobody says as much: the fastest speakers come to some eleven syllables. Ours.
CHARACTERS_PER_SECOND = 30.0


def has_run_away(text: str, seconds: float, window_seconds: float) -> bool:
    """Whether a transcript of so many seconds cannot be what was said.

    It is judged in pieces, as many as there are windows: a long text repeats words without harm.
    """
    if len(text) > CHARACTERS_PER_SECOND * max(1.0, seconds):
        return True

    windows = max(1, math.ceil(seconds / window_seconds))
    size = max(1, math.ceil(len(text) / windows))
    for start in range(0, len(text), size):
        piece = text[start : start + size].encode()
        if len(piece) > COMPRESSION * len(zlib.compress(piece)):
            return True
    return False
