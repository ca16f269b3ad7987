"""Wav2Vec2-BERT 2.0: an encoder of the log-mel frames that its own feature extractor makes."""

from typing import cast

import numpy as np

from ser.weights.load import loading

from .audio import ENCODER_RATE
from .encoder import Encoder
from .speech import SpeechExtractor


class FilterbankExtractor(SpeechExtractor):
    """Frames `[frames, dim]` of an encoder of log-mel frames, one per 20 ms.

    Batches are those of `SpeechExtractor`; what differs is the input, `[frames, bands]` in place of
    `[samples]`.
    """

    name = "w2v-bert"
    version = 1
    fixed = frozenset({"norm", "normalize"})
    architectures = ("wav2vec2-bert",)

    # Of transformers: what makes the log-mel frames.
    preprocessor = "SeamlessM4TFeatureExtractor"
    # Samples: two log-mel frames of 25 ms.
    shortest = 560
    # Samples between frames.
    frame_samples = 320
    # Between frames, and under one frame, in the model's inputs: here log-mel frames.
    frame_step = 1
    receptive_field = 1

    def open(self) -> None:
        """Load the model and its feature extractor.

        Raises `WeightsError` unless one fits the other.
        """
        import transformers

        # Not SpeechExtractor's: this model has no convolutions over the waveform.
        Encoder.open(self)

        folder = self.checkpoint.path
        with loading(f"{folder}: its preprocessor does not fit"):
            extractor_class = getattr(transformers, self.preprocessor)
            self.features = extractor_class.from_pretrained(folder, local_files_only=True)

            second = np.zeros(ENCODER_RATE, np.float32)
            probe = self.features(second, sampling_rate=ENCODER_RATE, return_tensors="np")
            shape = probe.input_features.shape[1:]
            expected = self.input_shape(shape[0])
            if shape != expected:
                raise ValueError(f"it gives {shape} values, and the model takes {expected}")

    def input_shape(self, frames: int) -> tuple[int, int]:
        """The shape of the model's input for one second."""
        return frames, self.model.config.feature_projection_input_dim

    def row_count(self, length: int) -> int:
        """As many rows as there are inputs."""
        return length

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        """Log-mel frames `[frames, 160]`, two side by side.

        Each band is normalised over the utterance. The last of an odd number of frames is paired
        with padding, and masked: it gives no row.
        """
        features = self.features(samples, sampling_rate=ENCODER_RATE, return_tensors="np")
        valid = features.attention_mask[0] == 1
        return cast(np.ndarray, features.input_features[0][valid].astype(np.float32))
