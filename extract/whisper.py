"""The encoder of Whisper.

Whisper attends to padding as it was trained to: every window is padded with silence to 30 s,
batched or alone, so a batch is exact without a mask.
"""

import math
from collections.abc import Iterator
from typing import cast

import numpy as np

from .audio import ENCODER_RATE
from .filterbank import FilterbankExtractor
from .speech import Piece


class WhisperExtractor(FilterbankExtractor):
    """States `[states, dim]` of Whisper's encoder, 50 a second.

    The last layer is the one after the final LayerNorm. Audio is cut into consecutive windows of
    30 s, each padded with silence, whose states are cut off. Positions restart in each window, and
    its log-mel spectrogram is scaled to its own loudest value.
    """

    name = "whisper"
    version = 1
    fixed = frozenset({"norm", "normalize", "window", "context"})
    # Its preprocessor says what its windows are.
    unrecorded = fixed
    architectures = ("whisper",)

    preprocessor = "WhisperFeatureExtractor"
    # Samples: one log-mel frame of 25 ms.
    shortest = 400
    ends_after_norm = True

    def input_shape(self, frames: int) -> tuple[int, int]:
        """The shape of the model's input for one second, padded to a window."""
        config = self.model.config
        return config.num_mel_bins, 2 * config.max_source_positions

    def row_count(self, length: int) -> int:
        """All states of a window, with those of its padding."""
        return cast(int, self.model.config.max_source_positions)

    def cut(self, samples: np.ndarray) -> Iterator[Piece]:
        """Consecutive windows of log-mel frames `[bands, 3000]`.

        State k is kept if the audio reaches 20·k ms.
        """
        window_samples = self.features.n_samples
        for start in range(0, len(samples), window_samples):
            window = samples[start : start + window_samples]
            features = self.features(window, sampling_rate=ENCODER_RATE, return_tensors="np")
            states = math.ceil(len(window) / self.frame_samples)
            yield Piece(features.input_features[0], slice(0, states), window_samples / ENCODER_RATE)
