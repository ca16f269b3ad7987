"""From a path to a manifest: find the layout, read it, hash the audio, name every problem."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ser.cache.store import check_name
from ser.corpus.manifest import Manifest, Parent
from ser.corpus.same_audio import warn_of_copies
from ser.disk.paths import expand_user
from ser.errors import WrongUse

from .admit import admit
from .detect import find_format
from .formats import find_reader
from .measure import measure
from .odd_names import warn_of_odd_names
from .reading import Problem, Reading
from .table import Transcripts, read_transcripts

# Readers of other packages take the first two from here.
__all__ = ["Problem", "Reading", "Scan", "scan_corpus"]

# Characters, as `check_name` allows.
MAX_NAME = 64


@dataclass(frozen=True, eq=False)
class Scan:
    """A corpus as found on disk.

    The manifest's audio paths are relative to `root`. `problems` names each utterance whose audio
    or transcript cannot be used (it keeps its row), and everything that has no row at all. `known`
    are published counts, by the names in `counts.py`.
    """

    manifest: Manifest
    root: Path
    format: str
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)

    def unusable(self, modality: Literal["audio", "text"]) -> dict[str, Problem]:
        """The manifest's ids whose audio (or text) cannot be used, each with its first problem."""
        first: dict[str, Problem] = {}
        # Backwards, so that the first problem of an id stands in the end.
        for problem in reversed(self.problems):
            if problem.kind == modality and problem.id is not None:
                first[problem.id] = problem
        return first

    @property
    def refused(self) -> list[Problem]:
        """The problems of what has no row, and so cannot be quarantined: name them, or stop."""
        return [problem for problem in self.problems if problem.kind == "corpus"]

    def with_texts(
        self,
        texts: Mapping[str, str],
        problems: list[Problem],
        name: str,
        made_by: Mapping[str, Any] | None = None,
    ) -> "Scan":
        """The same audio with the transcripts `texts`, by id, as corpus `name`.

        This corpus is its parent. `problems` replace those of the transcripts; `made_by` says how
        ser made them.
        """
        parent = self.manifest
        rows = []
        for row in parent.table.to_pylist():
            rows.append({**row, "text": texts.get(row["id"]), "text_sha256": None})

        manifest = Manifest.from_rows(
            name, rows, parent.synthetic, parent.recordings, parent.sounds
        )
        if name != parent.corpus:
            origin = Parent(parent.corpus, parent.digest, dict(made_by or {}))
            manifest = replace(manifest, parent=origin)

        kept = [problem for problem in self.problems if problem.kind != "text"]
        return replace(self, manifest=manifest, problems=kept + problems)


def scan_corpus(
    path: str | Path,
    format: str | None = None,
    name: str | None = None,
    text: str | Path | None = None,
    limit: int | None = None,
) -> Scan:
    """Scan a corpus.

    `format` is detected when None. `name` is the corpus' name in the store. `text` is a CSV, TSV or
    JSONL file with columns `id` and `text` whose transcripts replace the corpus' own, under another
    corpus name: an utterance that it lacks has no text, and is named in the problems. `limit` keeps
    so many utterances only, spread over the corpus. Raises `WrongUse` if the path is not a corpus
    of that format.
    """
    path = expand_user(path)
    if limit is not None and limit < 1:
        raise WrongUse(f"a limit of {limit} leaves no utterance; give 1 or more")
    if name is not None:
        check_name("corpus", name)

    format = find_format(path, format)
    reading = find_reader(format)(path)
    rows, problems = admit(reading)
    corpus = _name_from(reading.corpus)

    # Names and transcripts are refused before any audio is read.
    transcripts = Transcripts()
    if text is None:
        corpus = name or corpus
    else:
        text = expand_user(text)
        name = check_name("corpus", name or f"{corpus}-{_name_from(text.stem)}")
        transcripts = read_transcripts(text, [row["id"] for row in rows])

    without_text = transcripts.problems
    if limit is not None:
        rows = _spread(rows, limit)
        problems = _of_rows(problems, rows)
        without_text = _of_rows(without_text, rows)

    if not rows:
        first = f"; first problem: {problems[0]}" if problems else ""
        raise WrongUse(f"{path} holds no utterance that can be read as {format}{first}")

    measured = measure(reading, rows)
    manifest = Manifest.from_rows(
        corpus, measured.rows, reading.synthetic, measured.recordings, measured.sounds
    )
    scan = Scan(
        manifest,
        reading.root,
        format,
        problems + measured.problems,
        reading.warnings
        + transcripts.warnings
        + warn_of_odd_names(measured.rows)
        + measured.warnings
        + warn_of_copies(manifest),
        reading.known,
    )
    if text is None or name is None:
        return scan
    return scan.with_texts(transcripts.texts, without_text, name)


def _spread(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """So many rows, in their order: as many of each speaker of each session, as far as they go.

    Those of one speaker are spread evenly over theirs.
    """
    by_speaker: dict[tuple[Any, Any], list[int]] = {}
    for number, row in enumerate(rows):
        by_speaker.setdefault((row.get("session"), row.get("speaker")), []).append(number)

    # How many of each: one more in turn, over sessions first.
    speakers = _in_turn(list(by_speaker))
    counts = dict.fromkeys(speakers, 0)
    left = min(limit, len(rows))
    while left > 0:
        for speaker in speakers:
            if left > 0 and counts[speaker] < len(by_speaker[speaker]):
                counts[speaker] += 1
                left -= 1

    chosen: list[int] = []
    for speaker, numbers in by_speaker.items():
        count = counts[speaker]
        for place in range(count):
            # The first of as many equal pieces: of twice as many they are there again.
            chosen.append(numbers[place * len(numbers) // count])
    return [rows[number] for number in sorted(chosen)]


def _in_turn(speakers: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The first speaker of every session, then the second of every session, and so on."""
    rank: dict[Any, int] = {}
    ranked: list[tuple[int, tuple[Any, Any]]] = []
    for session, speaker in speakers:
        rank[session] = rank.get(session, -1) + 1
        ranked.append((rank[session], (session, speaker)))

    ranked.sort(key=lambda entry: entry[0])
    return [speaker for _, speaker in ranked]


def _of_rows(problems: list[Problem], rows: list[dict[str, Any]]) -> list[Problem]:
    """The problems of these rows, and those of no row."""
    ids = {row["id"] for row in rows}
    return [problem for problem in problems if problem.id is None or problem.id in ids]


def _name_from(stem: str) -> str:
    """A corpus name from the name of a file or folder, or from what a reader calls the corpus."""
    allowed = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)
    return allowed.strip("-._")[:MAX_NAME] or "corpus"
