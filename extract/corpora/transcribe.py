"""`ser features --transcribe whisper`: what a speech recogniser hears, as a second corpus over the same audio.

    job = Transcription(ExtractionConfig(Path("corpus"), transcribe="whisper", models={"whisper": "whisper-base.en"}))
    extract(plan(job.config, job.run()))

Whisper's most likely token at each step (greedy, no sampling), of windows of 30 s: what is longer is cut there, and the
texts are joined. A transcript is kept as soon as its minute of audio is done, so a run that is killed goes on.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np

from ser.cache.atomic_io import read_named
from ser.cache.spec import short_hash
from ser.cache.store import Quarantine, check_local, check_name, open_store
from ser.cache.transcripts import put_transcripts, read_transcripts
from ser.engines.machine import choose_device, exact_arithmetic
from ser.errors import UtteranceError, WeightsError, WrongUse
from ser.weights.find import find_checkpoint, load_encoder, loading, parse_models

from ..audio import CHANNELS, RESAMPLER, Clip
from ..extractors import GPU_SECONDS, batches
from ..options import ExtractionConfig
from ..plan import utterances_of
from ..registry import FEATURES
from ..run import stop_at
from ..text import TAG
from ..worker import read_input
from .scan import Problem, Scan, read_corpus

RATE, WINDOW = 16000, 30.0  # Hz, seconds: Whisper's own
KEPT = 60.0  # seconds of audio whose transcripts are kept at once: what a killed run loses
VERSION = 1  # raised when the same model would give other transcripts than before


class Transcription:
    """What `config.transcribe` has to do on a corpus: `left` of `utterances`. Nothing is written yet.

    Raises `WrongUse` for what cannot be asked together, `WeightsError` for weights that are no Whisper model's, and
    `ExtractionStopped` for audio that cannot be used, unless the config says `on_error="skip"`.
    """

    def __init__(self, config: ExtractionConfig) -> None:
        if config.text is not None:
            raise WrongUse("--text and --transcribe both say where the transcripts come from: give one")
        check_local(config.store)
        model = parse_models(config.models).get("whisper") or FEATURES["whisper"].model or ""
        self.config, self.device = config, choose_device(config.device)
        self.checkpoint = find_checkpoint(model, "--model whisper=PATH")
        generation = self.checkpoint.path / "generation_config.json"
        if self.checkpoint.architecture != "whisper" or not generation.exists():
            raise WeightsError(
                f"{self.checkpoint.model} is not a Whisper model with its generation_config.json, which says how it "
                "transcribes; copy the whole folder, or name another with --model whisper=ID_OR_PATH"
            )
        self.made_by = {
            "recogniser": "whisper",
            "version": VERSION,
            "checkpoint": self.checkpoint.digest,
            "generation": hashlib.sha256(read_named(generation)).hexdigest(),
            "language": config.language,
            "window": WINDOW,
            "audio": [RESAMPLER, CHANNELS],
        }
        self.scan = read_corpus(config.corpus, config.format, None, None, config.limit)
        self.name = check_name("corpus", config.corpus_name or f"{self.scan.manifest.corpus}-asr")
        if self.name == self.scan.manifest.corpus:
            raise WrongUse(f"--corpus-name {self.name}: is the corpus itself; its second transcripts need another name")
        self.utterances = utterances_of(self.scan, "audio")
        self.bad = [Quarantine(one.id, one.digest, one.file, one.problem) for one in self.utterances if one.problem]
        stop_at(config, {"whisper": self.bad}, self.scan.refused)
        self.texts = read_transcripts(config.store, self.made_by)  # by the sha256 of the audio
        lacking = {one.digest: one for one in self.utterances if not one.problem and one.digest not in self.texts}
        self.left = sorted(lacking.values(), key=lambda one: (-one.length, one.id))

    @cached_property
    def model(self) -> Any:
        """Whisper, with its own tokenizer and log-mel. Raises `WeightsError`, and `WrongUse` for a strange language."""
        import transformers

        exact_arithmetic(self.device)
        model = load_encoder(self.checkpoint, "WhisperForConditionalGeneration").to(self.device)
        known = getattr(model.generation_config, "lang_to_id", None) or {}
        if self.config.language and f"<|{self.config.language}|>" not in known:
            codes = ", ".join(sorted(code.strip("<|>") for code in known)) or "none: it is told no language"
            raise WrongUse(f"--language {self.config.language}: {self.checkpoint.model} knows {codes}")
        with loading(f"{self.checkpoint.path}: its tokenizer cannot be loaded"):
            model.processor = transformers.WhisperProcessor.from_pretrained(self.checkpoint.path, local_files_only=True)
            if 2 * (tokens := len(model.processor.tokenizer)) < model.config.vocab_size:  # without a file: an empty one
                raise ValueError(f"it has {tokens} tokens where the model has {model.config.vocab_size}")
        return model

    def run(self, on_progress: Callable[[str, int, int], None] | None = None) -> Scan:
        """Transcribe all that is `left`, and keep it in the store. The corpus with these transcripts.

        Raises `ExtractionStopped` at the first utterance whose audio cannot be used, as the config says.
        """
        open_store(self.config.store, create=True)
        most = self.config.batch_seconds or (GPU_SECONDS if self.device != "cpu" else None)
        total, done = len(self.left), 0
        for kept in batches(self.left, attrgetter("length"), min(KEPT, self.config.part_seconds), padded=False):
            texts: dict[str, str] = {}
            for batch in batches(kept, lambda one: WINDOW * np.ceil(one.length / WINDOW), most, padded=False):
                read = [(one, read_input(one, "audio", self.scan.root)) for one in batch]
                faults = [(one, fault) for one, fault in read if isinstance(fault, UtteranceError)]
                self.bad += [Quarantine(one.id, one.digest, one.file, str(fault)) for one, fault in faults]
                clips = {one.digest or "": clip for one, clip in read if isinstance(clip, Clip)}
                texts |= dict(zip(clips, self._transcribe(list(clips.values())), strict=True)) if clips else {}
                done += len(batch)
                if on_progress:
                    on_progress("whisper", done, total)
            if texts:
                put_transcripts(self.config.store, self.made_by, texts)
                self.texts |= texts
            stop_at(self.config, {"whisper": self.bad})
        heard = {one.id: self.texts[one.digest] for one in self.utterances if one.digest in self.texts}
        own = zip(self.scan.manifest.ids, self.scan.manifest.column("text"), strict=True)
        errors, words, compared = word_errors([(text or "", heard[id_]) for id_, text in own if id_ in heard])
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
        reasons = {one.input: one.reason for one in self.bad}  # a file may stand there twice
        lacking = [(one, one.problem or reasons[one.digest]) for one in self.utterances if one.digest not in self.texts]
        problems = [Problem(one.id, one.file, f"not transcribed: {reason}", "text") for one, reason in lacking]
        return self.scan.with_texts(heard, problems, self.name, self.about)

    def _transcribe(self, clips: Sequence[Clip]) -> list[str]:
        import torch

        step, model = round(RATE * WINDOW), self.model
        windows = [[clip.at(RATE)[at : at + step] for at in range(0, len(clip.at(RATE)), step)] for clip in clips]
        flat = [window for one in windows for window in one]
        features = model.processor.feature_extractor(flat, sampling_rate=RATE, return_tensors="pt").input_features
        told = {"language": self.config.language, "task": "transcribe"} if self.config.language else {}
        with torch.inference_mode():
            tokens = model.generate(features.to(self.device), do_sample=False, num_beams=1, **told)
        texts = iter(model.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True))
        return [" ".join(filter(None, (next(texts).strip() for _ in one))) for one in windows]


def split_words(text: str) -> list[str]:
    """The words that are compared: without case, punctuation (an apostrophe within stays), tags such as [LAUGHTER]."""
    plain = unicodedata.normalize("NFKC", TAG.sub(" ", text)).casefold().replace("’", "'")
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", plain)


def word_errors(pairs: Sequence[tuple[str, str]]) -> tuple[int, int, int]:
    """Of (manual, recognised) transcripts: words inserted, deleted and substituted, manual words, and utterances.

    Those without a manual word are left out. The first by the second number is the word error rate.
    """
    compared = [(manual, split_words(heard)) for text, heard in pairs if (manual := split_words(text))]
    errors = 0
    for manual, heard in compared:  # the Levenshtein distance, row by row
        row = list(range(len(heard) + 1))
        for number, word in enumerate(manual, 1):
            before, row[0] = row[0], number
            for at, other in enumerate(heard, 1):
                before, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, before + (word != other))
        errors += row[-1]
    return errors, sum(len(manual) for manual, _ in compared), len(compared)
