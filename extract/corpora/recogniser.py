"""Whisper as a speech recogniser: from audio to text, always the same text for the same audio.

Its most likely token at each step (greedy), in windows of its own length, 30 s: longer audio is cut
there, and the texts are joined. Where a window's text runs away (`runaway.py`), it samples, as
Whisper's authors do, from the same random numbers each time.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ser.disk.read import read_named
from ser.engines.machine import choose_device, exact_arithmetic
from ser.errors import WeightsError, WrongUse
from ser.weights.checkpoint import read_json
from ser.weights.find import open_source, parse_models, pointing_with
from ser.weights.hub import OnDownload
from ser.weights.load import load_encoder, loading
from ser.weights.source import Source, find_source

from ..audio import CHANNELS, RESAMPLER, Clip
from ..config import ExtractionConfig
from ..registry import FEATURES
from .runaway import TEMPERATURES, has_run_away

# Hz: Whisper's own.
WHISPER_RATE = 16000
# Where the checkpoint names no `chunk_length`: Whisper's own.
WINDOW_SECONDS = 30.0

# To raise when the same model would give other transcripts than before.
VERSION = 2


def find_recogniser(config: ExtractionConfig) -> Source:
    """Where the weights of Whisper come from. Raises `WeightsError`."""
    model = parse_models(config.models).get("whisper") or FEATURES["whisper"].model or ""
    remedy = pointing_with("--model whisper=PATH")
    return find_source(model, remedy, convert=not config.no_convert)


class Recogniser:
    """A Whisper model that says what it hears.

    Raises `WeightsError` for weights that are not a Whisper model's, and `WrongUse` for a language
    that it does not know.
    """

    def __init__(self, config: ExtractionConfig, on_download: OnDownload | None = None) -> None:
        self.device = choose_device(config.device)
        self.language = config.language
        self.checkpoint = open_source(find_recogniser(config), on_download)

        generation = self.checkpoint.path / "generation_config.json"
        if self.checkpoint.architecture != "whisper" or not generation.exists():
            raise WeightsError(
                f"{self.checkpoint.model} is not a Whisper model with its generation_config.json, "
                "which says how it transcribes; copy the whole folder, "
                "or name another with --model whisper=ID_OR_PATH"
            )
        self.generation = read_json(generation)
        _check_language(self.language, self.checkpoint.model, self.generation)

        # As its feature extractor pads.
        preprocessor = self.checkpoint.preprocessor or {}
        self.window_seconds = float(preprocessor.get("chunk_length", WINDOW_SECONDS))

        # All that decides what a transcript is: it is kept under the hash of this.
        self.made_by = {
            "recogniser": "whisper",
            "version": VERSION,
            "checkpoint": self.checkpoint.digest,
            "generation": hashlib.sha256(read_named(generation)).hexdigest(),
            "language": self.language,
            "window": self.window_seconds,
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
        window_samples = round(WHISPER_RATE * self.window_seconds)
        windows: list[np.ndarray] = []
        windows_of_clip = []
        for clip in clips:
            wave = clip.at(WHISPER_RATE)
            starts = range(0, len(wave), window_samples)
            windows_of_clip.append(len(starts))
            for start in starts:
                windows.append(wave[start : start + window_samples])

        heard = self._hear(windows)
        for number, window in enumerate(windows):
            if self._has_run_away(heard[number], window):
                heard[number] = self._hear_again(window)

        texts = []
        for count in windows_of_clip:
            parts = heard[:count]
            heard = heard[count:]
            texts.append(" ".join(part for part in parts if part))
        return texts

    def _hear(self, windows: Sequence[np.ndarray], **sampling: Any) -> list[str]:
        """The text of each window, padded by its feature extractor; greedy, or `sampling`."""
        import torch

        processor = self.model.processor
        features = processor.feature_extractor(
            windows, sampling_rate=WHISPER_RATE, return_tensors="pt"
        ).input_features
        options: dict[str, Any] = {"do_sample": False, "num_beams": 1, **sampling}
        if self._is_multilingual:
            # Without a task it may translate, or repeat a word up to its longest text.
            options["task"] = "transcribe"
        if self.language:
            options["language"] = self.language

        with torch.inference_mode():
            tokens = self.model.generate(features.to(self.device), **options)
        texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _hear_again(self, window: np.ndarray) -> str:
        """The first text of a window that does not run away; the last one where all do."""
        import torch

        devices = [] if self.device == "cpu" else [self.device]
        kind = torch.device(self.device).type
        text = ""
        with torch.random.fork_rng(devices, device_type=kind):
            torch.manual_seed(0)
            for temperature in TEMPERATURES:
                [text] = self._hear([window], do_sample=True, temperature=temperature, top_k=0)
                if not self._has_run_away(text, window):
                    break
        return text

    def _has_run_away(self, text: str, window: np.ndarray) -> bool:
        return has_run_away(text, len(window) / WHISPER_RATE, self.window_seconds)

    @property
    def _is_multilingual(self) -> bool:
        """Whether it takes a language and a task."""
        return bool(self.generation.get("is_multilingual"))


def _check_language(language: str | None, model: str, generation: Mapping[str, Any]) -> None:
    """Raise `WrongUse` for a language that the checkpoint does not know."""
    listed = generation.get("lang_to_id")
    codes = []
    if isinstance(listed, dict):
        codes = sorted(token.strip("<|>") for token in listed)
    if language and language not in codes:
        known = ", ".join(codes) or "none: it takes no language"
        raise WrongUse(f"--language {language}: {model} knows {known}")
