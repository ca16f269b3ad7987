"""Recordings with annotation files beside them: what the formats of Praat, ELAN and others share.

Each interval of a tier is a segment of the recording that has the annotation file's name.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ser.corpus.segments import segment_id
from ser.errors import CorpusError, WrongUse

from ..audio import CODED, SOUND
from .audio_paths import one_form
from .files import walk_files
from .reading import Problem, Reading
from .rows import add_row


@dataclass(frozen=True)
class Interval:
    """A part of a recording, and what an annotator wrote there."""

    start: float
    end: float
    label: str
    speaker: str | None = None


@dataclass(frozen=True)
class Tier:
    """One layer of the annotations of a recording."""

    name: str
    intervals: list[Interval] = field(default_factory=list)
    points: int = 0
    """Annotations without a length."""
    note: str = ""
    """What is odd, but can be read."""


# The tiers of an annotation file, by the recording that each is of: its path without an ending, as
# the file names it, or "" for the recording of the annotation file's own name.
Annotations = list[tuple[str, Tier]]

# Raises `CorpusError` for a file that is not of its format.
ReadAnnotations = Callable[[Path], Annotations]


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of annotation files."""

    name: str
    """As `--format` has it."""
    ending: str
    """Of its files, in lower case."""
    read: ReadAnnotations
    has_tiers: bool = True
    """Whether a tier is chosen by its name; if not, all of them are read."""
    keeps_empty: bool = False
    """Whether an interval without a label is an utterance: where each is made by hand."""


def read_annotated(path: Path, format: AnnotationFormat, tier: str | None) -> Reading:
    """The segments of one tier, of all annotation files below a folder, or of one file.

    A row's label is what the interval says; its dialogue is the recording. Raises `WrongUse` where
    no file has that tier, or where one must be named.
    """
    root = path if path.is_dir() else path.parent
    files = [path.name] if path.is_file() else _files_below(root, format.ending)
    if not files:
        raise WrongUse(f"{path} holds no {format.ending} file; name the folder that does")
    if tier is not None and not format.has_tiers:
        raise WrongUse(f"--format {format.name}:{tier}: {format.name} files have no tiers to name")

    reading = Reading(root.resolve().name, root, [], paths="inside", places="segments")
    recordings = Recordings(root)
    left_out = Counter[str]()
    tiers_seen: dict[str, None] = {}
    found = 0

    for file in files:
        try:
            annotations = format.read(root / file)
        except CorpusError as fault:
            reading.problems.append(Problem(None, file, str(fault)))
            continue
        tiers_seen.update(dict.fromkeys(each.name for _, each in annotations))
        chosen = annotations
        if format.has_tiers:
            chosen = _choose(annotations, tier, format, reading, file)
        found += len(chosen)
        for recording, each in chosen:
            _add_tier(reading, recordings, file, recording, each, format, left_out)

    is_seen = tier is not None and one_form(tier) in map(one_form, tiers_seen)
    if not found and (tiers_seen or not reading.problems) and not is_seen:
        named = ", ".join(tiers_seen) or "none"
        raise WrongUse(f"{path}: no file has the tier {tier!r}; their tiers: {named}")
    reasons = [f"{count} {reason}" for reason, count in left_out.items()]
    if not reading.rows and not reading.problems:
        why = ", ".join(reasons) or "none is there"
        raise WrongUse(f"{path}: no interval is left to be an utterance: {why}; name another tier")
    reading.warnings.extend(reasons)
    _warn_of_others(reading, recordings)
    return reading


def _files_below(root: Path, ending: str) -> list[str]:
    return [file for file in walk_files(root) if _ending(file) == ending]


def _choose(
    annotations: Annotations,
    tier: str | None,
    format: AnnotationFormat,
    reading: Reading,
    file: str,
) -> Annotations:
    """The tier of that name; the only one, where none is named. None is a problem of the file."""
    names = [each.name for _, each in annotations]
    if tier is None:
        if len(annotations) == 1:
            return annotations
        raise WrongUse(
            f"{file} has the tiers {', '.join(names) or '(none)'}: name the one whose intervals "
            f"are the utterances, such as --format {format.name}:{names[0] if names else 'TIER'}"
        )

    chosen = [entry for entry in annotations if entry[1].name == tier]
    if not chosen:
        chosen = [entry for entry in annotations if one_form(entry[1].name) == one_form(tier)]
    if len(chosen) == 1:
        return chosen
    fault = f"has no tier {tier!r}" if not chosen else f"has {len(chosen)} tiers called {tier!r}"
    reason = f"{fault}; its tiers: {', '.join(names) or 'none'}"
    if chosen:
        reason = f"{fault}: rename all but one of them"
    reading.problems.append(Problem(None, file, reason))
    return []


def _add_tier(
    reading: Reading,
    recordings: "Recordings",
    file: str,
    recording: str,
    tier: Tier,
    format: AnnotationFormat,
    left_out: Counter[str],
) -> None:
    """Add a row for each interval of a tier that says something."""
    if tier.note:
        reading.warnings.append(f"{file}: {tier.note}")
    if tier.points:
        left_out[f"points, which have no length, are left out of tier {tier.name!r}"] += tier.points

    intervals = []
    for interval in tier.intervals:
        if interval.label.strip() or format.keeps_empty:
            intervals.append(interval)
        else:
            left_out["empty intervals are left out"] += 1
    if not intervals:
        return

    audio = recordings.find(file, recording)
    if audio is None:
        named = recording or PurePosixPath(file).stem
        reason = f"no recording is called {named}: put it beside the file, as {named}.wav"
        reading.problems.append(Problem(None, file, reason))
        return

    dialogue = str(PurePosixPath(audio).with_suffix(""))
    ordered = sorted(intervals, key=lambda interval: (interval.start, interval.end))
    for interval in ordered:
        values: dict[str, Any] = {
            "id": segment_id(audio, interval.start, interval.end),
            "audio": audio,
            "start": interval.start,
            "end": interval.end,
            "dialogue": dialogue,
            "speaker": interval.speaker,
            "label": interval.label.strip(),
        }
        row = add_row(reading, values.items(), file)
        if row is not None:
            row["id_is_span"] = True
            row["turn"] = recordings.next_turn(dialogue)


class Recordings:
    """The recordings below a folder, found by the names of their annotation files."""

    def __init__(self, root: Path) -> None:
        self._turns = Counter[str]()
        self.used: set[str] = set()
        # By the path without its ending, and by the name alone.
        self._by_path: dict[str, str] = {}
        self._by_name: dict[str, list[str]] = {}

        sounds = [path for path in walk_files(root) if _ending(path) in SOUND | CODED]
        # What only ffmpeg reads counts where nobody has converted it yet.
        for path in sorted(sounds, key=lambda path: _ending(path) in CODED):
            stem = one_form(str(PurePosixPath(path).with_suffix("")))
            if stem not in self._by_path:
                self._by_path[stem] = path
                self._by_name.setdefault(one_form(PurePosixPath(path).stem), []).append(path)

    @property
    def unused(self) -> list[str]:
        """Recordings that no annotation is of."""
        return sorted(set(self._by_path.values()) - self.used)

    def find(self, file: str, recording: str) -> str | None:
        """The recording of an annotation file: beside it, or the only one of its name."""
        beside = PurePosixPath(file).parent
        stem = recording or PurePosixPath(file).stem
        found = self._by_path.get(one_form(str(beside / stem)))
        if found is None:
            alike = self._by_name.get(one_form(PurePosixPath(stem).name), [])
            found = alike[0] if len(alike) == 1 else None
        if found is not None:
            self.used.add(found)
        return found

    def next_turn(self, dialogue: str) -> int:
        """The rank of the next segment of a recording."""
        self._turns[dialogue] += 1
        return self._turns[dialogue] - 1


def _warn_of_others(reading: Reading, recordings: Recordings) -> None:
    unused: Sequence[str] = recordings.unused
    if unused:
        reading.warnings.append(
            f"{len(unused)} recordings, such as {unused[0]}, have no segment: they are left out"
        )


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
