"""The encoder of Whisper.

Whisper attends to padding as it was trained to: every window is padded with silence to 30 s,
batched or alone, so a batch is exact without a mask.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np

from ser.errors import UtteranceError, WrongUse

from .audio import ENCODER_RATE
from .extractor import Extracted, Layer
from .filterbank import FilterbankExtractor
from .speech import Piece, SpeechConfig


@dataclass(frozen=True, kw_only=True)
class WhisperConfig(SpeechConfig):
    """One layer of Whisper's encoder.

    With `pad` "keep" all states of each window are kept, 1,500 for each 30 s or less, also those of
    its padding: the layers above attend to them.
    """

    pad: Literal["cut", "keep"] = "cut"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad == "keep" and self.pool != "none":
            raise WrongUse("pad=keep keeps every state of a window: leave pool out")


class WhisperExtractor(FilterbankExtractor):
    """States `[states, dim]` of Whisper's encoder, 50 a second.

    The last layer is the one after the final LayerNorm. Audio is cut into consecutive windows of
    30 s, each padded with silence, whose states are cut off. Positions restart in each window, and
    its log-mel spectrogram is scaled to its own loudest value.

    With pad=keep none is cut off, and `extras["audio"]`, int32, is 1 for a state that the audio
    reaches, 0 for one of the padding.
    """

    name = "whisper"
    version = 1
    Config = WhisperConfig
    added_later: ClassVar[Mapping[str, Any]] = {"pool": "none", "pad": "cut"}
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

        State k is kept if the audio reaches 20·k ms, or if all are.
        """
        window_samples = self.features.n_samples
        for start in range(0, len(samples), window_samples):
            window = samples[start : start + window_samples]
            features = self.features(window, sampling_rate=ENCODER_RATE, return_tensors="np")
            states = self.states_of_audio(len(window))
            if self.config.pad == "keep":
                states = self.row_count(len(window))
            yield Piece(features.input_features[0], slice(0, states), window_samples / ENCODER_RATE)

    def states_of_audio(self, samples: int) -> int:
        """How many states of a window the audio reaches."""
        return math.ceil(samples / self.frame_samples)

    def join(self, wave: np.ndarray, pieces: Sequence[list[Layer]]) -> Extracted:
        """The states of one utterance, with pad=keep beside which of them are of audio."""
        joined = super().join(wave, pieces)
        if self.config.pad == "cut" or isinstance(joined, UtteranceError):
            return joined

        window_states = self.row_count(0)
        of_audio = np.zeros(window_states * len(pieces), np.int32)
        for number in range(len(pieces)):
            start = number * self.features.n_samples
            samples = min(len(wave) - start, self.features.n_samples)
            first = number * window_states
            of_audio[first : first + self.states_of_audio(samples)] = 1

        rows = {}
        for fingerprint, of_feature in joined.items():
            rows[fingerprint] = replace(of_feature, extras={"audio": of_audio})
        return rows
