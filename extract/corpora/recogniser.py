"""Whisper as a speech recogniser: from audio to text, always the same text for the same audio.

Its most likely token at each step (greedy, no sampling), in windows of 30 s: longer audio is cut
there, and the texts are joined.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ser.disk.read import read_named
from ser.engines.machine import choose_device, exact_arithmetic
from ser.errors import WeightsError, WrongUse
from ser.weights.checkpoint import Checkpoint, read_json
from ser.weights.find import find_checkpoint, parse_models
from ser.weights.load import load_encoder, loading

from ..audio import CHANNELS, RESAMPLER, Clip
from ..config import ExtractionConfig
from ..registry import FEATURES

# Hz: Whisper's own.
WHISPER_RATE = 16000
# Whisper's own.
WINDOW_SECONDS = 30.0
WINDOW_SAMPLES = round(WHISPER_RATE * WINDOW_SECONDS)

# To raise when the same model would give other transcripts than before.
VERSION = 1


class Recogniser:
    """A Whisper model that says what it hears.

    Raises `WeightsError` for weights that are not a Whisper model's, and `WrongUse` for a language
    that it does not know.
    """

    def __init__(self, config: ExtractionConfig) -> None:
        model = parse_models(config.models).get("whisper") or FEATURES["whisper"].model or ""
        self.device = choose_device(config.device)
        self.language = config.language
        self.checkpoint = find_checkpoint(model, "--model whisper=PATH")

        generation = self.checkpoint.path / "generation_config.json"
        if self.checkpoint.architecture != "whisper" or not generation.exists():
            raise WeightsError(
                f"{self.checkpoint.model} is not a Whisper model with its generation_config.json, "
                "which says how it transcribes; copy the whole folder, "
                "or name another with --model whisper=ID_OR_PATH"
            )
        _check_language(self.language, self.checkpoint)

        # All that decides what a transcript is: it is kept under the hash of this.
        self.made_by = {
            "recogniser": "whisper",
            "version": VERSION,
            "checkpoint": self.checkpoint.digest,
            "generation": hashlib.sha256(read_named(generation)).hexdigest(),
            "language": self.language,
            "window": WINDOW_SECONDS,
            "audio": [RESAMPLER, CHANNELS],
        }

    @cached_property
    def model(self) -> Any:
        """Whisper, with its own tokenizer and log-mel as `processor`. Raises `WeightsError`."""
        import transformers

        exact_arithmetic(self.device)
        model = load_encoder(self.checkpoint, "WhisperForConditionalGeneration").to(self.device)

        with loading(f"{self.checkpoint.path}: its tokenizer cannot be loaded"):
            model.processor = transformers.WhisperProcessor.from_pretrained(
                self.checkpoint.path, local_files_only=True
            )
            # Without a file, transformers makes an empty tokenizer.
            tokens = len(model.processor.tokenizer)
            if 2 * tokens < model.config.vocab_size:
                raise ValueError(
                    f"it has {tokens} tokens where the model has {model.config.vocab_size}"
                )
        return model

    def transcribe(self, clips: Sequence[Clip]) -> list[str]:
        """What is said in each clip. All windows of all clips are one batch."""
        import torch

        waves = [clip.at(WHISPER_RATE) for clip in clips]
        windows = []
        windows_of_clip = []
        for wave in waves:
            starts = range(0, len(wave), WINDOW_SAMPLES)
            windows_of_clip.append(len(starts))
            for start in starts:
                windows.append(wave[start : start + WINDOW_SAMPLES])

        features = self.model.processor.feature_extractor(
            windows, sampling_rate=WHISPER_RATE, return_tensors="pt"
        ).input_features
        options = {}
        if self.language:
            options = {"language": self.language, "task": "transcribe"}
        with torch.inference_mode():
            tokens = self.model.generate(
                features.to(self.device), do_sample=False, num_beams=1, **options
            )
        heard = self.model.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)

        texts = []
        for count in windows_of_clip:
            parts = [text.strip() for text in heard[:count]]
            heard = heard[count:]
            texts.append(" ".join(part for part in parts if part))
        return texts


def _check_language(language: str | None, checkpoint: Checkpoint) -> None:
    """Raise `WrongUse` for a language that the checkpoint does not know."""
    listed = read_json(checkpoint.path / "generation_config.json").get("lang_to_id")
    codes = []
    if isinstance(listed, dict):
        codes = sorted(token.strip("<|>") for token in listed)
    if language and language not in codes:
        known = ", ".join(codes) or "none: it takes no language"
        raise WrongUse(f"--language {language}: {checkpoint.model} knows {known}")
