"""A digest of the samples of audio, whatever the file that holds them."""

import hashlib

import numpy as np

from ser.errors import UtteranceError

from ..recording import Recording

# Samples of each channel: a quarter of a second at 16 kHz.
OPENING = 4096


class SampleDigest:
    """The sha256 of samples at `rate` Hz; channels that are equal count as one."""

    def __init__(self, rate: int) -> None:
        self._first_channel = hashlib.sha256(b"%d Hz" % rate)
        self._all_channels = hashlib.sha256(b"%d Hz" % rate)
        self._are_equal = True

    def update(self, channels: np.ndarray) -> None:
        """Go on with these samples `[n, channels]` float32."""
        # Minus zero, which files of floats may hold, sounds like zero.
        channels = channels + np.float32(0)
        self._first_channel.update(channels[:, 0].tobytes())
        if channels.shape[1] > 1:
            self._all_channels.update(channels.tobytes())
            self._are_equal = self._are_equal and bool((channels == channels[:, :1]).all())

    def hexdigest(self) -> str:
        """Of one channel, or of as many as there are."""
        digest = self._first_channel if self._are_equal else self._all_channels
        return digest.hexdigest()


def opening_of(recording: Recording) -> str:
    """A digest of the first samples of an open recording; empty if they cannot be decoded."""
    samples = SampleDigest(recording.rate)
    try:
        samples.update(recording.opening(OPENING))
    except UtteranceError:
        return ""
    return samples.hexdigest()
