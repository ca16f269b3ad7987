"""From a waveform to the frames of one audio encoder, as a part of a graph.

The encoder is the extractor's own, opened as `ser predict` opens it, with its hooks. What stands
around it is said once more here in torch, since the extractor computes it in numpy and in windows.
"""

from typing import Any

import torch
from torch import Tensor, nn

ROUNDED = {"float16": torch.float16, "float32": torch.float32}


class EncoderFrames(nn.Module):
    """What a store would hold of one utterance: the rows of each of the extractor's features.

    `extractor` is the registry's for "speech", or for "whisper" in the subclass.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor
        self.encoder = extractor.model

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """`[1, samples]` at 16 kHz → `[frames, dim]` of each feature, or their mean `[1, dim]`."""
        output = self.encode(waveform)

        rows: list[Tensor] = []
        for spec, config in zip(self.extractor.specs, self.extractor.configs, strict=True):
            frames = self.frames(self.extractor.hidden(config, output), waveform.shape[1])
            if config.pool == "mean":
                frames = frames.double().mean(0, keepdim=True)
            rows.append(frames.to(ROUNDED[spec.dtype]).float())
        return rows

    def encode(self, waveform: Tensor) -> Any:
        """The encoder's output for `[1, samples]`; its layers are kept by the extractor's hooks."""
        if self.extractor.config.normalize:
            # As `SpeechExtractor.prepare` computes it.
            variance = waveform.var(correction=0)
            waveform = (waveform - waveform.mean()) / (variance + 1e-7).sqrt()

        self.extractor.state.lengths = [waveform.shape[1]]
        self.extractor.state.layers = {}
        return self.encoder(waveform, attention_mask=None)

    def frames(self, hidden: Tensor, samples: int) -> Tensor:
        """The frames `[frames, dim]` of a layer `[1, frames, dim]`."""
        return hidden[0]


class WhisperStates(EncoderFrames):
    """The same of Whisper's encoder, with its log-mel spectrogram.

    The waveform is cut into windows of 30 s, the last one padded with zeros. A window's spectrogram
    is that of `WhisperFeatureExtractor`: |STFT|² by a Hann window of 25 ms every 10 ms, centred,
    its ends reflected; mel bands; log10, at least 8 below the window's maximum; (x + 4) / 4.
    """

    cosines: Tensor
    sines: Tensor
    mel: Tensor

    def __init__(self, extractor: Any) -> None:
        super().__init__(extractor)
        features = extractor.features
        self.window_samples: int = features.n_samples
        self.size: int = features.n_fft
        self.shift: int = features.hop_length

        # Of a discrete Fourier transform of windowed frames: `[size, size / 2 + 1]` each. In
        # float64, in which silent bands beside loud ones are as exact as an FFT's.
        times = torch.arange(self.size, dtype=torch.float64)
        bins = torch.arange(self.size // 2 + 1, dtype=torch.float64)
        angles = 2 * torch.pi * times[:, None] * bins / self.size
        hann = torch.hann_window(self.size, dtype=torch.float64)[:, None]
        self.register_buffer("cosines", hann * angles.cos())
        self.register_buffer("sines", hann * angles.sin())
        self.register_buffer("mel", torch.from_numpy(features.mel_filters).double())

    def encode(self, waveform: Tensor) -> Any:
        """The encoder's output `[windows, 1500, dim]` for `[1, samples]`."""
        samples = waveform.shape[1]
        windows = (samples + self.window_samples - 1) // self.window_samples
        padded = nn.functional.pad(waveform, (0, windows * self.window_samples - samples))
        spectrograms = self.spectrograms(padded.reshape(windows, self.window_samples))

        self.extractor.state.lengths = [spectrograms.shape[2]]
        self.extractor.state.layers = {}
        return self.encoder(spectrograms)

    def spectrograms(self, windows: Tensor) -> Tensor:
        """`[windows, samples]` → log-mel spectrograms `[windows, bands, 3000]`."""
        half = self.size // 2
        frames = nn.functional.pad(windows, (half, half), mode="reflect")
        frames = frames.unfold(1, self.size, self.shift)[:, :-1].double()

        power = (frames @ self.cosines).square() + (frames @ self.sines).square()
        log_mel = (power @ self.mel).float().clamp(min=1e-10).log10()
        loudest = log_mel.amax((1, 2), keepdim=True)
        log_mel = torch.maximum(log_mel, loudest - 8.0)
        return ((log_mel + 4.0) / 4.0).transpose(1, 2)

    def frames(self, hidden: Tensor, samples: int) -> Tensor:
        """The states `[states, dim]` that the audio reaches, one every 20 ms, of all windows."""
        step = self.extractor.frame_samples
        return hidden.flatten(0, 1)[: (samples + step - 1) // step]
