"""`ser features --transcribe whisper`: what a recogniser hears, as a corpus over the same audio.

    models = {"whisper": "whisper-base.en"}
    job = Transcription(ExtractionConfig(Path("corpus"), transcribe="whisper", models=models))
    extract(plan(job.config, job.run()))

Transcripts are kept after each minute of audio, so a killed run goes on from them.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter

from ser.cache.store import check_local, open_store
from ser.cache.transcripts import put_transcripts, read_transcripts
from ser.corpus.names import check_name
from ser.disk.records import short_hash
from ser.errors import WrongUse
from ser.weights.hub import OnDownload

from ..audio import Clip
from ..batches import GPU_SECONDS, batches
from ..config import ExtractionConfig
from ..inputs import Inputs
from ..tasks import Utterance, place_in_recording, utterances_of
from ..unusable import stop_at
from .reading import Problem
from .recogniser import Recogniser
from .runaway import has_run_away
from .scan import Scan, scan_corpus
from .word_errors import word_errors

# Seconds of audio whose transcripts are written together: what a killed run loses at most.
KEPT_SECONDS = 60.0

# Utterances that an estimate transcribes, of all lengths.
TIMED = 3


@dataclass(frozen=True)
class TranscriptionSummary:
    """How a corpus was transcribed, as it stands in the manifest of the transcripts."""

    model: str
    fingerprint: str
    """Hash of all that decides what a transcript is."""
    checkpoint: str
    """The digest of the model."""
    language: str | None
    random: bool
    """Whether the model's weights were never trained."""
    empty: int
    """Utterances in which nothing was heard."""
    wer: float | None
    """Word error rate against the corpus' own transcripts, if it has any."""
    words: int
    """Words of those transcripts."""
    utterances: int
    """Utterances that are compared."""
    runaway: int
    """Transcripts that no speaker can have said, see `runaway.has_run_away`."""


class Transcription:
    """The utterances of a corpus that a recogniser still has to do, `left`. Nothing is written yet.

    Raises `WrongUse` for options that exclude each other and an unknown language, `WeightsError`
    for weights that are not a Whisper model's, and `ExtractionStopped` for unusable audio, unless
    the config says `on_error="skip"`.
    """

    # Once it has run: the summary, and the ids of transcripts that cannot be right.
    summary: TranscriptionSummary
    runaway: list[str]

    def __init__(self, config: ExtractionConfig, on_download: OnDownload | None = None) -> None:
        if config.text is not None:
            raise WrongUse(
                "--text and --transcribe both say where the transcripts come from: give one"
            )
        check_local(config.store)
        if config.corpus_name is not None:
            check_name("corpus", config.corpus_name)

        self.config = config
        self.recogniser = Recogniser(config, on_download)
        self.made_by = self.recogniser.made_by

        self.scan = scan_corpus(config.corpus, config.format, limit=config.limit)
        corpus = self.scan.manifest.corpus
        self.name = check_name("corpus", config.corpus_name or f"{corpus}-asr")
        if self.name == corpus:
            raise WrongUse(
                f"--corpus-name {self.name}: is the corpus itself; "
                "its second transcripts need another name"
            )

        self.inputs = Inputs(self.scan.root)
        self.utterances = utterances_of(self.scan, "audio")
        self.quarantined = []
        for utterance in self.utterances:
            if utterance.problem:
                self.quarantined.append(utterance.quarantine(utterance.problem))
        stop_at(config, {"whisper": self.quarantined}, self.scan.refused)

        # By the digest of the audio.
        self.texts = read_transcripts(config.store, self.made_by)
        self.left = self._missing()

    def _missing(self) -> list[Utterance]:
        """What has no transcript yet, each audio once: longest first, segments in their order."""
        missing = {}
        for utterance in self.utterances:
            if not utterance.problem and utterance.digest not in self.texts:
                missing[utterance.digest] = utterance
        if self.scan.manifest.is_segmented:
            # So that each recording is decoded once.
            return sorted(missing.values(), key=place_in_recording)
        return sorted(missing.values(), key=lambda utterance: (-utterance.length, utterance.id))

    def run(self, on_progress: Callable[[str, int, int], None] | None = None) -> Scan:
        """Transcribe all that is `left`, and keep it in the store.

        Returns the corpus with these transcripts. Raises `ExtractionStopped` at the first utterance
        whose audio cannot be used, as the config says.
        """
        open_store(self.config.store, create=True)

        limit = self.config.batch_seconds
        if not limit and self.recogniser.device != "cpu":
            limit = GPU_SECONDS
        kept_seconds = min(KEPT_SECONDS, self.config.part_seconds)

        done = 0
        for group in batches(self.left, attrgetter("length"), kept_seconds, padded=False):
            texts: dict[str, str] = {}
            for batch in batches(group, self._seconds_heard, limit, padded=False):
                texts.update(self._transcribe(batch))
                done += len(batch)
                if on_progress:
                    on_progress("whisper", done, len(self.left))

            if texts:
                put_transcripts(self.config.store, self.made_by, texts)
                self.texts.update(texts)
            stop_at(self.config, {"whisper": self.quarantined})

        return self._with_transcripts()

    def estimate(self) -> float | None:
        """About how many seconds `run` will take: a few of the utterances are transcribed.

        Nothing is written. None where nothing is left, or those cannot be read.
        """
        timed = self.left[:: max(1, len(self.left) // TIMED)][:TIMED]
        clips = []
        heard = 0.0
        for utterance in timed:
            content = self.inputs.read(utterance, "audio")
            if isinstance(content, Clip):
                clips.append(content)
                heard += self._seconds_heard(utterance)
        if not clips:
            return None

        # The first one warms up.
        self.recogniser.transcribe(clips[:1])
        started = time.perf_counter()
        for clip in clips:
            self.recogniser.transcribe([clip])
        seconds_per_second = (time.perf_counter() - started) / heard
        return seconds_per_second * sum(self._seconds_heard(utterance) for utterance in self.left)

    def _transcribe(self, batch: Sequence[Utterance]) -> dict[str, str]:
        """The texts of a batch by the sha256 of the audio; unusable audio is quarantined."""
        clips: dict[str, Clip] = {}
        for utterance in batch:
            content = self.inputs.read(utterance, "audio")
            if isinstance(content, Clip):
                clips[utterance.digest or ""] = content
            else:
                self.quarantined.append(utterance.quarantine(str(content)))

        if not clips:
            return {}
        texts = self.recogniser.transcribe(list(clips.values()))
        return dict(zip(clips, texts, strict=True))

    def _with_transcripts(self) -> Scan:
        """The corpus with the transcripts, and a problem for each utterance that has none."""
        texts = {}
        for utterance in self.utterances:
            if utterance.digest in self.texts:
                texts[utterance.id] = self.texts[utterance.digest]
        self.runaway = self._find_runaway(texts)
        self.summary = self._summarise(texts)

        # By file: the corpus may hold it twice.
        reasons = {quarantine.input: quarantine.reason for quarantine in self.quarantined}
        problems = []
        for utterance in self.utterances:
            if utterance.id not in texts:
                reason = utterance.problem or reasons[utterance.digest]
                problems.append(
                    Problem(utterance.id, utterance.file, f"not transcribed: {reason}", "text")
                )
        return self.scan.with_texts(texts, problems, self.name, asdict(self.summary))

    def _find_runaway(self, texts: Mapping[str, str]) -> list[str]:
        """The ids whose transcript cannot be what was said."""
        window_seconds = self.recogniser.window_seconds
        ids = []
        for utterance in self.utterances:
            text = texts.get(utterance.id, "")
            if has_run_away(text, utterance.length, window_seconds):
                ids.append(utterance.id)
        return ids

    def _seconds_heard(self, utterance: Utterance) -> float:
        """What an utterance costs the recogniser: whole windows."""
        window_seconds = self.recogniser.window_seconds
        return window_seconds * math.ceil(utterance.length / window_seconds)

    def _summarise(self, texts: dict[str, str]) -> TranscriptionSummary:
        manifest = self.scan.manifest
        pairs = []
        for id, manual in zip(manifest.ids, manifest.column("text"), strict=True):
            if id in texts:
                pairs.append((manual or "", texts[id]))
        compared = word_errors(pairs)

        checkpoint = self.recogniser.checkpoint
        return TranscriptionSummary(
            model=checkpoint.model,
            fingerprint=short_hash(self.made_by),
            checkpoint=checkpoint.digest,
            language=self.config.language,
            random=checkpoint.random,
            empty=sum(not text for text in texts.values()),
            wer=compared.rate,
            words=compared.words,
            utterances=compared.utterances,
            runaway=len(self.runaway),
        )
