"""`ser features --transcribe whisper`: what a speech recogniser hears, as a second corpus over the
same audio.

    job = Transcription(ExtractionConfig(Path("corpus"), transcribe="whisper", models={"whisper": "whisper-base.en"}))
    extract(plan(job.config, job.run()))

Whisper's most likely token at each step (greedy, no sampling), in windows of 30 s: longer audio is
cut there, and the texts are joined. Transcripts are kept after each minute of audio, so a killed
run goes on from them.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import regex

from ser.cache.store import check_local, open_store
from ser.cache.transcripts import put_transcripts, read_transcripts
from ser.corpus.names import check_name
from ser.disk.read import read_named
from ser.disk.records import short_hash
from ser.engines.machine import choose_device, exact_arithmetic
from ser.errors import WeightsError, WrongUse
from ser.weights.checkpoint import read_json
from ser.weights.find import find_checkpoint, parse_models
from ser.weights.load import load_encoder, loading

from ..audio import CHANNELS, RESAMPLER, Clip
from ..batches import GPU_SECONDS, batches
from ..config import ExtractionConfig
from ..plan import utterances_of
from ..registry import FEATURES
from ..run import stop_at
from ..text import TAG
from ..worker import read_input
from .reading import Problem
from .scan import Scan, read_corpus

RATE, WINDOW = 16000, 30.0  # Hz, seconds: Whisper's own
KEPT = (
    60.0  # seconds of audio whose transcripts are written together: what a killed run loses at most
)
VERSION = 1  # to raise when the same model would give other transcripts than before
# With its combining marks, such as the vowel signs of Hindi, and the joiners within a word.
LETTERS = r"[\p{L}\p{N}][\p{L}\p{N}\p{M}\p{Join_Control}]*"
WORD = regex.compile(f"{LETTERS}(?:'{LETTERS})*")


class Transcription:
    """The utterances of a corpus that `config.transcribe` still has to do, `left`. Nothing is
    written yet.

    Raises `WrongUse` for options that exclude each other and an unknown language, `WeightsError`
    for weights that are not a Whisper model's, and `ExtractionStopped` for unusable audio, unless
    the config says `on_error="skip"`.
    """

    def __init__(self, config: ExtractionConfig) -> None:
        if config.text is not None:
            raise WrongUse(
                "--text and --transcribe both say where the transcripts come from: give one"
            )
        check_local(config.store)
        if config.corpus_name is not None:
            check_name("corpus", config.corpus_name)
        model = parse_models(config.models).get("whisper") or FEATURES["whisper"].model or ""
        self.config, self.device = config, choose_device(config.device)
        self.checkpoint = find_checkpoint(model, "--model whisper=PATH")
        generation = self.checkpoint.path / "generation_config.json"
        if self.checkpoint.architecture != "whisper" or not generation.exists():
            raise WeightsError(
                f"{self.checkpoint.model} is not a Whisper model with its generation_config.json, which says how it "
                "transcribes; copy the whole folder, or name another with --model whisper=ID_OR_PATH"
            )
        languages = read_json(generation).get("lang_to_id")
        codes = (
            sorted(code.strip("<|>") for code in languages) if isinstance(languages, dict) else []
        )
        if config.language and config.language not in codes:
            known = ", ".join(codes) or "none: it takes no language"
            raise WrongUse(f"--language {config.language}: {self.checkpoint.model} knows {known}")
        self.made_by = {
            "recogniser": "whisper",
            "version": VERSION,
            "checkpoint": self.checkpoint.digest,
            "generation": hashlib.sha256(read_named(generation)).hexdigest(),
            "language": config.language,
            "window": WINDOW,
            "audio": [RESAMPLER, CHANNELS],
        }
        self.scan = read_corpus(config.corpus, config.format, limit=config.limit)
        self.name = check_name("corpus", config.corpus_name or f"{self.scan.manifest.corpus}-asr")
        if self.name == self.scan.manifest.corpus:
            raise WrongUse(
                f"--corpus-name {self.name}: is the corpus itself; its second transcripts need another name"
            )
        self.utterances = utterances_of(self.scan, "audio")
        self.bad = [
            utterance.quarantine(utterance.problem)
            for utterance in self.utterances
            if utterance.problem
        ]
        stop_at(config, {"whisper": self.bad}, self.scan.refused)
        self.texts = read_transcripts(config.store, self.made_by)  # by the sha256 of the audio
        missing = {
            one.digest: one
            for one in self.utterances
            if not one.problem and one.digest not in self.texts
        }
        self.left = sorted(missing.values(), key=lambda one: (-one.length, one.id))

    @cached_property
    def model(self) -> Any:
        """Whisper, with its own tokenizer and log-mel. Raises `WeightsError`."""
        import transformers

        exact_arithmetic(self.device)
        model = load_encoder(self.checkpoint, "WhisperForConditionalGeneration").to(self.device)
        with loading(f"{self.checkpoint.path}: its tokenizer cannot be loaded"):
            model.processor = transformers.WhisperProcessor.from_pretrained(
                self.checkpoint.path, local_files_only=True
            )
            if (
                2 * (tokens := len(model.processor.tokenizer)) < model.config.vocab_size
            ):  # without a file: an empty one
                raise ValueError(
                    f"it has {tokens} tokens where the model has {model.config.vocab_size}"
                )
        return model

    def run(self, on_progress: Callable[[str, int, int], None] | None = None) -> Scan:
        """Transcribe all that is `left`, and keep it in the store. Returns the corpus with these
        transcripts.

        Raises `ExtractionStopped` at the first utterance whose audio cannot be used, as the config
        says.
        """
        open_store(self.config.store, create=True)
        most = self.config.batch_seconds or (GPU_SECONDS if self.device != "cpu" else None)
        done = 0
        for minute in batches(
            self.left, attrgetter("length"), min(KEPT, self.config.part_seconds), padded=False
        ):
            texts: dict[str, str] = {}
            for batch in batches(
                minute, lambda one: WINDOW * np.ceil(one.length / WINDOW), most, padded=False
            ):
                clips: dict[str, Clip] = {}
                for utterance in batch:
                    read = read_input(utterance, "audio", self.scan.root)
                    if isinstance(read, Clip):
                        clips[utterance.digest or ""] = read
                    else:
                        self.bad.append(utterance.quarantine(str(read)))
                if clips:
                    texts |= zip(clips, self._transcribe([*clips.values()]), strict=True)
                done += len(batch)
                if on_progress:
                    on_progress("whisper", done, len(self.left))
            if texts:
                put_transcripts(self.config.store, self.made_by, texts)
                self.texts |= texts
            stop_at(self.config, {"whisper": self.bad})
        heard = {
            one.id: self.texts[one.digest] for one in self.utterances if one.digest in self.texts
        }
        manual = zip(self.scan.manifest.ids, self.scan.manifest.column("text"), strict=True)
        errors, words, compared = word_errors(
            [(text or "", heard[id_]) for id_, text in manual if id_ in heard]
        )
        self.about: dict[str, Any] = {
            "model": self.checkpoint.model,
            "fingerprint": short_hash(self.made_by),
            "checkpoint": self.checkpoint.digest,
            "language": self.config.language,
            "random": self.checkpoint.random,
            "empty": sum(not text for text in heard.values()),
            "wer": errors / words if words else None,
            "words": words,
            "utterances": compared,
        }
        reasons = {
            one.input: one.reason for one in self.bad
        }  # by file: the corpus may hold it twice
        missing = [
            (one, one.problem or reasons[one.digest])
            for one in self.utterances
            if one.id not in heard
        ]
        problems = [
            Problem(one.id, one.file, f"not transcribed: {reason}", "text")
            for one, reason in missing
        ]
        return self.scan.with_texts(heard, problems, self.name, self.about)

    def _transcribe(self, clips: Sequence[Clip]) -> list[str]:
        import torch

        step, model = round(RATE * WINDOW), self.model
        waves = [clip.at(RATE) for clip in clips]
        windows = [
            wave[start : start + step] for wave in waves for start in range(0, len(wave), step)
        ]
        features = model.processor.feature_extractor(
            windows, sampling_rate=RATE, return_tensors="pt"
        ).input_features
        language = (
            {"language": self.config.language, "task": "transcribe"} if self.config.language else {}
        )
        with torch.inference_mode():
            tokens = model.generate(
                features.to(self.device), do_sample=False, num_beams=1, **language
            )
        texts = iter(model.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True))
        return [
            " ".join(filter(None, (next(texts).strip() for _ in range(0, len(wave), step))))
            for wave in waves
        ]


def split_words(text: str) -> list[str]:
    """The words that are compared: without case, punctuation (an apostrophe within stays), tags
    such as [LAUGHTER].
    """
    return WORD.findall(
        unicodedata.normalize("NFKC", TAG.sub(" ", text)).casefold().replace("’", "'")
    )


def word_errors(pairs: Sequence[tuple[str, str]]) -> tuple[int, int, int]:
    """Of (manual, recognised) transcripts: words inserted, deleted and substituted; manual words;
    and utterances.

    Those without a manual word are left out. The word error rate is the first number divided by the
    second.
    """
    compared = [
        (manual, split_words(heard)) for text, heard in pairs if (manual := split_words(text))
    ]
    errors = 0
    for manual, heard in compared:  # the Levenshtein distance, row by row
        row = list(range(len(heard) + 1))
        for number, word in enumerate(manual, 1):
            before, row[0] = row[0], number
            for at, other in enumerate(heard, 1):
                before, row[at] = (
                    row[at],
                    min(row[at] + 1, row[at - 1] + 1, before + (word != other)),
                )
        errors += row[-1]
    return errors, sum(len(manual) for manual, _ in compared), len(compared)
