"""Tasks: utterances of one modality and the features that they lack.

They are computed and published together. A task travels to another process or machine, so it holds
no arrays and no models.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ser.cache.part import Quarantine
from ser.cache.spec import Spec
from ser.corpus.manifest import Manifest
from ser.corpus.names import Modality
from ser.engines.machine import choose_device

from .batches import text_seconds
from .corpora.scan import Scan
from .extractor import ResolvedFeature
from .recording import Span


# There may be millions, and without slots an unpickled one has a dict.
@dataclass(frozen=True, slots=True)
class Utterance:
    """One manifest row, as the workers need it."""

    id: str
    # The path of its audio, or its transcript.
    source: str | None
    # sha256 of that audio or transcript; of a segment, its `segment_digest`.
    digest: str | None
    # What it costs, in seconds of audio.
    length: float
    # Why it cannot be used, as far as the scan knows.
    problem: str | None = None
    # The file of the problem: the audio, or what should hold the transcript.
    file: str = ""
    # Of a segment, where in its file it is, and the sha256 of that file.
    span: Span | None = None
    recording: str = ""

    def quarantine(self, reason: str) -> Quarantine:
        """What the store records of it where it cannot be used."""
        return Quarantine(self.id, self.digest, self.file, reason)


@dataclass(frozen=True)
class WorkerConfig:
    """What all tasks of a run share."""

    # Both absolute: a cluster's worker has another working folder.
    store: Path
    root: Path
    corpus: str
    features: tuple[ResolvedFeature, ...]
    backend: str
    on_error: str
    batch_seconds: float | None
    # As requested, or that of this machine.
    device: str
    threads: int = 1
    written_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_model(self) -> bool:
        """Whether a feature needs a model; a CPU computes everything else."""
        return any(feature.checkpoint for feature in self.features)

    def here(self) -> "WorkerConfig":
        """With the device of this machine. Raises `WrongUse` for one that it does not have."""
        return replace(self, device=choose_device(self.device) if self.has_model else "cpu")


@dataclass(frozen=True)
class ExtractionTask:
    """Utterances of one modality, and the specs of the features that all of them lack."""

    config: WorkerConfig
    modality: Modality
    utterances: tuple[Utterance, ...]
    specs: tuple[Spec, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{len(self.utterances)} utterances ({self.modality}, from {self.utterances[0].id})"

    @property
    def stages(self) -> Counter[str]:
        """By stage, how many usable utterances it has to do.

        The variants of a feature are one stage.
        """
        usable = sum(not utterance.problem for utterance in self.utterances)
        stages = Counter[str]()
        if self.modality == "audio":
            stages["decode"] = usable
        for spec in self.specs:
            stages[spec.feature] = usable
        return stages


def tasks_for(
    config: WorkerConfig,
    modality: Modality,
    utterances: Iterable[Utterance],
    missing: Sequence[tuple[Spec, set[str]]],
) -> list[ExtractionTask]:
    """A task for those of the utterances that lack the same features.

    `missing` are the ids that each feature lacks.
    """
    by_lacks: dict[tuple[bool, ...], list[Utterance]] = {}
    for utterance in utterances:
        lacks = tuple(utterance.id in ids for _, ids in missing)
        by_lacks.setdefault(lacks, []).append(utterance)

    tasks: list[ExtractionTask] = []
    for lacks, group in by_lacks.items():
        specs = [spec for (spec, _), lacked in zip(missing, lacks, strict=True) if lacked]
        if specs:
            tasks.append(ExtractionTask(config, modality, tuple(group), tuple(specs)))
    return tasks


def utterances_of(scan: Scan, modality: Modality) -> list[Utterance]:
    """Every manifest row as this modality sees it, in the manifest's order."""
    manifest = scan.manifest
    problems = scan.unusable(modality)
    sources = manifest.column(modality)
    durations = manifest.column("duration")
    digests = manifest.column(f"{modality}_sha256")
    spans = _spans_of(manifest) if modality == "audio" else [None] * len(manifest)

    utterances: list[Utterance] = []
    rows = zip(manifest.ids, sources, durations, digests, spans, strict=True)
    for id_, source, seconds, digest, span in rows:
        if modality == "audio":
            length = seconds or 0.0
            file = source or ""
            absent = "no audio file"
        else:
            length = text_seconds(source or "")
            file = ""
            absent = "no transcript"

        reason = None
        problem = problems.get(id_)
        if problem:
            reason = problem.reason
            file = problem.path or file
        elif digest is None:
            reason = absent
        recording = manifest.recordings.get(source or "", "") if span else ""
        utterances.append(Utterance(id_, source, digest, length, reason, file, span, recording))
    return utterances


def _spans_of(manifest: Manifest) -> list[Span | None]:
    """The part of its audio file that each row is; None where it is the whole file."""
    if not manifest.is_segmented:
        return [None] * len(manifest)
    places = zip(manifest.column("start"), manifest.column("end"), strict=True)
    return [Span(start or 0.0, end) for start, end in places]


def place_in_recording(utterance: Utterance) -> tuple[str, float, float, str]:
    """By this segments are sorted so that a recording is read from its start to its end."""
    start = utterance.span.start if utterance.span else 0.0
    return utterance.source or "", start, utterance.length, utterance.id
